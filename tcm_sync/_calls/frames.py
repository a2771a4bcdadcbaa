"""Data frames of any length: their columns as inputs, cut into messages, and the outputs as a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tcm_sync._arguments import check_flag
from tcm_sync._calls.chunked import checked_rows, run
from tcm_sync._calls.cutting import Job
from tcm_sync._process import notice_fork
from tcm_sync._tensors import ModelSignature, Tensor, check_inputs, fit_inputs
from tcm_sync._tensors.tables import Table

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._tensors.tables import Stack

_CHECKED_ROWS = 4096  # at a time, before anything is sent


def infer_frame(
    core: Core,
    options: CallOptions,
    frame: object,
    signature: ModelSignature | None = None,
    *,
    columns: Sequence[Any] | None,
    stack: Stack,
    rows: int | None,
    progress: bool,
    concurrency: int | None = None,
) -> Any:
    """Run a model on the rows of a data frame, and return its outputs as another.

    Rows are converted to arrays when their message is written, so that the memory that this takes does not
    grow with the frame. All are converted once before, since nothing is sent unless all can be.
    """
    notice_fork()
    rows, progress = checked_rows(rows), check_flag("progress", progress)
    table = Table(frame, columns=columns, stack=stack, signature=signature)

    def take(start: int, stop: int) -> tuple[Tensor, ...]:
        arrays = table.take(start, stop)
        return check_inputs(arrays) if signature is None else fit_inputs(signature, arrays, will_be_cut=True)

    for start in range(0, table.length, _CHECKED_ROWS):
        take(start, min(start + _CHECKED_ROWS, table.length))
    most = None if signature is None else signature.max_batch_size
    job = Job(options, take, table.length, table.row_bytes, rows, most)
    return table.like(run(core, job, progress=progress, concurrency=concurrency))
