"""Metrics as Prometheus scrapes them, and the dashboard and the alerts that are made of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tcm_sync import BatchPolicy, InferenceError, TcmClient
from tcm_sync._pool.gate import Gate
from tcm_sync.events import (
    CallFinished,
    ConnectionClosed,
    ConnectionOpened,
    Listener,
    Phases,
    add_listener,
    flush,
    remove_listener,
)
from tcm_sync.events import _listeners as listeners
from tcm_sync.events._listeners import Listeners
from tcm_sync.events._watch import Watch
from tcm_sync.integrations.prometheus import PrometheusListener

from ..helpers.interrupts import each_moment
from ..helpers.waiting import GUARD, wait_until
from .web_servers import environment, free_port, get

EXAMPLES = Path(__file__).parents[2] / "examples"
DASHBOARD = EXAMPLES / "grafana" / "tcm_sync.json"
ALERTS = EXAMPLES / "prometheus" / "alerts.yml"


@pytest.fixture(autouse=True)
def _thread_ends_soon(monkeypatch):
    threads = listeners._delivery._threads
    monkeypatch.setattr(threads, "_idle_seconds", 0.01)
    yield
    wait_until(lambda: not threads._threads)


def samples_of(text):
    """Return the values of a scrape by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def scraped(serve):
    """What a client has made that did everything that is measured."""
    manager = serve(workers=8)
    registry = CollectorRegistry()
    client = TcmClient(
        manager.uri, route=manager.route, timeout=GUARD, listeners=[PrometheusListener(registry)]
    )
    with client:
        client.infer("echo", {"x": [1.0]})
        client.model("echo", batch=BatchPolicy(4, 0.0)).infer_sample({"x": [1.0]})
        manager.fail_next("TRITON_OVERLOADED")
        client.infer("echo", {"x": [1.0]})
        manager.fail_next("TRITON_INFERENCE_FAILED")
        with pytest.raises(InferenceError):
            client.infer("echo", {"x": [1.0]})
        manager.fail_next("TRITON_CIRCUIT_OPEN", retry_after_seconds=0.01)
        client.infer("echo", {"x": [1.0]})
        assert flush(GUARD)
        during = samples_of(generate_latest(registry).decode())
    assert flush(GUARD)
    return client, during, samples_of(generate_latest(registry).decode())


def test_a_scrape_has_what_the_client_did(scraped):
    client, during, after = scraped
    pool = sorted(["inference", re.search(r"//([^/]+)/", repr(client))[1]])
    assert during["tcm_call_seconds_count", "echo", "infer", "ok"] == 3
    assert during["tcm_call_seconds_count", "echo", "error", "infer"] == 1
    assert during["tcm_call_seconds_count", "batch", "echo", "ok"] == 1
    assert during["tcm_call_failures_total", "TRITON_INFERENCE_FAILED", "echo", "infer"] == 1
    assert during["tcm_attempt_failures_total", "TRITON_OVERLOADED", "echo"] == 1
    assert during["tcm_repeats_total", "echo"] == 2
    assert during["tcm_batch_samples_sum", "echo"] == 1
    assert during[("tcm_sockets", *pool)] == 1
    assert during["tcm_calls_in_progress", "infer"] == 0
    assert after[("tcm_sockets", *pool)] == 0
    opened = after[("tcm_sockets_opened_total", *pool)]
    closed = sum(value for (name, *_), value in after.items() if name == "tcm_sockets_closed_total")
    assert opened == closed == client.stats().sockets_opened
    shut = [value for (name, *_), value in after.items() if name == "tcm_gate_shut"]
    assert shut == [0.0]
    assert sum(value for (name, *_), value in after.items() if name == "tcm_gate_shuttings_total") == 1


def test_a_stream_that_was_closed_early_did_not_fail():
    registry = CollectorRegistry()
    PrometheusListener(registry).call_finished(
        CallFinished(
            at=0.0,
            manager="m",
            call_id=1,
            kind="stream",
            model_name="llm",
            container_id=None,
            vm_ip=None,
            vm_id=None,
            code="closed",
            error=None,
            attempts=1,
            seconds=1.0,
            phases=Phases(reply=1.0),
            bytes_sent=1,
            bytes_received=1,
            transport="json",
            batch_size=None,
        )
    )
    scraped = samples_of(generate_latest(registry).decode())
    assert scraped["tcm_call_seconds_count", "llm", "ok", "stream"] == 1
    assert not any(name == "tcm_call_failures_total" for name, *_ in scraped)


def test_the_seconds_of_the_phases_are_those_of_the_calls(scraped):
    _, _, after = scraped
    phases = sum(value for (name, *_), value in after.items() if name == "tcm_call_phase_seconds_sum")
    calls = sum(value for (name, *_), value in after.items() if name == "tcm_call_seconds_sum")
    assert phases == pytest.approx(calls)
    names = {label for name, *labels in after if name == "tcm_call_phase_seconds_sum" for label in labels}
    assert names - {"echo", "ok", "error"} == set(Phases.__struct_fields__)


def queries():
    """Return the queries of the dashboard and of the alerts."""
    targets = [target for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    return [target["expr"] for target in targets], ALERTS.read_text()


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_are_scraped(scraped):
    known = {name for name, *_ in scraped[2]}
    exprs, alerts = queries()
    text = " ".join([*exprs, json.dumps(json.loads(DASHBOARD.read_text())["templating"])])
    asked = set(re.findall(r"\btcm_\w+", text))
    asked |= set(re.findall(r"\btcm_\w+(?=[\[{])", alerts))
    assert asked - known == set()
    families = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in known}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked} == families


def test_a_child_begins_its_gauges_at_zero(serve):
    manager = serve()
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    with TcmClient(manager.uri, route=manager.route, listeners=[listener]) as client:
        client.infer("echo", {"x": [1.0]})
        assert flush(GUARD)
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                client.infer("echo", {"x": [1.0]})
                flush(GUARD)
                found = samples_of(generate_latest(registry).decode())
                (sockets,) = [value for (name, *_), value in found.items() if name == "tcm_sockets"]
                os.write(writing, str(sockets).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.read() == "1.0"
        os.waitpid(pid, 0)


def test_a_child_counts_what_has_the_number_of_something_of_its_parent(monkeypatch):
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    opened = ConnectionOpened(at=0.0, manager="h:1", pool="inference", uuid="1", seconds=0.1)
    listener.connection_opened(opened)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    listener.connection_opened(opened)
    assert gauges_of(registry) == {"tcm_sockets": 1}


def test_sockets_are_counted_by_what_their_reason_begins_with():
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    for reason in ("lost: [Errno 104] reset", "lost: [Errno 32] broken pipe", "idle or old"):
        closed = ConnectionClosed(
            at=0.0, manager="h:1", pool="inference", uuid="1", reason=reason, requests=1, seconds=0.1
        )
        listener.connection_closed(closed)
    found = samples_of(generate_latest(registry).decode())
    assert found["tcm_sockets_closed_total", "h:1", "inference", "lost"] == 2
    assert found["tcm_sockets_closed_total", "h:1", "idle or old", "inference"] == 1


class Blocked(Listener):
    """Receives the first beginning of a call until `go_on` is set."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    def call_started(self, event):
        self.begun.set()
        assert self.go_on.wait(GUARD)


class Kept(Listener):
    """Keeps the ids of calls that have begun, and of those that have ended."""

    def __init__(self):
        self.begun = []
        self.ended = []

    def call_started(self, event):
        self.begun.append(event.call_id)

    def call_finished(self, event):
        self.ended.append(event.call_id)


def gauges_of(registry):
    """Return the sums of the gauges that are not zero, by their names."""
    counts = Counter()
    for (name, *_), value in samples_of(generate_latest(registry).decode()).items():
        if name in ("tcm_calls_in_progress", "tcm_calls_waiting", "tcm_sockets", "tcm_gate_shut"):
            counts[name] += value
    return dict(+counts)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a finalizer
@pytest.mark.parametrize("most_waiting", [10_000, 0])
def test_a_call_that_is_interrupted_at_any_moment_is_not_counted_for_ever(monkeypatch, most_waiting):
    """Beside one that goes on to wait. Each that was reported to begin is reported to end, once."""
    monkeypatch.setattr(listeners, "_MAX_WAITING", most_waiting)
    registry = CollectorRegistry()
    kept = Kept()
    blocked = Blocked()
    reported_to = Listeners([blocked, PrometheusListener(registry), kept], "m")
    other = Watch(reported_to, "infer").__enter__()
    if most_waiting:
        blocked.go_on.set()
    else:
        assert blocked.begun.wait(GUARD)  # all else is held back
    other.waits("gate")

    def call():
        with Watch(reported_to, "infer") as watch:
            watch.waits("socket")
            watch.waits("turn")
            watch.enter("reply")

    each_moment(lambda: contextlib.nullcontext(call), kept=False)
    blocked.go_on.set()
    assert flush(GUARD)
    assert gauges_of(registry) == {"tcm_calls_in_progress": 1, "tcm_calls_waiting": 1}
    other.finish()
    assert flush(GUARD)
    assert gauges_of(registry) == {}
    assert len(set(kept.ended)) == len(kept.ended)
    assert set(kept.ended) >= set(kept.begun)


def test_what_begins_before_a_listener_is_added_changes_no_gauge_when_it_ends(serve):
    manager = serve()
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    every = Listeners([Listener()], "m")
    with TcmClient(manager.uri, route=manager.route) as client:
        client.infer("echo", {"x": [1.0]})
        before = Watch(every, "infer").__enter__()
        before.waits("gate")
        add_listener(listener)
        try:
            with TcmClient(manager.uri, route=manager.route) as another:
                another.infer("echo", {"x": [1.0]})
                other = Watch(every, "infer").__enter__()
                other.waits("gate")
                before.finish()
                client.close()
                assert flush(GUARD)
                assert gauges_of(registry) == {
                    "tcm_calls_in_progress": 1,
                    "tcm_calls_waiting": 1,
                    "tcm_sockets": 1,
                }
                other.finish()
            assert flush(GUARD)
            assert gauges_of(registry) == {}
        finally:
            remove_listener(listener)


def test_gates_of_one_name_are_counted_each():
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    # as of two clients of one manager, and of a model in two containers
    gates = [Gate("circuit of 'm'", 60.0, 60.0, listeners=Listeners([listener], "m")) for _ in range(3)]
    for gate in (*gates, gates[0]):
        gate.shut(InferenceError("no"))
    seen = []
    for gate in gates:
        assert flush(GUARD)
        seen.append(gauges_of(registry))
        gate.open()
    assert seen == [{"tcm_gate_shut": number} for number in (3, 2, 1)]
    assert flush(GUARD)
    assert gauges_of(registry) == {}


def test_gauges_are_true_after_events_were_dropped(serve):
    """30,000 events: calls, sockets and gates that begin or end before, during and after."""
    manager = serve()
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    blocked = Blocked()

    def clients():
        for _ in range(2):
            yield TcmClient(manager.uri, route=manager.route, listeners=[blocked, listener])

    with contextlib.ExitStack() as stack:
        stack.callback(blocked.go_on.set)
        before, closed_before = map(stack.enter_context, clients())
        _, also_closed = map(stack.enter_context, clients())
        during, closed_during = map(stack.enter_context, clients())
        reporter = before._core.listeners
        gates = {name: Gate(name, 60.0, 60.0, listeners=reporter) for name in "abcde"}
        begun = [Watch(reporter, "infer") for _ in range(7_502)]
        for watch in begun[:2]:
            watch.__enter__()
            watch.waits("gate")
        for client in (before, closed_before, also_closed):
            client.open()
        for name in "abe":
            gates[name].shut(InferenceError("no"))
        assert blocked.begun.wait(GUARD)
        for watch in begun[2:]:  # the last of them are held back
            watch.__enter__()
            watch.waits("turn")
        for client in (during, closed_during):
            client.open()
        for name in "cd":
            gates[name].shut(InferenceError("no"))
        for watch in begun[1:-1]:
            watch.finish()
        for client in (closed_before, also_closed, closed_during):
            client.close()
        for name in "ace":
            gates[name].open()
        waiting = len(listeners._delivery._waiting)
        blocked.go_on.set()
        assert flush(GUARD)
        assert gauges_of(registry) == {
            "tcm_calls_in_progress": 2,
            "tcm_calls_waiting": 2,
            "tcm_gate_shut": 2,
            "tcm_sockets": before.stats().sockets + during.stats().sockets,
        }
        for watch in (begun[0], begun[-1]):
            watch.finish()
        for name in "bd":
            gates[name].open()
    assert flush(GUARD)
    assert gauges_of(registry) == {}
    gauges = (listener._in_progress, listener._waiting, listener._sockets, listener._shut)
    assert [gauge._labels for gauge in gauges] == [{}] * 4
    assert not listeners._delivery._held_back
    assert listeners._MAX_WAITING <= waiting <= 2 * listeners._MAX_WAITING


def scrape(port):
    """Return the samples, at the second try if prometheus_client met a file that a worker was just making."""
    for _ in range(5):  # a worker makes four files
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=GUARD) as reply:
                return samples_of(reply.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 500:
                    raise
    pytest.fail("scrapes fail")


def test_the_workers_of_gunicorn_are_scraped_together(digits_manager, tmp_path):
    port = free_port()
    given = environment(digits_manager, BIND=f"127.0.0.1:{port}", PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    command = [sys.executable, "-m", "gunicorn", "--graceful-timeout", "3"]
    server = subprocess.Popen(command, cwd=EXAMPLES / "prometheus", env=given, stderr=subprocess.DEVNULL)
    try:
        pids = [get(port, "/classify")["pid"]]
        while len(set(pids)) < 2:
            pids.append(get(port, "/classify")["pid"])
            assert len(pids) < 500
        done = ("tcm_call_seconds_count", "digits", "infer", "ok")

        def value(name):
            return sum(value for (found, *_), value in scrape(port).items() if found == name)

        wait_until(lambda: scrape(port).get(done) == len(pids), "both workers are counted")
        sockets = value("tcm_sockets")
        assert sockets >= 2
        digits_manager.stop()
        with ThreadPoolExecutor(2) as threads:
            late = [threads.submit(get, port, "/classify") for _ in range(2)]
            wait_until(
                lambda: value("tcm_calls_waiting") == 2, "the calls that wait in the workers are counted"
            )
            digits_manager.start()
            pids += [each.result(GUARD)["pid"] for each in late]
        wait_until(lambda: scrape(port)[done] == len(pids), "they have ended")
        assert value("tcm_calls_waiting") == value("tcm_calls_in_progress") == 0
        wait_until(lambda: value("tcm_sockets") >= 1, "the new sockets are counted")
        sockets = value("tcm_sockets")
        os.kill(pids[-1], signal.SIGTERM)
        wait_until(lambda: value("tcm_sockets") < sockets, "the sockets of a worker that ended are gone")
        assert scrape(port)[done] == len(pids)
        # gunicorn loses the signal to end a worker that it has just forked
        wait_until(lambda: get(port, "/classify")["pid"] not in pids, "the new worker answers")
    finally:
        server.terminate()
        server.wait(GUARD)


def promtool(*arguments, cwd=None):
    command = [shutil.which("promtool"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=GUARD)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs_debian("prometheus")
def test_promtool_reads_the_rules_and_each_query_of_the_dashboard(tmp_path):
    assert "4 rules" in promtool("check", "rules", ALERTS)
    exprs, _ = queries()
    plain = [each.replace("$__rate_interval", "5m").replace("$model", ".*") for each in exprs]
    rules = [{"record": f"query_{place}", "expr": expr} for place, expr in enumerate(plain)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules" in promtool("check", "rules", path)


@pytest.mark.needs_debian("prometheus")
def test_the_alerts_fire_when_they_are_meant_to():
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml", cwd=ALERTS.parent)


def test_each_alert_is_tested():
    names = set(re.findall(r"alert: (\w+)", ALERTS.read_text()))
    assert len(names) == 4
    tested = re.findall(r"alertname: (\w+)\n +exp_alerts", (ALERTS.parent / "alerts_test.yml").read_text())
    assert set(tested) == names


def test_metrics_by_hand_are_counted(serve):
    """docs/deploying.rst compares their lines with those of `PrometheusListener`."""
    names = {}
    exec(Path(__file__).with_name("by_hand").joinpath("metrics.py").read_text(), names)
    manager = serve()
    registry = CollectorRegistry()
    with TcmClient(manager.uri, route=manager.route) as client:
        names["ClientCollector"](client, registry)
        client.infer("echo", {"x": [1.0]})
        found = samples_of(generate_latest(registry).decode())
    assert (found[("tcm_calls_total",)], found[("tcm_sockets",)]) == (1, 1)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "tcm_sync.integrations.prometheus")
    with pytest.raises(ImportError, match=r"tcm-sync\[prometheus\]"):
        import tcm_sync.integrations.prometheus  # noqa: F401


def test_a_number_of_calls_costs_the_same_metrics(serve):
    """Labels hold no texts of errors and no uuids: a metric for each would fill the memory of Prometheus."""
    manager = serve()
    registry = CollectorRegistry()
    with TcmClient(manager.uri, route=manager.route, listeners=[PrometheusListener(registry)]) as client:
        counts = []
        for _ in range(2):
            for number in range(10):
                manager.fail_next("TRITON_INFERENCE_FAILED", message=f"reason {number} {np.random.random()}")
                with pytest.raises(InferenceError):
                    client.infer("echo", {"x": [1.0]})
            flush(GUARD)
            counts.append(len(samples_of(generate_latest(registry).decode())))
    assert counts[0] == counts[1]
