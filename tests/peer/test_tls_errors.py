"""Failures of TLS that OpenSSL remembers for a thread end no other connection of that thread."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import _ssl
import ctypes
import errno
import socket
import ssl
import struct
import threading

import numpy as np
import pytest

from tcm_sync import AuthContext, TlsSettings
from tcm_sync._transport.tls_errors import clear_errors, with_own_errors

from ..helpers.peer_scripts import TOKEN, ask, background, connect, echo
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import wait_for, wait_until

openssl = ctypes.CDLL(_ssl.__file__)  # its functions are found in the libraries that it was linked with
pytestmark = pytest.mark.skipif(not hasattr(openssl, "ERR_new"), reason="OpenSSL before 3.0")
_SYSTEM = 2  # ERR_LIB_SYS


def leave_an_error(number=errno.EPIPE):
    """Leave in the queue of this thread what a failed write of some other connection may leave there."""
    openssl.ERR_new()
    openssl.ERR_set_error(_SYSTEM, number, None)


def is_left():
    return openssl.ERR_peek_error() != 0


@pytest.fixture(autouse=True)
def nothing_is_left():
    openssl.ERR_clear_error()
    yield
    openssl.ERR_clear_error()


@pytest.fixture
def connected(server_tls, ca_file):
    """Connect a non-blocking socket over TLS; give it, and its other end."""
    context = ssl.create_default_context(cafile=ca_file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as near:
            far, _ = listener.accept()
            with background(lambda: server_tls.wrap_socket(far, server_side=True)) as other:
                sock = context.wrap_socket(near, server_hostname="127.0.0.1")
                peer = other()
            with sock, peer:
                sock.setblocking(False)
                with pytest.raises(ssl.SSLWantReadError):
                    sock.recv(1)  # what comes behind the handshake
                yield sock, peer


def receive(sock, size=100):
    buffer = bytearray(size)
    return bytes(buffer[: with_own_errors(sock, sock.recv_into, buffer)])


def test_the_queue_can_be_emptied(connected):
    sock, _ = connected
    leave_an_error()
    assert is_left()
    clear_errors(sock)
    assert not is_left()


def test_a_connection_is_read_although_another_one_failed(connected):
    sock, peer = connected
    leave_an_error()
    with pytest.raises(ssl.SSLWantReadError):
        receive(sock)
    assert not is_left()
    leave_an_error()
    peer.sendall(b"data")
    wait_until(lambda: b"data" in read_when_there(sock))


def read_when_there(sock):
    try:
        return receive(sock)
    except ssl.SSLWantReadError:
        return b""


def test_a_connection_is_written_although_another_one_failed(connected):
    sock, peer = connected
    data = b"x" * 10_000_000
    with background(lambda: read_all(peer)) as received:
        sent = 0
        while sent < len(data):
            leave_an_error()
            try:
                sent += with_own_errors(sock, sock.send, memoryview(data)[sent : sent + 100_000])
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                assert not is_left()
        sock.shutdown(socket.SHUT_WR)
        assert received() == len(data)


def read_all(peer):
    count = 0
    try:
        while data := peer.recv(1_000_000):
            count += len(data)
    except ssl.SSLError:  # no close_notify
        pass
    return count


@pytest.mark.parametrize("how", ["reset", "closed"])
@pytest.mark.parametrize("use", ["read", "write"])
def test_its_own_failure_is_raised_and_leaves_nothing(connected, how, use):
    sock, peer = connected
    if how == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()

    def used():
        try:
            return receive(sock) if use == "read" else with_own_errors(sock, sock.send, b"x")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            return error

    wait_until(lambda: isinstance(used(), OSError) or used() == b"")
    for _ in range(3):
        used()
        assert not is_left()


def test_calls_succeed_on_the_same_connection_whatever_the_reader_has_left(server_tls, ca_file):
    with ScriptedPeer(echo, tls=server_tls) as peer:
        with connect(peer, tls=TlsSettings(ca_file=str(ca_file))) as client:
            client.open()
            reader = client._core.runtime.reader
            for value in range(20):
                left = threading.Event()
                reader.run_soon(lambda left=left: (leave_an_error(), left.set()))
                wait_for(left)
                assert ask(client, float(value)) == value
        assert len(peer.connections) == 1


def test_calls_succeed_whatever_their_thread_has_left(server_tls, ca_file):
    sent = np.arange(200_000.0)
    with ScriptedPeer(echo, tls=server_tls) as peer:
        with connect(peer, tls=TlsSettings(ca_file=str(ca_file)), max_message_bytes=10**7) as client:
            for _ in range(3):
                leave_an_error()
                assert (client.infer("m", {"x": sent})["y"] == sent).all()
        assert len(peer.connections) == 1


def test_a_client_connects_whatever_its_token_callable_has_left(server_tls, ca_file):
    def token():
        leave_an_error()
        return TOKEN

    with ScriptedPeer(echo, tls=server_tls) as peer:
        auth = AuthContext(token=token, roles=("inference",))
        with connect(peer, tls=TlsSettings(ca_file=str(ca_file)), auth=auth) as client:
            assert ask(client, 2.0) == 2.0
        assert len(peer.connections) == 1
