"""``bench``, and the load behind it."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time

import numpy as np
import pytest

from tcm_sync.cli import bench, load
from tcm_sync.errors import BackpressureError, ClientClosedError, InferenceError
from tcm_sync.local import LocalManager, ModelFailure

from ..helpers.served_models import Gated, add_sub_onnx
from ..helpers.waiting import wait_until

SHORT = ("--duration", "1", "--warm-up", "0.1")
INPUT = ("--input", "x=[[1.0, 2.0]]")
KEYS = {
    "model_name",
    "threads",
    "rate",
    "batch",
    "seconds",
    "answered",
    "per_second",
    "latency_ms",
    "errors",
    "unsent",
    "repeats",
    "bytes_sent",
    "bytes_received",
    "bytes_shared",
}
LATENCIES = ["min", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"]


def measured(done):
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert set(found) == KEYS
    return found


def test_a_closed_loop(cli, manager):
    at_once = ("--duration", "1", "--warm-up", "0")
    found = measured(cli("bench", "echo", *INPUT, *at_once, "--threads", 2, "--json"))
    assert (found["threads"], found["rate"], found["errors"], found["unsent"]) == (2, None, {}, 0)
    assert found["answered"] > 0
    assert found["bytes_sent"] > found["answered"] * 100
    assert list(found["latency_ms"]) == LATENCIES
    values = [found["latency_ms"][name] for name in LATENCIES if name != "mean"]
    assert values == sorted(values)


def test_an_open_loop_sends_what_is_due(cli, manager):
    found = measured(cli("bench", "echo", *INPUT, *SHORT, "--rate", 100, "--json"))
    assert found["rate"] == 100
    assert found["answered"] + found["unsent"] == 100


def test_samples_are_put_into_batches(cli, manager):
    before = manager.stats().executions.get("echo", 0)
    found = measured(cli("bench", "echo", "--input", "x=1.5", "--batch", 8, *SHORT, "--json"))
    assert (found["batch"], found["threads"]) == (8, 32)
    assert 0 < manager.stats().executions["echo"] - before < found["answered"]


def test_inputs_made_from_a_file(cli, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(add_sub_onnx())
    with LocalManager({"m": str(file)}, tick=0) as manager:
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id)
        for batch in ((), ("--batch", 4)):
            assert measured(cli("bench", "m", "--onnx", file, *where, *SHORT, "--json", *batch))["answered"]


def test_a_report_for_people(cli, manager):
    done = cli("bench", "echo", *INPUT, *SHORT)
    first = [line.split()[0] for line in done.out.splitlines()]
    assert first == ["echo", "answered", "errors", "repeats", "bytes", *LATENCIES]


def test_failures_are_counted_by_code(cli):
    asked = iter(range(10**9))

    def moody(arrays):
        if next(asked) % 2:
            raise ModelFailure("TRITON_SHAPE_MISMATCH", "not today")
        return arrays

    with LocalManager({"moody": moody}, tick=0) as manager:
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id)
        done = cli("bench", "moody", *INPUT, *where, *SHORT, "--threads", 1, "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert abs(found["errors"].get("TRITON_SHAPE_MISMATCH", 0) - found["answered"]) <= 1


def test_repeats_are_counted_by_their_reason(cli):
    asked = iter(range(10**9))

    def busy(arrays):
        if next(asked) % 3 == 1:
            raise ModelFailure("TRITON_OVERLOADED", "not now")
        return arrays

    with LocalManager({"busy": busy}, tick=0) as manager:
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id)
        found = measured(cli("bench", "busy", *INPUT, *where, *SHORT, "--threads", 1, "--json"))
    assert found["repeats"]["TRITON_OVERLOADED"] > 0
    assert found["errors"] == {}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("echo",), 2, "give either --input or --onnx"),
        (("echo", *INPUT, "--onnx", "x"), 2, "give either --input or --onnx"),
        (("nobody", *INPUT), 1, "nobody"),
        (("echo", *INPUT, "--rate", "0"), 2, "--rate"),
        (("echo", *INPUT, "--duration", "0"), 2, "--duration"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(cli, manager, arguments, code, said):
    done = cli("bench", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


def test_a_manager_that_dies_during_it_is_reported_with_the_requests_that_it_left(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_SILENCE", 0.3)
    gated = Gated()
    with LocalManager({"gated": gated}, tick=0) as manager:
        gated.open(1.0)
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id)

        def kill():
            wait_until(lambda: manager.stats().executions.get("gated", 0) > 20, "it has begun")
            manager.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        how = ("--input", "x=[[1.0]]", "--duration", "3600", "--warm-up", "0", "--json")
        done = cli("bench", "gated", *how, "--report", tmp_path / "out.html", *where)
        killer.join()
    assert done.code == 3
    figures = json.loads(done.out)
    assert figures["answered"] >= 10  # the first is not counted, and four may be on their way
    assert figures["errors"] == {"UNANSWERED": 4}
    assert done.err.startswith(
        "tcm-sync: the manager is unreachable, no answer for 0.3 s: no connection to 127.0.0.1:"
    )
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "ended early, since the manager was unreachable: no connection to 127.0.0.1:" in page
    assert page.count("UNANSWERED") == 2  # in the chart of failures over time, and with the requests


def test_a_model_of_which_nothing_comes_is_a_failure(cli, monkeypatch):
    asked = iter(range(10**9))

    def once(arrays):
        if next(asked):
            raise ModelFailure("TRITON_ERROR", "never again")
        return arrays

    with LocalManager({"once": once}, tick=0) as manager:
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id)
        done = cli("bench", "once", *INPUT, *where, "--duration", "0.4", "--warm-up", "0.1", "--json")
    assert done.code == 1
    assert json.loads(done.out)["latency_ms"] == {}
    assert done.err == "tcm-sync: every request failed\n"


def test_without_a_warm_up_everything_counts_from_the_start():
    class Client:
        asked = 0

        def stats(self):
            self.asked += 1
            return self.asked

    watch = bench._Watch(Client(), time.monotonic())
    watch.check(0.0)
    assert watch.before == 1


# --- the load itself ---


class Clock:
    """A clock that advances only while something waits."""

    def __init__(self):
        self.now = 1000.0
        self.reading = 0.0  # seconds that it takes to look at it

    def monotonic(self):
        self.now += self.reading
        return self.now

    def wait(self, seconds):
        self.now += seconds
        return False


@pytest.fixture
def run(monkeypatch):
    """Run a load of one thread here, by a clock that the calls move on."""
    clock = Clock()
    monkeypatch.setattr(load, "time", clock)

    def begin(call, pace_of, warm_up=0.0, reading=0.0):
        tally = load.Tally()
        clock.reading = reading
        start = clock.now
        paced = load.Load(lambda: call(clock), 1, pace_of(start), start + warm_up)
        monkeypatch.setattr(paced._stop, "wait", clock.wait)
        paced._run(tally)
        return tally

    return begin


def stalling(number, seconds, otherwise=0.001):
    """Take a millisecond, and once much longer."""
    asked = iter(range(10**9))
    return lambda clock: clock.wait(seconds if next(asked) == number else otherwise)


def test_an_open_loop_shows_a_stall_in_all_that_it_held_up(run):
    tally = run(stalling(10, 0.5), lambda start: load.OpenLoop(start, start + 1.0, 100.0))
    assert tally.answered == 100
    assert tally.milliseconds()["max"] == pytest.approx(500, rel=0.01)
    assert tally.milliseconds()["p90"] > 380  # 55 requests waited, for 10 ms less each
    assert tally.milliseconds()["p50"] > 1


def test_a_closed_loop_shows_it_once(run):
    tally = run(stalling(10, 0.5), lambda start: load.ClosedLoop(start + 1.0))
    assert tally.milliseconds()["max"] == pytest.approx(500, rel=0.01)
    assert tally.milliseconds()["p99"] == pytest.approx(1, rel=0.01)


def test_what_had_no_turn_is_counted_with_its_wait(run):
    tally = run(lambda clock: clock.wait(0.25), lambda start: load.OpenLoop(start, start + 1.0, 10.0))
    assert (tally.answered, tally.unsent) == (4, 6)
    assert tally.latencies.get_total_count() == 10
    assert tally.milliseconds()["max"] == pytest.approx(700, rel=0.01)  # the fourth, due at 0.3 s
    assert tally.milliseconds()["min"] == pytest.approx(100, rel=0.01)  # the tenth, due at 0.9 s


@pytest.mark.parametrize("ends", [1.0, 1.1, 1.9])
@pytest.mark.parametrize(
    "pace",
    [
        lambda start, ends: load.ClosedLoop(start + ends),
        lambda start, ends: load.OpenLoop(start, start + ends, 2),
    ],
)
def test_a_request_whose_turn_came_in_time_is_sent_though_the_end_comes_meanwhile(run, pace, ends):
    """The end may come between any two looks at the clock, here at every one of them in turn."""
    tally = run(lambda _: None, lambda start: pace(start, ends), reading=0.2)
    assert tally.unsent == 0
    assert tally.answered == tally.latencies.get_total_count() >= 2


def test_the_total_is_that_of_all_threads():
    paced = load.Load(lambda: None, 3, load.ClosedLoop(0.0), 0.0)
    for number, tally in enumerate(paced._tallies, start=1):
        tally.answered, tally.unsent, tally.errors["TRITON_OVERLOADED"] = number, 10 * number, 100 * number
        tally.record(number)
    total = paced.total()
    assert (total.answered, total.unsent, total.errors) == (6, 60, {"TRITON_OVERLOADED": 600})
    assert total.latencies.get_total_count() == 3
    assert total.milliseconds()["max"] == pytest.approx(3000, rel=0.01)


def test_the_warm_up_is_not_counted(run):
    tally = run(stalling(0, 0.3), lambda start: load.OpenLoop(start, start + 1.0, 10.0), warm_up=0.45)
    assert tally.answered == 5
    assert tally.milliseconds()["max"] == pytest.approx(1, rel=0.01)


def test_failures_are_counted_and_a_closed_client_ends_it(run):
    outcomes = iter(
        [None, BackpressureError("busy", code="BUSY"), InferenceError("no"), ClientClosedError("bye")]
    )

    def call():
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome

    tally = run(lambda _: call(), lambda start: load.ClosedLoop(start + 1.0))
    assert (tally.answered, tally.errors) == (1, {"BUSY": 1, "InferenceError": 1})


def test_percentiles_are_those_of_numpy():
    tally = load.Tally()
    seconds = np.random.default_rng(0).lognormal(-5, 1, 20_000)
    for each in seconds:
        tally.record(each)
    figures = tally.milliseconds()
    for rank in (50, 90, 99, 99.9):
        assert figures[f"p{rank:g}"] == pytest.approx(np.percentile(seconds, rank) * 1e3, rel=0.02)
    assert figures["mean"] == pytest.approx(seconds.mean() * 1e3, rel=0.01)


def test_latencies_beyond_all_bounds_are_kept_at_them():
    tally = load.Tally()
    for seconds in (-1.0, 0.0, 1e9):
        tally.record(seconds)
    assert tally.latencies.get_total_count() == 3
    assert tally.milliseconds()["max"] == pytest.approx(3.6e6, rel=0.01)


def test_a_load_of_which_some_requests_failed_ends_with_1(cli, monkeypatch):
    calls = itertools.count()

    def moody(arrays):
        if next(calls) % 2:
            raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")
        return arrays

    with LocalManager({"moody": moody}, tick=0) as manager:
        monkeypatch.setenv("TCM_WS_URI", manager.uri)
        monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
        done = cli(
            "bench", "moody", "--input", "x=[1]", "--duration", "0.3", "--warm-up", "0", "--threads", "1"
        )
    assert done.code == 1
    assert re.search(r"tcm-sync: [\d,]+ of [\d,]+ requests failed", done.err)


def test_what_was_due_in_the_warm_up_and_had_no_turn_is_left_out():
    now = time.monotonic()
    pace = load.OpenLoop(now - 10.0, now + 60.0, 100.0, now - 1.0)
    turn = pace.wait(threading.Event())
    assert now - 1.0 <= turn.due < now - 0.9
