"""Management jobs of the client: a model put into service and taken out, and nothing ever made twice."""

from __future__ import annotations

import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    AuthContext,
    CallTimeoutError,
    ConnectionLostError,
    InferenceError,
    ManagementError,
    ModelSignature,
    PermissionDeniedError,
    ShuttingDownError,
    TcmError,
    TensorSpec,
)
from tcm_sync.local import core

from ..helpers.served_models import add_sub_onnx
from ..helpers.waiting import GUARD, wait_until

TENSORS = {name: TensorSpec(name, "FP32", (-1,)) for name in ("INPUT0", "INPUT1", "SUM", "DIFF")}


def create(client, name, timeout=GUARD):
    return client.management("create_vm", openstack={"name": name}, timeout=timeout)


# --- a deployment from its creation to its deletion ---


def test_a_model_is_put_into_service_called_and_taken_out(serve, client_of):
    manager = serve({"add_sub": add_sub_onnx()})
    client = client_of(manager)
    deployment = client.create(
        openstack={"name": "w1"}, docker={}, minio={}, triton={"model_name": "add_sub"}
    )
    (vm,) = manager.cloud.vms
    assert deployment.vm_ip == vm.vm_ip
    assert deployment.model_name == "add_sub"
    assert deployment.signature == ModelSignature(
        (TENSORS["INPUT0"], TENSORS["INPUT1"]), (TENSORS["SUM"], TENSORS["DIFF"])
    )
    x = np.array([[0.1, 0.2]], np.float32)
    for each in (deployment, pickle.loads(pickle.dumps(deployment)).bind(client)):
        outputs = each.infer({"INPUT0": x, "INPUT1": x})
        assert outputs["SUM"].dtype == np.float32
        assert np.array_equal(outputs["SUM"], x + x)
    assert set(deployment.delete().parts.values()) == {"deleted"}
    with pytest.raises(ManagementError, match="missing: server, container, vm"):
        deployment.delete(vm_id=vm.vm_id)
    again = deployment.delete(vm_id=vm.vm_id, missing_ok=True)
    assert set(again.parts.values()) == {"missing"}
    assert manager.cloud.vms == manager.cloud.containers == ()
    with pytest.raises(TcmError):
        deployment.infer({"INPUT0": x, "INPUT1": x})


def test_failures_are_reported_in_the_words_of_the_manager(serve, client_of):
    client = client_of(serve())
    with pytest.raises(ManagementError, match="Missing key 'name'"):
        client.create(openstack={})
    with pytest.raises(ManagementError, match="Deletion missing required field: 'vm_id'"):
        client.delete()
    with pytest.raises(ManagementError, match="Job action not found: 'nope'"):
        client.management("nope")


def test_all_the_other_jobs(serve, client_of):
    manager = serve({"add_sub": add_sub_onnx()})
    client = client_of(manager)
    vm_ip, vm_id = create(client, "w1").data
    container_id, config = client.management(
        "create_container", openstack={"vm_id": vm_id}, docker={"image": "i"}
    ).data
    assert config == {"image": "i"}
    ids = {"vm_id": vm_id, "container_id": container_id}
    client.management("create_server", **ids, triton={"model_name": "add_sub"})
    x = np.ones((1, 2), np.float32)
    called = client.infer("add_sub", {"INPUT0": x, "INPUT1": x}, vm_ip=vm_ip, container_id=container_id)
    assert called["SUM"].tolist() == [[2.0, 2.0]]
    assert client.management("delete_server", **ids).data == {"action": "delete_server", **ids}
    assert client.management("delete_container", **ids).data == {"action": "delete_container", **ids}
    assert client.management("delete_vm", vm_id=vm_id).data is None
    assert manager.cloud.vms == manager.cloud.containers == ()


def test_the_role_is_needed(serve, client_of):
    manager = serve(tokens={"a-token": ["inference"]})
    with pytest.raises(PermissionDeniedError, match="management"):
        create(client_of(manager, auth=AuthContext(token="a-token")), "w1")
    assert manager.cloud.jobs == ()


def test_the_queues_are_reported_while_a_job_runs(serve, client_of):
    go_on = threading.Event()
    manager = serve(on_cloud_step=lambda step: go_on.wait(GUARD))
    client = client_of(manager)
    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(create, client, "w1")
        wait_until(lambda: manager.cloud.jobs, "the job runs")
        stats = client.queue_stats()
        go_on.set()
        job.result(GUARD)
        after = [stats]
        wait_until(
            lambda: after.append(client.queue_stats()) or not after[-1].unfinished("management"), "ended"
        )
    assert (stats.management_total_queued, stats.executor_management_pending) == (0, 0)
    assert stats.executor_management_available == 49
    assert stats.unfinished("management") == 1
    assert stats.management_users == 1
    assert stats.extra == {}
    assert after[-1].executor_management_available == 50


def test_jobs_leave_the_sockets_of_inferences_alone(serve, client_of):
    go_on = threading.Event()
    manager = serve(on_cloud_step=lambda step: go_on.wait(GUARD))
    client = client_of(manager, pool_size=1, management_sockets=2)
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(create, client, name) for name in "ab"]
        wait_until(lambda: len(manager.cloud.jobs) == 2, "both jobs run")
        for number in range(10):
            assert client.infer("echo", {"x": [number]})["x"].tolist() == [number]
        go_on.set()
        assert len({job.result(GUARD).data[1] for job in jobs}) == 2


# --- never twice ---


def outcome_of(client, name, timeout=GUARD):
    """Create a VM: how often it must have been made, at least and at most."""
    try:
        create(client, name, timeout)
    except (ShuttingDownError, ConnectionLostError, CallTimeoutError) as error:
        return (0, 1) if error.outcome_unknown else (0, 0)
    return (1, 1)


def check(manager, outcomes):
    made = [vm.name for vm in manager.cloud.vms]
    for name, (least, most) in outcomes.items():
        assert least <= made.count(name) <= most, (
            f"{name}: {made.count(name)} VMs, reported {least} to {most}"
        )


def test_a_job_that_is_sent_to_a_draining_manager_runs_and_says_that_it_may_have(
    serve, client_of, monkeypatch
):
    monkeypatch.setattr(core, "SCHEDULER_DRAIN_SECONDS", 60.0)
    manager = serve(linger=60)
    client = client_of(manager)
    create(client, "before")  # the socket is open
    with ThreadPoolExecutor(1) as thread:
        stopping = thread.submit(manager.stop)
        wait_until(lambda: manager._server is None or manager._server.core.draining, "it drains")
        with pytest.raises(ShuttingDownError, match="unfinished") as caught:
            create(client, "during", timeout=GUARD)
        wait_until(lambda: len(manager.cloud.vms) == 2, "it has run")
        manager.kill()
        stopping.result(GUARD)
    assert caught.value.outcome_unknown
    assert caught.value.attempts == 1
    assert [vm.name for vm in manager.cloud.vms] == ["before", "during"]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_jobs_around_the_end_of_a_manager_are_never_done_twice(serve, client_of, how):
    """Jobs from four threads, at whatever moment of a drain or a killing they come; twenty managers."""
    manager = serve(linger=0.05, on_cloud_step=lambda step: threading.Event().wait(random.uniform(0, 0.003)))
    client = client_of(manager, management_sockets=4)
    outcomes: dict[str, tuple[int, int]] = {}
    over = threading.Event()

    def jobs(thread):
        number = 0
        while not over.is_set():
            name = f"{thread}-{number}"
            outcomes[name] = outcome_of(client, name, timeout=3 * GUARD)
            number += 1

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(jobs, thread) for thread in range(4)]
        try:
            for _ in range(20):
                done = len(manager.cloud.jobs)
                wait_until(lambda done=done: len(manager.cloud.jobs) >= done + 8, "jobs are done")
                getattr(manager, how)()
                manager.start()
        finally:
            over.set()
        for job in running:
            job.result(3 * GUARD)
    wait_until(lambda: all(job.state != "running" for job in manager.cloud.jobs), "all jobs have ended")
    check(manager, outcomes)
    assert (0, 1) in outcomes.values(), "no job met the end of a manager"


def test_jobs_that_were_dropped_are_done_once_by_the_next_manager(serve, client_of):
    """One job runs and others wait when the manager drains: those are dropped, with an error."""
    go_on = threading.Event()
    manager = serve(
        on_cloud_step=lambda step: go_on.wait(GUARD), management_workers=1, management_executor_queue_size=1
    )
    client = client_of(manager, management_sockets=4)
    with ThreadPoolExecutor(5) as threads:
        jobs = {name: threads.submit(outcome_of, client, name, 3 * GUARD) for name in "abcd"}
        wait_until(
            lambda: manager.stats().management_waiting == 3 and len(manager.cloud.jobs) == 1,
            "one job runs and three wait",
        )
        stopping = threads.submit(manager.stop)
        wait_until(lambda: manager.stats().management_waiting == 0, "what waits is dropped")
        go_on.set()
        stopping.result(GUARD)
        manager.start()
        outcomes = {name: job.result(3 * GUARD) for name, job in jobs.items()}
    assert set(outcomes.values()) == {(1, 1)}
    check(manager, outcomes)


def test_a_deployment_that_is_gone_fails_as_inference_does(serve, client_of):
    manager = serve({"add_sub": add_sub_onnx()})
    client = client_of(manager)
    deployment = client.create(openstack={"name": "w"}, triton={"model_name": "add_sub"})
    with pytest.raises(InferenceError):
        deployment.infer({"INPUT0": np.ones((1, 2), np.float32)})
