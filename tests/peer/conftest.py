"""Fixtures of the peer tests: an authority for TLS, and the watch over the token."""

from __future__ import annotations

import logging
import ssl

import pytest
import trustme

from .scripts import TOKEN


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def server_tls(authority):
    """The context of a peer whose certificate is for 127.0.0.1."""
    return server_context(authority, "127.0.0.1")


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture(autouse=True)
def token_is_never_logged(caplog):
    """Log everything while the test runs, and look for the token in it."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert TOKEN not in record.getMessage()
        assert TOKEN not in repr(vars(record)), record.getMessage()
