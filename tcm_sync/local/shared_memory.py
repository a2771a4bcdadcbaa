"""The manager's part in shared memory: the files that it has attached (docs/wire.rst, "Shared memory")."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcm_sync import _process as process
from tcm_sync.local import cleanup_process
from tcm_sync.local.mapping import DIRECTORY, look_up
from tcm_sync.local.models import ModelFailure
from tcm_sync.local.regions import cannot_open, refused_arguments
from tcm_sync.local.tensors import dtype_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tcm_sync.local.regions import Region, Regions
    from tcm_sync.local.requests import Find, Reference, Target

logger = logging.getLogger("tcm_sync.local")

#: The most registrations with one server; the least recently used are dropped.
MAX_REGIONS = 256


@dataclass(frozen=True)
class MappedMemory:
    """The shared memory that a `LocalManager` has mapped, unlinked files included.

    Attributes
    ----------
    keys : tuple of str
        The keys of the mapped files, by server, the least recently used first.
    mapped_bytes : int
        The bytes of all of them.
    """

    keys: tuple[str, ...] = ()
    mapped_bytes: int = 0


@dataclass(frozen=True)
class Attached:
    """A reference, and the region that it names."""

    reference: Reference
    region: Region
    memory: NDArray[Any]  # kept here, since the region may be dropped before it is used

    def array(self, model_name: str) -> NDArray[Any]:
        """Make the array, without copying or reading its data.

        Raises
        ------
        ValueError
            If it does not fit the region; the message is Triton's.
        """
        wanted, region = self.reference, self.region
        if wanted.offset >= region.byte_size:
            raise ValueError(f"[400] Invalid offset for shared memory region: '{region.name}'")
        if wanted.offset:
            raise ValueError(f"[400] Invalid offset + byte size for shared memory region: '{region.name}'")
        dtype = dtype_of(wanted.datatype)
        expected = math.prod(wanted.shape) * dtype.itemsize
        if expected != wanted.byte_size:
            raise ValueError(
                f"[400] [request id: <id_unknown>] input byte size mismatch for input '{wanted.name}' "
                f"for model '{model_name}'. Expected {expected}, got {wanted.byte_size}"
            )
        return self.memory.view(dtype).reshape(wanted.shape)


class SharedMemory:
    """The shared memory of one run of a manager; safe from any thread.

    Parameters
    ----------
    regions : Regions
        The registrations of the Triton servers, by this manager and earlier ones.
    """

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self._known: dict[str, OrderedDict[str, Region]] = {}  # by container id, then by key
        self._cleanup: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        process.register_hooks(self)

    @property
    def _lock(self) -> threading.Lock:
        return self._regions.lock

    def attach(self, references: list[Reference], target: Target) -> list[Attached]:
        """Return the regions that a request names, and register new ones.

        Raises
        ------
        ModelFailure
            If a file does not exist, or Triton refuses it.
        """
        own: dict[str, Region] = {}  # without a kept connection a request finds only its own regions
        with self._lock:
            if self._is_closed:
                raise ModelFailure("TRITON_SHM_UNAVAILABLE", "the manager has ended")
            attached = []
            for reference in references:
                try:
                    region = self._find(reference, target, own)
                except FileNotFoundError:
                    message = f"Shared memory key not found: '{reference.key}'"
                    raise ModelFailure("TRITON_SHM_UNAVAILABLE", message) from None
                assert region.memory is not None
                attached.append(Attached(reference, region, region.memory))
            return attached

    def _find(self, reference: Reference, target: Target, own: dict[str, Region]) -> Region:
        """Return the region of a reference, and register it if it is new."""
        key, byte_size = reference.key, reference.byte_size
        kept = target.container.registered
        status = look_up(key)  # a file must exist, though it need not be the one that is mapped
        known = self._known.setdefault(target.container.container_id, OrderedDict())
        region = (known if kept else own).get(key)
        if region is None or region.byte_size != byte_size:
            try:
                self._unlink_at_the_end(key)
                region = self._regions.register(target.vm_ip, key, byte_size, kept=kept)
            except FileNotFoundError:
                raise
            except OSError as error:  # it is another user's, or descriptors, memory or processes are used up
                logger.warning("%s cannot be registered: %s", key, error)
                raise cannot_open(key) from None
            known[key] = own[key] = region
            if len(known) > MAX_REGIONS:
                self._drop_least_used(known)
        elif status.st_ino == region.inode and status.st_size < byte_size:
            raise refused_arguments(region.name)  # the file was truncated: reading it would end this process
        if kept:
            known.move_to_end(key)
        return region

    def _drop_least_used(self, known: OrderedDict[str, Region]) -> None:
        _, oldest = known.popitem(last=False)
        if oldest.kept:
            self._regions.unregister(oldest)
        else:  # the connection over which it was registered is closed, so it cannot be unregistered
            self._regions.unmap_unreachable(oldest)

    def drop_deleted(self, find: Find) -> None:
        """Drop the regions of servers that jobs have deleted."""
        with self._lock:
            for container_id in list(self._known):
                container = find(container_id)
                regions = self._known[container_id].values()
                is_kept = any(region.kept for region in regions)
                if container is None or (is_kept and not container.registered):
                    del self._known[container_id]
                    for region in regions:
                        self._regions.unregister(region)

    def mapped(self) -> MappedMemory:
        """Return what is mapped now."""
        with self._lock:
            regions = [region for known in self._known.values() for region in known.values()]
        return MappedMemory(
            tuple(region.key for region in regions), sum(region.byte_size for region in regions)
        )

    def close(self) -> None:
        """Unmap everything, and unlink every file that was ever attached, including those of other processes.

        The recorded manager does so in whatever way it ends. Arrays that a model still has stay valid.
        """
        with self._lock:
            self._is_closed = True
            for known in self._known.values():
                for region in known.values():
                    self._regions.unmap_unreachable(region)
            self._known.clear()
            self._end_cleanup_process()

    at_exit = close

    def after_fork(self) -> None:
        """Drop the parent's regions in a forked child, and leave its cleanup process to the parent."""
        self._regions.lock = threading.Lock()
        self._is_closed = True
        self._known = {}
        if self._cleanup is not None:
            assert self._cleanup.stdin is not None
            self._cleanup.stdin.close()
            self._cleanup.returncode = 0  # it is not a child of this process
            self._cleanup = None

    def _unlink_at_the_end(self, key: str) -> None:
        """Send the file's name to the cleanup process, which unlinks it when this process ends."""
        line = os.fsencode(key[1:]).hex().encode() + b"\n"
        try:
            self._cleanup = self._cleanup or _start_cleanup_process()
            _write(self._cleanup, line)
        except BrokenPipeError:
            logger.warning(
                "the process that unlinks shared memory at the end was killed; it is started again"
            )
            self._end_cleanup_process()
            self._cleanup = _start_cleanup_process()
            _write(self._cleanup, line)

    def _end_cleanup_process(self) -> None:
        """Let the cleanup process unlink the files, and wait for it."""
        if self._cleanup is not None:
            assert self._cleanup.stdin is not None
            self._cleanup.stdin.close()
            self._cleanup.wait()
            self._cleanup = None


def _start_cleanup_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own file
        [sys.executable, "-I", "-S", cleanup_process.__file__, DIRECTORY],
        bufsize=0,  # names are sent at once, and there is no buffer whose lock a fork could copy
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that it outlives Ctrl-C
        cwd="/",
    )


def _write(to: subprocess.Popen[bytes], line: bytes) -> None:
    assert to.stdin is not None
    to.stdin.write(line)
