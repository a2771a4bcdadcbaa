"""``bench --report``: one HTML file, and what it records of a run."""

from __future__ import annotations

import html
import json
import re
import signal
import sys
from dataclasses import fields
from html.parser import HTMLParser

import pytest

import tcm_sync.cli
from tcm_sync.cli.charts import draw
from tcm_sync.cli.load import Tally
from tcm_sync.cli.timeline import QueueSampler, Sample, Timeline
from tcm_sync.errors import CallTimeoutError, ClientClosedError
from tcm_sync.local import LocalManager, ModelFailure
from tcm_sync.results import QueueStats

from ..helpers.waiting import GUARD, wait_until

INPUT = ("--input", "x=[[1.0, 2.0]]")
SHORT = ("--duration", "0.5", "--warm-up", "0")
TOKEN = "token-of-the-benchmark"
CODE = 'TRITON_<script>alert("$x$")</script>'


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.references, self.texts = set(), [], []
        self.feed(source)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_data(self, data):
        self.texts += data.split()


@pytest.fixture
def bench(cli, monkeypatch, tmp_path):
    """Run a model of a manager with a report: how it ended, and the page."""

    def run(model, *options, name="m"):
        file = tmp_path / "out.html"
        with LocalManager({name: model}, tick=0, tokens=[TOKEN]) as manager:
            monkeypatch.setenv("TCM_WS_URI", f"{manager.uri}?key=key-of-the-benchmark")
            monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
            monkeypatch.setenv("TCM_CLIENT_TOKEN", TOKEN)
            done = cli("bench", name, *INPUT, *SHORT, "--report", file, "--json", *options)
        return done, file.read_text(encoding="utf-8")

    return run


def test_a_report_has_the_figures_the_charts_and_the_settings_of_a_run(bench):
    done, source = bench(lambda arrays: arrays, "--threads", 3)
    assert (done.code, done.err) == (0, "")
    figures, text = json.loads(done.out), Page(source).text
    assert "Benchmark of m" in text
    for name in ("min", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"):
        assert f"{name} {figures['latency_ms'][name]:,.3f} ms" in text
    assert f"answered {figures['answered']:,}" in text
    assert f"bytes sent {figures['bytes_sent']:,}" in text
    for title in ("Latency", "Answers", "The manager's inference queue", "Histogram", "Percentiles"):
        assert re.search(rf"<text[^>]*>{title}", source)
    assert "samples of the manager's queue" in text
    assert "no request was answered" not in text
    for setting in (
        "closed loop",
        "threads 3",
        "0.5 s, after 0 s",
        "x: float64[1, 2]",
        "container_id='local'",
    ):
        assert setting in text
    assert re.search(r"tcm-sync \d\S+, numpy \d", text)


def test_a_report_loads_and_runs_nothing_whatever_names_are_in_it_and_hides_secrets(bench):
    asked = iter(range(10**9))

    def moody(arrays):
        if number := next(asked):
            raise ModelFailure(CODE if number % 2 else f"CODE {TOKEN}", "no")
        return arrays

    done, source = bench(moody, name="<b>&$\N{SNOWMAN}")
    assert done.code == 1
    assert f"Benchmark of {html.escape('<b>&$')}\N{SNOWMAN}" in source
    assert f"failed: {html.escape(CODE)}" in source
    page = Page(source)
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "foreignobject"}
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    for secret in (TOKEN, "key-of-the-benchmark"):
        assert secret not in source
    assert "failed: CODE ***" in source
    assert "key=***" in source


def test_an_interrupted_run_leaves_a_report_of_what_there_is(start, manager, tmp_path):
    file = tmp_path / "out.html"
    command = ("bench", "echo", *INPUT, "--duration", "3600", "--warm-up", "0", "--json", "--report", file)
    process = start(*command)
    wait_until(lambda: manager.stats().executions.get("echo", 0) > 20, "it has begun")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=GUARD)
    assert (process.returncode, err.strip()) == (130, "tcm-sync: interrupted")
    text = Page(file.read_text(encoding="utf-8")).text
    assert "interrupted before its end" in text
    assert f"answered {json.loads(out)['answered']:,}" in text


@pytest.mark.parametrize(
    ("place", "hidden", "said"),
    [
        ("out.html", ("matplotlib",), "tcm-sync[report]"),
        ("no/such/folder/out.html", (), "cannot be written"),
        (".", (), "is a directory"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_sent(
    cli, manager, tmp_path, monkeypatch, place, hidden, said
):
    monkeypatch.delitem(sys.modules, "tcm_sync.cli.charts")
    monkeypatch.delattr(tcm_sync.cli, "charts")
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    done = cli("bench", "echo", *INPUT, *SHORT, "--report", tmp_path / place)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert manager.stats().executions == {}
    assert list(tmp_path.iterdir()) == []


# --- charts ---


def texts_of(svg):
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_charts_show_each_code_up_to_four_and_the_sum_of_the_others():
    timeline, tally = Timeline(100.0, 10.0), Tally()
    timeline.record_latency(100.0, 0.01)
    timeline.record_answer(101.0)
    tally.record(0.01)
    for number in range(6):
        for _ in range(number + 1):
            timeline.record_error(102.0, f"CODE_{number}_$x$")
    texts = texts_of(draw(tally.latencies, timeline, [], 10.0, queue="not asked"))
    shown = [text for text in texts if text.startswith(("CODE", "other", "answers"))]
    assert shown == ["answers", *(f"CODE_{number}_$x$" for number in (5, 4, 3, 2)), "other errors"]
    assert "not asked" in texts


def test_charts_of_a_run_without_an_answer_say_so():
    svg = draw(Tally().latencies, Timeline(0.0, 10.0), [Sample(1.0, 0, 0, 200)], 10.0, queue="")
    assert texts_of(svg).count("no request was answered") == 4
    assert "not finished" in texts_of(svg)


# --- what is recorded ---


def test_requests_are_recorded_where_they_were_due_and_answers_where_they_came():
    timeline = Timeline(100.0, 8.0)
    timeline.record_latency(100.0, 7.9)
    timeline.record_answer(107.9)
    timeline.record_error(109.0, "BUSY")  # after the end: the last answers come late
    assert timeline.width == 0.1
    assert timeline.slots[0].latencies.get_max_value() == pytest.approx(7.9e6, rel=0.01)
    assert timeline.slots[0].answered == 0
    assert timeline.slots[79].answered == 1
    assert timeline.slots[90].errors == {"BUSY": 1}


@pytest.mark.parametrize(("duration", "width"), [(0.3, 0.1), (10, 0.2), (60, 1), (3600, 50), (1e7, 125e3)])
def test_a_long_run_has_no_more_slots_than_a_chart_can_show(duration, width):
    assert Timeline(0.0, duration).width == pytest.approx(width)


class Asked:
    """A client whose answers are given."""

    def __init__(self, answers):
        self._answers = iter(answers)
        self.closed = 0

    def queue_stats(self, timeout):
        answer = next(self._answers, None)
        if answer is None:
            raise ClientClosedError("closed")
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self):
        self.closed += 1


def test_a_sample_that_fails_is_counted_and_the_next_is_taken(queue_stats, monkeypatch):
    monkeypatch.setattr("tcm_sync.cli.timeline._MIN_INTERVAL", 0.001)
    client = Asked([queue_stats(3), CallTimeoutError("too late"), queue_stats(5)])
    sampler = QueueSampler(client, 0.1)
    with sampler:
        wait_until(lambda: len(sampler.samples) == 2, "the next one is taken")
    assert [(each.queued, each.room) for each in sampler.samples] == [(3, 197), (5, 195)]
    assert (sampler.failed, sampler.reason) == (1, "too late")
    assert client.closed == 1


def test_an_interrupt_of_the_first_sample_closes_its_client():
    client = Asked([KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt), QueueSampler(client, 1.0):
        pass
    assert client.closed == 1


@pytest.fixture
def queue_stats():
    def make(queued):
        names = [field.name for field in fields(QueueStats) if field.name != "extra"]
        counts = dict.fromkeys(names, 0)
        room = {"inference_total_queued": queued, "executor_inference_available": 200 - queued}
        return QueueStats(**counts | room)

    return make
