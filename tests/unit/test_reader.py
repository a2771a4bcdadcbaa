"""What the reader does when a socket is quiet."""

from math import inf
from types import SimpleNamespace

import pytest

from tcm_sync._reentry import Callers
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.reader import Reader


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
