"""How a socket is opened: what is asked before, what is sent, and what a manager that refuses says."""

from __future__ import annotations

import logging
import socket
import struct
from types import SimpleNamespace

import msgspec
import pytest

from tcm_sync import AuthContext, ConnectFailedError, ShuttingDownError
from tcm_sync._deadline import Deadline
from tcm_sync._endpoint import Endpoint
from tcm_sync._secrets import Secret
from tcm_sync._transport import frames
from tcm_sync._transport import opener as module
from tcm_sync._transport.addresses import Addresses
from tcm_sync._transport.authentication import AuthExchange, auth_request
from tcm_sync._transport.counters import Counts
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.sockets import OpeningSockets
from tcm_sync.settings import Settings

TIMEOUT = 30.0
NOT_READY = b'{"status": "not_ready", "checks": {}}'


def opener(**settings):
    return Opener(Settings("ws://h:1/ws", **settings), OpeningSockets(), Counts(), Addresses())


@pytest.mark.parametrize(("shm", "offered"), [("auto", ("json", "shm")), ("off", ("json",))])
def test_shared_memory_is_offered_unless_it_is_off(shm, offered):
    request = auth_request(AuthContext(), None, opener(shm=shm)._capability)
    assert msgspec.to_builtins(request)["capability"] == offered


@pytest.mark.parametrize("timeout", [1.0, 10.0])
def test_half_the_time_to_connect_is_left_after_asking_for_readiness(timeout, monkeypatch):
    asked = []

    def probe(_opener, name, deadline, _opening):
        asked.append((name, deadline.remaining()))
        raise ConnectFailedError("an ingress passes /ws alone")

    monkeypatch.setattr(module, "probe", probe)
    opener(connect_timeout=timeout)._ask_ready(Deadline(timeout))
    ((name, left),) = asked
    assert name == "ready"
    assert left == pytest.approx(timeout / 2, rel=0.1)
    assert left <= timeout / 2


def test_a_manager_that_is_not_ready_is_not_connected_to(monkeypatch):
    monkeypatch.setattr(module, "probe", lambda *_: (503, NOT_READY))
    with pytest.raises(ShuttingDownError, match="is not ready yet"):
        opener().open(was_draining=True, ask_ready=True)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (struct.pack("!H", 1013) + b"try later", "code 1013 (try later) instead"),
        (struct.pack("!H", 1013), "code 1013 instead"),
        (b"", "code 1005 instead"),
    ],
)
def test_a_manager_that_closes_instead_of_authenticating_is_quoted(payload, said):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes([0x80 | frames.CLOSE, len(payload)]) + payload)
        exchange = AuthExchange(Endpoint.parse("ws://h:1/ws"), ours, "u", 1000, Deadline(TIMEOUT))
        with pytest.raises(ConnectFailedError) as caught:
            exchange.run(auth_request(AuthContext(), None, ("json",)))
    assert caught.value.message == f"h:1 closed the socket with {said} of authenticating it"


def test_a_socket_that_does_not_authenticate_is_closed_and_kept_no_longer(monkeypatch):
    ours, theirs = socket.socketpair()

    def opened(*arguments):
        arguments[4].add(ours)
        return ours

    monkeypatch.setattr(module, "open_socket", opened)
    one = opener()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 503 No\r\n\r\n")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectFailedError, match="HTTP 503"):
            one.open(was_draining=False, ask_ready=False)
        assert ours.fileno() == -1
    assert not one.opening._sockets


@pytest.mark.parametrize(
    ("uri", "peer", "headers", "warned"),
    [
        ("ws://h:1/ws", "10.0.0.4", {"Authorization": Secret("x")}, "(the token, Authorization)"),
        ("ws://h:1/ws", "10.0.0.4", {"X-Model": Secret("x")}, "(the token)"),
        ("ws://h:1/ws", "10.0.0.5", {}, None),  # this machine
        ("wss://h:1/ws", "10.0.0.4", {}, None),
    ],
)
def test_credentials_in_clear_text_are_warned_of_once(uri, peer, headers, warned, caplog):
    caplog.set_level(logging.WARNING, "tcm_sync.pool")
    opens = Opener(Settings(uri), OpeningSockets(), Counts(), Addresses())
    sock = SimpleNamespace(
        family=socket.AF_INET, getsockname=lambda: ("10.0.0.5", 1), getpeername=lambda: (peer, 2)
    )
    opens._warn_of_clear_text(sock, None, {"X-Model": Secret("x")})  # which is none
    for _ in range(2):
        opens._warn_of_clear_text(sock, Secret("t"), headers)
    assert [warned in record.getMessage() for record in caplog.records] == [True] * (warned is not None)
