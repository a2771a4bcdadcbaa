"""The manager's official client, tcm-client, runs against a LocalManager unchanged."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ..helpers.served_models import add_sub_onnx, identity_onnx

sdk = pytest.importorskip("tcm_client.sdk", reason="tcm-client (the extra bench) is not installed")

ADD_SUB = [
    sdk.InferenceInput(name=name, shape=[1, 4], datatype="FP32", data=[values])
    for name, values in (("INPUT0", [1, 2, 3, 4]), ("INPUT1", [1, 1, 1, 1]))
]
OUTPUTS = {"SUM": [[2.0, 3.0, 4.0, 5.0]], "DIFF": [[0.0, 1.0, 2.0, 3.0]]}
WHO = {"token": "opaque", "sub": "svc", "tenant_id": "acme"}


@pytest.fixture
def manager(serve):
    return serve({"add_sub": add_sub_onnx(), "ident": identity_onnx(dims=("n",))})


def identity_of(**who):
    return sdk.AuthContext(uuid="sdk-1", **{"roles": ["inference", "management"], **who})


def talk(manager, ask, **who):
    """Let the asynchronous client authenticate and ask, and return the answer."""

    async def conversation():
        async with sdk.TcmWebSocketClient(manager.uri, identity_of(**who)) as client:
            await client.auth()
            return await ask(client)

    return asyncio.run(conversation())


@pytest.mark.parametrize(
    "who",
    [WHO, {"token": "opaque", "roles": None}, {"roles": ["inference"]}, {"roles": None}],
    ids=["everything", "a token alone", "roles alone", "nothing"],
)
def test_all_forms_of_its_authentication_are_let_in(manager, who):
    answer = talk(manager, lambda client: client.info_queue_stats(), **who)
    assert (answer["payload"]["status"], answer["payload"]["job_id"]) == ("success", None)
    assert answer["payload"]["data"]["executor_inference_available"] == 200


def test_a_token_that_is_not_known_is_refused(serve):
    manager = serve(tokens=["another"])
    with pytest.raises(RuntimeError, match="Auth failed"):
        talk(manager, lambda client: client.info_queue_stats(), **WHO)


@pytest.mark.parametrize("kind", ["registered", "transient"])
@pytest.mark.parametrize("stated", [True, False])
def test_its_inferences_are_answered(manager, kind, stated):
    """Also without a vm_ip, which goes out as null, beside ``inputs`` and ``pipeline`` that are null."""
    route = manager.route if kind == "registered" else manager.transient_route
    where = {"vm_ip": route.vm_ip} if stated else {}
    transient = kind == "transient"
    client = sdk.TcmClient(manager.uri, identity_of(**WHO))
    answer = client.infer("vm-1", route.container_id, "add_sub", ADD_SUB, allow_transient=transient, **where)
    assert (answer.type, answer.payload["status"]) == ("inference", "COMPLETED")
    assert (answer.payload["data"], answer.payload["model_name"]) == (OUTPUTS, "add_sub")


def test_its_asynchronous_inference_is_answered(manager):
    client = sdk.TcmClient(manager.uri, identity_of(**WHO))
    answer = asyncio.run(client.infer_async("vm-1", manager.route.container_id, "add_sub", ADD_SUB))
    assert answer.payload["data"] == OUTPUTS


def test_its_helper_for_raw_data_works_in_one_dimension_and_is_refused_in_more(manager):
    client = sdk.TcmClient(manager.uri, identity_of(**WHO))
    container_id = manager.route.container_id
    answer = client.run_inference("vm-1", container_id, "ident", [1.5, 2.5])
    assert answer.payload["data"] == {"OUTPUT__0": [1.5, 2.5]}
    answer = client.run_inference("vm-1", container_id, "ident", np.ones((1, 2)))
    assert answer.payload["data"]["code"] == "TRITON_SHAPE_MISMATCH"


def test_its_pipelines_are_answered(manager):
    inputs = [each.model_dump() for each in ADD_SUB]
    steps = [
        {"name": "first", "model_name": "add_sub", "inputs": inputs},
        {"model_name": "add_sub", "inputs": inputs},
    ]
    answer = talk(
        manager, lambda client: client.inference_pipeline("vm-1", manager.route.container_id, steps), **WHO
    )
    assert answer["payload"] == {
        "data": {"first": OUTPUTS, "add_sub": OUTPUTS},
        "status": "COMPLETED",
        "model_name": None,
    }


def test_its_jobs_are_done(manager):
    """Its one method for all of them, with the caller's keywords beside the action."""
    created = talk(
        manager, lambda client: client.management_creation(openstack={"name": "w1"}, docker={}), **WHO
    )
    data = created["payload"]["data"]
    assert (created["type"], created["payload"]["status"]) == ("management", True)
    answer = sdk.TcmClient(manager.uri, identity_of(**WHO)).infer(
        "vm-1", data["container_id"], data["model_name"], ADD_SUB
    )
    assert answer.payload["data"] == OUTPUTS
    ids = {"vm_id": manager.cloud.vms[0].vm_id, "container_id": data["container_id"]}
    deleted = talk(manager, lambda client: client.management_creation(action="deletion", **ids), **WHO)
    assert deleted["payload"]["status"] is True
    assert manager.cloud.vms == ()


def test_its_command_line_asks_for_the_queues(manager, monkeypatch, capsys):
    from tcm_client import cli

    arguments = ["tcm-client-cli", "--uri", manager.uri, "--uuid", "cli-1", "queue-stats"]
    monkeypatch.setattr("sys.argv", arguments)
    cli.main()
    assert '"status": "success"' in capsys.readouterr().out
