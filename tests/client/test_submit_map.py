"""Futures, maps and batches that are cut: in order, lazy, cancelled, and nothing left behind."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import re
import subprocess
import sys
import textwrap
import threading
import tracemalloc

import numpy as np
import pytest

from tcm_sync import (
    CallTimeoutError,
    ClientClosedError,
    ConfigError,
    InferenceFailedError,
    InferResult,
    InputError,
    MessageTooLargeError,
    ProtocolError,
    TcmClient,
)
from tcm_sync.local import ModelFailure

from ..helpers.waiting import GUARD, wait_until


def picky(arrays):
    """Refuse the number 13."""
    if 13 in arrays["x"]:
        raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")
    return {"y": arrays["x"] * 2}


@pytest.fixture
def manager(serve):
    return serve({"picky": picky}, workers=8)


@pytest.fixture
def client(manager):
    with TcmClient(manager.uri, route=manager.route, pool_size=4, timeout=GUARD) as client:
        yield client


def number_of(result):
    return result["y"].item()


# --- submit ---


def test_futures_work_as_those_of_the_standard_library(client):
    futures = [client.submit("picky", {"x": [number]}) for number in range(100, 150)]
    done, waiting = concurrent.futures.wait(futures, timeout=GUARD)
    assert not waiting
    assert {number_of(each.result()) for each in done} == {2 * number for number in range(100, 150)}
    assert [number_of(each.result()) for each in futures] == [2 * number for number in range(100, 150)]
    assert len(list(concurrent.futures.as_completed(futures, timeout=GUARD))) == 50


def test_a_failure_is_the_exception_of_its_future(client):
    bad, good = client.submit("picky", {"x": [13]}), client.submit("picky", {"x": [14]})
    with pytest.raises(InferenceFailedError, match="unlucky"):
        bad.result(GUARD)
    assert number_of(good.result(GUARD)) == 28


def test_wrong_arguments_are_refused_at_once(client):
    for wrong in ({"inputs": {"x": 1j}}, {"timeout": 0}, {"retry": 3}, {"model_name": ""}):
        with pytest.raises(InputError):
            client.submit(**{"model_name": "picky", "inputs": {"x": [1]}, **wrong})


def test_inputs_may_be_changed_once_they_are_submitted(client, gated):
    x = np.array([1])
    held = [client.submit("gated", {"x": [0]}) for _ in range(4)]
    future = client.submit("picky", {"x": x})
    x[:] = 13
    gated.open_all()
    assert number_of(future.result(GUARD)) == 2
    concurrent.futures.wait(held, timeout=GUARD)


def test_what_waits_can_be_cancelled_and_what_runs_cannot(manager, client, gated):
    running = [client.submit("gated", {"x": [number]}) for number in range(4)]
    wait_until(lambda: manager.stats().running == 4, "as many run as there are sockets")
    waiting = [client.submit("picky", {"x": [number]}) for number in range(3)]
    assert [each.cancel() for each in running] == [False] * 4
    assert waiting[1].cancel()
    assert concurrent.futures.wait(waiting, GUARD, concurrent.futures.FIRST_COMPLETED).done == {waiting[1]}
    assert next(concurrent.futures.as_completed(waiting, GUARD)) is waiting[1]
    assert len(client._core.workers._threads._jobs) == 2, "what was cancelled is still in the queue"
    gated.open_all()
    assert [number_of(waiting[place].result(GUARD)) for place in (0, 2)] == [0, 4]
    assert waiting[1].cancelled()
    assert waiting[1].cancel(), "it still is"
    assert manager.stats().executions["picky"] == 2


def test_the_time_of_a_call_begins_with_its_turn(client, gated, clock):
    running = [client.submit("gated", {"x": [number]}) for number in range(4)]
    late = client.submit("picky", {"x": [1]}, timeout=GUARD)
    timed_out = client.submit("gated", {"x": [9]}, timeout=0.2)
    clock.ahead += 2 * GUARD
    assert not late.done()
    gated.open(0)
    assert number_of(late.result(GUARD)) == 2
    with pytest.raises(CallTimeoutError):
        timed_out.result(GUARD)
    gated.open_all()
    concurrent.futures.wait(running, timeout=GUARD)


def test_callbacks_run_in_a_worker_and_may_call(client):
    calls = []
    over = threading.Event()

    def callback(future):
        calls.append((threading.current_thread().name, number_of(client.infer("picky", {"x": [5]}))))
        over.set()

    client.submit("picky", {"x": [1]}).add_done_callback(callback)
    assert over.wait(GUARD)
    assert calls == [("tcm-sync-worker", 10)]


def test_closing_ends_what_waits_and_what_runs(manager, gated):
    client = TcmClient(manager.uri, route=manager.route, pool_size=4, timeout=GUARD)
    futures = [client.submit("gated", {"x": [number]}) for number in range(10)]
    wait_until(lambda: manager.stats().running == 4, "as many run as there are sockets")
    client.close()
    for each in futures:
        with pytest.raises(ClientClosedError):
            each.result(GUARD)
    with pytest.raises(ClientClosedError):
        client.submit("picky", {"x": [1]})


def test_workers_may_be_closed_inside_their_own_lock(client):
    """As the collector does with a map that was dropped."""
    workers = client._core.new_workers(1)
    assert workers.submit(lambda: 7).result(GUARD) == 7
    with workers._threads._lock:
        workers.close()
    workers.join(GUARD)
    with pytest.raises(ClientClosedError):
        workers.submit(lambda: 7)


def test_a_client_that_is_dropped_with_idle_workers_is_collected(manager, monkeypatch):
    client = TcmClient(manager.uri, route=manager.route, pool_size=4, timeout=GUARD)
    client.submit("picky", {"x": [1]}).result(GUARD)
    workers = client._core.workers
    wait_until(lambda: workers._threads._waiting == 1, "it has let go of its task")
    runtime = client._core.runtime
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - it is collected by the second
        del client
        gc.collect()
    workers.close()
    workers.join(GUARD)
    runtime.reader.join(GUARD)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_workers_of_its_own(client):
    assert number_of(client.submit("picky", {"x": [1]}).result(GUARD)) == 2
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if number_of(client.submit("picky", {"x": [3]}).result(GUARD)) == 6 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert number_of(client.submit("picky", {"x": [2]}).result(GUARD)) == 4


def test_the_interpreter_exits_with_calls_that_wait_and_run(serve, gated):
    manager = serve()
    code = f"""
        from tcm_sync import Route, TcmClient
        client = TcmClient({manager.uri!r}, route=Route({manager.route.container_id!r}))
        futures = [client.submit("gated", {{"x": [1]}}, timeout=None) for _ in range(20)]
        print("leaving")
    """
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, timeout=GUARD
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"leaving\n", b"")


# --- map ---


def numbers(count=None):
    source = itertools.count() if count is None else range(count)
    return ({"x": [100 + number]} for number in source)


def test_results_come_in_order(client):
    results = client.map("picky", numbers(200))
    assert [number_of(result) for result in results] == [2 * (100 + number) for number in range(200)]


def test_a_map_says_what_it_is_and_how_to_begin_it(client):
    results = client.map("picky", [{"x": [1]}, {"x": [2]}])
    assert repr(results) == "<results of map over 'picky', not begun: list(...) or a for loop begins it>"
    next(results)
    assert repr(results) == "<results of map over 'picky', running>"
    results.close()
    assert repr(results) == "<results of map over 'picky', ended>"


def test_results_come_as_they_are_there_with_their_index(client):
    results = dict(client.map("picky", numbers(100), ordered=False))
    assert {index: number_of(result) for index, result in results.items()} == {
        number: 2 * (100 + number) for number in range(100)
    }


def test_who_is_slow_holds_up_only_those_who_want_order(client, gated):
    inputs = [{"x": [number]} for number in range(5)]
    unordered = client.map("gated", inputs, ordered=False, concurrency=2)
    gated.open(1)
    gated.open(2)
    assert {next(unordered)[0], next(unordered)[0]} == {1, 2}
    gated.open_all()
    assert {index for index, _ in unordered} == {0, 3, 4}


@pytest.mark.parametrize("ordered", [True, False])
def test_inputs_without_end_are_read_no_further_than_needed(manager, client, ordered):
    read = itertools.count()

    def source():
        while True:
            yield {"x": [100 + next(read)]}

    results = client.map("picky", source(), ordered=ordered)
    assert next(read) == 0, "inputs are read before anybody wants a result"
    for _ in range(10):
        next(results)
    results.close()
    assert next(read) < 10 + 4 * 4
    wait_until(lambda: manager.stats().running == 0, "what ran has ended")
    assert manager.stats().executions["picky"] < 10 + 4 * 4


def test_no_more_calls_run_at_a_time_than_was_said(manager, client, gated):
    results = client.map("gated", numbers(10), concurrency=2)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        taken = thread.submit(list, results)
        wait_until(lambda: manager.stats().running == 2, "two run")
        assert client.infer("echo", {"x": [1]})["x"].item() == 1, "there are sockets left"
        assert manager.stats().running == 2
        gated.open_all()
        assert len(taken.result(GUARD)) == 10


@pytest.mark.parametrize("ordered", [True, False])
def test_a_failure_ends_the_map_and_cancels_the_rest(manager, client, ordered):
    inputs = itertools.chain([{"x": [1]}, {"x": [13]}], numbers())
    with pytest.raises(InferenceFailedError, match="unlucky"):
        for _ in client.map("picky", inputs, ordered=ordered):
            pass
    wait_until(lambda: manager.stats().running == 0, "what ran has ended")
    assert manager.stats().executions["picky"] < 40


@pytest.mark.parametrize("ordered", [True, False])
def test_failures_may_take_the_place_of_results(client, ordered):
    inputs = [{"x": [1]}, {"x": [13]}, {"x": 1j}, {"x": [2]}]
    found = list(client.map("picky", inputs, ordered=ordered, on_error="return"))
    if not ordered:
        found = [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]
    assert [type(each) for each in found] == [InferResult, InferenceFailedError, InputError, InferResult]


def test_what_the_source_raises_ends_the_map(client):
    def source():
        yield {"x": [1]}
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(client.map("picky", source()))


def test_an_empty_source_has_no_results(client):
    assert list(client.map("picky", [])) == []
    assert list(client.map("picky", [], ordered=False)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"many_inputs": {"x": [1]}},
        {"many_inputs": "abc"},
        {"many_inputs": 7},
        {"concurrency": 0},
        {"concurrency": True},
        {"on_error": "ignore"},
        {"timeout": -1},
    ],
    ids=str,
)
def test_wrong_arguments_of_a_map_are_refused_at_once(client, wrong):
    with pytest.raises(InputError):
        client.map(**{"model_name": "picky", "many_inputs": [{"x": [1]}], **wrong})


def test_a_map_shows_its_progress(client, capfd):
    inputs = [{"x": [13 if number in (2, 5) else number]} for number in range(7)]
    outcomes = list(client.map("picky", inputs, progress=True, on_error="return"))
    bar = capfd.readouterr().err.rpartition("\r")[2].strip()
    assert [isinstance(each, InferResult) for each in outcomes].count(False) == 2
    assert re.fullmatch(r"picky: 100%\|█+\| 7/7 \[.*, *[\d.]+ inputs/s, 2 failed\]", bar), bar


def test_the_bar_of_a_map_counts_the_failure_that_is_raised(client, capfd):
    with pytest.raises(InferenceFailedError):
        list(client.map("picky", ({"x": [number]} for number in (1, 13)), progress=True))
    assert re.match(r"picky: 2 inputs \[.*, 1 failed\]", capfd.readouterr().err.rpartition("\r")[2])


def test_progress_without_tqdm_says_what_to_install(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ConfigError, match=r"tcm-sync\[progress\]"):
        client.map("picky", [{"x": [1]}], progress=True)


def test_memory_is_flat_over_many_inputs(client):
    results = client.map("picky", ({"x": [100 + number] * 50} for number in itertools.count()))
    for _ in range(200):
        next(results)
    tracemalloc.start()
    try:
        for _ in range(200):
            next(results)
        gc.collect()
        early = tracemalloc.get_traced_memory()[0]
        for _ in range(2000):
            next(results)
        gc.collect()
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        results.close()
    assert late - early < 800_000  # 2,000 results that were kept would be nearly 3 MB


# --- batches that are cut ---


@pytest.mark.parametrize(("transport", "least", "most"), [("json", 200, 80), ("auto", 1_600, 14)])
def test_a_batch_of_any_length_is_cut_and_joined(serve, transport, least, most):
    seen = []

    def double(arrays):
        seen.append(arrays["x"].shape[0])
        return {"y": arrays["x"] * 2, "n": arrays["n"]}

    manager = serve({"double": double})
    x = np.random.default_rng(7).random((20_000, 8), np.float32)
    n = np.arange(20_000)
    with TcmClient(manager.uri, route=manager.route) as client:
        result = client.infer_chunked(
            "double", {"x": x, "n": n}, output_dtypes={"y": np.float32}, transport=transport
        )
    assert np.array_equal(result["y"], x * 2)
    assert np.array_equal(result["n"], n)
    assert sum(seen) == 20_000
    assert len(seen) < most, "the messages are far from full"
    assert min(sorted(seen)[1:]) > least, "a message but the last one is far from full"
    assert (result.attempts, result.raw, result.model_name) == (1, b"", "double")


@pytest.mark.parametrize("length", [1, 6, 7, 8, 15])
def test_a_message_carries_as_many_rows_as_was_said(serve, length):
    seen = []

    def count(arrays):
        seen.append(len(arrays["x"]))
        return {"y": arrays["x"]}

    manager = serve({"count": count})
    x = np.arange(3 * length).reshape(length, 3)
    with TcmClient(manager.uri, route=manager.route) as client:
        result = client.infer_chunked("count", {"x": x}, rows=7)
    assert result["y"].tolist() == x.tolist()
    assert sorted(seen) == sorted([7] * (length // 7) + [length % 7] * (length % 7 > 0))


def test_rows_of_very_different_length_fit(serve):
    manager = serve(max_message_bytes=5000)
    texts = np.array([["x" * (4000 if number % 50 == 49 else 5)] for number in range(200)], object)
    with TcmClient(manager.uri, route=manager.route, max_message_bytes=5000) as client:
        result = client.infer_chunked("echo", {"x": texts.reshape(-1)})
    assert result["x"].tolist() == texts.reshape(-1).tolist()


@pytest.mark.parametrize("rows", [None, 1])
def test_a_row_that_fits_no_message_is_named(client, rows):
    x = np.array(["a", "a", "b" * 70_000], object)
    with pytest.raises(MessageTooLargeError, match="rows 2 to 2"):
        client.infer_chunked("echo", {"x": x}, rows=rows)


def test_rows_that_fit_no_message_together_are_named(client):
    with pytest.raises(MessageTooLargeError, match="rows 0 to 19,999"):
        client.infer_chunked("echo", {"x": np.zeros((20_000, 8))}, rows=20_000, transport="json")


def test_a_failure_names_its_rows_and_ends_the_rest(manager, client):
    x = np.arange(100, 10_100)
    x[4321] = 13
    with pytest.raises(InferenceFailedError, match=r"^rows 4,320 to 4,329: .*unlucky"):
        client.infer_chunked("picky", {"x": x}, rows=10)
    wait_until(lambda: manager.stats().running == 0, "what ran has ended")
    assert manager.stats().executions["picky"] < 500


@pytest.fixture
def cut(serve):
    """Have a batch of rows answered with the arrays given, a message each, and joined."""

    def run(*parts, **options):
        manager = serve({"said": lambda arrays: {"y": parts[int(arrays["x"][0])]}})
        with TcmClient(manager.uri, route=manager.route) as client:
            x = np.arange(len(parts)).repeat(2)
            return client.infer_chunked("said", {"x": x}, rows=2, **options)["y"]

    return run


BIG = 2**53 + 1  # which no float64 is


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        ([[1, BIG], [2**64 - 1, 2**63]], np.uint64),
        ([[2**64 - 1, 2**63], [0, BIG], [2**63 - 1, 5]], np.uint64),
        ([[1.0, 2.5], [3, 2**53]], np.float64),
        ([[3, 4], [0.5, 1.0], [2, 2]], np.float64),
        ([[2**63, 2**63], [0.5, 1.0]], np.float64),
        ([["a", "b"], ["ccc", "d"]], object),
    ],
)
def test_dtypes_that_differ_from_message_to_message_are_joined_without_a_change_of_value(cut, parts, dtype):
    result = cut(*parts)
    assert result.tolist() == [value for part in parts for value in part]
    assert result.dtype == dtype


def test_a_dtype_that_was_asked_for_is_the_dtype_of_all_messages(cut):
    result = cut([1, BIG], [2**64 - 1, 2**63], output_dtypes=np.uint64)
    assert result.tolist() == [1, BIG, 2**64 - 1, 2**63]
    assert result.dtype == np.uint64


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([[-1, 2], [2**64 - 1, 3]], "rows 2 to 3: -1 is out of range for uint64"),
        ([[2**64 - 1, 3], [4, -1]], "rows 2 to 3: -1 is out of range for uint64"),
        ([[BIG, 2], [0.5, 1.5]], f"rows 2 to 3: {BIG} has no exact float64"),
        ([[0.5, 1.5], [2, BIG]], f"rows 2 to 3: {BIG} has no exact float64"),
        ([[True, False], [1, 2]], "rows 2 to 3: int64, and bool in the rows before"),
        ([[1, 2], ["a", "b"]], "rows 2 to 3: object, and int64 in the rows before"),
    ],
)
def test_messages_that_no_dtype_can_join_are_refused(cut, parts, words):
    with pytest.raises(ProtocolError, match=f'^output "y": {words}'):
        cut(*parts)


@pytest.mark.parametrize("second", [[[7], [8]], [[7, 8], [9, 0]], [7, 8]], ids=str)
def test_rows_of_another_shape_than_those_before_are_refused(cut, second):
    with pytest.raises(ProtocolError, match=r'^output "y": shape .* for rows 2 to 3, not \(2, 3\): '):
        cut([[1, 2, 3], [4, 5, 6]], second)


@pytest.mark.parametrize("names", ["y", "z", "yzu"])
def test_a_message_with_other_outputs_than_those_before_is_refused(serve, client_of, names):
    def said(arrays):
        return dict.fromkeys("yz" if 0 in arrays["x"] else names, arrays["x"])

    client = client_of(serve({"said": said}))
    with pytest.raises(ProtocolError, match=r"^rows 2 to 3 have other outputs than those before: \['"):
        client.infer_chunked("said", {"x": np.arange(4)}, rows=2)


def test_a_batch_counts_the_attempts_of_the_message_that_took_most(manager, client):
    manager.fail_next("TRITON_OVERLOADED")
    assert client.infer_chunked("picky", {"x": np.arange(100, 103)}, rows=1, concurrency=1).attempts == 2


def test_an_output_that_has_other_rows_is_refused(serve):
    def total(arrays):
        return {"y": arrays["x"].sum(axis=0, keepdims=True)}

    manager = serve({"total": total})
    with (
        TcmClient(manager.uri, route=manager.route) as client,
        pytest.raises(ProtocolError, match=r'output "y": shape \(1,\) for rows 0 to 4, not \(5,\)'),
    ):
        client.infer_chunked("total", {"x": np.arange(10)}, rows=5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"inputs": {"x": [1, 2], "z": [1]}}, '"x" has 2, "z" has 1'),
        ({"inputs": {"x": np.zeros((0,))}}, "no rows"),
        ({"rows": 0}, "rows must be"),
        ({"rows": 2.5}, "rows must be"),
        ({"timeout": 0}, "timeout"),
    ],
    ids=str,
)
def test_wrong_arguments_of_a_cut_batch_are_refused(client, wrong, words):
    with pytest.raises(InputError, match=words):
        client.infer_chunked(**{"model_name": "picky", "inputs": {"x": [1, 2]}, **wrong})


def test_a_cut_batch_shows_its_progress(client, capfd):
    client.infer_chunked("picky", {"x": np.arange(100, 130)}, rows=10, progress=True)
    assert re.search(r"picky: 100%.* 30/30 .* rows/s\]", capfd.readouterr().err)


@pytest.mark.parametrize("two", [np.int64(2), np.array(2)], ids=["scalar", "0-d"])
def test_numbers_of_numpy_are_numbers_of_a_call(client, two):
    half = np.float32(GUARD / 2)
    assert client.infer_chunked("picky", {"x": [1, 2, 3]}, rows=two, timeout=half)["y"].tolist() == [2, 4, 6]
    results = client.map("picky", [{"x": [1]}, {"x": [2]}], concurrency=two, timeout=half)
    assert [number_of(each) for each in results] == [2, 4]
    assert number_of(client.submit("picky", {"x": [3]}, timeout=half).result(GUARD)) == 6
    assert client.wait_until_ready(np.float32(GUARD)).ok
    assert client.health(timeout=half)
