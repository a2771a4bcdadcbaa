"""Data frames of any length: their columns as inputs, cut into messages, and the outputs as a frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tcm_sync._arguments import check_flag, is_iterable
from tcm_sync._calls.chunked import checked_batch, checked_rows, run
from tcm_sync._calls.cutting import Job
from tcm_sync._numbers import shown
from tcm_sync._process import notice_fork
from tcm_sync._tensors import ModelSignature, Tensor
from tcm_sync._tensors.columns import check_is_table
from tcm_sync._tensors.tables import Table
from tcm_sync._tracebacks import shortened_errors
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

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
    outputs: Sequence[str] | None,
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
    with shortened_errors:
        wanted = _checked_names(outputs, signature)
        table = Table(frame, columns=columns, stack=stack, signature=signature)

    def take(start: int, stop: int) -> tuple[Tensor, ...]:
        return checked_batch(table.take(start, stop), signature)

    with shortened_errors:
        for start in range(0, table.length, _CHECKED_ROWS):
            take(start, min(start + _CHECKED_ROWS, table.length))
        job = Job(options, take, table.length, table.row_bytes, rows, signature)
    select = partial(_columns_only, wanted)
    return table.like(run(core, job, progress=progress, concurrency=concurrency, select=select))


def _checked_names(outputs: object, signature: ModelSignature | None) -> tuple[str, ...] | None:
    """Return the names of the wanted outputs, None if all are, or raise an InputError."""
    if outputs is None:
        return None
    if isinstance(outputs, (str, bytes)) or not is_iterable(outputs) or not isinstance(outputs, Iterable):
        raise InputError(f"outputs must be a sequence of names, not {shown(outputs)}")
    names = tuple(outputs)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"outputs must be one or more names, each once, not {shown(outputs)}")
    if signature is not None and signature.outputs:
        _check_are_there(names, [spec.name for spec in signature.outputs])
    return names


def _check_are_there(names: Sequence[str], there: Sequence[str]) -> None:
    if missing := [name for name in names if name not in there]:
        listed = ", ".join(f'"{quote(name)}"' for name in there)
        raise InputError(f'there is no output "{quote(missing[0])}", but {listed}')


def _columns_only(
    wanted: tuple[str, ...] | None, outputs: Mapping[str, npt.NDArray[Any]]
) -> Mapping[str, npt.NDArray[Any]]:
    """Return the wanted outputs of a message, if they make columns."""
    if wanted is not None:
        _check_are_there(wanted, list(outputs))
        outputs = {name: outputs[name] for name in wanted}
    check_is_table(
        outputs,
        "name the outputs that make columns with outputs=[...]; infer_chunked() returns all as arrays",
    )
    return outputs
