"""Connections to the manager through an HTTP proxy (RFC 9110, section 9.3.6) or a SOCKS5 proxy (RFC 1928).

python-socks speaks SOCKS5. HTTP CONNECT is spoken here: the libraries for it take one read for a whole
answer, or bound neither its time nor its size.
"""

from __future__ import annotations

import re
import socket
import ssl
from base64 import b64encode

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._handlers import is_of_handler
from tcm_sync._proxy_url import ProxyUrl, find_proxy
from tcm_sync._secrets import Secret
from tcm_sync._tls_context import make_proxy_context
from tcm_sync._transport.addresses import Addresses, resolve
from tcm_sync._transport.heads import HEAD_BYTES, HeadTooLongError, pause_asked_for, read_fields, receive_head
from tcm_sync._transport.sockets import OpeningSockets, open_socket, receive, send_all
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ConnectFailedError, TcmError
from tcm_sync.settings import Settings

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # others are permanent

_CREDENTIALS = "a user name and a password: they belong in its URL, as in http://USER:PASSWORD@HOST:PORT"

_SOCKS_REFUSALS: dict[
    int, tuple[str, bool]
] = {  # RFC 1928, section 6: what happened, and whether it may pass
    1: ("general failure", True),
    2: ("not allowed by the rules of the proxy, which its administrator can change", False),
    3: ("it cannot reach the network", True),
    4: ("it cannot reach the host, or cannot resolve its name", True),
    5: ("the manager's port refuses connections", True),
    6: ("the packets' time to live expired", True),
    7: ("it does not support CONNECT", False),
    8: ("it does not support this type of address (name, IPv4 or IPv6)", False),
}


class Proxy:
    """A proxy, through which sockets to one manager are opened.

    Parameters
    ----------
    url : ProxyUrl
        Where it is.
    context : ssl.SSLContext or None
        For the connection to the proxy itself, if its URL is ``https://``.
    """

    def __init__(self, url: ProxyUrl, context: ssl.SSLContext | None) -> None:
        self.url = url
        self._context = context
        self._endpoint = Endpoint(False, url.host, url.port, "", "")
        pair = f"{url.username}:{url.password}" if url.username else ""
        self._basic = b64encode(pair.encode()).decode()
        self._secret = Secret(self._basic, pair, url.password)  # hidden as long as the proxy is in use
        if url.is_socks:
            import python_socks.sync  # noqa: F401 - now and not in the first call

    def connect(
        self, endpoint: Endpoint, addresses: Addresses, deadline: Deadline, opening: OpeningSockets
    ) -> socket.socket:
        """Return a socket whose other end is `endpoint`, without its TLS.

        Parameters
        ----------
        endpoint : Endpoint
            The manager. The proxy resolves its name, unless the proxy's URL is ``socks5://``.
        addresses : Addresses
            What was learned about the proxy's addresses.
        deadline : Deadline
            For the connection to the proxy and the proxy's answers together.
        opening : OpeningSockets
            Keeps each socket made, and the one returned.

        Raises
        ------
        ConnectFailedError
            No connection to the proxy, or through it. `retriable` is False for a refusal that waiting does
            not change; `retry_after` is what one that may pass asked for.
        """
        hosts = _resolve(endpoint) if self.url.scheme == "socks5" else [endpoint.host]
        for left, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
            remaining = deadline.remaining()
            share = deadline.at_most(None if remaining is None else remaining / left)
            try:
                return self._tunnel(host, endpoint, addresses, share, opening)
            except ConnectFailedError as error:
                if left == 1 or not error.retriable or deadline.expired():
                    raise
        raise AssertionError("the loop returns or raises")

    def _tunnel(
        self,
        host: str,
        endpoint: Endpoint,
        addresses: Addresses,
        deadline: Deadline,
        opening: OpeningSockets,
    ) -> socket.socket:
        try:
            sock = open_socket(self._endpoint, self._context, None, deadline, opening, addresses)
        except ConnectFailedError as error:
            raise ConnectFailedError(
                f"the proxy {self.url} cannot be reached: {error.message}; is proxy= right?",
                retriable=error.retriable,
            ) from error
        ask = self._ask_socks if self.url.is_socks else self._ask_http
        try:
            ask(sock, host, endpoint, deadline)
        except BaseException as error:
            opening.close(sock)
            if not isinstance(error, OSError) or isinstance(error, TcmError) or is_of_handler(error):
                raise
            if isinstance(error, TimeoutError):
                raise ConnectFailedError(
                    f"the proxy {self.url} did not answer in time when asked for {endpoint.authority}: it "
                    "hangs, or is no proxy of this kind, or cannot reach that address"
                ) from error
            raise ConnectFailedError(
                f"the proxy {self.url} ended the connection when asked for {endpoint.authority}: {error}"
            ) from error
        return sock

    # --- HTTP CONNECT ---

    def _ask_http(self, sock: socket.socket, host: str, endpoint: Endpoint, deadline: Deadline) -> None:
        name = f"[{host}]" if ":" in host else _ascii(host)
        lines = [f"CONNECT {name}:{endpoint.port} HTTP/1.1", f"Host: {name}:{endpoint.port}"]
        if self._basic:
            lines.append(f"Proxy-Authorization: Basic {self._basic}")
        send_all(sock, "\r\n".join([*lines, "", ""]).encode("ascii"), deadline)
        try:
            head, rest = receive_head(sock, deadline)
        except HeadTooLongError:
            raise ConnectFailedError(
                f"the proxy {self.url} answered with a head of over {HEAD_BYTES:,} bytes: no HTTP proxy",
                retriable=False,
            ) from None
        found = re.match(rb"HTTP/1\.\d ([2-5]\d\d)(?: (.*))?(?:\r\n|$)", head)
        if found is None:
            raise ConnectFailedError(
                f"the proxy {self.url} answered with what is not HTTP: {quote(head)}; "
                "is the scheme of its URL right?",
                retriable=False,
            )
        status = int(found[1])
        if status >= 300:
            is_temporary = status in _TEMPORARY
            raise ConnectFailedError(
                f"the proxy {self.url} refused a connection to {endpoint.authority} with HTTP "
                f"{quote(b'%d %b' % (status, (found[2] or b'').strip())).strip()}: "
                f"{self._advice(status, head)}",
                retriable=is_temporary,
                retry_after=pause_asked_for(read_fields(head.split(b"\r\n"))) if is_temporary else None,
            )
        if rest:  # a manager is spoken to first
            raise ConnectFailedError(
                f"the proxy {self.url} answered CONNECT with HTTP {status} and a body: {quote(rest)}; "
                "it is a web server, or no proxy for CONNECT",
                retriable=False,
            )

    def _advice(self, status: int, head: bytes) -> str:
        if status == 407:
            offered = re.findall(rb"^proxy-authenticate[ \t]*:[ \t]*([\w-]+)", head, re.I | re.M)
            if offered and b"basic" not in {scheme.lower() for scheme in offered}:
                schemes = quote(b", ".join(offered))
                return f"it accepts {schemes}, and this client has Basic alone"
            return "it refuses the credentials in its URL" if self._basic else f"it requires {_CREDENTIALS}"
        if status == 403:
            return "its rules forbid this host or port to CONNECT, which its administrator can change"
        if status in (502, 503, 504):
            return "it cannot reach the manager, or has too much work"
        if status in _TEMPORARY:
            return "it may succeed later"
        return "it is a web server, or no proxy for CONNECT"

    # --- SOCKS5 ---

    def _ask_socks(self, sock: socket.socket, host: str, endpoint: Endpoint, deadline: Deadline) -> None:
        from python_socks import ProxyError, ProxyTimeoutError, ProxyType
        from python_socks.sync import Proxy as SocksProxy

        url = self.url
        stand_in = _DeadlineSocket(sock, deadline)
        proxy = SocksProxy(
            ProxyType.SOCKS5,
            url.host,
            url.port,
            url.username or None,
            url.password if url.username else None,
            rdns=True,
            forward=_OpenedSocket(stand_in),  # type: ignore[arg-type]
        )
        timed_out: BaseException | None = None
        try:
            proxy.connect(_ascii(host), endpoint.port)
        except ProxyTimeoutError as error:
            timed_out = error.__cause__ or error
        except (ProxyError, ValueError) as error:  # ValueError: an address of a wrong length
            if is_of_handler(error):
                raise
            why, is_temporary = self._socks_refusal(getattr(error, "error_code", None), stand_in)
            raise ConnectFailedError(
                f"the proxy {url} made no connection to {endpoint.authority}: {why}", retriable=is_temporary
            ) from error
        if timed_out is not None:
            raise timed_out  # as the socket has raised it, or a signal handler

    def _socks_refusal(self, code: int | None, answer: _DeadlineSocket) -> tuple[str, bool]:
        """Say why there is no connection, and whether that may pass."""
        if code in _SOCKS_REFUSALS:
            return _SOCKS_REFUSALS[code]
        if answer.ended:
            return "it closed the connection", True
        if answer.received in (b"\x05\xff", b"\x05\x02"):  # RFC 1928, section 3
            if self.url.username:
                return "it accepts no user name and password", False
            return f"it requires {_CREDENTIALS}", False
        if answer.sent[:1] == answer.received[:1] == b"\x01":  # RFC 1929, section 2
            return "it refuses the credentials in its URL", False
        return f"it answered with what is not SOCKS5: {quote(answer.received)}", False


class _DeadlineSocket:
    """What python-socks takes for a socket: one deadline for all of it, and the last exchange is kept."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self.sent = self.received = b""
        self.ended = False  # whether the other side closed the connection

    def sendall(self, data: bytes) -> None:
        self.sent, self.received = data, b""
        send_all(self._sock, data, self._deadline)

    def recv(self, size: int) -> bytes:
        data = receive(self._sock, size, self._deadline)
        self.received += data
        self.ended = not data
        return data

    def close(self) -> None:
        """Leave the closing to the opener of the socket."""


class _OpenedSocket:
    """What python-socks takes for a proxy before the proxy: it has opened the socket."""

    def __init__(self, sock: _DeadlineSocket) -> None:
        self._sock = sock

    def connect(self, **_: object) -> _DeadlineSocket:
        return self._sock


def _ascii(host: str) -> str:
    """Return a name in the form that DNS has it in."""
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ConnectFailedError(f"the name {host!r} cannot be resolved: {error}", retriable=False) from error


def _resolve(endpoint: Endpoint) -> list[str]:
    """Resolve the manager's name here, into addresses written as numbers."""
    found = resolve(endpoint.host, endpoint.port, advice="; with socks5h:// the proxy resolves it")
    return list(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))


def make_proxy(settings: Settings) -> Proxy | None:
    """Return the proxy of a client; None if it has none."""
    endpoint = Endpoint.parse(settings.uri)
    url = find_proxy(settings.proxy, secure=endpoint.secure, host=endpoint.host, port=endpoint.port)
    if url is None:
        return None
    context = None
    if url.scheme == "https":
        context = make_proxy_context(None if settings.tls is None else settings.tls.ca_file)
    return Proxy(url, context)
