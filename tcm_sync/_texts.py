"""Whether a value is a text that can be sent."""

from __future__ import annotations

from tcm_sync._numbers import shown


def text_fault(name: str, value: object) -> str | None:
    """Return why a value is not a text that can be sent, or None; the reason begins with the name."""
    if not isinstance(value, str) or not value:
        return f"{name} must be a text that is not empty, not {shown(value)}"
    if not is_unicode(value):
        return f"{name} holds half a surrogate pair, which UTF-8 cannot carry"
    return None


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode a text: variables with invalid bytes are read as lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
