"""The auth message and its answer, the first messages on a socket (docs/wire.rst, "Authentication")."""

from __future__ import annotations

import re
import secrets
import socket
from collections import deque

from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._secrets import Secret
from tcm_sync._transport import frames
from tcm_sync._transport.sockets import receive, send_all
from tcm_sync._wire.decode import decode_message
from tcm_sync._wire.encode import encode_message, encode_payload
from tcm_sync._wire.failures import ADVISORY, failure_of_error
from tcm_sync._wire.messages import Alert, AuthOk, AuthRequest, ClientIdentity, ErrorReply, Unknown
from tcm_sync._wire.quote import quote
from tcm_sync.errors import (
    AuthenticationError,
    ConnectFailedError,
    MessageTooLargeError,
    ProtocolError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.settings import AuthContext

#: What this client can use of what a manager may offer.
CAPABILITY = ("json", "shm")


def fresh_uuid(prefix: str) -> str:
    """Return a uuid that no socket ever had: the readable prefix, cleaned, and 128 random bits."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "-", prefix)[:40]
    return f"{readable}-{secrets.token_hex(16)}"


def auth_request(
    auth: AuthContext, token: Secret | None, capability: tuple[str, ...] = CAPABILITY
) -> AuthRequest:
    """Make the payload of the auth message; an identity without fields is left out."""
    identity = ClientIdentity(auth.sub, auth.tenant_id, tuple(auth.roles))
    shown = None if token is None else token.reveal()
    return AuthRequest(shown, identity if identity != ClientIdentity() else None, capability)


class UuidTakenError(AuthenticationError):
    """The manager has a socket of this uuid already; another uuid is tried at once."""


class AuthExchange:
    """The first messages on a socket, read and written by the thread that opens it.

    Parameters
    ----------
    endpoint : Endpoint
        The manager, for messages.
    sock : socket.socket
        After its handshake, with timeouts.
    uuid : str
        The socket's own.
    max_bytes : int
        The most bytes of a message.
    deadline : Deadline
        For `run`.

    Attributes
    ----------
    decoder : FrameDecoder
        Has what was received and is not a whole frame yet.
    events : deque of (opcode, payload)
        What came behind ``auth.ok``.
    """

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
            raise UuidTakenError(f"the manager refused the authentication: {text}")
        error = failure_of_error(payload)
        if isinstance(error, (ConnectFailedError, ShuttingDownError)) or payload.code is not None:
            raise error
        raise AuthenticationError(f"the manager refused the authentication: {text}")
