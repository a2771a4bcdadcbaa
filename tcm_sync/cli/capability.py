"""An authentication that asks for every capability, to see what a manager grants."""

from __future__ import annotations

import socket
from collections import deque

from tcm_sync._deadline import Deadline
from tcm_sync._transport import frames
from tcm_sync._transport.authentication import CAPABILITY, fresh_uuid
from tcm_sync._transport.credentials import Credentials
from tcm_sync._transport.sockets import receive, send_all
from tcm_sync._wire.decode import decode_message
from tcm_sync._wire.encode import encode_message, encode_payload
from tcm_sync._wire.failures import ADVISORY, failure_of_error
from tcm_sync._wire.messages import AuthOk, AuthRequest, ClientIdentity, ErrorReply
from tcm_sync._wire.quote import quote
from tcm_sync.errors import AuthenticationError, ConnectFailedError, TcmError
from tcm_sync.settings import AuthContext, Settings


def ask_capability(
    sock: socket.socket, rest: bytes, settings: Settings, deadline: Deadline
) -> frozenset[str]:
    """Authenticate a socket that has shaken hands.

    Parameters
    ----------
    sock : socket.socket
        Connected.
    rest : bytes
        The bytes received after the handshake.
    settings : Settings
        Has the identity.
    deadline : Deadline
        For the whole authentication.

    Returns
    -------
    frozenset of str
        What the manager granted.

    Raises
    ------
    AuthenticationError, ShuttingDownError, ConnectFailedError, ProtocolError
        The manager refused it, or did not answer.
    """
    auth = settings.auth or AuthContext()
    token = Credentials(settings).token()
    identity = ClientIdentity(auth.sub, auth.tenant_id, tuple(auth.roles))
    sent = None if token is None else token.reveal()
    request = AuthRequest(sent, identity if identity != ClientIdentity() else None, CAPABILITY)
    message = encode_message(fresh_uuid(auth.uuid), "auth", encode_payload(request))
    decoder = frames.FrameDecoder(settings.max_reply_bytes)
    try:
        for frame in frames.encode_text(message):
            send_all(sock, frame, deadline)
        events = deque(decoder.feed(rest))
        while True:
            while not events:
                data = receive(sock, 16_384, deadline)
                if not data:
                    raise ConnectFailedError("the manager closed the socket during the authentication")
                events.extend(decoder.feed(data))
            granted = _read(*events.popleft())
            if granted is not None:
                return granted
    except TimeoutError as error:
        raise ConnectFailedError("the authentication was not answered in time") from error
    except OSError as error:
        if isinstance(error, TcmError):
            raise
        raise ConnectFailedError(f"the connection ended while authenticating: {error}") from error


def _read(opcode: int, payload: bytes) -> frozenset[str] | None:
    if opcode == frames.CLOSE:
        code, reason = frames.read_close(payload)
        raise ConnectFailedError(f"the socket was closed with code {code} ({quote(reason)})")
    if opcode != frames.TEXT:
        return None
    decoded = decode_message(payload)[1]
    if isinstance(decoded, AuthOk):
        return frozenset(decoded.capability) or frozenset(("json",))
    if isinstance(decoded, ErrorReply) and decoded.code != ADVISORY:
        if decoded.code is not None:
            raise failure_of_error(decoded)
        raise AuthenticationError(f"refused: {quote(decoded.message)}")
    return None
