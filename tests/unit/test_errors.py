"""Errors: what they carry, how they are caught, and that they travel."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle

import pytest

from tcm_sync import (
    CallTimeoutError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    ContractError,
    InferenceError,
    InputError,
    ModelFileError,
    PayloadTooLargeError,
    PoolTimeoutError,
    Route,
    TcmError,
    TritonTimeoutError,
)
from tcm_sync._pool.gate import copy_for_call


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConnectionLostError, ConnectionError),
        (ConnectFailedError, ConnectionError),
        (CallTimeoutError, TimeoutError),
        (PoolTimeoutError, TimeoutError),
        (ContractError, ValueError),
        (InputError, ValueError),
        (ConfigError, ValueError),
        (ModelFileError, ValueError),
    ],
)
def test_the_usual_builtin_catches_it(kind, builtin):
    for base in (kind, builtin, TcmError):
        with pytest.raises(base):
            raise kind("x")


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="notes came with Python 3.11")
def test_what_users_note_on_an_error_travels_with_it():
    error = CallTimeoutError("late", advisories=2)
    error.add_note("seen by worker 3")
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.__notes__, copied.advisories) == (["seen by worker 3"], 2)
    assert copy_for_call(error).message == "late"


def test_a_pool_timeout_is_no_connection_error():
    assert not issubclass(PoolTimeoutError, ConnectionError)
    assert not issubclass(CallTimeoutError, ConnectionError)


def test_an_os_error_among_the_parents_does_not_eat_the_message():
    """OSError with two arguments is another thing."""
    error = ConnectionLostError("the connection was lost", code="X")
    assert (str(error), error.args, error.errno) == (
        "the connection was lost",
        ("the connection was lost",),
        None,
    )


def test_fields_that_are_not_given_are_those_of_the_class():
    error = TritonTimeoutError("x")
    assert vars(error) == {}
    assert (error.code, error.retriable, error.retry_after, error.attempts) == (
        "TRITON_TIMEOUT",
        True,
        None,
        0,
    )
    assert (error.history, error.outcome_unknown, error.model_name) == ((), False, None)
    assert (error.route, error.uuid, error.elapsed) == (None, None, None)
    assert TritonTimeoutError("x", retriable=False).retriable is False


@pytest.mark.parametrize("field", ["cod", "estimated_bytes", "size"])
def test_a_field_that_there_is_not_is_a_type_error(field):
    with pytest.raises(TypeError, match=f"^InferenceError has no field '{field}'"):
        InferenceError("x", **{field: 1})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "it failed"),
        ({"model_name": "m"}, "it failed (model 'm')"),
        ({"route": Route("ctr", "10.0.0.1")}, "it failed (container 'ctr')"),
        ({"uuid": "tcm-1"}, "it failed (uuid tcm-1)"),
        ({"attempts": 0}, "it failed"),
        ({"attempts": 1}, "it failed"),
        ({"attempts": 3}, "it failed (3 attempts)"),
        ({"elapsed": 1.23456}, "it failed (1.23 s)"),
        ({"elapsed": 0.0}, "it failed (0 s)"),
        (
            {"model_name": "m", "route": Route("c"), "uuid": "u", "attempts": 2, "elapsed": 35.0},
            "it failed (model 'm', container 'c', uuid u, 2 attempts, 35 s)",
        ),
    ],
)
def test_the_text_ends_with_the_facts_of_the_call(fields, words):
    error = InferenceError("it failed", **fields)
    assert str(error) == words
    assert error.message == "it failed"


def whole():
    first = ConnectionLostError("lost", outcome_unknown=True, uuid="u-1")
    return PayloadTooLargeError(
        "413",
        code="TRITON_INFERENCE_FAILED",
        estimated_bytes=7,
        limit_bytes=5,
        attempts=2,
        history=(first,),
        model_name="m",
        route=Route("c", "10.0.0.1", "vm"),
        uuid="u-2",
        elapsed=0.5,
        retry_after=1.0,
        outcome_unknown=False,
    )


def same(error, other):
    assert type(other) is type(error)
    assert other.args == error.args
    fields, others = dict(vars(error)), dict(vars(other))
    (past,), (other_past,) = fields.pop("history"), others.pop("history")
    assert others == fields
    assert (type(other_past), other_past.args, vars(other_past)) == (type(past), past.args, vars(past))


def test_an_error_is_copied():
    same(whole(), copy.copy(whole()))
    same(whole(), copy.deepcopy(whole()))


def test_an_error_that_has_been_raised_is_pickled_too():
    try:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise whole() from cause
    except TcmError as error:
        same(error, pickle.loads(pickle.dumps(error)))


def fail():
    raise whole()


def test_an_error_comes_back_from_another_process():
    """One that does not unpickle hangs a pool of processes."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        error = pool.submit(fail).exception(timeout=60)
    same(whole(), error)


class Sub(InferenceError):
    level: int = 0


def test_a_users_own_subclass_has_its_own_fields():
    error = pickle.loads(pickle.dumps(Sub("x", level=3, code="C")))
    assert (type(error), error.level, error.code) == (Sub, 3, "C")
