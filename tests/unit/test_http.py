"""Probes over plain HTTP: bounded in time and size, and honest about what came back."""

from __future__ import annotations

import contextlib
import threading

import pytest

from tcm_sync import ConnectFailedError, ProtocolError, TcmClient, TlsSettings
from tcm_sync._deadline import Deadline
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.http import probe
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.sockets import OpeningSockets
from tcm_sync.settings import Settings

from ..helpers.fixtures import authority, ca_file, server_tls  # noqa: F401 - fixtures
from ..helpers.scripted_peer import ScriptedPeer

TIMEOUT = 30.0
SOON = 0.3  # seconds in which nothing more is to come


def ask(peer, name="ready", timeout=TIMEOUT, path="/ws", **settings):
    uri = peer.uri.removesuffix("/ws") + path
    opening = OpeningSockets()
    opener = Opener(Settings(uri, **settings), opening, Counts(), Addresses())
    return probe(opener, name, Deadline(timeout), opening)


def answering(data, then=lambda connection: None):
    """Make a script that reads the request and sends bytes as they are."""

    def script(connection):
        connection.read_handshake()
        connection.send_raw(data)
        then(connection)

    return script


def read(data, **how):
    with ScriptedPeer(answering(data)) as peer:
        peer.http = {}
        return ask(peer, **how)


def test_what_is_asked():
    with ScriptedPeer(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as peer:
        peer.http = {}
        ask(peer, headers={"Authorization": "Bearer x", "X-Y": "z"})
    (connection,) = peer.connections
    assert connection.request_line == "GET /ready HTTP/1.1"
    assert connection.headers == {
        "host": f"127.0.0.1:{peer.port}",
        "authorization": "Bearer x",
        "x-y": "z",
        "accept": "application/json",
        "connection": "close",
    }


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/ws", "/health"),
        ("/prefix/ws", "/prefix/health"),
        ("/a/b/ws?x=1", "/a/b/health"),
        ("", "/health"),
        ("/socket", "/socket/health"),
    ],
)
def test_a_probe_is_beside_the_ws_of_the_path_and_without_its_query(path, asked):
    with ScriptedPeer(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as peer:
        peer.http = {}
        ask(peer, "health", path=path)
    assert peer.connections[0].request_line == f"GET {asked} HTTP/1.1"


# --- answers ---


@pytest.mark.parametrize("status", [200, 204, 302, 404, 500, 503])
def test_a_status_is_returned_whatever_it_is(status):
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nLocation: /elsewhere\r\n\r\n"
    assert read(answer.encode()) == (status, b"")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"Content-Length: 4\r\n\r\nbody", b"body"),
        (b"Content-Length: 4\r\n\r\nbody and more", b"body"),
        (b"\r\nuntil the end", b"until the end"),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n", b"abcde"),
        (b"content-length: 0\r\n\r\n", b""),
        (b"X-Long: %b\r\n\r\nx" % (b"y" * 60_000), b"x"),
    ],
)
def test_a_body_is_read_in_every_form_that_http_has(answer, body):
    assert read(b"HTTP/1.1 200 OK\r\n" + answer) == (200, body)
    assert read(b"HTTP/1.1 503 X\r\n" + answer) == (503, body)


def test_a_body_of_some_size_is_read():
    body = b"x" * 200_000
    assert read(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + body) == (200, body)
    assert read(b"HTTP/1.1 200 OK\r\n\r\n" + body) == (200, body)


def test_an_answer_before_the_answer_is_passed_over():
    assert read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx") == (200, b"x")


GARBAGE = {
    "another protocol": b"SSH-2.0-OpenSSH_9.7\r\n",
    "half a line": b"HTTP/1.1 2",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a long line": b"HTTP/1.1 200 " + b"x" * 70_000,
    "a long header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    "a chunk without a size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "TLS": b"\x15\x03\x03\x00\x02\x02\x46",
    "too much": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2**19,
    "too much, as it says": b"HTTP/1.1 200 OK\r\nContent-Length: 524288\r\n\r\n" + b"x" * 2**19,
    "too much, in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"8000\r\n%b\r\n" % (b"x" * 0x8000) * 16,
    "answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 30_000,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_not_http_or_too_long_is_a_protocol_error(name):
    with pytest.raises(ProtocolError, match="answered /ready with what is not HTTP") as caught:
        read(GARBAGE[name])
    assert len(caught.value.message) < 500
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("length", [10**6, 10**15, 10**30])
def test_a_length_is_not_believed_before_the_bytes_come(length):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nshort" % length
    with contextlib.suppress(ProtocolError):  # by Python's version
        assert read(answer) == (200, b"short")


@pytest.mark.parametrize("size", ["FFFFFFFF", "F" * 15, "F" * 40, "-5"])
def test_the_size_of_a_chunk_is_not_believed_before_the_bytes_come(size):
    answer = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nshort"
    with pytest.raises(ProtocolError):
        read(answer.encode())


# --- time ---


def drip(connection):
    """Send a byte at a time, for as long as the client listens."""
    wait = threading.Event()
    while True:
        connection.send_raw(b"x")
        wait.wait(0.01)


@pytest.mark.parametrize(
    ("begin", "then"),
    [
        (b"", lambda connection: connection.wait_eof()),
        (b"HTTP/1.1 200 OK\r\n", lambda connection: connection.wait_eof()),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab", lambda connection: connection.wait_eof()),
        (b"HTTP/1.1 200 OK\r\n\r\n", drip),
        (b"HTTP/1.1 200 OK\r\nX: ", drip),
    ],
    ids=["silent", "half a head", "half a body", "a body that drips", "a header that drips"],
)
def test_an_answer_that_does_not_end_is_given_up_in_time(begin, then):
    with ScriptedPeer(answering(begin, then)) as peer:
        peer.http = {}
        deadline = Deadline(TIMEOUT)
        with pytest.raises(ConnectFailedError, match="did not answer /ready in time"):
            ask(peer, timeout=SOON)
        assert SOON <= deadline.elapsed() < SOON + 10.0


def test_nobody_there_is_a_failure_to_connect():
    peer = ScriptedPeer(answering(b""))
    peer.stop_listening()
    with pytest.raises(ConnectFailedError, match=f"no connection to 127.0.0.1:{peer.port}"):
        ask(peer)


@pytest.mark.parametrize("end", ["hang_up", "drop"])
def test_a_connection_that_ends_without_an_answer_is_a_failure_to_connect(end):
    def script(connection):
        connection.read_handshake()
        getattr(connection, end)()

    with ScriptedPeer(script) as peer:
        peer.http = {}
        with pytest.raises(ConnectFailedError, match="did not answer /ready"):
            ask(peer)


# --- TLS ---


def test_a_probe_has_the_tls_settings_of_the_socket(server_tls, ca_file, tmp_path):  # noqa: F811
    with ScriptedPeer(answering(b"HTTP/1.1 200 OK\r\n\r\nsecret"), tls=server_tls) as peer:
        peer.http = {}
        assert ask(peer, tls=TlsSettings(ca_file=ca_file)) == (200, b"secret")
        with pytest.raises(ConnectFailedError, match="is not trusted"):
            ask(peer)
    assert len(peer.connections) == 1


# --- what the client makes of it ---


def test_redirects_are_not_followed():
    with ScriptedPeer(lambda connection: None) as other, ScriptedPeer(lambda connection: None) as peer:
        location = f"Location: http://127.0.0.1:{other.port}/ready\r\n"
        peer.http["/ready"] = answering(f"HTTP/1.1 302 Found\r\n{location}\r\n".encode())
        with TcmClient(peer.uri) as client:
            ready = client.ready()
    assert (ready.ok, ready.status) == (False, "not_ready")
    assert other.probes == other.connections == []


def test_a_probe_needs_no_open_client_and_opens_none():
    with ScriptedPeer(lambda connection: None) as peer:
        client = TcmClient(peer.uri)
        assert client.health()
        assert client.ready().raw == {"status": "ready"}
        assert repr(client).endswith(" not open>")
        client.close()
        assert client.ready(timeout=None)
    assert peer.connections == []
    assert len(peer.probes) == 3


def test_an_unreachable_manager_is_an_answer_and_no_error():
    peer = ScriptedPeer(lambda connection: None)
    peer.stop_listening()
    client = TcmClient(peer.uri)
    assert client.health() is False
    ready = client.ready()
    assert (ready.ok, ready.status, ready.error_id, ready.raw) == (False, "unreachable", None, {})
    assert "no connection to" in ready.detail
    assert not ready


def test_what_a_manager_says_of_itself_is_reported():
    def script(connection):
        connection.read_handshake()
        connection.answer_http(503, b'{"status": "not_ready", "reason": "r", "error_id": "e-1", "new": 1}')

    with ScriptedPeer(lambda connection: None) as peer:
        peer.http["/ready"] = peer.http["/health"] = script
        client = TcmClient(peer.uri)
        assert client.health() is False
        ready = client.ready()
    assert (ready.ok, ready.status, ready.reason, ready.error_id) == (False, "not_ready", "r", "e-1")
    assert ready.raw["new"] == 1
