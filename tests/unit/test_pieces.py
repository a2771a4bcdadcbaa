"""Large arrays that are read a piece at a time are the same as read whole, and broken ones are left alone."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcm_sync._deadline import Deadline
from tcm_sync._tensors import check_output_dtypes, decode_outputs, pieces
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._wire.split_json import split_off_arrays
from tcm_sync.errors import CallTimeoutError, ProtocolError

SHAPES = [(1,), (500,), (1, 500), (1, 1, 500), (500, 1), (1, 7, 5, 11), (1, 1, 7, 60), (20, 30), (3, 1, 200)]
SPACINGS = [(",", ":"), (", ", ": "), (" ,\n", ":")]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 100)
    monkeypatch.setattr(pieces, "_SCAN", 1000)


class Counted:
    """Counts the pieces that are decoded, and the most lists that one of them makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces = 0
        self.most_lists = 0
        self._decode = pieces.decode_lists
        monkeypatch.setattr(pieces, "decode_lists", self)

    def __call__(self, text: Any, depth: int, *rest: Any, **more: Any) -> np.ndarray:
        self.pieces += 1
        self.most_lists = max(self.most_lists, bytes(text).count(b"["))
        return self._decode(text, depth, *rest, **more)


def read(text: str, depth: int, kind: str = "f", dtype: Any = None) -> np.ndarray | None:
    """Read a text; None if it is refused."""
    try:
        found = pieces.decode_in_pieces(
            memoryview(text.encode()), depth, kind, None if dtype is None else np.dtype(dtype)
        )
    except TensorError:
        return None
    assert found.flags.owndata
    assert found.flags.writeable
    assert found.flags.c_contiguous
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("separators", SPACINGS)
def test_it_is_the_array_whatever_its_shape(
    shape: tuple[int, ...], separators: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    array = np.random.default_rng(3).random(shape).round(4)
    found = read(json.dumps(array.tolist(), separators=separators), array.ndim)
    assert found is not None
    assert np.array_equal(found, array)
    assert found.shape == shape
    assert counted.pieces > 2 or array.size < 100


KINDS = [
    ("i", None, np.arange(-300, 300), np.int64),
    ("i", "i2", np.arange(-300, 300), np.int16),
    ("u", "u1", np.arange(600) % 256, np.uint8),
    ("i", None, np.array([2**64 - 1, 0, 7] * 200, np.uint64), np.uint64),
    ("i", None, np.array([*range(597), 2**63, 1, 2], np.uint64), np.uint64),
    ("u", "u8", np.array([2**64 - 1, 0, 7] * 200, np.uint64), np.uint64),
    ("b", None, np.arange(600) % 3 == 0, bool),
    ("b", bool, np.arange(600) % 3 == 0, bool),
    ("f", None, np.arange(600), np.float64),
    ("f", "f2", np.arange(600) / 4, np.float16),
]


@pytest.mark.parametrize(
    "shape", [(600,), (600, 1), (1, 600), (300, 2), (2, 300, 1, 1), (2, 3, 100), (12, 50)]
)
@pytest.mark.parametrize(("kind", "dtype", "values", "expected"), KINDS)
def test_every_kind_of_number_is_read_in_every_shape(
    shape: tuple[int, ...], kind: str, dtype: Any, values: np.ndarray, expected: Any
) -> None:
    array = values.reshape(shape)
    found = read(json.dumps(array.tolist()), array.ndim, kind, dtype)
    assert found is not None
    assert found.dtype == expected
    assert found.shape == shape
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("kind", "dtype", "values"),
    [
        ("i", None, [*range(500), 2**64]),
        ("i", None, [-1, *range(500), 2**63]),
        ("i", None, [2**63, *range(500), -1]),
        ("i", "i1", [*range(100), 300, *range(100)]),
        ("u", "u1", [*range(100), -1, *range(100)]),
        ("i", None, [*range(500), 1.5]),
        ("i", None, [*range(500), True]),
        ("i", None, [*range(500), None]),
        ("i", None, [*range(500), "1"]),
        ("i", None, [*range(500), {"a": 1}]),
        ("f", None, [*range(500), True]),
        ("f", "f4", [*range(500), 1e39]),
        ("b", None, [*[True] * 500, 1]),
        ("b", None, [*[True] * 500, None]),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_what_is_not_of_the_kind_or_does_not_fit_the_dtype_is_refused(
    kind: str, dtype: Any, values: list[Any], column: bool
) -> None:
    right = values[1:6] * 20
    for elements, fits in ((right, True), (values, False)):
        rows = [[element] for element in elements] if column else elements
        assert (read(json.dumps(rows), 1 + column, kind, dtype) is not None) is fits


def test_lists_of_one_element_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    assert read(json.dumps([[[number]] for number in range(5_000)]), 3, "i") is not None
    assert counted.most_lists < 10


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 1], *[[1]] * 5_000],
        [[1], *[[1, 1]] * 5_000],
        [[1] * 100, *[[1]] * 5_000],
        [[[1]], *[[1]] * 5_000],
        [[1], [2], 3, *[[1]] * 5_000],
        [[[[1]] * 200], *[[[1]] * 3] * 5_000],
        [[1], [[2]], *[[1]] * 5_000],
        [[1], [1] * 10_000],
        [[], *[[1]] * 5_000],
        [[1], [], *[[1]] * 5_000],
    ],
)
def test_ragged_lists_are_found_early(rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    text = json.dumps(rows)
    assert read(text, len(text) - len(text.lstrip("[")), "i") is None
    assert counted.pieces < 20


@pytest.mark.parametrize("count", [7, 300, 70_000])
@pytest.mark.parametrize("shape", [(3, 2, 2), (4, 40, 1), (300, 1, 1), (0,), (1, 0), (3, 0), (2, 3, 0)])
def test_any_number_of_blanks_may_be_anywhere(count, shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MAX_UNIT_BYTES", 5_000)
    array = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    tokens = re.findall(r"\d+|.", json.dumps(array.tolist(), separators=(",", ":")))
    last = len(tokens)
    for place in {*range(1, 12), *range(last // 2, last // 2 + 8), *range(max(1, last - 5), last + 1)}:
        spaced = "".join([*tokens[:place], (" \t\r\n" * count)[:count], *tokens[place:]])
        found = read(spaced, len(shape), "i")
        assert found is not None
        assert (found.shape, found.dtype, found.tolist()) == (array.shape, array.dtype, array.tolist())


def test_a_number_without_an_end_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MAX_UNIT_BYTES", 5_000)
    counted = Counted(monkeypatch)
    for more in ("1" * 10_000, "1" * 5_000 + " " * 10_000 + "1" * 5_000):
        assert read(f"[{'1,' * 200}{more}]", 1, "i") is None
    assert counted.pieces < 20


def test_lists_that_are_ragged_at_their_end_alone_are_refused() -> None:
    for last in ([1, 1], [], [[1]], 1):
        assert read(json.dumps([*[[1]] * 500, last]), 2, "i") is None
        assert read(json.dumps([[[1]] * 100, [[1]] * 99]), 3, "i") is None


@pytest.mark.parametrize("shape", [(500, 0), (1, 500, 0), (20, 30, 0), (300, 2, 0), (300, 0)])
@pytest.mark.parametrize("separators", SPACINGS)
def test_empty_lists_keep_their_shape(shape: tuple[int, ...], separators: tuple[str, str]) -> None:
    found = read(json.dumps(np.empty(shape).tolist(), separators=separators), len(shape))
    assert found is not None
    assert found.shape == np.array(np.empty(shape).tolist()).shape


def test_the_deadline_is_kept_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    text = memoryview(json.dumps(list(range(5_000))).encode())
    deadline = Deadline(3600.0)
    assert len(pieces.decode_in_pieces(text, 1, "i", None, deadline)) == 5_000
    monkeypatch.setattr("tcm_sync._deadline.monotonic", lambda: deadline.started + 3601.0)
    with pytest.raises(CallTimeoutError, match="being decoded"):
        pieces.decode_in_pieces(text, 1, "i", None, deadline)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("]", "", 1),
        lambda text: text.replace("]", "]]", 1),
        lambda text: text.replace("],", "],[],", 1),
        lambda text: text.replace("],", "],,", 1),
        lambda text: text.replace("],", "],1,", 1),
        lambda text: re.sub(r"(.*\[)[^,]*,", r"\1", text),  # the last row has one fewer
        lambda text: text.replace(",", ",[1],", 1),
        lambda text: text[:-1] + ",]",
        lambda text: text + "]",
        lambda text: text + "," + text,
        lambda text: text.replace("[", "{", 1),
        lambda text: text.replace("0.", "NaN,0.", 1),
        lambda text: "[" + text,
    ],
)
@pytest.mark.parametrize("shape", [(40, 10), (4, 10, 10), (2, 2, 100)])
def test_what_is_broken_or_ragged_is_left_to_others(change: Any, shape: tuple[int, ...]) -> None:
    text = json.dumps(np.random.default_rng(3).random(shape).round(4).tolist())
    assert read(text, len(shape)) is not None
    assert read(change(text), len(shape)) is None


@pytest.mark.parametrize("text", ["[]", "[[]]", "[[],[]]", "[ ]", "[[[]]]"])
def test_short_texts_are_right_or_refused(text: str) -> None:
    found = read(text, text.replace(" ", "").index("]"))
    assert found is None or found.shape == np.array(json.loads(text)).shape


def mutated(text: str, seed: int) -> Iterator[str]:
    """Take out, double or put in characters that matter."""
    chance = random.Random(seed)
    for _ in range(40):
        place = chance.randrange(len(text))
        yield (
            text[:place]
            + chance.choice(["", "[", "]", ",", "[]", "],[", "1", " "])
            + text[place + chance.randrange(2) :]
        )


@settings(max_examples=60, database=None)
@given(st.integers(0, 10**6))
def test_what_is_read_in_pieces_is_what_is_read_whole(seed: int) -> None:
    shape = [(300,), (20, 15), (1, 5, 5, 12), (300, 1), (100, 3), (2, 50, 3), (4, 75, 1), (200, 0)][seed % 8]
    random_numbers = np.random.default_rng(seed)
    array = random_numbers.integers(0, 9, shape) if seed % 3 == 0 else random_numbers.random(shape).round(3)
    for text in mutated(json.dumps(array.tolist()), seed):
        depth = len(text.replace(" ", "")) - len(text.replace(" ", "").lstrip("["))
        if not depth:
            continue
        found = read(text, depth)
        try:
            whole = np.array(json.loads(text), np.float64)
        except (ValueError, TypeError):
            assert found is None
        else:
            assert found is not None
            assert found.shape == whole.shape
            assert np.array_equal(found, whole)


def test_a_large_output_is_read_in_pieces_and_a_broken_one_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole decoding: floats out of range and ragged rows are reported as otherwise."""
    monkeypatch.setattr("tcm_sync._tensors.outputs.MEDIUM", 1)
    monkeypatch.setattr(pieces, "LARGE", 1)
    used = []
    original = pieces.decode_in_pieces
    monkeypatch.setattr(
        "tcm_sync._tensors.outputs.decode_in_pieces", lambda *given: used.append(1) or original(*given)
    )
    dtypes = check_output_dtypes("f4")

    def decoded(rows: list[list[float | None]]) -> np.ndarray:
        found = split_off_arrays(json.dumps({"y": rows}).encode())
        assert found is not None
        return decode_outputs(found, dtypes)["y"]

    array = np.random.default_rng(1).random((1000, 10)).astype("f4")
    assert np.array_equal(decoded(array.tolist()), array)
    assert len(used) == 1
    rows: list[list[float | None]] = array.tolist()
    rows[700][3] = None
    assert np.isnan(decoded(rows)[700, 3])
    rows[700][3] = 1e39
    with pytest.raises(ProtocolError, match="1e\\+39"):
        decoded(rows)
    with pytest.raises(ProtocolError, match="ragged"):
        decoded([*array.tolist(), [1.0]])
