"""What a manager keeps about its clients is bounded, so that it can run for weeks."""

from __future__ import annotations

import time

import pytest

from tcm_sync.local import LocalManager, cloud, stats
from tcm_sync.local.auth import Authenticator, AuthRefused
from tcm_sync.local.cloud import Cloud
from tcm_sync.local.scheduler import JobLoad, Scheduler
from tcm_sync.local.stats import Counters


def test_uuids_of_the_last_connections_are_kept(monkeypatch):
    monkeypatch.setattr(stats, "_MAX_UUIDS", 3)
    counters = Counters()
    for number in range(5):
        counters.count_uuid(f"u{number}")
    assert counters.snapshot().uuids == ("u2", "u3", "u4")


def test_errors_that_repeat_what_clients_send_are_counted_together_when_there_are_many(monkeypatch):
    monkeypatch.setattr(stats, "_MAX_NACKS", 2)
    counters = Counters()
    for name in ("a", "b", "c", "d", "b"):
        counters.count_nack(name)
    assert counters.snapshot().nacks == {"a": 1, "b": 2, "other messages": 2}


def test_records_of_the_last_jobs_are_kept_also_of_those_that_end_later(monkeypatch):
    monkeypatch.setattr(cloud, "MAX_JOBS", 2)
    record = Cloud()
    numbers = [record.begin(f"u{number}", "creation") for number in range(3)]
    for number in numbers:
        record.end(number, "done", number)
    assert [(job.uuid, job.state, job.data) for job in record.jobs] == [("u1", "done", 1), ("u2", "done", 2)]


def test_uuids_that_only_ask_for_information_are_forgotten():
    now = [0.0]
    scheduler = Scheduler(
        {"management": JobLoad(5, 50), "inference": JobLoad(10, 200)},
        quantum=5,
        forget_after=900.0,
        clock=lambda: now[0],
    )
    for number in range(100):
        now[0] = 100.0 * number
        scheduler.note(f"u{number}", "info")
    assert scheduler.queue_stats()["info_users"] <= 10


def test_failures_of_uuids_that_do_not_come_back_are_forgotten(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tcm_sync._ttl_cache.monotonic", lambda: now[0])
    authenticator = Authenticator({"right"}, 5)
    for number in range(25_000):
        with pytest.raises(AuthRefused):
            authenticator.identify(f"u{number}", {"token": "wrong"})
    assert len(authenticator._failures) <= 10_000


def test_a_manager_that_is_killed_again_and_again_keeps_no_server_whose_models_have_returned():
    manager = LocalManager({})
    for _ in range(3):
        manager.start()
        manager.kill()
        (server,) = manager._killed  # it is the last one alone
        ends = time.monotonic() + 10.0
        while server.is_working and time.monotonic() < ends:
            time.sleep(0.001)
        assert not server.is_working
    manager.stop()
    assert not manager._killed
