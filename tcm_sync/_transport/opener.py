"""Opens a connection: from its TCP connection over TLS, the handshake and authentication to `Connection`."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._logs import Log
from tcm_sync._secrets import Secret, names_secret
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.advice import advise
from tcm_sync._transport.authentication import (
    CAPABILITY,
    AuthExchange,
    UuidTakenError,
    auth_request,
    fresh_uuid,
)
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.credentials import Credentials
from tcm_sync._transport.handshake import perform_handshake
from tcm_sync._transport.http import probe
from tcm_sync._transport.proxies import make_proxy
from tcm_sync._transport.sockets import OpeningSockets, is_local, open_socket
from tcm_sync._transport.tenant import tenant_of
from tcm_sync._wire.quote import quote
from tcm_sync._wire.readiness import Readiness
from tcm_sync.errors import AuthenticationError, ConnectFailedError, ShuttingDownError, TcmError
from tcm_sync.settings import AuthContext, Settings, TlsSettings

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
            except UuidTakenError:
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
        try:
            sock = open_socket(
                self.endpoint,
                self.context,
                self.server_hostname,
                deadline,
                self.opening,
                self.addresses,
                self.proxy,
            )
        except ConnectFailedError as error:
            advise(error, secure=self.endpoint.secure, through_proxy=self.proxy is not None)
            raise
        try:
            self._warn_of_clear_text(sock, token, headers)
            with self.addresses.noting_failures(sock):
                rest = perform_handshake(sock, self.endpoint, headers, deadline)
                uuid = fresh_uuid(self._auth.uuid)
                exchange = AuthExchange(self.endpoint, sock, uuid, self._settings.max_reply_bytes, deadline)
                self._counts.used_uuid()
                exchange.feed(rest)
                capability = exchange.run(auth_request(self._auth, token, self._capability))
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
