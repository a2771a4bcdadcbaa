"""``queue-stats``, ``info``, ``health`` and ``ready``."""

from __future__ import annotations

import json
import socket

import pytest

from tcm_sync import QueueStats

from ..helpers.peer_scripts import echo as answer
from ..helpers.scripted_peer import ScriptedPeer

READY = "ready, Triton servers: 1 registered, 1 healthy, 1 healthy_http, 0 healthy_grpc\n"


def test_queue_stats_is_a_table(cli, manager):
    done = cli("queue-stats")
    assert done.code == 0
    assert done.out.splitlines()[0].split() == ["users", "queued", "waiting", "more", "accepted"]
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [
        "inference",
        "management",
        "info",
        "all",
    ]


def test_queue_stats_as_json_has_every_count(cli, manager):
    found = json.loads(cli("queue-stats", "--json").out)
    assert set(found) == set(QueueStats.__dataclass_fields__)


def test_queue_stats_repeated_reports_times(cli, manager):
    done = cli("--json", "queue-stats", "--repeat", "6", "--concurrency", "3")
    summary = json.loads(done.out)["queue_stats_summary"]
    assert (summary["requests"], summary["concurrency"]) == (6, 3)
    assert set(summary["latency_seconds"]) == {"avg", "p50", "p95", "p99"}
    assert "6" in cli("queue-stats", "--repeat", "6").out


def test_info_shows_the_answer(cli, manager):
    assert json.loads(cli("info", "colour", "--json").out) == {"colour": "blue"}
    assert cli("info", "colour").out == "colour  blue\n"


def test_info_sends_fields(cli, manager):
    done = cli("info", "colour", "--set", "timeout=3")
    assert (done.code, done.out) == (2, "")
    assert "must not hold 'timeout': give it on the command line" in done.err
    assert cli("info", "colour", "--set", "shade=[1]").code == 0


def test_a_healthy_manager(cli, manager):
    assert cli("health").out == f"ok: {manager.uri}\n"
    assert json.loads(cli("health", "--json").out) == {"ok": True}


def test_a_manager_that_is_not_there(cli, manager):
    manager.stop()
    done = cli("health")
    assert (done.code, done.out) == (3, "")
    assert manager.uri in done.err
    done = cli("health", "--json")
    assert (done.code, json.loads(done.out), done.err) == (3, {"ok": False}, "")


def test_a_ready_manager(cli, manager):
    assert cli("ready").out == READY
    assert cli("ready", "--wait", "5").out == READY


@pytest.mark.usefixtures("pauses_take_no_time")
def test_a_manager_that_is_not_ready(cli):
    with ScriptedPeer(answer) as peer:
        peer.http["/ready"] = (503, {"status": "not_ready", "reason": "no_cloud", "error_id": "e-7"})
        for wait in ((), ("--wait", "9")):
            done = cli("--uri", peer.uri, "ready", *wait)
            assert (done.code, done.out) == (3, "")
            assert "no_cloud" in done.err
            assert "e-7" in done.err
            done = cli("--uri", peer.uri, "ready", "--json", *wait)
            assert (done.code, done.err) == (3, "")
            assert json.loads(done.out) == {
                "ok": False,
                "status": "not_ready",
                "reason": "no_cloud",
                "detail": None,
                "error_id": "e-7",
                "triton": {},
            }


def test_waiting_for_a_manager_that_never_comes(cli):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = cli("--uri", f"ws://127.0.0.1:{port}/ws", "ready", "--wait", "0.2")
    assert (done.code, done.out) == (3, "")
    assert "not ready within 0.2 s" in done.err
