"""Management jobs: what is sent, what comes back, and above all what is never sent twice."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import contextlib
import pickle
import re
import signal
import sys
import threading
import time

import pytest

from tcm_sync import (
    CallTimeoutError,
    ClientClosedError,
    ConfigError,
    ConnectionLostError,
    Deployment,
    InputError,
    ManagementError,
    MessageTooLargeError,
    ModelSignature,
    PermissionDeniedError,
    PoolTimeoutError,
    ProtocolError,
    RetryPolicy,
    Route,
    ShuttingDownError,
    TcmClient,
    TcmError,
    TensorSpec,
)
from tcm_sync._calls.progress import Progress
from tcm_sync._pool import concurrency_limit
from tcm_sync._pool.attempt import _failure_to_send
from tcm_sync._transport.connection import Connection
from tcm_sync._transport.replies import ReplyFuture

from ..helpers.peer_connection import PING
from ..helpers.peer_scripts import ask, background, connect, echo, failing, timing_out
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

CREATED = {
    "vm_ip": "10.0.0.7",
    "container_id": "ctr-9",
    "model_name": "add_sub",
    "inputs": [{"name": "INPUT0", "type": "TYPE_FP32", "dims": [-1]}],
    "outputs": [
        {"name": "SUM", "type": "TYPE_FP16", "dims": [-1, 2]},
        {"name": "T", "type": "TYPE_STRING", "dims": [1]},
    ],
}
LOOK = ('queue_stats().unfinished("management")', "Before you try again")


def recv_job(connection):
    """Read a management request under this connection's uuid, and give its payload."""
    message = connection.recv_json()
    connection.count_request()
    assert message["type"] == "management", message
    assert message["uuid"] == connection.uuid
    return message["payload"]


def finish(connection, data, status=True, **odd):
    connection.send_text(
        {
            "type": "management",
            "uuid": connection.uuid,
            "payload": {"status": status, "data": data},
            "_correlation_id": "c0ffee",
            "_auth": {"sub": None, "roles": []},
            **odd,
        }
    )


def doing(*answers):
    """Make a script that answers one job after another, each with what a function of the connection sends."""

    def script(connection):
        connection.welcome()
        for answer in answers:
            recv_job(connection)
            answer(connection)
        connection.wait_eof()

    return script


def done(connection):
    finish(connection, ["10.0.0.7", "vm-9"])


def reject(connection):
    connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")
    connection.close(1012)


def drop_from_queue(connection):
    connection.error(
        "Request dropped: system is shutting down.", "SYSTEM_SHUTDOWN", dropped_type="management"
    )
    connection.close(1000)


# --- the request and the answer ---


def test_what_is_sent_and_what_comes():
    payloads = []

    def script(connection):
        connection.welcome()
        payloads.append(recv_job(connection))
        done(connection)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        result = client.management("create_vm", openstack={"name": "w1"}, minio={}, dry=True)
    assert payloads == [{"action": "create_vm", "openstack": {"name": "w1"}, "minio": {}, "dry": True}]
    assert (result.action, result.data, result.attempts) == ("create_vm", ["10.0.0.7", "vm-9"], 1)
    assert result.elapsed > 0.0


def test_a_job_that_failed_says_why():
    with ScriptedPeer(doing(lambda c: finish(c, "Missing key 'name'", status=False), done)) as peer:
        with connect(peer) as client:
            with failing(ManagementError, "Missing key 'name'") as caught:
                client.management("create_vm")
            assert client.management("create_vm").data == ["10.0.0.7", "vm-9"]
    assert len(peer.uuids) == 1
    assert not caught.value.outcome_unknown


@pytest.mark.parametrize(
    "answer",
    [
        lambda c: finish(c, {"no": "text"}, status=False),
        lambda c: finish(c, [], uuid="somebody-else"),
        lambda c: c.send_text({"type": "inference", "uuid": c.uuid, "payload": {"status": "COMPLETED"}}),
        lambda c: c.send_text({"type": "management", "uuid": c.uuid, "payload": {"status": "yes"}}),
    ],
)
def test_an_answer_that_is_none_costs_the_socket_and_is_not_asked_for_again(answer):
    with ScriptedPeer(doing(answer)) as peer, connect(peer) as client:
        with failing(ProtocolError, *LOOK) as caught:
            client.management("create_vm")
        wait_for(peer.connections[0].over)
    assert caught.value.outcome_unknown
    assert sum(connection.requests for connection in peer.connections) == 1


def test_an_answer_over_our_limit_may_be_that_of_a_job_that_ran():
    with ScriptedPeer(doing(lambda c: finish(c, "x" * 5000))) as peer:
        with connect(peer, max_reply_bytes=1000) as client:
            with failing(MessageTooLargeError, *LOOK) as caught:
                client.management("create_vm")
    assert caught.value.outcome_unknown


@pytest.mark.parametrize("code", ["TRITON_TIMEOUT", "SOMETHING_NEW"])
def test_a_refusal_that_does_not_say_that_it_was_dropped_is_not_repeated(code):
    policy = RetryPolicy(retriable={"SOMETHING_NEW"}, initial=0.001, maximum=0.001)
    with ScriptedPeer(doing(lambda c: c.error("well", code))) as peer, connect(peer, retry=policy) as client:
        with pytest.raises(TcmError) as caught:
            client.management("create_vm")
    assert caught.value.outcome_unknown
    assert peer.requests == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"action": ""}, "action"),
        ({"action": "creation", "openstack": ["name"]}, "openstack must be a mapping"),
        ({"action": "creation", "docker": {"cpus": float("nan")}}, "docker.cpus: nan"),
        ({"action": "creation", "triton": {"args": [1, b"x"]}}, r"triton.args[1]: a bytes"),
        ({"action": "creation", "minio": {1: "x"}}, "minio: the key 1 is not a str"),
        ({"action": "creation", "minio": {"x": "\ud800"}}, "minio.x: a text with a lone surrogate"),
        ({"action": "creation", "minio": {"x": 2**64}}, "minio.x: an integer of over 64 bits"),
        ({"action": "creation", "timeout": 0}, "timeout"),
    ],
    ids=lambda value: str(value)[:40].encode("unicode_escape").decode(),
)
def test_wrong_arguments_are_refused_before_anything_is_sent(arguments, words):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(InputError, words):
            client.management(**arguments)
    assert peer.connections == []


def test_what_refers_to_itself_is_refused():
    circle = {}
    circle["again"] = circle
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(InputError, "nested more than 100 deep"):
            client.management("creation", minio=circle)


def test_a_message_over_the_limit_is_refused():
    with ScriptedPeer(echo) as peer, connect(peer, max_message_bytes=1000) as client:
        with failing(MessageTooLargeError, "1,000"):
            client.management("creation", minio={"x": "y" * 1000})
    assert peer.connections == []


# --- never twice ---


def lose(connection):
    connection.drop()


def close_normally(connection):
    connection.close(1000)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(reject, ShuttingDownError), (lose, ConnectionLostError), (close_normally, ConnectionLostError)],
)
def test_what_may_have_run_is_not_sent_again(answer, kind):
    policy = RetryPolicy(retriable={"SYSTEM_SHUTDOWN"}, initial=0.001, maximum=0.001)
    with ScriptedPeer(doing(answer), doing(done)) as peer, connect(peer, retry=policy) as client:
        with failing(kind, *LOOK) as caught:
            client.management("create_vm")
    assert caught.value.outcome_unknown
    assert sum(connection.requests for connection in peer.connections) == 1


def test_what_was_not_answered_in_time_may_have_run():
    with ScriptedPeer(doing(lambda c: c.wait_eof())) as peer, connect(peer) as client:
        with timing_out(lambda: peer.requests), failing(CallTimeoutError, *LOOK) as caught:
            client.management("create_vm")
    assert caught.value.outcome_unknown
    assert peer.requests == 1


def test_a_job_under_way_at_the_closing_may_have_run():
    with ScriptedPeer(doing(lambda c: c.wait_eof())) as peer, connect(peer) as client:
        with background(lambda: client.management("create_vm")) as result:
            wait_until(lambda: peer.requests == 1)
            client.close()
            with failing(ClientClosedError, *LOOK) as caught:
                result()
    assert caught.value.outcome_unknown


def test_a_job_that_the_closing_met_before_its_first_byte_has_not_run(monkeypatch):
    send = Connection.send

    def closed_just_before(self, message, deadline, future):
        if b'"management"' in message[0]:
            client.close()
            wait_until(lambda: self.closed)
        return send(self, message, deadline, future)

    monkeypatch.setattr(Connection, "send", closed_just_before)
    with ScriptedPeer(doing(done)) as peer, connect(peer) as client:
        with failing(ClientClosedError) as caught:
            client.management("create_vm")
    assert not caught.value.outcome_unknown
    assert peer.requests == 0


def rate_limited(connection):
    connection.error("Rate limit exceeded for this client (messages per second)")
    connection.close(1008)


def tenant_limited(connection):
    connection.error("Tenant quota exceeded (messages per second).", "BACKPRESSURE_TENANT_LIMIT_REACHED")
    connection.close(1008)


def queue_full(connection):
    connection.error(
        "Request dropped due to backpressure (per-user queue full).",
        "BACKPRESSURE_QUEUE_FULL",
        dropped_type="management",
    )


@pytest.mark.parametrize("answer", [drop_from_queue, rate_limited, tenant_limited])
def test_what_was_not_run_is_sent_again_on_a_new_socket(answer):
    with ScriptedPeer(doing(answer), doing(done)) as peer, connect(peer) as client:
        assert client.management("create_vm").data == ["10.0.0.7", "vm-9"]
    assert [connection.requests for connection in peer.connections] == [1, 1]


def test_what_found_a_full_queue_is_sent_again():
    with ScriptedPeer(doing(queue_full, done)) as peer, connect(peer) as client:
        assert client.management("create_vm").data == ["10.0.0.7", "vm-9"]
    assert peer.requests == 2


def test_after_a_full_queue_as_many_jobs_are_under_way_as_before(monkeypatch):
    """They take minutes, so that answers would be long in coming that make room again."""
    monkeypatch.setattr(concurrency_limit, "_QUIET_SECONDS", 1e9)
    go_on, lock, refused = threading.Event(), threading.Lock(), []

    def script(connection):
        connection.welcome()
        while True:
            recv_job(connection)
            with lock:
                first = not refused
                refused.append(connection.uuid)
            if first:
                queue_full(connection)
            else:
                wait_for(go_on)
                done(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with (
            background(lambda: client.management("a")) as one,
            background(lambda: client.management("b")) as two,
        ):
            try:
                wait_until(lambda: peer.requests == 3)  # one of them twice
            finally:
                go_on.set()
            assert one().data == two().data == ["10.0.0.7", "vm-9"]


def test_a_connection_that_died_while_it_was_idle_costs_no_job():
    gone = threading.Event()

    def dies(connection):
        connection.welcome()
        recv_job(connection)
        done(connection)
        wait_for(gone)
        connection.drop()

    with ScriptedPeer(dies, doing(done)) as peer, connect(peer) as client:
        assert client.management("create_vm").data
        gone.set()
        wait_until(lambda: not client._core.running().management.state.inventory.all)
        assert client.management("create_vm").data
    assert [connection.requests for connection in peer.connections] == [1, 1]


def test_a_job_whose_deadline_has_passed_is_not_sent():
    with ScriptedPeer(doing(done, done)) as peer, connect(peer) as client:
        client.management("create_vm")
        for _ in range(20):
            with failing(CallTimeoutError, "could be sent") as caught:
                client.management("create_vm", timeout=1e-9)
            assert not caught.value.outcome_unknown
        client.management("create_vm")
    assert peer.requests == 2


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("loss", [ProtocolError("a broken frame"), MessageTooLargeError("a huge one")])
def test_a_socket_that_broke_before_the_first_byte_costs_no_job(started, loss):
    future = ReplyFuture()
    future.started = started
    late = _failure_to_send(loss, future)
    if started:
        assert late is loss
    else:
        assert type(late) is ConnectionLostError
        assert not late.outcome_unknown
        assert loss.message in late.message


def test_our_message_over_the_limit_of_the_manager_did_not_run():
    def too_large(connection):
        connection.error("Message too large (>100 bytes)")
        connection.close(1009)

    with ScriptedPeer(doing(too_large)) as peer, connect(peer) as client:
        with failing(MessageTooLargeError, "max_message_bytes=100") as caught:
            client.management("create_vm")
    assert not caught.value.outcome_unknown


def test_without_a_policy_a_job_that_was_dropped_is_not_sent_again():
    with ScriptedPeer(doing(drop_from_queue)) as peer, connect(peer, retry=None) as client:
        with failing(ShuttingDownError) as caught:
            client.management("create_vm")
    assert not caught.value.outcome_unknown
    assert peer.requests == 1


def test_a_missing_role_is_named_and_not_asked_for_again():
    with ScriptedPeer(doing(lambda c: c.error("Forbidden: missing 'management' role"))) as peer:
        with connect(peer) as client, failing(PermissionDeniedError, "roles="):
            client.management("create_vm")
    assert peer.requests == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pthread_kill")
def test_an_interruption_ends_the_waiting_and_its_socket():
    with ScriptedPeer(doing(lambda c: c.wait_eof()), doing(done)) as peer, connect(peer) as client:

        def interrupt():
            wait_until(lambda: peer.requests == 1)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        with background(interrupt):
            with pytest.raises(KeyboardInterrupt):
                client.management("create_vm")
        wait_for(peer.connections[0].over)
        assert client.management("create_vm").data == ["10.0.0.7", "vm-9"]


# --- sockets of its own ---


def mixed(connection):
    """Echo inferences, and leave jobs unanswered until the client goes."""
    connection.welcome()
    while True:
        message = connection.recv_json()
        connection.count_request()
        if message["type"] == "inference":
            connection.reply({"y": message["payload"]["request"]["inputs"][0]["data"]})


def create_until_closed(client):
    with pytest.raises(ClientClosedError):
        client.management("create_vm")


def test_long_jobs_take_no_socket_from_inferences():
    with ScriptedPeer(mixed) as peer, connect(peer, pool_size=1, management_sockets=2) as client:
        with background(lambda: create_until_closed(client)):
            with background(lambda: create_until_closed(client)):
                wait_until(lambda: peer.requests == 2)
                with failing(PoolTimeoutError, "2 of 2 sockets", "management_sockets"):
                    client.management("create_vm", timeout=0.1)
                for value in range(3):
                    assert ask(client, float(value)) == value
                client.close()
    assert len(peer.uuids) == 3


def test_a_shutdown_that_refuses_a_job_delays_inferences_too():
    with ScriptedPeer(doing(reject), echo) as peer, connect(peer) as client:
        with pytest.raises(ShuttingDownError):
            client.management("create_vm")
        assert client._core.running().manager_state.manager_gate.cause is not None
        assert ask(client) == 1.0
    assert peer.probes, "the new socket was opened without a look at /ready"


def test_a_quiet_socket_is_pinged_while_a_job_runs():

    def script(connection):
        connection.welcome()
        recv_job(connection)
        for _ in range(3):
            frame = connection.wait_frame(PING)
            connection.send_frame(0xA, frame.payload)
        done(connection)
        connection.wait_eof()

    def answered():
        with contextlib.suppress(ConnectionLostError):  # a pong came late: once more
            return client.management("create_vm").data
        return None

    with ScriptedPeer(script) as peer, connect(peer, ping_interval=0.05) as client:
        wait_until(answered)


def test_an_idle_socket_is_closed():
    with ScriptedPeer(doing(done)) as peer, connect(peer, max_idle=0.1) as client:
        client.management("create_vm")
        wait_for(peer.connections[0].over)


# --- deployments ---


def test_a_creation_returns_what_was_made():
    with ScriptedPeer(doing(lambda c: finish(c, CREATED))) as peer, connect(peer) as client:
        deployment = client.create(openstack={"name": "w1"}, docker={"image": "i"}, minio={}, triton={})
    assert deployment.route == Route("ctr-9", "10.0.0.7")
    assert (deployment.vm_id, deployment.model_name) == (None, "add_sub")
    assert deployment.signature == ModelSignature(
        (TensorSpec("INPUT0", "FP32", (-1,)),),
        (TensorSpec("SUM", "FP16", (-1, 2)), TensorSpec("T", "BYTES", (1,))),
    )
    assert "add_sub" in repr(deployment)
    assert "SUM: FP16[-1, 2]" in repr(deployment)


def test_the_vm_of_the_answer_counts_before_that_of_the_request():
    with ScriptedPeer(doing(lambda c: finish(c, {**CREATED, "vm_id": "vm-9"}))) as peer:
        with connect(peer) as client:
            assert client.create(openstack={"vm_id": "vm-3"}).vm_id == "vm-9"


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {**CREATED, "vm_ip": None},
        {**CREATED, "inputs": None},
        {**CREATED, "inputs": {"name": "x"}},
        {**CREATED, "outputs": [{"name": "x", "type": "TYPE_FP32"}]},
        {**CREATED, "outputs": [{"name": "x", "type": "TYPE_FP32", "dims": ["a"]}]},
        {**CREATED, "outputs": ["x"]},
    ],
    ids=str,
)
def test_a_creation_whose_answer_is_broken_quotes_it_since_it_exists(broken):
    with ScriptedPeer(doing(lambda c: finish(c, broken))) as peer, connect(peer) as client:
        with failing(ProtocolError, "the creation succeeded"):
            client.create(openstack={"name": "w1"})


def test_a_deployment_infers_with_its_own_route_and_exact_dtypes():
    requests = []

    def inferring(connection):
        connection.welcome()
        requests.append(connection.recv_request())
        connection.reply({"SUM": [[0.1, 2]], "T": "x"})
        connection.wait_eof()

    with ScriptedPeer(doing(lambda c: finish(c, CREATED)), inferring) as peer, connect(peer) as client:
        result = client.create(openstack={"vm_id": "vm-3"}).infer({"INPUT0": [1.5]})
    assert result["SUM"].dtype == "float16"
    assert result["T"].tolist() == ["x"]
    (request,) = requests
    assert {key: request[key] for key in ("vm_ip", "container_id", "vm_id", "model_name")} == {
        "vm_ip": "10.0.0.7",
        "container_id": "ctr-9",
        "vm_id": "vm-3",
        "model_name": "add_sub",
    }


def test_a_deployment_is_deleted_by_the_ids_that_it_has():
    payloads = []

    def script(connection):
        connection.welcome()
        recv_job(connection)
        finish(connection, {**CREATED, "vm_id": "vm-9"})
        payloads.append(recv_job(connection))
        finish(connection, {"vm_id": "vm-9", "container_id": "ctr-9"})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        client.create().delete()
    assert payloads == [
        {"action": "deletion", "openstack": {"vm_id": "vm-9"}, "docker": {"container_id": "ctr-9"}}
    ]


def test_a_deployment_whose_vm_has_no_known_id_is_deleted_by_its_address():
    payloads = []

    def script(connection):
        connection.welcome()
        recv_job(connection)
        finish(connection, CREATED)
        for _ in range(2):
            payloads.append(recv_job(connection))
            finish(connection, {"vm_id": "vm-9", "container_id": "ctr-9"})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        deployment = client.create()
        deployment.delete()
        deployment.delete(vm_id="vm-1")
    docker = {"container_id": "ctr-9"}
    assert payloads == [
        {"action": "deletion", "docker": docker, "vm_ip": "10.0.0.7"},
        {"action": "deletion", "openstack": {"vm_id": "vm-1"}, "docker": docker},
    ]


def test_the_time_limit_of_an_attempt_is_none_of_a_job():
    def script(connection):
        connection.welcome()
        recv_job(connection)
        time.sleep(0.3)  # the time under test
        finish(connection, ["10.0.0.7", "vm-9"])
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, retry=RetryPolicy(attempt_timeout=0.05)) as client:
        assert client.management("create_vm").data == ["10.0.0.7", "vm-9"]
    assert peer.requests == 1


def test_a_deployment_deletes_the_vm_that_is_named_rather_than_its_own():
    payloads = []

    def script(connection):
        connection.welcome()
        recv_job(connection)
        finish(connection, {**CREATED, "vm_id": "vm-1"})
        for _ in range(2):
            payloads.append(recv_job(connection))
            finish(connection, {})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        deployment = client.create()
        deployment.delete(vm_id="vm-2")
        deployment.delete()
    assert [payload["openstack"] for payload in payloads] == [{"vm_id": "vm-2"}, {"vm_id": "vm-1"}]
    assert all("vm_ip" not in payload for payload in payloads)


SERVER_GONE = (
    "triton_delete_server: [TritonThread] TRITON_MISSING_INSTANCE: model='server' retriable=False "
    "reason=Server instance not found: vm_id='vm-9', container_id='ctr-9'"
)
CONTAINER_GONE = "delete_container: [DockerThread] Container not found: 'ctr-9'"
VM_GONE = "delete_vm: [OpenstackThread] VM not found during deletion: 'vm-9'"
ALL_GONE = f"Deletion failed: {SERVER_GONE}; {CONTAINER_GONE}; {VM_GONE}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (ALL_GONE, {"server": "missing", "container": "missing", "vm": "missing"}),
        (f"Deletion failed: {SERVER_GONE}", {"server": "missing", "container": "deleted", "vm": "deleted"}),
        (
            f"Deletion failed: {SERVER_GONE}; delete_vm: [OpenstackThread] endpoint not found",
            {"server": "missing", "container": "deleted", "vm": "failed"},
        ),
        ("Deletion missing required field: 'vm_id'", {}),
        ("Deletion failed: something new: not found", {}),
        (f"It is odd. {ALL_GONE}", {}),
    ],
)
def test_a_deletion_that_failed_says_what_became_of_its_parts(text, parts):
    with ScriptedPeer(doing(*[lambda c: finish(c, text, status=False)] * 2)) as peer:
        with connect(peer) as client:
            with failing(ManagementError, text[:200]) as caught:
                client.delete(vm_id="vm-9", container_id="ctr-9")
            assert caught.value.parts == parts
            assert not caught.value.outcome_unknown
            assert pickle.loads(pickle.dumps(caught.value)).parts == parts
            if parts and "failed" not in parts.values():
                result = client.delete(vm_id="vm-9", container_id="ctr-9", missing_ok=True)
                assert (result.parts, result.data, result.attempts) == (parts, None, 1)
            else:
                with failing(ManagementError, text[:200]):
                    client.delete(vm_id="vm-9", container_id="ctr-9", missing_ok=True)
    assert peer.requests == 2


def test_a_deletion_of_unknown_outcome_says_how_to_repeat_it():
    def answers_late(connection):
        connection.welcome()
        recv_job(connection)
        connection.wait_eof()

    again = doing(lambda c: finish(c, ALL_GONE, status=False))
    with ScriptedPeer(answers_late, again) as peer, connect(peer) as client:
        with timing_out(lambda: peer.requests), failing(CallTimeoutError, "missing_ok=True") as caught:
            client.delete(vm_id="vm-9", container_id="ctr-9")
        assert caught.value.outcome_unknown
        result = client.delete(vm_id="vm-9", container_id="ctr-9", missing_ok=True)
    assert set(result.parts.values()) == {"missing"}


def test_a_deletion_by_an_address_that_no_vm_alone_has_says_so():
    text = "Deletion missing required field: 'vm_id'"
    with ScriptedPeer(doing(lambda c: finish(c, text, status=False))) as peer, connect(peer) as client:
        with failing(ManagementError, text, "no VM has the address 10.0.0.7", "vm_id="):
            client.delete(vm_ip="10.0.0.7", container_id="ctr-9")


@pytest.mark.parametrize("action", ["delete_server", "delete_container", "delete_vm"])
def test_ids_in_the_wrong_place_are_pointed_out(action):
    text = "Unexpected error: [OpenstackThread] Missing required argument: 'vm_id'"
    with ScriptedPeer(doing(lambda c: finish(c, text, status=False))) as peer, connect(peer) as client:
        with failing(ManagementError, text, "outside the blocks", f'management("{action}", vm_id='):
            client.management(action, openstack={"vm_id": "vm-9"})


def test_a_container_whose_creation_is_not_answered_has_most_likely_been_made():
    with ScriptedPeer(doing(lambda c: c.wait_eof())) as peer, connect(peer) as client:
        with timing_out(lambda: peer.requests):
            with failing(CallTimeoutError, "most likely been made", 'unfinished("management")') as caught:
                client.management("create_container", vm_id="vm-9", docker={"name": "ctr-7"})
    assert caught.value.outcome_unknown


@pytest.mark.parametrize(("action", "seconds"), [("create_container", 60.0), ("create_vm", 900.0)])
def test_a_creation_that_is_never_answered_is_not_waited_for_as_long_as_others(monkeypatch, action, seconds):
    asked = []
    monkeypatch.setattr(
        "tcm_sync._calls.management.start_deadline", lambda *timeouts: asked.append(timeouts[1]) or 1 / 0
    )
    with TcmClient("ws://127.0.0.1:1/ws") as client, pytest.raises(ZeroDivisionError):
        client.management(action)
    assert asked == [seconds]


def test_a_deletion_puts_the_ids_into_their_blocks():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(InputError, "which is meant?"):
            client.delete(vm_id="vm-1", openstack={"vm_id": "vm-2"})
        with failing(InputError, "vm_id must be a text"):
            client.delete(vm_id=7)
        with failing(InputError, "vm_ip must be a text"):
            client.delete(vm_ip=7)
    assert peer.connections == []


def test_a_deployment_travels_without_its_client():
    signature = ModelSignature((), (TensorSpec("y", "FP32", (-1,)),))
    deployment = Deployment("10.0.0.7", "c1", "m", signature, vm_id="vm-1")
    copy = pickle.loads(pickle.dumps(deployment))
    assert copy == deployment
    assert hash(copy) == hash(deployment)
    with failing(InputError, "bind(client)"):
        copy.infer({"x": [[1.0]]})
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        bound = copy.bind(client)
        assert bound.infer({"x": [[0.1]]})["y"].dtype == "float32"
        assert pickle.loads(pickle.dumps(bound)) == bound
    assert not hasattr(Deployment, "__exit__"), "an exception is not to destroy a VM"


# --- progress ---


def test_progress_shows_that_time_passes(capfd):
    go_on = threading.Event()

    def late(connection):
        wait_for(go_on)
        done(connection)

    with ScriptedPeer(doing(late)) as peer, connect(peer) as client:
        with background(lambda: client.management("create_vm", progress=True)) as result:
            shown = []

            def time_passes():
                shown.append(capfd.readouterr().err)
                return re.search("create_vm: 00:0[1-9]", "".join(shown))

            try:
                wait_until(time_passes)
            finally:
                go_on.set()
            assert result().data


def test_progress_keeps_the_deadline():
    with ScriptedPeer(doing(lambda c: c.wait_eof())) as peer, connect(peer) as client:
        with timing_out(lambda: peer.requests), failing(CallTimeoutError):
            client.management("create_vm", progress=True)


def test_progress_that_nobody_sees_any_more_costs_no_job(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    shown = threading.Event()

    def late(connection):
        wait_for(shown)
        done(connection)

    update = Progress.update
    monkeypatch.setattr(Progress, "update", lambda self: (update(self), shown.set()))
    with ScriptedPeer(doing(late)) as peer, connect(peer) as client:
        with background(lambda: client.management("create_vm", progress=True)) as result:
            wait_until(lambda: peer.requests == 1)
            monkeypatch.setattr(sys, "stderr", Broken())
            assert result().data


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(ConfigError, "tcm-sync[progress]"):
            client.management("create_vm", progress=True)
    assert peer.connections == []
