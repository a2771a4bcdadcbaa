"""The first exchange of each socket: granted, refused, or the uuid taken."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import threading
import time

import pytest

from tcm_sync import AuthContext, AuthenticationError, ConnectFailedError, ShuttingDownError
from tcm_sync._pool import gate
from tcm_sync._transport import opener
from tcm_sync.errors import TcmError

from ..helpers.peer_scripts import TOKEN, ask, background, connect, echo, echo_once, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until


def refuse(connection):
    connection.accept()
    connection.read_auth()
    connection.error("Invalid token: Token has expired")
    connection.close(1008)


def test_what_auth_says():
    auth = AuthContext("svc a/b", token=TOKEN, sub="s", tenant_id="t", roles=("inference", "admin"))
    with ScriptedPeer(echo) as peer, connect(peer, auth=auth) as client:
        client.open(wait=True)
    said = peer.connections[0].auth
    assert said["token"] == TOKEN
    assert said["client"] == {"sub": "s", "tenant_id": "t", "roles": ["inference", "admin"]}
    assert "json" in said["capability"]
    (uuid,) = peer.uuids
    assert uuid.startswith("svc")
    assert len(uuid) >= len("svc") + 16  # 96 random bits are 16 characters of 64


@pytest.mark.parametrize(
    ("token", "tenant"), [(None, "of-auth"), ("x.eyJ0ZW5hbnQiOiAib2YtdG9rZW4ifQ.x", "of-token")]
)
def test_a_connection_has_the_tenant_that_the_manager_takes_it_for(token, tenant):
    auth = AuthContext(token=token, tenant_id="of-auth")
    with ScriptedPeer(echo) as peer, connect(peer, auth=auth) as client:
        client.open(wait=True)
        assert client._core.running().pool.any_open().tenant == tenant


@pytest.mark.parametrize("capability", [None, [], ["json"], ["json", "shm", "protobuf"]])
def test_every_form_of_auth_ok_is_understood(capability):
    def script(connection):
        connection.accept()
        connection.authenticate(capability)
        while True:
            echo_once(connection)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        assert ask(client, 4.0) == 4.0


@pytest.fixture
def no_gate_opens(monkeypatch):
    """Stop the clock of the gates."""
    now = time.monotonic()
    monkeypatch.setattr(gate, "monotonic", lambda: now)


@pytest.mark.usefixtures("no_gate_opens")
def test_a_refusal_is_raised_at_once_and_not_repeated_by_the_next_calls():
    with ScriptedPeer(refuse) as peer, connect(peer) as client:
        with failing(AuthenticationError, "Invalid token", "expired"):
            client.open(wait=True)
        for _ in range(20):
            with failing(AuthenticationError, "Invalid token"):
                ask(client)
    assert len(peer.connections) == 1


@pytest.mark.parametrize(
    "message",
    [
        "Invalid token: Token has expired",
        "Invalid token: Missing token in auth payload",
        "Too many failed auth attempts for this client",
        "Not in any table of ours",
    ],
)
def test_whatever_the_words_a_refused_auth_is_an_authentication_error(message):
    def script(connection):
        connection.accept()
        connection.read_auth()
        connection.error(message)
        connection.close(1008)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(AuthenticationError, message):
            ask(client)
    assert len(peer.connections) == 1


def test_a_refusal_that_quotes_the_token_is_not_passed_on():
    def script(connection):
        connection.accept()
        connection.error(f"Invalid token: {connection.read_auth()['token']} is unknown")
        connection.close(1008)

    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(AuthenticationError, "Invalid token"):
            ask(client)


def test_a_token_provider_is_asked_once_more():
    tokens = iter([TOKEN + "-old", TOKEN + "-new"])
    auth = AuthContext(token=lambda: next(tokens))
    with ScriptedPeer(refuse, echo) as peer, connect(peer, auth=auth) as client:
        assert ask(client, 2.0) == 2.0
    assert [connection.auth["token"] for connection in peer.connections] == [TOKEN + "-old", TOKEN + "-new"]


@pytest.mark.usefixtures("no_gate_opens")
def test_a_token_provider_is_asked_once_more_and_no_oftener():
    asked = []

    def provide():
        asked.append(1)
        return TOKEN

    with ScriptedPeer(refuse) as peer, connect(peer, auth=AuthContext(token=provide)) as client:
        with failing(AuthenticationError, "Invalid token"):
            ask(client)
        assert len(asked) == len(peer.connections) == 2
        with failing(AuthenticationError, "Invalid token"):
            ask(client)
    assert len(asked) == len(peer.connections) == 2


def test_live_sockets_continue_when_a_new_one_is_refused():
    busy, answer = threading.Event(), threading.Event()

    def hold_the_first(connection):
        connection.welcome()
        busy_with = connection.recv_request()
        busy.set()
        wait_for(answer)
        connection.reply({"y": busy_with["request"]["inputs"][0]["data"]})
        while True:
            echo_once(connection)

    with ScriptedPeer(hold_the_first, refuse) as peer, connect(peer, pool_size=2) as client:
        with background(lambda: ask(client, 1.0)) as first:
            wait_for(busy)
            with failing(AuthenticationError, "Invalid token"):
                ask(client, 2.0)
            answer.set()
            assert first() == 1.0
        for value in range(5):
            assert ask(client, float(value)) == value
    assert len(peer.connections) == 2


def taken(connection):
    connection.accept()
    connection.read_auth()
    connection.error(f"UUID '{connection.uuid}' is already connected")
    connection.close(1008)


def test_a_uuid_that_is_taken_is_replaced_by_a_fresh_one():
    with ScriptedPeer(taken, taken, echo) as peer, connect(peer) as client:
        client.open(wait=True)
        assert ask(client, 2.0) == 2.0
    assert len(set(peer.uuids)) == 3


def test_a_peer_that_finds_every_uuid_taken_is_not_stormed():
    with ScriptedPeer(taken) as peer, connect(peer) as client:
        with pytest.raises(TcmError, match="already connected"):
            client.open(wait=True)
    assert len(peer.connections) < 30


def test_a_hundred_sockets_of_two_clients_never_share_a_uuid():
    def one_answer(connection):
        connection.welcome()
        echo_once(connection)
        connection.close(1000)

    with ScriptedPeer(one_answer) as peer:
        for _ in range(2):
            with connect(peer, auth=AuthContext("same", token=TOKEN)) as client:
                for value in range(50):
                    assert ask(client, float(value)) == value
                    wait_for(peer.connections[-1].over)
    assert len(set(peer.uuids)) == len(peer.uuids) == 100


def test_a_manager_that_cannot_be_reached_when_the_token_is_tried_again_is_tried_once_more():
    """Whoever tries the token again meets a manager that is not there: that says nothing of the token."""

    def hang_up(connection):
        connection.read_handshake()
        connection.drop()

    with ScriptedPeer(refuse, hang_up, echo) as peer, connect(peer) as client:
        with failing(AuthenticationError):
            ask(client)
        answers = []

        def answered():
            try:
                answers.append(ask(client, 3.0))
            except (AuthenticationError, ConnectFailedError):
                return False
            return True

        wait_until(answered)
    assert answers == [3.0]
    assert len(peer.connections) == 3


def test_a_token_that_is_tried_again_during_a_shutdown_is_tried_once_more():
    """The socket that tries it is opened, and comes too late: its manager is shutting down by then."""
    informed, authed, shut = threading.Event(), threading.Event(), threading.Event()

    def streams(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply(None, status="START", model_name=None)
        connection.reply("a", status="ONGOING", model_name=None)
        wait_for(informed)
        connection.error("Server is shutting down; request rejected.", "SYSTEM_SHUTDOWN")
        connection.close(1012)

    def slow(connection):
        connection.accept()
        connection.read_auth()
        authed.set()
        wait_for(shut)
        connection.send_text({"type": "auth.ok"})
        connection.wait_eof()

    with ScriptedPeer(streams, refuse, slow, echo) as peer, connect(peer, pool_size=3) as client:
        chunks = client.stream("m", {"text": ["x"]})
        with failing(AuthenticationError):
            ask(client)
        pool = client._core.running().pool
        wait_until(lambda: time.monotonic() > pool.state.auth_gate._opens_at)
        with background(lambda: ask(client, 3.0)) as answer:
            wait_for(authed)
            informed.set()
            with failing(ShuttingDownError):
                list(chunks)
            shut.set()
            assert answer() == 3.0


def test_a_socket_is_closed_whose_opening_fails_behind_the_authentication(monkeypatch):
    left = threading.Event()

    def script(connection):
        connection.welcome()
        connection.wait_eof()
        left.set()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(opener, "tenant_of", fail)
    with ScriptedPeer(script) as peer, connect(peer) as client:
        with failing(ConnectFailedError, "opening a socket failed: MemoryError"):
            client.open(wait=True)
        wait_for(left)
