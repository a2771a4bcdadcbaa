"""One socket, from its TCP connection to ``auth.ok`` (docs/wire.rst, "Authentication")."""

from __future__ import annotations

import re
import secrets
import socket
import ssl
from collections import deque
from collections.abc import Mapping

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._logs import Log
from tcm_sync._secrets import Secret, names_secret
from tcm_sync._transport import frames
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.credentials import Credentials
from tcm_sync._transport.handshake import shake_hands
from tcm_sync._transport.http import probe
from tcm_sync._transport.proxies import make_proxy
from tcm_sync._transport.sockets import OpeningSockets, is_local, open_socket, receive, send_all
from tcm_sync._transport.tenant import tenant_of
from tcm_sync._wire.decode import decode_message
from tcm_sync._wire.encode import encode_message, encode_payload
from tcm_sync._wire.failures import ADVISORY, failure_of_error
from tcm_sync._wire.messages import Alert, AuthOk, AuthRequest, ClientIdentity, ErrorReply, Unknown
from tcm_sync._wire.quote import quote
from tcm_sync._wire.readiness import Readiness
from tcm_sync.errors import (
    AuthenticationError,
    ConnectFailedError,
    MessageTooLargeError,
    ProtocolError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.settings import AuthContext, Settings, TlsSettings

#: What this client can use of what a manager may offer.
CAPABILITY = ("json", "shm")

log = Log("tcm_sync.pool", queued=True)

_FRESH_UUIDS = 3  # how often a uuid that is said to be connected already is replaced
_GRACE = 0.1  # seconds in which a draining manager's refusal follows its auth.ok


class Opener:
    """Opens authenticated sockets to one manager.

    Parameters
    ----------
    settings : Settings
        The client's.
    opening : OpeningSockets
        Keeps the sockets until the pool has them, so that closing the client shuts them down.
    counts : Counts
        Where it counts the uuids.
    addresses : Addresses
        What was learned about the manager's addresses.
    """

    def __init__(
        self, settings: Settings, opening: OpeningSockets, counts: Counts, addresses: Addresses
    ) -> None:
        self._counts = counts
        self.addresses = addresses
        self.endpoint = Endpoint.parse(settings.uri)
        self._settings = settings
        self.opening = opening
        self._auth = settings.auth or AuthContext()
        self._capability = CAPABILITY if settings.shm == "auto" else CAPABILITY[:1]
        tls = settings.tls
        self.context: ssl.SSLContext | None = None
        if self.endpoint.secure:
            self.context = (tls or TlsSettings()).context()
        self.server_hostname = tls.server_hostname if tls is not None else None
        self.proxy = make_proxy(settings)
        self.credentials = Credentials(settings)
        self._warned = False  # of credentials in clear text; two threads may both warn

    def open(self, *, was_draining: bool, ask_ready: bool) -> Connection:
        """Open a socket, authenticate it, and return it.

        It counts as being opened until `opened` is called: a child that is forked meanwhile closes its copy.

        Parameters
        ----------
        was_draining : bool
            Whether the manager was draining when last seen. Then the socket is watched for a moment: a
            draining manager authenticates sockets and refuses them right after.
        ask_ready : bool
            Whether /ready is asked first, which may keep the socket from being opened.

        Raises
        ------
        ConnectFailedError, AuthenticationError, ShuttingDownError, ProtocolError
            There is no usable socket.
        """
        deadline = Deadline(self._settings.connect_timeout)
        if ask_ready:
            self._ask_ready(deadline)
        fresh_asked = False
        for attempt in range(1, _FRESH_UUIDS + 1):
            try:
                return self._open_once(deadline, was_draining)
            except _UuidTakenError:
                if attempt == _FRESH_UUIDS:
                    raise
            except AuthenticationError:
                # A callable may have a fresh token or header by now; it is asked once more.
                if fresh_asked or not self.credentials.change:
                    raise
                fresh_asked = True
        raise AssertionError("the loop returns or raises")

    def opened(self, connection: Connection) -> None:
        """Leave the connection to the pool, which holds it by now, or has closed it."""
        self.opening.remove(connection.sock)

    def _ask_ready(self, deadline: Deadline) -> None:
        """Refuse to continue if the manager reports that it is not ready.

        Any other answer, or none, proves nothing: an ingress may pass nothing but /ws. Nor does a 503 with
        a ``triton`` block: registered servers do not answer, while the manager serves all the rest.
        """
        try:
            status, body = probe(
                self, "ready", deadline.at_most(self._settings.connect_timeout / 2), self.opening
            )
        except TcmError:
            return
        readiness = Readiness.read(status, body)
        if (
            status == 503
            and readiness.status == "not_ready"
            and readiness.raw
            and "triton" not in readiness.raw
        ):
            raise ShuttingDownError(
                f"the manager was shutting down, and is not ready yet: {quote(body)}",
                error_id=readiness.error_id,
            )

    def _open_once(self, deadline: Deadline, was_draining: bool) -> Connection:
        token, headers = self.credentials.token(), self.credentials.headers()
        sock = open_socket(
            self.endpoint,
            self.context,
            self.server_hostname,
            deadline,
            self.opening,
            self.addresses,
            self.proxy,
        )
        try:
            self._warn_of_clear_text(sock, token, headers)
            with self.addresses.noting_failures(sock):
                rest = shake_hands(sock, self.endpoint, headers, deadline)
                uuid = fresh_uuid(self._auth.uuid)
                exchange = _AuthExchange(self.endpoint, sock, uuid, self._settings.max_reply_bytes, deadline)
                self._counts.used_uuid()
                exchange.feed(rest)
                capability = exchange.run(_auth_request(self._auth, token, self._capability))
                if was_draining:
                    exchange.watch(Deadline(_GRACE))
            sock.setblocking(False)
            sent = (*headers.values(), *filter(None, (token,)))
            connection = Connection(sock, uuid, capability, exchange.decoder, list(exchange.events), sent)
            if self.proxy is not None:  # it may be on this machine without the manager
                connection.is_local = False
            connection.tenant = tenant_of(None if token is None else token.reveal(), self._auth)
        except BaseException:
            self.opening.close(sock)
            raise
        return connection

    def _warn_of_clear_text(
        self, sock: socket.socket, token: Secret | None, headers: Mapping[str, Secret]
    ) -> None:
        """Log, once a client, that credentials go to another machine without TLS."""
        if self._warned or self.endpoint.secure or (self.proxy is None and is_local(sock)):
            return
        names = [name for name in headers if names_secret(name)]
        if token is not None:
            names.insert(0, "the token")
        if names:
            self._warned = True
            log.warning(
                "%s: credentials are sent without TLS, readable on the network (%s): use wss://",
                self.endpoint.authority,
                ", ".join(names),
            )


def fresh_uuid(prefix: str) -> str:
    """Return a uuid that no socket ever had: the readable prefix, cleaned, and 128 random bits."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "-", prefix)[:40]
    return f"{readable}-{secrets.token_hex(16)}"


def _auth_request(auth: AuthContext, token: Secret | None, capability: tuple[str, ...]) -> AuthRequest:
    identity = ClientIdentity(auth.sub, auth.tenant_id, tuple(auth.roles))
    shown = None if token is None else token.reveal()
    return AuthRequest(shown, identity if identity != ClientIdentity() else None, capability)


class _UuidTakenError(AuthenticationError):
    """The manager has a socket of this uuid already; another uuid is tried at once."""


class _AuthExchange:
    """The first messages on a socket, read and written by the thread that opens it."""

    def __init__(
        self,
        endpoint: Endpoint,
        sock: socket.socket,
        uuid: str,
        max_bytes: int,
        deadline: Deadline,
    ) -> None:
        self._where = endpoint.authority
        self._sock = sock
        self._uuid = uuid
        self._deadline = deadline
        self.decoder = frames.FrameDecoder(max_bytes)
        self.events: deque[frames.Event] = deque()

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        try:
            self.events.extend(self.decoder.feed(data))
        except MessageTooLargeError as error:
            raise ProtocolError(f"instead of auth.ok: {error.message}") from None

    def run(self, request: AuthRequest) -> frozenset[str]:
        """Authenticate, and return what the manager granted; bare auth.ok grants JSON alone."""
        message = encode_message(self._uuid, "auth", encode_payload(request))
        try:
            for frame in frames.encode_text(message):
                send_all(self._sock, frame, self._deadline)
            while (granted := self._step()) is None:
                pass
        except TimeoutError as error:
            raise ConnectFailedError(f"{self._where} did not answer the authentication in time") from error
        except OSError as error:
            if isinstance(error, TcmError):
                raise
            raise ConnectFailedError(
                f"{self._where} ended the connection while authenticating: {error}"
            ) from error
        return granted

    def watch(self, deadline: Deadline) -> None:
        """See whether a refusal follows ``auth.ok``; no call has the socket yet, so none is lost."""
        kept: list[frames.Event] = []
        try:
            while True:
                while self.events:
                    opcode, payload = event = self.events.popleft()
                    if opcode == frames.TEXT:
                        decoded = decode_message(payload)[1]
                        if isinstance(decoded, ErrorReply) and decoded.code != ADVISORY:
                            raise failure_of_error(decoded)
                    kept.append(event)
                data = receive(self._sock, 16_384, deadline)
                if not data:
                    raise ConnectFailedError(f"{self._where} closed the socket right after auth.ok")
                self.feed(data)
        except TimeoutError:
            self.events.extend(kept)  # silence, as it should be
        except OSError as error:
            if isinstance(error, TcmError):
                raise
            raise ConnectFailedError(
                f"{self._where} ended the connection right after auth.ok: {error}"
            ) from error

    def _step(self) -> frozenset[str] | None:
        """Read on until the next event; what was granted, once it is."""
        while not self.events:
            data = receive(self._sock, 16_384, self._deadline)
            if not data:
                raise ConnectFailedError(f"{self._where} closed the socket instead of authenticating it")
            self.feed(data)
        opcode, payload = self.events.popleft()
        if opcode == frames.PING:
            send_all(self._sock, frames.encode_frame(frames.PONG, payload), self._deadline)
        elif opcode == frames.CLOSE:
            code, reason = frames.read_close(payload)
            said = f" ({quote(reason)})" if reason else ""
            raise ConnectFailedError(
                f"{self._where} closed the socket with code {code}{said} instead of authenticating it"
            )
        elif opcode == frames.TEXT:
            return self._message(payload)
        return None

    def _message(self, message: bytes) -> frozenset[str] | None:
        envelope, payload = decode_message(message)
        if isinstance(payload, AuthOk):
            return frozenset(payload.capability) or frozenset(("json",))
        if isinstance(payload, (Alert, Unknown)):
            return None
        if not isinstance(payload, ErrorReply):
            raise ProtocolError(f"a message of type {envelope.type} instead of auth.ok")
        if payload.code == ADVISORY:
            return None
        text = quote(payload.message)
        if payload.code is None and payload.message.endswith("is already connected"):
            raise _UuidTakenError(f"the manager refused the authentication: {text}")
        error = failure_of_error(payload)
        if isinstance(error, (ConnectFailedError, ShuttingDownError)) or payload.code is not None:
            raise error
        raise AuthenticationError(f"the manager refused the authentication: {text}")
