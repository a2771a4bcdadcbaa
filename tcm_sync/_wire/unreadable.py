"""Why JSON could not be read, in words of this package: those of a library change with its version."""

from __future__ import annotations

import msgspec

from tcm_sync._wire.quote import quote

#: What reading JSON with msgspec can raise.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def why_unreadable(
    error: Exception,
    text: bytes,
    *,
    misfit: str = "a field is missing or of the wrong type",
    secret: str | None = None,
) -> str:
    """Say why JSON could not be read; the library's words follow, for the details.

    Parameters
    ----------
    error : Exception
        One of `UNREADABLE`.
    text : bytes
        What was read.
    misfit : str
        What is wrong with JSON that is valid and not what was expected.
    secret : str, optional
        The token, to be kept out of what is quoted.
    """
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, msgspec.ValidationError):
        return f"{misfit}: {error}"  # it names the field's path, and types but no values
    return f"not valid JSON{'' if _is_utf8(text) else ', since it is not UTF-8'}: {quote(str(error), secret)}"


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
