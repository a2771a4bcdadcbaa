"""A resolver that hangs: every call keeps its timeout, and threads are few."""

from __future__ import annotations

import socket
import threading

import pytest

from tcm_sync import BatchPolicy, CallTimeoutError, ConnectFailedError, PipelineStep, Route, TcmClient

X = {"x": [[1.0]]}
SHORT = 0.1  # seconds
CALLS = {
    "open": lambda client: client.open(timeout=SHORT),
    "infer": lambda client: client.infer("m", X, timeout=SHORT),
    "infer_chunked": lambda client: client.infer_chunked("m", X, rows=1, timeout=SHORT),
    "submit": lambda client: client.submit("m", X, timeout=SHORT).result(),
    "map": lambda client: list(client.map("m", [X], timeout=SHORT)),
    "stream": lambda client: list(client.stream("m", X, timeout=SHORT)),
    "pipeline": lambda client: client.pipeline([PipelineStep("m", X)], timeout=SHORT),
    "infer_sample": lambda client: client.model("m", batch=BatchPolicy()).infer_sample(
        {"x": [1.0]}, timeout=SHORT
    ),
    "submit_sample": lambda client: (
        client.model("m", batch=BatchPolicy()).submit_sample({"x": [1.0]}, timeout=SHORT).result()
    ),
    "info": lambda client: client.info("colour", timeout=SHORT),
    "queue_stats": lambda client: client.queue_stats(timeout=SHORT),
    "management": lambda client: client.management("create_vm", timeout=SHORT),
    "create": lambda client: client.create(timeout=SHORT),
    "delete": lambda client: client.delete(vm_id="v", timeout=SHORT),
    "wait_until_ready": lambda client: client.wait_until_ready(SHORT),
}
ANSWERS = {
    "health": lambda client: client.health(timeout=SHORT),
    "ready": lambda client: client.ready(timeout=SHORT).ok,
}


@pytest.fixture
def client(monkeypatch):
    """Return a client of a name that is being resolved until the test is over."""
    over = threading.Event()

    def hang(*_, **__):
        over.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "at last")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    client = TcmClient("ws://manager.example:8000/ws", route=Route("c"), timeout=SHORT)
    try:
        yield client
    finally:
        over.set()
        client.close()


@pytest.mark.parametrize("name", CALLS)
def test_every_call_keeps_its_timeout_while_a_name_is_resolved(client, name):
    with pytest.raises((ConnectFailedError, CallTimeoutError)):
        CALLS[name](client)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_probe_keeps_its_timeout_while_a_name_is_resolved(client, name):
    assert ANSWERS[name](client) is False


def test_a_name_that_is_never_resolved_holds_few_threads(client):
    before = threading.active_count()
    for _ in range(5):
        for probe in ANSWERS.values():
            assert probe(client) is False
        with pytest.raises(ConnectFailedError):
            CALLS["infer"](client)
    assert threading.active_count() - before <= 5  # the reader, and two each for sockets and probes
