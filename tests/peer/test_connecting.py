"""Peers that go wrong before the first request: TCP, handshake, HTTP answers."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import contextlib
import select
import socket
import threading

import pytest

from tcm_sync import ConnectFailedError, TcmClient

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ROUTE, ask, ask_many, background, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

SECONDS = 0.5  # what a test lets a connect take that never comes about


@contextlib.contextmanager
def port_with_full_backlog():
    """A port whose queue of connections is full: nothing answers a SYN there, and nothing refuses it."""
    with contextlib.ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(32):
            sock = held.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
            if not select.select([], [sock], [], 0.2)[1]:
                break
        else:
            pytest.skip("this kernel's queue of connections does not fill")
        yield server.getsockname()[1]


def never_handshakes(connection):
    connection.wait_eof()


def handshakes_by_halves(connection):
    connection.read_handshake()
    connection.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso")
    connection.wait_eof()


def never_authenticates(connection):
    connection.accept()
    connection.read_auth()
    connection.wait_eof()


def test_a_peer_that_never_answers_the_connect():
    with port_with_full_backlog() as port:
        uri = f"ws://127.0.0.1:{port}/ws"
        with TcmClient(uri, route=ROUTE, connect_timeout=SECONDS) as client:
            with failing(ConnectFailedError, str(port)):
                client.open(wait=True)


@pytest.mark.parametrize("script", [never_handshakes, handshakes_by_halves, never_authenticates])
def test_a_peer_that_stops_before_auth_ok(script):
    with ScriptedPeer(script) as peer, connect(peer, connect_timeout=SECONDS) as client:
        with failing(ConnectFailedError, str(peer.port)):
            client.open(wait=True)
        with failing(ConnectFailedError, str(peer.port)) as caught:
            ask(client)
    assert caught.value.attempts == 0
    assert peer.requests == 0


@pytest.mark.usefixtures("first_failure_is_awaited")
def test_a_port_that_refuses_is_given_up_after_the_connect_timeout_and_not_after_the_deadline():
    with ScriptedPeer(echo) as peer:
        peer.stop_listening()
        with connect(peer, connect_timeout=SECONDS, timeout=10 * TIMEOUT) as client:
            with failing(ConnectFailedError, str(peer.port), "refused") as caught:
                ask(client)
    assert caught.value.elapsed < TIMEOUT


def test_open_reports_a_port_that_refuses_at_once():
    with ScriptedPeer(echo) as peer:
        peer.stop_listening()
        with connect(peer, connect_timeout=10 * TIMEOUT, timeout=10 * TIMEOUT) as client:
            for _ in range(3):
                with failing(ConnectFailedError, str(peer.port), "refused"):
                    client.open()


def test_open_waits_for_a_manager_that_was_reached_before():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        client.open()
        peer.stop_listening()
        peer.connections[0].interrupt()
        wait_for(peer.connections[0].over)
        wait_until(lambda: not client.stats().sockets)
        with background(client.open) as opened:
            wait_until(lambda: "manager" in client.stats().gates)
            peer.listen()
            assert opened() is client


def test_a_port_that_refuses_is_one_warning_while_a_call_waits_and_a_line_when_it_answers(caplog):
    with ScriptedPeer(echo) as peer:
        peer.stop_listening()
        with connect(peer, connect_timeout=10 * TIMEOUT) as client:
            with background(lambda: ask(client, 2.0)) as answer:
                wait_until(lambda: sum("gate" in text for text in caplog.messages) >= 3)
                peer.listen()
                assert answer() == 2.0
    logged = [
        (record.levelname, record.getMessage()) for record in caplog.records if record.levelname != "DEBUG"
    ]
    warning, opened = (text for level, text in logged if "gate" in text)
    assert [level for level, text in logged if text == warning] == ["WARNING"]
    for text in (warning, opened):
        assert f"at 127.0.0.1:{peer.port}" in text
        assert "refused" in text


def test_without_retries_the_first_refused_connect_is_raised():
    with ScriptedPeer(echo) as peer:
        peer.stop_listening()
        with connect(peer, connect_timeout=10 * TIMEOUT, retry=None) as client:
            with failing(ConnectFailedError, str(peer.port), "refused"):
                ask(client, timeout=10 * TIMEOUT)


def test_a_manager_that_restarts_is_waited_for_and_that_is_no_attempt():
    restart = threading.Event()

    def drop_when_told(connection):
        connection.welcome()
        wait_for(restart)
        connection.drop()

    with ScriptedPeer(drop_when_told, echo) as peer, connect(peer) as client:
        client.open(wait=True)
        peer.stop_listening()
        restart.set()
        wait_for(peer.connections[0].over)
        back = threading.Timer(0.3, peer.listen)
        back.start()
        result = client.infer("m", {"x": [[7.0]]})
        back.join()
    assert result["y"].item() == 7.0
    assert result.attempts == 1


def test_a_slow_handshake_succeeds_in_the_end_although_every_caller_times_out_before():
    go_on = threading.Event()

    def slow(connection):
        connection.read_handshake()
        wait_for(go_on)
        connection.answer_handshake()
        connection.authenticate(["json"])
        while True:
            connection.recv_request()
            connection.reply({"y": [[3.0]]})

    with ScriptedPeer(slow) as peer, connect(peer, pool_size=1, connect_timeout=TIMEOUT) as client:
        for _ in range(3):
            with failing(ConnectFailedError):
                ask(client, timeout=0.05)
        go_on.set()
        assert ask(client) == 3.0
    assert len(peer.connections) == 1


@pytest.mark.parametrize(
    "others", [never_handshakes, never_authenticates, lambda connection: connection.drop()]
)
def test_one_good_socket_serves_all_while_no_other_can_be_opened(others):
    with ScriptedPeer(echo, others) as peer, connect(peer) as client:
        client.open(wait=True)
        values = [float(value) for value in range(200)]
        assert ask_many(client, values, threads=8) == values
    assert peer.connections[0].requests == 200
