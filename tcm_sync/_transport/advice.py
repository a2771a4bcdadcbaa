"""What to do about a connection that cannot be made: added to the message of the failure."""

from __future__ import annotations

import errno
import socket
import ssl

from tcm_sync.errors import ConnectFailedError


def advise(error: ConnectFailedError, *, secure: bool, through_proxy: bool) -> None:
    """Add to the message of a failure to connect to a manager what to do, where its cause is clear.

    Parameters
    ----------
    error : ConnectFailedError
        What `open_socket` raised.
    secure : bool
        Whether the connection was to use TLS.
    through_proxy : bool
        Whether it goes through a proxy, whose failures have advice of their own.
    """
    advice = _advice(error.__cause__, secure=secure, through_proxy=through_proxy)
    if advice is not None:
        error.args = (f"{error.message}; {advice}",)


def _advice(cause: BaseException | None, *, secure: bool, through_proxy: bool) -> str | None:
    if secure and isinstance(cause, (ssl.SSLEOFError, ConnectionResetError)):
        return "a port without TLS needs ws:// and not wss://"
    if through_proxy or isinstance(cause, ssl.SSLError):
        return None
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there: is the manager running, and is the port right?"
    if isinstance(cause, socket.gaierror):
        temporary = cause.errno == socket.EAI_AGAIN
        return "is a name server reachable?" if temporary else "is the host in the uri right?"
    if isinstance(cause, TimeoutError):
        return "is the host right, and does a firewall let the port through?"
    if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
        return "this process, or the machine, may have no more open files (ulimit -n)"
    if isinstance(cause, OSError) and cause.errno in (errno.ENOBUFS, errno.ENOMEM):
        return "the machine has no memory left for another socket"
    if isinstance(cause, OSError):  # no route to it
        return "is the network, or a VPN to it, up?"
    return None


def advice_on_silence(*, secure: bool) -> str:
    """Return what to do where a server accepts connections and does not answer as a manager."""
    tls = "" if secure else ", and a port with TLS needs wss://"
    return f"; is it a manager? 'tcm-sync doctor' checks each step{tls}"


def advice_on_status(status: int, body: bytes, path: str) -> str:
    """Return what to do where a handshake is answered with an HTTP status, other than 401, 403 and 404."""
    if status == 400 and b"HTTPS" in body.upper():
        return "; a port with TLS needs wss://"
    if status < 300:
        return f"; is {path} the path of the manager (usually /ws)? A web server answers there"
    if status in (400, 405, 426, 501):
        return "; does a proxy there pass WebSockets on?"
    if status in (502, 504):
        return "; a proxy there does not reach the manager: is the manager running?"
    return ""
