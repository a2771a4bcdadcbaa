"""Fixtures that several folders share: an authority for TLS, and control of the time."""

from __future__ import annotations

import ssl
import time

import pytest
import trustme

from tcm_sync import _deadline as deadline
from tcm_sync._pool.runtime import Runtime


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
def pauses_take_no_time(clock, monkeypatch):
    """Have a client that pauses put the clock of its deadlines forward."""

    def put_forward(_, seconds):
        clock.ahead += seconds

    monkeypatch.setattr(Runtime, "sleep", put_forward)
