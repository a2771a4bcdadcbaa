"""Plays a recording to a `TcmClient`: the manager as it was recorded, and a user who asks what was asked."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from itertools import groupby, islice

import numpy as np
import pytest

from tcm_sync import (
    AuthContext,
    CallTimeoutError,
    ManagementError,
    ManagementResult,
    QueueStats,
    TcmClient,
    TcmError,
)

from ..helpers.peer_connection import TIMEOUT
from .recordings import kind_of, sockets, text
from .test_recorded_replies import ADVISED, FAILURES, REFUSALS, check
from .test_recorded_requests import parsed, where_of, with_our_capability, without_empty_roles

SOON = 0.3  # seconds that a user waits for what the recording never brings

# --- what is played ---


def turns_of(case):
    """List the turns of each socket of a case, for a client that never sends two requests at once."""
    recorded = sockets(case)
    let_in = next((turns[0] for turns in recorded if kind_of(turns[0].request.message) == "auth"), None)
    found = [
        in_turn(apart)
        for turns in recorded
        for apart in by_kind(
            turns if kind_of(turns[0].request.message) in ("auth", None) else [without_end(let_in), *turns]
        )
    ]
    return [[turn for turn in turns if spelled_out(turn.request.message) is not None] for turns in found]


def without_end(auth):
    """Return the authentication of a socket that stays, where the recording begins after it."""
    return auth._replace(answers=auth.answers[:1], end=None)


def by_kind(turns):
    """Put jobs and inferences on two sockets, where they were on one: a client has its own for jobs."""
    auth, *rest = turns
    jobs = [turn for turn in rest if kind_of(turn.request.message) == "management"]
    others = [turn for turn in rest if turn not in jobs]
    return [[auth, *jobs], [auth, *others]] if jobs and others else [turns]


def in_turn(turns):
    """Of requests that were sent at once take one, and one more for each other answer if the socket stays."""
    auth, *rest = turns
    if len(rest) == 1 or all(turn.answers or turn.end for turn in rest):
        return turns
    _, answers, end = rest[-1]
    if end is not None:
        return [auth, rest[0]._replace(answers=answers, end=end)]
    different = [next(equal) for _, equal in groupby(answers, lambda frame: frame.message)]
    return [auth, *(turn._replace(answers=[frame]) for turn, frame in zip(rest, different, strict=False))]


def spelled_out(message):
    """Return a request, also one that the recorder only described; None if it is not JSON."""
    if message == "(an info message of 66,0xx bytes)":
        return {"type": "info", "payload": {"action": "x" * 66_000}}
    if message == "(inference of model slow, 1 s)":
        return described("slow", "http", {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [[1.0]]})
    if isinstance(message, str) and message.startswith("(stream of model llm, "):
        return described("llm", "grpc", {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w w"]})
    return parsed(message)


def described(model_name, protocol, tensor):
    request = {"protocol": protocol, "inputs": [tensor], "allow_transient": True}
    where = {"vm_ip": "127.0.0.1", "container_id": "ctr-9"}
    return {"type": "inference", "payload": {**where, "model_name": model_name, "request": request}}


def replies_of(turn):
    """Leave out what is no reply: alerts, and the advice that a request is delayed."""
    answers = [frame for frame in turn.answers if frame.message["type"] != "alert"]
    return [frame for frame in answers if frame.case not in ADVISED]


def failure_of(turn):
    """Find the reply that makes a call fail; None if it goes well."""
    replies = replies_of(turn)
    last = replies[-1:] if replies and status_of(replies[0]) == "START" else replies[:1]
    return next((frame for frame in last if table_of(frame) is not None), None)


def table_of(reply):
    """Find the table that has the error of a reply, empty for management jobs; None if it is a good one."""
    if reply.message["type"] == "error":
        return REFUSALS
    return {"FAILED": FAILURES, False: ()}.get(status_of(reply))


def status_of(reply):
    return reply.message["payload"].get("status")


# --- the manager's side ---

#: Where null, or nothing, means the same as leaving it out.
OPTIONAL = ("vm_ip", "pipeline", "model_name")


def script(turns):
    """Make what a peer does on one socket; whatever is asked beyond the recording is answered well."""

    def play(connection):
        connection.accept()
        for turn in turns:
            answer(connection, turn)
        while True:
            answer_well(connection, receive(connection))

    return play


def answer(connection, turn):
    """Expect what was recorded, and say what was said then."""
    expected = spelled_out(turn.request.message)
    if expected["type"] == "auth":
        assert connection.read_auth() == with_our_capability(without_empty_roles(expected["payload"]))
        job_id = None
    else:
        message = receive(connection)
        assert facts_of(message) == facts_of(expected)
        job_id = message["payload"].get("job_id")
    with connection.together():
        for frame in turn.answers:
            connection.send_text(text(readdressed(frame.message, connection.uuid, job_id)))
    if isinstance(turn.end, int):
        connection.close(turn.end)


def receive(connection):
    message = connection.recv_json()
    assert message["uuid"] == connection.uuid
    connection.count_request()
    return message


def facts_of(message):
    """Return what a request says, but for its tensors: those are compared in `test_recorded_requests`."""
    arguments = {
        name: value
        for name, value in message["payload"].items()
        if name not in ("request", "job_id", "inputs") and not (name in OPTIONAL and not value)
    }
    if "pipeline" in arguments:
        arguments["pipeline"] = [step["model_name"] for step in arguments["pipeline"]]
        arguments.pop("model_name", None)
    request = message["payload"].get("request", {})
    options = request.get("protocol", "http"), request.get("allow_transient", False)
    return message["type"], arguments, options, request.get("output_name", "output")


def readdressed(message, uuid, job_id):
    if "uuid" in message:
        message = {**message, "uuid": uuid}
    if message["type"] == "info_response":
        message = {**message, "payload": {**message["payload"], "job_id": job_id}}
    return message


def answer_well(connection, message):
    payload = message["payload"]
    if message["type"] == "info":
        counts = dict.fromkeys((each.name for each in fields(QueueStats)), 0)
        data = counts if payload["action"] == "queue_stats" else {}
        done = {"job_id": payload["job_id"], "request_type": "x", "status": "success", "data": data}
        connection.send_text({"type": "info_response", "payload": done})
    elif message["type"] == "management":
        done = {"status": True, "data": None}
        connection.send_text({"type": "management", "uuid": connection.uuid, "payload": done})
    elif payload.get("pipeline"):
        connection.reply({step["model_name"]: {} for step in payload["pipeline"]})
    elif payload["request"]["protocol"] == "grpc":
        for status in ("START", "COMPLETED"):
            connection.reply(None, status=status)
    else:
        connection.reply({"y": [[1.0]]})


# --- the user's side ---


def client_of(peer, turns, **settings):
    """Make a client with the recorded identity. It repeats nothing unless the settings say so."""
    auth = turns[0].request.message["payload"]
    who = AuthContext(token=auth.get("token"), **auth.get("client", {}))
    return TcmClient(peer.uri, who, **{"timeout": TIMEOUT, "retry": None, **settings})


def ask(client, message, **how):
    """Make the call that a user would make for a recorded request."""
    payload = message["payload"]
    if message["type"] == "info":
        return client.queue_stats() if payload == {"action": "queue_stats"} else client.info(**payload)
    if message["type"] == "management":
        return client.management(**payload)
    if payload.get("pipeline"):
        return client.pipeline(payload["pipeline"], **where_of(payload))
    request = payload.get("request", {})
    inputs = request.get("inputs") or payload["inputs"]
    how.update({name: request[name] for name in ("allow_transient", "output_name") if name in request})
    call = client.stream if request.get("protocol") == "grpc" else client.infer
    return call(payload["model_name"], list(map(as_user_has_it, inputs)), **where_of(payload), **how)


def as_user_has_it(tensor):
    """Put NaN where JSON has null, and the numbers in that one recording leaves out."""
    if tensor.get("shape") == [1, 3, 512, 512]:
        return {**tensor, "data": np.zeros(tensor["shape"])}
    return {name: each_in(value, lambda x: math.nan if x is None else x) for name, value in tensor.items()}


def each_in(value, change):
    """Change what is inside nested lists."""
    return [each_in(inner, change) for inner in value] if isinstance(value, list) else change(value)


# --- what the user gets ---


def take_turn(client, turn):
    """Make the call of a turn, and hold what it brings against the recording."""
    request = spelled_out(turn.request.message)
    replies, failure = replies_of(turn), failure_of(turn)
    if request["payload"].get("request", {}).get("protocol") == "grpc":
        take_stream(client, request, replies, failure, left=isinstance(turn.end, str))
    elif not replies:
        client.open()
        with pytest.raises(CallTimeoutError) as caught:
            ask(client, request, timeout=SOON)
        assert caught.value.outcome_unknown
        assert caught.value.advisories == len(turn.answers)
    elif failure is not None:
        with pytest.raises(TcmError) as caught:
            ask(client, request)
        check_failure(caught.value, failure)
    else:
        check_result(ask(client, request), replies[0].message)


def take_stream(client, request, replies, failure, *, left):
    chunks = tuple(r.message["payload"]["data"] for r in replies if status_of(r) == "ONGOING")
    if failure is not None:
        with pytest.raises(TcmError) as caught:
            list(ask(client, request))
        check_failure(caught.value, failure)
        assert caught.value.chunks == chunks
    elif left:
        stream = ask(client, request)
        assert tuple(islice(stream, len(chunks))) == chunks
        stream.close()
        assert stream.ended_by == "closed"
    else:
        ended = status_of(replies[-1]) == "COMPLETED"
        stream = ask(client, request, **{} if ended else {"idle_timeout": SOON, "on_idle": "end"})
        assert tuple(stream) == chunks
        assert stream.ended_by == ("completed" if ended else "idle")


def check_failure(error, reply):
    if table := table_of(reply):
        check(error, reply, table)
        return
    assert type(error) is ManagementError
    text = reply.message["payload"]["data"]
    assert text[:250] in error.message
    gone = {"server": "Server instance", "container": "Container", "vm": "VM"}
    if "Deletion failed: " in text:
        assert error.parts == {
            part: "missing" if f"{name} not found" in text else "deleted" for part, name in gone.items()
        }
    else:
        assert error.parts == {}
    assert (error.code, error.retriable, error.outcome_unknown) == (None, False, False)


def check_result(result, message):
    payload = message["payload"]
    data = payload["data"]
    if isinstance(result, ManagementResult):
        assert result.data == data
    elif isinstance(result, QueueStats):
        assert {name: getattr(result, name) for name in data} == data
        assert result.extra == {}
    elif message["type"] == "info_response":
        assert result == data
    elif isinstance(result, dict):
        assert {name: as_json(outputs) for name, outputs in result.items()} == data
    else:
        assert as_json(result) == {name: [v] if isinstance(v, str) else v for name, v in data.items()}
        assert (result.model_name, result.attempts) == (payload["model_name"], 1)
        assert json.loads(result.raw) == data


def as_json(outputs):
    """Return arrays as the manager writes them, with null for NaN."""
    return {
        name: each_in(array.tolist(), lambda x: None if isinstance(x, float) and math.isnan(x) else x)
        for name, array in outputs.items()
    }
