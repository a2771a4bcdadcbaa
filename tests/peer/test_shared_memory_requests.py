"""Shared memory against a peer that looks into the files, and refuses or loses what the test wants."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tcm_sync import (
    BackpressureError,
    CallTimeoutError,
    ConnectionLostError,
    ProtocolError,
    RateLimitedError,
    SharedMemoryRegistrationError,
    ShuttingDownError,
)

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import SHORT_PAUSES, connect, failing, timing_out
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/shm here")

SHM = Path("/dev/shm")
SIZE = 5000
REGISTRATION, UNAVAILABLE = "TRITON_SHM_REGISTRATION_FAILED", "TRITON_SHM_UNAVAILABLE"


class Seen:
    """What a peer was asked: the keys of shared memory, or None for JSON, and the first value of each."""

    def __init__(self):
        self.keys = []
        self.values = []
        self.inputs = []

    def note(self, payload):
        inputs = payload["request"]["inputs"]
        self.inputs.append(inputs)
        key = inputs[0].get("shm_key")
        self.keys.append(key)
        if key is None:
            self.values.append(np.ravel(inputs[0]["data"])[0])
        else:
            self.values.append(np.frombuffer((SHM / key[1:]).read_bytes(), np.float64)[0])

    def are_there(self):
        """Tell of each key whether its file is there."""
        return [key is not None and (SHM / key[1:]).exists() for key in self.keys]


@pytest.fixture
def seen():
    return Seen()


def welcome(connection, capability=("json", "shm")):
    connection.accept()
    connection.authenticate(list(capability))


def served(seen, *steps, capability=("json", "shm")):
    """Make a script that takes a step of its own for each request, and answers with the value after them."""

    def script(connection):
        welcome(connection, capability)
        for step in steps:
            seen.note(connection.recv_request())
            step(connection)
        while True:
            seen.note(connection.recv_request())
            answer(connection, seen)

    return script


def answer(connection, seen):
    connection.reply({"y": [float(seen.values[-1])]})


def refuse(code):
    return lambda connection: connection.fail(code)


def ask(client, value=1.0, **how):
    return client.infer("m", {"x": np.full(SIZE, value)}, **how)["y"].item()


def client_of(peer, **settings):
    return connect(peer, **{"max_message_bytes": 2**20, "pool_size": 1, **settings})


# --- what is sent ---


def test_a_reference_has_the_form_of_the_wire_and_its_file_is_this_users_alone(seen):
    found = []

    def look(connection):
        path = SHM / seen.keys[-1][1:]
        found.append((path.stat().st_size, stat.S_IMODE(path.stat().st_mode)))
        answer(connection, seen)

    with ScriptedPeer(served(seen, look)) as peer, client_of(peer) as client:
        assert ask(client, 4711.0) == 4711.0
        assert client.stats().shm_sends == 1
        [connection] = peer.connections
        assert connection.auth["capability"] == ["json", "shm"]
    [[reference]] = seen.inputs
    assert reference == {
        "name": "x",
        "shm_key": seen.keys[0],
        "offset": 0,
        "byte_size": 8 * SIZE,
        "shape": [SIZE],
        "dtype": "FP64",
    }
    assert found == [(8 * SIZE, 0o600)]


def test_the_same_file_has_the_new_contents_when_it_is_named_again(seen):
    with ScriptedPeer(served(seen)) as peer, client_of(peer) as client:
        for value in (1.0, 2.0, 3.0):
            assert ask(client, value) == value
    assert len(set(seen.keys)) == 1
    assert seen.are_there() == [False] * 3


def test_all_inputs_are_references_or_none_is(seen):
    with ScriptedPeer(served(seen)) as peer, client_of(peer) as client:
        x = np.ones(SIZE)
        client.infer("m", {"a": x, "b": x[:1]})
        client.infer("m", {"a": x, "b": ["text"]})
    assert [["shm_key" in each for each in inputs] for inputs in seen.inputs] == [[True] * 2, [False] * 2]


@pytest.mark.parametrize("granted", [["json"], None], ids=["json", "legacy"])
def test_a_socket_that_was_not_granted_it_names_no_file(seen, granted):
    def script(connection):
        connection.accept()
        connection.authenticate(granted)
        seen.note(connection.recv_request())
        answer(connection, seen)

    with ScriptedPeer(script) as peer, client_of(peer) as client:
        assert ask(client) == 1.0
    assert seen.keys == [None]


def test_a_client_that_switched_it_off_asks_for_none(seen):
    with ScriptedPeer(served(seen)) as peer, client_of(peer, shm="off") as client:
        assert ask(client) == 1.0
        [connection] = peer.connections
        assert connection.auth["capability"] == ["json"]
    assert seen.keys == [None]


def test_each_socket_has_its_own_grant(seen):
    """The first is lost with the request, and its repeat goes as JSON on the second."""
    first = served(seen, lambda connection: connection.drop())
    with ScriptedPeer(first, served(seen, capability=["json"])) as peer, client_of(peer) as client:
        assert ask(client) == 1.0
        stats = client.stats()
    assert [key is None for key in seen.keys] == [False, True]
    assert (stats.shm_sends, stats.shm_declined) == (1, {"not granted": 1})


# --- refused ---


@pytest.mark.parametrize("code", [REGISTRATION, UNAVAILABLE])
def test_a_refused_key_is_tried_once_more_with_a_file_that_was_never_used(seen, code):
    steps = [lambda connection: answer(connection, seen), refuse(code)]
    with ScriptedPeer(served(seen, *steps)) as peer, client_of(peer, retry=None) as client:
        assert [ask(client, value) for value in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
        stats = client.stats()
        assert (stats.shm_declined, stats.failures, stats.sockets_opened) == ({}, {}, 1)
        first, again, fresh, reused = seen.keys
        assert first == again != fresh == reused
        assert seen.are_there() == [False, False, True, True]
        assert "nothing is in the way" in client.explain({"x": np.ones(SIZE)})
    assert seen.values == [1.0, 2.0, 2.0, 3.0]


@pytest.mark.parametrize("code", [REGISTRATION, UNAVAILABLE])
def test_refused_twice_it_goes_as_json_and_so_do_the_next(seen, code):
    with ScriptedPeer(served(seen, *2 * [refuse(code)])) as peer, client_of(peer, retry=None) as client:
        assert [ask(client, value) for value in (1.0, 2.0)] == [1.0, 2.0]
        assert client.stats().shm_declined == {"refused": 2}
        assert f"refused: [TritonThread] {code}" in client.explain({"x": np.ones(SIZE)})
    assert seen.keys[0] != seen.keys[1]
    assert seen.keys[2:] == [None, None]


def test_refused_twice_where_it_was_asked_for_is_that_refusal(seen):
    with ScriptedPeer(served(seen, *2 * [refuse(REGISTRATION)])) as peer, client_of(peer) as client:
        with failing(SharedMemoryRegistrationError, REGISTRATION):
            ask(client, transport="shm")
        assert not any(seen.are_there())
        assert ask(client, 2.0, transport="shm") == 2.0
    assert len(set(seen.keys)) == 3


def test_another_key_after_another_call_is_tried_again(seen):
    """That a call had to take a new file says nothing of the next call."""
    steps = [refuse(REGISTRATION), *2 * [lambda connection: answer(connection, seen)]]
    with ScriptedPeer(served(seen, *steps)) as peer, client_of(peer) as client:
        for value in (1.0, 2.0):
            assert ask(client, value) == value
    refused, fresh, reused = seen.keys
    assert refused != fresh == reused


@pytest.mark.parametrize(
    ("message", "code", "kind"),
    [
        (
            "Request dropped due to backpressure (executor full).",
            "BACKPRESSURE_EXECUTOR_FULL",
            BackpressureError,
        ),
        ("Rate limit exceeded", None, RateLimitedError),
    ],
)
def test_a_refusal_of_what_never_ran_costs_no_file(seen, message, code, kind):
    def full(connection):
        connection.error(message, code)

    with ScriptedPeer(served(seen, full), served(seen)) as peer, client_of(peer, retry=None) as client:
        with failing(kind):
            ask(client)
        assert ask(client, 2.0) == 2.0
    assert len(set(seen.keys)) == 1


def test_a_failed_reply_costs_its_file(seen):
    with ScriptedPeer(served(seen, refuse("TRITON_TIMEOUT"))) as peer, client_of(peer) as client:
        assert ask(client) == 1.0
        assert seen.are_there() == [False, True]
    assert len(set(seen.keys)) == 2


# --- lost ---


def shut_down(connection):
    connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")
    connection.close(1012)


def strange(connection):
    connection.send_text({"type": "inference", "uuid": "another", "payload": {}})
    connection.wait_eof()


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda connection: connection.drop(), ConnectionLostError),
        (lambda connection: connection.hang_up(), ConnectionLostError),
        (lambda connection: connection.close(1011), ConnectionLostError),
        (shut_down, ShuttingDownError),
        (strange, ProtocolError),
    ],
    ids=["reset", "end", "close", "shutdown", "protocol"],
)
def test_what_was_lost_with_its_socket_is_not_named_again(seen, end, kind):
    with ScriptedPeer(served(seen, end), served(seen)) as peer:
        with client_of(peer, retry=None) as client:
            with failing(kind):
                ask(client)
            assert seen.are_there() == [False]
            assert ask(client, 2.0, retry=SHORT_PAUSES) == 2.0
            assert seen.are_there() == [False, True]
    assert len(set(seen.keys)) == 2


def test_a_repeat_after_a_lost_socket_has_a_file_of_its_own(seen):
    drop = served(seen, lambda connection: connection.drop())
    with ScriptedPeer(drop, drop, served(seen)) as peer, client_of(peer, retry=SHORT_PAUSES) as client:
        assert ask(client) == 1.0
        assert seen.are_there() == [False, False, True]
    assert len(set(seen.keys)) == 3
    assert seen.values == [1.0] * 3


def test_what_timed_out_is_not_named_again_though_the_answer_comes_later(seen):
    go_on = threading.Event()

    def late(connection):
        wait_for(go_on)
        answer(connection, seen)
        connection.wait_eof()

    with ScriptedPeer(served(seen, late), served(seen)) as peer, client_of(peer) as client:
        with timing_out(lambda: seen.values), failing(CallTimeoutError):
            ask(client)
        assert seen.are_there() == [False]
        go_on.set()
        assert ask(client, 2.0) == 2.0
    assert len(set(seen.keys)) == 2


def test_when_all_sockets_are_lost_what_was_idle_is_retired(seen):
    """A manager that comes after this one would refuse its keys."""

    def leave(connection):
        answer(connection, seen)
        connection.close(1001)

    with ScriptedPeer(served(seen, leave), served(seen)) as peer, client_of(peer) as client:
        assert ask(client) == 1.0
        wait_for(peer.connections[0].over)
        assert ask(client, 2.0) == 2.0
        assert seen.are_there() == [False, True]
    assert len(set(seen.keys)) == 2


def test_when_one_of_two_sockets_is_lost_what_is_idle_stays(seen):
    meeting = threading.Barrier(2)
    lock = threading.Lock()

    def script(connection):
        welcome(connection)
        while True:
            payload = connection.recv_request()
            with lock:
                seen.note(payload)
                value = seen.values[-1]
            if value == 1.0:
                meeting.wait(TIMEOUT)
            connection.reply({"y": [float(value)]})
            if value == 2.0:
                connection.close(1001)

    with ScriptedPeer(script) as peer, client_of(peer, pool_size=2) as client:
        calls = [client.submit("m", {"x": np.full(SIZE, 1.0)}) for _ in range(2)]
        assert [call.result(TIMEOUT)["y"].item() for call in calls] == [1.0, 1.0]
        assert ask(client, 2.0) == 2.0
        assert ask(client, 3.0) == 3.0
        assert len(peer.connections) == 2
    assert len(set(seen.keys)) == 2


def renew_sockets(client):
    """Have the client close its idle sockets by itself, as it does with old ones."""
    pool = client._core.runtime.pool
    for connection in list(pool.state.inventory.all.values()):
        pool.expire(connection, "as if")


def test_a_socket_that_the_client_closes_itself_retires_nothing(seen):
    with ScriptedPeer(served(seen)) as peer, client_of(peer) as client:
        for value in (1.0, 2.0, 3.0):
            assert ask(client, value) == value
            renew_sockets(client)
        assert len(peer.connections) == 3
    assert len(set(seen.keys)) == 1


def test_a_lost_socket_for_management_retires_nothing(seen):
    """What serves inferences is there, so that the manager is the same."""

    def manage(connection):
        welcome(connection)
        message = connection.recv_json()
        assert message["type"] == "management"
        connection.drop()

    with ScriptedPeer(served(seen), manage, served(seen)) as peer, client_of(peer) as client:
        assert ask(client) == 1.0
        with pytest.raises(ConnectionLostError):
            client.management("deletion", timeout=TIMEOUT)
        renew_sockets(client)
        assert ask(client, 2.0) == 2.0
    assert len(set(seen.keys)) == 1


def test_a_file_that_somebody_unlinked_is_not_named_again(seen):
    with ScriptedPeer(served(seen)) as peer, client_of(peer) as client:
        assert ask(client) == 1.0
        (SHM / seen.keys[0][1:]).unlink()
        assert ask(client, 2.0) == 2.0
        assert client.stats().sockets_opened == 1
    assert len(set(seen.keys)) == 2
