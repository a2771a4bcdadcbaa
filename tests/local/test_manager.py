"""LocalManager as an object: settings, addresses, TLS, HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys

import pytest
import trustme

from tcm_sync import Route
from tcm_sync.errors import ConfigError
from tcm_sync.local import LocalManager, probes

from ..helpers.raw_connection import HANDSHAKE, tensor
from ..helpers.waiting import GUARD, wait_until
from .request_player import http_get


def test_it_has_its_address():
    with LocalManager(container_id="c", vm_ip="10.0.0.1") as manager:
        assert manager.uri == f"ws://127.0.0.1:{manager.port}/ws"
        assert manager.route == Route("c", "10.0.0.1")
        assert manager.transient_route == Route("local-transient", "10.0.0.1")
        assert manager.uri in repr(manager)


def test_before_it_is_started_there_is_no_port():
    manager = LocalManager()
    with pytest.raises(ConfigError, match="before it is started"):
        _ = manager.uri
    assert repr(manager) == "<LocalManager stopped, models []>"
    assert manager.stats().connections == 0
    manager.alert("nobody hears this")
    manager.kill()
    manager.stop()


def test_starting_twice_is_a_mistake():
    with LocalManager() as manager, pytest.raises(RuntimeError, match="runs already"):
        manager.start()


def test_a_port_that_is_taken_is_named():
    with LocalManager() as first:
        second = LocalManager(port=first.port)
        with pytest.raises(ConfigError, match=f"cannot listen on host '127.0.0.1', port {first.port}: "):
            second.start()
        second.stop()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tick", -1),
        ("quantum", 0),
        ("workers", 0),
        ("queue_size", 0),
        ("max_message_bytes", 0),
        ("linger", -0.1),
        ("management_workers", 0),
        ("management_queue_size", 0),
        ("management_executor_queue_size", 0),
        ("stream_timeout", -1),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting, value):
    with pytest.raises(ConfigError, match=rf"^{setting} must be a (whole )?number of at least"):
        LocalManager(**{setting: value})


def test_the_two_containers_need_two_ids():
    with pytest.raises(ConfigError, match="must differ; both are 'c'"):
        LocalManager(container_id="c", transient_container_id="c")


def test_one_str_is_no_collection_of_tokens():
    with pytest.raises(ConfigError, match="tokens must be a collection") as caught:
        LocalManager(tokens="secret")
    assert "secret" not in str(caught.value)


def test_without_websockets_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    with pytest.raises(ConfigError, match=r'pip install "tcm-sync\[local\]"'):
        LocalManager()


def test_callables_need_no_onnx():
    script = (
        "import sys\n"
        "from tcm_sync.local import LocalManager\n"
        "with LocalManager({'echo': lambda arrays: arrays}):\n"
        "    assert not {'onnx', 'onnxruntime'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_over_tls(serve, dial):
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    manager = serve(ssl_context=server)
    assert manager.uri.startswith("wss://")
    raw = dial(manager, "u", context=client)
    assert raw.infer("echo", tensor([1.0]))["data"] == {"x": [1.0]}
    connection = http.client.HTTPSConnection("127.0.0.1", manager.port, context=client, timeout=GUARD)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        assert json.load(connection.getresponse()) == {"status": "ok"}
    manager.stop()
    assert raw.wait_for_close() == 1000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/ready", 200),
        ("/ready?x=1", 200),
        ("/", 404),
        ("/health/", 404),
    ],
)
def test_paths(serve, path, status):
    connection = http.client.HTTPConnection("127.0.0.1", serve().port, timeout=GUARD)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == status
        assert isinstance(json.load(response), dict)


def test_a_websocket_on_another_path_is_not_found(serve):
    manager = serve()
    with socket.create_connection(("127.0.0.1", manager.port), timeout=GUARD) as client:
        client.sendall(HANDSHAKE.replace(b"/ws", b"/other"))
        assert client.recv(1000).startswith(b"HTTP/1.1 404")


def test_no_compression_is_negotiated(serve):
    manager = serve()
    with socket.create_connection(("127.0.0.1", manager.port), timeout=GUARD) as client:
        client.sendall(HANDSHAKE[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
        answer = client.recv(4096).lower()
    assert answer.startswith(b"http/1.1 101")
    assert b"sec-websocket-extensions" not in answer


def test_between_two_ticks_everything_waits(serve, dial):
    manager = serve(tick=3600)
    raw = dial(manager, "u")
    for _ in range(3):
        raw.ask("echo", tensor([1.0]))
    wait_until(lambda: manager.stats().waiting == 3, "they wait")
    manager.stop()
    assert [raw.receive()["payload"]["dropped_type"] for _ in range(3)] == ["inference"] * 3
    assert manager.stats().executions == {}


def test_a_readiness_probe_that_fails_is_a_503_with_a_reason(serve, caplog):
    """The answer names the entry in the log by its error_id, and says nothing of the cause."""

    def probe():
        raise RuntimeError("the key store is gone")

    status, _, body = http_get(serve(readiness=probe), "/ready", {})
    found = json.loads(body)
    error_id = found.pop("error_id")
    assert (status, found) == (
        503,
        {"status": "not_ready", "reason": "readiness_probe_failed", "detail": "internal_error"},
    )
    (record,) = (record for record in caplog.records if error_id in record.getMessage())
    assert "the key store is gone" in str(record.exc_info)


def test_a_readiness_probe_that_passes_leaves_the_answer_to_the_servers(serve):
    manager = serve(readiness=lambda: None)
    assert http_get(manager, "/ready", {})[0] == 200
    manager.cloud.lose_server(manager.route.container_id)
    assert http_get(manager, "/ready", {})[0] == 503


def test_a_server_that_is_created_again_answers_again(serve, dial):
    manager = serve()
    manager.cloud.lose_server(manager.route.container_id)
    raw = dial(manager, "u")
    answer = raw.infer("echo", tensor([1.0]))
    assert answer["data"]["message"].endswith("[Errno 111] Connection refused")
    manager.cloud.create_server(manager.route.container_id, "echo")
    assert raw.infer("echo", tensor([1.0]))["status"] == "COMPLETED"
    assert http_get(manager, "/ready", {})[0] == 200


@pytest.mark.parametrize(
    ("address", "forwarded_for", "may"),
    [
        ("127.0.0.1", None, True),
        ("::1", None, True),
        ("192.168.1.7", None, True),
        ("8.8.8.8", None, False),
        ("127.0.0.1", "8.8.8.8", False),
        ("127.0.0.1", "10.0.0.7, 127.0.0.1", True),
        ("8.8.8.8", "10.0.0.7", False),
        ("127.0.0.1", "nonsense", False),
    ],
)
def test_metrics_are_for_callers_nearby(address, forwarded_for, may):
    """A proxy is believed where it is on the same host."""
    assert probes.may_read_metrics(address, forwarded_for) is may
