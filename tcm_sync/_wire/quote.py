"""Quote the manager's texts safely: escaped, shortened, and without the secrets that were sent."""

from __future__ import annotations

from tcm_sync._secrets import forms_of_secrets, hide

_MAX_LENGTH = 300


def quote(text: str | bytes) -> str:
    """Return `text`, which came from the other side, fit for a log line or an error's message."""
    forms = forms_of_secrets()
    longest = len(forms[0]) if forms else 0
    reach = 4 * (_MAX_LENGTH + 4 * longest)
    cut = len(text) > reach
    text = text[:reach]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    text = hide(text)
    if cut and longest:
        text = text[:-longest]  # the cut may have left a part of a secret at the end
    shown = text[: _MAX_LENGTH + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(shown) <= _MAX_LENGTH and not cut else f"{shown[:_MAX_LENGTH]}…"
