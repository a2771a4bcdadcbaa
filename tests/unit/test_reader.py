"""What the reader does with the sockets that it has."""

import errno
from time import monotonic
from types import SimpleNamespace

import pytest

from tcm_sync._reentry import Callers
from tcm_sync._transport import liveness
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.reader import Reader
from tcm_sync._transport.replies import ReplyFuture
from tcm_sync.errors import ConnectionLostError, MessageTooLargeError, ProtocolError


@pytest.fixture
def reader():
    reader = Reader(10.0, Counts(), Callers())
    yield reader
    reader.close_inherited()


def test_a_call_that_begins_while_its_socket_is_being_closed_is_ended(reader):
    future, error = ReplyFuture(), ConnectionLostError("planned")
    connection = SimpleNamespace(
        uuid="u",
        fileno=lambda: 99,
        paused=True,  # so that the poller is left alone
        pool=None,
        # A call that finds the socket open adds its future at the last moment.
        close=lambda *_: reader.pending.setdefault("u", future),
    )
    reader._connections[99] = connection
    reader._close(connection, None, error, "lost")
    assert future.refusal(0.0).error is error
    assert reader.pending == {}


def test_a_socket_that_is_resumed_after_a_long_pause_is_not_taken_for_dead(reader, monkeypatch):
    dropped, pings = [], []
    monkeypatch.setattr(reader, "_poller", SimpleNamespace(register=lambda *_: None))
    monkeypatch.setattr(reader, "_watch_writing", lambda *_: None)
    monkeypatch.setattr(reader, "_read", lambda connection: None)
    monkeypatch.setattr(reader._liveness, "_close_dead", lambda connection, _: dropped.append(connection))
    connection = SimpleNamespace(
        uuid="u",
        fileno=lambda: 99,
        flush=lambda: False,
        sock=SimpleNamespace(),
        paused=True,
        closed=False,
        last_received=1.0,
        last_sent=1.0,
        pinged_at=2.0,
        sending=False,
        ping=pings.append,
    )
    monkeypatch.setattr(liveness, "read_tcp_state", lambda _: None)
    reader._resume(connection)
    assert not connection.paused
    reader._liveness._look_at(connection, monotonic())
    assert dropped == []


@pytest.mark.parametrize(
    ("number", "checked"), [(errno.ETIMEDOUT, True), (errno.EHOSTUNREACH, True), (errno.ECONNRESET, False)]
)
def test_the_other_connections_are_checked_before_the_call_of_a_dead_one_is_repeated(reader, number, checked):
    def fail(_):
        raise OSError(number, "planned")

    future = reader.pending["u"] = ReplyFuture()
    outcomes = []
    reader.add_pool(SimpleNamespace(check_silent=lambda since: outcomes.append(future.outcome)))
    connection = SimpleNamespace(
        uuid="u",
        fileno=lambda: 99,
        paused=True,  # so that the poller is left alone
        pool=None,
        is_tls=False,
        receive_into=fail,
        close=lambda *_: None,
    )
    reader._connections[99] = connection
    reader._read(connection)
    assert outcomes == [None] * checked
    assert type(future.refusal(0.0).error) is ConnectionLostError


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (b"inference", b'{"status": "COMPLETED", "data": {}}'),
        (b"management", b'{"status": true, "action": "create_vm", "data": null}'),
    ],
)
def test_a_reply_that_names_another_socket_answers_nothing(reader, kind, payload):
    future = reader.pending["u"] = ReplyFuture()
    message = b'{"type": "%b", "uuid": "of-another", "payload": %b}' % (kind, payload)
    with pytest.raises(ProtocolError, match=r"of-another.* on the socket of u"):
        reader._incoming._handle_message(SimpleNamespace(uuid="u", secret=None), message)
    assert future.outcome is None
    assert reader.pending == {"u": future}


def test_a_reader_that_fails_ends_the_waits_of_its_pools(reader):
    ends = []
    reader.add_pool(SimpleNamespace(close=ends.append))
    reader.failure = ZeroDivisionError("planted")
    reader._close_all()
    (error,) = ends
    assert type(error) is ConnectionLostError
    assert "planted" in error.message


@pytest.mark.parametrize(
    ("code", "kind", "answer"),
    [
        (1000, ConnectionLostError, 1000),
        (1002, ProtocolError, 1002),
        (1003, ProtocolError, 1003),
        (1005, ConnectionLostError, 1000),  # there was no code, and none may be sent that says so
        (1007, ProtocolError, 1007),
        (1008, ConnectionLostError, 1008),
        (1009, MessageTooLargeError, 1009),
        (1012, ConnectionLostError, 1012),
    ],
)
def test_what_a_close_frame_means_for_the_call_and_what_is_answered(reader, monkeypatch, code, kind, answer):
    closed = []
    monkeypatch.setattr(reader._incoming, "_close", lambda *how: closed.append(how))
    reader._incoming._handle_close(SimpleNamespace(uuid="u"), code, "why")
    ((_, frame, error, said),) = closed
    assert type(error) is kind
    assert said == f"closed by the manager: code {code} (why)"
    assert said in error.message
    sent = bytes(byte ^ key for byte, key in zip(frame[6:], frame[2:4], strict=True))
    assert sent == answer.to_bytes(2, "big")


@pytest.mark.parametrize(("stays_open", "paused"), [(False, False), (True, True), (False, True)])
def test_a_tls_socket_that_was_closed_or_paused_is_read_no_further(reader, monkeypatch, stays_open, paused):
    """A TLS object may hold more, which is read at once where nothing speaks against it."""
    reads, later = [], []
    monkeypatch.setattr(reader._incoming, "receive", lambda *_: stays_open)
    monkeypatch.setattr(reader, "run_soon", later.append)
    connection = SimpleNamespace(
        is_tls=True, paused=paused, receive_into=lambda _: reads.append(1) or 10, last_received=0.0
    )
    reader._read(connection)
    assert (len(reads), later) == (1, [])


def test_where_one_socket_is_dead_the_others_are_checked(reader):
    doubts, closed = [], []
    reader.add_pool(SimpleNamespace(check_silent=doubts.append, lost=lambda *how: closed.append(how)))
    connection = SimpleNamespace(
        uuid="u", fileno=lambda: 99, paused=True, pool=reader._pools[0], close=lambda *how: None
    )
    reader._connections[99] = connection
    before = monotonic()
    reader._close_dead(connection, "no sign of life")
    (since,) = doubts
    assert before - 2.0 < since < monotonic()
    assert closed == [(connection, "no sign of life")]


def test_a_reader_that_fails_ends_every_call_and_keeps_why(reader, monkeypatch):
    future = reader.pending["u"] = ReplyFuture()
    planted = ZeroDivisionError("planted")

    def fail():
        raise planted

    monkeypatch.setattr(reader, "_poll_once", fail)
    reader.start()
    assert reader.join(10.0)
    assert reader.failure is planted
    assert reader.stopping
    assert "planted" in future.refusal(0.0).error.message
    assert reader.pending == {}
