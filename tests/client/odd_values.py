"""Values that no argument was made for, and the public callables that are given them."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import math
import pathlib
import re
import types
import uuid
from collections import OrderedDict, UserDict, UserString, defaultdict, deque
from typing import Any, NamedTuple

import numpy as np

from tcm_sync import UNSET, AuthContext, BatchPolicy, InferenceInput, RetryPolicy, Route, SHMReference


class Letter(str, enum.Enum):
    """A text that is an enumeration's member."""

    A = "a"


class Number(enum.IntEnum):
    """An int that is an enumeration's member."""

    TWO = 2


class Text(str):
    """A text of a class of its own."""

    __slots__ = ()


class Whole(int):
    """An int of a class of its own."""


class Slots:
    """An object with nothing to it."""

    __slots__ = ()


class Pair(NamedTuple):
    """A tuple whose places have names."""

    a: int
    b: int


def odd_values() -> dict[str, Any]:
    """Return the values, new ones each time, by a name to report them with."""
    endless_list: list[Any] = []
    endless_list.append(endless_list)
    endless_dict: dict[str, Any] = {}
    endless_dict["a"] = endless_dict
    deep: Any = 1.0
    for _ in range(2_000):
        deep = [deep]
    record = np.zeros(2, dtype=[("a", "i4"), ("b", "f4")])
    return {
        "None": None,
        "UNSET": UNSET,
        "True": True,
        "False": False,
        "0": 0,
        "1": 1,
        "-1": -1,
        "2**31": 2**31,
        "2**63": 2**63,
        "10**30": 10**30,
        "10**400": 10**400,
        "-10**400": -(10**400),
        "10**5000": 10**5000,
        "-0.0": -0.0,
        "0.5": 0.5,
        "-0.5": -0.5,
        "1e-300": 1e-300,
        "1e10": 1e10,
        "1e18": 1e18,
        "1e308": 1e308,
        "inf": math.inf,
        "-inf": -math.inf,
        "nan": math.nan,
        "complex": 1j,
        "Decimal": decimal.Decimal("0.5"),
        "Decimal sNaN": decimal.Decimal("sNaN"),
        "Fraction": fractions.Fraction(1, 3),
        "IntEnum": Number.TWO,
        "int subclass": Whole(2),
        "timedelta": datetime.timedelta(seconds=1),
        "datetime": datetime.datetime(2020, 1, 1),
        "empty str": "",
        "space": " ",
        "str": "text",
        "digits": "12",
        "NUL": "a\0b",
        "newline": "a\nb",
        "surrogate": "a\udc80",
        "half an emoji": "\ud83d",
        "emoji": "\U0001f600",
        "combining": "e\u0301",
        "right to left": "\u202ea",
        "BOM": "\ufeffa",
        "not latin": "сеть",
        "long": "x" * 5_000,
        "longer than a message": "y" * 100_000,
        "dots": "a..b",
        "percent": "%s%n{0}{",
        "path-like": "../../etc/passwd",
        "quotes": "'\"\\",
        "str subclass": Text("a"),
        "str Enum": Letter.A,
        "np.str_": np.str_("a"),
        "UserString": UserString("a"),
        "bytes": b"abc",
        "no UTF-8": b"\xff\xfe",
        "empty bytes": b"",
        "bytearray": bytearray(b"abc"),
        "memoryview": memoryview(b"abc"),
        "released memoryview": _released(),
        "np.bytes_": np.bytes_(b"a"),
        "[]": [],
        "()": (),
        "{}": {},
        "set()": set(),
        "[None]": [None],
        "[1]": [1],
        "[-1]": [-1],
        "[2**63]": [2**63],
        "[10**400]": [10**400],
        "[nan]": [math.nan],
        "['']": [""],
        "['a']": ["a"],
        "['a surrogate']": ["\udc80"],
        "[np.str_]": [np.str_("a")],
        "[str Enum]": [Letter.A],
        "[b'']": [b""],
        "[[1], [2, 3]]": [[1], [2, 3]],
        "[[]]": [[]],
        "[{}]": [{}],
        "[object]": [object()],
        "tuple": (1, 2.0, "a"),
        "namedtuple": Pair(1, 2),
        "endless list": endless_list,
        "endless dict": endless_dict,
        "deep list": deep,
        "{None: None}": {None: None},
        "{1: 1}": {1: 1},
        "{'a': 1}": {"a": 1},
        "{'': ''}": {"": ""},
        "{'a': 'b'}": {"a": "b"},
        "{surrogate: a}": {"\udc80": "a"},
        "{a: surrogate}": {"a": "\udc80"},
        "{np.str_: np.str_}": {np.str_("a"): np.str_("b")},
        "{str subclass: str subclass}": {Text("a"): Text("b")},
        "{tuple: object}": {(1, 2): object()},
        "{'a': set()}": {"a": {1}},
        "{'a': 10**400}": {"a": 10**400},
        "{'a': inf}": {"a": math.inf},
        "{'a': deep}": {"a": deep},
        "{'INPUT': [1.0]}": {"INPUT": [1.0]},
        "OrderedDict": OrderedDict(a=1),
        "defaultdict": defaultdict(list, a=1),
        "UserDict": UserDict(a=1),
        "mappingproxy": types.MappingProxyType({"a": 1}),
        "frozenset": frozenset({"a"}),
        "set": {1, "a"},
        "deque": deque([1, 2]),
        "range": range(3),
        "slice": slice(1),
        "generator": (x for x in "ab"),
        "iterator": iter([1, 2]),
        "zip": zip("ab", "cd", strict=True),
        "object": object(),
        "slots": Slots(),
        "class": Slots,
        "type": type,
        "int": int,
        "function": len,
        "lambda": lambda *_, **__: None,
        "module": math,
        "Ellipsis": ...,
        "NotImplemented": NotImplemented,
        "exception": ValueError("odd"),
        "pattern": re.compile("a"),
        "Path": pathlib.Path("nowhere"),
        "folder": pathlib.Path("/"),
        "null device": "/dev/null",
        "UUID": uuid.UUID(int=1),
        "np.int64": np.int64(2),
        "np.uint64": np.uint64(2**64 - 1),
        "np.float32": np.float32(0.5),
        "np.float64 nan": np.float64("nan"),
        "np.longdouble": np.longdouble(1) / 3,
        "np.complex64": np.complex64(1j),
        "np.bool_": np.True_,
        "np.datetime64": np.datetime64("2020-01-01"),
        "np.timedelta64": np.timedelta64(1, "s"),
        "NaT": np.datetime64("NaT", "s"),
        "0-d array": np.array(1.0),
        "empty array": np.empty((0, 3), np.float32),
        "array": np.ones((2, 3), np.float32),
        "array of no columns": np.ones((2, 0)),
        "swapped array": np.ones(2, ">f4"),
        "strided array": np.ones((4, 4))[::2, ::-1],
        "object array": np.array([None, "a", 1], dtype=object),
        "array of text": np.array(["a", "\udc80"]),
        "array of bytes": np.array([b"a", b"\xff"]),
        "array of dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
        "structured array": record,
        "record": record[0],
        "masked array": np.ma.array([1, 2], mask=[True, False]),
        "matrix of 30 axes": np.ones((1,) * 30),
        "array of complex": np.ones(2, complex),
        "array of inf": np.array([np.inf]),
        "np.dtype": np.dtype("f4"),
        "structured dtype": np.dtype([("a", "i4")]),
        "np.float32 itself": np.float32,
        "np.nditer": np.nditer(np.ones(2)),
        "AuthContext": AuthContext(),
        "Route": Route("elsewhere"),
        "RetryPolicy": RetryPolicy(attempts=1),
        "BatchPolicy": BatchPolicy(),
        "InferenceInput": InferenceInput("x", (1,), "FP32", [1.0]),
        "[InferenceInput]": [InferenceInput("x", (1,), "FP32", [1.0])],
        "SHMReference": SHMReference("x", "/nowhere", 4, (1,), "FP32"),
    }


def _released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view
