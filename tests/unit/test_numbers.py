"""Numbers of numpy and other libraries are taken wherever a number is, and kept as int and float."""

from __future__ import annotations

import dataclasses
import json
from collections import UserList
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from tcm_sync import (
    BatchPolicy,
    ConfigError,
    InferenceInput,
    InputError,
    ModelSignature,
    RetryPolicy,
    TcmClient,
    TensorSpec,
)
from tcm_sync._calls.options import start_deadline
from tcm_sync._numbers import as_number, as_whole, shown
from tcm_sync._tensors import check_inputs
from tcm_sync._wire.plain import plain_json
from tcm_sync.local import LocalManager
from tcm_sync.models import analyze, config_pbtxt
from tcm_sync.settings import Settings

from ..helpers.onnx_build import double

URI = "ws://localhost:8000/ws"


class Indexed:
    """An integer of another library."""

    def __index__(self) -> int:
        return 4


class Floating:
    """A float of another library."""

    def __float__(self) -> float:
        return 4.5


class Tensorish(Indexed):
    """A tensor that has one element, but not as a scalar."""

    shape = (1,)

    def __repr__(self) -> str:
        return "Tensorish()"


class Broken:
    def __index__(self) -> int:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


WHOLE = [4, np.int64(4), np.uint8(4), np.array(4), Indexed()]
REAL = [4.5, np.float32(4.5), np.float16(4.5), np.float64(4.5), np.array(4.5), Fraction(9, 2), Decimal("4.5")]
NONE = [True, np.True_, "4", b"4", None, 4j, np.complex64(4), np.array([4]), np.timedelta64(4, "s"), [4]]
by_whole = pytest.mark.parametrize("four", WHOLE, ids=lambda four: type(four).__name__)
by_real = pytest.mark.parametrize("real", [*REAL, Floating()], ids=lambda real: type(real).__name__)
by_none = pytest.mark.parametrize("none", [*NONE, np.str_("4"), Tensorish(), Broken()], ids=shown)


@by_whole
def test_whole_numbers_are_int(four: Any) -> None:
    for read in (as_whole, as_number):
        assert (type(read(four)), read(four)) == (int, 4)


@by_real
def test_real_numbers_are_float(real: Any) -> None:
    assert (type(as_number(real)), as_number(real)) == (float, 4.5)
    assert as_whole(real) is None


@by_none
def test_the_rest_is_no_number(none: Any) -> None:
    assert as_whole(none) is None
    assert as_number(none) is None


def test_a_number_that_no_float_is_is_none() -> None:
    assert as_number(Fraction(10**400)) is None
    assert as_whole(10**400) == 10**400


def test_any_value_can_be_shown() -> None:
    assert shown("a") == "'a'"
    assert shown(Broken()) == "a Broken"
    assert shown(10**5000) == "a int"
    assert len(shown("x" * 500)) == 80


COUNTS = ("pool_size", "max_requests", "management_sockets", "shm_max_pinned", "max_message_bytes")
SECONDS = ("max_idle", "max_lifetime", "connect_timeout", "ping_interval", "timeout", "pool_timeout")


@by_whole
@pytest.mark.parametrize("name", [*COUNTS, "max_reply_bytes", *SECONDS, "messages_per_second"])
def test_settings_take_whole_numbers_of_any_type(name: str, four: Any) -> None:
    kept = getattr(Settings(URI, **{name: four}), name)
    assert (type(kept), kept) == (int, 4)


@by_real
@pytest.mark.parametrize("name", [*SECONDS, "messages_per_second"])
def test_settings_take_real_numbers_of_any_type(name: str, real: Any) -> None:
    kept = getattr(Settings(URI, **{name: real}), name)
    assert (type(kept), kept) == (float, 4.5)


@by_none
@pytest.mark.parametrize("name", [*COUNTS, *SECONDS])
def test_settings_refuse_what_is_no_number(name: str, none: Any) -> None:
    if none is None and name in ("timeout", "pool_timeout", "shm_max_pinned"):
        return
    with pytest.raises(ConfigError, match=rf"^{name} must be a "):
        Settings(URI, **{name: none})


def test_a_number_without_a_repr_is_refused_as_others_are() -> None:
    with pytest.raises(ConfigError, match="connect_timeout must be a positive, finite number, not a int"):
        Settings(URI, connect_timeout=-(10**5000))  # type: ignore[arg-type]


@by_whole
def test_policies_take_whole_numbers_of_any_type(four: Any) -> None:
    retry = RetryPolicy(attempts=four, initial=four, maximum=four)
    assert [type(each) for each in (retry.attempts, retry.initial, retry.maximum)] == [int] * 3
    assert retry == RetryPolicy(attempts=4, initial=4, maximum=4)
    batch = BatchPolicy(max_size=four, max_wait=four)
    assert dataclasses.astuple(batch) == (4, 4)
    assert type(batch.max_size) is type(batch.max_wait) is int


@by_real
def test_policies_take_real_numbers_of_any_type(real: Any) -> None:
    retry = RetryPolicy(initial=real, maximum=real)
    assert type(retry.initial) is type(retry.maximum) is float
    assert (retry.initial, retry.maximum) == (4.5, 4.5)
    assert (type(BatchPolicy(max_wait=real).max_wait), BatchPolicy(max_wait=real).max_wait) == (float, 4.5)


@by_none
def test_policies_refuse_what_is_no_number(none: Any) -> None:
    for make, name in ((RetryPolicy, "attempts"), (RetryPolicy, "initial"), (RetryPolicy, "maximum")):
        with pytest.raises(ConfigError, match=f"retry.{name} must be"):
            make(**{name: none})
    for name in ("max_size", "max_wait"):
        with pytest.raises(ConfigError, match=f"batch.{name} must be"):
            BatchPolicy(**{name: none})


@by_whole
def test_shapes_and_dims_take_whole_numbers_of_any_type(four: Any) -> None:
    (tensor,) = check_inputs([InferenceInput("x", [1, four], "FP32", [1.0, 2.0, 3.0, 4.0])])
    assert tensor.shape == (1, 4)
    assert type(tensor.shape[1]) is int
    spec = TensorSpec("x", "FP32", (np.int64(-1), four))
    assert spec.dims == (-1, 4)
    signature = ModelSignature((spec,), (), max_batch_size=four)
    assert (type(signature.max_batch_size), signature.max_batch_size) == (int, 4)
    assert json.loads(signature.to_json())["inputs"][0]["dims"] == [-1, 4]
    assert ModelSignature.from_json(signature.to_json()) == signature


@pytest.mark.parametrize("dims", [(1.5,), ("4",), (True,), (None,)])
def test_dims_that_are_no_numbers_are_refused(dims: Any) -> None:
    with pytest.raises(InputError, match="the dims of 'x' must be whole numbers"):
        TensorSpec("x", "FP32", dims)


@by_whole
def test_a_configuration_takes_whole_numbers_of_any_type(four: Any) -> None:
    how: dict[str, Any] = {"kind": "gpu", "dynamic_batching": True, "max_queue_delay": np.float32(0.5)}
    analysis = analyze(double())
    given = config_pbtxt(
        analysis, max_batch_size=four, instances=four, gpus=[four], preferred_batch_sizes=[four], **how
    )
    assert given == config_pbtxt(
        analysis, max_batch_size=4, instances=4, gpus=[4], preferred_batch_sizes=[4], **how
    )
    assert "max_queue_delay_microseconds: 500000" in given


@by_whole
def test_bodies_take_numbers_of_any_type(four: Any) -> None:
    assert plain_json({"n": four, "all": [four, np.float32(0.5)]}) == b'{"n":4,"all":[4,0.5]}'


def test_a_body_refuses_numbers_of_any_type_that_json_has_not() -> None:
    for number in (np.float32("nan"), Fraction(10**400), np.inf):
        with pytest.raises(InputError, match="n: "):
            plain_json({"n": number})


@by_whole
@pytest.mark.parametrize("name", ["port", "workers", "queue_size", "quantum", "max_message_bytes", "tick"])
def test_a_local_manager_takes_whole_numbers_of_any_type(name: str, four: Any) -> None:
    kept = getattr(LocalManager(**{name: four})._settings, name)
    assert (type(kept), kept) == (int, 4)


@by_real
@pytest.mark.parametrize("name", ["tick", "stream_timeout", "linger"])
def test_a_local_manager_takes_real_numbers_of_any_type(name: str, real: Any) -> None:
    kept = getattr(LocalManager(**{name: real})._settings, name)
    assert (type(kept), kept) == (float, 4.5)


@by_none
@pytest.mark.parametrize("name", ["port", "workers", "queue_size", "tick", "linger"])
def test_a_local_manager_refuses_what_is_no_number(name: str, none: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be a (whole )?number of at least"):
        LocalManager(**{name: none})


@pytest.mark.parametrize(("name", "value"), [("port", 70_000), ("workers", 2.5), ("tick", float("nan"))])
def test_a_local_manager_refuses_numbers_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be"):
        LocalManager(**{name: value})


def test_timeouts_of_calls_take_numbers_of_any_type() -> None:
    with TcmClient(URI) as client:
        for seconds in (*WHOLE, *REAL):
            assert type(start_deadline(seconds, None).timeout) in (int, float)
        client.close(np.float32(0.5))  # type: ignore[arg-type]


@by_none
def test_timeouts_of_calls_refuse_what_is_no_number(none: Any) -> None:
    with TcmClient(URI) as client:
        if none is not None:
            with pytest.raises(InputError, match=r"^timeout must be a positive, finite number"):
                start_deadline(none, None)
        with pytest.raises(ConfigError, match=r"^timeout must be a number of seconds"):
            client.close(none)


def test_an_object_may_be_nested_a_hundred_deep():
    value = 1
    for _ in range(100):
        value = [value]
    assert plain_json({"v": value[0]}) == b'{"v":' + b"[" * 99 + b"1" + b"]" * 99 + b"}"
    with pytest.raises(InputError, match="nested more than 100 deep"):
        plain_json({"v": value})


@pytest.mark.parametrize("value", [2**64 - 1, -(2**64) + 1])
def test_an_integer_may_have_64_bits(value):
    assert plain_json({"v": value}) == b'{"v":%d}' % value
    with pytest.raises(InputError, match="v: an integer of over 64 bits"):
        plain_json({"v": 2 * value})


def test_mappings_and_sequences_of_other_kinds_are_written_as_objects_and_arrays():
    value = {"m": MappingProxyType({"a": 1}), "s": UserList([1, {"b": (2,)}])}
    assert plain_json(value) == b'{"m":{"a":1},"s":[1,{"b":[2]}]}'
