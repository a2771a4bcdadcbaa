"""TCP and TLS sockets, opened and waited for within a deadline."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import ssl
from typing import Protocol

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._handlers import Suppress, is_of_handler
from tcm_sync._locks import RLock
from tcm_sync._transport.addresses import MAX_WAIT, Addresses, connect, resolve
from tcm_sync._transport.nested_tls import TLS_SOCKETS, NestedTls
from tcm_sync._transport.tcp_state import keep_alive
from tcm_sync._transport.tls import failure_of_tls, name_to_verify
from tcm_sync._transport.tls_errors import clear_errors

#: Flags to send with on a plain socket; 0 where the system has no such flag.
NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)

# What a system call fails with for a moment, when the process or the machine has used something up.
_RESOURCES_ENDED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class OpeningSockets:
    """The sockets that are being opened, so that they can be shut down from elsewhere."""

    def __init__(self) -> None:
        self._lock = RLock()  # guards the set, and the closing of what is in it
        self._sockets: set[socket.socket] = set()
        self._aborted = False

    def add(self, sock: socket.socket) -> None:
        """Keep `sock`."""
        with self._lock:
            self._sockets.add(sock)
            if self._aborted:
                raise ConnectionAbortedError("the client was closed")

    def remove(self, sock: socket.socket) -> None:
        """Stop keeping `sock`, which another object closes."""
        with self._lock:
            self._sockets.discard(sock)

    def close(self, sock: socket.socket) -> None:
        """Close `sock`, whose opening failed."""
        with self._lock:
            self._sockets.discard(sock)
            sock.close()

    def abort(self) -> None:
        """Shut down every socket that is being opened, now and later."""
        with self._lock:
            self._aborted = True
            for sock in self._sockets:
                shut_down(sock)

    def close_inherited(self) -> None:
        """Close the descriptors that a forked child inherited, without the lock."""
        for sock in self._sockets:
            sock.close()


class Tunnel(Protocol):
    """A proxy, as sockets are opened through it."""

    def connect(
        self, endpoint: Endpoint, addresses: Addresses, deadline: Deadline, opening: OpeningSockets
    ) -> socket.socket:
        """Return a socket whose other end is `endpoint`, without its TLS."""


def open_socket(
    endpoint: Endpoint,
    context: ssl.SSLContext | None,
    server_hostname: str | None,
    deadline: Deadline,
    opening: OpeningSockets,
    addresses: Addresses,
    proxy: Tunnel | None = None,
) -> socket.socket:
    """Connect to `endpoint`, with TLS if a context is given.

    Parameters
    ----------
    endpoint : Endpoint
        Where to.
    context : ssl.SSLContext or None
        None is a plain connection.
    server_hostname : str or None
        The name to verify, if it is not the endpoint's host.
    deadline : Deadline
        Covers every address together. Name resolution has no deadline of its own: nothing can end it.
    opening : OpeningSockets
        Keeps each socket made, and the one returned.
    addresses : Addresses
        What was learned about the addresses of the endpoint, or of the proxy, which decides their order.
    proxy : Tunnel or None
        What to connect through; None connects directly.

    Raises
    ------
    ConnectFailedError
        With `retriable` False where waiting cannot help: an unknown name, an untrusted certificate.
    """
    begin = _connect if proxy is None else proxy.connect
    sock = begin(endpoint, addresses, deadline, opening)
    if context is None:
        return sock
    with addresses.noting_failures(sock):
        return _start_tls(sock, context, name_to_verify(server_hostname or endpoint.host), deadline, opening)


def _connect(
    endpoint: Endpoint, addresses: Addresses, deadline: Deadline, opening: OpeningSockets
) -> socket.socket:
    found = resolve(endpoint.host, endpoint.port)
    sock = connect(endpoint.authority, found, addresses, deadline, opening)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
    except BaseException:
        opening.close(sock)
        raise
    return sock


def _start_tls(
    sock: socket.socket,
    context: ssl.SSLContext,
    hostname: str,
    deadline: Deadline,
    opening: OpeningSockets,
) -> ssl.SSLSocket | NestedTls:
    try:
        secured = wrap_socket(sock, context, hostname)
    except (OSError, ValueError) as error:
        opening.close(sock)
        if is_of_handler(error):
            raise
        raise failure_of_tls(error, hostname) from error
    opening.remove(sock)
    try:
        opening.add(secured)
        secured.settimeout(_positive(deadline))
        secured.do_handshake()
    except OSError as error:
        opening.close(secured)
        if is_of_handler(error):
            raise
        raise failure_of_tls(error, hostname) from error
    except BaseException:
        opening.close(secured)
        raise
    return secured


def wrap_socket(sock: socket.socket, context: ssl.SSLContext, hostname: str) -> ssl.SSLSocket | NestedTls:
    """Secure a connected socket, whose handshake is to be done."""
    if isinstance(sock, ssl.SSLSocket):  # to a proxy
        return NestedTls(sock, context, hostname)
    return context.wrap_socket(sock, server_hostname=hostname, do_handshake_on_connect=False)


def receive(sock: socket.socket, size: int, deadline: Deadline) -> bytes:
    """Read up to `size` bytes of a socket with timeouts; b"" is its end.

    Raises
    ------
    TimeoutError
        Nothing came within the deadline.
    """
    _prepare(sock, deadline)
    return sock.recv(size)


def send_all(sock: socket.socket, data: bytes | memoryview, deadline: Deadline) -> None:
    """Write all of `data` to a socket with timeouts.

    Raises
    ------
    TimeoutError
        The other side did not take it within the deadline.
    """
    _prepare(sock, deadline)
    sock.sendall(data, send_flags(sock))


def _prepare(sock: socket.socket, deadline: Deadline) -> None:
    if isinstance(sock, TLS_SOCKETS):
        clear_errors(sock)
    sock.settimeout(_positive(deadline))


def send_flags(sock: socket.socket) -> int:
    """Return the flags to send with: a closed connection is an error, and no SIGPIPE.

    Python ignores that signal, but programs may have put its default back, which ends the process. TLS takes
    no flags.
    """
    return 0 if isinstance(sock, TLS_SOCKETS) else NO_SIGNAL


def wait_ready(sock: socket.socket, *, write: bool, timeout: float | None) -> None:
    """Wait until a non-blocking socket may be written to (or read), or the timeout, whichever is first.

    A number that was closed meanwhile, and may be another socket's by now, does no harm: the caller checks
    again under the lock that guards the closing.
    """
    number = sock.fileno()
    if number < 0:
        return
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(number, select.POLLOUT if write else select.POLLIN)
        poller.poll(None if timeout is None else min(timeout, MAX_WAIT) * 1000)
        return
    both = ([], [number], [number]) if write else ([number], [], [number])
    try:
        select.select(*both, timeout)
    except (ValueError, OSError) as error:  # Windows
        if is_of_handler(error):
            raise


def is_local(sock: socket.socket) -> bool:
    """Whether the other end of a connection is this machine, judging by its address."""
    try:
        peer, own = sock.getpeername(), sock.getsockname()
    except OSError as error:
        if is_of_handler(error):
            raise
        return False
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return bool(peer[0] == own[0] or ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback)


def is_own_address(address: str) -> bool:
    """Whether an address, written as numbers, is one of this machine; ``localhost`` is.

    Raises
    ------
    OSError
        It cannot be found out now, since the process or the machine has no descriptor or memory left.
    """
    if address == "localhost":
        return True
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # which only an address of ours can be; nothing is sent
    except (OSError, ValueError) as error:
        if is_of_handler(error) or getattr(error, "errno", None) in _RESOURCES_ENDED:
            raise
        return False
    return True


def shut_down(sock: socket.socket) -> None:
    """End both directions, which wakes threads that wait on the socket; its number stays taken."""
    with Suppress(OSError):
        # Not SSLSocket's own method: after it, that object would read and write in clear.
        socket.socket.shutdown(sock.outer if isinstance(sock, NestedTls) else sock, socket.SHUT_RDWR)


def _positive(deadline: Deadline) -> float | None:
    """Seconds for `settimeout`, for which 0.0 would mean non-blocking."""
    left = deadline.remaining()
    if left is None:
        return None
    if left <= 0.0:
        raise TimeoutError("timed out")
    return min(left, MAX_WAIT)
