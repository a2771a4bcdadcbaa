"""Fixtures of the peer tests: TLS, control of the time, and the check that the token is never logged."""

from __future__ import annotations

import logging

import pytest

from tcm_sync._pool.pool_state import PoolState
from tcm_sync._transport.connection import Connection

from ..helpers.fixtures import *  # noqa: F403
from ..helpers.peer_scripts import TOKEN
from ..helpers.waiting import wait_until


@pytest.fixture
def sending_ends_early(monkeypatch):
    """Leave a message that the socket did not take whole a tenth of a second more."""
    write_rest = Connection._write_rest

    def write_rest_briefly(connection, rest, deadline, *how):
        write_rest(connection, rest, deadline.at_most(0.1), *how)

    monkeypatch.setattr(Connection, "_write_rest", write_rest_briefly)


@pytest.fixture
def first_failure_is_awaited(monkeypatch):
    """Let no caller time out before it is given the reason why no socket can be opened."""
    time_left = PoolState.time_left

    def wait_first(state, waiter):
        wait_until(lambda: state.manager_gate.cause)
        return time_left(state, waiter)

    monkeypatch.setattr(PoolState, "time_left", wait_first)


@pytest.fixture(autouse=True)
def token_is_never_logged(caplog):
    """Log everything while the test runs, and look for the token in it."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert TOKEN not in record.getMessage()
        assert TOKEN not in repr(vars(record)), record.getMessage()
