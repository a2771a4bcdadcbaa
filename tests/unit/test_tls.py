"""The alert by which a server refuses a client's certificate, read after the handshake."""

from __future__ import annotations

import socket
import ssl

import pytest

from tcm_sync import ConnectFailedError
from tcm_sync._transport.tls import failure_after_tls

LOST = ConnectionResetError("reset")


class TlsSocket(ssl.SSLSocket):
    """A TLS socket on which an alert arrived, or nothing. It must not be waited for."""

    def __new__(cls, _waiting):
        return super().__new__(cls)

    def __init__(self, waiting):
        socket.socket.__init__(self)
        self._context = ssl.create_default_context()
        self.waiting = waiting
        self.blocks = True

    def settimeout(self, value):
        self.blocks = value != 0.0

    def recv(self, _size, _flags=0):
        assert not self.blocks
        raise self.waiting


def refused():
    error = ssl.SSLError(1, "alert")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    return error


def failure(waiting, error):
    with TlsSocket(waiting) as sock:
        return failure_after_tls(sock, error, "manager.example")


@pytest.mark.parametrize(
    ("waiting", "error"), [(refused(), LOST), (ssl.SSLWantReadError("nothing"), refused())]
)
def test_the_refusal_of_a_certificate_that_came_late_is_the_failure(waiting, error):
    found = failure(waiting, error)
    assert type(found) is ConnectFailedError
    assert not found.retriable
    assert "TLSV13_ALERT_CERTIFICATE_REQUIRED" in found.message


@pytest.mark.parametrize(
    ("waiting", "error"), [(ssl.SSLWantReadError("nothing"), LOST), (refused(), TimeoutError("slow"))]
)
def test_what_is_no_refusal_of_a_certificate_is_left_to_the_caller(waiting, error):
    assert failure(waiting, error) is None
