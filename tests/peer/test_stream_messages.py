"""Streams, message by message: how they begin, end, fail, are left, and what becomes of their sockets."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import threading
import time

import pytest

from tcm_sync import (
    CallTimeoutError,
    ClientClosedError,
    ConnectionLostError,
    ContractError,
    InferenceFailedError,
    InputError,
    PoolTimeoutError,
    ProtocolError,
    ShuttingDownError,
    StreamTimeoutError,
)
from tcm_sync._calls.stream_call import StreamCall
from tcm_sync._deadline import Deadline

from ..helpers.peer_connection import CLOSE, PING, PONG, TIMEOUT
from ..helpers.peer_scripts import ask, background, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

TIMED_OUT = "Stream timed out after 120s"


def begin(connection):
    """Welcome the client, read its request and say that the model has started."""
    connection.welcome()
    payload = connection.recv_request()
    connection.reply(None, status="START", model_name=None)
    return payload


def chunk(connection, text):
    connection.reply(text, status="ONGOING", model_name=None)


def streaming(*chunks, end=None):
    """Make a script that sends chunks, ends the stream, and echoes from then on."""

    def script(connection):
        begin(connection)
        for text in chunks:
            chunk(connection, text)
        if end is not None:
            end(connection)
        while True:
            payload = connection.recv_request()
            connection.reply({"y": payload["request"]["inputs"][0]["data"]})

    return script


def complete(connection):
    connection.reply(None, status="COMPLETED", model_name="llm")


def time_out(connection):
    connection.fail("TRITON_INFERENCE_FAILED", TIMED_OUT)


def stream(client, **options):
    return client.stream("llm", {"text": ["to be or not"]}, **options)


# --- the request and the end ---


def test_what_is_sent_and_what_comes():
    requests = []

    def script(connection):
        requests.append(begin(connection)["request"])
        for text in ("to", "größer", "", "not"):
            chunk(connection, text)
        complete(connection)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with client.stream("llm", {"text": ["a"]}, allow_transient=True, output_name="words") as chunks:
            assert list(chunks) == ["to", "größer", "", "not"]
            assert list(chunks) == []
    assert chunks.ended_by == "completed"
    assert chunks.chunks == ("to", "größer", "", "not")
    (request,) = requests
    assert request["protocol"] == "grpc"
    assert request["output_name"] == "words"
    assert request["allow_transient"] is True
    assert "ended by 'completed'" in repr(chunks)


def test_a_stream_may_end_without_a_chunk():
    with ScriptedPeer(streaming(end=complete)) as peer, connect(peer) as client:
        chunks = stream(client)
        assert chunks.ended_by == "completed"
        assert list(chunks) == []
        assert ask(client) == 1.0
    assert len(peer.uuids) == 1


def test_a_completed_stream_leaves_its_socket_for_the_next_call():
    with ScriptedPeer(streaming("a", end=complete)) as peer, connect(peer, pool_size=1) as client:
        assert list(stream(client)) == ["a"]
        assert ask(client, 7.0) == 7.0
    assert len(peer.uuids) == 1


def test_alerts_advisories_and_pings_come_between_chunks():
    def end(connection):
        connection.alert()
        chunk(connection, "b")
        connection.advise()
        connection.send_frame(PING, b"p")
        connection.wait_frame(PONG)
        connection.send_text({"type": "news", "payload": 1})
        chunk(connection, "c")
        complete(connection)

    with ScriptedPeer(streaming("a", end=end)) as peer, connect(peer) as client:
        assert list(stream(client)) == ["a", "b", "c"]
        assert ask(client) == 1.0
    assert len(peer.uuids) == 1


# --- silence ---


def test_silence_is_the_end_if_the_caller_says_so():
    with ScriptedPeer(streaming("a", "b"), echo) as peer, connect(peer) as client:
        chunks = stream(client, idle_timeout=TIMEOUT, on_idle="end")
        assert [next(chunks), next(chunks)] == ["a", "b"]
        chunks._call._idle_timeout = 0.05
        assert (list(chunks), chunks.ended_by) == ([], "idle")
        assert ask(client) == 1.0
        wait_for(peer.connections[0].over)
    assert len(peer.uuids) == 2, "a socket on which chunks may still come was used again"


def test_silence_without_a_chunk_may_be_the_end_too():
    with ScriptedPeer(streaming()) as peer, connect(peer) as client:
        chunks = stream(client, idle_timeout=0.05, on_idle="end")
        assert (list(chunks), chunks.ended_by) == ([], "idle")


def test_silence_is_a_timeout_otherwise_with_the_chunks_so_far():
    with ScriptedPeer(streaming("a", "b")) as peer, connect(peer) as client:
        chunks = stream(client, idle_timeout=TIMEOUT)
        assert [next(chunks), next(chunks)] == ["a", "b"]
        chunks._call._idle_timeout = 0.05
        with failing(CallTimeoutError, "idle_timeout", "on_idle='end'", "model 'llm'") as caught:
            list(chunks)
    assert caught.value.chunks == ("a", "b")
    assert caught.value.outcome_unknown
    assert caught.value.uuid == peer.uuids[0]
    assert chunks.ended_by == "failed"


def test_waiting_for_the_start_is_no_silence(monkeypatch):
    go_on = threading.Event()
    patience = StreamCall._silence_left
    monkeypatch.setattr(
        StreamCall, "_silence_left", lambda call: TIMEOUT if go_on.is_set() else patience(call)
    )

    def script(connection):
        connection.welcome()
        connection.recv_request()
        wait_for(go_on)
        connection.reply(None, status="START", model_name=None)
        chunk(connection, "a")
        complete(connection)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with background(lambda: list(stream(client, idle_timeout=0.1))) as result:
            wait_until(lambda: peer.requests == 1)
            time.sleep(0.3)  # the time under test: three times what would be silence
            go_on.set()
            assert result() == ["a"]


def test_what_has_come_is_taken_however_late_the_caller_is():
    go_on = threading.Event()

    def end(connection):
        wait_for(go_on)
        chunk(connection, "b")
        chunk(connection, "c")
        complete(connection)

    with ScriptedPeer(streaming("a", end=end)) as peer, connect(peer) as client:
        chunks = stream(client, idle_timeout=TIMEOUT, on_idle="end")
        assert next(chunks) == "a"
        go_on.set()
        replies = client._core.running().reader.pending.get(peer.uuids[0])
        wait_until(lambda: len(replies._items) == 3)
        chunks._call._idle_timeout = 0.01
        wait_until(lambda: chunks._call._silence_left() == 0.0)
        assert list(chunks) == ["b", "c"]
    assert chunks.ended_by == "completed"


def test_the_timeout_is_for_the_whole_stream(clock, monkeypatch):
    monkeypatch.setattr("tcm_sync._transport.replies.monotonic", clock)

    def chatter(connection):
        begin(connection)
        while True:  # there is always another chunk to be taken
            chunk(connection, "w")

    with ScriptedPeer(chatter) as peer, connect(peer) as client:
        chunks = stream(client, timeout=20.0, idle_timeout=TIMEOUT)
        assert [next(chunks), next(chunks)] == ["w", "w"]
        clock.ahead = 20.0
        with failing(CallTimeoutError, "had not ended within 20 s") as caught:
            list(chunks)
    assert set(caught.value.chunks) == {"w"}
    assert len(caught.value.chunks) == len(chunks.chunks) > 1


def test_the_limit_of_the_manager_is_an_error_that_says_what_to_do():
    with ScriptedPeer(streaming("a", end=time_out)) as peer, connect(peer) as client:
        chunks = stream(client)
        with failing(StreamTimeoutError, "120s", "idle_timeout=", "model 'llm'") as caught:
            list(chunks)
        assert chunks.ended_by == "failed"
        assert ask(client) == 1.0
    assert caught.value.chunks == ("a",)
    assert caught.value.code == "TRITON_INFERENCE_FAILED"
    assert len(peer.uuids) == 1, "the stream was over and its socket as good as any"


# --- failures ---


def test_a_server_that_does_not_stream_is_explained():
    def end(connection):
        connection.fail(
            "TRITON_INFERENCE_FAILED", "'InferenceServerClient' object has no attribute 'start_stream'"
        )

    with ScriptedPeer(streaming(end=end)) as peer, connect(peer) as client:
        with failing(InferenceFailedError, "allow_transient=True"):
            stream(client)


def test_words_in_place_of_a_start_are_a_contract_error():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply("Missing required field 'vm_ip'", status="FAILED", model_name=None)
        connection.recv_request()
        connection.reply({"y": [[1.0]]})
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(ContractError, "vm_ip"):
            stream(client)
        assert ask(client) == 1.0
    assert len(peer.uuids) == 1


@pytest.mark.parametrize("started", [False, True])
def test_before_the_first_chunk_the_policy_applies(started):
    def failing_once(connection):
        connection.welcome()
        connection.recv_request()
        if started:
            connection.reply(None, status="START", model_name=None)
        connection.fail("TRITON_OVERLOADED", retriable=True)
        connection.recv_request()
        connection.reply(None, status="START", model_name=None)
        connection.reply("a", status="ONGOING", model_name=None)
        complete(connection)
        connection.wait_eof()

    with ScriptedPeer(failing_once) as peer, connect(peer) as client:
        assert list(stream(client)) == ["a"]
    assert peer.requests == 2


def test_a_connection_lost_before_the_first_chunk_costs_an_attempt():
    def dies(connection):
        begin(connection)
        connection.drop()

    with ScriptedPeer(dies, dies, streaming("a", end=complete)) as peer, connect(peer) as client:
        assert list(stream(client)) == ["a"]
    assert peer.requests == 3


def test_a_connection_lost_after_the_first_chunk_is_raised_with_the_chunks():
    go_on = threading.Event()

    def dies(connection):
        begin(connection)
        chunk(connection, "a")
        chunk(connection, "b")
        wait_for(go_on)
        connection.drop()

    with ScriptedPeer(dies) as peer, connect(peer) as client:
        chunks = stream(client)
        assert [next(chunks), next(chunks)] == ["a", "b"]
        go_on.set()
        with failing(ConnectionLostError) as caught:
            next(chunks)
        assert list(chunks) == []
    assert caught.value.chunks == ("a", "b")
    assert caught.value.outcome_unknown
    assert peer.requests == 1


def test_a_retriable_failure_after_the_first_chunk_is_not_repeated():
    def end(connection):
        connection.fail("TRITON_OVERLOADED", retriable=True)

    with ScriptedPeer(streaming("a", end=end)) as peer, connect(peer) as client:
        chunks = stream(client)
        with pytest.raises(Exception, match="TRITON_OVERLOADED") as caught:
            list(chunks)
    assert caught.value.chunks == ("a",)
    assert peer.requests == 1


def test_a_shutdown_in_mid_stream_ends_it_with_the_chunks():
    def end(connection):
        connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")
        connection.close(1012)

    with ScriptedPeer(streaming("a", end=end)) as peer, connect(peer) as client:
        chunks = stream(client)
        with failing(ShuttingDownError) as caught:
            list(chunks)
    assert caught.value.chunks == ("a",)


@pytest.mark.parametrize(
    "odd",
    [
        {"status": "START"},
        {"status": "SOMETHING"},
        {"status": "ONGOING", "data": ["no", "text"]},
        {"status": "ONGOING", "data": None},
    ],
    ids=str,
)
def test_what_no_stream_says_ends_it_and_its_socket(odd):
    def end(connection):
        connection.reply(odd.get("data"), status=odd["status"], model_name=None)

    with ScriptedPeer(streaming("a", end=end), echo) as peer, connect(peer) as client:
        chunks = stream(client)
        with failing(ProtocolError) as caught:
            list(chunks)
        assert ask(client) == 1.0
    assert caught.value.chunks == ("a",)
    assert len(peer.uuids) == 2


@pytest.mark.parametrize("status", ["ONGOING", "COMPLETED"])
def test_what_comes_before_the_start_is_of_another_stream_and_taken_by_nobody(status):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply("stale" if status == "ONGOING" else None, status=status, model_name=None)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(ProtocolError, "begins with START"):
            stream(client)


def test_what_comes_behind_the_end_costs_the_socket():
    def end(connection):
        with connection.together():
            complete(connection)
            chunk(connection, "late")

    with ScriptedPeer(streaming("a", end=end), echo) as peer, connect(peer, pool_size=1) as client:
        assert list(stream(client)) == ["a"]
        assert ask(client, 3.0) == 3.0
    assert len(peer.uuids) == 2


# --- leaving early ---


def take_one_and_break(client):
    for text in stream(client):
        assert text == "a"
        break


def raise_inside(client):
    with contextlib.suppress(ZeroDivisionError), stream(client) as chunks:
        assert next(chunks) == "a"
        raise ZeroDivisionError


def leave_the_block(client):
    with stream(client) as chunks:
        assert next(chunks) == "a"
    assert chunks.ended_by == "closed"
    assert list(chunks) == []
    chunks.close()


def drop_it(client):
    stream(client)
    gc.collect()


@pytest.mark.parametrize("leave", [take_one_and_break, raise_inside, leave_the_block, drop_it])
def test_the_socket_of_a_stream_that_is_left_early_is_closed(leave):
    go_on = threading.Event()

    def script(connection):
        begin(connection)
        chunk(connection, "a")
        connection.wait_eof()
        go_on.set()

    with ScriptedPeer(script, echo) as peer, connect(peer, pool_size=1) as client:
        leave(client)
        assert ask(client, 5.0) == 5.0, "the next caller got a chunk"
        wait_for(go_on)
    assert len(peer.uuids) == 2


def test_a_stream_that_is_closed_gives_nothing_more():
    with ScriptedPeer(streaming("a", "b", end=complete)) as peer, connect(peer) as client:
        chunks = stream(client)
        chunks.close()
        assert list(chunks) == []
    assert chunks.ended_by == "closed"


def test_another_thread_may_close_a_stream_that_waits():
    with ScriptedPeer(streaming("a")) as peer, connect(peer) as client:
        chunks = stream(client)
        with background(lambda: list(chunks)) as rest:
            wait_until(lambda: chunks.chunks == ("a",))
            chunks.close()
            assert rest() == ["a"]
    assert chunks.ended_by == "closed"


def test_closing_the_client_ends_its_streams():
    with ScriptedPeer(streaming("a")) as peer:
        client = connect(peer)
        chunks = stream(client)
        assert next(chunks) == "a"
        client.close()
        with failing(ClientClosedError) as caught:
            next(chunks)
    assert caught.value.chunks == ("a",)


def test_a_stream_stays_in_the_process_that_opened_it():
    go_on = threading.Event()

    def end(connection):
        wait_for(go_on)
        complete(connection)

    with ScriptedPeer(streaming("a", end=end)) as peer, connect(peer) as client:
        chunks = stream(client)
        pid = os.fork()
        if pid == 0:
            try:
                assert next(chunks) == "a"
                next(chunks)
            except ConnectionLostError as error:
                os._exit(0 if "process" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        go_on.set()
        assert list(chunks) == ["a"]
        assert ask(client) == 1.0


def test_a_stream_is_not_pickled():
    with ScriptedPeer(streaming("a")) as peer, connect(peer) as client:
        with stream(client) as chunks, pytest.raises(TypeError):
            pickle.dumps(chunks)


# --- sockets ---


@contextlib.contextmanager
def streams(client, count):
    opened = [stream(client) for _ in range(count)]
    yield opened
    for each in opened:
        each.close()


def test_streams_leave_one_socket_to_the_others():
    def script(connection):
        connection.welcome()
        payload = connection.recv_request()
        while payload["request"]["protocol"] == "http":
            connection.reply({"y": payload["request"]["inputs"][0]["data"]})
            payload = connection.recv_request()
        connection.reply(None, status="START", model_name=None)
        chunk(connection, "a")
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, pool_size=3) as client:
        with streams(client, 2) as opened:
            with failing(PoolTimeoutError, "at most 2 sockets", "2 of them with streams", "pool_size is 3"):
                stream(client, timeout=0.1)
            for value in range(3):
                assert ask(client, float(value)) == value
            with background(lambda: stream(client)) as third:
                wait_until(lambda: len(client._core.running().pool.state.waiters) == 1)
                for value in range(3):
                    assert ask(client, float(value)) == value, "a waiting stream holds others up"
                opened[0].close()
                with third() as chunks:
                    assert next(chunks) == "a"
        assert len(client._core.running().pool.state.waiters) == 0
        assert ask(client, 9.0) == 9.0


def test_the_end_of_a_stream_on_a_socket_that_retires_makes_room_too():
    go_on = threading.Event()

    def script(connection):
        connection.welcome()
        payload = connection.recv_request()
        while payload["request"]["protocol"] == "http":
            connection.reply({"y": payload["request"]["inputs"][0]["data"]})
            payload = connection.recv_request()
        connection.reply(None, status="START", model_name=None)
        chunk(connection, "a")
        wait_for(go_on)
        complete(connection)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, pool_size=2) as client:
        first = stream(client)
        assert ask(client) == 1.0  # the other socket is idle now
        client._core.runtime.pool.expire(first._call.connection, "worn out")
        with background(lambda: stream(client, timeout=TIMEOUT)) as second:
            wait_until(lambda: len(client._core.runtime.pool.state.waiters) == 1)
            go_on.set()
            assert list(first) == ["a"]
            assert next(second()) == "a"


def test_the_attempts_before_a_stream_began_are_reported_when_it_fails_later():
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.fail("TRITON_OVERLOADED", retriable=True)
        connection.recv_request()
        connection.reply(None, status="START", model_name=None)
        chunk(connection, "a")
        connection.fail("TRITON_INFERENCE_FAILED")
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(InferenceFailedError, "2 attempts"):
            list(stream(client))


def test_the_only_socket_may_stream_and_is_missed_meanwhile():
    with ScriptedPeer(streaming("a"), echo) as peer, connect(peer, pool_size=1) as client:
        with stream(client):
            with failing(PoolTimeoutError, "1 of them with streams"):
                ask(client, timeout=0.1)
        assert ask(client) == 1.0


def test_a_socket_that_has_streamed_counts_as_no_stream_afterwards():
    go_on = threading.Event()

    def script(connection):
        begin(connection)
        chunk(connection, "a")
        complete(connection)
        connection.recv_request()
        wait_for(go_on)
        connection.reply({"y": [[1.0]]})
        connection.wait_eof()

    with ScriptedPeer(script, streaming("b", end=complete)) as peer, connect(peer, pool_size=2) as client:
        assert list(stream(client)) == ["a"]
        with background(lambda: ask(client)) as answer:
            wait_until(lambda: peer.requests == 2)
            assert list(stream(client, timeout=TIMEOUT)) == ["b"]
            go_on.set()
            assert answer() == 1.0


def test_streams_that_are_dropped_make_room_for_others():
    with ScriptedPeer(streaming("a")) as peer, connect(peer, pool_size=2) as client:
        for _ in range(5):
            assert next(stream(client)) == "a"
    assert len(peer.uuids) == 5


# --- slow readers ---


def test_a_stream_that_is_not_taken_is_held_up_by_tcp_and_holds_up_nobody():
    """More than all buffers hold is sent; the sender gets through only as it is taken."""
    count, text = 3000, "x" * 10_000
    sent = []

    def script(connection):
        begin(connection)
        for number in range(count):
            chunk(connection, f"{number} {text}")
            sent.append(number)
        complete(connection)
        connection.wait_eof()

    with ScriptedPeer(script, echo) as peer, connect(peer, pool_size=2) as client:
        chunks = stream(client, timeout=None, idle_timeout=TIMEOUT)
        reader = client._core.running().reader
        (connection,) = reader._connections.values()
        wait_until(lambda: connection.paused)
        replies = reader.pending.get(peer.uuids[0])
        assert replies.size < 512 * 1024
        for value in range(5):
            assert ask(client, float(value)) == value
        assert len(sent) < count, "nothing held the sender up"
        for number, taken in enumerate(chunks):
            assert taken == f"{number} {text}"
        assert number == count - 1
        assert chunks.ended_by == "completed"


def test_what_came_in_time_may_be_taken_late(clock):
    go_on = threading.Event()

    def script(connection):
        begin(connection)
        chunk(connection, "0")
        wait_for(go_on)  # until that one was taken: all others wait with the reader then
        for number in range(1, 30):
            chunk(connection, str(number))
        complete(connection)
        connection.wait_frame(CLOSE)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        chunks = stream(client, timeout=TIMEOUT)
        go_on.set()
        call = chunks._call
        wait_until(lambda: len(call._replies._items) == 30)  # and the end
        clock.ahead = TIMEOUT
        assert call.deadline.expired()
        assert list(chunks) == [str(number) for number in range(30)]
    assert chunks.ended_by == "completed"


@pytest.mark.parametrize("failed", ["answered", "lost"])
def test_a_stream_that_began_after_a_failure_is_closed_when_it_is_dropped(failed):
    """A failure keeps the frames it came through, and they the stream: nothing may wait for the collector."""

    def first(connection):
        connection.welcome()
        connection.recv_request()
        if failed == "lost":
            connection.drop()
        connection.fail("TRITON_OVERLOADED", retriable=True)
        connection.recv_request()
        streams_for_ever(connection)

    def streams_for_ever(connection):
        connection.reply(None, status="START", model_name=None)
        chunk(connection, "a")
        connection.wait_eof()

    def again(connection):
        connection.welcome()
        connection.recv_request()
        streams_for_ever(connection)

    with ScriptedPeer(first, again) as peer, connect(peer, pool_size=1) as client:
        gc.disable()
        try:
            assert next(stream(client)) == "a"
            wait_until(lambda: not client._core.runtime.pool.state.inventory.all)
        finally:
            gc.enable()
    assert peer.requests == 2


def test_a_socket_is_given_back_once():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        ask(client)
        pool = client._core.runtime.pool
        first = pool.acquire(Deadline(TIMEOUT))
        connection = first.connection
        pool.release(connection, first, used=False)
        second = pool.acquire(Deadline(TIMEOUT))
        assert second.connection is connection
        pool.release(connection, first, used=True)
        pool.discard(connection, first, "again")
        assert list(pool.state.inventory.idle) == []
        assert not connection.closed
        second.release(used=False)
        assert ask(client) == 1.0
    assert len(peer.uuids) == 1


def test_a_paused_stream_can_be_left():
    def script(connection):
        begin(connection)
        while True:
            chunk(connection, "x" * 50_000)

    with ScriptedPeer(script, echo) as peer, connect(peer, pool_size=2) as client:
        chunks = stream(client)
        (connection,) = client._core.running().reader._connections.values()
        wait_until(lambda: connection.paused)
        chunks.close()
        assert ask(client) == 1.0
        wait_for(peer.connections[0].over)


def test_a_paused_stream_is_not_taken_for_dead():
    """Several intervals of pinging pass in which it is not read."""
    enough = threading.Event()

    def script(connection):
        begin(connection)
        for number in range(40):
            chunk(connection, f"{number} " + "x" * 50_000)
        complete(connection)
        enough.wait(TIMEOUT)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        chunks = stream(client)
        reader = client._core.running().reader
        (connection,) = reader._connections.values()
        wait_until(lambda: connection.paused)
        reader._liveness.ping_interval = 0.05
        reader.wake_at(0.0)
        time.sleep(0.4)  # the time under test
        reader._liveness.ping_interval = TIMEOUT
        assert [text.split()[0] for text in chunks] == [str(number) for number in range(40)]
        enough.set()


# --- arguments ---


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"on_idle": "stop"}, "on_idle must be"),
        ({"on_idle": "end"}, "needs an idle_timeout"),
        ({"idle_timeout": 0}, "idle_timeout"),
        ({"idle_timeout": "1"}, "idle_timeout"),
        ({"output_name": ""}, "output_name"),
        ({"timeout": -1.0}, "timeout"),
        ({"retry": 3}, "retry"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_sent(wrong, words):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        with failing(InputError, words):
            stream(client, **wrong)
    assert peer.connections == []
