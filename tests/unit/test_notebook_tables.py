"""What a notebook shows of results, statistics, clients and models: tables without scripts, escaped."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from PIL import Image

from tcm_sync import (
    AuthContext,
    Deployment,
    InferResult,
    ManagementResult,
    ModelSignature,
    QueueStats,
    Readiness,
    Route,
    TcmClient,
    TensorSpec,
)
from tcm_sync._tables import html_table
from tcm_sync._transport import counters
from tcm_sync._transport.counters import Counts
from tcm_sync.local.digits import model_file
from tcm_sync.models import analyze

STYLES = {"text-align:left", "border:1px solid"}
ALLOWED = {"div", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "img"}


class Reader(HTMLParser):
    """Reads the cells of tables, and every tag and attribute."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.attributes, self.open, self.titles = [], set(), [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag != "img":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.titles.append(data)


def read(shown):
    """Read what `_repr_html_` returned, and check that it can do no harm and has no colours of its own."""
    reader = Reader(shown._repr_html_())
    assert reader.tags <= ALLOWED
    for name, value in reader.attributes:
        good = name == "alt" or (name == "src" and value.startswith("data:image/png;base64,"))
        assert good or (name == "style" and value in STYLES)
    return reader


def picture_in(array):
    """Return the picture that a result shows of an output, as PIL reads it, or None."""
    sources = [value for name, value in read(InferResult("m", {"y": array})).attributes if name == "src"]
    if not sources:
        return None
    (source,) = sources
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        return np.asarray(image)


@pytest.fixture
def client():
    with TcmClient("ws://127.0.0.1:9/ws", AuthContext(token="s3cret-token"), route=Route("c")) as client:
        yield client


def test_a_result_shows_its_outputs_with_values_and_range():
    outputs = {
        "p": np.array([[0.5, np.nan], [1.25, -2.0]], np.float32),
        "n": np.arange(10),
        "b": [True, False, True],
        "s": ["short", "x" * 100],
        "none": np.empty((2, 0)),
        "nan": [np.nan],
        "one": np.float64(2.5),
    }
    shown = read(InferResult("digits", outputs, attempts=2, elapsed=0.0032))
    assert shown.titles == ["InferResult 'digits', 3.2 ms, 2 attempts"]
    assert shown.rows == [
        ["output", "dtype", "shape", "values", "range"],
        ["p", "float32", "[2, 2]", "0.5, nan, 1.25, -2", "-2 to 1.25, 1 NaN"],
        ["n", "int64", "[10]", "0, 1, 2, 3, 4, 5, …", "0 to 9"],
        ["b", "bool", "[3]", "True, False, True", "2 of 3 true"],
        ["s", "text", "[2]", f"'short', '{'x' * 23}…'", ""],
        ["none", "float64", "[2, 0]", "", ""],
        ["nan", "float64", "[1]", "nan", "all NaN"],
        ["one", "float64", "[]", "2.5", "2.5 to 2.5"],
    ]


def test_names_and_texts_of_a_manager_are_escaped():
    attack = "<script>alert(1)</script>"
    result = InferResult(attack, {attack: np.array([attack, '"><img src=x>'], object)}, b"")
    assert attack in "".join(read(result).titles)
    assert read(result).rows[1][0] == attack


def test_the_name_of_a_picture_is_escaped():
    attack = '"><script>alert(1)</script>'
    shown = read(InferResult("m", {attack: GREY}))
    assert ("alt", attack) in shown.attributes


def test_statistics_show_what_is_not_zero(client):
    with pytest.raises(ConnectionError):
        client.infer("m", {"x": [1.0]}, timeout=0.5, retry=None)
    shown = read(client.stats())
    rows = dict(shown.rows)
    assert rows["calls"] == "1"
    assert rows["failures"].endswith(" 1")
    assert "successes" not in rows
    assert re.fullmatch(r"ClientStats of [\d.]+ s", shown.titles[0])


def test_a_client_shows_its_state_and_no_token(client):
    shown = client._repr_html_()
    assert "s3cret-token" not in shown
    titles = read(client).titles
    assert titles[0] == repr(client)
    assert titles[1].startswith("ClientStats of")
    client.close()
    assert "closed" in read(client).titles[0]


def test_a_model_shows_its_signature(client):
    signature = ModelSignature((TensorSpec("x", "FP32", (-1, 4)),), ())
    assert ["input", "x", "FP32", "[-1, 4]"] in read(client.model("m", signature=signature)).rows
    plain = read(client.model("<m>"))
    assert plain.titles == ["Model '<m>'"]
    assert plain.rows == [["container", "c"], ["client", repr(client)]]


def test_all_is_aligned_on_the_left_but_numbers_below_a_head():
    left = ' style="text-align:left"'
    shown = html_table("", ("kind", "count"), [("a", 1)])
    assert f"<th{left}>kind</th><th>count</th>" in shown
    assert f"<td{left}>a</td><td>1</td>" in shown
    assert f"<td{left}>a</td><td{left}>1</td>" in html_table("", (), [("a", 1)])


def test_of_many_outputs_the_first_are_shown():
    result = InferResult("m", {f"y{number}": [number] for number in range(23)})
    rows = read(result).rows
    assert len(rows) == 1 + 20 + 1
    assert rows[-1] == ["… 3 more", "", "", "", ""]


def test_batches_are_shown_by_their_size(client):
    stats = msgspec.structs.replace(client.stats(), batch_sizes={1: 1, 8: 2})
    assert ["batches", "of 8: 2, of 1: 1"] in read(stats).rows


# --- pictures ---

GREY = (np.arange(100 * 120) % 256).reshape(100, 120).astype(np.uint8)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
WITH_ALPHA = np.dstack([COLOUR, GREY])


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (GREY, GREY),
        (GREY[None], GREY),
        (GREY[None, :, :, None], GREY),
        (GREY.astype(np.int64), GREY),  # as JSON without dtypes gives it
        (GREY / 255, GREY),
        ((GREY / 255).astype(np.float16), (GREY / 255).astype(np.float16).astype(float) * 255),
        (GREY > 100, (GREY > 100) * 255),
        (COLOUR, COLOUR),
        (np.moveaxis(COLOUR, 2, 0) / 255, COLOUR),
        (np.stack([COLOUR, COLOUR * 0]), COLOUR),  # the first of a batch
        (np.stack([GREY, GREY * 0]), GREY),
        (WITH_ALPHA, WITH_ALPHA),
    ],
    ids=lambda each: f"{each.dtype}{list(each.shape)}",
)
def test_an_output_that_looks_like_an_image_is_shown_as_one(array, wanted):
    seen = picture_in(array)
    assert seen.shape == wanted.shape
    assert np.abs(seen.astype(float) - wanted).max() < 1


@pytest.mark.parametrize(
    "array",
    [
        np.full((20, 10), 0.1),  # probabilities of a batch
        np.full((1000, 64), 0.5),  # features
        np.full((32, 32), 1.5),
        np.full((32, 32), -0.1),
        np.full((32, 32), np.nan),
        np.full((32, 32), 256),
        np.full((32, 32, 5), 7, np.uint8),
        np.full((2, 32, 32, 32, 3), 7, np.uint8),
        np.full((32, 32), 1 + 1j),
        np.full((32, 32), "x", object),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros(1024, np.uint8),
    ],
    ids=lambda each: f"{each.dtype}{list(each.shape)}",
)
def test_other_arrays_are_no_pictures(array):
    assert picture_in(array) is None


def test_large_pictures_are_thinned_out_and_small_ones_enlarged():
    large = np.arange(3000 * 2000, dtype=np.uint32).reshape(3000, 2000).astype(np.uint8)
    assert max(picture_in(large).shape) <= 256
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 4), np.uint8)
    assert len(InferResult("m", {"y": noise})._repr_html_()) < 360_000
    small = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    assert np.array_equal(picture_in(small), small.repeat(6, axis=0).repeat(6, axis=1))


# --- the last minute ---


def test_the_last_minute_counts_the_calls_that_ended_in_it(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(counters, "monotonic", lambda: now)
    counts = Counts()

    def recent():
        figures = counts.read()
        return figures["calls_per_second"], figures["seconds_per_call"]

    assert recent() == (0.0, 0.0)
    now += 2.0
    counts.called(now - 0.5)
    assert recent() == (0.5, 0.5)  # one call in two seconds
    now += 3600.0
    assert recent() == (0.0, 0.0)
    for _ in range(600):
        counts.called(now - 0.1)
    rate, seconds = recent()
    assert (rate, seconds) == (10.0, pytest.approx(0.1))  # 600 calls in a minute, none of those before
    for _ in range(6000):  # a call every 50 ms, for five minutes
        now += 0.05
        counts.called(now - 0.2)
    rate, seconds = recent()
    assert rate == pytest.approx(20.0, rel=0.02)
    assert seconds == pytest.approx(0.2)


def test_a_call_of_a_client_that_is_as_old_as_the_clock_is_fine_has_a_rate(monkeypatch):
    monkeypatch.setattr(counters, "monotonic", lambda: 1000.0)
    counts = Counts()
    counts.called(1000.0)
    assert counts.read()["calls_per_second"] > 0.0


# --- what else calls return ---


def test_jobs_of_the_manager_are_a_table_by_kind():
    names = [name for name in QueueStats.__dataclass_fields__ if name != "extra"]
    stats = QueueStats(**{name: place for place, name in enumerate(names)})
    assert read(stats).rows == [
        ["jobs", "users", "queued", "wait for a worker", "more accepted"],
        ["info", "0", "5", "8", "11"],
        ["management", "1", "6", "9", "12"],
        ["inference", "2", "7", "10", "13"],
    ]


def test_results_of_management_and_deployments_show_their_parts():
    result = ManagementResult("deletion", None, 2, 0.5, {"vm": "deleted", "<b>": "missing"})
    shown = read(result)
    assert shown.titles == ["ManagementResult 'deletion', 0.5 s, 2 attempts"]
    assert shown.rows == [["data", "None"], ["vm", "deleted"], ["<b>", "missing"]]
    assert read(ManagementResult("creation", {"vm_ip": "10.0.0.1"}, 1, 0.5)).rows == [["vm_ip", "10.0.0.1"]]
    signature = ModelSignature((TensorSpec("x", "FP32", (-1, 4)),), ())
    deployment = read(Deployment("10.0.0.1", "c-1", "<m>", signature))
    assert deployment.titles == ["Deployment '<m>'"]
    assert deployment.rows == [
        ["VM", "10.0.0.1"],
        ["container", "c-1"],
        ["", "name", "datatype", "shape"],
        ["input", "x", "FP32", "[-1, 4]"],
    ]


def test_an_answer_of_ready_shows_why():
    shown = read(
        Readiness.read(503, b'{"status": "not_ready", "reason": "triton", "triton": {"healthy": 0}}')
    )
    assert shown.titles == ["Readiness: not_ready"]
    assert shown.rows == [["reason", "triton"], ["Triton servers healthy", "0"]]


def test_the_text_of_an_answer_of_ready_has_each_fact_once():
    ready = Readiness.read(200, b'{"status": "ready", "triton": {"healthy": 3}}')
    assert repr(ready).count("healthy") == 1
    assert ready.raw["triton"] == {"healthy": 3}


def test_an_analysis_shows_the_signature_and_the_size():
    with model_file() as path:
        analysis = analyze(path)
    facts = [
        ["first axis", "a batch (certain): the first dimension of all is called 'batch'"],
        ["versions", "IR 8, ai.onnx 17"],
        ["written by", "examples/train_digits.py"],
        ["parameters", "9,610 (38,440 bytes)"],
    ]
    shown = read(analysis)
    assert shown.titles == [f"ModelAnalysis of {str(path)!r}"]
    assert shown.rows[: len(facts)] == facts
    assert ["input", "image", "FP32", "[batch, 64]"] in shown.rows
    text = repr(analysis)
    assert text.startswith(f"<ModelAnalysis of {str(path)!r}\n")
    assert all(f"  {name}: {fact}" in text for name, fact in facts)
    assert "  input   image          FP32      [batch, 64]" in text.splitlines()


HOSTILE = "a\x1b[31m\u202eb\nc"


def test_control_characters_in_names_are_escaped():
    signature = ModelSignature([TensorSpec(HOSTILE, "FP32", [1])], [TensorSpec("y", "FP32", [1])])
    shown = [repr(signature), str(signature), str(signature.inputs[0]), signature._repr_html_()]
    shown.append(html_table(HOSTILE, ["head"], [[HOSTILE]]))
    for text in shown:
        assert not set("\x1b\u202e") & set(text)
        assert "\\x1b[31m" in text
        assert "\\u202eb" in text
