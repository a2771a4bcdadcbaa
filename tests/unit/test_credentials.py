"""Tokens and headers: what stands around them in a file, and callables that are asked for each socket."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import itertools
import logging
import pickle
import threading

import pytest

from tcm_sync import AuthContext, AuthenticationError, ConfigError, ConnectFailedError, TcmClient

from ..helpers.peer_scripts import TOKEN, ask, background, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for

URI = "ws://localhost:8000/ws"
BEARER = f"Bearer {TOKEN}"
SOON = 0.3  # seconds of a call that is to time out


def module_level_header():
    return BEARER


def raising(error):
    def ask_nobody():
        raise error

    return ask_nobody


AROUND = ["{}\n", "{}\r\n", "\ufeff{}", "\ufeff{}\r\n", " {}\t", "{}\xa0", "\n{}\ufeff\n"]
REFUSED = [
    ("a\nb", r"'\n' at position 1: it must be one line of printable characters"),
    ("a\ufeffb", r"'\ufeff' at position 1"),
    ("\x00", r"'\x00' at position 0"),
    ("\n", "nothing but white space"),
    ("\ufeff", "nothing but white space"),
    (TOKEN + "\ud800", "half a surrogate pair"),
]


# --- what stands around a secret ---


@pytest.mark.parametrize("around", AROUND)
def test_what_a_file_has_around_a_token_is_taken_off(around):
    assert AuthContext(token=around.format(TOKEN)).token == TOKEN


@pytest.mark.parametrize("around", AROUND)
def test_what_a_file_has_around_what_a_callable_returns_is_taken_off(around):
    auth = AuthContext(token=lambda: around.format(TOKEN))
    headers = {"Authorization": around.format(BEARER), "X-Key": lambda: around.format("key")}
    with ScriptedPeer(echo) as peer, connect(peer, auth=auth, headers=headers) as client:
        assert ask(client) == 1.0
    (connection,) = peer.connections
    assert connection.auth["token"] == TOKEN
    assert (connection.headers["authorization"], connection.headers["x-key"]) == (BEARER, "key")


@pytest.mark.parametrize(("token", "words"), REFUSED)
def test_a_token_that_is_no_line_of_text_is_refused_by_name(token, words):
    with pytest.raises(ConfigError) as caught:
        AuthContext(token=token)
    assert caught.value.message.startswith(f"auth.token holds {words}")
    assert TOKEN not in caught.value.message


@pytest.mark.parametrize(("token", "words"), REFUSED)
def test_so_is_what_a_token_callable_returns(token, words):
    with ScriptedPeer(echo) as peer, connect(peer, auth=AuthContext(token=lambda: token)) as client:
        with failing(ConfigError, f"the token callable returned {words}"):
            ask(client)
    assert peer.connections == []


# --- headers from callables ---


def test_a_header_callable_is_asked_for_each_socket_and_probe():
    numbers = itertools.count(1)
    headers = {"Authorization": lambda: f"Bearer {next(numbers)}", "X-Fixed": "f"}
    with ScriptedPeer(echo) as peer, connect(peer, headers=headers, max_requests=1) as client:
        for _ in range(2):
            assert ask(client) == 1.0
        assert client.health()
        assert client.ready().ok
    seen = [connection.headers["authorization"] for connection in (*peer.connections, *peer.probes)]
    assert len(seen) >= 4
    assert sorted(seen) == [f"Bearer {number}" for number in range(1, len(seen) + 1)]
    assert {connection.headers["x-fixed"] for connection in (*peer.connections, *peer.probes)} == {"f"}


def test_a_header_callable_is_asked_once_more_after_a_refusal():
    def refuse(connection):
        connection.read_handshake()
        connection.answer_http(401)

    values = iter(["old", "new"])
    with ScriptedPeer(refuse, echo) as peer, connect(peer, headers={"X-Key": lambda: next(values)}) as client:
        assert ask(client) == 1.0
    assert [connection.headers["x-key"] for connection in peer.connections] == ["old", "new"]


@pytest.mark.parametrize(
    ("header", "kind", "words"),
    [
        (raising(LookupError(TOKEN)), AuthenticationError, "raised LookupError"),
        (lambda: None, ConfigError, "returned NoneType, not a str"),
        (lambda: TOKEN.encode(), ConfigError, "returned bytes, not a str"),
    ],
)
def test_a_header_callable_that_fails_is_named(header, kind, words, caplog):
    caplog.set_level(logging.DEBUG)
    name = "the callable of the header Authorization"
    with ScriptedPeer(echo) as peer, connect(peer, headers={"Authorization": header}) as client:
        with failing(kind, f"{name} {words}"):
            ask(client)
        assert not client.health()
        assert client.ready().detail == f"{name} {words}"
    assert peer.connections == peer.probes == []
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("value", ["a\r\nX: y", "é", "\x00", "a\ud800"])
def test_a_header_callable_cannot_break_the_handshake(value):
    with ScriptedPeer(echo) as peer, connect(peer, headers={"X-Key": lambda: value}) as client:
        with failing(ConfigError, "headers: the value of X-Key must be one line of printable ASCII"):
            ask(client)
    assert peer.connections == []


@pytest.mark.parametrize("what", ["token", "header"])
def test_a_callable_that_hangs_holds_no_call_beyond_its_deadline_and_is_named(what):
    release = threading.Event()

    def hang():
        wait_for(release)
        return "late"

    settings = {"auth": AuthContext(token=hang)} if what == "token" else {"headers": {"X-Key": hang}}
    name = "the token callable" if what == "token" else "the callable of the header X-Key"
    with ScriptedPeer(echo) as peer, connect(peer, **settings) as client:
        try:
            with failing(ConnectFailedError, f"still connecting; {name} has not returned"):
                ask(client, timeout=SOON)
            if what == "header":
                assert client.ready(timeout=SOON).detail.endswith(f"; {name} has not returned")
        finally:
            release.set()
        assert ask(client) == 1.0


def test_a_header_callable_runs_while_another_socket_is_used():
    asked, release = threading.Event(), threading.Event()
    answers = iter(["first"])

    def slow_from_the_second_on():
        if (value := next(answers, None)) is not None:
            return value
        asked.set()
        wait_for(release)
        return "second"

    with ScriptedPeer(echo) as peer, connect(peer, headers={"X-Key": slow_from_the_second_on}) as client:
        client.open(wait=True)
        with background(client.health) as health:
            wait_for(asked)
            assert ask(client, 3.0) == 3.0
            release.set()
            assert health()


def test_a_header_callable_travels_by_its_name():
    with ScriptedPeer(echo) as peer:
        copy = pickle.loads(pickle.dumps(TcmClient(peer.uri, headers={"X-Key": module_level_header})))
        with copy:
            copy.open(wait=True)
    assert peer.connections[0].headers["x-key"] == BEARER
