"""TLS inside TLS: to a manager with ``wss://`` through a proxy that is spoken to over TLS itself.

`ssl.SSLContext.wrap_socket` takes the descriptor of the socket that it is given, not its TLS object. So the
inner TLS object reads and writes buffers, which are moved from and to the outer socket here.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from tcm_sync._deadline import Deadline
from tcm_sync._handlers import Suppress

_RECORD = 16_384  # bytes, the most that a TLS record carries


class NestedTls(socket.socket):
    """What is used of an `ssl.SSLSocket`, over another one, which it closes.

    As there, one thread at a time, and a `send` that raises is repeated with the same bytes.

    Parameters
    ----------
    outer : ssl.SSLSocket
        Connected, and its handshake done.
    context : ssl.SSLContext
        Of the inner connection.
    hostname : str
        Its name to verify.
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, hostname: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        super().__init__(outer.family, outer.type, outer.proto, outer.fileno())
        super().detach()  # the descriptor is the outer socket's, which closes it
        self.outer = outer
        self.context = context
        self._unsent = bytearray()  # what the inner connection has written, and the outer one has not taken
        self._unreported = 0  # bytes of the caller's that are in there, and are not reported as sent yet

    def do_handshake(self) -> None:
        """Do the inner handshake, within the timeout."""
        deadline, timeout = self._begin()
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush()
                    self._fill(deadline)
            self._flush()
        finally:
            self.outer.settimeout(timeout)

    def recv_into(self, buffer: Any, nbytes: int = 0, _flags: int = 0) -> int:
        """Read up to the size of the buffer; 0 is the end."""
        deadline, timeout = self._begin()
        try:
            while True:
                try:
                    return int(self._tls.read(nbytes or len(buffer), buffer))
                except ssl.SSLWantReadError:
                    self._fill(deadline)
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return 0
                finally:
                    self._answer()
        finally:
            self.outer.settimeout(timeout)

    def recv(self, bufsize: int, _flags: int = 0) -> bytes:
        """Read up to so many bytes; b"" is the end."""
        buffer = bytearray(bufsize)
        return bytes(buffer[: self.recv_into(buffer)])

    def send(self, data: Any, _flags: int = 0) -> int:
        """Write up to a record of the data: how many bytes."""
        if not self._unreported:
            self._unreported = self._tls.write(memoryview(data)[:_RECORD])
        self._flush()
        sent, self._unreported = self._unreported, 0
        return sent

    def sendall(self, data: Any, _flags: int = 0) -> None:
        """Write all of the data, within the timeout."""
        deadline, timeout = self._begin()
        rest = memoryview(data)
        try:
            while rest:
                self._limit(deadline)
                rest = rest[self.send(rest) :]
        finally:
            self.outer.settimeout(timeout)

    # --- the outer socket's ---

    def fileno(self) -> int:
        """Return the number of the descriptor."""
        return self.outer.fileno()

    def settimeout(self, value: float | None) -> None:
        """Set the most seconds that a call may take; 0.0 is non-blocking."""
        self.outer.settimeout(value)

    def gettimeout(self) -> float | None:
        """Return the timeout."""
        return self.outer.gettimeout()

    def setblocking(self, flag: bool) -> None:
        """Wait without a limit, or never."""
        self.outer.setblocking(flag)

    def getpeername(self) -> Any:
        """Return the proxy's address."""
        return self.outer.getpeername()

    def getsockname(self) -> Any:
        """Return the own address."""
        return self.outer.getsockname()

    def setsockopt(self, *arguments: Any) -> None:
        """Set an option."""
        self.outer.setsockopt(*arguments)

    def getsockopt(self, *arguments: Any) -> Any:
        """Return an option."""
        return self.outer.getsockopt(*arguments)

    def close(self) -> None:
        """Close the descriptor."""
        self.outer.close()

    # --- the inner connection's ---

    def getpeercert(self) -> dict[str, Any] | None:
        """Return the manager's certificate."""
        return self._tls.getpeercert()

    def version(self) -> str | None:
        """Return the version of TLS."""
        return self._tls.version()

    def _begin(self) -> tuple[Deadline, float | None]:
        """Return a deadline for one call, and the timeout, which the outer socket has for each of its own."""
        timeout = self.outer.gettimeout()
        return Deadline(timeout or None), timeout

    def _limit(self, deadline: Deadline) -> None:
        left = deadline.remaining()
        if left is not None:
            if left <= 0.0:
                raise TimeoutError("timed out")
            self.outer.settimeout(left)

    def _fill(self, deadline: Deadline) -> None:
        self._limit(deadline)
        if data := self.outer.recv(_RECORD):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _answer(self) -> None:
        """Send what the inner connection has written while it read, as far as the outer one takes it now."""
        if self._outgoing.pending:
            with Suppress(OSError):  # what is left goes out with the next `send`, which has an error again
                self._flush()

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        while self._unsent:
            del self._unsent[: self.outer.send(self._unsent)]


#: The classes of secured sockets.
TLS_SOCKETS = (ssl.SSLSocket, NestedTls)
