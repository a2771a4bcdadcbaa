"""What a pool decides from what it holds: whom it serves and fails, what it opens, says and counts."""

from __future__ import annotations

import logging
from math import inf
from time import monotonic
from types import SimpleNamespace

import pytest

from tcm_sync import (
    AuthenticationError,
    BackpressureError,
    ConnectFailedError,
    PoolTimeoutError,
    ShuttingDownError,
)
from tcm_sync._deadline import Deadline
from tcm_sync._logs import flush
from tcm_sync._pool.lease import Lease
from tcm_sync._pool.manager_state import ManagerState
from tcm_sync._pool.waiters import Waiter
from tcm_sync.events._records import ConnectionClosed, ConnectionOpened

from ..helpers.bare_pool import bare_pool, open_one

TIMEOUT = 30.0
REFUSED = AuthenticationError("the token is refused")
ENDS = ShuttingDownError("the manager is shutting down")


def waiter(pool, *, streaming=False, timeout=0.0):
    """Put one more caller into the line."""
    waiting = Waiter(Lease(pool), Deadline(timeout), waits_for_manager=True, streaming=streaming)
    pool.state.waiters.append(waiting)
    return waiting


def failures(waiters):
    return [type(each.error) for each in waiters]


# --- the error of a call that waited for nothing ---


def test_a_call_that_waited_for_the_pace_alone_gets_the_refusal_that_slowed_it():
    pool = bare_pool(size=2, sockets=2)
    lease = pool.acquire(Deadline(0.0))
    pool.state.tenant_rate.lower(monotonic(), 1, BackpressureError("too many of this tenant"))
    error = pool.state._timeout_error(waiter(pool))
    assert (type(error), error.message) == (BackpressureError, "too many of this tenant")
    lease.release()


def test_the_error_of_a_call_that_found_all_sockets_busy_says_so_whatever_the_rate():
    pool = bare_pool()
    lease = pool.acquire(Deadline(0.0))
    pool.state.tenant_rate.lower(monotonic(), 1, BackpressureError("too many of this tenant"))
    error = pool.state._timeout_error(waiter(pool))
    assert type(error) is PoolTimeoutError
    assert "1 of 1 sockets open, 1 busy, the oldest" in error.message  # and no streams
    lease.release()


def test_streams_are_mentioned_where_they_have_sockets():
    pool = bare_pool(size=2, sockets=2)
    leases = pool.acquire(Deadline(0.0), streaming=True), pool.acquire(Deadline(0.0))
    error = pool.state._timeout_error(waiter(pool))
    assert "2 busy, 1 of them with streams, the oldest" in error.message
    for lease in leases:
        lease.release()


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("pool_size", "Raise timeout, pool_timeout or pool_size, or send more rows a call"),
        ("management_pool_size", "Raise timeout or management_pool_size"),
    ],
)
def test_the_error_of_a_call_that_found_all_sockets_busy_says_what_to_raise(setting, advice):
    pool = bare_pool(setting=setting)
    lease = pool.acquire(Deadline(0.0))
    assert pool.state._timeout_error(waiter(pool)).message.endswith(advice)
    lease.release()


# --- what is opened, and who fails ---


@pytest.mark.parametrize(("sockets", "failed"), [(0, 3), (1, 1)])
def test_a_refused_token_fails_those_for_whom_no_socket_is_there(sockets, failed):
    """One socket serves one after the other; the room beside it was for the newest."""
    pool = bare_pool(size=2, sockets=sockets)
    leases = [pool.acquire(Deadline(0.0)) for _ in range(sockets)]
    pool.state.auth_gate.shut(REFUSED)
    waiting = [waiter(pool) for _ in range(3)]
    assert pool.state.reserve_openings() == 0
    assert failures(waiting) == [type(None)] * (3 - failed) + [AuthenticationError] * failed
    for lease in leases:
        lease.release()


@pytest.mark.parametrize(("shut", "opened"), [(False, 3), (True, 1)])
def test_a_socket_is_opened_for_each_who_waits_and_one_to_try_a_manager_that_failed(shut, opened):
    pool = bare_pool(size=5, sockets=0)
    if shut:
        pool.state.manager_gate.shut(ConnectFailedError("nobody there"))
        pool.state.manager_gate._opens_at = 0.0
    waiting = [waiter(pool, timeout=TIMEOUT) for _ in range(3)]
    assert pool.state.reserve_openings() == opened
    assert pool.state.opening == opened
    assert failures(waiting) == [type(None)] * 3


def test_an_opened_connection_is_counted():
    pool = bare_pool(sockets=0)
    pool.open_first()
    open_one(pool)
    assert pool.state.counts.opened == 1
    assert pool.state.opening == 0
    assert pool.reader.registered == list(pool.state.inventory.idle)


@pytest.mark.parametrize(
    ("was_draining", "left", "asked"),
    [(False, -inf, False), (False, 60.0, False), (True, 60.0, True), (True, -1.0, False)],
)
def test_readiness_is_asked_for_a_while_after_a_shutdown(was_draining, left, asked):
    pool = bare_pool(sockets=0)
    pool.state.manager_was_draining = was_draining
    pool.state.ready_asked_until = monotonic() + left
    pool.open_first()
    open_one(pool)
    assert pool._opening._opener.asked == [{"was_draining": was_draining, "ask_ready": asked}]


def test_a_manager_that_is_back_is_trusted_from_the_next_socket_on():
    pool = bare_pool(size=2, sockets=0)
    pool.manager_shuts_down(ENDS)
    pool.state.manager_gate.open()
    for _ in range(2):
        pool._opening.start(1)
        open_one(pool)
    assert [how["was_draining"] for how in pool._opening._opener.asked] == [True, False]


# --- what is lost ---


@pytest.mark.parametrize(
    ("setting", "sockets", "ours", "epochs"),
    [
        ("pool_size", 1, False, 1),
        ("pool_size", 2, False, 0),  # another one is left: the manager still runs
        ("pool_size", 1, True, 0),
        ("management_pool_size", 1, False, 0),
    ],
)
def test_registrations_are_void_once_the_last_inference_socket_is_lost(setting, sockets, ours, epochs):
    pool = bare_pool(size=2, sockets=sockets, setting=setting)
    connection = pool.any_open()
    connection.closing_reason = "worn out" if ours else None
    pool.lost(connection, "closed by the manager")
    pool.lost(connection, "closed by the manager")  # once more says nothing new
    assert pool.state.manager_state.epoch == epochs


def test_a_shutdown_is_logged_once_and_closes_what_is_idle(caplog):
    caplog.set_level(logging.WARNING, "tcm_sync.pool")
    pool = bare_pool(size=2, sockets=2)
    busy = pool.acquire(Deadline(0.0))
    pool.manager_shuts_down(ENDS)
    assert flush(TIMEOUT)
    (record,) = caplog.records
    assert record.getMessage().startswith("manager gate shut at h: the manager is shutting down")
    assert [reason for _, reason in pool.reader.closed] == ["the manager is shutting down"]
    pool.manager_shuts_down(ENDS)  # every socket of the client hears of it
    assert flush(TIMEOUT)
    assert caplog.records == [record]
    busy.release()
    assert [reason for _, reason in pool.reader.closed] == ["the manager is shutting down"] * 2


# --- events ---


@pytest.mark.parametrize(
    ("setting", "kind"), [("pool_size", "inference"), ("management_pool_size", "management")]
)
def test_events_of_connections_name_their_pool(setting, kind):
    events = []

    def add(uuid, event):
        assert event.uuid == uuid
        events.append(event)

    listeners = SimpleNamespace(registered=(None,), manager="h", add_beginning=add, add_end=add)
    pool = bare_pool(sockets=0, setting=setting, manager_state=ManagerState("h", listeners))
    pool.open_first()
    open_one(pool)
    pool.lost(pool.any_open(), "closed by the manager")
    assert [(type(event), event.pool) for event in events] == [
        (ConnectionOpened, kind),
        (ConnectionClosed, kind),
    ]


# --- gates ---


def test_no_pause_is_so_long_that_a_manager_that_is_back_is_found_later_than_a_second(monkeypatch):
    monkeypatch.setattr("tcm_sync._pool.gate.random.uniform", lambda low, high: high)
    gate = ManagerState("h").manager_gate
    first = None
    for _ in range(10):
        gate.shut(ConnectFailedError("nobody there"))
        first = first or gate.try_pass()
        assert gate._opens_at - monotonic() <= 1.0
        gate._opens_at = 0.0
    assert 0.1 <= first <= 0.15


def test_the_first_pause_after_a_refused_token_is_a_second(monkeypatch):
    monkeypatch.setattr("tcm_sync._pool.gate.random.uniform", lambda low, high: low)
    gate = ManagerState("h").auth_gate
    gate.shut(REFUSED)
    assert 0.9 < gate.try_pass() <= 1.0


# --- limits that are learned ---


def test_the_limit_of_a_tenant_is_logged_once_it_is_lower(caplog):
    caplog.set_level(logging.WARNING, "tcm_sync.pool")
    pool = bare_pool(sockets=2, size=2)
    burst = list(pool.state.inventory.all.values())
    for connection in burst:
        connection.sent_at.append(monotonic())
    for connection in burst:
        pool.limits.learn_tenant_limit(connection, BackpressureError("too many"))
    assert flush(TIMEOUT)
    (record,) = caplog.records
    assert record.getMessage().endswith("this client sends 0.8 a second from now on: too many")


def test_no_more_requests_go_out_than_the_manager_took_at_a_time():
    pool = bare_pool(size=3, sockets=3)
    leases = [pool.acquire(Deadline(0.0)) for _ in range(2)]
    pool.state.concurrency_limit.lower(leases[0].connection, 2, BackpressureError("the queue is full"))
    assert pool.state.concurrency_limit.max_requests == 1
    assert pool.state.choose() is None
    for lease in leases:
        lease.release()
    assert pool.state.choose() is not None
