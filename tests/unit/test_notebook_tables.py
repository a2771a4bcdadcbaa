"""What a notebook shows of results, statistics, clients and models: tables without scripts, escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tcm_sync import AuthContext, InferResult, ModelSignature, Route, TcmClient, TensorSpec

ALLOWED = {"div", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}


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
    assert reader.attributes == []
    return reader


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
    assert read(client.model("<m>")).titles == [repr(client.model("<m>"))]
