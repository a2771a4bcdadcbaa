"""Samples whose callers do not wait: what `Model.submit_sample` runs on."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from tcm_sync._calls.batching import Batcher, copy_of
from tcm_sync._calls.samples import Batch, SubmittedSample
from tcm_sync._futures import Future
from tcm_sync._reentry import entry_point
from tcm_sync.errors import TcmError

if TYPE_CHECKING:
    from tcm_sync._deadline import Deadline
    from tcm_sync.results import InferResult


class BackgroundBatcher(Batcher):
    """Stacks samples of waiting callers, and submitted ones.

    A batch of submitted samples is led by a thread of those that `submit` uses. Its other samples need no
    thread: the one that leads gives all of them their outcomes. Futures are resolved without any lock.
    """

    def after_fork(self) -> None:
        """Start empty: the samples of a parent process are its own."""
        super().after_fork()
        self._woken: deque[SubmittedSample] = deque()  # those that have an outcome, or are to lead

    def submit(self, inputs: object, deadline: Deadline) -> Future[InferResult]:
        """Run the model on one sample in the background, together with others."""
        sample = SubmittedSample(self._checked(inputs), deadline, self._woken)
        room = self._room(sample)
        try:
            job = self._enter(sample, room)
            if job is not None:
                job.add_done_callback(partial(self._fail_if_not_led, sample))
        except BaseException:
            if hasattr(sample, "batch"):
                self._drop(sample)
                self._settle()
            raise
        return sample.future

    @entry_point
    def _enter(self, sample: SubmittedSample, room: int) -> Future[None] | None:
        """Join a batch; have a thread lead it if it is new.

        Both are in one entry point: in between, a call of a handler would join a batch that no thread leads.
        """
        return self._led(sample) if self._join(sample, room) else None

    @entry_point
    def _drop(self, sample: SubmittedSample) -> None:
        self._leave(sample)

    def _start(self, leader: SubmittedSample) -> None:
        """Have a thread lead the batch."""
        self._begin_leading(leader).add_done_callback(partial(self._fail_if_not_led, leader))

    @entry_point
    def _begin_leading(self, leader: SubmittedSample) -> Future[None]:
        return self._led(leader)

    def _led(self, leader: SubmittedSample) -> Future[None]:
        return self._core.background_inside().submit_inside(partial(self._lead_batch, leader))

    def _fail_if_not_led(self, leader: SubmittedSample, job: Future[None]) -> None:
        """Fail the batch that no thread led, since the client was closed."""
        error = job.exception()
        if isinstance(error, TcmError):
            self._fail(leader.batch, error)
            self._settle()

    def _lead_batch(self, leader: SubmittedSample) -> None:
        """Lead a batch until its leader has an outcome."""
        try:
            while self._begin(leader):
                self._step(leader)
                self._settle()
        except BaseException as error:  # noqa: BLE001 - it is the future's
            leader.outcome = error
        finally:
            self._finish(leader)
            self._settle()

    @entry_point
    def _begin(self, leader: SubmittedSample) -> bool:
        """Whether there is a batch to lead. Its time begins with its turn."""
        with self._lock:
            batch = leader.batch
            if leader.outcome is not None or leader not in batch.samples or not leader.begin():
                return False
            if not batch.begun:
                batch.begun = True
                for sample in batch.samples:
                    if isinstance(sample, SubmittedSample):
                        sample.restart()
            return True

    @entry_point
    def _step(self, leader: SubmittedSample) -> None:
        self._lead(leader.batch, leader)

    @entry_point
    def _finish(self, leader: SubmittedSample) -> None:
        self._leave(leader)
        if leader.outcome is not None:
            leader.wake()

    def _fail(self, batch: Batch, error: TcmError) -> None:
        """End all samples of a batch with an error."""
        with self._lock:
            self._shut(batch)
            for sample in batch.samples:
                sample.outcome = copy_of(error)
                sample.wake()
            batch.samples.clear()

    def _settle(self) -> None:
        """Resolve the futures that have an outcome, and have those that are to lead do so."""
        while True:
            try:
                sample = self._woken.popleft()
            except IndexError:
                return
            if sample.outcome is not None:
                sample.settle()
                continue
            try:
                self._start(sample)
            except TcmError as error:
                self._fail(sample.batch, error)
