"""What is too large is cut again, and the limit is remembered: no further message is refused for it."""

# ruff: noqa: SIM117 - the peer and its client are one thing, what is expected of a call is another

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    BatchPolicy,
    InferenceFailedError,
    MessageTooLargeError,
    PayloadTooLargeError,
    RetryPolicy,
    Route,
    ShuttingDownError,
)
from tcm_sync import _logs as logs
from tcm_sync import _ttl_cache as ttl_cache
from tcm_sync._calls.learned_limits import RowLimits
from tcm_sync._calls.samples import Sample
from tcm_sync._tensors import ModelSignature, TensorSpec

from ..helpers.peer_connection import TIMEOUT
from ..helpers.peer_scripts import connect
from ..helpers.scripted_peer import ScriptedPeer

X = np.arange(400, dtype=np.float32).reshape(200, 2)


class Refusing:
    """A manager that refuses requests of too many rows, or too many bytes, and echoes the others."""

    def __init__(self, *, rows=None, payload=None, message=None, stated=True):
        self.rows, self.payload, self.message, self.stated = rows, payload, message, stated
        self.served, self.refused = [], []
        self.lock = threading.Lock()

    def __call__(self, connection):
        connection.welcome()
        while True:
            text = connection.recv_message()
            if self.message is not None and len(text) > self.message:
                self.refused.append(len(text))
                if self.stated:
                    connection.error(f"Message too large (>{self.message} bytes)")
                connection.close(1009)
            self.answer(connection, text)

    def answer(self, connection, text):
        tensor = json.loads(text)["payload"]["request"]["inputs"][0]
        rows = tensor["shape"][0]
        estimated = 4 * int(np.prod(tensor["shape"]))
        if self.rows is not None and rows > self.rows:
            self.refused.append(rows)
            connection.fail(
                "TRITON_INFERENCE_FAILED",
                f"[400] [request id: ?] inference request batch-size must be <= {self.rows} for 'm'",
            )
        elif self.payload is not None and estimated > self.payload:
            self.refused.append(rows)
            connection.fail(
                "TRITON_INFERENCE_FAILED",
                f"413 Payload Too Large: estimated_bytes={estimated} limit_bytes={self.payload}",
            )
        else:
            with self.lock:
                self.served.append(rows)
            connection.reply({"y": tensor["data"]})


LIMITED = {
    "the model": {"rows": 9},
    "a payload budget": {"payload": 100},
    "the manager's message": {"message": 1_100},
    "a close alone": {"message": 1_100, "stated": False},
}


@pytest.mark.parametrize("limit", LIMITED.values(), ids=LIMITED)
@pytest.mark.parametrize("retry", [{}, {"retry": None}], ids=["repeats", "no repeats"])
def test_a_batch_is_cut_again_and_what_was_learned_is_kept(limit, retry):
    manager = Refusing(**limit)
    with ScriptedPeer(manager) as peer, connect(peer, **retry) as client:
        for _ in range(2):
            refused = len(manager.refused)
            result = client.infer_chunked("m", {"x": X}, output_dtypes=np.float32)
            assert np.array_equal(result["y"], X)
        assert len(manager.refused) == refused > 0
        assert sum(manager.served) == 2 * len(X), "what had been served was not sent again"
        assert client.infer_chunked("m", {"x": X[:50]})["y"].shape == (50, 2)
        assert len(manager.refused) == refused


class Verbose(Refusing):
    """A manager whose model answers each number with a long text."""

    def answer(self, connection, text):
        rows = json.loads(text)["payload"]["request"]["inputs"][0]["data"]
        with self.lock:
            self.served.append(len(rows))
        connection.reply({"y": [[f"{row[0]:0100}", f"{row[1]:0100}"] for row in rows]})


LONG = np.array([[f"{row[0]:0100}", f"{row[1]:0100}"] for row in X.tolist()], dtype=object)


def test_rows_whose_reply_is_too_large_are_cut_again():
    manager = Verbose()
    with ScriptedPeer(manager) as peer, connect(peer, max_reply_bytes=4_096) as client:
        assert np.array_equal(client.infer_chunked("m", {"x": X})["y"], LONG)
        first = len(manager.served)
        assert np.array_equal(client.infer_chunked("m", {"x": X})["y"], LONG)
    assert sum(manager.served[first:]) == len(X), "what is learned is kept: no row ran twice"
    assert max(manager.served[first:]) < 20


@pytest.mark.parametrize("retry", [None, RetryPolicy(resend_lost=False)])
def test_rows_whose_reply_is_too_large_do_not_run_twice_unless_the_policy_allows_it(retry):
    manager = Verbose()
    with ScriptedPeer(manager) as peer, connect(peer, max_reply_bytes=4_096, retry=retry) as client:
        with pytest.raises(MessageTooLargeError, match=r"rows 0 to 199: the reply has at least") as caught:
            client.infer_chunked("m", {"x": X})
    assert manager.served == [200]
    assert caught.value.outcome_unknown


def test_a_failure_behind_rows_whose_reply_was_too_large_says_that_they_ran():
    class Failing(Verbose):
        def answer(self, connection, text):
            if self.served:
                connection.fail("TRITON_INFERENCE_FAILED", "[400] no")
            super().answer(connection, text)

    manager = Failing()
    with ScriptedPeer(manager) as peer, connect(peer, max_reply_bytes=4_096) as client:
        with pytest.raises(InferenceFailedError, match=r"rows 0 to 1\d: .*no") as caught:
            client.infer_chunked("m", {"x": X})
    assert caught.value.outcome_unknown


@pytest.mark.parametrize("retry", [RetryPolicy(), None])
def test_samples_whose_replies_are_too_large_together_go_out_in_smaller_batches(retry):
    manager = Verbose()
    with ScriptedPeer(manager) as peer, connect(peer, max_reply_bytes=4_096, retry=retry) as client:
        model = client.model("m", batch=BatchPolicy(max_size=40, max_wait=TIMEOUT))
        model._batcher._inside.add(None)  # somebody else is in a call: the batch waits until it is full
        with ThreadPoolExecutor(40) as threads:
            asked = [threads.submit(model.infer_sample, {"x": row}) for row in X[:40]]
            if retry is None:
                assert {type(each.exception(TIMEOUT)) for each in asked} == {MessageTooLargeError}
            else:
                assert np.array_equal([each.result(TIMEOUT)["y"] for each in asked], LONG[:40])


def test_rows_that_the_caller_wants_are_cut_too():
    manager = Refusing(rows=9)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        assert np.array_equal(client.infer_chunked("m", {"x": X}, rows=100)["y"], X)
    assert max(manager.served) == 9


def test_a_row_that_is_too_much_by_itself_fails_with_its_number():
    manager = Refusing(payload=4)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        with pytest.raises(PayloadTooLargeError, match=r"^rows \d+ to \d+: .*413") as caught:
            client.infer_chunked("m", {"x": X[:3]})
    assert not caught.value.outcome_unknown


def test_a_failure_behind_rows_that_ran_says_so():
    manager = Refusing(message=1_100)

    with ScriptedPeer(manager) as peer, connect(peer, pool_size=1) as client:
        with pytest.raises(MessageTooLargeError, match="rows 1 to 1: ") as caught:
            client.infer_chunked("m", {"x": np.array([["a"], ["b" * 1_200]], dtype=object)}, rows=1)
    assert caught.value.outcome_unknown


def test_a_signature_reports_how_many_rows_the_model_takes():
    spec = TensorSpec("x", "FP32", (2,))
    signature = ModelSignature((spec,), (TensorSpec("y", "FP32", (2,)),), batch_axis=True, max_batch_size=9)
    for rows in (None, 5, 100):
        manager = Refusing(rows=9)
        with ScriptedPeer(manager) as peer, connect(peer) as client:
            model = client.model("m", signature=signature)
            assert np.array_equal(model.infer_chunked({"x": X}, rows=rows)["y"], X)
        assert not manager.refused
        assert max(manager.served) == min(9, rows or 9)


def test_a_signature_does_not_make_messages_too_large():
    spec = TensorSpec("x", "FP32", (2,))
    signature = ModelSignature((spec,), (TensorSpec("y", "FP32", (2,)),), batch_axis=True, max_batch_size=150)
    manager = Refusing()
    with ScriptedPeer(manager) as peer, connect(peer, max_message_bytes=1_000) as client:
        assert np.array_equal(client.model("m", signature=signature).infer_chunked({"x": X})["y"], X)
    assert len(manager.served) > 2


def test_a_single_call_fails_before_it_is_sent_once_the_limit_is_known():
    manager = Refusing(message=1_100)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        with pytest.raises(MessageTooLargeError, match="1,100"):
            client.infer("m", {"x": X})
        assert len(peer.connections) == 1
        calls = [
            lambda: client.infer("m", {"x": X}),
            lambda: client.infer("other", {"x": X}),
            lambda: client.submit("m", {"x": X}).result(TIMEOUT),
            lambda: client.stream("m", {"x": X}),
            lambda: client.pipeline([{"model_name": "m", "inputs": {"x": X}}]),
            lambda: client.info("queue_stats", note="x" * 1_100),
            lambda: client.model("m").infer_sample({"x": X}),
            lambda: client.management("create_vm", note="x" * 1_100),
        ]
        for call in calls:
            with pytest.raises(
                MessageTooLargeError, match=r"the manager, which refused .* at most 1,100"
            ) as caught:
                call()
            assert caught.value.limit == 1_100
        assert len(manager.refused) == 1
        assert client.infer("m", {"x": X[:3]})["y"].shape == (3, 2)


class Babbling(Refusing):
    """A manager that states a limit of its own invention when it refuses rows."""

    def __init__(self, rows, limit):
        super().__init__(rows=rows)
        self.limit = limit

    def answer(self, connection, text):
        rows = json.loads(text)["payload"]["request"]["inputs"][0]["shape"][0]
        if rows > self.rows:
            self.refused.append(rows)
            if self.limit is not None:
                connection.error(f"Message too large (>{self.limit} bytes)")
            connection.close(1009)
        super().answer(connection, text)


@pytest.mark.parametrize("limit", [0, 1, 1_023, None])
def test_a_limit_that_hardly_any_request_fits_is_not_kept(limit, caplog):
    manager = Babbling(1, limit)
    with ScriptedPeer(manager) as peer, connect(peer, pool_size=1) as client:  # one message at a time
        for _ in range(2):
            with pytest.raises(MessageTooLargeError) as caught:
                client.infer("m", {"x": X[:2]})
            assert caught.value.limit == limit
            assert np.array_equal(client.infer("m", {"x": X[:1]})["y"], [X[0].tolist()])
        assert manager.refused == [2, 2]
        assert client._core.message_limit() == client._core.settings.max_message_bytes
        assert np.array_equal(client.infer_chunked("m", {"x": X})["y"], X)
        assert manager.refused[2:] == [200, 100, 50, 25, 12, 6, 3], "half as many rows after each refusal"
    assert logs.flush(TIMEOUT)
    lines = [record for record in caplog.records if "hardly any request fits" in record.getMessage()]
    assert [record.levelname for record in lines] == ["WARNING"] * (limit is not None)


def test_the_lowest_limit_that_is_kept():
    manager = Refusing(message=1_024)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        with pytest.raises(MessageTooLargeError):
            client.infer("m", {"x": X})
        assert client._core.message_limit() == 1_024
        with pytest.raises(MessageTooLargeError, match="at most 1,024"):
            client.infer("m", {"x": X})
    assert len(manager.refused) == 1


def test_a_close_without_a_limit_bounds_what_is_sent_from_then_on():
    manager = Refusing(message=1_100, stated=False)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        for _ in range(3):
            with pytest.raises(MessageTooLargeError):
                client.infer("m", {"x": X})
        assert len(manager.refused) == 1


def test_the_manager_after_one_that_said_that_it_ends_may_have_another_limit():
    manager = Refusing(message=1_100)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        with pytest.raises(MessageTooLargeError):
            client.infer("m", {"x": X})
        client._core.runtime.pool.manager_shuts_down(ShuttingDownError("it ends"))
        manager.message = None
        assert np.array_equal(client.infer("m", {"x": X})["y"], X)


def test_another_manager_may_have_another_limit():
    manager = Refusing(message=1_100)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        with pytest.raises(MessageTooLargeError):
            client.infer("m", {"x": X})
        client._core.runtime.manager_state.limits_epoch += 1
        manager.message = None
        assert np.array_equal(client.infer("m", {"x": X})["y"], X)
        small = client._core.settings.max_message_bytes - client._core.messages.envelope_bytes("inference")
        assert client._core.messages.inference_room == small


@pytest.mark.parametrize("limit", LIMITED.values(), ids=LIMITED)
@pytest.mark.parametrize("retry", [{}, {"retry": None}], ids=["repeats", "no repeats"])
def test_samples_that_are_too_many_together_go_out_in_smaller_batches(limit, retry):
    manager = Refusing(**limit)
    with ScriptedPeer(manager) as peer, connect(peer, **retry) as client:
        model = client.model("m", batch=BatchPolicy(max_size=100, max_wait=TIMEOUT))
        model._batcher._inside.add(None)  # somebody else is in a call: the first batch waits until it is full
        for _ in range(2):
            refused = len(manager.refused)
            with ThreadPoolExecutor(100) as threads:
                found = list(threads.map(lambda row: model.infer_sample({"x": row})["y"], X[:100]))
            assert np.array_equal(found, X[:100])
            model._batcher._inside.clear()
        assert len(manager.refused) == refused > 0
        assert sum(manager.served) == 200


def test_who_is_woken_to_lead_a_part_of_a_batch_finds_that_it_leads(monkeypatch):
    """It looks without the lock: what it is woken for must have been set before."""
    woken, wake = [], Sample.wake

    def note(sample):
        woken.append(sample.outcome is not None or sample.batch.leader is sample)
        wake(sample)

    monkeypatch.setattr(Sample, "wake", note)
    with ScriptedPeer(Refusing(rows=3)) as peer, connect(peer) as client:
        model = client.model("m", batch=BatchPolicy(max_size=9, max_wait=TIMEOUT))
        model._batcher._inside.add(None)  # somebody else is in a call: the batch waits until it is full
        with ThreadPoolExecutor(9) as threads:
            found = list(threads.map(lambda row: model.infer_sample({"x": row})["y"], X[:9]))
    assert np.array_equal(found, X[:9])
    assert woken
    assert all(woken)


def test_a_sample_that_is_too_large_fails_alone_and_the_others_of_its_batch_are_served():
    manager = Refusing(message=1_100)
    with ScriptedPeer(manager) as peer, connect(peer) as client, ThreadPoolExecutor(3) as threads:
        model = client.model("m", batch=BatchPolicy(max_size=3, max_wait=TIMEOUT))
        model._batcher._inside.add(object())  # somebody else is in a call
        texts = ["a", "b" * 2_000, "c"]
        asked = [threads.submit(model.infer_sample, {"x": np.array([text], object)}) for text in texts]
        assert type(asked[1].exception(TIMEOUT)) is MessageTooLargeError
        assert [asked[place].result(TIMEOUT)["y"].item() for place in (0, 2)] == ["a", "c"]


def test_a_refusal_names_the_most_rows():
    manager = Refusing(rows=9)
    with ScriptedPeer(manager) as peer, connect(peer) as client:
        with pytest.raises(InferenceFailedError, match="at most 9 rows") as caught:
            client.infer("m", {"x": X})
    assert caught.value.max_batch_size == 9


def test_what_is_learned_is_bounded():
    limits = RowLimits()
    for number in range(1_000):
        error = InferenceFailedError("too many", max_batch_size=8)
        assert limits.learn((Route("c"), f"m{number}"), error, 64, 4, None) == 8
    assert len(limits._rows) <= 256
    assert limits.rows((Route("c"), "m999"), 4) == 8


def test_a_milder_refusal_of_what_was_under_way_does_not_raise_the_limit():
    limits, target = RowLimits(), (Route("c"), "m")
    for failed, left in ((64, 32), (128, 32), (40, 20)):  # without a number each refusal halves them
        assert limits.learn(target, PayloadTooLargeError("too many"), failed, 4, None) == left
        assert limits.rows(target, 4) == left


def test_what_is_learned_ends_since_the_model_may_be_another_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ttl_cache, "monotonic", lambda: now[0])
    limits, target = RowLimits(), (Route("c"), "m")
    limits.learn(target, InferenceFailedError("too many", max_batch_size=8), 64, 4, None)
    limits.learn(target, PayloadTooLargeError("too many", estimated_bytes=100, limit_bytes=50), 4, 4, None)
    assert limits.rows(target, 4) == 2
    now[0] += 601.0
    assert limits.rows(target, 4) is None
