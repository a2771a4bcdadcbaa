"""Samples of many threads, stacked into one request and split again."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from tcm_sync._calls.request import InferenceCall, Plan, encode_request, is_readable
from tcm_sync._numbers import as_number, shown
from tcm_sync._process import watch
from tcm_sync._reentry import entrance
from tcm_sync._tensors import (
    Tensor,
    check_call,
    decode_outputs,
    encode_data,
    encode_described,
    minimum_json_bytes,
)
from tcm_sync._wire.encode import Pieces, check_size, size_of
from tcm_sync._wire.quote import quote
from tcm_sync.errors import (
    CallTimeoutError,
    ConfigError,
    ConnectionLostError,
    PoolTimeoutError,
    ProtocolError,
    TcmError,
)
from tcm_sync.results import InferResult
from tcm_sync.settings import check_count

if TYPE_CHECKING:
    from tcm_sync._calls.inference import Inference
    from tcm_sync._deadline import Deadline
    from tcm_sync._transport.connection import Connection

_DIGITS = 10  # of a batch's size, at most
_MOST_KINDS = 256  # kinds of samples that are remembered


@dataclass(frozen=True)
class BatchPolicy:
    """When samples of different callers go out together.

    A batch leaves when a socket is free and either it is full, or `max_wait` has passed since its first
    sample, or nobody else is in a call. While it waits for the socket, more samples may join.

    Parameters
    ----------
    max_size : int
        The most samples in a batch.
    max_wait : float
        Seconds that the first one waits for others, at most.
    """

    max_size: int = 32
    max_wait: float = 0.004

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_size", check_count("batch.max_size", self.max_size))
        wait = as_number(self.max_wait)
        if wait is None or not 0 <= wait <= 60:
            raise ConfigError(
                f"batch.max_wait must be a number of seconds from 0 to 60, not {shown(self.max_wait)}"
            )
        object.__setattr__(self, "max_wait", wait)


class Sample:
    """One caller's inputs, and what becomes of them. All but the lock is guarded by the batcher's."""

    __slots__ = ("batch", "deadline", "key", "nbytes", "outcome", "since", "size", "tensors", "texts", "told")

    def __init__(self, tensors: tuple[Tensor, ...], deadline: Deadline) -> None:
        self.tensors = tensors
        # Each is written in its caller's thread, with a batch axis that is taken off again.
        self.texts = [encode_data(_as_batch(tensor))[1:-1] for tensor in tensors]
        self.key = tuple((each.name, each.datatype, each.shape) for each in tensors)
        self.size = sum(map(len, self.texts)) + len(self.texts)  # bytes that it adds to a message
        self.nbytes = sum([each.array.nbytes for each in tensors])
        self.deadline = deadline
        self.since = monotonic()
        self.batch: Batch
        self.outcome: InferResult | TcmError | None = None
        self.told = threading.Lock()  # held until there is an outcome, or it is to lead; guards nothing
        self.told.acquire()

    def tell(self) -> None:
        """Wake its caller, unless that was done; under the batcher's lock."""
        if self.told.locked():
            self.told.release()


class Batch:
    """Samples that go out together; the first one's caller leads. Guarded by the batcher's lock."""

    def __init__(self, sample: Sample, room: int) -> None:
        self.samples = [sample]
        self.room = room - sample.size  # bytes that are left of a message
        self.leader = sample
        self.open = True  # whether samples may join
        self.sent = False  # whether it went out, or is about to
        self.sendings = 0  # how often a leader's call may have run whose answer did not come


class Batcher:
    """Stacks the samples of one model.

    There is no thread for it: of the callers whose samples are in a batch, one leads. If it leaves, by its
    deadline or a KeyboardInterrupt, the next one leads those that are left, and sends them again as the
    policy of repeats allows.

    Parameters
    ----------
    client : Inference
        Whose sockets are used.
    plan : Plan
        The model, the route, and all that the samples share.
    policy : BatchPolicy
        When a batch leaves.
    """

    def __init__(self, client: Inference, plan: Plan, policy: BatchPolicy) -> None:
        self._client = client
        self._plan = plan
        self._policy = policy
        self._callers = client._callers  # noqa: SLF001
        self.after_fork()
        watch(self)

    def after_fork(self) -> None:
        """Begin anew: the samples of a parent process are its own."""
        self._lock = threading.RLock()  # guards what is below, and all batches and samples
        self._changed = threading.Condition(self._lock)  # told when a batch may leave
        self._open: dict[Hashable, Batch] = {}
        self._inside: set[Sample] = set()  # of all callers that are here
        self._bare: dict[Hashable, int] = {}  # bytes of a message without its samples, by their key

    def at_exit(self) -> None:
        """Do nothing: calls are refused by the client."""

    def run(self, inputs: object, deadline: Deadline) -> InferResult:
        """Run the model on one sample, together with those of other callers."""
        tensors = check_call(inputs, sample=True, infinities=True)
        check_size(minimum_json_bytes(tensors), self._client._message_limit(), at_least=True)  # noqa: SLF001
        sample = Sample(tensors, deadline)
        return self._run(sample, self._room(sample))

    @entrance
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
        if isinstance(sample.outcome, TcmError):
            raise sample.outcome
        return sample.outcome

    def _room(self, sample: Sample) -> int:
        """Count the bytes that the samples of a message may have; this one alone must fit."""
        limit = self._client._message_limit()  # noqa: SLF001
        bare = self._bare.get(sample.key)
        if bare is None:
            text = self._text(sample.tensors, [[] for _ in sample.texts], 10**_DIGITS)
            bare = size_of(text) + self._client._envelope_bytes("inference")  # noqa: SLF001
            if len(self._bare) >= _MOST_KINDS:
                self._bare.clear()
            self._bare[sample.key] = bare
        check_size(bare + sample.size, limit)
        return limit - bare

    def _join(self, sample: Sample, room: int) -> None:
        with self._lock:
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

    def _most(self, sample: Sample) -> int:
        """Return how many samples of its kind may go out together: as set, or fewer as was learned."""
        plan = self._plan
        learned = self._client._limits.rows((plan.route, plan.model_name), sample.nbytes)  # noqa: SLF001
        return self._policy.max_size if learned is None else min(self._policy.max_size, learned)

    def _shut(self, batch: Batch) -> None:
        """Let nobody join any more."""
        batch.open = False
        for key, found in list(self._open.items()):
            if found is batch:
                del self._open[key]

    def _wait(self, sample: Sample) -> None:
        """Wait for the outcome, or to be told to lead."""
        left = sample.deadline.remaining()
        if sample.told.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
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
        """Take a sample out, whatever became of it; if its caller led, the next one does."""
        with self._lock:
            self._inside.discard(sample)
            batch = getattr(sample, "batch", None)
            if batch is not None and sample in batch.samples:
                batch.samples.remove(sample)
                batch.room += sample.size
                if not batch.samples:
                    self._shut(batch)
                elif batch.leader is sample:
                    batch.leader = batch.samples[0]
                    batch.leader.tell()
            self._changed.notify_all()

    # --- the leader ---

    def _lead(self, batch: Batch, leader: Sample) -> None:
        """Send the batch when it is time, and hand out what comes back."""
        self._gather(batch, leader)
        if len(batch.samples) > (most := self._most(leader)):  # learned since they joined
            self._divide(batch, leader, most)
            return  # to lead its part of them
        policy = self._plan.policy
        call = BatchCall(self, batch, leader.deadline, patient=policy is not None, plan=self._plan)
        call.may_have_run = batch.sendings > 0
        try:
            try:
                self._check_repeat(batch)
                attempts = self._client._perform_inside(call, policy)  # noqa: SLF001
            except BaseException:
                batch.sendings += call.may_have_run
                raise
            outcomes: list[InferResult | TcmError] = [*self._split(call, attempts)]
            samples = call.samples
        except TcmError as error:
            fewer = self._fewer(call, error)
            if fewer is not None:
                self._divide(batch, leader, fewer)
                return  # to lead its part of them
            if leader.deadline.expired():
                leader.outcome = error  # the others may have time: one of them goes on
                return
            with self._lock:
                self._shut(batch)
                samples = list(batch.samples)
            outcomes = [error if sample is leader else _copy(error) for sample in samples]
        with self._lock:
            for sample, outcome in zip(samples, outcomes, strict=True):
                if sample.outcome is None and sample in batch.samples:
                    sample.outcome = outcome
                    if sample is not leader:
                        sample.tell()
            batch.samples.clear()

    def _fewer(self, call: BatchCall, error: TcmError) -> int | None:
        """Return how many samples to send at a time, if the batch was refused for its size."""
        if not call.payload:
            return None
        plan, nbytes = self._plan, call.samples[0].nbytes
        limits = self._client._limits  # noqa: SLF001
        return limits.learn((plan.route, plan.model_name), error, len(call.samples), nbytes)

    def _divide(self, batch: Batch, leader: Sample, most: int) -> None:
        """Make batches of at most so many samples of one, each led by its first one's caller."""
        with self._lock:
            self._shut(batch)
            samples, batch.samples = batch.samples, []
            part: Batch | None = None
            for sample in samples:
                try:
                    room = self._room(sample)
                except TcmError as error:  # too large by itself, as it is known by now
                    sample.outcome = error
                    sample.tell()
                    continue
                if part is None or len(part.samples) >= most or sample.size > part.room:
                    part = Batch(sample, room)
                    part.open, part.sendings = False, batch.sendings
                    if sample is not leader:
                        sample.tell()
                else:
                    part.samples.append(sample)
                    part.room -= sample.size
                sample.batch = part

    def _check_repeat(self, batch: Batch) -> None:
        """Refuse to send a batch again that may have run, unless the policy lets a lost reply be repeated."""
        policy = self._plan.policy
        if batch.sendings and (policy is None or not policy.resend_lost or batch.sendings >= policy.attempts):
            raise ConnectionLostError(
                "the reply was lost: the caller that had sent the sample's batch left before it came, by its "
                "deadline or an interrupt, and the retry policy does not allow to send the batch again",
                outcome_unknown=True,
            )

    def _gather(self, batch: Batch, leader: Sample) -> None:
        """Wait until the batch may leave, but for a socket."""
        ends = leader.since + self._policy.max_wait
        with self._lock:
            while batch.open and len(self._inside) > len(batch.samples):
                remaining = leader.deadline.remaining()
                left = ends - monotonic() if remaining is None else min(ends - monotonic(), remaining)
                if left <= 0.0:
                    return
                self._changed.wait(left)

    def close(self, batch: Batch) -> tuple[list[Sample], Pieces]:
        """Let nobody join a batch any more, and write it: its connection is there."""
        with self._lock:
            self._shut(batch)
            batch.sent = True
            samples = list(batch.samples)
        self._client._counts.batched(len(samples))  # noqa: SLF001
        rows = [[sample.texts[place] for sample in samples] for place in range(len(samples[0].texts))]
        return samples, self._text(samples[0].tensors, rows, len(samples))

    def _text(self, tensors: tuple[Tensor, ...], rows: list[list[bytes]], size: int) -> Pieces:
        plan = self._plan
        inputs = [
            (each.name, each.datatype, (size, *each.shape), (b"[%b]" % b",".join(texts),))
            for each, texts in zip(tensors, rows, strict=True)
        ]
        return encode_request(plan, encode_described(inputs))

    def _split(self, call: BatchCall, attempts: int) -> list[InferResult]:
        """Cut the outputs of a batch into those of its samples."""
        reply, size = call.reply, len(call.samples)
        try:
            arrays = decode_outputs(reply.data, self._plan.dtypes)
            for name, array in arrays.items():
                if array.shape[0] != size:
                    raise ProtocolError(
                        f'output "{quote(name)}": its first axis is {array.shape[0]}, and the batch has '
                        f"{size} samples: the model mixes them, or they lost their shape on the wire"
                    )
        except TcmError as error:
            self._client._failed(error, call)  # noqa: SLF001
            call.blame(error, sound=is_readable(reply.data))
            raise
        model_name = reply.model_name or self._plan.model_name
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
    """One batch on its way: it is closed and written once its connection is there."""

    samples: list[Sample]

    def __init__(
        self, batcher: Batcher, batch: Batch, deadline: Deadline, *, patient: bool, plan: Plan
    ) -> None:
        super().__init__((), deadline, patient=patient, target=(plan.route, plan.model_name))
        self._batcher = batcher
        self._batch = batch

    def write(self, connection: Connection) -> Pieces:  # noqa: ARG002
        """Close the batch, and write it. A repeat sends the same samples."""
        if not self.payload:
            self.samples, self.payload = self._batcher.close(self._batch)
        return self.payload


def _as_batch(tensor: Tensor) -> Tensor:
    """Return a sample as a batch of one."""
    return Tensor(tensor.name, tensor.datatype, (1, *tensor.shape), tensor.array[np.newaxis])


def _copy(error: TcmError) -> TcmError:
    """Return the same error for another caller to raise."""
    copy = type(error)(error.message)
    vars(copy).update(vars(error))
    return copy
