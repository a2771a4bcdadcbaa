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
    reach = _LONGEST + 4 * len(secret or "")
    if isinstance(text, bytes):
        text = text[: 4 * reach].decode("utf-8", "backslashreplace")
    cut = len(text) > 4 * reach
    text = text[: 4 * reach]
    if secret:
        for form in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}:
            text = text.replace(form, "***")
        if cut:
            text = text[: -len(secret)]  # half a token may be left at the end
    shown = text[: _LONGEST + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(text) <= _LONGEST and not cut else f"{shown[:_LONGEST]}…"
