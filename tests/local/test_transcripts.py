"""What a real manager was seen to say, `LocalManager` says too: the recordings are played against it.

The client's side is played as it is; what the manager says is compared with the recording, but for what no
two managers have in common: times, ids of the cloud, and the seconds after which a stream is given up.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tcm_sync.local import ModelFailure, cloud, core
from tcm_sync.local.limits import TokenBucket

from ..helpers.raw_connection import tensor
from ..helpers.served_models import add_sub_onnx, identity, identity_onnx
from ..helpers.waiting import GUARD, wait_until
from .recorded_setups import (
    UNREACHABLE,
    HeldOnce,
    KeyServer,
    claims_of,
    slow_runs_meanwhile,
    the_model_has_ended,
    two_hang_first,
)
from .request_player import Player, http_get, use_segment

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
    #: Files of shared memory: the number that each has 192 times, and which container has used it before.
    segments: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    address: str | None = None  # of all machines
    words: int | None = None  # that the streams say before the test lets them continue
    go_on_before: str = ""  # the chunk that comes once they may go on
    pace: Any = None  # called with (player, number) before an inference is sent
    key_server: KeyServer | None = None
    one_worker: bool = False  # which A's request holds, so that B's waits
    stays: float = (
        60.0  # SCHEDULER_DRAIN_SECONDS: a slow machine must not be too slow for what is sent while draining
    )


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


def use_before(manager, dial, segments, what):
    for label, (value, container_id) in what.items():
        segments.write(label, [value] * 192)
        if container_id is not None:
            raw = dial(manager, "before")
            use_segment(raw, segments, label, container_id)
            raw.close()
            wait_until(lambda: not manager.stats().connected, "it left")


def ctr_9_is_registered_for_streams(manager, dial):
    manager.cloud.create_server("ctr-9", "llm_end", grpc=True)


def one_connection_before(manager, dial):
    dial(manager, "before").close()


def five_users_before(manager, dial):
    for number in range(5):
        raw = dial(manager, f"before-{number}")
        raw.infer("echo", tensor([1.0]))
        raw.close()


def ctr_2_does_not_answer(manager, dial):
    manager.cloud.lose_server("ctr-2")


def two_workers_hang(manager, dial):
    """And the sockets of one of them, and an idle one, are there."""
    hanging = [dial(manager, uuid) for uuid in ("c-512", "c-513")]
    for number, raw in enumerate(hanging, 1):
        raw.ask("add_sub", tensor([[1.0]], name="INPUT0"), tensor([[1.0]], name="INPUT1"))
        wait_until(lambda number=number: manager.stats().running == number, "it runs")
    wait_until(lambda: manager.stats().hung == 2, "both hang")
    hanging[0].close()
    return {"hung": hanging[1], "idle": dial(manager, "c-516")}


def with_claims(name):
    """Make the setting of the tokens of a case, which it describes by their claims."""
    auths = [entry["client"] for entry in CASES[name]["exchange"] if "client" in entry]
    tokens = [auth["payload"]["token"] for auth in auths if auth["type"] == "auth"]
    return {"tokens": {token: claims_of(token) for token in tokens}}


def with_key_server(err=None, **settings):
    """Make the setup of a manager with a key server, which is there or not."""
    key_server = KeyServer()
    key_server.refusal = None if err is None else UNREACHABLE.format(err)
    return Setup({"tokens": key_server, **settings}, key_server=key_server)


def two_users_before(manager, dial):
    for uuid in ("c-194", "c-195"):
        raw = dial(manager, uuid)
        raw.infer("checksum", {"name": "IMAGE", "shape": [1], "datatype": "FP32", "data": [1]})
        raw.close()


def two_had_jobs_done_before(manager, dial):
    for uuid in ("c-402", "c-403"):
        raw = dial(manager, uuid)
        raw.ask_job("create_vm", openstack={"name": uuid})
        assert raw.receive_job()[0]
        raw.close()


def no_server_is_registered(manager, dial):
    manager.cloud.delete_server("ctr-1")


def there_is_a_machine(manager, dial):
    raw = dial(manager, "before")
    raw.do_job("create_vm", openstack={"name": "w1"})
    raw.close()


def there_are_a_machine_and_a_container(manager, dial):
    raw = dial(manager, "before")
    _, vm_id = raw.do_job("create_vm", openstack={"name": "w1"})
    raw.do_job("create_container", vm_id=vm_id)
    raw.close()


def a_model_is_deployed(manager, dial):
    raw = dial(manager, "before")
    raw.do_job("creation", openstack={"name": "w1"})
    raw.close()


def the_executor_is_full(manager, dial):
    """It stays so until a reply is due: what comes before waits, however slow the machine is."""
    raw = dial(manager, "before")
    raw.ask("slow", tensor([1.0]))
    wait_until(lambda: manager.stats().running, "it runs")
    raw.close()


CONNECTION_REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
IN_THE_CLIENT = "[TritonThread] TRITON_INFERENCE_FAILED: model={!r} retriable=False reason={}"
NETWORK = ModelFailure("TRITON_NETWORK", IN_THE_CLIENT.format("add_sub", CONNECTION_REFUSED))
TIMEOUT = ModelFailure("TRITON_TIMEOUT", IN_THE_CLIENT.format("slow", "timed out"))
CIRCUIT = ModelFailure("TRITON_CIRCUIT_OPEN", "CIRCUIT_OPEN: retry_after=5s", retry_after_seconds=5)

STRICT = {"tokens": {"<jwt roles=[inference]>": ["inference"]}}
ONE_WORKER = {"workers": 1}
ONE_MANAGEMENT_WORKER = {"management_workers": 1}
ENDED_AT_ONCE = {"stream_timeout": 0}  # so FAILED is due as soon as all chunks have come
NO_SESSION = {"transient_container_id": "ctr-nosrv"}
CTR_1_NOT_REGISTERED = {"container_id": "ctr-0", "transient_container_id": "ctr-1"}
KNOWN_FAULTS = {"known_faults": True}
LINGER = {"linger": 60}
PROD_20 = {"messages_per_second": 20}

SETUPS = {
    "auth.duplicate_uuid": Setup(before=c1_is_held),
    "auth.strict.ok": Setup(STRICT),
    "auth.strict.missing": Setup(STRICT),
    "auth.strict.claims": Setup(with_claims("auth.strict.claims")),
    "auth.jwks_outage": with_key_server(auth_failures_per_minute=2),
    "auth.jwks_asked_each_time": with_key_server(),
    "auth.jwks_hangs": with_key_server("timed out"),
    "auth.strict.too_many": Setup({**STRICT, "auth_failures_per_minute": 2}, before=two_failed_auths),
    "info.queue_stats_while_job_runs": Setup(ONE_MANAGEMENT_WORKER),
    "info.queue_stats_while_inference_runs": Setup(before=two_had_jobs_done_before),
    "inference.413": Setup({"max_payload_bytes": 2**20}),
    "inference.no_session": Setup(NO_SESSION),
    "info.queue_alias": Setup(before=five_users_before),
    "inference.batch_over_max": Setup({"max_batch_sizes": {"add_sub": 64}}),
    "inference.bare_int_dims": Setup(CTR_1_NOT_REGISTERED),
    "inference.type_names": Setup(CTR_1_NOT_REGISTERED),
    "inference.decoupled_over_http": Setup(CTR_1_NOT_REGISTERED),
    "inference.registered_grpc": Setup(before=ctr_9_is_registered_for_streams),
    "inference.registered_http_workers": Setup(KNOWN_FAULTS, pace=slow_runs_meanwhile),
    "inference.registered_http_hangs": Setup(
        KNOWN_FAULTS, models={"add_sub": HeldOnce()}, before=two_users_before, pace=two_hang_first
    ),
    "inference.triton_down": Setup(models={"add_sub": failing(CONNECTION_REFUSED)}),
    "inference.triton_down.retriable": Setup(models={"add_sub": failing(NETWORK, NETWORK, CIRCUIT)}),
    "inference.timeout": Setup(models={"slow": failing(TimeoutError("timed out"))}),
    "inference.timeout.retriable": Setup(models={"slow": failing(TIMEOUT)}),
    "pipeline.no_session": Setup(NO_SESSION),
    "stream.idle_end": Setup(ENDED_AT_ONCE),
    "stream.idle_end.no_chunks": Setup(ENDED_AT_ONCE),
    "stream.timeout.total": Setup(ENDED_AT_ONCE),
    "stream.registered_two_at_once": Setup(
        before=ctr_9_is_registered_for_streams, words=8, go_on_before="a8"
    ),
    "stream.registered_closed_meanwhile": Setup(
        before=ctr_9_is_registered_for_streams, words=1, pace=the_model_has_ended
    ),
    "http.metrics": Setup({"container_id": "ctr-1"}, before=one_connection_before),
    "http.ready_registered_unhealthy": Setup(
        {"container_id": "ctr-2", "forget_after": 31.0}, before=ctr_2_does_not_answer
    ),
    "limit.messages_per_second": Setup({"messages_per_second": 3}),
    "limit.tenant": Setup({"tenant_messages_per_second": 2}),
    "limit.tenant.across_uuids": Setup({"tenant_messages_per_second": 3}),
    "limit.tenant.strict": Setup({"tenant_messages_per_second": 2, **with_claims("limit.tenant.strict")}),
    "limit.prod_20": Setup(PROD_20),
    "limit.prod_20.info": Setup(PROD_20, before=two_users_before),
    "limit.prod_20.in_flight": Setup({"messages_per_second": 2}),  # 20, of which 18 have been used
    "backpressure.queue_full": Setup(
        {"queue_size": 1, "executor_queue_size": 1, "workers": 1}, before=the_executor_is_full
    ),
    "shutdown.hung_worker": Setup(KNOWN_FAULTS, models={"add_sub": HeldOnce()}, before=two_workers_hang),
    "management.creation_http_client_timeout": Setup(KNOWN_FAULTS),
    "management.creation_decoupled": Setup(KNOWN_FAULTS),
    "management.deletion": Setup(before=a_model_is_deployed),
    "management.deletion_by_vm_ip_ambiguous": Setup(before=there_is_a_machine, address="127.0.0.1"),
    "management.delete_vm_top_level_id": Setup(before=there_is_a_machine),
    "management.delete_server_ids": Setup(before=there_are_a_machine_and_a_container),
    "management.delete_container_ids": Setup(before=there_are_a_machine_and_a_container),
    "management.create_container_never_answered": Setup(KNOWN_FAULTS, before=there_is_a_machine),
    "management.delete_vm_leaves_server": Setup(before=no_server_is_registered),
    "management.empty_payloads": Setup(KNOWN_FAULTS),
    "shutdown.idle": Setup(LINGER),
    "shutdown.inference_sent_while_draining": Setup(LINGER),
    "shutdown.management_ran": Setup(LINGER),
    "shutdown.management_ran.1s": Setup(LINGER),
    "shutdown.management_ran.creation": Setup(LINGER),
    "shutdown.management_late": Setup(stays=0.0),
    "shutdown.management_waiting_in_executor": Setup(ONE_MANAGEMENT_WORKER),
    "shutdown.management_nacked": Setup({**ONE_MANAGEMENT_WORKER, "management_executor_queue_size": 1}),
    "shutdown.stream_running": Setup(ENDED_AT_ONCE, words=1),
    "close.http_not_cancelled": Setup(ONE_WORKER, one_worker=True),
    "close.http_not_cancelled.registered": Setup(ONE_WORKER, one_worker=True),
    "close.http_not_cancelled.dropped": Setup(ONE_WORKER, one_worker=True),
    "close.queued_not_cancelled": Setup(ONE_WORKER, one_worker=True),
    "close.grpc_stream_aborted": Setup(ONE_WORKER, one_worker=True, words=3),
    "close.grpc_stream_aborted.longer": Setup(ONE_WORKER, one_worker=True, words=3),
    "close.grpc_stream_idle": Setup(ONE_WORKER, one_worker=True),
    "close.then_new_stream": Setup(ONE_WORKER, one_worker=True),
    "shm.ok": Setup(segments={"rec1": (1, None)}),
    "shm.again_other_size": Setup(segments={"rec1": (1, "ctr-9")}),
    "shm.offset": Setup(segments={"rec2": (1, None)}),
    "shm.grpc": Setup(segments={"rec1": (1, "ctr-9")}),
    "shm.mixed": Setup(segments={"rec3": (1, None)}),
    "shm.transient_further_uses": Setup(segments={"recA": (1, "ctr-9")}),
    "shm.two_routes": Setup(segments={"recA": (1, "ctr-9"), "recB": (3, "ctr-1")}),
    "shm.unlinked_and_remade": Setup(segments={"recD": (3, "ctr-1")}),
    "shm.registered_after_manager_restart": Setup(segments={"recG": (1, "ctr-1"), "recU": (1, None)}),
    "shm.registered_other_size": Setup(segments={"recX": (1, None)}),
}
PLAIN = """
    auth.legacy auth.capability.unsupported auth.not_first auth.bad_json auth.missing_uuid
    auth.payload_not_object envelope.uuid_mismatch envelope.bad_json_later envelope.unknown_type
    envelope.missing_payload envelope.too_large info.queue_stats info.unknown_action inference.sdk_shape
    inference.manager_shape inference.flat_data inference.vm_ip_missing inference.container_id_missing
    inference.inputs_missing inference.unknown_container inference.model_missing inference.bad_protocol
    inference.missing_tensor inference.wrong_datatype inference.not_finite inference.vm_ip_derived
    inference.vm_ip_wrong
    inference.output.FP16 inference.output.FP64 inference.output.BOOL inference.output.BYTES
    inference.output.BYTES.single inference.output.UINT64 inference.output.INT64 inference.output.UINT8
    pipeline.ok stream.ok stream.wrong_output stream.model_missing stream.end.empty_tensor
    stream.end.no_output stream.end.not_utf8 stream.end.empty_first stream.end.error stream.registered_http
    management.creation management.creation.failed management.create_vm
    sdk.management_creation stream.registered_decoupled
    management.deletion_of_what_is_gone management.deletion_partial management.deletion_by_vm_ip
    management.delete_vm_nested_id management.deletion.missing management.unknown_action
    shutdown.management_in_flight shutdown.new_socket
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
    inference.pipeline_null inference.pipeline_and_request inference.top_level_inputs
    sdk.auth sdk.info_queue_stats sdk.inference_http sdk.inference_pipeline sdk.infer
    sdk.run_inference auth.capability shm.no_such_key shm.transient_second_use shm.registered_three_uses
    shm.one_segment_two_inputs shm.unlinked_and_remade.transient shm.file_after_manager_killed shm.lru_256
""".split()  # noqa: SIM905 - one name a line would be sixty lines
PLAYED = {**{name: Setup() for name in PLAIN}, **SETUPS}
PLAYED_OVER_HTTP = ["http/health", "http/ready", "http.ready_ok"]

COUNTED = "counts, no exchange; "
NOT_PLAYED = {
    "auth.strict.expired": "its tokens do not expire",
    "backpressure.insufficient_budget": "its quantum pays for at least one inference a tick",
    "limit.tenant.budget": COUNTED + "test_limits.py has the rule",
    "limit.prod_20.per_uuid": COUNTED + "test_limits.py has the rule",
    "limit.prod_20.paced": COUNTED + "test_limits.py has the rule",
    "shutdown.queued": "the recording lacks the reply to the request that runs; test_drain.py has it all",
    "shutdown.management_race": COUNTED + "test_drain.py has the rule",
    "shutdown.creation_just_before": "a race that is never lost here: what did not run is never refused so",
    "http.ready_during_shutdown": "polled, not exchanged; test_drain.py has the rule",
    "http.ready_during_shutdown.busy": "polled, not exchanged; test_drain.py has the rule",
    "http.ready_during_shutdown.busy_real_readiness": "the same; and it registers no other servers",
    "shm.transient_reuse_40": COUNTED + "shm.transient_further_uses is one",
    "shm.pinned": "not exchanged; test_shared_memory_served.py has what is mapped",
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
def player(serve, dial, gated, talker, steps, segments, onnx_models, one_second, monkeypatch):
    callables = {f"ident_{kind}": identity for kind in ("f16", "f64", "b", "u64", "i64", "i8", "i32")}
    callables["checksum"] = lambda arrays: {"SUM": [[np.sum(arrays["IMAGE"])]]}
    clock = SimpleNamespace(now=0.0)  # what the recording says, where it says it
    with contextlib.ExitStack() as stack:

        def play(name):
            setup = PLAYED[name]
            monkeypatch.setattr(core, "SCHEDULER_DRAIN_SECONDS", setup.stays)
            if setup.address is not None:
                monkeypatch.setattr(cloud, "_address", lambda number: setup.address)
            talker.hold_before = setup.words
            models = {**onnx_models, **callables, "slow": gated, "llm_end": talker, **setup.models}
            containers = {"container_id": "ctr-1", "transient_container_id": "ctr-9"}
            manager = serve(models, **{**containers, **setup.settings})
            stack.callback(manager.kill)  # also if it hangs
            if name.startswith("limit.tenant"):
                monkeypatch.setattr(core, "TokenBucket", partial(TokenBucket, clock=lambda: clock.now))
            manager.cloud._clock = lambda: clock.now
            for model in setup.models.values():
                if isinstance(model, HeldOnce):
                    model.manager = manager
            player = Player(manager, dial, gated, talker, steps, segments, setup, clock)
            stack.callback(player.end)
            if setup.before is not None:
                player.sockets = setup.before(manager, dial) or {}
                steps.seen.clear()
                there = len(player.sockets) + (name == "auth.duplicate_uuid")
                wait_until(lambda: manager.stats().connected == there, "they left")
            use_before(manager, dial, segments, setup.segments)
            player.play(CASES[name]["exchange"])
            return manager

        yield play


@pytest.mark.parametrize("name", PLAYED)
def test_recording(player, talker, segments, name):
    manager = player(name)
    if name == "shutdown.inference_sent_while_draining":
        wait_until(lambda: manager.stats().executions == {"slow": 1}, "the refused work runs")
    if name.startswith("close.grpc_stream_aborted"):
        assert talker.said == (400 if name.endswith("longer") else 200)
    if name == "shm.registered_after_manager_restart":
        assert segments.path("recU").exists(), "nobody has attached it"
    if name == "close.queued_not_cancelled":
        assert manager.stats().executions == {"slow": 4, "add_sub": 1}


@pytest.mark.parametrize("name", PLAYED_OVER_HTTP[:2])
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


def test_ready_counts_the_registered_servers(serve):
    """One state of the cloud after another, as recorded."""
    manager = serve(container_id="ctr-1", forget_after=GUARD)
    cloud = manager.cloud
    other = cloud.create_container("127.0.0.2").container_id

    def both_registered_one_lost():
        cloud.create_server(other, "m")
        cloud.lose_server(other)

    def one_over_grpc():
        cloud.delete_server(other)
        cloud.create_server("ctr-1", "llm", grpc=True)

    states = {
        "no server registered": lambda: cloud.delete_server("ctr-1"),
        "ctr-1 registered (HTTP)": lambda: cloud.create_server("ctr-1", "m"),
        "ctr-1 registered, and ctr-2, whose Triton is not there": both_registered_one_lost,
        "a decoupled model's server registered (gRPC)": one_over_grpc,
    }
    for entry in CASES["http.ready_ok"]["exchange"]:
        if "manager" in entry:
            states.pop(entry["manager"])()
            continue
        status, content_type, body = http_get(manager, entry["GET"], {})
        assert (status, json.loads(body)) == (entry["status"], entry["body"])
        assert content_type == "application/json"
    assert not states
