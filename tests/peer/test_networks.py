"""Networks that fail: addresses that do not answer, and connections whose packets are lost."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tcm_sync import ConnectFailedError, TcmClient
from tcm_sync._transport import addresses

from ..helpers.deaf import deafen
from ..helpers.peer_connection import PATIENCE
from ..helpers.peer_scripts import ROUTE, ask, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_until

NEVER = 10 * PATIENCE
GETADDRINFO = socket.getaddrinfo


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def resolve_to(monkeypatch, *ports):
    """Have the name of the manager resolve to these ports of 127.0.0.1."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    def resolve(host, *args, **kinds):
        return found if host == "manager.example" else GETADDRINFO(host, *args, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


# --- several addresses ---


@pytest.mark.parametrize("first", ["health", "ready", "open"])
def test_the_address_that_answered_is_the_first_one_for_sockets_and_probes(monkeypatch, listener, first):
    deafen(listener)
    with ScriptedPeer(echo) as peer:
        resolve_to(monkeypatch, listener.getsockname()[1], peer.port)
        with TcmClient("ws://manager.example/ws", route=ROUTE, connect_timeout=NEVER) as client:
            monkeypatch.setattr(addresses, "_APART", 0.01)
            assert getattr(client, first)()
            monkeypatch.setattr(addresses, "_APART", NEVER)
            assert client.health(timeout=PATIENCE)
            assert client.ready(timeout=PATIENCE).ok
            assert ask(client) == 1.0


def test_an_address_that_accepts_and_never_answers_is_tried_last(monkeypatch, listener):
    with ScriptedPeer(echo) as peer:
        resolve_to(monkeypatch, listener.getsockname()[1], peer.port)
        with TcmClient("ws://manager.example/ws", route=ROUTE, connect_timeout=0.2) as client:
            with failing(ConnectFailedError, "did not answer the handshake in time"):
                client.open()

            def opens():
                with contextlib.suppress(ConnectFailedError):  # the gate may still be shut
                    return client.open()

            wait_until(opens)
            assert ask(client) == 1.0


def test_a_name_that_moves_to_another_address_is_followed(monkeypatch):
    with ScriptedPeer(echo) as old, ScriptedPeer(echo) as new:
        resolve_to(monkeypatch, old.port)
        with TcmClient("ws://manager.example/ws", route=ROUTE, max_requests=1, pool_size=1) as client:
            assert ask(client) == 1.0
            resolve_to(monkeypatch, new.port)
            while not new.requests:
                assert ask(client) == 1.0
