"""Decode the manager's messages into structs; a message that cannot be decoded is a ProtocolError."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from tcm_sync._wire.messages import (
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
from tcm_sync._wire.quote import quote
from tcm_sync._wire.split_json import LARGE, SplitJson, split_off_arrays
from tcm_sync._wire.unreadable import UNREADABLE, out_of_memory, why_unreadable
from tcm_sync.errors import ProtocolError

Decoded = TypeVar("Decoded")

Data = bytes | msgspec.Raw | SplitJson

_envelope = msgspec.json.Decoder(Envelope)
_inference = msgspec.json.Decoder(InferenceMessage)
_failure: msgspec.json.Decoder[Failure | str] = msgspec.json.Decoder(Failure | str)
_text = msgspec.json.Decoder(str)
_value = msgspec.json.Decoder()
_steps = msgspec.json.Decoder(dict[str, msgspec.Raw])
_alert = msgspec.json.Decoder(Alert)
_auth_ok: msgspec.json.Decoder[AuthOk | None] = msgspec.json.Decoder(AuthOk | None)
_payloads: dict[str, msgspec.json.Decoder[InferenceReply | InfoReply | ManagementReply | ErrorReply]] = {
    "inference": msgspec.json.Decoder(InferenceReply),
    "info_response": msgspec.json.Decoder(InfoReply),
    "management": msgspec.json.Decoder(ManagementReply),
    "error": msgspec.json.Decoder(ErrorReply),
}

_Utf8 = codecs.getincrementaldecoder("utf-8")
_SCAN = 2**20  # bytes that are scanned at a time

# The manager's replies begin with type and uuid. A message with another order is decoded whole.
_PREFIX = re.compile(
    rb'\s{0,8}\{\s{0,8}"(type|uuid)"\s{0,8}:\s{0,8}"([^"\\]{1,200})"\s{0,8},'
    rb'\s{0,8}"(type|uuid)"\s{0,8}:\s{0,8}"([^"\\]{1,200})"\s{0,8},\s{0,8}"payload"\s{0,8}:'
)


def peek(message: bytes) -> tuple[str, str] | None:
    """Return type and uuid of a message that begins with them, without decoding the rest.

    The reader thread decodes no more than this of an ordinary reply. The caller's thread decodes the whole
    reply once, and checks both again.
    """
    found = _PREFIX.match(message)
    if found is None:
        return None
    key, first, other, second = found.groups()
    if key == other:
        return None
    kind, uuid = (first, second) if key == b"type" else (second, first)
    return kind.decode("utf-8", "replace"), uuid.decode("utf-8", "replace")


def decode_message(message: bytes) -> tuple[Envelope, Payload]:
    """Decode any message of the manager.

    Parameters
    ----------
    message : bytes
        A whole text message.

    Raises
    ------
    ProtocolError
        It is not UTF-8 or not JSON, is nested too deeply, or a field has the wrong type.
    MessageTooLargeError
        There is not enough memory to decode it; the same holds for all functions below.
    """
    return _decode(_read_message, message)


def decode_inference(message: bytes, uuid: str) -> InferenceReply:
    """Decode the reply to an inference, and check that it is for the socket on which it came.

    Raises
    ------
    ProtocolError
        As `decode_message`; or its type, uuid or status is not that of a reply to this inference.
    """
    try:
        reply = _large_reply(message, uuid) if len(message) > LARGE else None
        if reply is None:
            reply = _reply_for(message, uuid)
    except MemoryError:
        raise out_of_memory(len(message)) from None
    if reply.status != "COMPLETED" and reply.status != "FAILED":
        raise ProtocolError(f"an inference must end COMPLETED or FAILED, got {quote(reply.status)}")
    return reply


def decode_stream(message: bytes, uuid: str) -> InferenceReply:
    """Decode a message of a stream, as `decode_inference` does; START and ONGOING are allowed too."""
    try:
        reply = _reply_for(message, uuid)
    except MemoryError:
        raise out_of_memory(len(message)) from None
    if reply.status not in ("ONGOING", "START", "COMPLETED", "FAILED"):
        raise ProtocolError(f"a stream has no status {quote(reply.status)}")
    return reply


def decode_text(data: Data) -> str:
    """Decode the text of a stream's chunk."""
    return _decode(_text.decode, data)


def decode_info(message: bytes) -> InfoReply:
    """Decode the reply to an info request. It has no uuid."""
    payload = decode_message(message)[1]
    if not isinstance(payload, InfoReply):
        raise ProtocolError(f"expected an info_response, got {quote(message)}")
    return payload


def decode_management(message: bytes, uuid: str) -> ManagementReply:
    """Decode the reply to a management job, and check that it is for the socket on which it came."""
    envelope, payload = decode_message(message)
    if not isinstance(payload, ManagementReply) or envelope.uuid != uuid:
        raise ProtocolError(f"expected a management reply for uuid {uuid}, got {quote(message)}")
    return payload


def decode_value(data: Data) -> Any:
    """Decode the data of an info or management reply, which may be any JSON."""
    return _decode(_value.decode, data)


def decode_steps(data: Data) -> dict[str, msgspec.Raw]:
    """Decode the data of a pipeline: the outputs of each step, as raw JSON, by the step's name."""
    return _decode(_steps.decode, data)


def _size_of(data: Data) -> int:
    """Count the bytes of JSON text."""
    return data.size() if isinstance(data, SplitJson) else len(data)


def _large_reply(message: bytes, uuid: str) -> InferenceReply | None:
    """Decode a large reply without its long arrays; None if the message has to be decoded as a whole."""
    found = decoded = None
    for sequences in (False, True):
        found = split_off_arrays(message, sequences=sequences)
        if found is None:
            return None
        try:
            _check_utf8(found.text)
            decoded = _inference.decode(found.text)
            break
        except UNREADABLE:
            continue
    if found is None or decoded is None:
        return None
    payload = decoded.payload
    if decoded.type != "inference" or decoded.uuid != uuid or payload.status != "COMPLETED":
        return None
    data = found.with_text(bytes(payload.data))
    if not data.is_whole():  # a field outside the data has an array, which must be checked for valid JSON too
        return None
    return InferenceReply(payload.status, payload.model_name, cast("msgspec.Raw", data))


def _reply_for(message: bytes, uuid: str) -> InferenceReply:
    try:
        if not message.isascii():
            _check_utf8(message)
        decoded = _inference.decode(message)
    except UNREADABLE as error:
        problem = why_unreadable(error, message)
    else:
        if decoded.type == "inference" and decoded.uuid == uuid:
            return decoded.payload
        raise ProtocolError(
            f"expected an inference reply for uuid {uuid}, got type {quote(decoded.type)} for uuid "
            f"{quote(decoded.uuid)}"
        )
    raise _unreadable(problem, message)


def decode_failure(data: Data) -> Failure | str:
    """Decode the data of a FAILED reply: a failure with a code, or a text alone."""
    return _decode(_failure.decode, data)


def _read_message(message: bytes) -> tuple[Envelope, Payload]:
    if not message.isascii():
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
    """Check the text of raw and of unknown fields, which msgspec skips."""
    if len(message) <= _SCAN:
        message.decode()
        return
    decoder = _Utf8()
    for start in range(0, len(message), _SCAN):  # for other threads to run in between
        decoder.decode(message[start : start + _SCAN])
    decoder.decode(b"", final=True)


def _decode(read: Callable[[bytes], Decoded], data: Data) -> Decoded:
    try:
        message = bytes(data)  # it may be a msgspec.Raw
        return read(message)
    except UNREADABLE as error:
        problem = why_unreadable(error, message)
    except MemoryError:
        raise out_of_memory(_size_of(data)) from None
    raise _unreadable(problem, message)


def _unreadable(problem: str, message: bytes) -> ProtocolError:
    return ProtocolError(f"unreadable message from the manager: {problem}: {quote(message)}")
