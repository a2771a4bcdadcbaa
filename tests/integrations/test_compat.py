"""`tcm_sync.compat` and tcm-client side by side: the same calls, the same answers, the same errors."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import re
import socket
import threading

import numpy as np
import pytest
from tritonclient.grpc import InferInput

from tcm_sync import AuthContext as OurAuthContext
from tcm_sync import (
    AuthenticationError,
    ConfigError,
    InputError,
    PermissionDeniedError,
    ShuttingDownError,
    TcmClient,
    compat,
)

from ..helpers.served_models import add_sub_onnx, identity_onnx
from ..helpers.waiting import GUARD, collected_while_held, wait_until

sdk = pytest.importorskip("tcm_client.sdk", reason="tcm-client (the extra bench) is not installed")

WHO = {"token": "opaque", "sub": "svc", "tenant_id": "acme", "roles": ["inference", "management"]}
BOTH = pytest.mark.parametrize("module", [sdk, compat], ids=["theirs", "ours"])


@pytest.fixture
def manager(serve):
    return serve({"add_sub": add_sub_onnx(), "ident": identity_onnx(dims=("n",))})


@pytest.fixture
def both(manager):
    """Make the same call with both clients, and return what each returned or raised."""
    made = []

    def call(method, *arguments, who=WHO, **keywords):
        theirs, ours = _Theirs(manager.uri, sdk.AuthContext("c-1", **who)), None
        ours = compat.TcmClient(manager.uri, compat.AuthContext("c-1", **who))
        made.append(ours)
        return [_outcome(getattr(client, method), arguments, keywords) for client in (theirs, ours)]

    yield call
    for client in made:
        client.close()


class _Theirs:
    """Their synchronous client, and the two calls that only the asynchronous one has."""

    def __init__(self, uri, who):
        self._uri, self._who = uri, who
        client = sdk.TcmClient(uri, who)
        self.infer, self.run_inference = client.infer, client.run_inference

    def infer_async(self, *arguments, **keywords):
        return sdk.TcmClient(self._uri, self._who).infer_async(*arguments, **keywords)

    def info_queue_stats(self):
        return asyncio.run(self._talk("info_queue_stats"))

    def management_creation(self, *arguments, **keywords):
        return asyncio.run(self._talk("management_creation", *arguments, **keywords))

    async def _talk(self, method, *arguments, **keywords):
        async with sdk.TcmWebSocketClient(self._uri, self._who) as client:
            await client.auth()
            return await getattr(client, method)(*arguments, **keywords)


def _outcome(method, arguments, keywords):
    """Return what a call returned, without what differs between two connections, or the error's class."""
    try:
        answer = method(*arguments, **keywords)
        answer = asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
    except Exception as error:  # noqa: BLE001 - whatever theirs raises is compared
        return next(
            kind for kind in (RuntimeError, ValueError, TypeError, OSError) if isinstance(error, kind)
        )
    if not isinstance(answer, dict):
        return (answer.type, answer.payload)
    return {name: value for name, value in answer.items() if name not in ("uuid", "_correlation_id")}


def inputs_of(module, data=((1, 2, 3, 4),), shape=(1, 4), datatype="FP32"):
    rows = [list(row) if isinstance(row, tuple) else row for row in data]
    return [
        module.InferenceInput(name=name, shape=list(shape), datatype=datatype, data=rows)
        for name in ("INPUT0", "INPUT1")
    ]


# --- side by side ---


@pytest.mark.parametrize("method", ["infer", "infer_async"])
@pytest.mark.parametrize(
    ("arguments", "given", "keywords", "expected"),
    [
        (("vm-1", "local", "add_sub"), {}, {}, "COMPLETED"),
        (("vm-1", "local", "add_sub"), {}, {"vm_ip": "127.0.0.1", "allow_transient": True}, "COMPLETED"),
        (("vm-1", "local-transient", "add_sub"), {}, {"allow_transient": True}, "COMPLETED"),
        (("vm-1", "local-transient", "add_sub"), {}, {}, "FAILED"),
        (("vm-1", "local", "missing"), {}, {}, "FAILED"),
        (("vm-1", "nowhere", "add_sub"), {}, {"vm_ip": "127.0.0.1"}, "FAILED"),
        (("vm-1", "local", "add_sub"), {"data": (1, 2, 3, 4)}, {}, "FAILED"),
        (("vm-1", "local", "add_sub"), {"datatype": "INT64"}, {}, "FAILED"),
        (("vm-1", "local", "add_sub"), {"datatype": "NONE"}, {}, "FAILED"),
        (("vm-1", "local", "add_sub"), {"data": ((float("nan"),) * 4,)}, {}, "error"),
        (("vm-1", "local", "add_sub"), {"data": ((0,) * 40_000,)}, {}, "error"),
    ],
)
def test_an_inference_has_the_same_answer(both, method, arguments, given, keywords, expected):
    theirs, ours = both(method, *arguments, inputs_of(sdk, **given), **keywords)
    assert ours == theirs
    assert expected in (ours[0], ours[1].get("status"))


@pytest.mark.parametrize("method", ["infer", "infer_async"])
@pytest.mark.parametrize("code", ["TRITON_OVERLOADED", "TRITON_CIRCUIT_OPEN", "TRITON_MODEL_MISSING"])
def test_a_failure_of_triton_is_returned_and_not_repeated(manager, both, method, code):
    manager.fail_next(code, times=2)
    theirs, ours = both(method, "vm-1", "local", "add_sub", inputs_of(sdk))
    assert ours == theirs
    assert ours[1]["data"]["code"] == code
    assert manager.faults_left == ()


@pytest.mark.parametrize(
    "code", ["BACKPRESSURE_QUEUE_FULL", "BACKPRESSURE_TENANT_LIMIT_REACHED", "SYSTEM_SHUTDOWN"]
)
def test_a_refusal_is_returned(manager, both, code):
    manager.refuse_next(code, times=2)
    theirs, ours = both("infer", "vm-1", "local", "add_sub", inputs_of(sdk))
    assert ours == theirs
    assert (ours[0], ours[1]["code"]) == ("error", code)


def test_a_missing_role_is_returned(both):
    theirs, ours = both(
        "infer", "vm-1", "local", "add_sub", inputs_of(sdk), who={**WHO, "roles": ["management"]}
    )
    assert ours == theirs == ("error", {"message": "Forbidden: missing 'inference' role"})


@pytest.mark.parametrize("data", [[1.5, 2.5], np.array([1, 2]), np.array([1.5], np.float64)])
def test_raw_data_has_the_same_answer(both, data):
    theirs, ours = both("run_inference", "vm-1", "local", "ident", data)
    assert ours == theirs
    assert ours[1]["data"] == {"OUTPUT__0": [float(each) for each in data]}


def test_raw_data_of_more_dimensions_works_with_ours_alone(serve, both):
    theirs, ours = both("run_inference", "vm-1", "local", "echo", np.ones((1, 2)), input_name="x")
    assert theirs[1]["data"]["code"] == "TRITON_SHAPE_MISMATCH"
    assert ours[1]["data"] == {"x": [[1.0, 1.0]]}


def test_the_queues_have_the_same_form(both):
    theirs, ours = both("info_queue_stats")
    assert ours["type"] == theirs["type"] == "info_response"
    assert ours["payload"].keys() == theirs["payload"].keys()
    assert ours["payload"]["data"].keys() == theirs["payload"]["data"].keys()


def test_jobs_have_the_same_answers(both, manager):
    for theirs, ours in (
        both("management_creation", "create_vm", openstack={"name": "w"}),
        both("management_creation", action="delete_vm"),
        both("management_creation", "no_such_action"),
        both("management_creation", "create_vm", who={**WHO, "roles": ["inference"]}),
    ):
        if ours["payload"].get("status") is True:
            for answer in (ours, theirs):
                answer["payload"]["data"] = len(answer["payload"]["data"])  # each has a VM of its own
        ours.get("_auth", {}).pop("capability", None)
        theirs.get("_auth", {}).pop("capability", None)
        assert ours == theirs
    assert len(manager.cloud.vms) == 2


@pytest.mark.parametrize(
    "who", [{}, {"sub": "svc"}, {"roles": ["management"]}, {"token": "t", "tenant_id": "acme"}, WHO]
)
def test_the_manager_is_given_the_same_identity(both, who):
    theirs, ours = both("management_creation", "create_vm", openstack={"name": "w"}, who=who)
    assert ours.get("_auth") == theirs.get("_auth")
    assert ours["payload"].keys() == theirs["payload"].keys()


@pytest.mark.parametrize("method", ["infer", "info_queue_stats"])
def test_a_refused_token_is_the_same_error(serve, method):
    manager = serve(tokens=["another"])
    arguments = ("vm-1", "local", "echo", []) if method == "infer" else ()
    theirs = _Theirs(manager.uri, sdk.AuthContext("c-1", **WHO))
    with compat.TcmClient(manager.uri, compat.AuthContext("c-1", **WHO)) as ours:
        for client in (theirs, ours):
            with pytest.raises(RuntimeError, match="Auth failed"):
                getattr(client, method)(*arguments)


def test_a_manager_that_is_away_is_an_oserror_at_once(both):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"ws://127.0.0.1:{listener.getsockname()[1]}/ws"
    who = sdk.AuthContext("c-1")
    with compat.TcmClient(uri, who) as ours:
        for client in (sdk.TcmClient(uri, who), ours):
            with pytest.raises(OSError, match=r"."):
                client.infer("vm-1", "local", "echo", [])


def test_the_time_limit_is_a_timeout_error(manager):
    manager.delay_next(3600)
    client = compat.TcmClient(manager.uri, compat.AuthContext("c-1"), message_timeout_seconds=0.05)
    with client:
        client._client.open(timeout=GUARD)
        with pytest.raises(TimeoutError):
            client.infer("vm-1", "local", "add_sub", inputs_of(compat))


@BOTH
def test_the_synchronous_call_is_refused_within_an_event_loop(manager, module):
    client = module.TcmClient(manager.uri, module.AuthContext("c-1"))

    async def ask():
        client.infer("vm-1", "local", "add_sub", inputs_of(module))

    with pytest.raises(RuntimeError):
        asyncio.run(ask())


@pytest.mark.parametrize("method", ["info_queue_stats", "management_creation"])
def test_every_call_is_refused_within_an_event_loop(manager, method):
    async def ask():
        getattr(client, method)()

    said = rf"{method}\(\) would block .* asyncio.to_thread\(client.{method}"
    with (
        compat.TcmClient(manager.uri, compat.AuthContext("c-1")) as client,
        pytest.raises(RuntimeError, match=said),
    ):
        asyncio.run(ask())


@BOTH
@pytest.mark.parametrize(
    "fields",
    [
        {"name": 1, "shape": [1], "datatype": "FP32", "data": [1]},
        {"name": "x", "shape": ["a"], "datatype": "FP32", "data": [1]},
        {"name": "x", "shape": 3, "datatype": "FP32", "data": [1]},
        {"name": "x", "shape": [1], "datatype": None, "data": [1]},
    ],
)
def test_an_input_that_cannot_be_is_a_value_error(module, fields):
    with pytest.raises(ValueError):
        module.InferenceInput(**fields)


@BOTH
def test_inputs_and_answers_dump_their_fields(manager, module):
    given = module.InferenceInput(name="x", shape=(1, 2), datatype="FP32", data=[[1, 2]])
    assert given.model_dump() == {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}
    answer = module.TcmClient(manager.uri, module.AuthContext("c-1")).infer("vm-1", "local", "echo", [given])
    assert answer.model_dump() == {"type": answer.type, "payload": answer.payload}


# --- what ours does beyond ---


def test_threads_share_one_client_and_its_connections(manager):
    with compat.TcmClient(manager.uri, compat.AuthContext("c-1")) as client:
        answers = []

        def ask():
            for _ in range(3):
                answer = client.infer("vm-1", "local", "add_sub", inputs_of(compat))
                answers.append(answer.payload["status"])

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GUARD)
    assert answers == ["COMPLETED"] * 18
    assert manager.stats().connections <= 6  # each thread has one call at a time


def test_arrays_are_data_too(manager):
    data = np.ones((1, 4), np.float32)
    given = [compat.InferenceInput(name, [1, 4], "FP32", data) for name in ("INPUT0", "INPUT1")]
    with compat.TcmClient(manager.uri, compat.AuthContext("c-1")) as client:
        answer = client.infer("vm-1", "local", "add_sub", given)
    assert answer.payload["data"]["SUM"] == [[2.0] * 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("vm-1", "local", "add_sub", [{"name": "x"}]), "must be an InferenceInput"),
        ((None, "local", "add_sub", []), "vm_id must be a str"),
        (
            ("vm-1", "local", "add_sub", [compat.InferenceInput("x", [1], "FP32", object())]),
            "no form in JSON",
        ),
    ],
)
def test_what_cannot_be_sent_is_named(manager, arguments, said):
    client = compat.TcmClient(manager.uri, compat.AuthContext("c-1"))
    with client, pytest.raises(InputError, match=said):
        client.infer(*arguments)


def test_a_draining_manager_is_an_answer_on_new_connections_too(manager):
    with compat.TcmClient(manager.uri, compat.AuthContext("c-1")) as client:
        manager.shut_down()
        for _ in range(2):
            answer = client.infer("vm-1", "local", "add_sub", inputs_of(compat))
            assert (answer.type, answer.payload["code"]) == ("error", "SYSTEM_SHUTDOWN")


def test_a_client_that_nobody_closes_is_closed_without_a_warning(manager):
    client = compat.TcmClient(manager.uri, compat.AuthContext("c-1"))
    client.info_queue_stats()
    del client
    gc.collect()
    wait_until(lambda: manager.stats().connected == 0, "its connection is closed")


def test_a_client_is_collected_without_waiting_for_a_lock(manager):
    client = compat.TcmClient(manager.uri, compat.AuthContext("c-1"))
    client.info_queue_stats()
    lock, held = client._client._core.lock, [client]
    del client
    assert collected_while_held(held, lock)
    wait_until(lambda: manager.stats().connected == 0, "its connection is closed")


def test_a_copy_works_after_pickling(manager):
    client = compat.TcmClient(manager.uri, compat.AuthContext("c-1"), message_timeout_seconds=7.0)
    with client, pickle.loads(pickle.dumps(client)) as other:
        assert other.info_queue_stats()["type"] == "info_response"
        assert other._message_timeout == 7.0


def names_of_tcm_client():
    from tcm_client import model_analyze

    own = {
        name
        for module in (sdk, model_analyze)
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
    }
    return sorted(own | {"JsonDict"})


@pytest.mark.parametrize("name", names_of_tcm_client())
def test_every_name_of_tcm_client_is_here_or_says_what_takes_its_place(name):
    if name in compat.__all__:
        assert getattr(compat, name).__name__ == name
    elif name.startswith("_"):
        assert not hasattr(compat, name)
    else:
        with pytest.raises(ImportError, match=rf"no {name}: .*(TcmClient|infer|AuthContext|models|dict)"):
            exec(f"from tcm_sync.compat import {name}", {})
    with pytest.raises(AttributeError):
        compat.no_such_name  # noqa: B018


# --- the main client with what is tcm-client's ---


@BOTH
def test_the_main_client_takes_their_identity_and_their_inputs(manager, module):
    who = module.AuthContext("c-1", **WHO)
    with TcmClient(manager.uri, who, route=manager.route) as client:
        assert client.infer("add_sub", inputs_of(module))["SUM"].tolist() == [[2.0, 4.0, 6.0, 8.0]]
        assert client.infer_chunked("add_sub", inputs_of(module), rows=1)["SUM"].shape == (1, 4)
    (uuid,) = manager.stats().uuids
    assert uuid.startswith("c-1")
    assert copy.copy(client)._core.settings.auth == OurAuthContext("c-1", **WHO)


def test_their_roles_are_held_to(serve):
    manager = serve(tokens=["opaque"])
    client = TcmClient(manager.uri, sdk.AuthContext("c-1", token="wrong"), route=manager.route)
    with client, pytest.raises(AuthenticationError):
        client.queue_stats()
    who = sdk.AuthContext("c-1", **{**WHO, "roles": ["management"]})
    with TcmClient(manager.uri, who, route=manager.route) as client, pytest.raises(PermissionDeniedError):
        client.infer("echo", {"x": [1.0]})


@pytest.mark.parametrize("auth", ["token", {"token": "t"}, sdk.AuthContext, OurAuthContext, object()])
def test_what_is_no_identity_is_refused(auth):
    with pytest.raises(ConfigError, match="auth must be a AuthContext"):
        TcmClient("ws://127.0.0.1:1/ws", auth)


def test_one_input_alone_belongs_in_a_list_and_tritonclients_is_named(manager, connect):
    client = connect(manager)
    with pytest.raises(InputError, match="put it in a list"):
        client.infer("echo", inputs_of(sdk)[0])
    with pytest.raises(InputError, match=re.escape("pass {name: array}")):
        client.infer("echo", [InferInput("x", [1], "FP32")])
    with pytest.raises(InputError, match="tritonclient: pass the array itself"):
        client.infer("echo", {"x": InferInput("x", [1], "FP32")})
    theirs, ours = InferInput("x", [1], "FP32"), inputs_of(compat)[0]
    with compat.TcmClient(manager.uri, compat.AuthContext("c-1")) as client:
        with pytest.raises(InputError, match="tritonclient: pass an InferenceInput"):
            client.infer("vm-1", "local", "echo", [theirs])
        for one in (theirs, ours):
            with pytest.raises(InputError, match=f"put the {type(one).__name__} in a list"):
                client.infer("vm-1", "local", "echo", one)


def test_shutting_down_is_an_error_of_the_main_client(manager, connect):
    manager.shut_down()
    with pytest.raises(ShuttingDownError):
        connect(manager, retry=None).infer("echo", {"x": [1.0]})
