"""Batches of any length, cut along their first axis into messages that fit, and joined again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._arguments import check_whole
from tcm_sync._calls.cutting import Job, cuts, name_rows, still_fits
from tcm_sync._calls.inference import send_watched, watch_of
from tcm_sync._calls.progress import Progress
from tcm_sync._calls.submit_map import outcomes_of
from tcm_sync._deadline import Deadline
from tcm_sync._process import notice_fork
from tcm_sync._tensors import ModelSignature, Tensor, check_inputs, fit_inputs
from tcm_sync._tensors.casts import cast
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._tracebacks import shortened_errors
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError, MessageTooLargeError, ProtocolError, TcmError
from tcm_sync.results import InferResult

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._calls.shm_inference import Shareable
    from tcm_sync._wire.encode import Pieces

Outputs = Mapping[str, np.ndarray[Any, Any]]
Part = tuple[int, int, InferResult]  # from which row, to which, and their outputs


def infer_chunked(
    core: Core,
    options: CallOptions,
    inputs: object,
    signature: ModelSignature | None = None,
    *,
    rows: int | None,
    progress: bool,
    concurrency: int | None = None,
) -> InferResult:
    """Run a model on a batch of any length, with at most so many rows a message as the model takes."""
    notice_fork()
    rows = checked_rows(rows)
    with shortened_errors:
        tensors = checked_batch(inputs, signature)
        length = _common_rows(tensors)
        row_bytes = sum(each.array.nbytes for each in tensors) // length
        job = Job(options, partial(_rows_of, tensors), length, row_bytes, rows, signature)
    return run(core, job, progress=progress, concurrency=concurrency)


def checked_rows(rows: int | None) -> int | None:
    """Return how many rows the caller wants in a message, or raise an InputError."""
    return rows if rows is None else check_whole("rows", rows, kind=InputError)


def checked_batch(inputs: object, signature: ModelSignature | None) -> tuple[Tensor, ...]:
    """Return the inputs of a batch as tensors that can be sent in parts, or raise an InputError."""
    return check_inputs(inputs) if signature is None else fit_inputs(signature, inputs, will_be_cut=True)


def run(
    core: Core,
    job: Job,
    *,
    progress: bool,
    concurrency: int | None = None,
    select: Callable[[Outputs], Outputs] | None = None,
) -> InferResult:
    """Have a batch inferred, message by message, and join the outputs, or those that `select` returns."""
    deadline = Deadline(None)
    threads = core.settings.pool_size if concurrency is None else concurrency
    threads = check_whole("concurrency", threads, kind=InputError)
    shown = Progress(job.options.model_name, shown=progress, unit="rows", total=job.length)
    core.begin()
    joined = _JoinedOutputs(job.length)
    try:
        outcomes = outcomes_of(_tasks(core, job), core.new_workers(threads), threads)
        with shortened_errors, shown:
            try:
                for _, outcome in outcomes:
                    if isinstance(outcome, TcmError):
                        try:
                            raise outcome
                        finally:
                            del outcome  # its traceback has this frame, and the whole batch in it
                    for start, stop, result in outcome:
                        outputs = result if select is None else select(result)
                        joined.add(result, outputs, start, stop)
                        shown.update(stop - start)
            finally:
                outcomes.close()
    except TcmError as error:
        error.outcome_unknown = error.outcome_unknown or bool(job.running)
        raise
    return InferResult(joined.model_name, joined.arrays, b"", joined.attempts, deadline.elapsed())


def _tasks(core: Core, job: Job) -> Iterator[Callable[[], list[Part]] | TcmError]:
    """Yield the work of each message, prepared when the caller takes it."""
    try:
        for start, stop, prepared in cuts(core, job, 0, job.length, None):
            yield partial(copy_context().run, _send_rows, core, job, start, stop, prepared)
    except MessageTooLargeError as error:
        yield error


def _send_rows(core: Core, job: Job, start: int, stop: int, prepared: Pieces | Shareable) -> list[Part]:
    """Have some rows inferred, in smaller messages if they are more than manager or model take."""
    most = None if job.is_fixed else core.row_limits.rows(job.target, job.row_bytes)
    if (most is None or stop - start <= most) and still_fits(core, job, prepared):
        job.running.append(start)
        try:
            watch = watch_of(core, job.options)
            deadline = Deadline(job.options.timeout)
            return [(start, stop, send_watched(core, job.options, prepared, deadline, watch))]
        except TcmError as error:
            if not error.outcome_unknown:
                job.running.pop()
            if not job.is_fixed:
                most = core.row_limits.learn(
                    job.target, error, stop - start, job.row_bytes, job.options.policy
                )
            if most is None and not (stop - start > 1 and job.stops_sharing(prepared, error)):
                name_rows(error, start, stop)
                raise
    smaller = cuts(core, job, start, stop, most)
    return [part for begin, end, piece in smaller for part in _send_rows(core, job, begin, end, piece)]


def _common_rows(tensors: tuple[Tensor, ...]) -> int:
    """Return how many rows all inputs have."""
    lengths = {tensor.name: tensor.shape[0] for tensor in tensors}
    if len(set(lengths.values())) > 1:
        rows = ", ".join(f'"{quote(name)}" has {length}' for name, length in lengths.items())
        raise InputError(f"the inputs of a batch have as many rows: {rows}")
    length = next(iter(lengths.values()))
    if length == 0:
        raise InputError("the batch has no rows")
    return length


def _rows_of(tensors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
    return tuple(
        [
            Tensor(each.name, each.datatype, (stop - start, *each.shape[1:]), each.array[start:stop])
            for each in tensors
        ]
    )


class _JoinedOutputs:
    """The outputs of all rows, filled message by message."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.model_name = ""
        self.attempts = 0

    def add(self, result: InferResult, outputs: Outputs, start: int, stop: int) -> None:
        """Put the outputs of some rows in their place."""
        if not self.arrays:
            self.arrays = {
                name: np.empty((self._length, *part.shape[1:]), part.dtype) for name, part in outputs.items()
            }
            self.model_name = result.model_name
        self.attempts = max(self.attempts, result.attempts)
        where = f"rows {start:,} to {stop - 1:,}"
        if set(outputs) != set(self.arrays):
            raise ProtocolError(f"{where} have other outputs than those before: {sorted(outputs)}")
        for name, part in outputs.items():
            whole = self.arrays[name]
            wanted = (stop - start, *whole.shape[1:])
            if part.shape != wanted:
                raise ProtocolError(
                    f'output "{quote(name)}": shape {part.shape} for {where}, not {wanted}: the model does '
                    "not keep rows apart, or their text lost its shape on the wire; infer() takes it as it is"
                )
            if part.dtype != whole.dtype:
                try:
                    whole, part = _of_one_dtype(whole, start, part)
                except TensorError as reason:
                    raise ProtocolError(f'output "{quote(name)}": {where}: {reason}') from None
                self.arrays[name] = whole
            whole[start:stop] = part


def _of_one_dtype(
    whole: npt.NDArray[Any], filled: int, part: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Give the rows so far and those that follow one dtype, which holds the values of both.

    Without `output_dtypes` each message is read by its own values: 1 is int64, 2**63 is uint64, and 1.5 is
    float64. As in one message, int64 and uint64 are uint64.

    Raises
    ------
    TensorError
        There is no such dtype.
    """
    kinds = {whole.dtype.kind, part.dtype.kind}
    if not kinds <= set("iuf"):
        raise TensorError(f"{part.dtype}, and {whole.dtype} in the rows before")
    dtype = np.dtype(np.float64 if "f" in kinds else np.uint64)
    wider = np.empty(whole.shape, dtype)
    wider[:filled] = cast(whole[:filled], dtype, dtype)
    return wider, cast(part, dtype, dtype)
