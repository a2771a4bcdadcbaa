"""Fixtures of the peer tests: an authority for TLS, control of the time, and the watch over the token."""

from __future__ import annotations

import logging
import ssl
import time

import pytest
import trustme

from tcm_sync import _deadline as deadline
from tcm_sync._pool.pool import Pool
from tcm_sync._transport.connection import Connection

from .scripts import TOKEN, wait_until


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


class Clock:
    """Tells the time of `time.monotonic`, or so many seconds more."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch):
    """The clock of all deadlines, for a test to put forward."""
    clock = Clock()
    monkeypatch.setattr(deadline, "monotonic", clock)
    return clock


@pytest.fixture
def sending_ends_early(monkeypatch):
    """Leave a message that the socket did not take whole a tenth of a second more."""
    write_rest = Connection._write_rest

    def hurry(connection, rest, deadline, *how):
        write_rest(connection, rest, deadline.at_most(0.1), *how)

    monkeypatch.setattr(Connection, "_write_rest", hurry)


@pytest.fixture
def first_failure_is_awaited(monkeypatch):
    """Let no caller give up before it could hear why no socket can be opened."""
    patience = Pool._patience

    def wait_first(pool, waiter):
        wait_until(lambda: pool.manager_gate.cause)
        return patience(pool, waiter)

    monkeypatch.setattr(Pool, "_patience", wait_first)


@pytest.fixture(autouse=True)
def token_is_never_logged(caplog):
    """Log everything while the test runs, and look for the token in it."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert TOKEN not in record.getMessage()
        assert TOKEN not in repr(vars(record)), record.getMessage()
