"""Encode the client's messages as JSON text."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tcm_sync._wire.messages import AuthRequest, InferencePayload, InputTensor, SharedTensor
from tcm_sync.errors import MessageTooLargeError

#: A text as a sequence of pieces, so that a large one is not copied to add something before or after it.
Pieces = tuple[bytes, ...]

_encoder = msgspec.json.Encoder()


def encode_payload(payload: AuthRequest | InferencePayload) -> Pieces:
    """Encode a payload as JSON. It is the same for every attempt and every socket."""
    return (_encoder.encode(payload),)


def encode_part(part: InferencePayload | InputTensor | tuple[SharedTensor, ...]) -> bytes:
    """Encode a part of a payload."""
    return _encoder.encode(part)


def size_of(pieces: Iterable[bytes]) -> int:
    """Count the bytes of a text."""
    return sum(map(len, pieces))


def encode_message(uuid: str, kind: str, payload: Pieces) -> Pieces:
    """Put a payload into the envelope for the socket on which it is sent.

    Parameters
    ----------
    uuid : str
        The socket's uuid, of characters that JSON does not escape.
    kind : str
        The message's type: ``"auth"``, ``"inference"``, ``"info"`` or ``"management"``.
    payload : tuple of bytes
        JSON text.
    """
    return (b'{"uuid":"%b","type":"%b","payload":' % (uuid.encode(), kind.encode()), *payload, b"}")


class StatedLimit(int):
    """A limit on the size of messages that the manager stated when it refused a larger one."""


def check_size(size: int, limit: int, *, at_least: bool = False) -> None:
    """Refuse a message that is too large for the manager (docs/wire.rst, "Sizes").

    Parameters
    ----------
    size : int
        Bytes of the whole message.
    limit : int
        ``max_message_bytes`` of the client, or the limit that the manager has stated.
    at_least : bool
        Whether `size` is a lower bound, computed before encoding.

    Raises
    ------
    MessageTooLargeError
        It is; nothing was sent.
    """
    if size > limit:
        whose = (
            "the manager, which refused a larger one before, takes at most"
            if isinstance(limit, StatedLimit)
            else "max_message_bytes is"
        )
        raise MessageTooLargeError(
            f"the message has {'at least ' if at_least else ''}{size:,} bytes, and {whose} "
            f"{limit:,}: send fewer rows a call (infer_chunked cuts a batch), or raise the limit here and in "
            "the manager alike",
            size=size,
            limit=limit,
        )
