"""Secrets that are sent, and the one function that keeps them out of every text.

Whatever leaves the package as text (an error's message, a log line, a repr, what a command prints) goes
through `hide`. It replaces every `Secret` of the process that is in use: no caller passes secrets to it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import weakref
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote as percent_encode
from urllib.parse import unquote_plus

HIDDEN = "***"

# A secret of few characters is found in words that have nothing to do with it. Up to 3 it hides nothing that
# could not be guessed; up to 15 it is hidden as a whole word; a longer one anywhere, glued to others too.
_MIN_HIDDEN_LENGTH, _MIN_HIDDEN_LENGTH_IN_WORDS = 4, 16

# What is in the names of headers, cookies and parameters whose values are secrets, however short.
_OF_SECRETS = (
    *("auth", "cookie", "credential", "jwt", "key", "secret", "session", "signature", "token"),
    *("passwd", "password", "passphrase", "passcode", "pwd"),
)

_USER_INFORMATION = re.compile(r"(?<=//)[^/?#]*@")


class Secret:
    """A text that is sent, and must not be shown.

    As long as the object lives, `hide` replaces the text: its sender keeps the object until no answer can
    come any more. Its repr and its form in an f-string are ``***``; `reveal` returns the text.

    Parameters
    ----------
    text : str
        What is sent.
    *parts : str
        Parts of it that are secrets by themselves, such as the password within a header's value.
    shortest : int
        The text and its parts are hidden from this number of characters on.
    """

    __slots__ = ("__weakref__", "_text", "forms")

    def __init__(self, text: str, *parts: str, shortest: int = _MIN_HIDDEN_LENGTH) -> None:
        self._text = text
        hidden = (each for each in (text, *parts) if len(each) >= shortest)
        self.forms = frozenset(form for each in hidden for form in _forms(each))
        if self.forms:
            _in_use[id(self)] = weakref.ref(self, _Remover(id(self)))

    def reveal(self) -> str:
        """Return the text, to send it."""
        return self._text

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret stays in its process: pickle the settings that hold the text")


class HoldsSecret:
    """An object with a secret among its attributes, which is hidden as long as the object lives."""

    def _secret_text(self) -> str | None:
        """Return the secret, if there is one."""
        raise NotImplementedError

    def _hold(self) -> None:
        """Have the secret hidden from now on."""
        if (text := self._secret_text()) is not None:
            object.__setattr__(self, "_secret", Secret(text))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_secret"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._hold()


class _Remover:
    """Removes a secret that was collected from those in use."""

    __slots__ = ("_key",)

    def __init__(self, key: int) -> None:
        self._key = key

    def __call__(self, reference: weakref.ref[Secret]) -> None:
        if _in_use.get(self._key) is reference:  # not one that was made at the same address since
            _in_use.pop(self._key, None)


# No lock guards it, since a text may be hidden inside any: each step is one atomic operation of a dict.
_in_use: dict[int, weakref.ref[Secret]] = {}


def hide(text: str) -> str:
    """Return a text with ``***`` in place of every secret that is in use.

    A secret is found as it is, and as JSON, URLs, HTML and Python write it. One of 16 characters or more is
    hidden anywhere, a shorter one as a whole word, and one of 3 or fewer not at all: it would be found in
    half of all words, and is no secret.
    """
    for form in forms_of_secrets():
        if form in text:
            if len(form) >= _MIN_HIDDEN_LENGTH_IN_WORDS:
                text = text.replace(form, HIDDEN)
            else:
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, text)
    return text


def hide_in(value: Any) -> Any:
    """Return a value read from JSON with `hide` applied to each of its texts, names included."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list):
        return [hide_in(item) for item in value]
    if isinstance(value, dict):
        return {hide_in(name): hide_in(item) for name, item in value.items()}
    return value


def forms_of_secrets() -> list[str]:
    """Return every form of every secret, the longest first, since one may contain another."""
    forms: set[str] = set()
    for reference in list(_in_use.values()):
        if (secret := reference()) is not None:
            forms |= secret.forms
    return sorted(forms, key=len, reverse=True)


def names_secret(name: str) -> bool:
    """Whether a header, a cookie or a parameter of this name holds a secret, judging by the name."""
    lower = name.lower()
    return any(part in lower for part in _OF_SECRETS)


def secret_of_header(name: str, value: str) -> Secret:
    """Return a header's value as a secret, with the credentials and the cookies in it.

    A value of fewer than 16 characters is hidden only if `names_secret` is true of the header: others, such
    as ``X-Team: inference``, are words that messages have for other reasons. Each cookie's value is hidden.
    """
    shortest = _shortest_hidden(name)
    if "cookie" in name.lower():
        cookies = (each.partition("=")[2].strip(' "') for each in value.split(";"))
        return Secret(value, *cookies, shortest=shortest)
    scheme, space, credentials = value.partition(" ")
    if not space or not scheme.isalpha():
        return Secret(value, shortest=shortest)
    credentials = credentials.strip()
    return Secret(value, credentials, *_basic(scheme, credentials), shortest=shortest)


def secrets_of_query(query: str) -> tuple[Secret, ...]:
    """Return the values of a URI's query as secrets: the short ones only where `names_secret` is true."""
    secrets = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not equals:
            name, value = "", part
        if value:
            secrets.append(Secret(value, unquote_plus(value), shortest=_shortest_hidden(unquote_plus(name))))
    return tuple(secrets)


def shown_uri(uri: str) -> str:
    """Return a URI, which may be malformed, without user, password, values of the query, and fragment."""
    address, mark, query = uri.partition("#")[0].partition("?")
    names = (f"{part.partition('=')[0]}={HIDDEN}" if "=" in part else HIDDEN for part in query.split("&"))
    return _USER_INFORMATION.sub(f"{HIDDEN}@", address) + (mark + "&".join(names) if query else mark)


def _shortest_hidden(name: str) -> int:
    """Return from how many characters on the value of this name is hidden."""
    return _MIN_HIDDEN_LENGTH if names_secret(name) else _MIN_HIDDEN_LENGTH_IN_WORDS


def _basic(scheme: str, credentials: str) -> Iterable[str]:
    """Return the password, and user and password, of an Authorization header of the scheme Basic."""
    if scheme.lower() != "basic":
        return ()
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ()
    return decoded, decoded.partition(":")[2]


def _forms(text: str) -> Iterator[str]:
    """Yield a secret as it is, and as it stands in JSON, URLs, HTML and a repr."""
    if len(text) < _MIN_HIDDEN_LENGTH:
        return
    yield text
    if text.isalnum() and text.isascii():
        return
    for written in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield written
        yield written.replace("/", "\\/")
    encoded = percent_encode(text, safe="", errors="surrogatepass")
    for written in (encoded, encoded.replace("%20", "+")):
        yield written
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), written)
    yield repr(text)[1:-1]
    yield text.encode("unicode_escape").decode()
    tagless = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    yield tagless
    yield tagless.replace('"', "&quot;").replace("'", "&#x27;")
    yield tagless.replace('"', "&#34;").replace("'", "&#39;")
