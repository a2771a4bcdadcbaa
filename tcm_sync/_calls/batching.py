"""Samples of many threads, stacked into one request and split again."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from time import monotonic, time
from typing import TYPE_CHECKING

from tcm_sync._calls.request import InferenceCall, encode_request, is_readable
from tcm_sync._calls.retrying import perform
from tcm_sync._calls.samples import Batch, Sample
from tcm_sync._locks import RLock
from tcm_sync._process import register_hooks
from tcm_sync._reentry import entry_point
from tcm_sync._tensors import (
    Tensor,
    check_call,
    decode_outputs,
    encode_described,
    minimum_json_bytes,
)
from tcm_sync._tracebacks import shortened_errors
from tcm_sync._waiting import MAX_STEP, acquire
from tcm_sync._wire.encode import Pieces, check_size, size_of
from tcm_sync._wire.quote import quote
from tcm_sync.errors import (
    CallTimeoutError,
    ConnectionLostError,
    PoolTimeoutError,
    ProtocolError,
    TcmError,
)
from tcm_sync.events._records import BatchSent
from tcm_sync.results import InferResult

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._deadline import Deadline
    from tcm_sync._transport.connection import Connection
    from tcm_sync.settings import BatchPolicy

_DIGITS = 10  # of a batch's size, at most
_MAX_KINDS = 256  # kinds of samples that are remembered


class Batcher:
    """Stacks the samples of one model.

    There is no thread for it: of the callers whose samples are in a batch, one leads. If it leaves, by its
    deadline or a KeyboardInterrupt, the next one leads those that are left, and sends them again as the
    policy of repeats allows.

    Parameters
    ----------
    core : Core
        What the calls run on.
    options : CallOptions
        The model, the route, and all that the samples share.
    policy : BatchPolicy
        When a batch leaves.
    """

    def __init__(self, core: Core, options: CallOptions, policy: BatchPolicy) -> None:
        self._core = core
        self._options = options
        self._policy = policy
        self._callers = core.callers
        self.after_fork()
        register_hooks(self)

    def after_fork(self) -> None:
        """Start empty: the samples of a parent process are its own."""
        self._lock = RLock()  # guards what is below, and all batches and samples
        self._changed = threading.Condition(self._lock)  # notified when a batch may leave
        self._open: dict[Hashable, Batch] = {}
        self._inside: set[Sample] = set()  # of all callers that wait here
        self._empty_message_bytes: dict[Hashable, int] = {}  # without samples, by their key

    def at_exit(self) -> None:
        """Do nothing: calls are refused by the client."""

    def run(self, inputs: object, deadline: Deadline) -> InferResult:
        """Run the model on one sample, together with those of other callers."""
        sample = Sample(self._checked(inputs), deadline)
        return self._run(sample, self._room(sample))

    def _checked(self, inputs: object) -> tuple[Tensor, ...]:
        with shortened_errors:
            tensors = check_call(inputs, sample=True, infinities=True)
        check_size(minimum_json_bytes(tensors), self._core.message_limit(), at_least=True)
        return tensors

    @entry_point
    def _run(self, sample: Sample, room: int) -> InferResult:
        try:
            self._join(sample, room)
            while sample.outcome is None:
                if sample.batch.leader is sample:
                    self._lead(sample.batch, sample)
                else:
                    self._wait(sample)
        finally:
            try:
                self._leave(sample)
            except BaseException:  # an interrupt: the others of its batch are waiting
                self._leave(sample)
                raise
        if isinstance(sample.outcome, BaseException):
            raise sample.outcome
        return sample.outcome

    def _room(self, sample: Sample) -> int:
        """Count the bytes that the samples of a message may have; this one alone must fit."""
        limit = self._core.message_limit()
        empty = self._empty_message_bytes.get(sample.key)
        if empty is None:
            text = self._text(sample.tensors, [[] for _ in sample.texts], 10**_DIGITS)
            empty = size_of(text) + self._core.messages.envelope_bytes("inference")
            if len(self._empty_message_bytes) >= _MAX_KINDS:
                self._empty_message_bytes.clear()
            self._empty_message_bytes[sample.key] = empty
        check_size(empty + sample.size, limit)
        return limit - empty

    def _join(self, sample: Sample, room: int) -> bool:
        """Add a sample to the batch of its kind; True if that is a new one, which it leads."""
        with self._lock:
            if not sample.more_may_come:
                self._inside.add(sample)
            batch = self._open.get(sample.key)
            if batch is not None and sample.size <= batch.room:
                sample.batch = batch
                batch.samples.append(sample)
                batch.room -= sample.size
            else:
                if batch is not None:
                    batch.open = False
                batch = sample.batch = self._open[sample.key] = Batch(sample, room)
            if len(batch.samples) >= self._most(sample):
                self._shut(batch)
            self._changed.notify_all()
            return batch.leader is sample

    def _most(self, sample: Sample) -> int:
        """Return how many samples of its kind may go out together: as set, or fewer as was learned."""
        options = self._options
        learned = self._core.row_limits.rows((options.route, options.model_name), sample.nbytes)
        return self._policy.max_size if learned is None else min(self._policy.max_size, learned)

    def _shut(self, batch: Batch) -> None:
        """Close a batch to further samples."""
        batch.open = False
        for key, found in list(self._open.items()):
            if found is batch:
                del self._open[key]

    def _wait(self, sample: Sample) -> None:
        """Wait for the outcome, or to be woken to lead."""
        left = sample.deadline.remaining()
        if acquire(sample.wakeup, left):
            return
        with self._lock:
            if sample.outcome is not None or sample.batch.leader is sample:
                return
            waited = monotonic() - sample.since
            sample.outcome = (
                CallTimeoutError(
                    f"no reply within {waited:.3g} s; the batch that the sample went out in may still run",
                    outcome_unknown=True,
                )
                if sample.batch.sent
                else PoolTimeoutError(f"no socket came free for the sample's batch within {waited:.3g} s")
            )

    def _leave(self, sample: Sample) -> None:
        """Remove a sample, whatever its outcome; if its caller led, the one with the most time left does.

        A leader that leaves before the reply came has the batch sent again, as often as the retry policy
        allows: callers with short timeouts must not use that up one after the other.
        """
        with self._lock:
            self._inside.discard(sample)
            batch = getattr(sample, "batch", None)
            if batch is not None and sample in batch.samples:
                batch.samples.remove(sample)
                batch.room += sample.size
                if not batch.samples:
                    self._shut(batch)
                elif batch.leader is sample:
                    batch.leader = max(batch.samples, key=_time_left)
                    batch.leader.wake()
            self._changed.notify_all()

    # --- the leader ---

    def _lead(self, batch: Batch, leader: Sample) -> None:
        """Send the batch when it is time, and hand out what comes back."""
        self._gather(batch, leader)
        if len(batch.samples) > (most := self._most(leader)):  # learned since they joined
            self._divide(batch, leader, most)
            return  # to lead its part of them
        policy = self._options.policy
        call = BatchCall(
            self, batch, leader.deadline, waits_for_manager=policy is not None, options=self._options
        )
        call.may_have_run = batch.sendings > 0
        try:
            try:
                self._check_repeat(batch)
                attempts = perform(self._core, call, policy, inside=True)
            except BaseException:
                batch.sendings += call.may_have_run
                raise
            outcomes: list[InferResult | TcmError] = [*self._split(call, attempts)]
            samples = call.samples
        except TcmError as error:
            fewer = self._fewer_samples(call, error)
            if fewer is not None:
                self._divide(batch, leader, fewer)
                return  # to lead its part of them
            if leader.deadline.expired():
                leader.outcome = error  # the others may have time: one of them continues
                return
            with self._lock:
                self._shut(batch)
                samples = list(batch.samples)
            outcomes = [error if sample is leader else copy_of(error) for sample in samples]
        with self._lock:
            for sample, outcome in zip(samples, outcomes, strict=True):
                if sample.outcome is None and sample in batch.samples:
                    sample.outcome = outcome
                    if sample is not leader:
                        sample.wake()
            batch.samples.clear()

    def _fewer_samples(self, call: BatchCall, error: TcmError) -> int | None:
        """Return how many samples to send at a time, if the batch was refused for its size."""
        if not call.payload:
            return None
        options, nbytes = self._options, call.samples[0].nbytes
        target = (options.route, options.model_name)
        return self._core.row_limits.learn(target, error, len(call.samples), nbytes, options.policy)

    def _divide(self, batch: Batch, leader: Sample, most: int) -> None:
        """Make batches of at most so many samples of one, each led by its first one's caller."""
        with self._lock:
            self._shut(batch)
            samples, batch.samples = batch.samples, []
            part: Batch | None = None
            for sample in samples:
                try:
                    room = self._room(sample)
                except TcmError as error:  # too large by itself: the limit has been learned meanwhile
                    sample.outcome = error
                    sample.wake()
                    continue
                if part is None or len(part.samples) >= most or sample.size > part.room:
                    part = Batch(sample, room)
                    part.open, part.begun, part.sendings = False, batch.begun, batch.sendings
                else:
                    part.samples.append(sample)
                    part.room -= sample.size
                sample.batch = part
                if sample is part.leader and sample is not leader:
                    sample.wake()  # last: its caller looks without the lock whether it leads

    def _check_repeat(self, batch: Batch) -> None:
        """Refuse to send a batch again that may have run, unless the policy lets a lost reply be repeated."""
        policy = self._options.policy
        if batch.sendings and (policy is None or not policy.resend_lost or batch.sendings >= policy.attempts):
            raise ConnectionLostError(
                "the reply was lost: the caller that had sent the sample's batch left before it came, by its "
                "deadline or an interrupt, and the retry policy does not allow to send the batch again",
                outcome_unknown=True,
            )

    def _gather(self, batch: Batch, leader: Sample) -> None:
        """Wait until the batch may leave. It does not wait for a socket."""
        ends = leader.since + self._policy.max_wait
        with self._lock:
            while batch.open and (leader.more_may_come or len(self._inside) > len(batch.samples)):
                remaining = leader.deadline.remaining()
                left = ends - monotonic() if remaining is None else min(ends - monotonic(), remaining)
                if left <= 0.0:
                    return
                self._changed.wait(min(left, MAX_STEP))

    def close(self, batch: Batch) -> tuple[list[Sample], Pieces]:
        """Close a batch to further samples, and write it: its connection is there."""
        with self._lock:
            self._shut(batch)
            batch.sent = True
            for sample in list(batch.samples):
                if not sample.begin():
                    self._leave(sample)
            samples = list(batch.samples)
        self._core.counts.batched(len(samples))
        self._report(len(samples))
        rows = [[sample.texts[place] for sample in samples] for place in range(len(samples[0].texts))]
        return samples, self._text(samples[0].tensors, rows, len(samples))

    def _report(self, size: int) -> None:
        """Report to listeners, if there are any, that a batch goes out."""
        listeners, options = self._core.listeners, self._options
        if listeners.registered:
            listeners.report(
                BatchSent(
                    at=time(),
                    manager=listeners.manager,
                    model_name=options.model_name,
                    container_id=options.route.container_id,
                    size=size,
                )
            )

    def _text(self, tensors: tuple[Tensor, ...], rows: list[list[bytes]], size: int) -> Pieces:
        options = self._options
        inputs = [
            (each.name, each.datatype, (size, *each.shape), (b"[%b]" % b",".join(texts),))
            for each, texts in zip(tensors, rows, strict=True)
        ]
        return encode_request(options, encode_described(inputs))

    def _split(self, call: BatchCall, attempts: int) -> list[InferResult]:
        """Cut the outputs of a batch into those of its samples."""
        reply, size = call.reply, len(call.samples)
        try:
            arrays = decode_outputs(reply.data, self._options.dtypes, call.deadline)
            for name, array in arrays.items():
                if array.shape[0] != size:
                    raise ProtocolError(
                        f'output "{quote(name)}": its first axis is {array.shape[0]}, and the batch has '
                        f"{size} samples: the model mixes them, or they lost their shape on the wire"
                    )
        except TcmError as error:
            self._core.failed(error, call)
            call.note_unreadable(error, readable=lambda: is_readable(reply.data, call.deadline))
            raise
        model_name = reply.model_name or self._options.model_name
        return [
            InferResult(
                model_name,
                {name: array[place, ...].copy() for name, array in arrays.items()},
                b"",
                attempts,
                sample.deadline.elapsed(),
            )
            for place, sample in enumerate(call.samples)
        ]


class BatchCall(InferenceCall):
    """One batch in flight: it is closed and written once its connection is there."""

    reported_as = "batch"
    samples: list[Sample]

    def __init__(
        self,
        batcher: Batcher,
        batch: Batch,
        deadline: Deadline,
        *,
        waits_for_manager: bool,
        options: CallOptions,
    ) -> None:
        super().__init__(
            (), deadline, waits_for_manager=waits_for_manager, target=(options.route, options.model_name)
        )
        self._batcher = batcher
        self._batch = batch

    def write(self, connection: Connection) -> Pieces:  # noqa: ARG002
        """Close the batch, and write it. A repeat sends the same samples."""
        if not self.payload:
            self.samples, self.payload = self._batcher.close(self._batch)
            if self.watch is not None:
                self.watch.batch_size = len(self.samples)
        return self.payload


def _time_left(sample: Sample) -> float:
    remaining = sample.deadline.remaining()
    return math.inf if remaining is None else remaining


def copy_of(error: TcmError) -> TcmError:
    """Return the same error for another caller to raise."""
    copy = type(error)(error.message)
    vars(copy).update(vars(error))
    return copy
