"""How a manager ends: drained by `stop`, or killed."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading

import pytest

from tcm_sync.local import core

from ..helpers.raw_connection import HANDSHAKE, tensor
from ..helpers.waiting import GUARD, wait_until

DROPPED = {
    "type": "error",
    "payload": {
        "code": "SYSTEM_SHUTDOWN",
        "message": "Request dropped: system is shutting down.",
        "dropped_type": "inference",
    },
}
DROPPED_JOB = {"type": "error", "payload": {**DROPPED["payload"], "dropped_type": "management"}}
REJECTED = {
    "type": "error",
    "payload": {"code": "SYSTEM_SHUTDOWN", "message": "Server is shutting down; request rejected."},
}


def get(manager, path):
    connection = http.client.HTTPConnection("127.0.0.1", manager.port, timeout=GUARD)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def drain(gated, steps, monkeypatch):
    """Begin to stop a manager that a request or job keeps up; ended by letting them go."""
    monkeypatch.setattr(core, "SCHEDULER_DRAIN_SECONDS", 60.0)
    threads = []

    def begin(manager):
        thread = threading.Thread(target=manager.stop)
        threads.append(thread)
        thread.start()
        wait_until(lambda: manager._server is None or manager._server.core.draining, "it drains")
        return thread

    yield begin
    gated.open_all()
    steps.release()
    for thread in threads:
        thread.join(GUARD)
        assert not thread.is_alive()


@pytest.fixture
def busy(serve, dial, gated):
    """A manager that runs a request of ``first``."""
    manager = serve(workers=2)
    first = dial(manager, "first")
    first.ask("gated", tensor([1.0]))
    wait_until(lambda: manager.stats().executions, "it runs")
    return manager, first


def test_an_idle_socket_sees_only_the_final_close(serve, dial):
    manager = serve()
    raw = dial(manager, "u")
    manager.stop()
    assert raw.wait_for_close() == 1000


def test_what_runs_is_answered_and_what_waits_is_dropped(serve, dial, gated, drain):
    manager = serve(workers=1, executor_queue_size=1)
    raw = dial(manager, "u")
    for number in range(4):
        raw.ask("gated", tensor([float(number)]))
    wait_until(lambda: (manager.stats().waiting, manager.stats().running) == (3, 1), "they are there")
    drain(manager)
    assert [raw.receive() for _ in range(3)] == [DROPPED] * 3
    gated.open(0)
    assert raw.receive()["payload"]["data"] == {"y": [0.0]}
    assert raw.wait_for_close() == 1000
    assert manager.stats().executions == {"gated": 1}


def test_what_waits_in_the_executor_runs(serve, dial, gated, drain):
    manager = serve(workers=1)
    raw, other = dial(manager, "u"), dial(manager, "v")
    raw.ask("gated", tensor([1.0]))
    wait_until(lambda: manager.stats().executions, "the first runs")
    other.ask("echo", tensor([2.0]))
    wait_until(lambda: manager.stats().running == 2, "both are with the worker")
    drain(manager)
    gated.open(1)
    assert raw.receive()["payload"]["status"] == "COMPLETED"
    assert other.receive()["payload"]["status"] == "COMPLETED"


def test_an_inference_sent_meanwhile_runs_and_is_refused_all_the_same(busy, dial, drain):
    manager, _ = busy
    late = dial(manager, "late")
    drain(manager)
    late.ask("echo", tensor([2.0]))
    assert late.receive() == REJECTED
    assert late.wait_for_close() == 1012
    wait_until(lambda: manager.stats().executions.get("echo") == 1, "the refused work runs")
    wait_until(lambda: manager.stats().lost_replies == 1, "its reply is lost")


def test_an_inference_sent_when_the_scheduler_has_ended_does_not_run(busy, dial, gated, drain, monkeypatch):
    manager, first = busy
    late = dial(manager, "late")
    monkeypatch.setattr(core, "SCHEDULER_DRAIN_SECONDS", 0.0)
    thread = drain(manager)
    wait_until(lambda: not manager._server.core.accepts_work, "the scheduler has ended")
    late.ask("echo", tensor([2.0]))
    assert late.receive() == REJECTED
    gated.open(1)
    assert first.receive()["payload"]["status"] == "COMPLETED"
    thread.join(GUARD)
    assert manager.stats().executions == {"gated": 1}


def test_a_message_is_answered_and_refused(busy, dial, drain):
    manager, _ = busy
    late = dial(manager, "late")
    drain(manager)
    late.ask_info()
    assert late.receive()["payload"]["status"] == "success"
    assert late.receive() == REJECTED
    assert late.wait_for_close() == 1012


def test_a_new_socket_is_let_in_and_then_refused(busy, dial, drain):
    manager, _ = busy
    drain(manager)
    late = dial(manager, "late")
    assert late.receive() == REJECTED
    assert late.wait_for_close() == 1012


def test_a_bad_auth_is_refused_as_ever(serve, dial, drain, gated):
    manager = serve(tokens=["good"])
    first = dial(manager, "first", token="good")
    first.ask("gated", tensor([1.0]))
    wait_until(lambda: manager.stats().executions, "it runs")
    drain(manager)
    late = dial(manager)
    assert late.auth("late")["payload"]["message"].startswith("Invalid token")
    assert late.wait_for_close() == 1008


def test_ready_says_200_until_the_port_is_closed(busy, gated, drain):
    manager, first = busy
    thread = drain(manager)
    assert get(manager, "/ready")[0] == 200
    assert get(manager, "/health")[0] == 200
    gated.open(1)
    assert first.receive()["payload"]["status"] == "COMPLETED"
    thread.join(GUARD)
    with pytest.raises(ConnectionRefusedError):
        get(manager, "/ready")


def test_an_idle_manager_lingers_as_long_as_its_setting_says(serve, drain):
    manager = serve(linger=60)
    drain(manager)
    assert get(manager, "/ready")[0] == 200
    manager.kill()


def test_stopping_twice_and_from_two_threads_does_no_harm(busy, gated, drain):
    manager, _ = busy
    threads = [drain(manager), drain(manager)]
    gated.open(1)
    for thread in threads:
        thread.join(GUARD)
    manager.stop()
    assert not manager.stats().connected


def test_a_client_that_never_answers_the_close_holds_up_nothing(serve):
    manager = serve()
    with socket.create_connection(("127.0.0.1", manager.port), timeout=GUARD) as not_reading:
        not_reading.sendall(HANDSHAKE)
        assert not_reading.recv(1000).startswith(b"HTTP/1.1 101")
        manager.stop()


def test_a_connection_that_never_says_anything_holds_up_nothing(serve):
    manager = serve()
    with socket.create_connection(("127.0.0.1", manager.port), timeout=GUARD) as silent:
        manager.stop()
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""


# Management jobs


def test_a_running_job_keeps_the_manager_up_and_ready(serve, dial, steps, drain):
    manager = serve()
    steps.hold()
    raw = dial(manager, "u")
    raw.ask_job("create_vm", openstack={"name": "w"})
    wait_until(lambda: steps.seen, "it runs")
    drain(manager)
    assert get(manager, "/ready")[0] == 200
    steps.release()
    assert raw.receive_job()[0] is True
    assert raw.wait_for_close() == 1000


def test_a_job_sent_meanwhile_is_refused_and_done_all_the_same(serve, dial, drain):
    manager = serve(linger=60)
    raw = dial(manager, "u")
    drain(manager)
    raw.ask_job("creation", openstack={"name": "w"})
    assert raw.receive() == REJECTED
    assert raw.wait_for_close() == 1012
    wait_until(lambda: [job.state for job in manager.cloud.jobs] == ["done"], "the refused job is done")
    assert (manager.cloud.jobs[0].uuid, len(manager.cloud.containers)) == ("u", 1)
    manager.kill()


def test_what_is_refused_with_a_dropped_type_was_not_done(serve, dial, steps, drain):
    manager = serve(management_workers=1, management_executor_queue_size=1)
    steps.hold()
    raw = dial(manager, "u")
    for number in range(3):
        raw.ask_job("create_vm", openstack={"name": str(number)})
    wait_until(
        lambda: manager.stats().management_running and manager.stats().management_waiting == 2, "there"
    )
    drain(manager)
    assert [raw.receive() for _ in range(2)] == [DROPPED_JOB] * 2
    steps.release()
    assert raw.receive_job()[0] is True
    assert raw.wait_for_close() == 1000
    assert [vm.name for vm in manager.cloud.vms] == ["0"]


# Killed


def test_killing_drops_every_connection_without_a_close_frame(serve, dial):
    manager = serve()
    connections = [dial(manager, f"u-{number}") for number in range(3)]
    manager.kill()
    assert [raw.wait_for_close() for raw in connections] == [None] * 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", manager.port))


def test_killing_waits_for_no_model(busy, gated):
    manager, first = busy
    manager.kill()
    assert first.wait_for_close() is None
    gated.open(1)
    manager.stop()


def test_killing_makes_an_end_of_draining(busy, drain):
    manager, first = busy
    drain(manager)
    manager.kill()
    assert first.wait_for_close() is None


def test_what_waits_for_a_worker_does_not_run_after_a_kill(serve, dial, gated):
    manager = serve(workers=1)
    raw, other = dial(manager, "u"), dial(manager, "v")
    raw.ask("gated", tensor([1.0]))
    wait_until(lambda: manager.stats().executions, "the first runs")
    other.ask("echo", tensor([1.0]))
    wait_until(lambda: manager.stats().running == 2, "both are with the worker")
    manager.kill()
    gated.open(1)
    manager.stop()
    assert manager.stats().executions == {"gated": 1}


def test_a_killed_manager_begins_no_other_job(serve, dial, steps):
    manager = serve(management_workers=1)
    steps.hold()
    connections = [dial(manager, name) for name in ("a", "b")]
    for raw in connections:
        raw.ask_job("create_vm", openstack={"name": raw.uuid})
    wait_until(lambda: manager.stats().management_running == 2, "both are with the worker")
    wait_until(lambda: steps.seen, "one of them runs")
    manager.kill()
    assert [raw.wait_for_close() for raw in connections] == [None, None]
    steps.release()
    manager.stop()
    assert len(manager.cloud.vms) == 1


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_can_be_started_again_on_its_port_and_has_forgotten_everything(serve, dial, end):
    manager = serve()
    uri = manager.uri
    dial(manager, "u").infer("echo", tensor([1.0]))
    getattr(manager, end)()
    manager.start()
    assert manager.uri == uri
    assert manager.stats().uuids == ()
    assert dial(manager, "u").infer("echo", tensor([1.0]))["status"] == "COMPLETED"
