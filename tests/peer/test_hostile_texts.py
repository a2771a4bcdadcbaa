"""Texts of a peer with line ends, terminal codes and a great length: all that is shown is one short line."""

from __future__ import annotations

import json
import logging
from itertools import chain

import numpy as np
import pytest

from tcm_sync import TcmError
from tcm_sync import _logs as logs

from ..helpers.peer_connection import TIMEOUT, ClientLeft
from ..helpers.peer_scripts import ask, connect, echo
from ..helpers.scripted_peer import ScriptedPeer

SHORT = "a\nWARNING forged\r\x1b[31m\x00\x85\u2028\u202e"
HOSTILE = SHORT + "x" * 100_000
MAX_STEP = 1_500  # characters of a line: several quotations and the text around them


def assert_fit(text):
    """Check that a text is one line of printable characters, and not longer than a screen shows."""
    assert text.isprintable(), ascii(text[:2_000])
    assert len(text) <= MAX_STEP, text[:2_000]


def instead_of_a_handshake(answer):
    def script(connection):
        connection.read_handshake()
        answer(connection)

    return script


def http(status, *lines, body=HOSTILE):
    return instead_of_a_handshake(
        lambda connection: connection.answer_http(status, body.encode(), [*lines, f"X: {HOSTILE[:60_000]!r}"])
    )


def raw(data):
    return instead_of_a_handshake(lambda connection: connection.send_raw(data.encode()))


def instead_of_auth_ok(answer):
    def script(connection):
        connection.accept()
        connection.read_auth()
        answer(connection)
        connection.wait_eof()

    return script


def instead_of_a_reply(answer):
    def script(connection):
        connection.welcome()
        try:
            while True:
                request = connection.recv_json()
                answer(connection, request) if answer.__code__.co_argcount > 1 else answer(connection)
        except ClientLeft:
            pass

    return script


def message(kind, **payload):
    return lambda connection: connection.send_text(
        {"type": kind, "uuid": connection.uuid, "payload": payload}
    )


def alerted(connection):
    connection.send_text({"type": "alert", "error_type": HOSTILE, "message": HOSTILE, "timestamp": HOSTILE})
    connection.send_text({"type": HOSTILE, "payload": HOSTILE})
    connection.reply({"y": [1.0]})


READY = json.dumps({"status": HOSTILE, "reason": HOSTILE, "detail": HOSTILE, "error_id": HOSTILE})
TRITON = json.dumps({"status": "not_ready", "triton": {f"{HOSTILE}{place}": 10**300 for place in range(2)}})

AT_OPENING = {
    "401": http(401),
    "503": http(503, f"Retry-After: {SHORT!r}"),
    "503 in JSON": http(503, body=READY),
    "404": http(404),
    "301": http(301, "Location: ws://h/\x1b[31m" + "x" * 60_000),
    "no HTTP": raw(f"{HOSTILE[:60_000]}\r\n\r\n"),
    "status": raw(f"HTTP/1.1 500 {SHORT}{'x' * 60_000}\r\n\r\n"),
    "extension": raw(f"HTTP/1.1 101 X\r\nSec-WebSocket-Extensions: {'x' * 60_000}\x1b\r\n\r\n"),
    "refused token": instead_of_auth_ok(lambda each: each.error(f"Invalid token: {HOSTILE}")),
    "refusal": instead_of_auth_ok(lambda each: each.error(HOSTILE, HOSTILE)),
    "reply": instead_of_auth_ok(message("inference", status=HOSTILE)),
    "no JSON": instead_of_auth_ok(lambda each: each.send_text(HOSTILE)),
    "close": instead_of_auth_ok(lambda each: each.close(1008, SHORT)),
}
IN_PLACE_OF_A_REPLY = {
    "contract": lambda each: each.reply(HOSTILE, status="FAILED"),
    "code": lambda each: each.fail(HOSTILE, HOSTILE),
    "circuit": lambda each: each.fail("TRITON_CIRCUIT_OPEN", HOSTILE, True, retry_after_seconds=HOSTILE),
    "overload": lambda each: each.fail("TRITON_OVERLOADED", HOSTILE, True, retry_after_seconds=60),
    "payload": lambda each: each.fail("C", f"413 Payload Too Large{HOSTILE} estimated_bytes={'9' * 18}"),
    "stream": lambda each: each.fail("C", f"Stream timed out after {HOSTILE}"),
    "rows": lambda each: each.fail("C", f"inference request batch-size must be <= 999999999 {HOSTILE}"),
    "status": lambda each: each.reply({}, status=HOSTILE),
    "model": lambda each: each.reply({"y": [1.0]}, model_name=HOSTILE),
    "ragged": lambda each: each.reply({HOSTILE: [[1], [1, 2]]}),
    "mixed": lambda each: each.reply({HOSTILE: [1, HOSTILE]}),
    "no outputs": lambda each: each.reply([HOSTILE]),
    "forbidden": lambda each: each.error(f"Forbidden{HOSTILE}"),
    "rate": lambda each: each.error(f"Rate limit exceeded{HOSTILE}"),
    "tenant": lambda each: each.error(HOSTILE, "BACKPRESSURE_TENANT_LIMIT_REACHED"),
    "dropped": lambda each: each.error(HOSTILE, "BACKPRESSURE_QUEUE_FULL", dropped_type=HOSTILE),
    "shutdown": lambda each: each.error(HOSTILE, "SYSTEM_SHUTDOWN"),
    "another code": lambda each: each.error(HOSTILE, HOSTILE),
    "no code": lambda each: each.error(HOSTILE),
    "another uuid": lambda each: each.send_text({"type": "inference", "uuid": HOSTILE, "payload": {}}),
    "job": lambda each: each.send_text(
        {"type": "info_response", "payload": {"status": "", "job_id": HOSTILE}}
    ),
    "no JSON": lambda each: each.send_text(HOSTILE),
    "close": lambda each: each.close(1011, SHORT),
    "too large": lambda each: each.close(1009, SHORT),
    "unsolicited": alerted,
}


@pytest.fixture
def lines(caplog):
    """Return a function that gives every log line so far, of each level, as a formatter would write it."""
    caplog.set_level(logging.DEBUG, "tcm_sync")

    def read():
        assert logs.flush(TIMEOUT)
        return [record.getMessage() for record in caplog.records if record.name.startswith("tcm_sync")]

    return read


def check(error, lines):
    seen = error
    while seen is not None:
        if isinstance(seen, TcmError):
            assert_fit(str(seen))
            assert_fit(repr(seen.code))
        seen = seen.__cause__
    for line in lines():
        assert_fit(line)


@pytest.mark.parametrize("script", AT_OPENING.values(), ids=AT_OPENING)
def test_a_connection_that_is_not_made(script, lines):
    with ScriptedPeer(script) as peer, connect(peer, connect_timeout=TIMEOUT) as client:
        with pytest.raises(TcmError) as caught:
            client.open(wait=True, timeout=TIMEOUT)
        assert_fit(repr(client))
    check(caught.value, lines)


@pytest.mark.parametrize("answer", IN_PLACE_OF_A_REPLY.values(), ids=IN_PLACE_OF_A_REPLY)
def test_a_reply_that_is_none(answer, lines):
    error = None
    with ScriptedPeer(instead_of_a_reply(answer)) as peer, connect(peer, retry=None) as client:
        try:
            result = client.infer("m", {"x": np.zeros((2, 1))}, timeout=TIMEOUT)
        except TcmError as raised:
            error = raised
        else:
            with pytest.raises(KeyError) as missing:
                result["z"]
            assert_fit(str(missing.value))
            assert_fit(repr(result))
        assert_fit(repr(client))
    check(error, lines)


def test_answers_to_queries_and_jobs(lines):
    def answer(connection, request):
        job_id = request["payload"].get("job_id")
        if request["type"] == "management":
            message("management", status=False, data=HOSTILE)(connection)
        else:
            message("info_response", job_id=job_id, status="error", error=HOSTILE)(connection)

    with ScriptedPeer(instead_of_a_reply(answer)) as peer, connect(peer) as client:
        for call in (lambda: client.info("queue_stats"), lambda: client.management("deletion")):
            with pytest.raises(TcmError) as caught:
                call()
            check(caught.value, lines)


@pytest.mark.parametrize("body", [READY, TRITON, HOSTILE])
def test_an_answer_of_ready(body, lines):
    def not_ready(connection):
        connection.read_handshake()
        connection.answer_http(503, body.encode())

    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/ready"] = not_ready
        ask(client)
        answer = client.ready()
        for text in chain([answer.explanation, answer.status], filter(None, (answer.reason, answer.detail))):
            assert_fit(text)
    check(None, lines)
