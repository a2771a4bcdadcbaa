"""What one connection may send, and what it receives: the rules that no recording shows by itself."""

from __future__ import annotations

import json
import logging

import pytest

from tcm_sync.local import session

from ..helpers.raw_connection import tensor
from ..helpers.waiting import wait_until

FORBIDDEN = {"type": "error", "payload": {"message": "Forbidden: missing 'inference' role"}}


def test_replies_are_written_as_the_manager_writes_json(serve, dial):
    raw = dial(serve(), "u", capability=["json"])
    raw.ask("echo", tensor([[1.5, 2.0]]))
    assert raw.receive_text() == (
        '{"type": "inference", "uuid": "u", "payload": '
        '{"data": {"x": [[1.5, 2.0]]}, "status": "COMPLETED", "model_name": "echo"}}'
    )


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (["json"], ["json"]),
        (["protobuf", "json"], ["json"]),
        (["protobuf"], ["json"]),
        (["shm", "json"], ["shm", "json"]),
        ([], None),
        (None, None),
    ],
)
def test_capabilities(serve, dial, asked, granted):
    raw = dial(serve())
    answer = raw.auth("u", capability=asked)
    assert answer == {"type": "auth.ok", **({} if granted is None else {"payload": {"capability": granted}})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "Message must be a dictionary"),
        ("5", "Message must be a dictionary"),
        ('{"uuid": "u"}', "Missing required field: 'type'"),
        ('{"uuid": "u", "type": "info"}', "Missing required field: 'payload'"),
        ('{"uuid": 5, "type": "info", "payload": {}}', "Field 'uuid' must be a non-empty string"),
        (
            '{"uuid": "u", "type": [], "payload": {}}',
            "Invalid type []. Must be one of: ['auth', 'inference', 'info', 'management']",
        ),
        ('{"uuid": "u", "type": "auth", "payload": {}}', "Already authenticated"),
        ('{"uuid": "u", "type": "info", "payload": {"n": Infinity}}', "Invalid JSON format"),
        ("[" * 50_000, "Invalid JSON format"),
    ],
)
def test_a_malformed_message_is_answered_and_the_socket_stays(serve, dial, text, message):
    raw = dial(serve(), "u")
    raw.send(text)
    assert raw.receive() == {"type": "error", "payload": {"message": message}}
    raw.ask_info()
    assert raw.receive()["type"] == "info_response"


def test_unknown_keys_are_tolerated(serve, dial):
    raw = dial(serve(), "u")
    raw.send({"uuid": "u", "type": "info", "payload": {"action": "queue_stats", "x": 1}, "more": [{}]})
    assert raw.receive()["payload"]["status"] == "success"


def test_a_binary_message_ends_the_connection_without_a_word(serve, dial):
    raw = dial(serve(), "u")
    raw.send(b'{"uuid": "u", "type": "info", "payload": {"action": "queue_stats"}}')
    assert raw.wait_for_close() is None


def test_pings_are_answered_while_a_request_runs(serve, dial, gated):
    raw = dial(serve(), "u")
    raw.ask("gated", tensor([1.0]))
    raw.ping()
    gated.open(1)
    assert raw.receive()["payload"]["status"] == "COMPLETED"


def test_a_uuid_is_free_again_when_its_socket_is_closed(serve, dial):
    manager = serve()
    for _ in range(3):
        raw = dial(manager, "u")
        raw.close()
        wait_until(lambda: not manager.stats().connected, "the close is noticed")


def test_a_refused_double_does_not_disturb_the_holder(serve, dial):
    manager = serve()
    holder, double = dial(manager, "u"), dial(manager)
    assert double.auth("u")["payload"]["message"] == "UUID 'u' is already connected"
    assert double.wait_for_close() == 1008
    assert holder.infer("echo", tensor([1.0]))["status"] == "COMPLETED"


@pytest.mark.usefixtures("one_second")
def test_a_uuid_that_was_refused_is_free_before_its_socket_has_closed(serve, dial):
    manager = serve(messages_per_second=1)
    old = dial(manager, "u")
    for _ in range(2):
        old.ask_info()
    assert [old.receive()["type"] for _ in range(2)] == ["info_response", "error"]
    new = dial(manager, "u")
    assert old.wait_for_close() == 1008
    wait_until(lambda: len(manager._server._sessions) == 1, "the old one is gone")
    assert new.infer("echo", tensor([1.0]))["status"] == "COMPLETED"


def test_a_reply_goes_to_whoever_holds_the_uuid_now(serve, dial, gated):
    manager = serve()
    old = dial(manager, "u")
    old.ask("gated", tensor([1.0]))
    wait_until(lambda: manager.stats().executions, "it runs")
    old.drop()
    wait_until(lambda: not manager.stats().connected, "the drop is noticed")
    new = dial(manager, "u")
    gated.open(1)
    assert new.receive()["payload"]["data"] == {"y": [1.0]}


def test_a_reply_that_nobody_waits_for_is_lost(serve, dial, gated):
    manager = serve()
    raw = dial(manager, "u")
    raw.ask("gated", tensor([1.0]))
    wait_until(lambda: manager.stats().executions, "it runs")
    raw.close()
    wait_until(lambda: not manager.stats().connected, "the close is noticed")
    gated.open(1)
    wait_until(lambda: manager.stats().lost_replies == 1, "the reply is ready")


def test_a_client_that_reads_nothing_holds_up_nobody(serve, dial):
    manager = serve({"large": lambda arrays: {"y": [0.5] * 500_000}})
    not_reading, other = dial(manager, "not_reading"), dial(manager, "other")
    for _ in range(10):
        not_reading.ask("large", tensor([1.0]))
    wait_until(lambda: manager.stats().executions.get("large") == 10, "they run")
    assert other.infer("echo", tensor([1.0]))["status"] == "COMPLETED"


# Who may do what


@pytest.mark.parametrize("roles", [["inference"], ["admin"], ["management", "inference"], [], None])
def test_open_mode_lets_in_everybody_who_states_no_other_role(serve, dial, roles):
    raw = dial(serve(), "u", client={"sub": "s", "roles": roles})
    assert raw.infer("echo", tensor([1.0]))["status"] == "COMPLETED"


def test_a_forbidden_request_leaves_the_socket_open(serve, dial):
    raw = dial(serve(), "u", client={"roles": ["management"]})
    for _ in range(2):
        raw.ask("echo", tensor([1.0]))
        assert raw.receive() == FORBIDDEN


def test_a_listed_token_is_let_in_with_the_roles_of_its_client_block(serve, dial):
    manager = serve(tokens=["good"])
    raw = dial(manager, "u", token="good", client={"roles": ["management"]})
    raw.ask("echo", tensor([1.0]))
    assert raw.receive() == FORBIDDEN
    assert dial(manager, "v", token="good").infer("echo", tensor([1.0]))["status"] == "COMPLETED"


def test_a_token_with_roles_ignores_the_client_block(serve, dial):
    raw = dial(serve(tokens={"t": ["management"]}), "u", token="t", client={"roles": ["inference"]})
    raw.ask("echo", tensor([1.0]))
    assert raw.receive() == FORBIDDEN


def test_a_token_without_roles_may_do_nothing(serve, dial):
    raw = dial(serve(tokens={"t": []}), "u", token="t")
    raw.ask("echo", tensor([1.0]))
    assert raw.receive() == FORBIDDEN


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "Invalid token: Missing token in auth payload"),
        ({"token": ""}, "Invalid token: Missing token in auth payload"),
        ({"token": "bad"}, "Invalid token: Token is not known"),
        ({"token": ["good"]}, "Invalid token: Token is not known"),
    ],
)
def test_a_bad_token_is_refused(serve, dial, payload, message):
    raw = dial(serve(tokens=["good"]))
    assert raw.auth("u", **payload) == {"type": "error", "payload": {"message": message}}
    assert raw.wait_for_close() == 1008


def test_failures_count_by_uuid_and_shut_out_a_good_token_too(serve, dial):
    manager = serve(tokens=["good"], auth_failures_per_minute=1)
    assert "not known" in dial(manager).auth("u", token="bad")["payload"]["message"]
    assert "Too many" in dial(manager).auth("u", token="good")["payload"]["message"]
    assert dial(manager).auth("v", token="good")["type"] == "auth.ok"


# Info, alerts, counters


def test_info_echoes_the_job_id(serve, dial):
    raw = dial(serve(), "u")
    for job_id in ("j", 7, [1], None):
        raw.ask_info(job_id=job_id)
        assert raw.receive()["payload"]["job_id"] == job_id


def test_an_info_action_of_the_users_is_answered_with_what_it_returns(serve, dial):
    raw = dial(serve(info={"versions": lambda: {"manager": "2.0.0"}}), "u")
    raw.ask_info("versions", job_id="j")
    assert raw.receive() == {
        "type": "info_response",
        "payload": {
            "job_id": "j",
            "request_type": "versions",
            "status": "success",
            "data": {"manager": "2.0.0"},
        },
    }


def test_an_info_action_that_raises_is_answered_with_an_error(serve, dial):
    def fail():
        raise OSError("no such table")

    raw = dial(serve(info={"versions": fail, "unwritable": object}), "u")
    raw.ask_info("versions")
    answer = {"job_id": None, "request_type": "versions", "status": "error", "error": "no such table"}
    assert raw.receive() == {"type": "info_response", "payload": answer}
    raw.ask_info("unwritable")
    assert raw.receive()["payload"]["error"] == "Object of type object is not JSON serializable"


@pytest.mark.parametrize("action", ["nope", None, ["x"]])
def test_an_info_action_that_is_not_known_is_a_success(serve, dial, action):
    raw = dial(serve(), "u")
    raw.ask_info(action)
    payload = raw.receive()["payload"]
    assert (payload["status"], payload["request_type"]) == ("success", action)
    assert payload["data"] == {"message": f"Info type '{action}' not implemented yet"}


def test_queue_stats_show_what_waits_and_what_runs(serve, dial, gated):
    manager = serve(workers=1, executor_queue_size=1)
    raw, other = dial(manager, "u"), dial(manager, "v")
    for _ in range(3):
        raw.ask("gated", tensor([1.0]))
    wait_until(lambda: (manager.stats().waiting, manager.stats().running) == (2, 1), "they are there")
    other.ask_info()
    stats = other.receive()["payload"]["data"]
    assert (stats["inference_users"], stats["total_users"]) == (1, 1)
    assert (stats["inference_total_queued"], stats["total_queued"]) == (2, 2)
    assert (stats["executor_inference_pending"], stats["executor_inference_available"]) == (0, 0)


def test_an_alert_goes_to_the_client_that_connected_first(serve, dial):
    manager = serve()
    manager.alert("nobody hears this")
    first, second = dial(manager, "a"), dial(manager, "b")
    manager.alert("x", "Kind")
    alert = first.receive()
    assert list(alert) == ["type", "error_type", "message", "timestamp"]
    assert (alert["error_type"], alert["message"]) == ("Kind", "x")
    first.close()
    wait_until(lambda: manager.stats().connected == 1, "the close is noticed")
    manager.alert("y")
    assert second.receive()["message"] == "y"


def test_the_counters_tell_what_was_seen(serve, dial):
    manager = serve()
    first = dial(manager, "a")
    first.infer("echo", tensor([1.0]))
    first.infer("missing", tensor([1.0]))
    first.ask_info()
    first.receive()
    dial(manager).auth("a")
    first.send("{")
    first.receive()
    stats = manager.stats()
    assert (stats.connections, stats.connected, stats.uuids, stats.messages) == (2, 1, ("a",), 4)
    assert (stats.executions, stats.waiting, stats.running) == ({"echo": 1}, 0, 0)
    assert stats.nacks == {"UUID 'a' is already connected": 1, "Invalid JSON format": 1}
    assert json.dumps(stats.lost_replies) == "0"


# --- connections that are of no use ---


def test_a_connection_that_does_not_authenticate_is_closed(serve, dial, monkeypatch):
    monkeypatch.setattr(session, "AUTH_TIMEOUT", 0.05)
    manager = serve()
    silent = dial(manager)
    assert silent.wait_for_close() == 1008
    monkeypatch.setattr(session, "AUTH_TIMEOUT", 30.0)
    assert dial(manager).auth("u")["type"] == "auth.ok"


def test_a_client_that_asks_and_never_reads_is_dropped_at_a_bound(serve, dial, monkeypatch):
    monkeypatch.setattr(session, "MAX_UNREAD", 100_000)
    manager = serve(info={"much": lambda: "x" * 50_000})
    asking = dial(manager, "u")

    def ask_on_and_on():
        for _ in range(100_000):
            asking.send({"uuid": "u", "type": "info", "payload": {"action": "much"}})

    with pytest.raises(ConnectionError):
        ask_on_and_on()
    other = dial(manager, "v")
    other.send({"uuid": "v", "type": "info", "payload": {"action": "much"}})
    assert other.receive()["payload"]["data"] == "x" * 50_000


def test_a_reply_over_the_bound_is_sent_to_a_client_that_reads(serve, dial, monkeypatch):
    monkeypatch.setattr(session, "MAX_UNREAD", 100_000)
    raw = dial(serve(info={"much": lambda: "x" * 200_000}), "u")
    for _ in range(20):
        raw.send({"uuid": "u", "type": "info", "payload": {"action": "much"}})
        assert len(raw.receive()["payload"]["data"]) == 200_000


def test_the_log_shows_a_uuid_as_one_short_line(serve, dial, caplog):
    caplog.set_level(logging.DEBUG, "tcm_sync.local")
    manager = serve()
    raw = dial(manager)
    raw.auth("a\nWARNING forged \x1b[31m" + "x" * 10_000)
    raw.close()
    wait_until(lambda: "has disconnected" in caplog.text)
    lines = [each.getMessage() for each in caplog.records if each.name == "tcm_sync.local"]
    assert [line for line in lines if "forged" in line]
    assert all(line.isprintable() and len(line) < 500 for line in lines)
