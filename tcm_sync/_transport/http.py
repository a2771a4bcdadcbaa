"""GET requests to the manager's plain HTTP side, bounded in time and size (docs/wire.rst, "Endpoints")."""

from __future__ import annotations

import io
import socket
import ssl
from typing import Protocol

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._handlers import is_of_handler
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.advice import advise
from tcm_sync._transport.credentials import Credentials
from tcm_sync._transport.proxies import Proxy
from tcm_sync._transport.sockets import OpeningSockets, open_socket, receive, send_all
from tcm_sync._transport.tls import failure_after_tls
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ConnectFailedError, ProtocolError

_MAX_BYTES = 256 * 1024  # head and body together


class Target(Protocol):
    """The manager that is asked, and how."""

    endpoint: Endpoint
    context: ssl.SSLContext | None
    server_hostname: str | None
    proxy: Proxy | None
    credentials: Credentials
    addresses: Addresses


def probe(target: Target, name: str, deadline: Deadline, opening: OpeningSockets) -> tuple[int, bytes]:
    """Ask one of the manager's probes, on the host and with the TLS settings of the WebSocket.

    Parameters
    ----------
    target : Target
        The endpoint, the TLS context, the proxy and the headers.
    name : str
        ``"health"`` or ``"ready"``: it takes the place of the final ``/ws`` of the path.
    deadline : Deadline
        For all of it but the resolution of the name. Redirects are not followed.
    opening : OpeningSockets
        Keeps the socket, so that closing the client shuts it down.

    Returns
    -------
    status : int
    body : bytes

    Raises
    ------
    ConnectFailedError
        No answer.
    ProtocolError
        An answer that is not HTTP, or too long.
    AuthenticationError, ConfigError
        The callable of a header failed.
    """
    import http.client  # with all of email, which nothing else needs

    endpoint, headers = target.endpoint, target.credentials.headers()
    addresses = target.addresses
    try:
        sock = open_socket(
            endpoint, target.context, target.server_hostname, deadline, opening, addresses, target.proxy
        )
    except ConnectFailedError as error:
        advise(error, secure=endpoint.secure, through_proxy=target.proxy is not None)
        raise
    try:
        head = [f"GET {endpoint.sibling(name)} HTTP/1.1", f"Host: {endpoint.authority}"]
        head += [f"{key}: {value.reveal()}" for key, value in headers.items()]
        head += ["Accept: application/json", "Connection: close", "", ""]
        with addresses.noting_failures(sock):
            send_all(sock, "\r\n".join(head).encode("ascii"), deadline)
            with http.client.HTTPResponse(_Stream(sock, deadline)) as response:  # type: ignore[arg-type]
                response.begin()
                return response.status, response.read(_MAX_BYTES)  # whatever length was announced
    except OSError as error:
        if is_of_handler(error):
            raise
        why = " in time" if isinstance(error, TimeoutError) else f": {error}"
        said = f"{endpoint.authority} did not answer /{name}{why}"
        raise failure_after_tls(sock, error, endpoint.authority) or ConnectFailedError(said) from error
    except (http.client.HTTPException, ValueError) as error:
        if is_of_handler(error):
            raise
        problem = quote(repr(error))
    finally:
        opening.close(sock)
    # Raised here, without a cause: http.client's error holds the answer, which may repeat the request.
    raise ProtocolError(f"{endpoint.authority} answered /{name} with what is not HTTP: {problem}")


class _Stream(io.RawIOBase):
    """What http.client takes for a socket: it reads within the deadline and up to a size."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._left = _MAX_BYTES

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._left <= 0:
            raise ValueError(f"over {_MAX_BYTES:,} bytes")
        data = receive(self._sock, min(len(buffer), self._left), self._deadline)
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)
