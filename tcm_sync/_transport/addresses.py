"""Connecting to whichever address of a host answers first (RFC 8305, "Happy Eyeballs")."""

from __future__ import annotations

import os
import selectors
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, zip_longest
from time import monotonic
from typing import Any, Protocol

from tcm_sync._deadline import Deadline
from tcm_sync._handlers import is_of_handler
from tcm_sync.errors import AuthenticationError, ConnectFailedError

#: The longest wait, in seconds: the system's own types hold little more.
MAX_WAIT = 86_400.0

_ATTEMPT_DELAY = 0.25  # seconds between the beginnings of two attempts (RFC 8305, section 5)

# What `socket.getaddrinfo` returns: family, kind, protocol, canonical name, address.
AddressInfo = tuple[Any, Any, int, str, Any]


def resolve(host: str, port: int, *, advice: str = "") -> list[AddressInfo]:
    """Return the addresses of a name.

    Raises
    ------
    ConnectFailedError
        It cannot be resolved; the message ends with `advice`.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if is_of_handler(error):
            raise
        temporary = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        raise ConnectFailedError(
            f"the name {host!r} cannot be resolved: {error}{advice}", retriable=temporary
        ) from error


class Opening(Protocol):
    """Keeps the sockets that are being opened."""

    def add(self, sock: socket.socket) -> None:
        """Keep a socket, or raise OSError: the client was closed."""

    def close(self, sock: socket.socket) -> None:
        """Close a socket whose opening failed."""


class Addresses:
    """What was learned about the addresses of one host.

    The name is resolved for each socket, so that changes in DNS are followed. What is kept here decides only
    in which order the addresses are tried. Each attribute is replaced as a whole, so there is no lock.
    """

    def __init__(self) -> None:
        self._last_good: Any = None  # the address of the last socket that was opened
        self._failed: frozenset[Any] = frozenset()  # those whose last attempt failed

    def order(self, found: list[AddressInfo]) -> list[AddressInfo]:
        """Sort what was resolved: what worked last, then the families in turn, then what failed last."""
        families: dict[Any, list[AddressInfo]] = {}
        for info in found:
            families.setdefault(info[0], []).append(info)
        in_turn = [info for info in chain(*zip_longest(*families.values())) if info is not None]
        failed = self._failed.intersection(info[4] for info in found)
        self._failed = failed  # those that the resolver no longer returns are forgotten
        return sorted(in_turn, key=lambda info: (info[4] in failed, info[4] != self._last_good))

    def succeeded(self, address: Any) -> None:
        """Try this address first from now on."""
        self._last_good, self._failed = address, self._failed - {address}

    def failed(self, address: Any) -> None:
        """Try this address last from now on."""
        self._failed |= {address}
        if self._last_good == address:
            self._last_good = None

    @contextmanager
    def noting_failures(self, sock: socket.socket) -> Iterator[None]:
        """Note that the address of `sock` failed if what is done inside fails: no TLS, no answer in time.

        A refusal to authenticate is an answer.
        """
        try:
            address = sock.getpeername()
        except OSError as error:  # it was reset already
            if is_of_handler(error):
                raise
            address = None
        try:
            yield
        except Exception as error:
            if not isinstance(error, AuthenticationError):
                self.failed(address)
            raise


def connect(
    where: str, found: list[AddressInfo], addresses: Addresses, deadline: Deadline, opening: Opening
) -> socket.socket:
    """Connect to the first address that answers; the other attempts are ended.

    Parameters
    ----------
    where : str
        Host and port, for the message.
    found : list of tuple
        What `socket.getaddrinfo` returned.
    addresses : Addresses
        In which order to try them; the outcome is noted there.
    deadline : Deadline
        For all of them together.
    opening : OpeningSockets
        Keeps each socket made, and the one returned.

    Raises
    ------
    ConnectFailedError
        None answered; the message names the failure of each.
    """
    attempts = _ConnectAttempts(addresses, deadline, opening)
    try:
        sock = attempts.run(addresses.order(found))
    finally:
        attempts.end()
    if sock is not None:
        return sock
    failures = list(attempts.failures.items())
    texts = [_describe(failure) for _, failure in failures]
    if len(set(texts)) > 1:
        texts = [f"{address[0]}: {text}" for (address, _), text in zip(failures, texts, strict=True)]
    what = "; ".join(dict.fromkeys(texts)) or "the name has no address"
    raise ConnectFailedError(f"no connection to {where}: {what}") from (failures[-1][1] if failures else None)


def _describe(failure: OSError) -> str:
    return "timed out" if isinstance(failure, TimeoutError) else str(failure)


class _ConnectAttempts:
    """Attempts to connect to several addresses, in one thread."""

    def __init__(self, addresses: Addresses, deadline: Deadline, opening: Opening) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._opening = opening
        self._attempts: dict[socket.socket, AddressInfo] = {}  # those under way
        # Neither has a descriptor of its own, which a forked child would inherit.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self.failures: dict[Any, OSError] = {}  # by address

    def run(self, waiting: list[AddressInfo]) -> socket.socket | None:
        """Begin an attempt every 250 ms, or at once after a failure; return the first socket connected."""
        left, to_begin = self._deadline.remaining(), deque(waiting)
        delay = _ATTEMPT_DELAY if left is None else min(_ATTEMPT_DELAY, left / max(1, len(waiting)))
        next_at = monotonic()
        while to_begin or self._attempts:
            if to_begin and (not self._attempts or monotonic() >= next_at):
                next_at = monotonic() + delay
                if (sock := self._begin(to_begin.popleft())) is not None:
                    return sock
                continue
            left = self._deadline.remaining()
            if left == 0.0 and not self._selector.select(0):
                for sock in list(self._attempts):
                    self._fail(sock, TimeoutError("timed out"))
                break
            bounds = [MAX_WAIT if left is None else min(left, MAX_WAIT)]
            if to_begin:
                bounds.append(max(0.0, next_at - monotonic()))
            for key, _ in self._selector.select(min(bounds)):
                assert isinstance(key.fileobj, socket.socket)
                if (sock := self._finish(key.fileobj)) is not None:
                    return sock
                next_at = monotonic()
        return None

    def _begin(self, info: AddressInfo) -> socket.socket | None:
        """Begin an attempt; the socket if it is connected at once."""
        family, kind, protocol, _, address = info
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            if is_of_handler(error):
                raise
            self.failures[address] = error
            return None
        self._attempts[sock] = info
        try:
            self._opening.add(sock)
            sock.setblocking(False)
            sock.connect(address)
        except (BlockingIOError, InterruptedError):  # it is under way
            self._selector.register(sock, selectors.EVENT_WRITE)
        except OSError as error:
            if is_of_handler(error):
                raise
            self._fail(sock, error)
        else:
            return self._connected(sock)
        return None

    def _finish(self, sock: socket.socket) -> socket.socket | None:
        """Take the outcome of an attempt; the socket if it is connected."""
        self._selector.unregister(sock)
        try:
            if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))
            sock.getpeername()  # fails if another thread shut it down
        except OSError as error:
            if is_of_handler(error):
                raise
            self._fail(sock, error)
            return None
        return self._connected(sock)

    def _connected(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(None)
        self._addresses.succeeded(self._attempts.pop(sock)[4])
        return sock

    def _fail(self, sock: socket.socket, error: OSError) -> None:
        address = self._attempts.pop(sock)[4]
        self._opening.close(sock)
        self._addresses.failed(address)
        self.failures[address] = error

    def end(self) -> None:
        """Close the sockets of the attempts that are still under way."""
        for sock in self._attempts:
            self._opening.close(sock)
        self._selector.close()
