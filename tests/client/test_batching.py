"""Samples of many threads in one message: each caller gets its own slice, deadline and error."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    BatchPolicy,
    CallTimeoutError,
    ConfigError,
    ConnectFailedError,
    InferenceError,
    InferenceFailedError,
    InferenceInput,
    InputError,
    MessageTooLargeError,
    PoolTimeoutError,
    ProtocolError,
    RetryPolicy,
    TcmClient,
    TcmError,
)
from tcm_sync._calls import batching
from tcm_sync._calls.batching import Batcher
from tcm_sync._calls.samples import Sample
from tcm_sync._deadline import Deadline
from tcm_sync._pool.pool import Pool
from tcm_sync._tensors import DATATYPES
from tcm_sync.local import ModelFailure

from ..helpers.names import steady
from ..helpers.peer_scripts import timing_out
from ..helpers.waiting import GUARD, wait_until

PATIENT = BatchPolicy(max_size=4, max_wait=GUARD)  # it leaves when it is full, or nobody else is in a call


class Recorder:
    """A model that doubles rows, waits while the test says so, and records the shapes that it saw."""

    def __init__(self):
        self.shapes = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, arrays):
        x = arrays["x"]
        self.shapes.append(x.shape)
        assert self.open.wait(GUARD)
        if 13 in x:
            raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")
        return {"y": x * 2}

    @property
    def sizes(self):
        return [shape[0] for shape in self.shapes]


@pytest.fixture
def recorder():
    recorder = Recorder()
    yield recorder
    recorder.open.set()


@pytest.fixture
def manager(serve, recorder):
    return serve({"double": recorder}, workers=8)


@pytest.fixture
def client(manager):
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD) as client:
        yield client


def together(model, samples, **how):
    """Have a thread for each sample, all at once; the results or errors in the order of the samples."""
    start = threading.Barrier(len(samples))

    def ask(sample):
        start.wait(GUARD)
        try:
            return model.infer_sample({"x": sample}, **how)["y"]
        except TcmError as error:
            return error

    with ThreadPoolExecutor(len(samples)) as threads:
        return list(threads.map(ask, samples))


def busy(recorder, model, count=1):
    """Occupy the model with calls that wait, so that somebody else is in a call."""
    recorder.open.clear()
    threads = ThreadPoolExecutor(count)
    calls = [threads.submit(model.infer_sample, {"x": [-1.0 - number]}) for number in range(count)]
    wait_until(lambda: len(recorder.shapes) >= 1, "the model is busy")
    return threads, calls


# --- slices ---


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1,)])
def test_each_caller_gets_its_own_slice(client, recorder, shape):
    model = client.model("double", batch=BatchPolicy(max_size=8, max_wait=0.05), output_dtypes=np.float32)
    samples = [np.full(shape, number + 0.5, np.float32) for number in range(64)]
    results = together(model, samples)
    for sample, result in zip(samples, results, strict=True):
        assert result.shape == shape
        assert result.dtype == np.float32
        assert np.array_equal(result, sample * 2)
    assert sum(recorder.sizes) == 64
    assert max(recorder.sizes) <= 8
    assert len(recorder.shapes) < 64, "nothing went out together"


def test_texts_and_lists_are_samples_too(serve, client):
    model = client.model("echo", batch=PATIENT)
    assert model.infer_sample({"x": ["größer"]})["x"].item() == "größer"
    assert model.infer_sample({"x": [1, 2]})["x"].tolist() == [1, 2]
    assert model.infer_sample([[1.5], [2.5]])["INPUT__0"].tolist() == [[1.5], [2.5]]


@pytest.mark.parametrize("wanted", [None, object, str])
def test_a_text_comes_back_as_an_object_array_as_from_infer(client, wanted):
    model = client.model("echo", batch=PATIENT, output_dtypes=wanted)
    sample = model.infer_sample({"x": ["größer"]})["x"]
    assert sample.dtype == model.infer({"x": ["größer"]})["x"].dtype == object
    assert (sample.shape, sample.item()) == ((), "größer")


def test_a_text_that_was_asked_for_in_bytes_comes_back_so(client):
    sample = client.model("echo", batch=PATIENT, output_dtypes=bytes).infer_sample({"x": ["é"]})["x"]
    assert (sample.dtype, sample.item()) == (object, "é".encode())


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        (1.5, "FP64"),
        (np.float64(1.5), "FP64"),
        (np.float32(1.5), "FP32"),
        (np.array(1.5, np.float16), "FP16"),
        (7, "INT64"),
        (2**64 - 1, "UINT64"),
        (np.int8(-7), "INT8"),
        (True, "BOOL"),
        (np.True_, "BOOL"),
        ("text", "BYTES"),
        (b"text", "BYTES"),
        (np.str_("text"), "BYTES"),
        (InferenceInput("x", [], "FP32", 1.5), "FP32"),
        (InferenceInput("x", (), "INT8", np.array(5)), "INT8"),
    ],
    ids=repr,
)
def test_a_bare_value_is_a_sample_as_its_0_d_array_is(serve, connect, value, datatype):
    seen = []
    manager = serve({"echo": lambda arrays: seen.append(arrays["x"]) or arrays})
    inputs = [value] if isinstance(value, InferenceInput) else {"x": value}
    expected = value.data if isinstance(value, InferenceInput) else value
    result = connect(manager).model("echo", batch=PATIENT).infer_sample(inputs)["x"]
    assert result.shape == ()
    assert result.item() == (expected.decode() if isinstance(expected, bytes) else expected)
    assert (seen[0].shape, seen[0].dtype) == ((1,), DATATYPES[datatype].dtype)


@pytest.mark.parametrize(
    "value", [1j, None, bytearray(b"x"), np.datetime64("2020-01-01"), object()], ids=steady
)
def test_a_bare_value_that_no_datatype_carries_is_no_sample(client, value):
    with pytest.raises(InputError, match='input "x"'):
        client.model("double", batch=PATIENT).infer_sample({"x": value})


def test_a_slice_is_the_callers_own(client):
    model = client.model("double", batch=PATIENT)
    result = model.infer_sample({"x": [1.0, 2.0]})
    result["y"][:] = 0
    assert (result.raw, result.attempts, result.model_name) == (b"", 1, "double")
    assert result["y"].flags.owndata


def test_samples_of_other_shapes_or_datatypes_go_out_apart(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=100, max_wait=0.1))
    samples = [np.ones(2), np.ones(3), np.ones(2, np.int64)] * 5
    for sample, result in zip(samples, together(model, samples), strict=True):
        assert result.shape == sample.shape
        assert result.dtype == sample.dtype, "it went out as the datatype of another"
    assert {shape[1:] for shape in recorder.shapes} == {(2,), (3,)}


# --- when a batch leaves ---


def test_who_is_alone_does_not_wait(client, recorder):
    model = client.model("double", batch=PATIENT)
    for number in range(5):
        assert model.infer_sample({"x": [float(number)]})["y"].item() == 2.0 * number
    assert recorder.sizes == [1] * 5


def test_a_full_batch_leaves_at_once(client, recorder, monkeypatch):
    monkeypatch.setattr(batching, "MAX_STEP", 2 * GUARD)  # its leader is woken, and does not look by itself
    model = client.model("double", batch=PATIENT)
    threads, calls = busy(recorder, model)
    with threads, ThreadPoolExecutor(4) as others:
        asked = [others.submit(model.infer_sample, {"x": [float(number)]}) for number in range(4)]
        wait_until(lambda: recorder.sizes == [1, 4], "the full batch is there")
        recorder.open.set()
        assert [each.result(GUARD)["y"].item() for each in asked] == [0.0, 2.0, 4.0, 6.0]
        assert calls[0].result(GUARD)["y"].item() == -2.0


def test_a_batch_leaves_when_its_first_sample_has_waited_enough(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=4, max_wait=0.05))
    threads, _ = busy(recorder, model)
    with threads, ThreadPoolExecutor(1) as others:
        asked = others.submit(model.infer_sample, {"x": [1.0]})
        wait_until(lambda: recorder.sizes == [1, 1], "it has left, though others are in a call")
        recorder.open.set()
        assert asked.result(GUARD)["y"].item() == 2.0


def test_a_batch_leaves_when_the_others_have_gone(client, recorder):
    model = client.model("double", batch=PATIENT)
    threads, _ = busy(recorder, model)
    with threads, ThreadPoolExecutor(2) as others:
        asked = [others.submit(model.infer_sample, {"x": [float(number)]}) for number in range(2)]
        batcher = model._batcher
        wait_until(lambda: any(len(each.samples) == 2 for each in batcher._open.values()), "both wait")
        recorder.open.set()
        assert [each.result(GUARD)["y"].item() for each in asked] == [0.0, 2.0]
    assert recorder.sizes == [1, 2]


def test_samples_join_while_their_batch_waits_for_a_socket(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD) as client:
        model = client.model("double", batch=BatchPolicy(max_size=32, max_wait=0.0))
        threads, _ = busy(recorder, model)
        with threads, ThreadPoolExecutor(8) as others:
            asked = [others.submit(model.infer_sample, {"x": [float(number)]}) for number in range(8)]
            batcher = model._batcher
            wait_until(lambda: any(len(each.samples) == 8 for each in batcher._open.values()), "all joined")
            recorder.open.set()
            assert [each.result(GUARD)["y"].item() for each in asked] == [2.0 * number for number in range(8)]
    assert recorder.sizes == [1, 8]


def test_a_batch_is_kept_under_the_limit_of_a_message(serve, recorder):
    manager = serve({"double": recorder}, max_message_bytes=2000, workers=8)
    with TcmClient(manager.uri, route=manager.route, max_message_bytes=2000, timeout=GUARD) as client:
        model = client.model("double", batch=BatchPolicy(max_size=1000, max_wait=0.05))
        samples = [np.full(20, number + 0.123456) for number in range(40)]
        for sample, result in zip(samples, together(model, samples), strict=True):
            assert np.array_equal(result, sample * 2)
        with pytest.raises(MessageTooLargeError):
            model.infer_sample({"x": np.full(500, 0.123456)})
    assert 1 < max(recorder.sizes) < 20


def test_every_sample_is_held_to_the_limit_and_not_only_the_first_of_its_kind(serve, recorder):
    manager = serve({"double": recorder}, max_message_bytes=2000)
    with TcmClient(manager.uri, route=manager.route, max_message_bytes=2000, timeout=GUARD) as client:
        model = client.model("double", batch=PATIENT)
        assert model.infer_sample({"x": np.zeros(150)})["y"].shape == (150,)
        with pytest.raises(MessageTooLargeError):
            model.infer_sample({"x": np.full(150, 0.1234567890123)})
    assert manager.stats().nacks == {}


# --- failures and deadlines ---


def test_a_bad_sample_fails_alone(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=4, max_wait=0.1))
    outcomes = together(model, [[1.0], 1j, [2.0], [float("inf")]])
    assert [type(outcomes[place]) for place in (1, 3)] == [InputError, InputError]
    assert [outcomes[place].item() for place in (0, 2)] == [2.0, 4.0]


def test_a_batch_that_fails_fails_all_of_its_callers_with_a_copy_each(client, recorder):
    model = client.model("double", batch=PATIENT)
    threads, _ = busy(recorder, model)
    with threads, ThreadPoolExecutor(4) as others:
        asked = [others.submit(model.infer_sample, {"x": [x]}) for x in (1.0, 13.0, 2.0, 3.0)]
        wait_until(lambda: recorder.sizes == [1, 4], "they went out together")
        recorder.open.set()
        errors = [each.exception(GUARD) for each in asked]
    assert [type(error) for error in errors] == [InferenceFailedError] * 4
    assert len({id(error) for error in errors}) == 4
    assert {str(error).split(" (")[0] for error in errors} == {errors[0].message}


def test_a_batch_is_repeated_as_one_request(serve):
    seen = []

    def shaky(arrays):
        seen.append(arrays["x"].ravel().tolist())
        if len(seen) == 1:
            raise ModelFailure("TRITON_OVERLOADED", "not now")
        return {"y": arrays["x"]}

    manager = serve({"double": shaky})
    with TcmClient(manager.uri, route=manager.route, retry=RetryPolicy(initial=0.01)) as client:
        result = client.model("double", batch=PATIENT).infer_sample({"x": [7]})
    assert result.attempts == 2
    assert seen == [[7], [7]]


def test_an_output_whose_first_axis_is_not_the_batch_is_refused(serve):
    manager = serve({"sum": lambda arrays: {"y": arrays["x"].sum(axis=0)}})
    with (
        TcmClient(manager.uri, route=manager.route) as client,
        pytest.raises(ProtocolError, match='output "y": its first axis is 3, and the batch has 1'),
    ):
        client.model("sum", batch=PATIENT).infer_sample({"x": [1, 2, 3]})


def test_who_runs_out_of_time_leaves_and_the_others_are_not_disturbed(client, recorder, monkeypatch):
    model = client.model("double", batch=PATIENT)
    waiting = Batcher._wait

    def wait(batcher, sample):
        wait_until(lambda: recorder.sizes == [1, 4], "they went out together")
        waiting(batcher, sample)

    monkeypatch.setattr(Batcher, "_wait", wait)
    threads, _ = busy(recorder, model)
    with threads, ThreadPoolExecutor(4) as others:
        asked = [others.submit(model.infer_sample, {"x": [float(number)]}) for number in range(3)]
        wait_until(lambda: any(len(each.samples) == 3 for each in model._batcher._open.values()), "they wait")
        error = others.submit(model.infer_sample, {"x": [3.0]}, timeout=0.1).exception(GUARD)
        assert type(error) is CallTimeoutError
        assert error.outcome_unknown
        recorder.open.set()
        assert [each.result(GUARD)["y"].item() for each in asked] == [0.0, 2.0, 4.0]


def test_a_sample_that_leaves_before_the_batch_went_out_is_not_sent(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD) as client:
        model = client.model("double", batch=BatchPolicy(max_size=32, max_wait=0.0))
        threads, _ = busy(recorder, model)
        with threads, ThreadPoolExecutor(3) as others:
            stays = [others.submit(model.infer_sample, {"x": [float(number)]}) for number in (1, 2)]
            batcher = model._batcher
            wait_until(lambda: any(len(each.samples) == 2 for each in batcher._open.values()), "both wait")
            with pytest.raises(TimeoutError) as caught:
                model.infer_sample({"x": [99.0]}, timeout=0.2)
            assert not caught.value.outcome_unknown
            recorder.open.set()
            assert sorted(each.result(GUARD)["y"].item() for each in stays) == [2.0, 4.0]
    assert recorder.sizes == [1, 2]


def test_a_sample_whose_full_batch_waits_for_a_socket_was_not_sent(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD) as client:
        model = client.model("double", batch=BatchPolicy(max_size=2, max_wait=0.0))
        threads, _ = busy(recorder, model)
        with threads, ThreadPoolExecutor(1) as others:
            leads = others.submit(model.infer_sample, {"x": [1.0]})
            wait_until(lambda: model._batcher._open, "it waits for a socket")
            with pytest.raises(PoolTimeoutError) as caught:
                model.infer_sample({"x": [99.0]}, timeout=0.2)
            assert not caught.value.outcome_unknown
            recorder.open.set()
            assert leads.result(GUARD)["y"].item() == 2.0
    assert recorder.sizes == [1, 1]


def test_a_leader_that_runs_out_of_time_hands_its_batch_over(manager, recorder, monkeypatch):
    joined = threading.Event()
    waiting = Pool._wait

    def wait(pool, waiter):
        assert joined.wait(GUARD)
        waiting(pool, waiter)

    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD) as client:
        model = client.model("double", batch=BatchPolicy(max_size=32, max_wait=0.0))
        threads, _ = busy(recorder, model)
        with threads, ThreadPoolExecutor(3) as others:
            monkeypatch.setattr(Pool, "_wait", wait)
            leader = others.submit(model.infer_sample, {"x": [99.0]}, timeout=0.1)
            batcher = model._batcher
            wait_until(lambda: batcher._open, "it leads")
            stays = [others.submit(model.infer_sample, {"x": [float(number)]}) for number in (1, 2)]
            wait_until(lambda: any(len(each.samples) == 3 for each in batcher._open.values()), "all joined")
            joined.set()
            assert isinstance(leader.exception(GUARD), TimeoutError)
            recorder.open.set()
            assert [each.result(GUARD)["y"].item() for each in stays] == [2.0, 4.0]
    assert recorder.sizes == [1, 2]


def test_the_caller_with_the_most_time_left_leads_next(manager):
    """Others would send the batch and leave in turn, until the policy's attempts are used up."""
    with TcmClient(manager.uri, route=manager.route) as client:
        batcher = client.model("double", batch=BatchPolicy(max_size=9))._batcher
        samples = [
            Sample(batcher._checked({"x": [1.0]}), Deadline(timeout))
            for timeout in (GUARD, GUARD, 2 * GUARD, None, 3 * GUARD)
        ]
        for sample in samples:
            batcher._join(sample, batcher._room(sample))
        batch = samples[0].batch
        for leader in (0, 3, 4, 2, 1):
            assert batch.leader is samples[leader]
            batcher._leave(samples[leader])
        assert not batcher._open


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no pthread_kill here")
def test_a_leader_that_is_interrupted_hands_its_batch_over(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, pool_size=1, timeout=GUARD) as client:
        model = client.model("double", batch=BatchPolicy(max_size=32, max_wait=0.0))
        threads, _ = busy(recorder, model)
        batcher = model._batcher
        main = threading.main_thread().ident

        def join_and_interrupt():
            wait_until(lambda: batcher._open, "the main thread leads")
            with ThreadPoolExecutor(2) as pair:
                stays = [pair.submit(model.infer_sample, {"x": [float(number)]}) for number in (1, 2)]
                wait_until(lambda: any(len(each.samples) == 3 for each in batcher._open.values()), "joined")
                signal.pthread_kill(main, signal.SIGINT)
                wait_until(lambda: all(len(each.samples) == 2 for each in batcher._open.values()), "it left")
                recorder.open.set()
                return [each.result(GUARD)["y"].item() for each in stays]

        with threads, ThreadPoolExecutor(1) as other:
            answers = other.submit(join_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                model.infer_sample({"x": [99.0]})
            assert answers.result(GUARD) == [2.0, 4.0]
    assert recorder.sizes == [1, 2]


def test_slices_never_mix_under_load_timeouts_and_failures(serve):
    def picky(arrays):
        if (arrays["x"] % 97 == 0).any():
            raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")
        return {"y": arrays["x"] * 3}

    manager = serve({"picky": picky}, workers=8)
    counts = {"right": 0, "failed": 0, "late": 0}
    lock = threading.Lock()
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD) as client:
        client.open()
        model = client.model("picky", batch=BatchPolicy(max_size=7, max_wait=0.002))

        def work(thread):
            for number in range(60):
                x = np.array([thread * 1000 + number, thread])
                timeout = random.choice([0.002, GUARD, GUARD, GUARD])
                try:
                    y = model.infer_sample({"x": x}, timeout=timeout)["y"]
                except (TimeoutError, ConnectFailedError):  # the latter while every socket is replaced
                    assert timeout < GUARD
                    kind = "late"
                except InferenceError:
                    kind = "failed"
                else:
                    assert y.tolist() == (x * 3).tolist(), "a slice of somebody else's"
                    kind = "right"
                with lock:
                    counts[kind] += 1

        with ThreadPoolExecutor(32) as threads:
            for each in [threads.submit(work, thread) for thread in range(1, 33)]:
                each.result(3 * GUARD)
        batcher = model._batcher
        assert not batcher._inside
        assert not batcher._open
    assert sum(counts.values()) == 32 * 60
    assert counts["right"] > 0
    assert counts["failed"] > 0


# --- the model ---


def test_the_calls_of_a_model_are_those_of_the_client(client, manager):
    model = client.model("double", output_dtypes=np.float32)
    assert model.infer({"x": [[1.5]]})["y"].dtype == np.float32
    assert model.submit({"x": [[1.5]]}).result(GUARD)["y"].item() == 3.0
    assert [each["y"].item() for each in model.map([{"x": [1.5]}, {"x": [2.5]}])] == [3.0, 5.0]
    assert model.infer_chunked({"x": [1.5, 2.5]}, rows=1)["y"].tolist() == [3.0, 5.0]
    assert model.infer_sample({"x": [1.5]})["y"].tolist() == [3.0]
    with pytest.raises(InferenceError, match="allow_transient"):
        model.stream({"x": [1.5]})
    assert "double" in repr(model)


def test_a_model_travels_with_its_client(client):
    model = client.model("double", batch=PATIENT)
    copy = pickle.loads(pickle.dumps(model))
    try:
        assert copy.infer_sample({"x": [1.5]})["y"].item() == 3.0
    finally:
        copy._client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_begins_again(client, recorder):
    model = client.model("double", batch=PATIENT)
    threads, _ = busy(recorder, model)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(
                0 if client.model("echo", batch=PATIENT).infer_sample({"x": [1.5]})["x"].item() == 1.5 else 1
            )
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    recorder.open.set()
    threads.shutdown()


@pytest.mark.parametrize(
    "wrong", [{"max_size": 0}, {"max_wait": -1}, {"max_wait": "1"}, {"max_size": 2.5}], ids=str
)
def test_a_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BatchPolicy(**wrong)


def test_wrong_arguments_of_a_model_are_refused(client):
    for wrong in ({"model_name": ""}, {"batch": 3}, {"output_dtypes": "M8[s]"}, {"vm_ip": ""}):
        with pytest.raises(InputError):
            client.model(**{"model_name": "double", **wrong})
    with pytest.raises(InputError):
        client.model("double").infer_sample({"x": [1.0]}, timeout=0)


def test_the_wait_for_others_is_kept_within_the_deadline(client, recorder):
    model = client.model("double", batch=BatchPolicy(max_size=4, max_wait=60.0))
    threads, _ = busy(recorder, model)
    with threads, ThreadPoolExecutor(1) as other:
        error = other.submit(model.infer_sample, {"x": [1.0]}, timeout=0.2).exception(GUARD)
        assert isinstance(error, TimeoutError)
        assert not error.outcome_unknown
        recorder.open.set()


def test_late_samples_are_distinguished_from_unsent_ones(client, recorder):
    model = client.model("double", batch=PATIENT)
    recorder.open.clear()
    with pytest.raises(CallTimeoutError) as caught, timing_out(lambda: recorder.shapes):
        model.infer_sample({"x": [1.0]})
    assert caught.value.outcome_unknown
