"""The opening handshake, by websocket-client, over a socket of ours (RFC 6455, section 4).

websocket-client reads header lines byte by byte without a bound, follows redirects with settings of its
own, and keeps one cookie jar for the process. So it is given an object in place of a socket, which sends
its request within the deadline, reads the whole head of the answer under a bound, and lets no cookie through
that the user did not give.
"""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from websocket import WebSocket, WebSocketException, WebSocketTimeoutException

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._secrets import Secret
from tcm_sync._transport.advice import advice_on_silence, advice_on_status
from tcm_sync._transport.heads import HEAD_BYTES, HeadTooLongError, pause_asked_for, read_fields, receive_head
from tcm_sync._transport.sockets import send_all
from tcm_sync._transport.tls import failure_after_tls
from tcm_sync._wire.quote import quote
from tcm_sync._wire.readiness import Readiness
from tcm_sync.errors import AuthenticationError, ConnectFailedError, TcmError

# Removed from the answer before websocket-client sees it: no cookie is kept, and the body of a
# refusal is not waited for.
_DROPPED = re.compile(rb"^(?:set-cookie2?|content-length|transfer-encoding)[ \t]*:", re.IGNORECASE)

_UNREQUESTED = re.compile(rb"^sec-websocket-(?:extensions|protocol)[ \t]*:", re.IGNORECASE)


def perform_handshake(
    sock: socket.socket, endpoint: Endpoint, headers: Mapping[str, Secret], deadline: Deadline
) -> bytes:
    """Turn a connected socket into a WebSocket.

    Parameters
    ----------
    sock : socket.socket
        Connected, and secured if need be.
    endpoint : Endpoint
        For the request line and the Host header.
    headers : mapping of str to Secret
        Sent beside the handshake's own.
    deadline : Deadline
        For all of it.

    Returns
    -------
    bytes
        What came behind the head of the answer: frames already.

    Raises
    ------
    ConnectFailedError
        The server refused, redirected, answered nonsense, or nothing in time. `retriable` is False for
        a status that waiting does not change; `retry_after` is what a refusal that may pass asked for.
    AuthenticationError
        Status 401 or 403.
    """
    target = f"{endpoint.path}?{endpoint.query}" if endpoint.query else endpoint.path
    cookie = next((value.reveal() for name, value in headers.items() if name.lower() == "cookie"), None)
    stand_in = _HandshakeSocket(sock, target, cookie, deadline)
    sent = [f"{name}: {value.reveal()}" for name, value in headers.items() if name.lower() != "cookie"]
    where = endpoint.authority
    silence = advice_on_silence(secure=endpoint.secure)
    problem: str | None = None
    try:
        WebSocket().connect(  # type: ignore[no-untyped-call]
            endpoint.url,
            socket=stand_in,
            header=sent,
            host=where,
            suppress_origin=True,
            redirect_limit=0,
        )
    except (WebSocketTimeoutException, TimeoutError) as error:
        raise ConnectFailedError(f"{where} did not answer the handshake in time{silence}") from error
    except (WebSocketException, ValueError, LookupError) as error:
        problem = quote(str(error))
    except OSError as error:
        if isinstance(error, TcmError):
            raise
        said = f"{where} ended the connection in the handshake: {error}{silence}"
        raise failure_after_tls(sock, error, where) or ConnectFailedError(said) from error
    # Raised here, without a cause: websocket-client's error holds the answer, which may repeat the request.
    if problem is not None and stand_in.status in (None, 101):
        raise ConnectFailedError(f"{where} does not speak WebSocket: {problem}")
    if stand_in.status != 101:  # older versions of websocket-client take a redirect for success
        raise _refused(endpoint, stand_in.status or 0, stand_in)
    if stand_in.unrequested is not None:
        raise ConnectFailedError(
            f"{where} answered the handshake with {quote(stand_in.unrequested)}, which was not asked for "
            "(RFC 6455, section 4.1)",
            retriable=False,
        )
    return stand_in.rest


def _refused(endpoint: Endpoint, status: int, answer: _HandshakeSocket) -> TcmError:
    where, body = endpoint.authority, answer.rest
    said = f": {quote(body.strip())}" if body.strip() else ""
    if status in (401, 403):
        return AuthenticationError(f"{where} refused the handshake with HTTP {status}{said}")
    if 300 <= status < 400:
        said = _redirected(endpoint, answer.fields.get(b"location", b""))
    elif status == 404:
        said = _not_found(endpoint)
    else:
        said += advice_on_status(status, body, endpoint.path)
    permanent = 300 <= status < 500 and status not in (408, 425, 429)
    return ConnectFailedError(
        f"{where} answered the handshake with HTTP {status}{said}",
        retriable=not permanent,
        retry_after=None if permanent else pause_asked_for(answer.fields),
        error_id=Readiness.read(status, body).error_id,
    )


def _redirected(endpoint: Endpoint, location: bytes) -> str:
    """Name the new address, without credentials and without a query, which may hold some."""
    try:
        target = urlsplit(urljoin(endpoint.url, location.decode("utf-8", "backslashreplace")))
    except ValueError:  # no address
        target = urlsplit("")
    if not location or not target.netloc:
        return ", a redirect, which is not followed: use the final address"
    scheme = {"http": "ws", "https": "wss"}.get(target.scheme, target.scheme)
    address = quote(f"{scheme}://{target.netloc.rpartition('@')[2]}{target.path}")
    return f", a redirect to {address}, which is not followed: use that address if the manager is there"


def _not_found(endpoint: Endpoint) -> str:
    if endpoint.path.rstrip("/").endswith("/ws"):
        return (
            f", not found: nothing is at {endpoint.path} there. Check host and port, and whether a proxy "
            "passes that path on; 'tcm-sync doctor' says what answers"
        )
    return f", not found: the path is usually /ws, and was {endpoint.path}"


class _HandshakeSocket:
    """What websocket-client takes for a socket while it shakes hands."""

    def __init__(self, sock: socket.socket, target: str, cookie: str | None, deadline: Deadline) -> None:
        self._sock = sock
        self._target = target
        self._cookie = cookie
        self._deadline = deadline
        self._head: io.BytesIO | None = None
        self.status: int | None = None
        self.rest = b""
        self.fields: dict[bytes, bytes] = {}  # by the name in lower case
        self.unrequested: bytes | None = None  # an extension or a subprotocol

    def gettimeout(self) -> float:
        return 0.0  # so that websocket-client does not wait by itself

    def settimeout(self, value: float | None) -> None:
        """Ignore the timeout: the deadline holds."""

    def send(self, data: bytes) -> int:
        lines = [line for line in data.split(b"\r\n") if not line.lower().startswith(b"cookie:")]
        lines[0] = b"GET %b HTTP/1.1" % self._target.encode("ascii")  # the path exactly as given
        if self._cookie is not None:
            lines.insert(-2, b"Cookie: " + self._cookie.encode("ascii"))
        send_all(self._sock, b"\r\n".join(lines), self._deadline)
        return len(data)

    def recv(self, size: int) -> bytes:
        if self._head is None:
            self._head = io.BytesIO(self._read_head())
        return self._head.read(size)

    def _read_head(self) -> bytes:
        try:
            head, self.rest = receive_head(self._sock, self._deadline)
        except HeadTooLongError:
            raise ConnectFailedError(
                f"the answer to the handshake has a head of over {HEAD_BYTES:,} bytes: not a manager"
            ) from None
        lines = head.split(b"\r\n")
        if found := re.match(rb"HTTP/1\.\d ([1-5]\d\d)\b", lines[0]):
            self.status = int(found[1])
        self.unrequested = next(filter(_UNREQUESTED.match, lines), None)
        self.fields = read_fields(lines)
        return b"\r\n".join(line for line in lines if not _DROPPED.match(line)) + b"\r\n\r\n"

    def close(self) -> None:
        """Leave the closing to the opener of the socket."""

    def shutdown(self, how: int) -> None:
        """Leave it to the opener of the socket."""
