"""Our messages as JSON text."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tcm_sync._wire.messages import AuthRequest, InferencePayload, InputTensor, SharedTensor
from tcm_sync.errors import MessageTooLargeError

#: A text in pieces that are one behind the other: what is large is not copied to put something around it.
Pieces = tuple[bytes, ...]

_encoder = msgspec.json.Encoder()


def encode_payload(payload: AuthRequest | InferencePayload) -> Pieces:
    """Write a payload as JSON. It is the same for every attempt and every socket."""
    return (_encoder.encode(payload),)


def encode_part(part: InferencePayload | InputTensor | tuple[SharedTensor, ...]) -> bytes:
    """Write what is to be part of a payload."""
    return _encoder.encode(part)


def size_of(pieces: Iterable[bytes]) -> int:
    """Count the bytes of a text."""
    return sum(map(len, pieces))


def encode_message(uuid: str, kind: str, payload: Pieces) -> Pieces:
    """Put a payload into the envelope of the socket that it goes out on.

    Parameters
    ----------
    uuid : str
        The socket's own, of characters that JSON does not escape.
    kind : str
        The message's type: ``"auth"``, ``"inference"``, ``"info"`` or ``"management"``.
    payload : tuple of bytes
        JSON text.
    """
    return (b'{"uuid":"%b","type":"%b","payload":' % (uuid.encode(), kind.encode()), *payload, b"}")


class StatedLimit(int):
    """A limit for messages that the manager stated when it refused a larger one."""


def check_size(size: int, limit: int, *, at_least: bool = False) -> None:
    """Refuse a message that the manager would refuse (docs/wire.rst, "Sizes").

    Parameters
    ----------
    size : int
        Bytes of the whole message.
    limit : int
        ``max_message_bytes`` of the client, which should be the manager's, or what the manager stated.
    at_least : bool
        Whether `size` is only a lower bound, found before anything was encoded.

    Raises
    ------
    MessageTooLargeError
        Nothing was sent.
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
