"""Describe why JSON could not be decoded, in this package's words: msgspec's change with its version."""

from __future__ import annotations

import msgspec

from tcm_sync._wire.quote import quote
from tcm_sync.errors import MessageTooLargeError

#: What decoding JSON with msgspec can raise.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def why_unreadable(
    error: Exception,
    text: bytes,
    *,
    wrong_form: str = "a field is missing or of the wrong type",
) -> str:
    """Describe why JSON could not be decoded; msgspec's own message follows, for the details.

    Parameters
    ----------
    error : Exception
        One of `UNREADABLE`.
    text : bytes
        The JSON.
    wrong_form : str
        The description of JSON that is valid but does not have the expected form.
    """
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, msgspec.ValidationError):
        return f"{wrong_form}: {error}"  # it names the field's path, and types but no values
    return f"not valid JSON{'' if _is_utf8(text) else ', since it is not UTF-8'}: {quote(str(error))}"


def out_of_memory(size: int) -> MessageTooLargeError:
    """Make the error of a reply of so many bytes for whose decoding there was not enough memory."""
    return MessageTooLargeError(
        f"there is not enough memory to decode a reply of {size:,} bytes: ask for fewer rows a call",
        size=size,
        outcome_unknown=True,
    )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
