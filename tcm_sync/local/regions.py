"""The shared memory that the simulated Triton servers have registered (docs/wire.rst, "Shared memory").

Like the cloud it outlives the manager: a key that one manager has registered is refused to the next one.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync.local.mapping import Mapping, path_of
from tcm_sync.local.models import ModelFailure

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The most unreachable regions whose keys stay taken. A real Triton keeps all of them, and grows.
MAX_UNREACHABLE = 4096


@dataclass(eq=False, slots=True)
class Region:
    """The first bytes of a file, registered with a Triton server.

    Attributes
    ----------
    name : str
        Its name on the server.
    vm_ip : str
        Where the server runs.
    key : str
        The file.
    byte_size : int
    kept : bool
        Whether it was registered over a connection that the manager keeps.
    memory : array of bytes, or None
        The mapping, which stays when the file is unlinked; None once no request can use the region.
    inode : int
        The inode of the mapped file.
    """

    name: str
    vm_ip: str
    key: str
    byte_size: int
    kept: bool
    memory: NDArray[Any] | None
    inode: int


class Regions:
    """The regions of all servers, with one server for each address.

    Parameters
    ----------
    other_directory : bool
        Whether the servers have another /dev/shm than the manager, as in a container of their own.

    Attributes
    ----------
    lock : threading.Lock
        Guards all regions; callers hold it while they call a method.
    """

    def __init__(self, *, other_directory: bool = False) -> None:
        self.lock = threading.Lock()
        self._other_directory = other_directory
        self._regions: dict[tuple[str, str], Region] = {}  # by vm_ip and key
        self._unreachable: deque[Region] = deque()

    def register(self, vm_ip: str, key: str, byte_size: int, *, kept: bool) -> Region:
        """Register a file under a key that is new to the server, and map its first bytes.

        Raises
        ------
        ModelFailure
            If Triton refuses it.
        FileNotFoundError
            If there is no such file.
        OSError
            If it cannot be opened or mapped.
        """
        name = f"tcm_shm_{secrets.token_hex(6)}_{secrets.token_hex(4)}"
        other = self._regions.get((vm_ip, key))
        if other is not None and other.kept and not kept:
            raise refused_arguments(name)
        if other is not None:
            raise _refused(f"[500] Invalid shared memory region: '{key}'")
        if self._other_directory:
            raise cannot_open(key)
        # Triton opens it for writing too. O_NONBLOCK: opening a named pipe would wait.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path_of(key), flags)
        try:
            status = os.fstat(descriptor)
            if not 0 < byte_size <= status.st_size:
                raise refused_arguments(name)
            memory = np.asarray(Mapping(descriptor, byte_size))
        finally:
            os.close(descriptor)
        region = Region(name, vm_ip, key, byte_size, kept, memory, status.st_ino)
        self._regions[vm_ip, key] = region
        return region

    def unregister(self, region: Region) -> None:
        """Unmap a region; its key may be registered again."""
        region.memory = None
        self._regions.pop((region.vm_ip, region.key), None)

    def unmap_unreachable(self, region: Region) -> None:
        """Unmap a region that no request can use any more; its key stays taken.

        A real Triton would keep it mapped, which shows only in the memory that it takes.
        """
        region.memory = None
        self._unreachable.append(region)
        if len(self._unreachable) > MAX_UNREACHABLE:
            self.unregister(self._unreachable.popleft())


def cannot_open(key: str) -> ModelFailure:
    """Make Triton's refusal of a file that it may not open. Not recorded: the message is from its source."""
    return _refused(f"[500] Unable to open shared memory region: '{key}'")


def refused_arguments(name: str) -> ModelFailure:
    """Make Triton's refusal of a region that is larger than its file, or that it treats as such."""
    return _refused(f"[400] failed to register shared memory region '{name}': invalid args")


def _refused(reason: str) -> ModelFailure:
    return ModelFailure("TRITON_SHM_REGISTRATION_FAILED", f"register_system_shared_memory failed: {reason}")
