"""Quote the manager's texts safely: escaped, shortened, and without the token."""

from __future__ import annotations

import json
import re

_LONGEST = 300

# A token of few characters is found in words that have nothing to do with it. Up to 3 it hides nothing that
# could not be guessed; up to 15 it is hidden as a whole word; a longer one anywhere, glued to others too.
_SHORTEST_HIDDEN, _SHORTEST_HIDDEN_IN_WORDS = 4, 16


def quote(text: str | bytes, secret: str | None = None) -> str:
    """Return `text` fit for a log line or an error's message.

    Parameters
    ----------
    text : str or bytes
        Anything that came from the other side.
    secret : str, optional
        A token that must not show even if the other side sends it back: see `hide`.
    """
    forms = _forms(secret) if secret else []
    longest = len(forms[0]) if forms else 0
    reach = 4 * (_LONGEST + 4 * longest)
    cut = len(text) > reach
    text = text[:reach]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    text = _without(text, forms)
    if cut and longest:
        text = text[:-longest]  # the cut may have left a part of a token at the end
    shown = text[: _LONGEST + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(shown) <= _LONGEST and not cut else f"{shown[:_LONGEST]}…"


def hide(text: str, secret: str) -> str:
    """Return `text` with ``***`` in place of a token.

    One of 16 characters or more is hidden anywhere, a shorter one as a whole word, and one of 3 or fewer not
    at all: it would stand in half of all words, and is no secret.
    """
    return _without(text, _forms(secret))


def _without(text: str, forms: list[str]) -> str:
    for form in forms:
        if len(form) >= _SHORTEST_HIDDEN_IN_WORDS:
            text = text.replace(form, "***")
        else:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
    return text


def _forms(secret: str) -> list[str]:
    """Return the token as it is and as JSON escapes it, the longest first, since one may contain another."""
    if len(secret) < _SHORTEST_HIDDEN:
        return []
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return sorted(forms, key=len, reverse=True)
