"""`infer_array`, a model over the blocks of a Dask array, and `TcmPlugin`, a client for each worker process.

Install it with the extra ``dask``. docs/dask.rst shows how it is used.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import dask.array as da
    from dask.array.core import unify_chunks
    from dask.base import normalize_token, tokenize
    from dask.layers import ArrayValuesDep
    from distributed import Semaphore, WorkerPlugin, get_worker
    from distributed.protocol.pickle import dumps, loads  # which also take a lambda as token
except ImportError as error:
    raise ImportError("tcm_sync.integrations.dask needs Dask: pip install 'tcm-sync[dask]'") from error

from tcm_sync._arguments import check_whole
from tcm_sync._numbers import as_whole, shown
from tcm_sync._wire.quote import quote
from tcm_sync.client import TcmClient
from tcm_sync.errors import InputError, TcmError

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._tensors import ModelSignature

__all__ = ["TcmPlugin", "infer_array"]

_SERVED_A_TICK = 5  # messages of one tenant (docs/wire.rst, "Timing")


class TcmPlugin(WorkerPlugin):
    """Keep one client in each worker process, and close it with the worker.

    The client connects when the first block needs it. Blocks use it if they were given the same client or a
    view of it; without the plugin they share one client a process too, but its connections stay open until
    the process ends.

    Parameters
    ----------
    client : TcmClient
        Its settings are sent to the workers, the token included; a callable token is called there.

    Examples
    --------
    >>> cluster.get_client().register_plugin(TcmPlugin(client))  # doctest: +SKIP
    """

    def __init__(self, client: TcmClient) -> None:
        self.client = _checked_client(client)
        self.name = f"tcm-sync-{tokenize(client)}"

    def teardown(self, worker: object) -> None:  # noqa: ARG002 - distributed passes it
        """Close the client of a worker that ends, or from which the plugin is removed."""
        self.client.close()


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
    limit: int | None = _SERVED_A_TICK,
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
    limit : int or None
        The most messages that blocks of this manager have in flight in the whole cluster, for those
        with the same limit; each block has one. Five is what the manager takes in a tick. None is no limit:
        each block has as many messages in flight as its client has connections. Without a cluster only the
        client's ``pool_size`` counts.

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
    _checked_client(client).model(model_name, signature=signature)  # checks them, and that there is a route
    if rows is not None:
        rows = check_whole("rows", rows, kind=InputError)
    if limit is not None:
        limit = check_whole("limit", limit, kind=InputError)
    inputs = _aligned(_inputs(x, input_name, signature))
    row_shape = next(iter(inputs.values())).shape[1:] if len(inputs) == 1 else None
    outputs = _outputs(output_dtypes, output_shapes, signature, row_shape)
    run = _RunBlock(_Carried(client), model_name, tuple(inputs), outputs, signature, rows, limit)
    return run.over(list(inputs.values()))


def _checked_client(client: object) -> TcmClient:
    if not isinstance(client, TcmClient):
        raise InputError(f"client must be a TcmClient, not {shown(client)}")
    return client


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


# --- what comes out ---


@dataclass(frozen=True)
class _Output:
    """An output as it was declared; the name is None if the only output is meant."""

    name: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of one row

    def empty(self, rows: int) -> npt.NDArray[Any]:
        return np.empty((rows, *self.shape), self.dtype)


def _outputs(
    dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None,
    signature: ModelSignature | None,
    row_shape: tuple[int, ...] | None,
) -> tuple[_Output, ...]:
    """Return the outputs with their dtypes and the shapes of their rows."""
    if dtypes is None:
        if signature is None:
            raise InputError(
                "pass output_dtypes or a signature: a Dask array has its dtype before anything is computed"
            )
        dtypes = signature.output_dtypes
    if not isinstance(dtypes, Mapping):
        only = signature.outputs[0].name if signature is not None and len(signature.outputs) == 1 else None
        if isinstance(shapes, Mapping):
            raise InputError("output_shapes is a mapping, so output_dtypes must be one too")
        return (_Output(None, _dtype(dtypes), _row_shape(only, shapes, signature, row_shape)),)
    if not dtypes:
        raise InputError("output_dtypes names no output")
    if shapes is not None and not isinstance(shapes, Mapping):
        raise InputError("output_dtypes is a mapping, so output_shapes must be one too")
    if unknown := sorted(set(shapes or ()) - set(dtypes)):
        raise InputError(f"output_shapes has {', '.join(unknown)}, which output_dtypes does not name")
    return tuple(
        _Output(name, _dtype(dtype), _row_shape(name, (shapes or {}).get(name), signature, row_shape))
        for name, dtype in dtypes.items()
    )


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        checked: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"output_dtypes: {error}") from None
    return checked


def _row_shape(
    name: str | None,
    shape: Sequence[int] | None,
    signature: ModelSignature | None,
    otherwise: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """Return the shape of one row of an output."""
    what = "the output" if name is None else f'the output "{quote(name)}"'
    if shape is not None:
        sizes = [as_whole(size) for size in shape] if isinstance(shape, Sequence) else [None]
        if any(size is None or size < 0 for size in sizes):
            raise InputError(f"output_shapes: the shape of one row is a tuple of sizes, not {shown(shape)}")
        return tuple(size for size in sizes if size is not None)
    if signature is not None:
        dims = next((spec.dims for spec in signature.outputs if spec.name == name), None)
        row = None if dims is None or signature.batch_axis is None else dims[not signature.batch_axis :]
        if row is None or -1 in row:
            raise InputError(f"the signature has not the shape of one row of {what}: pass output_shapes")
        return row
    if otherwise is None:
        raise InputError(f"pass output_shapes: several inputs do not say what a row of {what} is like")
    return otherwise


# --- blocks ---


class _Carried:
    """A client on its way to the blocks.

    Where it was pickled, it becomes a client for each block anew, on the connections that the process has for
    it: a task in the memory of a worker or of the scheduler holds nothing that would have to be closed.
    """

    def __init__(self, client: TcmClient | bytes) -> None:
        self._client = client

    def get(self) -> TcmClient:
        if isinstance(self._client, TcmClient):
            return self._client
        copy: TcmClient = loads(self._client)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        client = self._client
        return _Carried, (dumps(client) if isinstance(client, TcmClient) else client,)

    def __dask_tokenize__(self) -> object:
        return normalize_token(self.get())


@dataclass(frozen=True)
class _RunBlock:
    """Runs the model on one block; it is what the tasks of a graph have in common."""

    client: _Carried
    model_name: str
    names: tuple[str, ...]
    outputs: tuple[_Output, ...]
    signature: ModelSignature | None
    rows: int | None
    limit: int | None

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
        with _lease(client, self.limit) as concurrency:
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


def _blockwise(function: Any, name: str, output: _Output, pairs: Sequence[object]) -> da.Array:
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


def _checked(output: _Output, result: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
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


# --- the limit of a cluster ---

_semaphores: weakref.WeakKeyDictionary[object, dict[str, Semaphore]] = weakref.WeakKeyDictionary()
_semaphores_lock = threading.Lock()  # guards the dictionaries: several threads of a worker run blocks


@contextlib.contextmanager
def _lease(client: TcmClient, limit: int | None) -> Any:
    """Take one of the leases of the cluster, and give the most messages that may be in flight meanwhile."""
    try:
        worker = get_worker()
    except ValueError:  # another scheduler of Dask's
        limit = None
    if limit is None:
        yield None
        return
    name = f"tcm-sync-{limit}-{tokenize(client._core.settings.uri)}"  # noqa: SLF001
    with _semaphores_lock:
        of_worker = _semaphores.setdefault(worker, {})
        semaphore = of_worker.get(name) or of_worker.setdefault(name, Semaphore(limit, name))
    with semaphore:
        yield 1
