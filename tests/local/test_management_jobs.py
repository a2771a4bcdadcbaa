"""Management jobs and the pretend cloud, where no recording shows the rule."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from tcm_sync.local import CloudJob, CloudStep, Container, RegisteredServer, VirtualMachine

from ..helpers.raw_connection import tensor
from ..helpers.served_models import add_sub_onnx, identity_onnx
from ..helpers.waiting import wait_until

QUEUE_FULL = {
    "type": "error",
    "payload": {
        "code": "BACKPRESSURE_QUEUE_FULL",
        "message": "Request dropped due to backpressure (per-user queue full).",
        "dropped_type": "management",
    },
}
NO_VM = (
    "Container creation failed: Refusing to use client-supplied vm_ip/worker_ip. "
    "Provide a valid vm_id for a managed VM."
)
NAMED = {"openstack": {"name": "w"}}


@pytest.fixture
def refusal(serve, dial):
    """Ask for a job, and return the text with which it fails."""

    def ask(action, manager=None, **body):
        raw = dial(manager or serve())
        raw.auth("refused")
        raw.ask_job(action, **body)
        status, data = raw.receive_job()
        raw.close()
        assert status is False
        return data

    return ask


def infer(raw, model_name, deployed, *inputs):
    """Ask the model of a deployment."""
    inputs = inputs or (tensor([1.0]),)
    return raw.infer(model_name, *inputs, vm_ip=deployed["vm_ip"], container_id=deployed["container_id"])


def reason(answer):
    return answer["data"]["message"].partition("reason=")[2]


# What jobs create and delete


def test_a_creation_deploys_a_model_that_can_then_be_asked(serve, dial):
    raw = dial(serve({"add_sub": add_sub_onnx()}), "u")
    deployed = raw.do_job("creation", **NAMED, triton={"model_name": "add_sub"})
    inputs = [tensor([[5.0, 6.0]], name="INPUT0"), tensor([[1.0, 2.0]], name="INPUT1")]
    answer = infer(raw, "add_sub", deployed, *inputs)
    assert answer["data"] == {"SUM": [[6.0, 8.0]], "DIFF": [[4.0, 4.0]]}


def test_a_container_serves_what_is_deployed_in_it_and_nothing_else(serve, dial):
    raw = dial(serve(), "u")
    deployed = raw.do_job("creation", **NAMED, triton={"model_name": "echo"})
    assert infer(raw, "echo", deployed)["status"] == "COMPLETED"
    assert reason(infer(raw, "gated", deployed)) == "[404] Request for unknown model: 'gated' is not found"


def test_two_creations_are_two_machines_though_they_are_called_the_same(serve, dial):
    manager = serve()
    raw = dial(manager, "u")
    first, second = (raw.do_job("creation", **NAMED) for _ in range(2))
    assert first["vm_ip"] != second["vm_ip"]
    assert first["container_id"] != second["container_id"]
    assert [vm.name for vm in manager.cloud.vms] == ["w", "w"]
    crossed = {**first, "vm_ip": second["vm_ip"]}
    assert reason(infer(raw, first["model_name"], crossed)) == "[Errno 111] Connection refused"


@pytest.mark.parametrize(
    ("body", "model_name"),
    [
        ({}, "first"),
        ({"triton": {"model_name": "echo"}}, "echo"),
        ({"model_name": "echo"}, "echo"),
        ({"minio": {"model_name": "echo"}}, "echo"),
        ({"minio": {"folder": "echo"}}, "echo"),
        ({"minio": {"model_name": "gated"}, "triton": {"model_name": "echo"}}, "echo"),
        ({"triton": None, "minio": []}, "first"),
    ],
)
def test_what_a_creation_deploys(serve, dial, body, model_name):
    raw = dial(serve({"first": identity_onnx()}), "u")
    assert raw.do_job("creation", **NAMED, **body)["model_name"] == model_name


def test_a_creation_reports_inputs_and_outputs_as_the_model_declares_them(serve, dial):
    models = {
        "batched": identity_onnx(TensorProto.STRING, ("batch", 3, "n")),
        "fixed": identity_onnx(TensorProto.INT64, (2, 3)),
        "vector": identity_onnx(TensorProto.FLOAT16, ("n",)),
    }
    raw = dial(serve(models), "u")

    def declared(model_name):
        data = raw.do_job("creation", **NAMED, triton={"model_name": model_name})
        return data["inputs"], data["outputs"]

    for name, kind, dims in (
        ("batched", "TYPE_STRING", [3, -1]),
        ("fixed", "TYPE_INT64", [2, 3]),
        ("vector", "TYPE_FP16", [-1]),
    ):
        assert declared(name) == (
            [{"name": "INPUT__0", "type": kind, "dims": dims}],
            [{"name": "OUTPUT__0", "type": kind, "dims": dims}],
        )
    assert declared("echo") == ([], [])


def test_a_deployment_step_by_step(serve, dial):
    manager = serve()
    raw = dial(manager, "u")
    vm_ip, vm_id = raw.do_job("create_vm", **NAMED)
    docker = {"image": "tritonserver:25.12"}
    container_id, config = raw.do_job("create_container", openstack={"vm_id": vm_id}, docker=docker)
    assert config == docker
    there = {"vm_ip": vm_ip, "container_id": container_id}
    assert reason(infer(raw, "echo", there)) == "No active Triton session for this instance"
    ids = {"vm_id": vm_id, "container_id": container_id}
    server = raw.do_job("create_server", **ids, model_name="echo")
    assert server == {"model_name": "echo", "inputs": [], "outputs": []}
    assert infer(raw, "echo", there)["status"] == "COMPLETED"
    assert manager.cloud.vms == (VirtualMachine(vm_id, vm_ip, "w"),)
    expected = Container(container_id, vm_ip, registered=True, model_name="echo")
    assert manager.cloud.containers == (expected,)

    assert manager.cloud.servers[1:] == (RegisteredServer(container_id, vm_id),)  # beside the first one

    assert raw.do_job("delete_server", **ids) == {"action": "delete_server", **ids}
    assert reason(infer(raw, "echo", there)) == "No active Triton session for this instance"
    assert raw.do_job("delete_container", **ids) == {"action": "delete_container", **ids}
    assert "not found in known containers" in infer(raw, "echo", there)["data"]
    assert raw.do_job("delete_vm", vm_id=vm_id) is None
    assert (manager.cloud.vms, manager.cloud.containers) == ((), ())


def test_a_deletion_leaves_nothing_and_fails_when_it_is_repeated(serve, dial):
    manager = serve()
    raw = dial(manager, "u")
    kept, deployed = (raw.do_job("creation", **NAMED) for _ in range(2))
    vm_id = next(vm.vm_id for vm in manager.cloud.vms if vm.vm_ip == deployed["vm_ip"])
    ids = {"vm_id": vm_id, "container_id": deployed["container_id"]}
    assert raw.do_job("deletion", **ids) == ids
    raw.ask_job("deletion", **ids)
    assert raw.receive_job()[0] is False
    assert [vm.vm_ip for vm in manager.cloud.vms] == [kept["vm_ip"]]
    assert [found.container_id for found in manager.cloud.containers] == [kept["container_id"]]
    answer = infer(raw, "echo", deployed)
    assert answer["data"] == f"Container '{deployed['container_id']}' not found in known containers"


def test_with_a_machine_its_containers_go(serve, dial):
    manager = serve()
    raw = dial(manager, "u")
    kept, _ = (raw.do_job("creation", **NAMED) for _ in range(2))
    raw.do_job("delete_vm", vm_id=manager.cloud.vms[1].vm_id)
    assert [found.container_id for found in manager.cloud.containers] == [kept["container_id"]]


def test_the_containers_that_were_there_can_be_deleted(serve, dial):
    manager = serve()
    raw = dial(manager, "u")
    raw.do_job("delete_container", vm_id="any", container_id=manager.route.container_id)
    assert raw.infer("echo", tensor([1.0]))["data"] == "Container 'local' not found in known containers"


def test_the_cloud_outlives_the_manager(serve, dial):
    manager = serve()
    deployed = dial(manager, "u").do_job("creation", **NAMED)
    for end in (manager.stop, manager.kill):
        end()
        manager.start()
        assert infer(dial(manager, "u"), deployed["model_name"], deployed)["status"] == "COMPLETED"
    assert len(manager.cloud.vms) == 1


# What is refused


@pytest.mark.parametrize(
    ("action", "body", "words"),
    [
        ("creation", {}, "[OpenstackThread] : name Missing !"),
        ("creation", {"openstack": "w"}, "Unexpected error: Missing key 'name'"),
        ("create_vm", {"openstack": {}}, "Unexpected error: Missing key 'name'"),
        ("create_container", {"vm_id": "vm-7"}, NO_VM),
        ("create_container", {"vm_ip": "10.0.0.1"}, NO_VM),
        ("create_server", {}, "Unexpected error: Missing key 'container_id'"),
        (
            "create_server",
            {"container_id": "c"},
            "Unexpected error: Container 'c' not found in known containers",
        ),
        (
            "creation",
            {**NAMED, "triton": {"model_name": "nope"}},
            "Unexpected error: Model 'nope' not found: this local manager has ['echo', 'gated', 'llm']",
        ),
        ("deletion", {"vm_id": "vm-7"}, "Deletion missing required field: 'container_id'"),
        (
            "delete_container",
            {"vm_id": "vm-7"},
            "Unexpected error: [DockerThread] Missing required argument: 'container_id'",
        ),
        ("deletion", {"vm_ip": "10.0.0.9", "container_id": "c"}, "Deletion missing required field: 'vm_id'"),
        ([], {}, "Job action not found: []"),
        (None, {}, "Job action not found: None"),
    ],
)
def test_a_job_that_cannot_be_done_says_why_and_creates_nothing(serve, refusal, action, body, words):
    manager = serve()
    assert refusal(action, manager, **body) == words
    assert manager.cloud.vms == ()


def test_what_the_function_of_the_steps_raises_is_the_failure_of_the_job(serve, dial, refusal):
    def fail(step):
        if step.name == "create_container":
            raise OSError("no space left")

    manager = serve(on_cloud_step=fail)
    assert refusal("creation", manager, **NAMED) == "Unexpected error: no space left"
    (job,) = manager.cloud.jobs
    assert job == CloudJob("refused", "creation", "failed", "Unexpected error: no space left")
    assert len(manager.cloud.vms) == 1  # as after a creation that failed half-way
    assert manager.cloud.containers == ()


def test_a_deletion_tries_every_part_whatever_became_of_the_others(serve, dial):
    def fail(step):
        if step.name == "delete_container":
            raise OSError("the daemon does not answer")

    manager = serve(on_cloud_step=fail)
    raw = dial(manager, "u")
    deployed = raw.do_job("creation", **NAMED)
    ids = {"vm_id": manager.cloud.vms[0].vm_id, "container_id": deployed["container_id"]}
    raw.ask_job("deletion", **ids)
    assert raw.receive_job() == (
        False,
        "Deletion failed: delete_container: the daemon does not answer",
    )
    assert manager.cloud.vms == ()
    assert len(manager.cloud.servers) == 1


def test_a_container_has_the_name_that_it_is_given_and_no_two_have_the_same(serve, dial, refusal):
    manager = serve()
    raw = dial(manager, "u")
    _, vm_id = raw.do_job("create_vm", **NAMED)
    body = {"vm_id": vm_id, "docker": {"name": "mine"}}
    assert raw.do_job("create_container", **body)[0] == "mine"
    assert "'mine' is already in use" in refusal("create_container", manager, **body)


def test_a_creation_that_comes_to_nothing_is_taken_back(serve, refusal):
    manager = serve(known_faults=True)
    assert "client_timeout" in refusal("creation", manager, **NAMED, triton={"model_name": "echo"})
    assert manager.cloud.vms == manager.cloud.containers == ()


# Jobs as they run


def test_steps_are_reported_with_their_job(serve, dial):
    seen = []
    manager = serve(on_cloud_step=seen.append)
    deployed = dial(manager, "u").do_job("creation", **NAMED)
    vm_id = manager.cloud.vms[0].vm_id
    assert seen == [
        CloudStep("create_vm", "w", "creation", "u"),
        CloudStep("create_container", vm_id, "creation", "u"),
        CloudStep("create_server", deployed["container_id"], "creation", "u"),
    ]


def test_a_job_is_running_until_it_is_done(serve, dial, steps):
    manager = serve()
    steps.hold()
    raw = dial(manager, "u")
    raw.ask_job("create_vm", **NAMED)
    wait_until(lambda: manager.cloud.jobs, "it has begun")
    assert manager.cloud.jobs == (CloudJob("u", "create_vm"),)
    assert (manager.cloud.jobs[0].state, manager.cloud.vms) == ("running", ())
    steps.release()
    status, data = raw.receive_job()
    assert (status, manager.cloud.jobs) == (True, (CloudJob("u", "create_vm", "done", data),))


def test_jobs_run_side_by_side_and_hold_up_no_inference(serve, dial, steps):
    manager = serve(management_workers=2, workers=1)
    steps.hold()
    connections = [dial(manager, f"u-{number}") for number in range(2)]
    for raw in connections:
        raw.ask_job("create_vm", **NAMED)
    wait_until(lambda: len(steps.seen) == 2, "both run")
    assert dial(manager, "other").infer("echo", tensor([1.0]))["status"] == "COMPLETED"
    steps.release()
    assert all(raw.receive_job()[0] for raw in connections)


def test_the_job_of_a_closed_socket_is_done(serve, dial, steps):
    manager = serve()
    steps.hold()
    raw = dial(manager, "u")
    raw.ask_job("create_vm", **NAMED)
    wait_until(lambda: steps.seen, "it runs")
    raw.close()
    wait_until(lambda: not manager.stats().connected, "the close is noticed")
    steps.release()
    wait_until(lambda: manager.stats().lost_replies == 1, "its reply is lost")
    assert [vm.name for vm in manager.cloud.vms] == ["w"]


def test_five_jobs_of_a_uuid_wait_and_more_are_refused(serve, dial, steps):
    manager = serve(management_workers=1, management_executor_queue_size=1)
    steps.hold()
    raw = dial(manager, "u")
    raw.ask_job("create_vm", openstack={"name": "0"})
    wait_until(lambda: steps.seen, "the first runs")
    for number in range(1, 8):
        raw.ask_job("create_vm", openstack={"name": str(number)})
    assert [raw.receive() for _ in range(2)] == [QUEUE_FULL] * 2
    stats = manager.stats()
    assert (stats.management_waiting, stats.management_running, stats.waiting) == (5, 1, 0)
    steps.release()
    assert [raw.receive_job()[0] for _ in range(6)] == [True] * 6
    assert [vm.name for vm in manager.cloud.vms] == ["0", "1", "2", "3", "4", "5"]


def test_queue_stats_count_jobs(serve, dial, steps):
    manager = serve(management_workers=1, management_executor_queue_size=2)
    steps.hold()
    raw, other = dial(manager, "u"), dial(manager, "v")
    for _ in range(4):
        raw.ask_job("create_vm", **NAMED)
    wait_until(
        lambda: (manager.stats().management_running, manager.stats().management_waiting) == (2, 2),
        "two are with the worker, and two wait",
    )
    other.ask_info()
    stats = other.receive()["payload"]["data"]
    assert (stats["management_users"], stats["total_users"]) == (1, 1)
    assert (stats["management_total_queued"], stats["total_queued"]) == (2, 2)
    assert (stats["executor_management_pending"], stats["executor_management_available"]) == (1, 0)
    assert stats["executor_inference_pending"] == 0


def test_the_reply_echoes_the_roles_of_who_asked(serve, dial):
    raw = dial(serve(tokens={"t": ["admin"]}), "u", token="t")
    raw.ask_job("nope")
    reply = raw.receive()
    assert len(reply.pop("_correlation_id")) == 16
    assert reply == {
        "uuid": "u",
        "type": "management",
        "payload": {"status": False, "data": "Job action not found: 'nope'"},
        "_auth": {"sub": None, "tenant_id": None, "roles": ["admin"], "capability": ["json"]},
    }


def test_without_the_role_nothing_is_done(serve, dial):
    manager = serve()
    raw = dial(manager, "u", client={"roles": ["inference"]})
    raw.ask_job("create_vm", **NAMED)
    assert raw.receive() == {"type": "error", "payload": {"message": "Forbidden: missing 'management' role"}}
    assert manager.cloud.jobs == ()
