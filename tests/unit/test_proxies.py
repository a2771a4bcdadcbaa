"""Proxies that refuse, hang, drip, end, or are none: the error, its advice, and whether waiting may help."""

from __future__ import annotations

import socket
import threading
from base64 import b64encode

import pytest

from tcm_sync import ConnectFailedError
from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.http import probe
from tcm_sync._transport.proxies import make_proxy
from tcm_sync._transport.sockets import OpeningSockets
from tcm_sync.settings import Settings

from ..helpers.peer_connection import ClientLeft
from ..helpers.scripted_peer import ScriptedPeer

TIMEOUT = 30.0
SOON = 0.3  # seconds in which nothing more is to come
USER, PASSWORD = "proxy-user", "pr0xy-never-shown"
BASIC = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
MANAGER = "ws://manager.example:8000/ws"


def connect(port, scheme="http", *, uri=MANAGER, credentials=True, timeout=TIMEOUT):
    """Open a socket through the proxy at a port, and close it."""
    given = f"{USER}:{PASSWORD}@" if credentials else ""
    proxy = make_proxy(Settings(uri, proxy=f"{scheme}://{given}127.0.0.1:{port}"))
    opening = OpeningSockets()
    try:
        sock = proxy.connect(Endpoint.parse(uri), Addresses(), Deadline(timeout), opening)
    except ConnectFailedError as error:
        assert not opening._sockets
        seen = error
        while seen is not None:
            assert PASSWORD not in f"{seen} {seen!r}"
            assert BASIC not in f"{seen} {seen!r}"
            seen = seen.__cause__ or seen.__context__
        raise
    opening.close(sock)
    return sock


def refused_by(script, **how):
    """Return the error of a connection through a proxy with this script, and the proxy's connection."""
    with ScriptedPeer(script) as peer:
        peer.raw = True
        with pytest.raises(ConnectFailedError) as caught:
            connect(peer.port, **how)
    return caught.value, peer.connections[0] if peer.connections else None


# --- HTTP CONNECT ---


def answering(data, then=lambda connection: None):
    def script(connection):
        connection.read_handshake()
        connection.send_raw(data)
        then(connection)

    return script


@pytest.mark.parametrize(
    ("uri", "asked"),
    [
        (MANAGER, "manager.example:8000"),
        ("wss://manager.example/ws", "manager.example:443"),
        ("ws://[::1]:8000/ws", "[::1]:8000"),
        ("ws://bücher.example/ws", "xn--bcher-kva.example:80"),
    ],
)
@pytest.mark.parametrize("credentials", [True, False])
def test_what_an_http_proxy_is_asked(uri, asked, credentials):
    with ScriptedPeer(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as peer:
        connect(peer.port, uri=uri, credentials=credentials)
    (connection,) = peer.connections
    assert connection.request_line == f"CONNECT {asked} HTTP/1.1"
    basic = {"proxy-authorization": f"Basic {BASIC}"} if credentials else {}
    assert connection.headers == {"host": asked, **basic}


def test_headers_for_the_manager_are_not_sent_to_the_proxy():
    def script(connection):
        asked = connection.read_handshake()
        assert set(asked) == {"host"}
        connection.send_raw(b"HTTP/1.1 200 OK\r\n\r\n")
        assert connection.read_handshake()["authorization"] == "Bearer x"
        connection.send_raw(b"HTTP/1.1 204 X\r\n\r\n")

    with ScriptedPeer(script) as peer:
        settings = Settings(
            MANAGER, headers={"Authorization": "Bearer x"}, proxy=f"http://127.0.0.1:{peer.port}"
        )
        from tcm_sync._transport.counters import Counts
        from tcm_sync._transport.opener import Opener

        opening = OpeningSockets()
        status, _ = probe(
            Opener(settings, opening, Counts(), Addresses()), "ready", Deadline(TIMEOUT), opening
        )
    assert status == 204


@pytest.mark.parametrize("status", [b"200 OK", b"200", b"204 X", b"299 \xff"])
def test_any_2xx_is_a_connection(status):
    with ScriptedPeer(answering(b"HTTP/1.0 " + status + b"\r\nVia: x\r\n\r\n")) as peer:
        assert connect(peer.port).fileno() == -1


@pytest.mark.parametrize(
    ("status", "retriable", "advice"),
    [
        (301, False, "no proxy for CONNECT"),
        (400, False, "no proxy for CONNECT"),
        (403, False, "its rules forbid"),
        (404, False, "no proxy for CONNECT"),
        (405, False, "no proxy for CONNECT"),
        (407, False, "it refuses the credentials in its URL"),
        (429, True, "later"),
        (500, True, "later"),
        (501, False, "no proxy for CONNECT"),
        (502, True, "it cannot reach the manager"),
        (503, True, "it cannot reach the manager"),
        (504, True, "it cannot reach the manager"),
    ],
)
def test_refusals_of_an_http_proxy(status, retriable, advice):
    answer = f"HTTP/1.1 {status} Reason {BASIC} {PASSWORD}\r\nContent-Length: 3\r\n\r\n{'x' * 3}"
    error, _ = refused_by(answering(answer.encode()))
    assert error.retriable is retriable
    assert f"refused a connection to manager.example:8000 with HTTP {status} Reason *** ***" in error.message
    assert advice in error.message


@pytest.mark.parametrize(
    ("status", "lines", "pause"),
    [
        (503, ["Retry-After: 7"], 7.0),
        (429, ["retry-after:1000000000"], 60.0),
        (502, ["Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2015 07:28:30 GMT"], 30.0),
        (503, ["Retry-After: soon"], None),
        (503, [], None),
        (403, ["Retry-After: 7"], None),
    ],
)
def test_the_pause_that_an_http_proxy_asks_for(status, lines, pause):
    answer = "\r\n".join([f"HTTP/1.1 {status} Reason", *lines, "", ""])
    error, _ = refused_by(answering(answer.encode()))
    assert error.retry_after == pause


def test_a_proxy_that_requires_credentials_and_got_none():
    error, _ = refused_by(answering(b"HTTP/1.1 407 X\r\n\r\n"), credentials=False)
    assert "USER:PASSWORD@HOST:PORT" in error.message
    assert not error.retriable


def test_a_proxy_that_accepts_other_schemes_alone():
    answer = b"HTTP/1.1 407 X\r\nProxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM x\r\n\r\n"
    error, _ = refused_by(answering(answer))
    assert "accepts Negotiate, NTLM" in error.message
    both = answer.replace(b"NTLM x", b'basic realm="x"')
    error, _ = refused_by(answering(both))
    assert "refuses the credentials" in error.message


def endless(connection):
    try:
        while True:
            connection.send_raw(b"X: y\r\n" * 1000)
    except ClientLeft:
        pass


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (answering(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 102_400, endless), "a head of over 65,536 bytes"),
        (answering(b"HTTP/1.1 200 OK\r\n", endless), "a head of over 65,536 bytes"),
        (answering(b"SSH-2.0-x\r\n\r\n"), "what is not HTTP: SSH-2.0-x"),
        (answering(b"HTTP/1.1 100 Continue\r\n\r\n"), "what is not HTTP"),
        (answering(b"HTTP/1.1 OK\r\n\r\n"), "what is not HTTP"),
        (answering(b"HTTP/1.1 200 OK\r\n\r\n<html>"), "and a body: <html>"),
    ],
    ids=["a long line", "many lines", "another protocol", "an interim answer", "no status", "a web server"],
)
def test_what_is_no_http_proxy_is_reported_and_not_asked_again(script, said):
    error, _ = refused_by(script)
    assert said in error.message
    assert not error.retriable
    assert len(error.message) < 600


def drip(connection):
    wait = threading.Event()
    while True:
        connection.send_raw(b"x")
        wait.wait(0.01)


@pytest.mark.parametrize(
    "script",
    [
        lambda connection: connection.wait_eof(),
        answering(b"HTTP/1.1 200 OK\r\nX: ", lambda connection: connection.wait_eof()),
        answering(b"HTTP/1.1 200 OK\r\nX: ", drip),
    ],
    ids=["silent", "half an answer", "byte by byte"],
)
def test_an_http_proxy_that_does_not_end_its_answer_is_given_up_in_time(script):
    deadline = Deadline(TIMEOUT)
    error, _ = refused_by(script, timeout=SOON)
    assert SOON <= deadline.elapsed() < SOON + 10.0
    assert "did not answer in time when asked for manager.example:8000" in error.message
    assert error.retriable


@pytest.mark.parametrize("end", ["hang_up", "drop"])
@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_an_http_proxy_that_closes_the_connection(begun, end):
    error, _ = refused_by(answering(begun, lambda connection: getattr(connection, end)()))
    assert "ended the connection when asked for manager.example:8000" in error.message
    assert error.retriable


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_proxy_that_is_not_there(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        ConnectFailedError, match=f"the proxy {scheme}://127.0.0.1:{port} cannot be reached: "
    ):
        connect(port, scheme)


def test_a_manager_whose_name_cannot_be_written():
    error, _ = refused_by(lambda connection: connection.wait_eof(), uri=f"ws://{'ü' * 70}.example/ws")
    assert "cannot be resolved" in error.message
    assert not error.retriable


# --- SOCKS5 ---


def socks(*exchanges, then=lambda connection: connection.wait_eof()):
    """Make a script that reads what is asked and answers, in turn."""

    def script(connection):
        for size, answer in exchanges:
            connection.recv_bytes(size)
            connection.send_raw(answer)
        then(connection)

    return script


GREETING = 4  # bytes, with both methods
CREDENTIALS = 3 + len(USER) + len(PASSWORD)
REQUEST = 4 + 1 + len("manager.example") + 2
ACCEPTED = ((GREETING, b"\x05\x02"), (CREDENTIALS, b"\x01\x00"))


def test_what_a_socks_proxy_is_asked():
    heard = []

    def script(connection):
        heard.append(connection.recv_bytes(GREETING))
        connection.send_raw(b"\x05\x02")
        heard.append(connection.recv_bytes(CREDENTIALS))
        connection.send_raw(b"\x01\x00")
        heard.append(connection.recv_bytes(REQUEST))
        connection.bytewise = True
        connection.send_raw(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")

    with ScriptedPeer(script) as peer:
        peer.raw = True
        connect(peer.port, "socks5h")
    assert heard == [
        b"\x05\x02\x00\x02",
        b"\x01\x0aproxy-user\x11" + PASSWORD.encode(),
        b"\x05\x01\x00\x03\x0fmanager.example\x1f\x40",
    ]


@pytest.mark.parametrize(
    ("code", "retriable", "said"),
    [
        (1, True, "general failure"),
        (2, False, "rules"),
        (3, True, "network"),
        (4, True, "host"),
        (5, True, "refuses connections"),
        (6, True, "expired"),
        (7, False, "CONNECT"),
        (8, False, "type of address"),
    ],
)
def test_refusals_of_a_socks_proxy(code, retriable, said):
    error, _ = refused_by(
        socks(*ACCEPTED, (REQUEST, bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))), scheme="socks5h"
    )
    assert error.retriable is retriable
    assert "made no connection to manager.example:8000: " in error.message
    assert said in error.message


@pytest.mark.parametrize(
    ("script", "credentials", "said"),
    [
        (socks((3, b"\x05\xff")), False, "it requires a user name and a password"),
        (socks((3, b"\x05\x02")), False, "it requires a user name and a password"),
        (socks((GREETING, b"\x05\xff")), True, "it accepts no user name and password"),
        (socks((GREETING, b"\x05\x02"), (CREDENTIALS, b"\x01\x01")), True, "refuses the credentials"),
        (socks((GREETING, b"HTTP/1.1 400")), True, "what is not SOCKS5: HT"),
        (socks((GREETING, b"\x05\x77")), True, "what is not SOCKS5: \\x05w"),
        (socks(*ACCEPTED, (REQUEST, b"\x05\x5b\x00\x01\0\0\0\0\0\0")), True, "what is not SOCKS5"),
        (socks(*ACCEPTED, (REQUEST, b"\x04\x00\x00\x01\0\0\0\0\0\0")), True, "what is not SOCKS5"),
        (socks(*ACCEPTED, (REQUEST, b"\x05\x00\x00\x09\0\0\0\0\0\0")), True, "what is not SOCKS5"),
    ],
)
def test_what_a_socks_proxy_does_not_accept_is_not_tried_again(script, credentials, said):
    error, _ = refused_by(script, scheme="socks5h", credentials=credentials)
    assert said in error.message
    assert not error.retriable


@pytest.mark.parametrize("exchanges", [(), ACCEPTED, (*ACCEPTED, (REQUEST, b"\x05\x00\x00"))])
def test_a_socks_proxy_that_hangs_is_given_up_in_time(exchanges):
    deadline = Deadline(TIMEOUT)
    error, _ = refused_by(socks(*exchanges), scheme="socks5h", timeout=SOON)
    assert SOON <= deadline.elapsed() < SOON + 10.0
    assert "did not answer in time when asked for manager.example:8000" in error.message
    assert error.retriable


def test_a_socks_proxy_that_answers_byte_by_byte_for_ever_is_given_up_in_time():
    """The longest address is 255 bytes: it takes longer than the deadline."""
    long = socks(*ACCEPTED, (REQUEST, b"\x05\x00\x00\x03\xff"), then=drip)
    deadline = Deadline(TIMEOUT)
    refused_by(long, scheme="socks5h", timeout=SOON)
    assert SOON <= deadline.elapsed() < SOON + 10.0


@pytest.mark.parametrize("exchanges", [(), ACCEPTED[:1], ACCEPTED])
def test_a_socks_proxy_that_closes_the_connection(exchanges):
    def end(connection):
        connection.recv_some()
        connection.hang_up()

    error, _ = refused_by(socks(*exchanges, then=end), scheme="socks5h")
    assert "it closed the connection" in error.message
    assert error.retriable


# --- names ---


def resolve_to(monkeypatch, *addresses):
    """Have the manager's name resolve to these here, and nothing else."""
    real = socket.getaddrinfo

    def resolve(host, *args, **kinds):
        if host == "127.0.0.1":
            return real(host, *args, **kinds)
        assert addresses, "the name is resolved here"
        assert host == "manager.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 8000)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def take_requests(refusals):
    """Make a script that notes the addresses asked for, and refuses so many of them."""
    asked = []

    def script(connection):
        connection.recv_bytes(3)
        connection.send_raw(b"\x05\x00")
        connection.recv_bytes(3)
        (kind,) = connection.recv_bytes(1)
        size = connection.recv_bytes(1)[0] if kind == 3 else {1: 4, 4: 16}[kind]
        asked.append((kind, connection.recv_bytes(size), connection.recv_bytes(2)))
        code = 4 if len(asked) <= refusals else 0
        connection.send_raw(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))

    return script, asked


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_the_proxy_resolves_the_name_and_this_machine_does_not(monkeypatch, scheme):
    resolve_to(monkeypatch)
    if scheme == "socks5h":
        script, asked = take_requests(0)
        with ScriptedPeer(script) as peer:
            peer.raw = True
            connect(peer.port, scheme, credentials=False)
        assert asked == [(3, b"manager.example", b"\x1f\x40")]
        return
    with ScriptedPeer(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as peer:
        connect(peer.port)
    assert peer.connections[0].request_line == "CONNECT manager.example:8000 HTTP/1.1"


def test_with_socks5_the_name_is_resolved_here_and_each_address_is_tried(monkeypatch):
    resolve_to(monkeypatch, "10.1.2.3", "fe80::1%eth0", "10.1.2.3", "10.1.2.4")
    script, asked = take_requests(2)
    with ScriptedPeer(script) as peer:
        peer.raw = True
        connect(peer.port, "socks5", credentials=False)
    link_local = socket.inet_pton(socket.AF_INET6, "fe80::1")
    assert [each[:2] for each in asked] == [(1, b"\x0a\1\2\3"), (4, link_local), (1, b"\x0a\1\2\4")]


def test_a_refusal_that_may_not_pass_ends_the_trying(monkeypatch):
    resolve_to(monkeypatch, "10.1.2.3", "10.1.2.4")
    error, _ = refused_by(socks((3, b"\x05\xff")), scheme="socks5", credentials=False)
    assert "it requires" in error.message


def test_a_name_that_only_the_proxy_can_resolve(monkeypatch):
    def fail(host, *args, **kinds):
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ConnectFailedError, match=r"cannot be resolved: .*; with socks5h:// the proxy"):
        connect(1, "socks5")


def test_credentials_that_a_socks_proxy_refuses_are_not_sent_again_for_the_next_address(monkeypatch):
    resolve_to(monkeypatch, "10.1.2.3", "10.1.2.4")
    with ScriptedPeer(socks((GREETING, b"\x05\x02"), (CREDENTIALS, b"\x01\x01"))) as peer:
        peer.raw = True
        with pytest.raises(ConnectFailedError, match="refuses the credentials"):
            connect(peer.port, "socks5")
    assert len(peer.connections) == 1
