"""The checks of ``doctor``, from the settings to a round trip."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import shutil
import socket
import ssl
import statistics
import tempfile
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.authentication import AuthExchange, auth_request, fresh_uuid
from tcm_sync._transport.credentials import Credentials
from tcm_sync._transport.handshake import perform_handshake
from tcm_sync._transport.proxies import Proxy, make_proxy
from tcm_sync._transport.sockets import OpeningSockets, is_local, open_socket, wrap_socket
from tcm_sync._transport.tls import failure_of_tls, name_to_verify
from tcm_sync._wire.quote import quote
from tcm_sync.cli.failures import DENIED, UNREACHABLE, USAGE, code_of
from tcm_sync.cli.other_servers import Answer, describe_server, is_http_2
from tcm_sync.cli.versions import versions
from tcm_sync.client import TcmClient
from tcm_sync.errors import AuthenticationError, ConnectFailedError, TcmError
from tcm_sync.settings import AuthContext, Settings, TlsSettings

if TYPE_CHECKING:
    from tcm_sync.cli.options import Session

SHM_FOLDER = "/dev/shm"  # noqa: S108 - the folder that the protocol uses
_ROUND_TRIPS = 5
_EXPIRES_SOON = 14  # days: a certificate that expires earlier is a warning
_SKEW = 5.0  # seconds that two clocks may differ without a warning; the Date header has whole seconds

_WRONG_TIME, _WRONG_NAME = (
    (9, 10),
    (62, 64),
)  # OpenSSL's codes; most others: an unknown issuer


@dataclass
class Finding:
    """The result of a step that did not fail: ``"ok"``, or ``"warning"`` with advice."""

    detail: str
    status: str = "ok"
    advice: str | None = None


class StepFailedError(Exception):
    """A step failed: the reason, what to do, and the exit status of the command."""

    def __init__(self, detail: str, advice: str, code: int = UNREACHABLE) -> None:
        super().__init__(detail)
        self.advice = advice
        self.code = code


class Skipped(Exception):
    """The step has nothing to check; the message is the reason."""


class Checks:
    """The steps, and what they have found so far.

    Parameters
    ----------
    session : Session
        The options and the environment variables.
    timeout : float
        Seconds that each step may wait for the network.
    """

    def __init__(self, session: Session, timeout: float) -> None:
        self._session = session
        self._timeout = timeout
        self._opening = OpeningSockets()
        self._addresses = Addresses()
        self._sockets: list[socket.socket] = []
        self._settings: Settings
        self._endpoint: Endpoint
        self._context: ssl.SSLContext | None = None
        self._proxy: Proxy | None = None
        self._capability: frozenset[str] | None = None
        self._is_local = False
        self._rest = b""
        self._date: str | None = None
        self._server: str | None = None
        self._asked_at = 0.0

    def close(self) -> None:
        """Close the open sockets."""
        for sock in self._sockets:
            self._opening.close(sock)

    def _deadline(self) -> Deadline:
        return Deadline(self._timeout)

    # --- the steps, in order ---

    def settings(self) -> Finding:
        """Check the options and the environment variables."""
        try:
            self._settings = Settings(**self._session.arguments())
            self._endpoint = Endpoint.parse(self._settings.uri)
            self._proxy = make_proxy(self._settings)
            if self._endpoint.secure:
                self._context = (self._settings.tls or TlsSettings()).context()
        except TcmError as error:
            raise StepFailedError(str(error), "correct the option or the TCM_* variable", USAGE) from error
        route, token = self._settings.route, self._session.token
        where = "no container" if route is None else f"container {route.container_id}"
        detail = f"{self._settings.shown_uri}, {where}, {'no token' if token is None else 'a token'}"
        if self._proxy is not None:
            detail += f", through the proxy {self._proxy.url}"
        left = _seconds_left(token)
        if left is not None and left < 0:
            return Finding(
                f"{detail}, which expired {-left / 60:,.0f} minutes ago by this clock",
                "warning",
                "get a fresh token",
            )
        return Finding(detail)

    def name_resolution(self) -> Finding:
        """Resolve the name of the host, or of the proxy, which resolves that."""
        host, port, option = self._endpoint.host, self._endpoint.port, "--uri"
        if self._proxy is not None and self._proxy.url.scheme != "socks5":
            host, port, option = self._proxy.url.host, self._proxy.url.port, "--proxy"
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise StepFailedError(
                f"the name {host!r} cannot be resolved: {error}",
                f"the host of {option} is misspelt, or this machine cannot reach a name server",
            ) from error
        return Finding(", ".join(dict.fromkeys(str(address[0]) for *_, address in found)))

    def tcp(self) -> Finding:
        """Open a TCP connection."""
        try:
            sock = self._open(None)
        except ConnectFailedError as error:
            if self._proxy is not None:
                raise StepFailedError(
                    error.message, "the proxy must accept this host and port: check --proxy"
                ) from error
            refused = isinstance(error.__cause__, ConnectionRefusedError)
            raise StepFailedError(
                error.message,
                "nothing listens there: is the manager running, and is the port right?"
                if refused
                else "a firewall or a wrong address keeps packets from arriving",
            ) from error
        self._sockets.append(sock)
        through = "" if self._proxy is None else f" through the proxy {self._proxy.url}"
        return Finding(f"{self._endpoint.authority} answers{through}")

    def tls(self) -> Finding:
        """Do the TLS handshake, and check when the certificate expires."""
        if self._context is None:
            raise Skipped("ws:// has none")
        tls = self._settings.tls
        name = name_to_verify((tls.server_hostname if tls is not None else None) or self._endpoint.host)
        plain = self._sockets.pop()
        self._opening.remove(plain)
        plain.settimeout(self._timeout)
        try:
            secured = wrap_socket(plain, self._context, name)
            self._sockets.append(secured)
            secured.do_handshake()
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise StepFailedError(failure_of_tls(error, name).message, _advice_on(error)) from error
        except (OSError, ValueError) as error:
            plain.close()
            raise StepFailedError(
                failure_of_tls(error, name).message,
                "the port may not speak TLS (then the address is ws://), or requires a client certificate",
            ) from error
        certificate: dict[str, Any] = dict(secured.getpeercert() or {})
        names = [str(value) for _, value in certificate.get("subjectAltName", ())]
        days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400
        detail = f"{secured.version()}, certificate of {', '.join(names)}, {days:.0f} days left"
        if days < _EXPIRES_SOON:
            return Finding(detail, "warning", "renew the manager's certificate")
        return Finding(detail)

    def health(self) -> Finding:
        """Request /health, and keep the Server and Date headers of the answer."""
        self._asked_at = time.time()
        try:
            answer = self._get(self._endpoint.sibling("health"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            if is_http_2(error):
                raise StepFailedError(
                    "the answer is HTTP/2",
                    "this is how Triton's gRPC port answers: --uri must be the manager's address",
                ) from error
            raise StepFailedError(
                f"no answer: {error or 'timed out'}",
                "the server there is not a manager, hangs, or speaks TLS (then the address is wss://)",
            ) from error
        self._date, self._server = answer.date, answer.server
        if answer.status == 200:
            return Finding("200")
        return Finding(
            f"{answer.status}: {quote(answer.body.strip())}",
            "warning",
            describe_server(self._get)
            or "the path of --uri is wrong, or a proxy forwards only the WebSocket",
        )

    def _open(self, context: ssl.SSLContext | None) -> socket.socket:
        tls = self._settings.tls
        name = tls.server_hostname if tls is not None else None
        deadline = self._deadline()
        return open_socket(
            self._endpoint, context, name, deadline, self._opening, self._addresses, self._proxy
        )

    def _get(self, path: str) -> Answer:
        connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.port)
        sock = self._open(self._context)
        try:
            sock.settimeout(self._timeout)
            connection.sock = sock
            headers = Credentials(self._settings).headers()
            shown = {name: value.reveal() for name, value in headers.items()}
            connection.request("GET", path, headers=shown)
            answer = connection.getresponse()
            return Answer(
                answer.status, answer.read(4000), answer.getheader("Server"), answer.getheader("Date")
            )
        finally:
            self._opening.close(sock)

    def ready(self) -> Finding:
        """Request /ready."""
        with TcmClient(**self._session.arguments()) as client:
            answer = client.ready(timeout=self._timeout)
        if answer.ok:
            return Finding(answer.explanation)
        if answer.status == "not_ready" and answer.raw:
            found = f"; search its log for {answer.error_id}" if answer.error_id else ""
            raise StepFailedError(
                answer.explanation,
                f"a service that the manager needs is not ready{found}; wait with 'tcm-sync ready --wait 60'",
            )
        return Finding(answer.explanation, "warning", "a proxy may forward only the WebSocket")

    def websocket(self) -> Finding:
        """Do the WebSocket handshake."""
        try:
            self._rest = perform_handshake(
                self._sockets[-1], self._endpoint, Credentials(self._settings).headers(), self._deadline()
            )
        except TcmError as error:
            denied = isinstance(error, AuthenticationError)
            advice = (
                "a proxy before the manager requires credentials"
                if denied
                else describe_server(self._get) or "is the path right? usually /ws"
            )
            raise StepFailedError(error.message, advice, code_of(error)) from error
        return Finding(self._endpoint.shown)

    def authentication(self) -> Finding:
        """Send the auth message, and read what the manager grants."""
        try:
            self._capability = self._authenticate(self._deadline())
        except TcmError as error:
            advice = "the server listens and does not answer: is it a manager?"
            if code_of(error) == DENIED:
                advice = "TCM_CLIENT_TOKEN or --token-file must contain a token that this manager accepts"
            raise StepFailedError(error.message, advice, code_of(error)) from error
        self._is_local = self._proxy is None and is_local(self._sockets[-1])
        auth = self._settings.auth
        roles = ", ".join(auth.roles) if auth is not None and auth.roles else "none named"
        return Finding(f"accepted; roles: {roles}")

    def _authenticate(self, deadline: Deadline) -> frozenset[str]:
        """Authenticate the socket, and return what the manager grants of all capabilities."""
        settings = self._settings
        auth = settings.auth or AuthContext()
        exchange = AuthExchange(
            self._endpoint, self._sockets[-1], fresh_uuid(auth.uuid), settings.max_reply_bytes, deadline
        )
        exchange.feed(self._rest)
        return exchange.run(auth_request(auth, Credentials(settings).token()))

    def capability(self) -> Finding:
        """Report what the manager has granted."""
        return Finding(", ".join(sorted(self._capability or ())))

    def shared_memory(self) -> Finding:
        """Check that shared memory can be written, and report whether the manager can use it."""
        manager, wanted = self._manager_on_shm()
        try:
            with tempfile.NamedTemporaryFile(prefix="tcm-sync-doctor-", dir=SHM_FOLDER):
                usage = shutil.disk_usage(SHM_FOLDER)
        except OSError as error:
            detail = f"{SHM_FOLDER} cannot be written to ({error.strerror}); {manager}"
            if wanted:
                return Finding(detail, "warning", f"mount {SHM_FOLDER} writable (docker: --ipc=host)")
            return Finding(detail)
        room = f"{usage.free / 2**20:,.0f} MiB free" if usage.total else "without a limit of its size"
        return Finding(f"{SHM_FOLDER} is writable, {room}; {manager}")

    def _manager_on_shm(self) -> tuple[str, bool]:
        """Return what the manager does about shared memory in words, and whether it can be used."""
        if self._capability is None:
            return "the manager was not asked", False
        if "shm" not in self._capability:
            return "the manager does not grant shm: tensors are sent as JSON", False
        if not self._is_local:  # a manager that has shared memory grants shm to clients on other machines too
            return "the manager grants shm, but is not on this machine: tensors are sent as JSON", False
        return "the manager is on this machine, and grants shm", True

    def round_trip(self) -> Finding:
        """Time a few requests for the figures of the queue."""
        times = []
        try:
            with TcmClient(**self._session.arguments()) as client:
                client.open(timeout=self._timeout)
                for _ in range(_ROUND_TRIPS):
                    start = time.perf_counter()
                    stats = client.queue_stats(timeout=self._timeout)
                    times.append(time.perf_counter() - start)
        except TcmError as error:
            raise StepFailedError(
                str(error), "the manager accepts clients but does not serve them: see its log", code_of(error)
            ) from error
        measured = f"median {statistics.median(times) * 1e3:.1f} ms of {_ROUND_TRIPS}"
        return Finding(f"{measured}; {stats.total_users} users, {stats.total_queued} queued")

    def clock(self) -> Finding:
        """Compare this clock with the manager's: tokens expire by them."""
        if self._date is None:
            raise Skipped("the answer of /health has no Date header")
        try:
            skew = parsedate_to_datetime(self._date).timestamp() - self._asked_at
        except ValueError:
            raise Skipped(f"the Date header is not a date: {quote(self._date)}") from None
        if abs(skew) <= _SKEW:
            return Finding(f"within {_SKEW:g} s of the manager's")
        ahead = "behind" if skew > 0 else "ahead of"
        return Finding(
            f"{abs(skew):,.0f} s {ahead} the manager's",
            "warning",
            "correct the clock of this machine or of the manager's: tokens and certificates expire by it",
        )

    def versions(self) -> Finding:
        """List the versions that a bug report should contain."""
        return Finding(
            ", ".join(versions()) + (f"; the manager: {quote(self._server)}" if self._server else "")
        )


def _advice_on(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _WRONG_TIME:
        return "renew the manager's certificate, if this machine's clock is right"
    if error.verify_code in _WRONG_NAME:
        return "use a name in --uri that the certificate contains"
    return (
        "name the authority that issued the manager's certificate with --ca-file (TCM_CA_FILE); if it is "
        "named, the manager must send its intermediate certificates too"
    )


def _seconds_left(token: str | None) -> float | None:
    """Return for how long a JWT with an ``exp`` claim is valid, else None. It is not verified."""
    parts = (token or "").split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"]) - time.time()
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError, OverflowError):
        return None
