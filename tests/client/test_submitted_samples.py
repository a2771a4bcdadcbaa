"""`Model.submit_sample`: samples in the background, in batches, without a thread for each."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import chain

import numpy as np
import pytest

from tcm_sync import (
    BatchPolicy,
    CallTimeoutError,
    ClientClosedError,
    ConnectFailedError,
    InferenceFailedError,
    InputError,
    MessageTooLargeError,
    TcmClient,
)
from tcm_sync._calls.submitted_samples import BackgroundBatcher
from tcm_sync.local import ModelFailure

from ..helpers.waiting import GUARD, wait_for, wait_until

FULL = BatchPolicy(max_size=4, max_wait=GUARD)  # it leaves when it is full
AT_ONCE = BatchPolicy(max_size=32, max_wait=0.0)


class Recorder:
    """A model that doubles rows, waits while the test says so, and records the rows that it saw."""

    def __init__(self):
        self.rows = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, arrays):
        x = arrays["x"]
        self.rows.append(x[:, 0].tolist())
        assert self.open.wait(GUARD)
        if 999 in x:
            raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")
        return {"y": x * 2}


@pytest.fixture
def recorder():
    recorder = Recorder()
    yield recorder
    recorder.open.set()


@pytest.fixture
def manager(serve, recorder):
    return serve({"double": recorder}, workers=8)


@pytest.fixture
def client(manager, connect):
    return connect(manager, pool_size=2)


def submitted(model, values, **how):
    return [model.submit_sample({"x": [float(value)]}, **how) for value in values]


def doubled(futures):
    return [future.result(GUARD)["y"].tolist() for future in futures]


def started(recorder, model, value=-1.0):
    """Submit a sample that the model holds."""
    recorder.open.clear()
    future = model.submit_sample({"x": [value]})
    wait_until(lambda: [value] in recorder.rows, "the model has it")
    return future


def test_one_thread_fills_batches_and_each_future_gets_its_own_slice(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=50, max_wait=GUARD))
    assert doubled(submitted(model, range(200))) == [[2.0 * number] for number in range(200)]
    assert sorted(map(len, recorder.rows)) == [50] * 4


def test_a_batch_that_nobody_joins_leaves_after_its_wait(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=100, max_wait=0.05))
    assert doubled(submitted(model, [1, 2])) == [[2.0], [4.0]]
    assert recorder.rows == [[1.0, 2.0]]


def test_samples_need_no_thread_of_their_own(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=64, max_wait=GUARD))
    recorder.open.clear()
    before = threading.active_count()
    futures = submitted(model, range(64))
    wait_until(lambda: recorder.rows, "the model has the batch")
    assert threading.active_count() - before <= 5, "the reader, the connectors, two that lead"
    recorder.open.set()
    assert len(doubled(futures)) == 64


def test_threads_that_wait_and_samples_that_were_submitted_do_not_disturb_each_other(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=8, max_wait=0.01))
    with ThreadPoolExecutor(16) as threads:
        waiting = threads.map(lambda number: model.infer_sample({"x": [number + 0.5]})["y"], range(64))
        futures = submitted(model, range(64))
        assert [one.tolist() for one in waiting] == [[2.0 * number + 1] for number in range(64)]
    assert doubled(futures) == [[2.0 * number] for number in range(64)]
    assert sorted(chain.from_iterable(recorder.rows)) == sorted(
        [n + 0.5 for n in range(64)] + [float(n) for n in range(64)]
    )


def test_a_lone_thread_does_not_wait_for_what_was_submitted(client, recorder):
    model = client.model("double", batch=FULL)
    futures = submitted(model, [1, 2])  # whose batch is not full
    assert model.infer_sample({"x": [5.0]})["y"].tolist() == [10.0]
    assert recorder.rows == [[5.0]]
    assert doubled(futures + submitted(model, [3, 4])) == [[2.0], [4.0], [6.0], [8.0]]


def test_many_threads_may_submit_at_once(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=16, max_wait=0.005))
    with ThreadPoolExecutor(8) as threads:
        groups = list(
            threads.map(lambda first: submitted(model, range(first, first + 50)), range(0, 400, 50))
        )
    assert doubled(chain.from_iterable(groups)) == [[2.0 * number] for number in range(400)]
    assert max(map(len, recorder.rows)) <= 16


def test_the_inputs_may_be_changed_once_they_are_submitted(client):
    model = client.model("double", batch=FULL)
    x, futures = np.zeros(1), []
    for number in range(4):
        x[0] = number
        futures.append(model.submit_sample({"x": x}))
    assert doubled(futures) == [[0.0], [2.0], [4.0], [6.0]]


def test_what_cannot_be_sent_is_refused_here_and_now(client):
    model = client.model("double", batch=FULL)
    with pytest.raises(InputError):
        model.submit_sample({"x": [1j]})
    with pytest.raises(InputError):
        model.submit_sample({"x": [1.0]}, timeout="soon")
    with pytest.raises(MessageTooLargeError):
        model.submit_sample({"x": np.full(20_000, 0.123456)})


def test_a_batch_that_fails_fails_each_future_with_its_own_error(client, recorder):
    errors = [
        future.exception(GUARD) for future in submitted(client.model("double", batch=FULL), [1, 999, 2, 3])
    ]
    assert [type(error) for error in errors] == [InferenceFailedError] * 4
    assert len({id(error) for error in errors}) == 4


def test_a_batch_over_the_models_maximum_is_sent_again_in_parts(serve, connect):
    sizes = []

    def double(arrays):
        sizes.append(len(arrays["x"]))
        return {"y": arrays["x"] * 2}

    manager = serve({"double": double}, max_batch_sizes={"double": 3})
    model = connect(manager).model("double", batch=BatchPolicy(max_size=8, max_wait=GUARD))
    assert doubled(submitted(model, range(8))) == [[2.0 * number] for number in range(8)]
    assert max(sizes) <= 3


# --- cancelling ---


def test_a_sample_that_is_cancelled_is_not_sent_and_the_others_are(client, recorder):
    model = client.model("double", batch=FULL)
    first, second, third = submitted(model, [1, 2, 3])
    assert second.cancel()
    fourth, *_ = submitted(model, [4])
    assert doubled([first, third, fourth]) == [[2.0], [6.0], [8.0]]
    assert recorder.rows == [[1.0, 3.0, 4.0]]


def test_a_first_sample_that_is_cancelled_before_its_turn_leaves_the_batch_to_the_next(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD) as client:
        model = client.model("double", batch=AT_ONCE)
        held = started(recorder, model)  # it has the only thread
        first, *others = submitted(model, [1, 2, 3])
        assert first.cancel()
        recorder.open.set()
        assert doubled([held, *others]) == [[-2.0], [4.0], [6.0]]
    assert recorder.rows == [[-1.0], [2.0, 3.0]]


def test_all_samples_of_a_batch_may_be_cancelled(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD) as client:
        model = client.model("double", batch=AT_ONCE)
        held = started(recorder, model)
        assert [future.cancel() for future in submitted(model, [1, 2, 3])] == [True] * 3
        recorder.open.set()
        assert doubled([held, *submitted(model, [4])]) == [[-2.0], [8.0]]
        assert model._batcher._open == {}
    assert recorder.rows == [[-1.0], [4.0]]


def test_a_sample_whose_batch_was_sent_cannot_be_cancelled(client, recorder):
    model = client.model("double", batch=AT_ONCE)
    held = started(recorder, model)
    assert held.running()
    assert not held.cancel()
    recorder.open.set()
    assert doubled([held]) == [[-2.0]]


def test_samples_cancelled_at_random_are_cancelled_or_answered(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=8, max_wait=0.001))
    futures = []
    for number in range(300):
        futures += submitted(model, [number])
        if number % 3 == 0:
            futures[-1 - number % 5 if number > 5 else 0].cancel()
    wait(futures, GUARD)
    for number, future in enumerate(futures):
        assert future.cancelled() or future.result(0)["y"].tolist() == [2.0 * number]
    assert model._batcher._open == {}


# --- time, closing, forks ---


def test_each_timeout_is_kept(client, recorder):
    client.open()
    model = client.model("double", batch=AT_ONCE)
    recorder.open.clear()
    short, long = model.submit_sample({"x": [1.0]}, timeout=0.3), model.submit_sample({"x": [2.0]})
    assert isinstance(short.exception(GUARD), CallTimeoutError)
    recorder.open.set()
    assert doubled([long]) == [[4.0]]


def test_samples_of_different_timeouts_go_out_apart(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=2, max_wait=GUARD))
    futures = [model.submit_sample({"x": [float(n)]}, timeout=GUARD + n % 2) for n in range(4)]
    assert doubled(futures) == [[0.0], [2.0], [4.0], [6.0]]
    assert sorted(recorder.rows) == [[0.0, 2.0], [1.0, 3.0]]


def test_a_sample_that_no_thread_leads_leaves_its_batch_to_the_next(client, monkeypatch):
    model = client.model("double", batch=AT_ONCE)
    lead, joined = BackgroundBatcher._led, []

    def fail_once_another_has_joined(batcher, leader):
        monkeypatch.setattr(BackgroundBatcher, "_led", lead)
        with ThreadPoolExecutor(1) as other:
            joined.append(other.submit(model.submit_sample, {"x": [2.0]}).result(GUARD))
        raise ConnectFailedError("no thread")

    monkeypatch.setattr(BackgroundBatcher, "_led", fail_once_another_has_joined)
    with pytest.raises(ConnectFailedError, match="no thread"):
        model.submit_sample({"x": [1.0]})
    assert doubled(joined) == [[4.0]]


@pytest.mark.parametrize("most", [None, 1])
def test_the_time_of_a_sample_begins_with_its_turn(serve, recorder, clock, most):
    """Also where the batch is sent again in parts, each with the time of its own first sample."""
    limits = {} if most is None else {"max_batch_sizes": {"double": most}}
    manager = serve({"double": recorder}, workers=8, **limits)
    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=None) as client:
        model = client.model("double", batch=AT_ONCE)
        held = started(recorder, model)
        waiting = submitted(model, [1, 2], timeout=GUARD)
        clock.ahead += 2 * GUARD
        recorder.open.set()
        assert doubled([held, *waiting]) == [[-2.0], [2.0], [4.0]]


def test_closing_ends_what_waits_its_turn(manager, recorder):
    client = TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD)
    model = client.model("double", batch=FULL)
    called = []
    recorder.open.clear()
    held = submitted(model, [1, 2, 3, 4])
    wait_until(lambda: recorder.rows, "the model has them")
    waiting = submitted(model, [5, 6])
    for future in waiting:
        future.add_done_callback(called.append)
    client.close()
    assert {type(future.exception(GUARD)) for future in [*held, *waiting]} == {ClientClosedError}
    assert called == waiting
    with pytest.raises(ClientClosedError):
        model.submit_sample({"x": [1.0]})


def test_a_callback_may_submit_the_next_sample(client):
    model = client.model("double", batch=AT_ONCE)
    results, finished = [], threading.Event()

    def go_on(future):
        results.append(future.result()["y"].item())
        if len(results) == 20:
            finished.set()
        else:
            model.submit_sample({"x": [float(len(results))]}).add_done_callback(go_on)

    model.submit_sample({"x": [0.0]}).add_done_callback(go_on)
    wait_for(finished)
    assert results == [2.0 * number for number in range(20)]


def test_a_forked_child_submits_samples_of_its_own(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=4, max_wait=0.01))
    recorder.open.clear()
    held = submitted(model, [1, 2])
    wait_until(lambda: recorder.rows, "the model has them")
    child = os.fork()
    if child == 0:
        try:
            futures = submitted(model, [3, 4])
            recorder.open.set()
            os._exit(0 if doubled(futures) == [[6.0], [8.0]] else 1)
        finally:
            os._exit(2)
    wait_until(lambda: [3.0, 4.0] in recorder.rows, "the child's are there")
    recorder.open.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert doubled(held) == [[2.0], [4.0]]
