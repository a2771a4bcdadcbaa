"""`infer_array`: a model over the blocks of a Dask array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.array.core import unify_chunks
from dask.base import tokenize
from dask.layers import ArrayValuesDep

from tcm_sync._calls.chunked import checked_rows
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError, TcmError
from tcm_sync.integrations.dask.clients import BlockClient, checked_client
from tcm_sync.integrations.dask.limit import Limit, checked_limit, lease
from tcm_sync.integrations.dask.outputs import Output, declared_outputs

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._tensors import ModelSignature
    from tcm_sync.client import TcmClient


def infer_array(
    x: da.Array | Mapping[str, da.Array],
    model_name: str,
    *,
    client: TcmClient,
    input_name: str | None = None,
    output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
    output_shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    signature: ModelSignature | None = None,
    rows: int | None = None,
    limit: Limit = "auto",
) -> Any:
    """Run a model on the rows of a Dask array, block by block, when the result is computed.

    Each block is sent as `TcmClient.infer_chunked` sends a batch: in as few messages as fit
    ``max_message_bytes``, repeated as the client's retry policy says. The name of the result depends only on
    the arguments, so that equal calls share their blocks. Models keep rows apart: the output of a row
    depends on that row alone.

    Parameters
    ----------
    x : dask.array.Array or mapping of str to dask.array.Array
        The input, or each input by its name, of shape (rows, ...). Only the first axis stays cut: a block
        has whole rows.
    model_name : str
        The model.
    client : TcmClient
        The client, or a view of it with another route, timeout or retry policy. It travels to the workers as
        its settings, the token included.
    input_name : str, optional
        The name of the only input. Left out, the signature's, or ``INPUT__0``.
    output_dtypes : dtype or mapping of str to dtype, optional
        The dtype of the only output, or those of the wanted outputs by name. Left out, the signature's.
    output_shapes : sequence of int or mapping of str to sequence of int, optional
        The shape of one row of the output, ``()`` for a number; or those by name. Left out, the signature's,
        or that of the input, if there is one input.
    signature : ModelSignature, optional
        What inputs are checked against, in the workers; no message has more rows than its
        ``max_batch_size``.
    rows : int, optional
        How many rows a message carries; left out, as many as fit.
    limit : "auto", int or None
        The most messages that blocks of this manager have in flight in the whole cluster, for those
        with the same limit; each block has one. "auto" is five, which the manager takes in a tick, where
        workers that do not share turns have run blocks of this manager, as on several hosts. Where all share
        turns, or with None, there is no limit but the turns: each block has as many messages in flight as
        its client has connections. Without a cluster only the client's ``pool_size`` counts.

    Returns
    -------
    dask.array.Array or dict of str to dask.array.Array
        The output; or outputs by name if `output_dtypes` is a mapping or left out. Compute several of them
        together (``dask.compute``): the model then runs once a block.

    Raises
    ------
    InputError
        An argument is wrong. When a block is computed: its rows were refused, or an output has other rows
        than `output_shapes` says.
    TcmError
        When a block is computed: it failed; the message names the block and the row that it begins at.

    Examples
    --------
    >>> y = infer_array(x, "digits", client=client, input_name="image",
    ...                 output_dtypes=np.float32, output_shapes=(10,))  # doctest: +SKIP
    """
    checked_client(client).model(model_name, signature=signature)  # checks them, and that there is a route
    rows, limit = checked_rows(rows), checked_limit(limit)
    inputs = _aligned(_inputs(x, input_name, signature))
    row_shape = next(iter(inputs.values())).shape[1:] if len(inputs) == 1 else None
    outputs = declared_outputs(output_dtypes, output_shapes, signature, row_shape)
    run = _RunBlock(BlockClient(client), model_name, tuple(inputs), outputs, signature, rows, limit)
    return run.over(list(inputs.values()))


# --- what goes in ---


def _inputs(x: object, input_name: str | None, signature: ModelSignature | None) -> dict[str, da.Array]:
    """Return the arrays by the names of the inputs."""
    if isinstance(x, Mapping):
        if input_name is not None:
            raise InputError("input_name is for one array; the arrays of a mapping have their names already")
        if not x:
            raise InputError("x has no inputs")
        arrays = dict(x)
    else:
        if input_name is None:
            input_name = _only_input(signature)
        arrays = {input_name: x}
    for name, array in arrays.items():
        if not isinstance(array, da.Array):
            raise InputError(
                f'"{quote(str(name))}" must be a Dask array, not {type(array).__name__}: '
                "dask.array.from_array makes one of an array"
            )
        if array.ndim == 0:
            raise InputError(f'"{quote(str(name))}" has no rows: it is a single value')
    return arrays


def _only_input(signature: ModelSignature | None) -> str:
    if signature is None:
        return "INPUT__0"
    names = [spec.name for spec in signature.inputs if not spec.optional]
    if len(names) != 1:
        raise InputError(f"the model has the inputs {', '.join(names)}: pass x as a mapping, or input_name")
    return names[0]


def _aligned(inputs: dict[str, da.Array]) -> dict[str, da.Array]:
    """Cut all arrays at the same rows."""
    lengths = {name: x.shape[0] for name, x in inputs.items() if not np.isnan(x.shape[0])}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f'"{quote(name)}" has {length}' for name, length in lengths.items())
        raise InputError(f"all inputs must have the same number of rows: {counts}")
    if len(inputs) == 1:
        return inputs
    if len(lengths) < len(inputs):
        if lengths or len({x.numblocks[0] for x in inputs.values()}) > 1:
            raise InputError(
                "the number of rows of an input is not known: call compute_chunk_sizes() of it first"
            )
        return inputs
    pairs = [part for place, x in enumerate(inputs.values()) for part in (x, _index(place, x))]
    _, arrays = unify_chunks(*pairs)
    return dict(zip(inputs, arrays, strict=True))


def _index(place: int, x: da.Array) -> tuple[str, ...]:
    """Label the axes of an input: the rows are common to all, the others are its own."""
    return ("rows", *(f"{place}.{axis}" for axis in range(1, x.ndim)))


# --- blocks ---


@dataclass(frozen=True)
class _RunBlock:
    """Runs the model on one block; it is what the tasks of a graph have in common."""

    client: BlockClient
    model_name: str
    names: tuple[str, ...]
    outputs: tuple[Output, ...]
    signature: ModelSignature | None
    rows: int | None
    limit: Limit

    def over(self, inputs: list[da.Array]) -> Any:
        """Return the outputs for all blocks of the inputs, which are aligned."""
        token = tokenize(type(self).__name__, *vars(self).values(), *inputs)
        chunks = inputs[0].chunks[0]
        starts = np.cumsum([0, *chunks[:-1]]).tolist()  # nan after a block of unknown length
        places = {(number,): (number, start) for number, start in enumerate(starts)}
        pairs: list[object] = [ArrayValuesDep((chunks,), places), ("rows",)]
        for place, x in enumerate(inputs):
            pairs += [x, _index(place, x)]
        named = [output.name for output in self.outputs]
        if named == [None]:
            return _blockwise(self, f"tcm-infer-{token}", self.outputs[0], pairs)
        every = da.blockwise(
            self,
            ("rows",),
            *pairs,
            name=f"tcm-infer-{token}",
            dtype=object,
            meta=np.empty(0, object),
            concatenate=True,
            align_arrays=False,
        )
        return {
            output.name: _blockwise(
                _Take(output.name), f"tcm-output-{tokenize(token, output)}", output, [every, ("rows",)]
            )
            for output in self.outputs
        }

    def __call__(self, place: tuple[int, float], *blocks: npt.NDArray[Any]) -> Any:
        try:
            found = self._run(blocks)
        except TcmError as error:
            number, start = place
            begin = "" if np.isnan(start) else f", which begins at row {int(start):,}"
            error.args = (f"block {number}{begin}: {error.message}",)
            error.model_name = error.model_name or self.model_name
            raise
        return found.get(None, found)

    def _run(self, blocks: tuple[npt.NDArray[Any], ...]) -> dict[str | None, npt.NDArray[Any]]:
        """Return the outputs by the names that they were declared with."""
        if len(blocks[0]) == 0:
            return {output.name: output.empty(0) for output in self.outputs}
        dtypes: Any = {output.name: output.dtype for output in self.outputs}
        client = self.client.get()
        model = client.model(self.model_name, signature=self.signature)
        with lease(client, self.limit) as concurrency:
            result = model.infer_chunked(
                dict(zip(self.names, blocks, strict=True)),
                rows=self.rows,
                output_dtypes=dtypes.get(None, dtypes),
                concurrency=concurrency,
            )
        return {output.name: _checked(output, result) for output in self.outputs}


@dataclass(frozen=True)
class _Take:
    """Takes one output of those that a block has."""

    name: str | None

    def __call__(self, outputs: Mapping[str | None, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return outputs[self.name]


def _blockwise(function: Any, name: str, output: Output, pairs: Sequence[object]) -> da.Array:
    """Apply a function to blocks of rows, which gives one output."""
    axes = {f"output.{axis}": size for axis, size in enumerate(output.shape)}
    array: da.Array = da.blockwise(
        function,
        ("rows", *axes),
        *pairs,
        name=name,
        new_axes=axes,
        dtype=output.dtype,
        meta=np.empty((0,) * (1 + len(axes)), output.dtype),
        concatenate=True,
        align_arrays=False,
    )
    return array


def _checked(output: Output, result: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return an output of a block, which is as it was declared."""
    names = ", ".join(f'"{quote(name)}"' for name in result)
    if output.name is None and len(result) != 1:
        raise InputError(f"the model has the outputs {names}: output_dtypes must name those that are wanted")
    name = next(iter(result)) if output.name is None else output.name
    if name not in result:
        raise InputError(f'there is no output "{quote(name)}", but {names}')
    array = result[name]
    if array.shape[1:] != output.shape:
        raise InputError(
            f'a row of the output "{quote(name)}" has the shape {array.shape[1:]}, not {output.shape}: '
            "pass it as output_shapes"
        )
    return array
