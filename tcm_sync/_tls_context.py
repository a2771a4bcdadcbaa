"""Make the TLS context of a client from PEM files, and say which file cannot be used and why."""

from __future__ import annotations

import errno
import os
import ssl

from tcm_sync._handlers import is_of_handler
from tcm_sync.errors import ConfigError

File = str | os.PathLike[str]

_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")


def make_context(
    ca_file: File | None, cert_file: File | None, key_file: File | None, password: str | bytes | None
) -> ssl.SSLContext:
    """Make the context for a manager.

    Raises
    ------
    ConfigError
        A file is missing, is not what it should be, or is locked.
    """
    using = "ca_file", ca_file
    try:
        context = _checking(ca_file)
        if cert_file is not None:
            using = "cert_file", cert_file
            _read(cert_file)
            if key_file is not None:
                using = "key_file", key_file
                _read(key_file)
            context.load_cert_chain(cert_file, key_file, password)
    except (OSError, ValueError, TypeError) as error:
        if is_of_handler(error):
            raise
        name, file = using
        advice = _advice(error, name, cert_file, key_file, password)
        raise ConfigError(f"tls: {name} {_shown(file)} cannot be used: {advice}") from error
    return context


def make_proxy_context(ca_file: File | None) -> ssl.SSLContext:
    """Make the context for a proxy: the system's authorities are trusted, and those of `ca_file` too.

    Raises
    ------
    ConfigError
        The file is missing, or is not what it should be.
    """
    try:
        context = _checking(None)
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except (OSError, ValueError, TypeError) as error:
        if is_of_handler(error):
            raise
        advice = _advice(error, "ca_file", None, None, None)
        raise ConfigError(f"tls: ca_file {_shown(ca_file)} cannot be used: {advice}") from error
    return context


def _checking(ca_file: File | None) -> ssl.SSLContext:
    """Make a context that checks certificates and names; without a file, by the system's authorities.

    A certificate whose name is its common name alone is refused, as RFC 9525 demands and urllib3 2 does.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.hostname_checks_common_name = False
    return context


def _advice(
    error: Exception, name: str, cert_file: File | None, key_file: File | None, password: str | bytes | None
) -> str:
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return f"{error.strerror or error}; {name} must be a file in PEM form that this process can read"
    if name == "ca_file" or cert_file is None:
        return f"it holds no certificate in PEM form ({error})"
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return "key and certificate do not belong together"
    key = _read(key_file if key_file is not None else cert_file)
    if any(mark in key for mark in _ENCRYPTED):
        if not password:
            return "the key is encrypted, and key_password is not given"
        return "the key is encrypted, and key_password is not its password"
    if b"-----BEGIN CERTIFICATE-----" not in _read(cert_file):
        return f"cert_file {_shown(cert_file)} holds no certificate in PEM form"
    if b"PRIVATE KEY-----" not in key:
        where = "it" if key_file is not None else "key_file is not given, and cert_file"
        return f"{where} holds no private key in PEM form"
    return f"it must hold a certificate and its key in PEM form ({error})"


def _read(file: File) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(1 << 20)
    except ValueError as error:  # a path with a NUL, or with half a character
        raise OSError(errno.EINVAL, str(error)) from None


def _shown(file: File | None) -> str:
    return repr(os.fspath(file)) if file is not None else "(the system's authorities)"
