"""Imitate known faults of the manager's HTTP connections to registered servers (docs/wire.rst, "Inference").

The manager's HTTP client of a server fails when another worker uses it than before, and requests that
overlap hang until it ends, each with its worker. Here the faults are regular, so that tests can rely on them:
after two inferences of any kind have overlapped, every other request fails; of requests that overlap on one
server, the first two hang.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_GREENLET = "<greenlet.greenlet object at {} (otid={}) {} active started main>"
_OTHER_THREAD = (
    "Cannot switch to a different thread\n"
    f"\tCurrent:  {_GREENLET.format('0x7f0000000100', '0x7f0000000200', 'current')}\n"
    f"\tExpected: {_GREENLET.format('0x7f0000000300', '0x7f0000000400', 'suspended')}"
)


@dataclass(eq=False)
class _Use:
    """A request that a client is sending."""

    hangs: bool = False


@dataclass(eq=False)
class _Client:
    """The HTTP client of one registered server."""

    use: _Use | None = None
    fails: Iterator[bool] = field(default_factory=lambda: itertools.cycle((True, False)))


class Faults:
    """Makes requests on registered HTTP servers fail and hang; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _busy, _overlapped, _clients and _hung
        self._busy = 0
        self._overlapped = False
        self._clients: dict[str, _Client] = {}
        self._hung = 0
        self._released = threading.Event()

    @property
    def hung(self) -> int:
        """The number of requests that hang, each in a worker."""
        return self._hung

    def release(self) -> None:
        """End the requests that hang, which in a real manager only the end of the process does."""
        self._released.set()

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """Count a worker as busy with an inference."""
        with self._lock:
            self._busy += 1
            self._overlapped |= self._busy > 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    @contextlib.contextmanager
    def client(self, container_id: str) -> Iterator[None]:
        """Use the client of a registered server for one request.

        Raises
        ------
        ValueError
            If another worker used it before.
        """
        use = _Use()
        with self._lock:
            client = self._clients.setdefault(container_id, _Client())
            if client.use is not None:
                client.use.hangs = use.hangs = True
                client.use = None
            elif self._overlapped and next(client.fails):
                raise ValueError(_OTHER_THREAD)
            else:
                client.use = use
        if use.hangs:
            self._hang()
        try:
            yield
        finally:
            with self._lock:
                if client.use is use:
                    client.use = None
            if use.hangs:
                self._hang()

    def _hang(self) -> None:
        with self._lock:
            self._hung += 1
        self._released.wait()
        raise ValueError("the manager was killed")
