"""Servers that send back what they were sent, and credentials over a network that can read them."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import gc
import logging
import pickle
import traceback

import pytest

from tcm_sync import (
    AuthContext,
    AuthenticationError,
    ConnectFailedError,
    ContractError,
    ShuttingDownError,
    TcmClient,
    TlsSettings,
)
from tcm_sync import _logs as logs
from tcm_sync._deadline import Deadline
from tcm_sync._transport import opener
from tcm_sync.local import LocalManager

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import TOKEN, ask, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_until

BEARER, COOKIE, QUERY = "bearer-8147-never-shown", "cookie-3390-never-shown", "query-5521-never-shown"
HEADERS = {"Authorization": f"Bearer {BEARER}", "Cookie": f"theme=dark; session={COOKIE}"}
SECRETS = (TOKEN, BEARER, COOKIE, QUERY)


class At:
    """A peer's address with a secret in its query."""

    def __init__(self, peer):
        self.uri = f"{peer.uri}?key={QUERY}"


def everything(error):
    """All that can be seen of an error."""
    whole = "".join(traceback.format_exception(error))
    return f"{whole} {error!r} {error} {vars(error)!r} {pickle.dumps(error)!r} {error.__context__!r}"


def assert_hidden(text):
    for secret in SECRETS:
        assert secret not in text


def test_a_refused_handshake_that_repeats_the_request(caplog):
    def refuse(connection):
        connection.read_handshake()
        said = "; ".join(f"{name}={value}" for name, value in connection.headers.items())
        connection.answer_http(401, body=f"not accepted: {said} {QUERY}".encode())

    with ScriptedPeer(refuse) as peer, connect(At(peer), headers=HEADERS) as client:
        with failing(AuthenticationError, "401", "not accepted", "***") as caught:
            client.open(wait=True)
        assert_hidden(repr(client))
    assert_hidden(everything(caught.value))
    assert logs.flush(TIMEOUT)
    assert_hidden(caplog.text)


def test_an_answer_that_is_no_http_and_repeats_the_request():
    def babble(connection):
        connection.read_handshake()
        connection.send_raw(f"Bearer {BEARER} {COOKIE} {QUERY}\r\n\r\n".encode())

    with ScriptedPeer(babble) as peer, connect(At(peer), headers=HEADERS, connect_timeout=0.5) as client:
        with failing(ConnectFailedError) as caught:
            client.open(wait=True)
    assert_hidden(everything(caught.value))


def test_a_refusal_and_an_outputs_name_that_repeat_the_request(caplog):
    def refuse(connection):
        connection.reply(f"no such token: {TOKEN} {BEARER} {COOKIE} {QUERY}", status="FAILED")

    def name(connection):
        connection.reply({f"y {TOKEN} {BEARER} {COOKIE} {QUERY}": [1.0]})

    def script(connection):
        connection.welcome()
        for answer in (refuse, name):
            connection.recv_request()
            answer(connection)
        connection.wait_eof()

    with ScriptedPeer(script) as peer, connect(At(peer), headers=HEADERS) as client:
        with failing(ContractError, "no such token: *** *** *** ***") as caught:
            ask(client)
        result = client.infer("m", {"x": [[1.0]]})
        with pytest.raises(KeyError, match=r"no output 'z'") as missing:
            result["z"]
    assert_hidden(everything(caught.value))
    assert_hidden(f"{result!r} {missing.value!r}")
    assert_hidden(caplog.text)


@pytest.mark.parametrize("place", ["token", "header"])
def test_a_refusal_that_repeats_the_token_of_a_callable(place):
    """Nobody keeps it but the socket that it was sent on."""
    secret = "callable-6612-never-shown"

    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply(f"no such token: {secret}", status="FAILED")
        connection.wait_eof()

    token, header = {"auth": AuthContext(token=lambda: secret)}, {"headers": {"X-Key": lambda: secret}}
    how = token if place == "token" else header
    with ScriptedPeer(script) as peer, connect(peer, **how) as client:
        client.open(wait=True)
        gc.collect()
        with failing(ContractError, "no such token: ***") as caught:
            ask(client)
    assert secret not in everything(caught.value)


@pytest.mark.parametrize("body", [b"%s", b'{"status": "not_ready", "detail": "%s", "%s": ["%s"]}'])
def test_a_503_of_ready_that_repeats_the_request(body):
    said = " ".join((BEARER, COOKIE, QUERY, TOKEN)).encode()

    def not_ready(connection):
        connection.read_handshake()
        connection.answer_http(503, body=body.replace(b"%s", said))

    with ScriptedPeer(echo) as peer, connect(At(peer), headers=HEADERS) as client:
        peer.http["/ready"] = not_ready
        ask(client)
        readiness = client.ready()
        assert not readiness.ok
        assert "*** *** *** ***" in readiness.explanation
        assert_hidden(f"{readiness!r} {readiness.explanation} {readiness.raw!r}")
        if body.startswith(b"{"):
            with pytest.raises(ShuttingDownError) as caught:
                client._core.runtime.opener._ask_ready(Deadline(TIMEOUT))
            assert_hidden(everything(caught.value))


def test_the_log_of_a_local_manager_shows_no_secret(caplog):
    caplog.set_level(logging.DEBUG)
    auth = AuthContext(token=TOKEN)
    with LocalManager({"m": lambda arrays: {"y": arrays["x"]}}, tick=0) as manager:
        with TcmClient(f"{manager.uri}?key={QUERY}", auth, route=manager.route, headers=HEADERS) as client:
            assert ask(client, 3.0) == 3.0
    names = {record.name for record in caplog.records}
    assert "tcm_sync.local" in names
    gc.collect()  # what was hidden for the sake of the client shows again
    for record in caplog.records:
        assert_hidden(f"{record.getMessage()} {vars(record)!r}")


# --- credentials without TLS ---


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "(the token)"),
        ({"headers": {"authorization": "a"}}, "(the token, authorization)"),
        ({"auth": AuthContext(), "headers": {"Cookie": "a", "X-Api-Key": "a"}}, "(Cookie, X-Api-Key)"),
        ({"auth": AuthContext(), "headers": {"X-Request-Source": "a"}}, None),
    ],
)
def test_credentials_to_another_machine_without_tls_are_warned_of_once(caplog, monkeypatch, settings, named):
    monkeypatch.setattr(opener, "is_local", lambda sock: False)
    with ScriptedPeer(echo) as peer, connect(peer, max_requests=1, **settings) as client:
        for _ in range(3):
            ask(client)
        wait_until(lambda: len(peer.uuids) >= 2)
    assert logs.flush(TIMEOUT)
    lines = [record.getMessage() for record in caplog.records if "without TLS" in record.getMessage()]
    assert len(lines) == (named is not None)
    for line in lines:
        assert named in line
        assert "wss://" in line


def test_credentials_that_stay_on_this_machine_are_not_warned_of(caplog):
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        ask(client)
    assert logs.flush(TIMEOUT)
    assert "without TLS" not in caplog.text


def test_credentials_over_tls_are_not_warned_of(caplog, monkeypatch, server_tls, ca_file):
    monkeypatch.setattr(opener, "is_local", lambda sock: False)
    tls = TlsSettings(ca_file=ca_file)
    with caplog.at_level(logging.WARNING), ScriptedPeer(echo, tls=server_tls) as peer:
        with connect(peer, tls=tls) as client:
            ask(client)
    assert logs.flush(TIMEOUT)
    assert "without TLS" not in caplog.text
