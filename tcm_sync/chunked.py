"""Batches of any length, cut along their first axis into messages that fit, and joined again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync.config import UNSET, Unset
from tcm_sync.errors import InputError, MessageTooLargeError, ProtocolError, TcmError
from tcm_sync.many import Many, in_order
from tcm_sync.numeric import check_whole
from tcm_sync.progress import Progress
from tcm_sync.request import Plan
from tcm_sync.results import InferResult
from tcm_sync.tensors import Tensor, check_inputs
from tcm_sync.tensors.casts import cast
from tcm_sync.tensors.datatypes import Unfit
from tcm_sync.wire.encode import size_of
from tcm_sync.wire.quote import quote

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync.retry import RetryPolicy

_FIRST_ROWS = 64  # what is tried first where nobody says how many rows fit a message
_FULL = 0.9  # how full a message is meant to be: rows differ in their text


class Chunked(Many):
    """The client's `infer_chunked`."""

    def infer_chunked(
        self,
        model_name: str,
        inputs: object,
        *,
        rows: int | None = None,
        progress: bool = False,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferResult:
        """Run a model on a batch of any length: cut along the first axis, several messages at a time, joined.

        Parameters
        ----------
        model_name, inputs, vm_ip, container_id, vm_id, allow_transient, output_dtypes, retry
            As `infer` takes them. All inputs have as many rows, and so must all outputs have.
        rows : int, optional
            How many a message carries; left out, as many as fit ``max_message_bytes``.
        progress : bool
            Whether to show how many rows are done (with tqdm: the extra ``progress``).
        timeout : float or None, optional
            Seconds for each message once its turn has come; None is no limit. Left out, the client's.

        Returns
        -------
        InferResult
            The outputs of all rows, in order. ``attempts`` is the most that one message took, ``raw`` is
            empty.

        Raises
        ------
        InputError
            The arguments cannot be sent; nothing was.
        MessageTooLargeError
            A single row, or ``rows`` of them, are over ``max_message_bytes``.
        ProtocolError
            An output has not as many rows as the input.
        TcmError
            A message failed: the error names its rows, and the rest is given up.
        """
        deadline = self._deadline(None)
        plan = self._plan(
            model_name, vm_ip, container_id, vm_id, allow_transient, output_dtypes, timeout, retry
        )
        self._deadline(timeout)  # checks it
        if rows is not None:
            rows = check_whole("rows", rows, kind=InputError)
        tensors = check_inputs(inputs)
        length = _common_rows(tensors)
        shown = Progress(model_name, shown=progress, counted=True, total=length)
        self._running()
        most = self._settings.pool_size
        spans: list[tuple[int, int]] = []  # of the messages that have begun
        joined = _Joined(length)
        cuts = self._cuts(plan, tensors, length, rows, spans)
        with shown, closing(in_order(cuts, self._crew(most), most)) as outcomes:
            for index, outcome in outcomes:
                start, stop = spans[index]
                if isinstance(outcome, TcmError):
                    raise _of_rows(outcome, start, stop)
                joined.add(outcome, start, stop)
                shown.update(stop - start)
        return InferResult(joined.model_name, joined.arrays, b"", joined.attempts, deadline.elapsed())

    def _cuts(
        self,
        plan: Plan,
        tensors: tuple[Tensor, ...],
        length: int,
        rows: int | None,
        spans: list[tuple[int, int]],
    ) -> Iterator[Callable[[], InferResult] | TcmError]:
        """Yield what is to be done message by message, each encoded when it is asked for."""
        start, wanted = 0, rows or _FIRST_ROWS
        limit = self._settings.max_message_bytes - self._envelope_bytes("inference")
        while start < length:
            stop = min(start + wanted, length)
            try:
                payload = self._as_json(plan, _rows_of(tensors, start, stop))
            except MessageTooLargeError as error:
                if rows is None and stop - start > 1:
                    wanted = max(1, int((stop - start) * min(0.5, limit / (error.size or limit))))
                    continue
                spans.append((start, stop))
                yield error
                return
            spans.append((start, stop))
            yield lambda payload=payload: self._infer(plan, payload, self._deadline(plan.timeout))  # type: ignore[misc]
            if rows is None:
                wanted = max(1, int((stop - start) * limit * _FULL / size_of(payload)))
            start = stop


def _common_rows(tensors: tuple[Tensor, ...]) -> int:
    """Return how many rows all inputs have."""
    lengths = {tensor.name: tensor.shape[0] for tensor in tensors}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f'"{quote(name)}" has {length}' for name, length in lengths.items())
        raise InputError(f"the inputs of a batch have as many rows: {told}")
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


def _of_rows(error: TcmError, start: int, stop: int) -> TcmError:
    error.args = (f"rows {start:,} to {stop - 1:,}: {error.message}",)
    return error


class _Joined:
    """The outputs of all rows, filled message by message."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.model_name = ""
        self.attempts = 0

    def add(self, result: InferResult, start: int, stop: int) -> None:
        """Put the outputs of some rows in their place."""
        if not self.arrays:
            self.arrays = {
                name: np.empty((self._length, *part.shape[1:]), part.dtype) for name, part in result.items()
            }
            self.model_name = result.model_name
        self.attempts = max(self.attempts, result.attempts)
        where = f"rows {start:,} to {stop - 1:,}"
        if set(result) != set(self.arrays):
            raise ProtocolError(f"{where} have other outputs than those before: {sorted(result)}")
        for name, part in result.items():
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
                except Unfit as reason:
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
    Unfit
        There is no such dtype.
    """
    kinds = {whole.dtype.kind, part.dtype.kind}
    if not kinds <= set("iuf"):
        raise Unfit(f"{part.dtype}, and {whole.dtype} in the rows before")
    dtype = np.dtype(np.float64 if "f" in kinds else np.uint64)
    wider = np.empty(whole.shape, dtype)
    wider[:filled] = cast(whole[:filled], dtype, dtype)
    return wider, cast(part, dtype, dtype)
