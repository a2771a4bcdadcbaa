"""What the reader does when a socket is quiet."""

from math import inf
from time import monotonic
from types import SimpleNamespace

import pytest

from tcm_sync._reentry import Callers
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.reader import Reader
from tcm_sync._transport.replies import ReplyFuture
from tcm_sync.errors import ConnectionLostError, ProtocolError


@pytest.fixture
def reader():
    reader = Reader(10.0, Counts(), Callers())
    yield reader
    reader.abandon()


def quiet(since, pinged_at=None, *, sending=False):
    """Return what the reader asks of a connection, and the pings that it was told to send."""
    pings = []
    connection = SimpleNamespace(
        uuid="u",
        closed=True,  # so that the poller is left alone
        paused=False,
        last_received=since,
        last_sent=since,
        pinged_at=pinged_at,
        sending=sending,
        ping=pings.append,
    )
    return connection, pings


def test_a_socket_that_is_not_quiet_for_long_is_left_alone(reader):
    connection, pings = quiet(since=95.0)
    assert reader._check_liveness(connection, 100.0) == 105.0
    assert pings == []


def test_a_socket_that_was_quiet_for_the_interval_is_pinged(reader):
    connection, pings = quiet(since=90.0)
    assert reader._check_liveness(connection, 100.0) == 110.0
    assert pings == [100.0]


def test_a_pong_has_the_whole_interval_counted_from_the_ping(reader, monkeypatch):
    dropped = []
    monkeypatch.setattr(reader, "_close", lambda connection, *_: dropped.append(connection))
    connection, pings = quiet(since=80.0, pinged_at=91.0)
    assert reader._check_liveness(connection, 100.0) == 101.0
    assert dropped == []
    assert reader._check_liveness(connection, 101.0) == inf
    assert dropped == [connection]
    assert pings == []


def test_a_socket_whose_caller_is_sending_is_not_pinged(reader):
    connection, pings = quiet(since=50.0, sending=True)
    assert reader._check_liveness(connection, 100.0) == 110.0
    assert pings == []


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
    dropped = []
    monkeypatch.setattr(reader, "_poller", SimpleNamespace(register=lambda *_: None))
    monkeypatch.setattr(reader, "_watch_writing", lambda *_: None)
    monkeypatch.setattr(reader, "_read", lambda connection: None)
    monkeypatch.setattr(reader, "_close", lambda connection, *_: dropped.append(connection))
    connection, _ = quiet(since=1.0, pinged_at=2.0)
    connection.paused, connection.closed = True, False
    connection.fileno, connection.flush = (lambda: 99), (lambda: False)
    reader._resume(connection)
    assert not connection.paused
    reader._check_liveness(connection, monotonic())
    assert dropped == []


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
        reader._handle_message(SimpleNamespace(uuid="u", secret=None), message)
    assert future.outcome is None
    assert reader.pending == {"u": future}
