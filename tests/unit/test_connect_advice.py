"""What the message of a connection that failed says to do."""

from __future__ import annotations

import socket
import ssl

import pytest

from tcm_sync import ConnectFailedError, Route, TcmClient
from tcm_sync._transport.advice import advice_on_status, advise

NO_TLS = "a port without TLS needs ws:// and not wss://"


def message(cause, *, secure=False, through_proxy=False):
    error = ConnectFailedError("it failed")
    error.__cause__ = cause
    advise(error, secure=secure, through_proxy=through_proxy)
    return error.message


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        (ConnectionRefusedError(111, "refused"), "is the manager running, and is the port right?"),
        (TimeoutError(), "does a firewall let the port through?"),
        (OSError(101, "unreachable"), "is the network, or a VPN to it, up?"),
        (OSError(24, "Too many open files"), "may have no more open files (ulimit -n)"),
        (OSError(105, "No buffer space"), "the machine has no memory left for another socket"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "is the host in the uri right?"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "is a name server reachable?"),
    ],
)
def test_a_failure_to_connect_says_what_to_do_unless_it_is_of_a_proxy(cause, advice):
    assert message(cause).startswith("it failed; ")
    assert message(cause).endswith(advice)
    assert message(cause, through_proxy=True) == "it failed"


@pytest.mark.parametrize("cause", [ssl.SSLEOFError(8, "end"), ConnectionResetError(104, "reset")])
def test_a_port_without_tls_is_named_also_behind_a_proxy(cause):
    for through_proxy in (False, True):
        assert message(cause, secure=True, through_proxy=through_proxy) == f"it failed; {NO_TLS}"


def test_failures_with_advice_of_their_own_and_without_a_cause_stay_as_they_are():
    assert message(ssl.SSLCertVerificationError(1, "untrusted"), secure=True) == "it failed"
    assert message(None) == "it failed"


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (400, b"The plain HTTP request was sent to HTTPS port", "a port with TLS needs wss://"),
        (400, b"", "does a proxy there pass WebSockets on?"),
        (426, b"", "does a proxy there pass WebSockets on?"),
        (200, b"<html>", "is /ws the path of the manager (usually /ws)?"),
        (502, b"", "is the manager running?"),
    ],
)
def test_a_status_in_place_of_a_handshake_says_what_to_do(status, body, advice):
    assert advice in advice_on_status(status, body, "/ws")


def test_a_manager_that_is_not_there_is_reported_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    client = TcmClient(f"ws://127.0.0.1:{port}/ws", route=Route("c"), connect_timeout=0.1)
    with client:
        with pytest.raises(ConnectFailedError, match="is the manager running, and is the port"):
            client.infer("m", {"x": [1.0]}, retry=None)
        assert "is the manager running" in client.ready(timeout=1.0).detail


def test_a_call_that_ends_before_its_connection_is_made_says_how_to_learn_why():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = TcmClient(f"ws://127.0.0.1:{silent.getsockname()[1]}/ws", route=Route("c"))
        with client, pytest.raises(ConnectFailedError, match="a timeout= above connect_timeout= reports"):
            client.infer("m", {"x": [1.0]}, timeout=0.1)
