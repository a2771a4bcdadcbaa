"""The manager's messages, read into structs; whatever is wrong with them is a ProtocolError."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from tcm_sync.errors import ProtocolError
from tcm_sync.wire.messages import (
    Alert,
    AuthOk,
    Envelope,
    ErrorReply,
    Failure,
    InferenceMessage,
    InferenceReply,
    InfoReply,
    ManagementReply,
    Payload,
    Unknown,
)
from tcm_sync.wire.quote import quote

Decoded = TypeVar("Decoded")

_envelope = msgspec.json.Decoder(Envelope)
_inference = msgspec.json.Decoder(InferenceMessage)
_failure: msgspec.json.Decoder[Failure | str] = msgspec.json.Decoder(Failure | str)
_alert = msgspec.json.Decoder(Alert)
_auth_ok: msgspec.json.Decoder[AuthOk | None] = msgspec.json.Decoder(AuthOk | None)
_payloads: dict[str, msgspec.json.Decoder[InferenceReply | InfoReply | ManagementReply | ErrorReply]] = {
    "inference": msgspec.json.Decoder(InferenceReply),
    "info_response": msgspec.json.Decoder(InfoReply),
    "management": msgspec.json.Decoder(ManagementReply),
    "error": msgspec.json.Decoder(ErrorReply),
}

# How the manager begins its replies: type and uuid first. What begins otherwise is read whole.
_PREFIX = re.compile(
    rb'\s{0,8}\{\s{0,8}"(type|uuid)"\s{0,8}:\s{0,8}"([^"\\]{1,200})"\s{0,8},'
    rb'\s{0,8}"(type|uuid)"\s{0,8}:\s{0,8}"([^"\\]{1,200})"\s{0,8},\s{0,8}"payload"\s{0,8}:'
)


def peek(message: bytes) -> tuple[str, str] | None:
    """Return type and uuid of a message that begins with them, without reading the rest.

    This is all that the reader thread looks at in an ordinary reply: the caller reads it whole, once, in
    its own thread, and checks both again.
    """
    found = _PREFIX.match(message)
    if found is None:
        return None
    key, first, other, second = found.groups()
    if key == other:
        return None
    kind, uuid = (first, second) if key == b"type" else (second, first)
    return kind.decode("utf-8", "replace"), uuid.decode("utf-8", "replace")


def decode_message(message: bytes, secret: str | None = None) -> tuple[Envelope, Payload]:
    """Read any message of the manager.

    Parameters
    ----------
    message : bytes
        A whole text message.
    secret : str, optional
        The token, to be kept out of what an error quotes.

    Raises
    ------
    ProtocolError
        It is not UTF-8, not JSON, nested too deep, or a field has the wrong type.
    """
    return _guarded(_read_message, message, secret)


def decode_inference(message: bytes, uuid: str, secret: str | None = None) -> InferenceReply:
    """Read an inference's answer and check that it is for the socket it came on.

    Raises
    ------
    ProtocolError
        As `decode_message`; or its type or uuid is another, or its status is none of an inference.
    """
    decoded = _guarded(_read_inference, message, secret)
    if decoded.type != "inference" or decoded.uuid != uuid:
        raise ProtocolError(
            f"expected an inference reply for uuid {uuid}, got type {quote(decoded.type, secret)} for uuid "
            f"{quote(decoded.uuid, secret)}"
        )
    if decoded.payload.status not in ("COMPLETED", "FAILED"):
        raise ProtocolError(
            f"an inference must end COMPLETED or FAILED, got {quote(decoded.payload.status, secret)}"
        )
    return decoded.payload


def decode_failure(data: bytes, secret: str | None = None) -> Failure | str:
    """Read the data of a FAILED reply: a failure with a code, or the manager's words alone."""
    return _guarded(_failure.decode, bytes(data), secret)  # it may be a msgspec.Raw


def _read_inference(message: bytes) -> InferenceMessage:
    _check_utf8(message)
    return _inference.decode(message)


def _read_message(message: bytes) -> tuple[Envelope, Payload]:
    _check_utf8(message)
    envelope = _envelope.decode(message)
    kind = envelope.type
    if kind == "auth.ok":
        return envelope, _auth_ok.decode(envelope.payload) or AuthOk()
    if kind == "alert":
        return envelope, _alert.decode(message)
    decoder = _payloads.get(kind)
    return envelope, Unknown(kind) if decoder is None else decoder.decode(envelope.payload)


def _check_utf8(message: bytes) -> None:
    """Check what msgspec skips over: the text of raw and of unknown fields."""
    if not message.isascii():
        message.decode()


def _guarded(read: Callable[[bytes], Decoded], message: bytes, secret: str | None) -> Decoded:
    try:
        return read(message)
    except msgspec.ValidationError as error:
        problem = str(error)  # it names the field's path, and types but no values
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = f"not valid JSON: {quote(str(error), secret)}"
    except RecursionError:
        problem = "nested too deep"
    raise ProtocolError(f"unreadable message from the manager: {problem}: {quote(message, secret)}")
