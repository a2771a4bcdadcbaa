"""Why a TLS connection failed: what to do about it, and whether it can pass by waiting."""

from __future__ import annotations

import socket
import ssl

from tcm_sync._handlers import is_of_handler
from tcm_sync._transport.tls_errors import clear_errors
from tcm_sync.errors import ConnectFailedError

_CA_FILE = "TlsSettings(ca_file=...) must name the authority to trust"
_ISSUER = (
    "the certificate of {name} is not trusted: no authority that is trusted here has issued it. "
    f"{_CA_FILE}; if it does, the server does not send its intermediate certificates, and must send them all"
)
_NAME = (
    "the certificate is not for {name}: use a name in the uri that it has as subjectAltName, or set "
    "TlsSettings(server_hostname=...). A common name (CN) alone is not accepted"
)
_EXPIRED = (
    "the certificate of {name}, or one that it depends on, has expired: the manager needs a new one, if this "
    "machine's clock is right"
)

_SELF_SIGNED = "the certificate of {name} is self-signed and not trusted: ca_file= must name a copy of it"

#: OpenSSL's codes of certificates that are not accepted (x509_vfy.h), and what to do.
CERTIFICATES = {
    2: _ISSUER,
    9: "the certificate of {name} is not valid yet: correct the clock of this machine, or the certificate",
    10: _EXPIRED,
    18: _SELF_SIGNED,
    19: f"the certificate of {{name}} is not trusted: its chain ends at an unknown authority. {_CA_FILE}",
    20: _ISSUER,
    21: _ISSUER,
    62: _NAME,
    64: _NAME,
}

_CERT_FILE = "TlsSettings(cert_file=..., key_file=...)"
_REFUSED = "the server refused this client's certificate"
_NO_TLS = "the port does not speak TLS: then the address begins with ws://"

#: Parts of OpenSSL's names of failures that waiting does not change, and what to do. All others, such as the
#: alert "internal error" and an end without an alert, may pass.
PERMANENT = {
    "CERTIFICATE_REQUIRED": f"the server requires a client certificate: {_CERT_FILE}",
    "ALERT_UNKNOWN_CA": f"{_REFUSED}: it is of an authority that the server does not trust",
    "ALERT_CERTIFICATE_EXPIRED": f"{_REFUSED}: it has expired, or a clock is wrong",
    "ALERT_CERTIFICATE_REVOKED": f"{_REFUSED}: it was revoked",
    "ALERT_BAD_CERTIFICATE": f"{_REFUSED}: it may be damaged, or not be meant for clients",
    "ALERT_UNSUPPORTED_CERTIFICATE": f"{_REFUSED}: it is not meant for clients, or of an unknown kind",
    "ALERT_CERTIFICATE_UNKNOWN": f"{_REFUSED}, or requires one: {_CERT_FILE}",
    "ALERT_ACCESS_DENIED": f"{_REFUSED}: its owner has no access",
    "ALERT_DECRYPT_ERROR": f"{_REFUSED}: a signature is wrong",
    "ALERT_HANDSHAKE_FAILURE": f"the server accepts no cipher, or wants a client certificate: {_CERT_FILE}",
    "ALERT_PROTOCOL_VERSION": "the server accepts no version of TLS that this machine offers",
    "UNSUPPORTED_PROTOCOL": "the server offers no version of TLS that this machine accepts",
    "ALERT_INSUFFICIENT_SECURITY": "the server accepts no cipher that this machine offers",
    "UNRECOGNIZED_NAME": "the server has no such name: see the uri and TlsSettings(server_hostname=...)",
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
}


def name_to_verify(hostname: str) -> str:
    """Return a host's name as SNI and certificates have it: without the dot that ends an absolute name."""
    return hostname.removesuffix(".") or hostname


def failure_of_tls(error: OSError | ValueError, name: str) -> ConnectFailedError:
    """Turn what a TLS handshake raised into the error to raise, not retriable where waiting cannot help.

    Parameters
    ----------
    error : OSError or ValueError
        What it raised.
    name : str
        The name that was verified.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        text = CERTIFICATES.get(error.verify_code, "the certificate of {name} is not accepted")
        said = f" ({error.verify_message})" if error.verify_message else ""
        return ConnectFailedError(f"TLS: {text.format(name=name)}{said}", retriable=False)
    if (advice := _permanent(error)) is not None:
        return ConnectFailedError(f"TLS with {name} failed: {advice} ({_reason(error)})", retriable=False)
    why = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return ConnectFailedError(f"TLS with {name} failed: {why}", retriable=not isinstance(error, ValueError))


def failure_after_tls(sock: socket.socket, error: OSError, name: str) -> ConnectFailedError | None:
    """Return the failure that a server reported by an alert after the handshake, if it is a permanent one.

    With TLS 1.3 a server checks the client's certificate after the client is done with the handshake: its
    refusal arrives in place of the first answer, or waits to be read when sending fails.
    """
    if isinstance(sock, ssl.SSLSocket) and not isinstance(error, TimeoutError) and _permanent(error) is None:
        try:
            clear_errors(sock)
            sock.settimeout(0.0)
            sock.recv(1)
        except OSError as waiting:
            if is_of_handler(waiting):
                raise
            error = waiting
    return failure_of_tls(error, name) if _permanent(error) is not None else None


def _permanent(error: BaseException) -> str | None:
    if not isinstance(error, ssl.SSLError):
        return None
    reason = _reason(error)
    return next((advice for part, advice in PERMANENT.items() if part in reason), None)


def _reason(error: BaseException) -> str:
    """Return OpenSSL's name of a failure; Python has none for those that are newer than itself."""
    return str(getattr(error, "reason", None) or error).upper().replace(" ", "_")
