"""The manager's words, made safe to show: escaped, shortened, and without the token."""

from __future__ import annotations

import json

_LONGEST = 300


def quote(text: str | bytes, secret: str | None = None) -> str:
    """Return `text` fit for a log line or an error's message.

    Parameters
    ----------
    text : str or bytes
        Anything that came from the other side.
    secret : str, optional
        A token that must not show even if the other side sends it back.
    """
    forms = _forms(secret) if secret else []
    longest = len(forms[0]) if forms else 0
    reach = 4 * (_LONGEST + 4 * longest)
    cut = len(text) > reach
    text = text[:reach]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    for form in forms:
        text = text.replace(form, "***")
    if cut and longest:
        text = text[:-longest]  # half a token may be left at the end
    shown = text[: _LONGEST + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(shown) <= _LONGEST and not cut else f"{shown[:_LONGEST]}…"


def _forms(secret: str) -> list[str]:
    """Return the token as JSON has it and as it is; the longest first, since they may contain each other."""
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return sorted(forms, key=len, reverse=True)
