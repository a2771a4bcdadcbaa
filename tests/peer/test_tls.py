"""The same over TLS, with a real handshake: trust, names, and a long upload."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import orjson
import pytest
import trustme

from tcm_sync import CallTimeoutError, ConnectFailedError, TcmClient, TlsSettings

from ..helpers.fixtures import server_context
from ..helpers.peer_connection import CONTINUATION, PING, PONG, TEXT, TIMEOUT
from ..helpers.peer_scripts import ROUTE, ask, ask_many, connect, echo, failing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

MEGABYTE = 10**6


def trusting(ca_file, **more):
    return TlsSettings(ca_file=str(ca_file), **more)


def test_calls_over_tls(server_tls, ca_file):
    with ScriptedPeer(echo, tls=server_tls) as peer, connect(peer, tls=trusting(ca_file)) as client:
        client.open(wait=True)
        values = [float(value) for value in range(100)]
        assert ask_many(client, values, threads=8) == values
        assert client.health() is True
        assert client.ready().ok is True


def test_a_tls_object_is_read_under_the_lock_of_its_connection(server_tls, ca_file):
    with ScriptedPeer(echo, tls=server_tls) as peer, connect(peer, tls=trusting(ca_file)) as client:
        client.open()
        connection = client._core.runtime.pool.any_open()
        read = partial(connection.receive_into, memoryview(bytearray(1)))
        with ThreadPoolExecutor(1) as another, connection.lock, pytest.raises(BlockingIOError):
            another.submit(read).result(TIMEOUT)


def test_tls_1_2_will_do(authority, ca_file):
    tls = server_context(authority, "127.0.0.1")
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with ScriptedPeer(echo, tls=tls) as peer, connect(peer, tls=trusting(ca_file)) as client:
        values = [float(value) for value in range(50)]
        assert ask_many(client, values, threads=4) == values


def test_a_client_certificate_is_shown_where_it_is_asked_for(authority, ca_file, tmp_path):
    tls = server_context(authority, "127.0.0.1")
    authority.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    ours = authority.issue_cert("client.example")
    ours.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "ours.pem"))
    with ScriptedPeer(echo, tls=tls) as peer:
        with connect(peer, tls=trusting(ca_file), connect_timeout=0.5) as client:
            with failing(ConnectFailedError, "127.0.0.1"):
                client.open(wait=True)
        mutual = trusting(ca_file, cert_file=str(tmp_path / "ours.pem"))
        with connect(peer, tls=mutual) as client:
            assert ask(client, 2.0) == 2.0


def test_an_end_without_a_close_frame_or_a_tls_alert_is_a_lost_reply(server_tls, ca_file):
    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.hang_up()

    with ScriptedPeer(script, echo, tls=server_tls) as peer:
        with connect(peer, tls=trusting(ca_file)) as client:
            assert client.infer("m", {"x": [[2.0]]}).attempts == 2


@pytest.mark.usefixtures("sending_ends_early")
def test_a_deadline_holds_while_nothing_is_read_over_tls(server_tls, ca_file):
    over = threading.Event()

    def never_read(connection):
        connection.welcome()
        wait_for(over)

    said = np.array(["a" * (20 * MEGABYTE)], dtype=object)
    with ScriptedPeer(never_read, echo, tls=server_tls) as peer:
        with connect(peer, tls=trusting(ca_file), max_message_bytes=21 * MEGABYTE) as client:
            client.open(wait=True)
            with failing(CallTimeoutError):
                client.infer("m", {"x": said})
            assert ask(client, 2.0) == 2.0
        over.set()


def test_an_unknown_authority_is_reported_at_once(server_tls, tmp_path):
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    with ScriptedPeer(echo, tls=server_tls) as peer:
        with connect(peer, tls=trusting(stranger), connect_timeout=TIMEOUT) as client:
            with failing(ConnectFailedError, "certificate", "not trusted", "ca_file"):
                client.open(wait=True)
    assert peer.connections == []
    assert len(peer.refused) == 1


def test_the_systems_authorities_do_not_know_ours_either(server_tls):
    with ScriptedPeer(echo, tls=server_tls) as peer, connect(peer, connect_timeout=TIMEOUT) as client:
        with failing(ConnectFailedError, "certificate"):
            client.open(wait=True)
    assert peer.connections == []


def test_a_certificate_for_another_name_is_refused(authority, ca_file):
    tls = server_context(authority, "manager.example")
    with ScriptedPeer(echo, tls=tls) as peer:
        with connect(peer, tls=trusting(ca_file), connect_timeout=TIMEOUT) as client:
            with failing(ConnectFailedError, "certificate", "127.0.0.1"):
                client.open(wait=True)
        named = trusting(ca_file, server_hostname="manager.example")
        with connect(peer, tls=named) as client:
            assert ask(client, 3.0) == 3.0


@pytest.mark.usefixtures("first_failure_is_awaited")
def test_a_tls_handshake_that_never_ends(ca_file):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = {"route": ROUTE, "tls": trusting(ca_file), "connect_timeout": 0.5}
        with TcmClient(f"wss://127.0.0.1:{port}/ws", **settings) as client:
            with failing(ConnectFailedError, "TLS", "127.0.0.1"):
                client.open(wait=True)


def test_a_50_megabyte_upload_answers_pings_before_it_ends(server_tls, ca_file):
    said = "a" * (50 * MEGABYTE)
    echoed = {}

    def ping_meanwhile(connection):
        connection.welcome()
        arrived = threading.Event()

        def ping_once():
            if not arrived.is_set():
                arrived.set()
                connection.send_frame(PING, b"still there?")

        message = connection.recv_message(ping_once)
        connection.count_request()
        payload = orjson.loads(message)["payload"]
        echoed["text"] = payload["request"]["inputs"][0]["data"]
        connection.reply({"y": [float(len(echoed["text"][0]))]})
        connection.wait_eof()

    settings = {"tls": trusting(ca_file), "max_message_bytes": 60 * MEGABYTE}
    with ScriptedPeer(ping_meanwhile, tls=server_tls) as peer, connect(peer, **settings) as client:
        result = client.infer("m", {"x": np.array([said], dtype=object)})
    assert result["y"].item() == len(said)
    assert result.attempts == 1
    assert echoed["text"] == [said]
    (connection,) = peer.connections
    opcodes = [frame.opcode for frame in connection.frames]
    last_of_upload = max(at for at, opcode in enumerate(opcodes) if opcode in (TEXT, CONTINUATION))
    assert PONG in opcodes[:last_of_upload]
    assert connection.frames[opcodes.index(PONG)].payload == b"still there?"


@pytest.mark.parametrize("size", [100, 16 * 1024, 2 * MEGABYTE])
def test_replies_of_every_size_are_read_out_of_the_tls_object(server_tls, ca_file, size):
    """A record may hold the end of one message and the start of the next, where no selector sees it."""

    def script(connection):
        connection.welcome()
        for _ in range(5):
            connection.recv_request()
            connection.alert()
            connection.reply({"y": ["b" * size]})
            connection.alert()
        connection.wait_eof()

    with ScriptedPeer(script, tls=server_tls) as peer, connect(peer, tls=trusting(ca_file)) as client:
        for _ in range(5):
            result = client.infer("m", {"x": np.array([[1.0]])})
            assert len(result["y"].item()) == size
    assert len(peer.connections) == 1


def test_a_stream_over_tls_that_is_not_taken_is_held_up_and_whole(server_tls, ca_file):
    """When it is read again, bytes may wait inside the TLS object, where no poll sees them."""
    count, text = 1500, "x" * 10_000

    def script(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply(None, status="START", model_name=None)
        for number in range(count):
            connection.reply(f"{number} {text}", status="ONGOING", model_name=None)
        connection.reply(None, status="COMPLETED")
        while True:
            connection.recv_request()
            connection.reply({"y": [[4.0]]})

    with ScriptedPeer(script, tls=server_tls) as peer, connect(peer, tls=trusting(ca_file)) as client:
        chunks = client.stream("m", {"text": ["x"]}, idle_timeout=TIMEOUT)
        (connection,) = client._core.running().reader._connections.values()
        wait_until(lambda: connection.paused)
        for number, taken in enumerate(chunks):
            assert taken == f"{number} {text}"
        assert number == count - 1
        assert ask(client, 4.0) == 4.0
    assert len(peer.uuids) == 1
