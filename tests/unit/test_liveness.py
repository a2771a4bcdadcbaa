"""Which connections are dead: pings that are not answered, and what the system has recorded."""

from __future__ import annotations

import socket
from math import inf
from types import SimpleNamespace

import pytest

from tcm_sync._transport import liveness as module
from tcm_sync._transport import tcp_state
from tcm_sync._transport.liveness import TICK, Liveness
from tcm_sync._transport.tcp_state import SILENCE, TcpState, read_tcp_state

from ..helpers.packet_filter import discard_packets
from ..helpers.waiting import wait_until


class Watched(Liveness):
    """Remembers whom it closed."""

    def __init__(self):
        self.closed = []
        super().__init__(10.0, lambda *_: None, lambda connection, _: self.closed.append(connection))


@pytest.fixture
def liveness():
    return Watched()


@pytest.fixture
def system_says(monkeypatch):
    """Set what the system says of every connection."""
    return lambda *state: monkeypatch.setattr(module, "read_tcp_state", lambda _: TcpState(*state))


class FakeConnection(SimpleNamespace):
    """A connection of which only the attributes matter."""

    __hash__ = object.__hash__


def quiet(since, pinged_at=None, *, sending=False):
    """Return what is asked of a connection, and the pings that it was to send."""
    pings = []
    connection = FakeConnection(
        closed=False,
        sock=None,
        paused=False,
        last_received=since,
        last_sent=since,
        pinged_at=pinged_at,
        sending=sending,
        ping=pings.append,
        flush=lambda: False,
        queue_control=lambda *_: None,
        pool=None,
    )
    return connection, pings


@pytest.fixture(autouse=True)
def healthy(system_says):
    system_says(True, 0.0, False)


# --- pings ---


def test_a_socket_that_is_not_quiet_for_long_is_left_alone(liveness):
    connection, pings = quiet(since=95.0)
    assert liveness._look_at(connection, 100.0) == 105.0
    assert pings == []


def test_a_socket_that_was_quiet_for_the_interval_is_pinged(liveness):
    connection, pings = quiet(since=90.0)
    assert liveness._look_at(connection, 100.0) == 110.0
    assert pings == [100.0]


def test_a_pong_may_take_three_intervals_from_the_ping(liveness):
    connection, pings = quiet(since=80.0, pinged_at=91.0)
    assert liveness._look_at(connection, 120.0) == 121.0
    assert liveness.closed == []
    assert liveness._look_at(connection, 121.0) == inf
    assert liveness.closed == [connection]
    assert pings == []


def test_a_socket_whose_caller_is_sending_is_not_pinged(liveness):
    connection, pings = quiet(since=50.0, sending=True)
    assert liveness._look_at(connection, 100.0) == 110.0
    assert pings == []


def test_connections_are_looked_at_every_second_and_never_without_any(liveness):
    assert liveness.look([quiet(since=100.0)[0]], 100.0) == 100.0 + TICK
    assert liveness.look([], 100.0) == inf


# --- what the system has recorded ---


@pytest.mark.parametrize(
    ("state", "dead"),
    [
        ((False, SILENCE, True), True),
        ((True, SILENCE, True), True),  # of keepalive
        ((False, SILENCE, False), False),  # it was answered, or not asked
        ((False, SILENCE - 0.1, True), False),
    ],
)
def test_a_connection_is_dead_that_was_asked_and_stays_silent(liveness, system_says, state, dead):
    system_says(*state)
    connection, _ = quiet(since=100.0)
    liveness.look([connection], 100.0)
    assert liveness.closed == [connection] * dead


def test_the_system_says_what_was_acknowledged():
    with socket.create_server(("127.0.0.1", 0)) as server:
        if (state := read_tcp_state(server)) is None:
            pytest.skip("this system does not say")
        with socket.create_connection(server.getsockname()) as ours, server.accept()[0] as far:
            ours.sendall(b"x")
            wait_until(lambda: read_tcp_state(ours).acknowledged)
            assert not read_tcp_state(ours).unanswered
            discard_packets(far)
            ours.sendall(b"y")
            wait_until(lambda: read_tcp_state(ours).unanswered)
            state = read_tcp_state(ours)
            assert not state.acknowledged
            assert not state.is_dead
            assert 0.0 < state.silent_for < SILENCE
    assert read_tcp_state(ours) is None


@pytest.mark.parametrize(
    ("retransmits", "probes", "sent", "data", "ack", "silent_for", "unanswered"),
    [
        (0, 0, 50, 9000, 100, 0.1, False),  # an upload: the other end acknowledges, and sends nothing
        (0, 0, 9000, 100, 9000, 0.1, False),
        (1, 0, 50, 9000, 8000, 8.0, True),
        (1, 0, 9000, 8000, 8000, 8.0, False),  # what was sent again is older than the answer
        (0, 1, 9000, 9000, 8000, 8.0, True),
    ],
)
def test_silence_is_the_time_since_the_last_data_or_acknowledgement(
    monkeypatch, retransmits, probes, sent, data, ack, silent_for, unanswered
):
    monkeypatch.setattr(tcp_state, "_TCP_INFO", 11)
    values = [0] * 21
    values[2:4], values[17], values[19:21] = [retransmits, probes], sent, [data, ack]
    sock = SimpleNamespace(getsockopt=lambda *_: tcp_state._LAYOUT.pack(*values))
    assert read_tcp_state(sock) == (True, silent_for, unanswered)


def test_what_is_no_tcp_connection_has_no_state(monkeypatch):
    ours, far = socket.socketpair()
    with ours, far:
        assert read_tcp_state(ours) is None
        tcp_state.keep_alive(ours)  # and no probes
    monkeypatch.setattr(tcp_state, "_TCP_INFO", None)
    assert read_tcp_state(far) is None


def test_every_connection_is_probed_by_the_system_within_the_silence():
    with socket.socket() as sock:
        tcp_state.keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, apart, count = (sock.getsockopt(socket.IPPROTO_TCP, name) for name in names)
            assert idle + apart * count == SILENCE


# --- checks ---


class Vouching:
    """A pool that remembers whom it may lend again."""

    def __init__(self):
        self.passed = []

    def passed_check(self, connection):
        self.passed.append(connection)


@pytest.mark.parametrize("sign", ["message", "acknowledgement"])
def test_a_checked_connection_is_leased_again_after_a_sign_of_life(liveness, system_says, monkeypatch, sign):
    monkeypatch.setattr(module, "monotonic", lambda: 100.0)
    system_says(False, 0.0, False)
    connection, _ = quiet(since=99.0)
    connection.pool = Vouching()
    liveness.check([connection])
    assert liveness.look([], 100.0) == pytest.approx(100.005)
    assert liveness.look([], 100.05) == pytest.approx(100.1)
    assert liveness.look([], 101.0) == pytest.approx(101.1)
    assert connection.pool.passed == []
    if sign == "message":
        connection.last_received = 101.0
    else:
        system_says(True, 0.0, False)
    assert liveness.look([], 101.1) == inf
    assert liveness.look([], 101.2) == inf
    assert connection.pool.passed == [connection]
    assert liveness.closed == []


def test_a_checked_connection_without_one_is_closed(liveness, system_says, monkeypatch):
    monkeypatch.setattr(module, "monotonic", lambda: 100.0)
    system_says(False, 0.0, False)
    connection, _ = quiet(since=99.0)
    liveness.check([connection])
    liveness.look([], 101.9)
    assert liveness.closed == []
    assert liveness.look([], 102.0) == inf
    assert liveness.closed == [connection]
    assert not liveness._checked
