"""What calls return: results as mappings, and what a probe said."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Mapping

import msgspec
import numpy as np
import pytest

from tcm_sync import InferResult, InputError, Readiness

RAW = b'{"probabilities": [[0.25, 0.75]], "label": [7]}'


@pytest.fixture
def result():
    arrays = {"probabilities": np.array([[0.25, 0.75]]), "label": np.array([7])}
    return InferResult("digits", arrays, RAW, 2, 0.0123)


# --- InferResult ---


def test_a_result_is_a_mapping_of_names_to_arrays(result):
    assert isinstance(result, Mapping)
    assert list(result) == ["probabilities", "label"]
    assert len(result) == 2
    assert "label" in result
    assert "nothing" not in result
    assert 7 not in result
    assert result["label"] is result.as_numpy("label") is result.get("label")
    assert result.get("nothing") is None
    assert [name for name, _ in result.items()] == list(result.keys())
    (probabilities, label) = result.values()
    assert probabilities.tolist() == [[0.25, 0.75]]
    assert label.tolist() == [7]


def test_it_is_read_only_and_its_arrays_are_not(result):
    with pytest.raises(TypeError):
        result["label"] = np.zeros(1)
    with pytest.raises(TypeError):
        del result["label"]
    with pytest.raises(AttributeError):
        result.raw = b""
    result["label"][0] = 8
    assert result["label"].tolist() == [8]


def test_it_reports_the_call(result):
    assert (result.model_name, result.raw, result.attempts, result.elapsed) == ("digits", RAW, 2, 0.0123)


def test_a_result_made_by_hand_needs_a_model_and_outputs_alone():
    given = np.array([[0.25, 0.75]], np.float32)
    made = InferResult("digits", {"probabilities": given, "label": [7]})
    assert (made.model_name, made.raw, made.attempts, made.elapsed) == ("digits", b"", 1, 0.0)
    assert {name: (array.dtype, array.tolist()) for name, array in made.items()} == {
        "probabilities": (np.float32, [[0.25, 0.75]]),
        "label": (np.int64, [7]),
    }
    made["probabilities"][0, 0] = 1.0
    assert given.tolist() == [[0.25, 0.75]]
    assert pickle.loads(pickle.dumps(made))["label"].tolist() == [7]


def test_text_of_a_result_made_by_hand_is_an_object_array_as_that_of_a_reply_is():
    made = InferResult("m", {"text": [["a", "b"]], "one": "c", "fixed": np.array(["d"])})
    assert made["text"].dtype == made["one"].dtype == object
    assert made.tolist() == {"text": [["a", "b"]], "one": "c", "fixed": ["d"]}
    assert made["fixed"].dtype == "<U1"


@pytest.mark.parametrize("outputs", [None, [("y", [1])], {1: [1]}, {"y": [[1], [1, 2]]}])
def test_outputs_that_cannot_be_are_refused(outputs):
    with pytest.raises(InputError):
        InferResult("m", outputs)


def test_raw_is_bytes_whatever_it_was_made_of():
    raw = InferResult("m", {}, msgspec.Raw(RAW), 1, 0.0).raw
    assert type(raw) is bytes
    assert raw == RAW


@pytest.mark.parametrize("ask", [lambda result: result["prob"], lambda result: result.as_numpy("prob")])
def test_a_name_that_is_not_there_is_reported_with_those_that_are(result, ask):
    with pytest.raises(KeyError) as caught:
        ask(result)
    assert caught.value.args == ("no output 'prob'; model 'digits' returned 'probabilities', 'label'",)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("wrong", [0, ["label"], ("label", "probabilities")])
def test_what_is_no_name_is_refused_with_the_names_that_are_there(result, wrong):
    with pytest.raises(KeyError) as caught:
        result[wrong]
    [message] = caught.value.args
    assert message.startswith(f"no output {wrong!r}; model 'digits' returned 'probabilities', 'label'; ")
    assert message.endswith("by its name, which is a str")


def test_a_result_without_outputs_says_so():
    empty = InferResult("m", {}, b"{}", 1, 0.0)
    with pytest.raises(KeyError, match="returned none"):
        empty["x"]
    assert not empty
    assert repr(empty) == "<InferResult 'm' {} 0 ms>"


def test_its_repr_shows_names_dtypes_and_shapes_and_no_contents(result):
    assert repr(result) == "<InferResult 'digits' {probabilities: float64[1, 2], label: int64[1]} 12.3 ms>"


@pytest.mark.parametrize("again", [lambda r: pickle.loads(pickle.dumps(r)), copy.copy, copy.deepcopy])
def test_it_survives_pickling_and_copying(result, again):
    other = again(result)
    assert type(other) is InferResult
    assert repr(other) == repr(result)
    assert (other.raw, other.attempts, other.elapsed) == (RAW, 2, 0.0123)
    for name, array in result.items():
        assert other[name].dtype == array.dtype
        assert np.array_equal(other[name], array)


def test_text_survives_pickling():
    text = np.array(["é", "b"], dtype=object)
    other = pickle.loads(pickle.dumps(InferResult("m", {"y": text}, b"{}", 1, 0.0)))
    assert other["y"].tolist() == ["é", "b"]


def test_what_is_pickled_refers_to_no_larger_message():
    message = bytes(10**6) + RAW
    raw = memoryview(message)[10**6 :]
    assert len(pickle.dumps(InferResult("m", {}, raw, 1, 0.0))) < 1000
    gc.collect()


# --- Readiness ---


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            200,
            b'{"status": "ready", "why": "x"}',
            Readiness(True, "ready", raw={"status": "ready", "why": "x"}),
        ),
        (
            503,
            b'{"status":"not_ready","reason":"r","detail":"d","error_id":"e"}',
            Readiness(
                False,
                "not_ready",
                "r",
                "d",
                "e",
                {"status": "not_ready", "reason": "r", "detail": "d", "error_id": "e"},
            ),
        ),
        (200, b"{}", Readiness(True, "200")),
        (500, b'{"status": 7}', Readiness(False, "7", raw={"status": 7})),
        (
            200,
            b'{"reason": ["r"], "detail": {}}',
            Readiness(True, "200", raw={"reason": ["r"], "detail": {}}),
        ),
        (200, b"", Readiness(True, "ready", detail="HTTP 200: ")),
        (204, b"[]", Readiness(False, "not_ready", detail="HTTP 204: []")),
        (502, b"<html>bad\ngateway", Readiness(False, "not_ready", detail=r"HTTP 502: <html>bad\ngateway")),
        (200, b"\xff\xfe", Readiness(True, "ready", detail=r"HTTP 200: \xff\xfe")),
        (200, b'"\xff"', Readiness(True, "ready", detail=r'HTTP 200: "\xff"')),
    ],
)
def test_an_answer_of_any_kind_is_read(status, body, expected):
    assert Readiness.read(status, body) == expected
    assert bool(expected) is (status == 200)


def test_an_answer_of_any_depth_and_length_is_read():
    deep = Readiness.read(503, b'{"a":' * 100_000)
    assert (deep.ok, deep.status) == (False, "not_ready")
    assert len(deep.detail) < 400


def test_readiness_is_a_value_that_travels():
    ready = Readiness.read(503, b'{"status": "not_ready", "error_id": "e"}')
    assert pickle.loads(pickle.dumps(ready)) == ready
    with pytest.raises(AttributeError):
        ready.ok = True
