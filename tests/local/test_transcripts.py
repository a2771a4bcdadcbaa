"""What a real manager was seen to say, `LocalManager` says too: the recordings are played against it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tcm_sync.local import ModelFailure, core

from .raw import add_sub_onnx, identity, identity_onnx, wait_until

CASES = {
    case["case"]: case
    for case in map(
        json.loads,
        (Path(__file__).parent.parent / "wire" / "transcripts.jsonl")
        .read_text(encoding="utf-8")
        .splitlines(),
    )
}


@dataclass(frozen=True)
class Setup:
    """How the manager of a case is made, and what happened on it before the recording begins."""

    settings: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    before: Any = None  # called with (manager, dial)


def failing(*failures):
    """Make a model that raises one failure after another, the last one for ever."""
    left = list(failures)

    def model(arrays):
        raise left.pop(0) if len(left) > 1 else left[0]

    return model


def c1_is_held(manager, dial):
    dial(manager, "c-1")


def two_failed_auths(manager, dial):
    for payload in ({}, {"token": "a.b.c"}):
        raw = dial(manager)
        assert raw.auth("c-2", **payload)["payload"]["message"].startswith("Invalid token")
        raw.close()


def two_users_before(manager, dial):
    for uuid in ("c-194", "c-195"):
        raw = dial(manager, uuid)
        raw.infer("checksum", {"name": "IMAGE", "shape": [1], "datatype": "FP32", "data": [1]})
        raw.close()


CONNECTION_REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
IN_THE_CLIENT = "[TritonThread] TRITON_INFERENCE_FAILED: model={!r} retriable=False reason={}"
NETWORK = ModelFailure("TRITON_NETWORK", IN_THE_CLIENT.format("add_sub", CONNECTION_REFUSED))
TIMEOUT = ModelFailure("TRITON_TIMEOUT", IN_THE_CLIENT.format("slow", "timed out"))
CIRCUIT = ModelFailure("TRITON_CIRCUIT_OPEN", "CIRCUIT_OPEN: retry_after=5s", retry_after_seconds=5)

STRICT = {"tokens": {"<jwt roles=[inference]>": ["inference"]}}
ONE_WORKER = {"workers": 1}
PROD_20 = {"messages_per_second": 20}

SETUPS = {
    "auth.duplicate_uuid": Setup(before=c1_is_held),
    "auth.strict.ok": Setup(STRICT),
    "auth.strict.missing": Setup(STRICT),
    "auth.strict.too_many": Setup({**STRICT, "auth_failures_per_minute": 2}, before=two_failed_auths),
    "inference.413": Setup({"max_payload_bytes": 2**20}),
    "inference.inputs_missing": Setup({"container_id": "ctr-1"}),
    "inference.triton_down": Setup({"container_id": "ctr-1"}, {"add_sub": failing(CONNECTION_REFUSED)}),
    "inference.triton_down.retriable": Setup(
        {"container_id": "ctr-1"}, {"add_sub": failing(NETWORK, NETWORK, CIRCUIT)}
    ),
    "inference.timeout": Setup({"container_id": "ctr-1"}, {"slow": failing(TimeoutError("timed out"))}),
    "inference.timeout.retriable": Setup({"container_id": "ctr-1"}, {"slow": failing(TIMEOUT)}),
    "limit.messages_per_second": Setup({"messages_per_second": 3}),
    "limit.tenant": Setup({"tenant_messages_per_second": 2}),
    "limit.prod_20": Setup(PROD_20),
    "limit.prod_20.info": Setup(PROD_20, before=two_users_before),
    "limit.prod_20.in_flight": Setup({"messages_per_second": 2}),  # 20, of which 18 have been used
    # The six must come within one tick: this one lasts until all are there.
    "backpressure.queue_full": Setup({"tick": 0.5, "queue_size": 1, "executor_queue_size": 1, "workers": 1}),
    "shutdown.idle": Setup({"linger": 60}),
    "shutdown.inference_sent_while_draining": Setup({"linger": 60}),
    "close.http_not_cancelled": Setup(ONE_WORKER),
    "close.http_not_cancelled.dropped": Setup(ONE_WORKER),
    "close.queued_not_cancelled": Setup(ONE_WORKER),
}
PLAIN = """
    auth.legacy auth.capability.unsupported auth.not_first auth.bad_json auth.missing_uuid
    auth.payload_not_object envelope.uuid_mismatch envelope.bad_json_later envelope.unknown_type
    envelope.missing_payload envelope.too_large info.queue_stats info.unknown_action inference.sdk_shape
    inference.manager_shape inference.flat_data inference.vm_ip_missing inference.container_id_missing
    inference.unknown_container inference.model_missing inference.bad_protocol inference.missing_tensor
    inference.wrong_datatype inference.not_finite inference.vm_ip_derived inference.vm_ip_wrong
    inference.output.FP16 inference.output.FP64 inference.output.BOOL inference.output.BYTES
    inference.output.BYTES.single inference.output.UINT64 inference.output.INT64 inference.output.UINT8
    authz.inference authz.management authz.no_roles authz.no_client_block alert correlation.out_of_order
    correlation.stale_after_reconnect shutdown.inference_running_3s tensors.empty_and_scalar.scalar
    tensors.empty_and_scalar.scalar_shape1 tensors.empty_and_scalar.scalar_111 tensors.empty_and_scalar.0_4
    tensors.empty_and_scalar.1_0_4 tensors.empty_and_scalar.1_4_0 tensors.empty_and_scalar.1_0
    tensors.empty_and_scalar.0_4_add_sub tensors.empty_and_scalar.bytes_1_0_1
    tensors.empty_and_scalar.bytes_scalar tensors.bytes_trailing_nul tensors.bytes_trailing_nul.inner
    tensors.bytes_mixed_number tensors.float_out_of_range.1e39 tensors.float_out_of_range.minus_1e39
    tensors.float_out_of_range.1e400 tensors.float_out_of_range.f64_1e400 tensors.float_out_of_range.f16_1e5
    tensors.float_out_of_range.i8_300 tensors.float_out_of_range.i8_minus_1_u8
    tensors.float_out_of_range.i32_1.5 tensors.float_out_of_range.u64_max tensors.float_out_of_range.u64_over
""".split()  # noqa: SIM905 - one name a line would be sixty lines
PLAYED = {**{name: Setup() for name in PLAIN}, **SETUPS}
PLAYED_OVER_HTTP = ["http/health", "http/ready"]

NO_SHM = "it grants no shared memory"
NO_STREAMS = "it has no streams"
NO_PIPELINES = "it has no pipelines"
NO_MANAGEMENT = "it does no management jobs"
NOT_PLAYED = {
    "auth.capability": NO_SHM,
    "auth.strict.expired": "its tokens do not expire",
    "inference.no_session": "its one container always has a session",
    "backpressure.insufficient_budget": "its quantum pays for at least one inference a tick",
    "limit.prod_20.per_uuid": "a count without frames; test_limits.py has the rule",
    "limit.prod_20.paced": "a count without frames; test_limits.py has the rule",
    "shutdown.queued": "the recording lacks the reply to the request that runs; test_drain.py has it all",
    "close.http_not_cancelled.registered": "it uses two containers, and there is only one here",
    "http.ready_during_shutdown": "polled, not exchanged; test_drain.py has the rule",
    "http.ready_during_shutdown.busy": NO_MANAGEMENT,
    "http.ready_during_shutdown.busy_real_readiness": NO_MANAGEMENT,
    "pipeline.ok": NO_PIPELINES,
    "pipeline.no_session": NO_PIPELINES,
    "shutdown.new_socket": NO_MANAGEMENT + "; test_drain.py has the rule",
    "shutdown.creation_just_before": NO_MANAGEMENT,
    "shutdown.stream_running": NO_STREAMS,
    "close.grpc_stream_aborted": NO_STREAMS,
    "close.grpc_stream_aborted.longer": NO_STREAMS,
    "close.grpc_stream_idle": NO_STREAMS,
    "close.then_new_stream": NO_STREAMS,
    **{name: NO_SHM for name in CASES if name.startswith("shm.")},
    **{name: NO_STREAMS for name in CASES if name.startswith("stream.")},
    **{name: NO_MANAGEMENT for name in CASES if name.startswith(("management.", "shutdown.management_"))},
}


def test_every_recording_is_played_or_listed_with_the_reason():
    assert not (PLAYED.keys() | {*PLAYED_OVER_HTTP}) & NOT_PLAYED.keys()
    assert {*PLAYED, *PLAYED_OVER_HTTP, *NOT_PLAYED} == CASES.keys()


@pytest.fixture(scope="module")
def onnx_models():
    return {
        "add_sub": add_sub_onnx(),
        "ident_f32": identity_onnx(TensorProto.FLOAT),
        "ident_s": identity_onnx(TensorProto.STRING),
        "ident_u8": identity_onnx(TensorProto.UINT8),
    }


@pytest.fixture
def player(serve, dial, gated, onnx_models, monkeypatch):
    # A slow machine must not be too slow for what is sent while draining.
    monkeypatch.setattr(core, "SCHEDULER_STAYS", 60.0)
    callables = {f"ident_{kind}": identity for kind in ("f16", "f64", "b", "u64", "i64", "i8", "i32")}
    callables["checksum"] = lambda arrays: {"SUM": np.sum(arrays["IMAGE"], keepdims=True)}
    with contextlib.ExitStack() as stack:

        def play(name):
            setup = PLAYED[name]
            models = {**callables, **onnx_models, "slow": gated, **setup.models}
            manager = serve(models, **{"container_id": "ctr-9", **setup.settings})
            if setup.before is not None:
                setup.before(manager, dial)
                wait_until(lambda: manager.stats().connected == (name == "auth.duplicate_uuid"), "they left")
            player = Player(manager, dial, gated)
            stack.callback(player.end)
            player.play(CASES[name]["exchange"])
            return manager

        yield play


@pytest.mark.parametrize("name", PLAYED)
def test_recording(player, name):
    manager = player(name)
    if name == "shutdown.inference_sent_while_draining":
        wait_until(lambda: manager.stats().executions == {"slow": 1}, "the refused work runs")
    if name == "close.queued_not_cancelled":
        assert manager.stats().executions == {"slow": 4, "add_sub": 1}


@pytest.mark.parametrize("name", PLAYED_OVER_HTTP)
def test_recording_over_http(serve, name):
    manager = serve()
    connection = http.client.HTTPConnection("127.0.0.1", manager.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/" + name.removeprefix("http/"))
        response = connection.getresponse()
        body = json.load(response)
    assert response.status == CASES[name]["status"]
    assert response.getheader("Content-Type") == "application/json"
    assert body["status"] == CASES[name]["body"]["status"]


class Player:
    """Does what the client of a recording did, and expects what the server of it said."""

    def __init__(self, manager, dial, gated) -> None:
        self.manager = manager
        self.dial = dial
        self.gated = gated
        self.sockets: dict[str, Any] = {}
        self.stopping: threading.Thread | None = None
        self.last: list[dict[str, Any]] = []  # the latest message and its answer

    def end(self) -> None:
        self.gated.open_all()
        self.manager.kill()
        if self.stopping is not None:
            self.stopping.join()

    def play(self, exchange) -> None:
        assert exchange
        self.exchange = exchange
        for entry in exchange:
            where = entry.get("socket", "A")
            kind = next(key for key in entry if key in STEPS)
            STEPS[kind](self, where, entry[kind])
            self.last = [*self.last[-1:], entry]

    def socket(self, where):
        if where not in self.sockets:
            self.sockets[where] = self.dial(self.manager)
        return self.sockets[where]

    def client(self, where, message) -> None:
        if message == "(drops the socket, connects again)":
            self.sockets.pop(where).drop()
            wait_until(lambda: not self.manager.stats().connected, "the drop is noticed")
            return
        if message == "(an info message of 66,0xx bytes)":
            message = {"uuid": self.uuid, "type": "info", "payload": {"action": "x" * 66_000}}
        elif message == "(inference of model slow, 1 s)":
            message = self.slow(1.0)
        elif isinstance(message, str):
            message = message.removeprefix("(verbatim) ")
            assert not message.startswith("("), message
        else:
            self.uuid = message.get("uuid")
        self.socket(where).send(message)

    def slow(self, seconds):
        inputs = [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [[seconds]]}]
        request = {"protocol": "http", "inputs": inputs, "allow_transient": True}
        body = {"vm_ip": "127.0.0.1", "container_id": "ctr-9", "model_name": "slow", "request": request}
        return {"uuid": self.uuid, "type": "inference", "payload": body}

    def server(self, where, expected) -> None:
        assert isinstance(expected, dict), expected
        if expected["type"] == "alert":
            self.manager.alert(expected["message"], expected["error_type"])
        payload = expected.get("payload", {})
        if payload.get("model_name") == "slow" and payload["status"] == "COMPLETED":
            self.gated.open(payload["data"]["y"][0][0])
        elif where == "B" and expected["type"] == "inference":
            self.expect_b_to_wait()
        text = self.socket(where).receive_text()
        assert TIMES.sub("", text) == TIMES.sub("", json.dumps(expected))

    def expect_b_to_wait(self) -> None:
        """Closing A has cancelled nothing: its requests hold the one worker."""
        of_a = sum("slow" in json.dumps(entry.get("client")) for entry in self.exchange)
        wait_until(lambda: self.manager.stats().running == of_a + 1, "B's request has come")
        assert self.manager.stats().executions == {"slow": 1}
        self.gated.open_all()

    def server_close(self, where, code) -> None:
        assert self.socket(where).wait_for_close() == code

    def sigterm(self, where, how) -> None:
        if any("slow" in json.dumps(entry) for entry in self.last):
            wait_until(lambda: self.manager.stats().executions, "the request runs")
        self.stopping = threading.Thread(target=self.manager.stop)
        self.stopping.start()
        wait_until(lambda: self.manager._server.core.draining, "it drains")

    def repeat(self, where, how) -> None:
        times = int(re.search(r"(\d+) times more", how)[1])
        sent, answered = self.last
        for _ in range(times):
            self.client(where, sent["client"])
            self.server(where, answered["server"])

    def client_does(self, where, what) -> None:
        raw = self.sockets.pop(where)
        wait_until(lambda: self.manager.stats().executions == {"slow": 1}, "the request runs")
        raw.drop() if "drops" in what else raw.close()
        wait_until(lambda: not self.manager.stats().connected, "the close is noticed")

    def ignore(self, where, what) -> None:
        """What was seen beside the wire."""


TIMES = re.compile(r'(?<="timestamp": )[\d.]+')
STEPS = {
    "client": Player.client,
    "server": Player.server,
    "server_close": Player.server_close,
    "manager": Player.sigterm,
    "exchange_repeated": Player.repeat,
    "client_does": Player.client_does,
    "seconds_since_the_limit": Player.ignore,
    "triton_executions_of_slow": Player.ignore,
    "stand_in_openstack_and_docker": Player.ignore,
}
