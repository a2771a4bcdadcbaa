"""Peers that go wrong before the first request: TCP, handshake, HTTP answers."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading

import pytest
import websocket

from tcm_sync import AuthenticationError, ConnectFailedError, TcmClient

from .connection import PATIENCE, ClientLeft
from .scripted import ScriptedPeer
from .scripts import BRISK, ROUTE, ask, connect, echo, failing, wait_for

SECONDS = 0.5  # what a test lets a connect take that never comes about


@contextlib.contextmanager
def deaf_port():
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
    with deaf_port() as port:
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


def test_a_port_that_refuses_is_given_up_after_the_connect_timeout_and_not_after_the_deadline():
    with ScriptedPeer(echo) as peer:
        peer.stop_listening()
        with connect(peer, connect_timeout=SECONDS, timeout=10 * PATIENCE) as client:
            with failing(ConnectFailedError, str(peer.port), "refused") as caught:
                ask(client)
    assert caught.value.elapsed < PATIENCE


def test_without_retries_the_first_refused_connect_is_raised():
    with ScriptedPeer(echo) as peer:
        peer.stop_listening()
        with connect(peer, connect_timeout=10 * PATIENCE, retry=None) as client:
            with failing(ConnectFailedError, str(peer.port), "refused"):
                ask(client, timeout=10 * PATIENCE)


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


# --- answers that are no good ---


def endless_header(connection):
    connection.read_handshake()
    connection.send_raw(b"HTTP/1.1 101 Switching Protocols\r\n")
    for number in itertools.count():
        connection.send_raw(b"X-Filler-%d: %s\r\n" % (number, b"a" * 1000))


def header_that_stops_past_the_limit(connection):
    connection.read_handshake()
    connection.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nX-Filler: " + b"a" * 65 * 1024)
    connection.wait_eof()


@pytest.mark.parametrize("script", [endless_header, header_that_stops_past_the_limit])
def test_a_header_over_64_kib_is_refused_at_once(script):
    with ScriptedPeer(script) as peer, connect(peer, connect_timeout=PATIENCE, retry=None) as client:
        with failing(ConnectFailedError, "65,536") as caught:
            ask(client)
    assert caught.value.elapsed < PATIENCE / 2


def test_a_header_of_60_kib_is_read():
    def long_header(connection):
        connection.accept([f"X-Filler-{number}: {'a' * 1000}" for number in range(59)])
        connection.authenticate(["json"])
        connection.recv_request()
        connection.reply({"y": [[5.0]]})
        connection.wait_eof()

    with ScriptedPeer(long_header) as peer, connect(peer) as client:
        assert ask(client) == 5.0


def endless_body(connection):
    connection.read_handshake()
    connection.send_raw(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        connection.send_raw(b"no " * 1000)


def body_that_never_comes(connection):
    connection.read_handshake()
    connection.send_raw(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 1000000\r\n\r\nno")
    connection.wait_eof()


@pytest.mark.parametrize("script", [endless_body, body_that_never_comes])
def test_the_body_of_a_refusal_is_bounded(script):
    with ScriptedPeer(script) as peer, connect(peer, connect_timeout=1.0, retry=None) as client:
        with failing(ConnectFailedError, "503") as caught:
            ask(client)
    assert caught.value.elapsed < PATIENCE / 2


@pytest.mark.parametrize("status", [401, 403])
def test_an_ingress_that_refuses_the_identity_is_an_authentication_error(status):
    def refuse(connection):
        connection.read_handshake()
        connection.answer_http(status, b'{"detail": "who are you"}')

    with ScriptedPeer(refuse) as peer, connect(peer) as client:
        with failing(AuthenticationError, str(status)):
            client.open(wait=True)
    assert len(peer.connections) == 1


def test_an_ingress_that_has_nobody_behind_it_is_asked_again():
    def unavailable(connection):
        connection.read_handshake()
        connection.answer_http(503)

    with ScriptedPeer(unavailable, unavailable, echo) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[7.0]]})
    assert result["y"].item() == 7.0
    assert result.attempts == 1
    assert len(peer.connections) == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with ScriptedPeer(echo) as elsewhere:

        def redirect(connection):
            connection.read_handshake()
            connection.answer_http(status, extra_headers=[f"Location: {elsewhere.uri}"])

        with ScriptedPeer(redirect) as peer, connect(peer, connect_timeout=SECONDS) as client:
            with failing(ConnectFailedError, str(status)):
                client.open(wait=True)
    assert elsewhere.connections == []


def test_cookies_are_never_sent_back():
    def set_cookie(connection):
        connection.accept(["Set-Cookie: session=abc; Path=/", "Set-Cookie: other=1; Domain=127.0.0.1"])
        connection.authenticate(["json"])
        connection.recv_request()
        connection.reply({"y": [[1.0]]})
        connection.close(1001)

    with ScriptedPeer(set_cookie) as peer:
        for _ in range(2):
            with connect(peer) as client:
                for _ in range(2):
                    assert ask(client) == 1.0
                    wait_for(peer.connections[-1].over)
    assert len(peer.connections) == 4
    assert not any("cookie" in connection.headers for connection in peer.connections)


def test_cookies_are_not_shared_with_other_users_of_websocket_client(monkeypatch):
    """Its jar is one for the process, filed by host: ours takes none out and puts none in."""
    monkeypatch.setattr(websocket._handshake.CookieJar, "jar", {})

    def set_cookie(connection):
        connection.accept([f"Set-Cookie: from-{connection.number}=1; Domain=127.0.0.1"])
        connection.authenticate()
        connection.wait_eof()

    def theirs(uuid):
        other = websocket.create_connection(peer.uri, timeout=PATIENCE)
        other.send(f'{{"uuid": "{uuid}", "type": "auth", "payload": {{}}}}')
        assert other.recv()
        other.shutdown()

    with ScriptedPeer(set_cookie) as peer:
        theirs("a")
        theirs("b")
        with connect(peer) as client:
            client.open(wait=True)
        theirs("c")
    cookies = [connection.headers.get("cookie") for connection in peer.connections]
    assert cookies[:3] == [None, "from-0=1", None]
    assert "from-2" not in cookies[3]


NOT_WEBSOCKET = {
    "another protocol": b"SSH-2.0-OpenSSH_9.7\r\n",
    "noise": bytes(range(256)) * 8 + b"\r\n\r\n",
    "an ordinary page": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no key accepted": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\n\r\n",
    "another key accepted": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", NOT_WEBSOCKET.values(), ids=NOT_WEBSOCKET)
def test_what_is_not_a_websocket_handshake_is_refused(answer):
    def script(connection):
        connection.read_handshake()
        connection.send_raw(answer)
        connection.hang_up()

    with ScriptedPeer(script) as peer, connect(peer, retry=None) as client:
        with failing(ConnectFailedError, str(peer.port)):
            ask(client)


@pytest.mark.parametrize(
    "header", ["Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: graphql-ws"]
)
def test_an_extension_or_subprotocol_that_was_not_asked_for_is_refused(header):
    def script(connection):
        connection.accept([header])
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(peer, connect_timeout=PATIENCE, retry=None) as client:
        with failing(ConnectFailedError) as caught:
            ask(client)
    assert caught.value.elapsed < PATIENCE / 2


def test_headers_go_with_the_handshake_and_the_probes():
    with ScriptedPeer(echo) as peer, connect(peer, headers={"X-Ingress-Key": "k1"}) as client:
        client.open(wait=True)
        assert client.health() is True
        assert client.ready().ok is True
    seen = [*peer.connections, *peer.probes]
    assert [one.headers["x-ingress-key"] for one in seen] == ["k1"] * 3
    assert peer.connections[0].request_line == "GET /ws HTTP/1.1"


def test_a_slow_handshake_succeeds_in_the_end_although_every_caller_gives_up_before():
    go_on = threading.Event()

    def slow(connection):
        connection.read_handshake()
        wait_for(go_on)
        connection.answer_handshake()
        connection.authenticate(["json"])
        while True:
            connection.recv_request()
            connection.reply({"y": [[3.0]]})

    with ScriptedPeer(slow) as peer, connect(peer, pool_size=1, connect_timeout=PATIENCE) as client:
        for _ in range(3):
            with failing(ConnectFailedError):
                ask(client, timeout=0.05)
        go_on.set()
        assert ask(client) == 3.0
    assert len(peer.connections) == 1


# --- HTTP on the same port ---


def test_health_and_ready_are_asked_beside_the_path():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        assert client.health() is True
        ready = client.ready()
        assert (ready.ok, ready.status) == (True, "ready")
        peer.http["/ready"] = (
            503,
            {
                "status": "not_ready",
                "reason": "readiness_probe_failed",
                "detail": "internal_error",
                "error_id": "e-17",
            },
        )
        ready = client.ready()
    assert (ready.ok, ready.status, ready.reason) == (False, "not_ready", "readiness_probe_failed")
    assert (ready.detail, ready.error_id) == ("internal_error", "e-17")
    assert peer.connections == []


def endless_json(connection):
    connection.read_handshake()
    connection.send_raw(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"status": "')
    with contextlib.suppress(ClientLeft):
        while True:
            connection.send_raw(b"ready" * 1000)


@pytest.mark.parametrize(
    "answer",
    [
        endless_json,
        never_handshakes,
        lambda connection: connection.drop(),
        lambda connection: connection.send_raw(b"SSH-2.0-OpenSSH_9.7\r\n"),
    ],
    ids=["endless", "silent", "dropped", "another protocol"],
)
def test_a_probe_is_bounded_and_tells_what_is_wrong(answer):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        peer.http["/health"] = peer.http["/ready"] = answer
        for probe in (client.health, client.ready):
            found = probe(timeout=SECONDS)
            assert not getattr(found, "ok", found)


@pytest.mark.parametrize("body", [b"", b"[1, 2", b"[]", b'"ready"', b'{"status": 7}', b"\xff\xfe"])
def test_a_ready_answer_of_another_kind_is_no_crash(body):
    def answer(connection):
        connection.read_handshake()
        connection.answer_http(200, body)

    with ScriptedPeer(echo) as peer, connect(peer, retry=BRISK) as client:
        peer.http["/ready"] = answer
        assert client.ready().ok in (True, False)
