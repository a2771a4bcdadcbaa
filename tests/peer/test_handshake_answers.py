"""The handshake: answers that are no good, and what the client asks for and with what."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import itertools
import threading

import pytest
import websocket

from tcm_sync import AuthContext, AuthenticationError, ConnectFailedError, TcmClient

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import ROUTE, TOKEN, ask, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for


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
    with ScriptedPeer(script) as peer, connect(peer, connect_timeout=TIMEOUT, retry=None) as client:
        with failing(ConnectFailedError, "65,536") as caught:
            ask(client)
    assert caught.value.elapsed < TIMEOUT / 2


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
    with ScriptedPeer(script) as peer, connect(peer, retry=None) as client:
        with failing(ConnectFailedError, "503") as caught:
            ask(client)
    assert caught.value.elapsed < TIMEOUT / 2


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


def test_the_pause_that_a_refusal_asks_for_is_kept_within_the_deadline():
    """It lasts 1 s, where the first pause of the client's own is 0.1 to 0.15 s."""

    def unavailable(connection):
        connection.read_handshake()
        connection.answer_http(503, extra_headers=["Retry-After: 1"])

    with ScriptedPeer(unavailable, echo) as peer, connect(peer) as client:
        result = client.infer("m", {"x": [[7.0]]})
    assert result.elapsed >= 1.0
    assert len(peer.connections) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_is_longer_than_the_deadline_fails_the_call_at_once(status):
    def unavailable(connection):
        connection.read_handshake()
        connection.answer_http(status, extra_headers=[f"Retry-After: {4 * TIMEOUT:.0f}"])

    with ScriptedPeer(unavailable) as peer, connect(peer, connect_timeout=TIMEOUT) as client:
        for _ in range(3):
            with failing(ConnectFailedError, str(status)) as caught:
                client.infer("m", {"x": [[7.0]]}, timeout=TIMEOUT)
            assert caught.value.retry_after == 60.0
            assert caught.value.elapsed < TIMEOUT / 2
    assert len(peer.connections) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with ScriptedPeer(echo) as elsewhere:

        def redirect(connection):
            connection.read_handshake()
            connection.answer_http(status, extra_headers=[f"Location: {elsewhere.uri}"])

        with ScriptedPeer(redirect) as peer, connect(peer) as client:
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
        other = websocket.create_connection(peer.uri, timeout=TIMEOUT)
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

    with ScriptedPeer(script) as peer, connect(peer, connect_timeout=TIMEOUT, retry=None) as client:
        with failing(ConnectFailedError) as caught:
            ask(client)
    assert caught.value.elapsed < TIMEOUT / 2


# --- what is asked for ---


def test_headers_go_with_the_handshake_and_the_probes():
    with ScriptedPeer(echo) as peer, connect(peer, headers={"X-Ingress-Key": "k1"}) as client:
        client.open(wait=True)
        assert client.health() is True
        assert client.ready().ok is True
    seen = [*peer.connections, *peer.probes]
    assert [one.headers["x-ingress-key"] for one in seen] == ["k1"] * 3
    assert peer.connections[0].request_line == "GET /ws HTTP/1.1"


def test_the_request_is_the_one_of_rfc_6455():
    with ScriptedPeer(echo) as peer:
        for _ in range(2):
            with connect(peer) as client:
                client.open(wait=True)
    first, second = peer.connections
    assert first.headers["host"] == f"127.0.0.1:{peer.port}"
    assert first.headers["upgrade"].lower() == "websocket"
    assert "upgrade" in first.headers["connection"].lower()
    assert first.headers["sec-websocket-version"] == "13"
    assert "sec-websocket-extensions" not in first.headers
    assert first.headers["sec-websocket-key"] != second.headers["sec-websocket-key"]


@pytest.mark.parametrize(
    ("path", "asked", "health"),
    [
        ("/ws", "/ws", "/health"),
        ("/ws?tenant=a%20b", "/ws?tenant=a%20b", "/health"),
        ("/api/tcm/ws", "/api/tcm/ws", "/api/tcm/health"),
        ("", "/", "/health"),
    ],
)
def test_the_path_is_asked_for_as_given(path, asked, health):
    with ScriptedPeer(echo) as peer:
        peer.http[health] = (200, {"status": "ok"})
        with TcmClient(peer.uri.removesuffix("/ws") + path, route=ROUTE) as client:
            client.open(wait=True)
            assert client.health() is True
    assert peer.connections[0].request_line == f"GET {asked} HTTP/1.1"
    assert peer.probes[0].request_line == f"GET {health} HTTP/1.1"


def test_a_secret_header_is_in_no_error():
    def refuse(connection):
        connection.read_handshake()
        connection.answer_http(403, b"no")

    headers = {"Authorization": f"Bearer {TOKEN}"}
    with ScriptedPeer(refuse) as peer, connect(peer, auth=AuthContext(), headers=headers) as client:
        assert TOKEN not in repr(client)
        with failing(AuthenticationError, "403"):
            client.open(wait=True)


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "all_proxy", "ws_proxy"])
def test_a_proxy_of_the_environment_is_left_alone(monkeypatch, name):
    for variable in (name, name.upper()):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with ScriptedPeer(echo) as peer, connect(peer, retry=None) as client:
        assert ask(client, 2.0) == 2.0
        assert client.health() is True


def test_the_timeout_that_others_gave_websocket_client_is_not_ours():
    def slow(connection):
        connection.read_handshake()
        threading.Event().wait(0.1)
        echo_after_handshake(connection)

    def echo_after_handshake(connection):
        connection.answer_handshake()
        threading.Event().wait(0.1)
        connection.authenticate()
        connection.recv_request()
        threading.Event().wait(0.1)
        connection.reply({"y": [[2.0]]})
        connection.wait_eof()

    websocket.setdefaulttimeout(0.02)
    try:
        with ScriptedPeer(slow) as peer, connect(peer, retry=None) as client:
            assert ask(client) == 2.0
    finally:
        websocket.setdefaulttimeout(None)
