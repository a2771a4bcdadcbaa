"""Secrets and values of headers as files and variables have them, with white space or a mark around them."""

from __future__ import annotations

import string

from tcm_sync._texts import is_unicode
from tcm_sync.errors import ConfigError

#: What a file, a variable or a copy leaves around a secret, a byte order mark included.
AROUND_SECRETS = string.whitespace + "\ufeff\u200b\xa0"


def strip_secret(what: str, text: str) -> str:
    """Return a secret without what stands around it in a file, as a plain str.

    Raises
    ------
    ConfigError
        It is no line of text. The message begins with `what`, such as "auth.token holds", and shows of the
        secret only the character that it cannot have.
    """
    if not is_unicode(text):
        raise ConfigError(f"{what} half a surrogate pair, which UTF-8 cannot carry")
    stripped = str.__str__(text).strip(AROUND_SECRETS)  # a subclass has no form in JSON
    if text and not stripped:
        raise ConfigError(f"{what} nothing but white space")
    if not stripped.isprintable():
        where, odd = next((i, c) for i, c in enumerate(stripped) if not c.isprintable())
        raise ConfigError(f"{what} {odd!a} at position {where}: it must be one line of printable characters")
    return stripped


def check_header(name: str, value: str) -> str:
    """Return the value of a header, without what stands around it in a file.

    Raises
    ------
    ConfigError
        It is no line of ASCII.
    """
    stripped = str.__str__(value).strip(AROUND_SECRETS)
    if not stripped.isascii() or not stripped.isprintable():
        raise ConfigError(f"headers: the value of {name} must be one line of printable ASCII")
    return stripped
