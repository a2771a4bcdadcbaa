"""The opening handshake: what goes out, and what is taken for an answer."""

from __future__ import annotations

import re
import socket
import time

import pytest

from tcm_sync import AuthenticationError, ConnectFailedError
from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._secrets import Secret
from tcm_sync._transport.handshake import perform_handshake
from tcm_sync._transport.heads import HEAD_BYTES
from tcm_sync._transport.sockets import shut_down

from ..helpers.scripted_peer import ScriptedPeer

TIMEOUT = 30.0
GUARD = 3.0  # seconds of the processor, for what takes milliseconds
SOON = 0.3  # seconds in which nothing more is to come


def shake(script, *, path="/ws", headers=None, timeout=TIMEOUT):
    """Shake hands with a script; return what came behind its answer, and its end of the connection."""
    with ScriptedPeer(script) as peer:
        endpoint = Endpoint.parse(peer.uri.removesuffix("/ws") + path)
        with socket.create_connection((endpoint.host, endpoint.port)) as sock:
            secrets = {name: Secret(value) for name, value in (headers or {}).items()}
            rest = perform_handshake(sock, endpoint, secrets, Deadline(timeout))
            shut_down(sock)
    return rest, peer.connections[0]


def answering(*lines, body=b"", then=lambda connection: None):
    """Make a script that answers with these header lines; ``{accept}`` is what the key asks for."""

    def script(connection):
        connection.read_handshake()
        said = []
        send, connection.send_raw = connection.send_raw, said.append
        connection.answer_handshake()
        connection.send_raw = send
        accept = re.search(rb"Accept: (\S+)", said[0])[1].decode()
        head = "\r\n".join([*lines, "", ""]).replace("{accept}", accept)
        connection.send_raw(head.encode("latin-1") + body)
        then(connection)

    return script


SWITCH = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
GOOD = (*SWITCH, "Sec-WebSocket-Accept: {accept}")


def refused(*lines, kind=ConnectFailedError, **how):
    with pytest.raises(kind) as caught:
        shake(answering(*lines, **how))
    assert type(caught.value) is kind
    assert len(caught.value.message) < 500
    assert caught.value.message.isprintable()
    return caught.value


# --- what goes out ---


def test_what_is_asked_for():
    _, connection = shake(answering(*GOOD))
    headers = connection.headers
    assert connection.request_line == "GET /ws HTTP/1.1"
    assert len(headers.pop("sec-websocket-key")) == 24
    assert headers == {
        "host": f"127.0.0.1:{connection.peer.port}",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
    }


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/prefix/ws", "/prefix/ws"),
        ("", "/"),
        ("/ws?a=1&b=%20", "/ws?a=1&b=%20"),
        ("/a%2Fb//c/../ws;p", "/a%2Fb//c/../ws;p"),
    ],
)
def test_the_path_is_asked_for_exactly_as_given(path, asked):
    _, connection = shake(answering(*GOOD), path=path)
    assert connection.request_line == f"GET {asked} HTTP/1.1"


def test_headers_are_sent_as_given():
    headers = {"Authorization": "Bearer x", "Cookie": "a=b; c=d", "X-Empty": "", "Origin": "https://o"}
    _, connection = shake(answering(*GOOD), headers=headers)
    for name, value in headers.items():
        assert connection.headers[name.lower()] == value


@pytest.mark.parametrize("name", ["Cookie", "cookie", "COOKIE"])
def test_the_only_cookies_are_the_users(name, monkeypatch):
    """Cookies that another user of websocket-client in this process has received change nothing."""
    from websocket import _handshake

    jar = type(_handshake.CookieJar)()
    jar.add("session=of-another; domain=127.0.0.1")
    monkeypatch.setattr(_handshake, "CookieJar", jar)
    _, plain = shake(answering(*GOOD, "Set-Cookie: theirs=1; domain=127.0.0.1"))
    assert "cookie" not in plain.headers
    _, connection = shake(answering(*GOOD), headers={name: "ours=1"})
    assert connection.headers["cookie"] == "ours=1"
    assert "theirs" not in jar.get("127.0.0.1")


# --- good answers ---


@pytest.mark.parametrize("rest", [b"", b"\x81", b"\x81\x02hi\x88\x00", b"\r\n\r\n" * 100])
def test_what_comes_behind_the_answer_is_returned(rest):
    assert shake(answering(*GOOD, body=rest), timeout=TIMEOUT)[0] == rest


def test_the_answer_may_come_one_byte_at_a_time():
    def script(connection):
        connection.bytewise = True
        answering(*GOOD)(connection)

    assert shake(script)[0] == b""


@pytest.mark.parametrize(
    "lines",
    [
        ("HTTP/1.1 101", *GOOD[1:]),
        ("HTTP/1.1 101 Web Socket Protocol Handshake", *GOOD[1:]),
        (GOOD[0], "UPGRADE: WebSocket", "connection: keep-alive, Upgrade", "sec-websocket-accept: {accept}"),
        (*GOOD, "Set-Cookie: a=b", "Content-Length: 100", "Transfer-Encoding: chunked"),
        (*GOOD, "X-Long: " + "x" * 60_000),
    ],
)
def test_answers_that_are_good_in_spite_of_their_looks(lines):
    assert shake(answering(*lines))[0] == b""


# --- answers that are none ---


@pytest.mark.parametrize(
    "lines",
    [
        SWITCH,
        (*SWITCH, "Sec-WebSocket-Accept: "),
        (*SWITCH, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        (GOOD[0], *GOOD[2:]),
        (*GOOD[:2], *GOOD[3:]),
        (GOOD[0], "Upgrade: h2c", *GOOD[2:]),
        (*GOOD[:2], "Connection: close", GOOD[3]),
        ("SSH-2.0-OpenSSH_9.7",),
        ("HTTP/1.1 OK",),
        ("HTTP/1.1 999 What",),
        ("",),
        (GOOD[0], "no colon here", *GOOD[1:]),
    ],
)
def test_a_server_that_does_not_speak_websocket_is_reported_as_that(lines):
    assert "does not speak WebSocket" in refused(*lines).message


@pytest.mark.parametrize(
    "header",
    [
        "Sec-WebSocket-Extensions: permessage-deflate",
        "sec-websocket-extensions: x",
        "Sec-WebSocket-Protocol: chat",
        "SEC-WEBSOCKET-PROTOCOL : \t",
    ],
)
def test_what_was_not_asked_for_is_refused_permanently(header):
    error = refused(*GOOD, header)
    assert "which was not asked for (RFC 6455, section 4.1)" in error.message
    assert header.split(":")[0].rstrip() in error.message
    assert not error.retriable


@pytest.mark.parametrize(
    ("status", "retriable"),
    [
        *((status, False) for status in (300, 301, 302, 303, 307, 308, 400, 404, 405, 410, 426)),
        *((status, True) for status in (200, 204, 408, 425, 429, 500, 502, 503, 504)),
    ],
)
def test_a_refusal_is_reported_with_its_status_and_whether_it_may_pass(status, retriable):
    error = refused(f"HTTP/1.1 {status} Whatever", "Location: ws://127.0.0.1:1/ws", "Content-Length: 0")
    assert f"HTTP {status}" in error.message
    assert error.retriable is retriable


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("wss://other.example/tcm/ws", "a redirect to wss://other.example/tcm/ws, which is not followed"),
        ("https://other.example:8443/ws", "a redirect to wss://other.example:8443/ws,"),
        ("//other.example/ws", "a redirect to ws://other.example/ws,"),
        ("/elsewhere/ws", "/elsewhere/ws, which is not followed"),
        ("https://me:secret@other.example/ws?ticket=secret#secret", "to wss://other.example/ws,"),
        ("https://other.example/\x1b", r"wss://other.example/\x1b,"),
        ("http://[::1", "a redirect, which is not followed: use the final address"),
        ("", "a redirect, which is not followed: use the final address"),
    ],
)
@pytest.mark.parametrize("name", ["Location", "location"])
def test_a_redirect_names_the_new_address_without_credentials(location, said, name):
    message = refused("HTTP/1.1 302 Found", f"{name}: {location}").message
    assert said in message
    assert "secret" not in message


def test_a_redirect_without_an_address_is_reported_as_one():
    assert "use the final address" in refused("HTTP/1.1 302 Found").message


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "the path is usually /ws, and was /"),
        ("/news", "the path is usually /ws, and was /news"),
        ("/ws", "nothing is at /ws there"),
        ("/tcm/ws?a=b", "nothing is at /tcm/ws there"),
        ("/ws/", "nothing is at /ws/ there"),
    ],
)
def test_what_is_said_of_a_path_that_is_not_found_fits_the_path(path, said):
    with pytest.raises(ConnectFailedError) as caught:
        shake(answering("HTTP/1.1 404 Not Found"), path=path)
    assert said in caught.value.message
    assert ("usually" in said) is ("usually" in caught.value.message)


@pytest.mark.parametrize("status", [429, 503, 502, 408])
@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (["Retry-After: 120"], 60.0),
        (["Retry-After: 1" + "0" * 400], 60.0),
        (["Retry-After: 007"], 7.0),
        (["Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2099 07:28:00 GMT"], 60.0),
        (["retry-after:0 "], 0.0),
        (["Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2015 07:28:30 GMT"], 30.0),
        (["Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wednesday, 21-Oct-15 07:29:00 GMT"], 60.0),
        (["Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wed Oct 21 07:28:01 2015"], 1.0),
        (["Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2015 07:27:00 GMT"], 0.0),
        (["Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"], 0.0),
        (["Date: soon", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"], 0.0),
        *(
            ([f"Retry-After: {text}"], None)
            for text in ("", "soon", "-1", "1.5", "1e3", "Wed, 99 Oct 2015 07:28:00 GMT", "\xff")
        ),
        ([], None),
    ],
)
def test_what_a_refusal_that_may_pass_asks_for_is_kept(status, lines, seconds):
    assert refused(f"HTTP/1.1 {status} Whatever", *lines).retry_after == seconds


def test_a_date_is_compared_with_this_machines_clock_if_the_answer_has_none(monkeypatch):
    monkeypatch.setattr("tcm_sync._transport.heads.time.time", lambda: 1445412480.0 - 12.0)
    error = refused("HTTP/1.1 503 X", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT")
    assert error.retry_after == 12.0


def test_white_space_in_a_head_takes_no_time_that_grows_with_its_square():
    began = time.process_time()
    error = refused("HTTP/1.1 503 X", "Retry-After: 7" + " " * 60_000 + "x")
    assert time.process_time() - began < GUARD
    assert error.retry_after is None


def test_a_refusal_that_does_not_pass_has_no_pause():
    assert refused("HTTP/1.1 404 X", "Retry-After: 5").retry_after is None


@pytest.mark.parametrize("status", [401, 403])
def test_an_identity_that_is_refused_is_an_authentication_error(status):
    error = refused(f"HTTP/1.1 {status} No", "WWW-Authenticate: Bearer", kind=AuthenticationError)
    assert error.message.endswith(f"refused the handshake with HTTP {status}")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "HTTP 503"),
        (b" \r\n ", "HTTP 503"),
        (b" no backend \n", "HTTP 503: no backend"),
        (b"<\x1b\xff>", r"HTTP 503: <\x1b\xff>"),
        (b"x" * 5000, "HTTP 503: " + "x" * 300 + "…"),
    ],
)
def test_of_the_body_is_reported_what_came_with_the_head(body, said):
    """All in one segment here; the rest is not waited for."""
    assert refused("HTTP/1.1 503 X", f"Content-Length: {10**9}", body=body).message.endswith(said)


# --- bounds ---


@pytest.mark.parametrize("line", ["X: y\r\n", "X: " + "y" * 20_000 + "\r\n", "y" * 100_000])
def test_a_head_without_end_is_refused_at_its_bound(line):
    def script(connection):
        connection.read_handshake()
        connection.send_raw(b"HTTP/1.1 101 X\r\n")
        while True:
            connection.send_raw(line.encode())

    with pytest.raises(ConnectFailedError, match=f"a head of over {HEAD_BYTES:,} bytes"):
        shake(script)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 101 X", b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n"])
def test_an_answer_that_stops_is_given_up_in_time(begin):
    def script(connection):
        connection.read_handshake()
        connection.send_raw(begin)
        connection.wait_eof()

    with pytest.raises(ConnectFailedError, match="did not answer the handshake in time") as caught:
        shake(script, timeout=SOON)
    assert caught.value.retriable


@pytest.mark.parametrize("end", ["hang_up", "drop"])
@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n"])
def test_an_answer_that_is_cut_off_may_pass(begin, end):
    def script(connection):
        connection.read_handshake()
        connection.send_raw(begin)
        getattr(connection, end)()

    with pytest.raises(ConnectFailedError, match="ended the connection in the handshake") as caught:
        shake(script)
    assert caught.value.retriable


def test_time_that_is_up_before_it_begins():
    with pytest.raises(ConnectFailedError, match="in time"):
        shake(lambda connection: connection.wait_eof(), timeout=0.0)
