"""A client that is answered as a real manager answered gives its user what the recording says.

The manager's answers are sent byte for byte, but under the uuid and the job_id of the client that is played
with. The client's side is the call that a user would make; what it sends, `test_recorded_requests` has.
"""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from tcm_sync import (
    ConnectFailedError,
    InferStream,
    InputError,
    KnownFaultError,
    ManagementError,
    MessageTooLargeError,
    Route,
    ShuttingDownError,
    TcmClient,
    TcmError,
)

from ..helpers.peer_scripts import SHORT_PAUSES, background
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until
from .recordings import CASES, sockets, text
from .reply_player import (
    answer,
    ask,
    check_result,
    client_of,
    facts_of,
    failure_of,
    readdressed,
    receive,
    script,
    spelled_out,
    table_of,
    take_turn,
    turns_of,
)
from .test_recorded_replies import DROPPED, FAILURES, REFUSED_AUTHS, expected_of, is_outage
from .test_recorded_requests import LISTED, arrays_of

BY_NAME = {case["case"]: case for case in CASES}

# --- what is not played ---

REFUSED_HERE = (LISTED["refused here"] - {"inference.413"}) | {
    "inference.container_id_missing",
    "inference.bare_int_dims",
}
REASONS = {
    "LocalManager plays what its references come to": [name for name in BY_NAME if name.startswith("shm.")],
    "it refuses the arguments, and sends nothing": sorted(REFUSED_HERE),
    "it sends flat data nested, which nobody refuses": ["inference.flat_data", "sdk.run_inference"],
    "it never sends such a message": [
        *("auth.not_first", "auth.bad_json", "auth.missing_uuid", "auth.payload_not_object"),
        *("envelope.uuid_mismatch", "envelope.bad_json_later", "envelope.unknown_type"),
        *("envelope.missing_payload", "inference.inputs_missing", "inference.bad_protocol"),
        *("info.queue_alias", "http.metrics"),
    ],
    "it has one request at a time on a socket, not four": ["close.queued_not_cancelled"],
    "counts, no exchange": [
        "limit.prod_20.per_uuid",
        "limit.prod_20.paced",
        "shutdown.management_race",
        "limit.tenant.budget",
    ],
}
NOT_PLAYED = {name: reason for reason, names in REASONS.items() for name in names}

# --- what is played ---

PROBED = [name for name in BY_NAME if name.startswith("http") and name not in NOT_PLAYED]
NOT_LET_IN = [name for name in REFUSED_AUTHS if name not in NOT_PLAYED]
AT_ONCE = ["correlation.out_of_order"]
CALLED = [name for name in BY_NAME if name not in {*NOT_PLAYED, *PROBED, *NOT_LET_IN, *AT_ONCE}]

#: Beside what is probed, or not let in, these have calls.
CALLED_TOO = ["auth.jwks_outage", "http.ready_registered_unhealthy"]

#: What is not quite as it was recorded.
OTHERWISE = {
    "auth.strict.claims": "jobs have a socket of their own",
    "stream.registered_decoupled": "jobs have a socket of their own",
    "inference.pipeline_null": "without what is empty",
    "inference.pipeline_and_request": "without what is ignored",
    "inference.top_level_inputs": "with the inputs in the request",
    "inference.type_names": "with the names that Triton has",
    "sdk.inference_http": "without what is empty",
    "sdk.inference_pipeline": "without what is empty",
    "sdk.infer": "without what is empty",
    "shutdown.hung_worker": "the sockets that were there are authenticated now",
    "auth.capability.unsupported": "it asks for JSON and shared memory alone",
    "envelope.too_large": "with a max_message_bytes over the manager's",
    "inference.manager_shape": "it sends the other form",
    "inference.413": "with the numbers that the recording leaves out",
    "inference.not_finite": "without the bare NaN: it sends null",
    "inference.triton_down.retriable": "while the circuit is open it asks no more",
    "limit.prod_20": "with a fresh uuid in place of the limited one",
    "limit.prod_20.in_flight": "with one request in place of three at once",
    "backpressure.queue_full": "with two requests in turn in place of six at once",
    "shutdown.queued": "with one request in place of four at once",
    "correlation.out_of_order": "on two sockets",
    "correlation.stale_after_reconnect": "under a fresh uuid",
    "close.http_not_cancelled.dropped": "it leaves with a close frame",
}
#: Here one client uses all sockets, one after another; elsewhere each has a client of its own.
ONE_CLIENT = ("close.", "correlation.")
SETTINGS = {
    "envelope.too_large": {"max_message_bytes": 2**20},
    "inference.413": {"max_message_bytes": 2**23},
    "inference.triton_down.retriable": {"timeout": 2.0},  # the manager asks for a pause of 5 s
}
#: How many requests of a case the client does not send.
HELD_BACK = {"inference.triton_down.retriable": 2}


def test_every_recording_is_played_or_listed_with_the_reason():
    listed = [name for names in REASONS.values() for name in names]
    assert sorted([*CALLED, *PROBED, *NOT_LET_IN, *AT_ONCE, *listed]) == sorted(
        case["case"] for case in CASES
    )
    assert not OTHERWISE.keys() & NOT_PLAYED.keys()
    assert BY_NAME.keys() >= {*OTHERWISE, *SETTINGS, *HELD_BACK}


def is_let_in(turns):
    """Return whether the authentication of a socket was accepted."""
    return turns[0].answers[0].message["type"] == "auth.ok"


# --- calls ---


@pytest.mark.parametrize("case", [*CALLED, *CALLED_TOO])
def test_recording(case):
    played = [turns for turns in turns_of(case) if is_let_in(turns)]
    settings = SETTINGS.get(case, {})
    with ScriptedPeer(*map(script, played)) as peer, ExitStack() as clients:
        for number, turns in enumerate(played):
            if number == 0 or not case.startswith(ONE_CLIENT):
                client = clients.enter_context(client_of(peer, turns, **settings))
            for turn in turns[1:]:
                take_turn(client, turn)
            closes = isinstance(turns[-1].end, int)
            if not turns[1:]:
                client.open(wait=not closes)
            if closes:
                wait_until(lambda number=number: len(peer.connections) > number)
                wait_for(peer.connections[number].over)
    assert len(peer.connections) == len(played)
    assert peer.requests == sum(len(turns) - 1 for turns in played) - HELD_BACK.get(case, 0)


@pytest.mark.parametrize("case", [name for name in CALLED if name.startswith("inference.output.")])
def test_an_identity_gives_back_what_it_was_given(case):
    """But for the shape of BYTES."""
    (turns,) = turns_of(case)
    request = turns[1].request.message
    (sent,) = arrays_of(request["payload"]["request"]["inputs"]).values()
    with ScriptedPeer(script(turns)) as peer, client_of(peer, turns) as client:
        (output,) = ask(client, request, output_dtypes=sent.dtype).values()
    assert output.dtype == sent.dtype
    assert output.tolist() == (sent.ravel() if sent.dtype == object else sent).tolist()


def test_the_shortcuts_of_management_bring_what_was_recorded():
    ((auth, creation),) = turns_of("management.creation")
    ((_, deletion),) = turns_of("management.deletion")
    blocks = {**creation.request.message["payload"]}
    assert blocks.pop("action") == "creation"
    with ScriptedPeer(script([auth, creation, deletion])) as peer, client_of(peer, [auth]) as client:
        deployment = client.create(**blocks)
        deleted = client.delete(vm_id="vm-9", container_id="ctr-9")
    data = creation.answers[0].message["payload"]["data"]
    assert deployment.route == Route(data["container_id"], data["vm_ip"])
    assert deployment.model_name == data["model_name"]
    check_result(deleted, deletion.answers[0].message)


# --- what the client does after a failure ---


def first_failing(case):
    """Find the first turn that fails, with the authentication of its socket; nothing if none does."""
    return next(([auth, turn] for auth, *rest in turns_of(case) for turn in rest if failure_of(turn)), [])


@pytest.mark.parametrize("case", [name for name in CALLED if first_failing(name)])
def test_what_failed_is_sent_again_by_default_if_that_may_help_and_does_no_harm(case):
    """And on the same socket, unless the manager has closed it."""
    auth, turn = first_failing(case)
    request, reply = spelled_out(turn.request.message), failure_of(turn)
    table = table_of(reply)
    kind, _, may_pass = expected_of(reply, table) if table else (ManagementError, None, False)
    may_have_run = kind is ShuttingDownError and case not in DROPPED
    repeated = may_pass and not (may_have_run and request["type"] == "management")
    settings = {**SETTINGS.get(case, {}), "retry": SHORT_PAUSES}
    with (
        ScriptedPeer(script([auth, turn]), script([auth])) as peer,
        client_of(peer, [auth], **settings) as client,
    ):
        if repeated:
            result = whole(ask(client, request))
            counted = table is FAILURES and not issubclass(kind, KnownFaultError)
            assert getattr(result, "attempts", 1) == (2 if counted else 1)
        else:
            with pytest.raises(kind) as caught:
                whole(ask(client, request))
            assert type(caught.value) is kind
            assert peer.requests == 1
            if kind is MessageTooLargeError:
                with pytest.raises(kind, match="which refused a larger one"):  # before it is sent
                    whole(ask(client, request))
                return
            if isinstance(turn.end, int):
                wait_for(peer.connections[0].over)
            whole(ask(client, request))
    assert peer.requests == 2
    assert len(peer.connections) == 1 + isinstance(turn.end, int)


def whole(result):
    """Take a stream to its end."""
    return list(result) if isinstance(result, InferStream) else result


@pytest.mark.parametrize("case", NOT_LET_IN)
@pytest.mark.parametrize("retry", [None, SHORT_PAUSES])
def test_a_refused_client_gets_the_reason_and_does_not_repeat(case, retry):
    """But with a uuid that is taken: it tries two others."""
    for turns in turns_of(case):
        if is_let_in(turns):
            continue
        said = turns[0].answers[0].message["payload"]["message"]
        outage = is_outage(said)  # which passes, so that it is tried again until `connect_timeout`
        settings = {"retry": retry, **({"connect_timeout": 0.5} if outage else {})}
        with ScriptedPeer(script(turns)) as peer, client_of(peer, turns, **settings) as client:
            with pytest.raises(TcmError) as caught:
                client.queue_stats()
        assert type(caught.value) is (ConnectFailedError if outage else REFUSED_AUTHS[case])
        assert said in caught.value.message
        assert (caught.value.retriable, caught.value.outcome_unknown) == (outage, False)
        if not (outage and retry):
            assert len(peer.connections) == (3 if case == "auth.duplicate_uuid" else 1)


def test_a_uuid_that_is_taken_is_replaced_at_once():
    ((taken,),) = turns_of("auth.duplicate_uuid")
    ((let_in,),) = turns_of("auth.legacy")
    let_in = taken._replace(answers=let_in.answers, end=None)
    with ScriptedPeer(script([taken]), script([let_in])) as peer, client_of(peer, [taken]) as client:
        assert client.info("x") == {}
    assert len(peer.uuids) == 2


# --- what a draining manager says when nothing is under way ---


def test_a_refusal_behind_a_good_reply_fails_no_call():
    ((auth, turn),) = turns_of("shutdown.idle")
    with (
        ScriptedPeer(script([auth, turn]), script([auth])) as peer,
        client_of(peer, [auth], retry=SHORT_PAUSES) as client,
    ):
        check_result(client.queue_stats(), turn.answers[0].message)
        wait_for(peer.connections[0].over)
        assert client.info("x") == {}
    assert [connection.requests for connection in peer.connections] == [1, 1]


def test_sockets_that_are_let_in_and_then_refused_fail_no_call():
    _, early, late = turns_of("shutdown.new_socket")
    let_in = early[0]._replace(answers=early[0].answers[:1], end=None)
    scripts = [script(early), script(late), script([let_in])]
    with ScriptedPeer(*scripts) as peer, client_of(peer, early, retry=SHORT_PAUSES) as client:
        client.open()
        wait_for(peer.connections[0].over)
        assert client.info("x") == {}
    assert [connection.requests for connection in peer.connections] == [0, 0, 1]


# --- whose reply it is ---


def test_the_late_reply_to_a_call_that_was_given_up_is_handed_to_nobody():
    first, second = turns_of("correlation.stale_after_reconnect")
    scripts = [script(first), script(second), script(second[:1])]
    with ScriptedPeer(*scripts) as peer, client_of(peer, first) as client:
        take_turn(client, first[1])
        take_turn(client, second[1])
        wait_for(peer.connections[1].over)
        assert client.info("x") == {}
    assert [connection.requests for connection in peer.connections] == [1, 1, 1]


def test_of_two_calls_at_once_each_gets_its_own_reply_though_the_later_comes_first():
    ((auth, slow, quick),) = sockets("correlation.out_of_order")
    replies = quick.answers
    slow_sent, quick_answered = threading.Event(), threading.Event()

    def answered_last(connection):
        connection.accept()
        answer(connection, auth)
        assert facts_of(receive(connection)) == facts_of(slow.request.message)
        slow_sent.set()
        wait_for(quick_answered)
        connection.send_text(text(readdressed(replies[1].message, connection.uuid, None)))
        connection.wait_eof()

    answered_first = script([auth, quick._replace(answers=replies[:1])])
    with ScriptedPeer(answered_last, answered_first) as peer, client_of(peer, [auth]) as client:
        with background(lambda: ask(client, slow.request.message)) as result:
            wait_for(slow_sent)
            check_result(ask(client, quick.request.message), replies[0].message)
            quick_answered.set()
            check_result(result(), replies[1].message)


# --- what the manager never sees ---


@pytest.mark.parametrize("case", sorted(REFUSED_HERE))
def test_what_the_manager_refuses_or_changes_is_not_sent(case):
    ((auth, *turns),) = sockets(case)
    with ScriptedPeer() as peer, client_of(peer, [auth]) as client:
        for turn in turns:
            with pytest.raises(InputError):
                whole(ask(client, spelled_out(turn.request.message)))
    assert peer.connections == []


def test_flat_data_go_out_nested():
    ((auth, flat),) = sockets("inference.flat_data")
    ((_, nested),) = sockets("inference.sdk_shape")
    with ScriptedPeer(script([auth, nested])) as peer, client_of(peer, [auth]) as client:
        check_result(ask(client, flat.request.message), nested.answers[0].message)


# --- probes ---


@pytest.mark.parametrize("case", PROBED)
def test_recorded_probes(case):
    recording = BY_NAME[case]
    looks = [look for look in recording.get("exchange", ()) if "GET" in look] or [
        {**recording, "GET": case.removeprefix("http")}
    ]
    with ScriptedPeer() as peer, TcmClient(peer.uri) as client:
        for look in sorted(looks, key=lambda look: look.get("from_seconds_after_SIGTERM", 0.0)):
            look_once(peer, client, look)


def look_once(peer, client, look):
    path, status, body = look["GET"], look["status"], look.get("body", {})
    if status == "ConnectionRefusedError":
        peer.stop_listening()
    else:
        peer.http[path] = reset if status == "ConnectionResetError" else (status, body)
    answered = status == 200
    if path == "/health":
        assert client.health() is answered
    else:
        ready = client.ready()
        assert (bool(ready), ready.raw) == (answered, body)
        assert ready.status == body.get("status", "unreachable")


def reset(connection):
    connection.drop()
