"""Spans and metrics of OpenTelemetry: by the conventions, in the right place of a trace, without contents."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tcm_sync import BatchPolicy, InferenceError, TcmClient
from tcm_sync.events import _listeners as listeners
from tcm_sync.events import flush
from tcm_sync.integrations.opentelemetry import TcmInstrumentor

from ..helpers.waiting import GUARD, wait_until
from .web_servers import EXAMPLES, answers_of, end, environment, free_port, get


@pytest.fixture(autouse=True)
def _thread_ends_soon(monkeypatch):
    threads = listeners._delivery._threads
    monkeypatch.setattr(threads, "_idle_seconds", 0.01)
    yield
    wait_until(lambda: not threads._threads)


class Collected:
    """What OpenTelemetry was given."""

    def __init__(self):
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def spans(self):
        assert flush(GUARD)
        return [span for span in self._exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]

    def span(self):
        (span,) = self.spans()
        return span

    def metrics(self):
        assert flush(GUARD)
        (resource,) = self._reader.get_metrics_data().resource_metrics
        (scope,) = resource.scope_metrics
        return {metric.name: metric for metric in scope.metrics}


@pytest.fixture
def manager(serve):
    return serve(workers=8)


@pytest.fixture
def client(manager):
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD) as client:
        yield client


@pytest.fixture
def collected(client):
    """What is collected of a client that existed before."""
    client.infer("echo", {"x": [0.0]})
    collected = Collected()
    instrumentor = TcmInstrumentor()
    instrumentor.instrument(tracer_provider=collected.tracers, meter_provider=collected.meters)
    yield collected
    instrumentor.uninstrument()
    collected.meters.shutdown()
    collected.tracers.shutdown()


def test_a_call_is_a_client_span_by_the_conventions(client, manager, collected):
    result = client.infer("echo", {"x": [1.5]})
    span = collected.span()
    host, port = manager.uri.split("/")[2].split(":")
    assert (span.name, span.kind, span.status.status_code) == ("tcm/infer", SpanKind.CLIENT, StatusCode.UNSET)
    expected = {
        "rpc.system.name": "tcm",
        "rpc.method": "tcm/infer",
        "server.address": host,
        "server.port": int(port),
        "tcm.model.name": "echo",
        "tcm.container_id": manager.route.container_id,
        "tcm.attempts": 1,
        "tcm.transport": "json",
    }
    assert dict(span.attributes) == {**span.attributes, **expected}
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(
        sum(value for name, value in span.attributes.items() if name.startswith("tcm.seconds.")), abs=1e-5
    )
    assert (span.end_time - span.start_time) / 1e9 >= result.elapsed / 2


def test_a_span_has_an_event_for_each_attempt(client, manager, collected):
    manager.fail_next("TRITON_OVERLOADED", times=2)
    client.infer("echo", {"x": [1.5]})
    span = collected.span()
    assert [(event.name, event.attributes.get("error.type")) for event in span.events] == [
        ("tcm.attempt", "TRITON_OVERLOADED"),
        ("tcm.attempt", "TRITON_OVERLOADED"),
        ("tcm.attempt", None),
    ]
    assert [event.attributes["tcm.attempt"] for event in span.events] == [1, 2, 3]
    assert all(span.start_time <= event.timestamp <= span.end_time for event in span.events)
    assert span.attributes["tcm.attempts"] == 3


def test_a_call_that_fails_has_the_code_as_its_error(client, manager, collected):
    manager.fail_next("TRITON_INFERENCE_FAILED", message="a text that nobody exports")
    with pytest.raises(InferenceError):
        client.infer("echo", {"x": [1.5]})
    span = collected.span()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "TRITON_INFERENCE_FAILED"
    assert span.attributes["rpc.response.status_code"] == "TRITON_INFERENCE_FAILED"
    assert "nobody exports" not in span.to_json()


def test_an_error_of_the_client_has_no_status_of_a_response(client, collected, gated):
    client.open()
    with pytest.raises(TimeoutError):
        client.infer("gated", {"x": [1.5]}, timeout=0.05)
    span = collected.span()
    assert span.attributes["error.type"] == "CallTimeoutError"
    assert "rpc.response.status_code" not in span.attributes


@pytest.mark.parametrize("call", ["infer", "submit", "map", "infer_chunked", "sample"])
def test_a_span_is_the_child_of_the_span_that_was_current(client, collected, call):
    inputs = {"x": np.ones((1, 1))}
    with collected.tracers.get_tracer("test").start_as_current_span("request") as parent:
        if call == "submit":
            future = client.submit("echo", inputs)
        elif call == "map":
            list(client.map("echo", [inputs, inputs]))
        elif call == "sample":
            client.model("echo", batch=BatchPolicy(2, 0.0)).infer_sample(inputs)
        else:
            getattr(client, call)("echo", inputs)
    if call == "submit":
        future.result(GUARD)
    spans = collected.spans()
    assert len(spans) == (2 if call == "map" else 1)
    assert {span.parent.span_id for span in spans} == {parent.get_span_context().span_id}
    assert {span.context.trace_id for span in spans} == {parent.get_span_context().trace_id}


def test_no_contents_of_tensors_are_exported(client, collected):
    client.infer("echo", {"secret_name": np.array(["a text of a patient"])})
    text = collected.span().to_json()
    assert "patient" not in text
    assert "secret_name" not in text


def test_durations_sockets_and_batches_are_metrics(client, manager, collected):
    client.infer("echo", {"x": [1.5]})
    client.model("echo", batch=BatchPolicy(2, 0.0)).infer_sample({"x": [1.0]})
    with TcmClient(manager.uri, route=manager.route) as other:
        other.infer("echo", {"x": [1.5]})
        during = collected.metrics()
    duration = during["rpc.client.call.duration"]
    assert duration.unit == "s"
    points = {point.attributes["rpc.method"]: point for point in duration.data.data_points}
    assert (points["tcm/infer"].count, points["tcm/batch"].count) == (2, 1)
    assert points["tcm/infer"].explicit_bounds[0] == 0.005
    assert {"rpc.system.name", "server.address", "server.port"} <= set(points["tcm/infer"].attributes)
    (sockets,) = during["tcm.client.open_sockets"].data.data_points
    assert sockets.value == 1
    (batches,) = during["tcm.client.batch.samples"].data.data_points
    assert (batches.count, batches.sum) == (1, 1)
    (sockets,) = collected.metrics()["tcm.client.open_sockets"].data.data_points
    assert sockets.value == 0


def test_a_socket_that_was_opened_before_is_not_taken_off_when_it_is_closed(client, manager, collected):
    with TcmClient(manager.uri, route=manager.route) as other:
        other.queue_stats()
        client.close()
        (sockets,) = collected.metrics()["tcm.client.open_sockets"].data.data_points
        assert sockets.value == 1


def test_nothing_is_reported_where_instrumentation_is_suppressed_or_ended(client, collected):
    with suppress_instrumentation():
        client.infer("echo", {"x": [1.5]})
    assert collected.spans() == []
    TcmInstrumentor().uninstrument()
    client.infer("echo", {"x": [1.5]})
    assert collected.spans() == []
    assert client._core.listeners.registered == ()
    TcmInstrumentor().instrument(tracer_provider=collected.tracers, meter_provider=collected.meters)
    client.infer("echo", {"x": [1.5]})
    assert len(collected.spans()) == 1


PROGRAM = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tcm_sync import TcmClient
from tcm_sync.events import flush
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with TcmClient.from_env() as client:
    client.infer("echo", {"x": [1.0]})
flush(30.0)
print([span.name for span in exporter.get_finished_spans()])
"""


def test_opentelemetry_instrument_finds_it(manager):
    command = [Path(sys.executable).parent / "opentelemetry-instrument", sys.executable, "-c", PROGRAM]
    given = environment(manager, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="")
    assert subprocess.check_output(command, env=given, text=True, timeout=GUARD) == "['tcm/infer']\n"


@pytest.fixture
def collector():
    """A collector on a free port: what it received by path, as dictionaries."""
    received = defaultdict(list)
    kinds = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received[self.path].append(MessageToDict(kinds[self.path].FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # so that server_close waits for them
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    received["port"] = server.server_port
    yield received
    server.shutdown()
    thread.join(GUARD)
    server.server_close()


def test_both_workers_of_gunicorn_export_the_example_to_their_last_call(digits_manager, collector):
    port = free_port()
    given = environment(
        digits_manager,
        BIND=f"127.0.0.1:{port}",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector['port']}",
    )
    # gunicorn loses the signal to end a worker that it has just forked
    command = [Path(sys.executable).parent / "gunicorn", "--graceful-timeout", "3", "service:app"]
    server = subprocess.Popen(command, cwd=EXAMPLES / "opentelemetry", env=given, stderr=subprocess.DEVNULL)
    try:
        get(port, "/digits?number=0")
        answers_of(port, range(99))
    finally:
        end(server)
    spans = defaultdict(list)
    for resource in (each for sent in collector["/v1/traces"] for each in sent["resourceSpans"]):
        for scope in resource["scopeSpans"]:
            spans[scope["scope"]["name"]] += scope["spans"]
    requests = {each["spanId"]: each["traceId"] for each in spans["opentelemetry.instrumentation.flask"]}
    assert len(spans["tcm_sync"]) == len(requests) == 100
    assert {each["parentSpanId"]: each["traceId"] for each in spans["tcm_sync"]} == requests
    counts = [
        int(point["count"])
        for sent in collector["/v1/metrics"]
        for resource in sent["resourceMetrics"]
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == "rpc.client.call.duration"
        for point in metric["histogram"]["dataPoints"]
    ]
    assert sum(counts) == 100
    assert len(counts) <= 2  # each worker exports when it ends, if it has answered anything


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.instrumentor", None)
    monkeypatch.delitem(sys.modules, "tcm_sync.integrations.opentelemetry")
    with pytest.raises(ImportError, match=r"tcm-sync\[opentelemetry\]"):
        import tcm_sync.integrations.opentelemetry  # noqa: F401
