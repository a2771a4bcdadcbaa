"""What a client refuses before it opens anything, and what it says of itself."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tcm_sync import ConfigError, InputError, Route, TcmClient
from tcm_sync._calls.options import route_for

from ..helpers.peer_scripts import ROUTE, ask, connect, echo
from ..helpers.scripted_peer import ScriptedPeer

URI = "ws://127.0.0.1:1/ws"
X = {"x": np.ones((1, 2), np.float32)}


@pytest.fixture
def client(monkeypatch):
    client = TcmClient(URI, route=Route("c", "10.0.0.1", "vm"))
    monkeypatch.setattr(client._core, "running", lambda: pytest.fail("it was opened"))
    return client


# --- arguments of a call ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model_name": ""}, "model_name must be a text that is not empty"),
        ({"model_name": None}, "model_name must be a text"),
        ({"model_name": 7}, "model_name must be a text"),
        ({"inputs": {}}, "no inputs"),
        ({"inputs": {"x": 1.0}}, 'input "x": '),
        ({"container_id": ""}, "route.container_id must be a text"),
        ({"container_id": 7}, "route.container_id must be a text"),
        ({"container_id": ["c"]}, "route.container_id must be a text"),
        ({"vm_ip": 7}, "route.vm_ip must be a text"),
        ({"vm_id": b"vm"}, "route.vm_id must be a text"),
        ({"timeout": 0}, "timeout must be a positive, finite number"),
        ({"timeout": -1.0}, "timeout must be a positive"),
        ({"timeout": float("nan")}, "timeout must be a positive"),
        ({"timeout": float("inf")}, "timeout must be a positive"),
        ({"timeout": True}, "timeout must be a positive"),
        ({"timeout": "5"}, "timeout must be a positive"),
        ({"retry": 3}, "retry must be a RetryPolicy or None, not int"),
        ({"retry": False}, "retry must be a RetryPolicy or None, not bool"),
        ({"output_dtypes": "no such dtype"}, "output_dtypes"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_before_anything_is_opened(client, arguments, words):
    with pytest.raises(InputError) as caught:
        client.infer(**{"model_name": "m", "inputs": X, **arguments})
    assert caught.value.message.startswith(words)
    assert caught.value.attempts == 0


def test_a_call_needs_a_route_from_somewhere():
    with pytest.raises(InputError, match="there is no route"):
        TcmClient(URI).infer("m", X)
    with pytest.raises(InputError, match="there is no route"):
        TcmClient(URI).infer("m", X, vm_ip="10.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "route"),
    [
        ({}, Route("c", "10.0.0.1", "vm")),
        ({"vm_ip": "10.0.0.2"}, Route("c", "10.0.0.2", "vm")),
        ({"vm_id": "other"}, Route("c", "10.0.0.1", "other")),
        ({"container_id": "d"}, Route("d")),
        ({"container_id": "d", "vm_ip": "10.0.0.3"}, Route("d", "10.0.0.3")),
        ({"container_id": "c", "vm_id": "v"}, Route("c", None, "v")),
    ],
)
def test_naming_a_container_leaves_the_clients_machine_out(client, arguments, route):
    given = {"container_id": None, "vm_ip": None, "vm_id": None, **arguments}
    assert route_for(client._defaults, given["vm_ip"], given["container_id"], given["vm_id"]) == route


@pytest.mark.parametrize(
    "arguments", [("10.0.0.2", "d", "vm-2"), (None, "d", None), ("10.0.0.2", None, None)]
)
def test_a_route_that_is_named_again_is_not_made_again(client, arguments):
    """Making and checking one costs a call 2 microseconds."""
    assert route_for(client._defaults, *arguments) is route_for(client._defaults, *arguments)


def test_a_route_holds_plain_texts_whatever_it_was_named_with(client):
    class Text(str):
        __slots__ = ()

    for text in (Text("d"), "d"):
        assert type(route_for(client._defaults, None, text, None).container_id) is str


@pytest.mark.parametrize("timeout", [0, -1, True, "5", float("nan"), float("inf")])
def test_the_other_calls_refuse_such_a_timeout_too(timeout):
    client = TcmClient(URI)
    for call in (client.open, client.health, client.ready):
        with pytest.raises(InputError, match="timeout must be"):
            call(timeout=timeout)


@pytest.mark.parametrize("timeout", [-1, True, "5", None, float("nan")])
def test_closing_refuses_what_is_no_time(timeout):
    with pytest.raises(ConfigError, match="timeout must be a number of seconds"):
        TcmClient(URI).close(timeout=timeout)


# --- what it says of itself ---


def test_a_client_shows_where_it_leads_and_how_it_is():
    with ScriptedPeer(echo) as peer:
        client = connect(peer)
        assert repr(client) == f"<TcmClient {peer.uri} not open>"
        with client:
            assert repr(client) == f"<TcmClient {peer.uri} open, 0 of 16 sockets, 0 calls in flight>"
            ask(client)
        assert repr(client) == f"<TcmClient {peer.uri} closed>"


def test_an_error_has_the_facts_of_its_call():
    def refuse(connection):
        connection.welcome()
        connection.recv_request()
        connection.reply("Missing required field 'vm_ip'", status="FAILED")
        connection.wait_eof()

    with ScriptedPeer(refuse) as peer, connect(peer) as client:
        with pytest.raises(ValueError, match="container 'c1'") as caught:
            ask(client)
        error = caught.value
    assert (error.model_name, error.route, error.attempts) == ("m", ROUTE, 1)
    assert error.uuid == peer.uuids[0]
    assert 0.0 < error.elapsed < 30.0


def test_a_result_has_the_facts_of_its_call():
    with ScriptedPeer(echo) as peer, connect(peer) as client:
        result = client.infer("asked", {"x": [[1.5]]})
    assert result.model_name == "m"  # as the manager has it
    assert (result.raw, result.attempts) == (b'{"y": [[1.5]]}', 1)
    assert 0.0 < result.elapsed < 30.0


def test_a_client_that_is_left_open_says_so():
    with ScriptedPeer(echo) as peer, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = connect(peer)
        ask(client)
        del client
        gc.collect()
    (said,) = (str(warning.message) for warning in caught)
    shown = f"<TcmClient {peer.uri} open, 1 of 16 sockets, 0 calls in flight>"
    assert said.startswith(f"unclosed {shown}: close() it")


def test_a_client_that_never_opened_or_failed_to_be_made_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TcmClient(URI)
        with pytest.raises(ConfigError):
            TcmClient("http://nowhere")
        gc.collect()


# A failure is reported as what it is, even where no file can be opened any more.
NO_DESCRIPTOR_LEFT = """
import contextlib, os, resource, socket
from tcm_sync import ConnectFailedError, Route, TcmClient

with socket.create_server(("127.0.0.1", 0)) as listener:
    client = TcmClient("ws://127.0.0.1:%d/ws" % listener.getsockname()[1], route=Route("c"), timeout=2.0)
    client.open(wait=False)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.dup(0))
    try:
        client.infer("m", {"x": [[1.0]]})
    except ConnectFailedError as error:
        caught = error
    print(client.ready().status)
    for each in held:
        os.close(each)
    client.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_without_a_descriptor_left_the_failure_is_one_of_ours():
    command = [sys.executable, "-W", "error", "-c", NO_DESCRIPTOR_LEFT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "unreachable\n"), done.stderr
