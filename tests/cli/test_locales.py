"""What programs read is right under every locale: JSON is ASCII, and the text of models is UTF-8."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest

from tcm_sync.cli.output import ascii_json

from ..helpers.onnx_build import double
from ..helpers.waiting import GUARD
from .test_stream import TRANSIENT

TEXT = "größe 😀 "
LOCALES = [
    {"PYTHONIOENCODING": "utf-8"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]
by_locale = pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: next(iter(locale.values())))


@pytest.fixture
def run(start, manager):
    """Run the command in a process of its own under a locale: what it wrote, in bytes."""

    def run(locale, *arguments, stdin=b""):
        process = start(*arguments, env={**os.environ, **locale}, text=False, stdin=-1)
        out, err = process.communicate(stdin, GUARD)
        assert (process.returncode, err) == (0, b"")
        return out

    return run


@by_locale
def test_json_is_ascii(run, locale):
    text = json.dumps([TEXT]).encode()
    out = run(locale, "infer", "echo", "--input", "x=-", "--json", stdin=text)
    assert out.isascii()
    assert json.loads(out)["outputs"]["x"]["data"] == [TEXT]


@by_locale
def test_streamed_json_is_ascii(run, locale):
    out = run(locale, "stream", "poet", "--text", "-", "--json", *TRANSIENT, stdin=TEXT.encode())
    assert out.isascii()
    assert [json.loads(line).get("chunk") for line in out.splitlines()] == ["größe ", "😀 ", None]


@by_locale
def test_streamed_text_is_utf_8(run, locale):
    out = run(locale, "stream", "poet", "--text", "-", *TRANSIENT, stdin=TEXT.encode())
    assert out.decode() == TEXT + "\n"


@by_locale
def test_a_configuration_is_utf_8(run, locale, tmp_path):
    model = double()
    model.graph.input[0].name = model.graph.node[0].input[0] = model.graph.node[0].input[1] = "größe"
    onnx.save_model(model, tmp_path / "m.onnx")
    assert 'name: "größe"' in run(locale, "model", "config", tmp_path / "m.onnx").decode()


@by_locale
def test_what_people_read_is_written_as_far_as_the_locale_has_it(run, locale):
    out = run(locale, "infer", "echo", "--input", "x=-", stdin=json.dumps([TEXT]).encode())
    assert b"x: object[1]" in out
    assert b"gr" in out


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"é": ["😀", "\x00\x7f\u2028"]}, {"é": ["😀", "\x00\x7f\u2028"]}),
        ({"n": 2**70, "x": np.array([1.5, np.nan])}, {"n": 2**70, "x": [1.5, None]}),
        ({"file": "caf\udce9", "n": float("inf")}, {"file": "caf\udce9", "n": None}),
        ({"file": "caf\udce9", "t": (1, None, True), "s": np.float32(0.5)}, None),
        (np.array(["é", "\\u00e9"], object), ["é", "\\u00e9"]),
    ],
)
def test_any_value_is_json_in_ascii(value, expected):
    text = ascii_json(value)
    assert text.isascii()
    assert json.loads(text) == (
        {"file": "caf\udce9", "t": [1, None, True], "s": 0.5} if expected is None else expected
    )
