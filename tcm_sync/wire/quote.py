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
    if isinstance(text, bytes):
        if secret is None and len(text) > _LONGEST * 4:
            text = text[: _LONGEST * 4]
        text = text.decode("utf-8", "backslashreplace")
    if secret:
        for form in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}:
            text = text.replace(form, "***")
    shown = text[: _LONGEST + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(text) <= _LONGEST else f"{shown[:_LONGEST]}…"
