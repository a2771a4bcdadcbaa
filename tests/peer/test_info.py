"""Questions about the manager: only the job's id shows whose answer came."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import pickle

import pytest

from tcm_sync import CallTimeoutError, ContractError, InputError, ProtocolError, QueueStats

from ..helpers.peer_scripts import ask, connect, echo, echo_once, failing, timing_out
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for

STATS = {
    "info_users": 1,
    "management_users": 2,
    "inference_users": 3,
    "total_users": 6,
    "total_queued": 7,
    "info_total_queued": 0,
    "management_total_queued": 1,
    "inference_total_queued": 6,
    "executor_info_pending": 0,
    "executor_management_pending": 0,
    "executor_inference_pending": 4,
    "executor_info_available": 100,
    "executor_management_available": 49,
    "executor_inference_available": 191,
}


def answering(data=None, *, then=None, **odd):
    """Make a script that answers questions, each under its job's id unless that is to be another."""

    def script(connection):
        connection.welcome()
        while True:
            message = connection.recv_json()
            connection.count_request()
            assert message["type"] == "info"
            asked = message["payload"]
            answer = {"job_id": asked["job_id"], "request_type": asked["action"], "status": "success"}
            connection.send_text({"type": "info_response", "payload": {**answer, "data": data, **odd}})
            if then is not None:
                then(connection)

    return script


def test_the_counts_of_the_queues_are_typed():
    with ScriptedPeer(answering({**STATS, "news": [1]})) as peer, connect(peer) as client:
        stats = client.queue_stats()
    assert {name: getattr(stats, name) for name in STATS} == STATS
    assert stats.extra == {"news": [1]}
    assert repr(stats) == (
        "<QueueStats 6 users, 7 queued, 4 wait for a worker, "
        "100/49/191 more accepted (info/management/inference)>"
    )
    assert pickle.loads(pickle.dumps(stats)) == stats


def test_jobs_that_run_are_counted_by_the_places_that_they_take():
    """Of 50, 200 and 100 places, as a manager is shipped, or of those that its operator has set."""
    with ScriptedPeer(answering(STATS)) as peer, connect(peer) as client:
        stats = client.queue_stats()
    assert stats.unfinished("management") == 1 + 50 - 49
    assert stats.unfinished("inference") == 6 + 200 - 191
    assert stats.unfinished("info") == 0
    assert stats.unfinished("management", size=60) == 1 + 60 - 49


def test_a_size_that_is_too_small_is_refused_as_is_a_kind_that_there_is_not():
    with ScriptedPeer(answering({**STATS, "executor_management_available": 80})) as peer:
        with connect(peer) as client:
            stats = client.queue_stats()
    with failing(InputError, "accepts 80 more management jobs", "larger than 50", "size="):
        stats.unfinished("management")
    assert stats.unfinished("management", size=80) == 1
    with failing(InputError, "info, management, inference", "'jobs'"):
        stats.unfinished("jobs")


@pytest.mark.parametrize("wrong", [None, "7", 7.5, True, "missing"])
def test_a_count_that_is_none_is_named(wrong):
    data = {**STATS, "total_queued": wrong}
    if wrong == "missing":
        del data["total_queued"]
    with ScriptedPeer(answering(data)) as peer, connect(peer) as client:
        with failing(ProtocolError, "total_queued", "info('queue_stats')"):
            client.queue_stats()
    with pytest.raises(ProtocolError):
        QueueStats.read(data)


def test_any_question_and_its_fields_go_through():
    sent = []

    def script(connection):
        connection.welcome()
        message = connection.recv_json()
        sent.append(message["payload"])
        answer = {"job_id": "J-1", "request_type": "nope", "status": "success", "data": {"message": "no"}}
        connection.send_text({"type": "info_response", "payload": answer})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        assert client.info("nope", job_id="J-1", more=[1]) == {"message": "no"}
    assert sent == [{"action": "nope", "job_id": "J-1", "more": [1]}]


def test_each_question_has_an_id_of_its_own():
    ids = set()

    def script(connection):
        connection.welcome()
        while True:
            asked = connection.recv_json()["payload"]
            ids.add(asked["job_id"])
            answer = {"job_id": asked["job_id"], "status": "success", "data": {}}
            connection.send_text({"type": "info_response", "payload": answer})

    with ScriptedPeer(script) as peer, connect(peer) as client:
        for _ in range(5):
            client.info("x")
    assert len(ids) == 5


@pytest.mark.parametrize("other", ["another", None, ""])
def test_the_answer_to_another_question_is_never_taken(other):
    with ScriptedPeer(answering({}, job_id=other), answering({})) as peer, connect(peer) as client:
        with failing(ProtocolError, "in place of"):
            client.info("x")
        wait_for(peer.connections[0].over)
        assert client.info("x") == {}


def test_an_answer_that_is_an_error_is_a_contract_error():
    with ScriptedPeer(answering(None, status="error", error="no such thing")) as peer:
        with connect(peer) as client, failing(ContractError, "no such thing"):
            client.info("x")
    assert peer.requests == 1


@pytest.mark.parametrize(
    "odd", [{"status": "maybe", "data": {}}, {"data": [1]}, {"data": "x"}, {"data": None}]
)
def test_an_answer_of_another_form_costs_the_socket(odd):
    with ScriptedPeer(answering(**odd), echo) as peer, connect(peer) as client:
        with failing(ProtocolError):
            client.info("x")
        assert ask(client) == 1.0


def test_a_late_answer_reaches_nobody():
    def late(connection):
        connection.welcome()
        asked = connection.recv_json()["payload"]
        connection.count_request()
        connection.recv_frame()  # the client gives the socket up
        answer = {"job_id": asked["job_id"], "status": "success", "data": {"late": True}}
        connection.send_text({"type": "info_response", "payload": answer})

    with ScriptedPeer(late, answering({"late": False})) as peer, connect(peer) as client:
        with timing_out(lambda: peer.requests), failing(CallTimeoutError):
            client.info("x")
        assert client.info("x") == {"late": False}


def test_the_answer_to_a_question_is_no_reply_to_an_inference():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        answer = {"job_id": "x", "status": "success", "data": {}}
        connection.send_text({"type": "info_response", "payload": answer})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(ProtocolError):
            ask(client)


def test_a_lost_question_is_asked_again():
    def dies(connection):
        connection.welcome()
        connection.recv_json()
        connection.drop()

    with ScriptedPeer(dies, answering({"a": 1})) as peer, connect(peer) as client:
        assert client.info("x") == {"a": 1}


def test_questions_and_inferences_share_a_socket():
    def script(connection):
        connection.welcome()
        asked = connection.recv_json()["payload"]
        answer = {"job_id": asked["job_id"], "status": "success", "data": {}}
        connection.send_text({"type": "info_response", "payload": answer})
        echo_once(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        assert client.info("x") == {}
        assert ask(client, 2.0) == 2.0
    assert len(peer.uuids) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"action": ""}, "action"),
        ({"action": "x", "job_id": 7}, "job_id"),
        ({"action": "x", "more": {1, 2}}, "more: a set has no form in JSON"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_sent(arguments, words):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(InputError, words):
            client.info(**arguments)
    assert peer.connections == []
