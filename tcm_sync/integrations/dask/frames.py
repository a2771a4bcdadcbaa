"""`infer_frame`: a model over the partitions of a Dask data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcm_sync._calls.chunked import checked_rows
from tcm_sync._tensors.columns import columns_of
from tcm_sync._tensors.tables import Table
from tcm_sync._tracebacks import shortened
from tcm_sync.errors import InputError, TcmError
from tcm_sync.integrations.dask.clients import BlockClient, checked_client
from tcm_sync.integrations.dask.limit import Limit, checked_limit, lease
from tcm_sync.integrations.dask.outputs import Output, declared_outputs

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from tcm_sync._tensors import ModelSignature
    from tcm_sync.client import TcmClient


def infer_frame(
    ddf: Any,
    model_name: str,
    *,
    client: TcmClient,
    columns: Sequence[Any] | None = None,
    stack: str | Mapping[str, Sequence[Any]] | None = None,
    output_dtypes: Mapping[str, npt.DTypeLike] | None = None,
    output_shapes: Mapping[str, Sequence[int]] | None = None,
    signature: ModelSignature | None = None,
    rows: int | None = None,
    limit: Limit = "auto",
) -> Any:
    """Run a model on the rows of a Dask data frame, partition by partition, when the result is computed.

    Each partition is sent as `TcmClient.infer_frame` sends a frame, repeated as the client's retry policy
    says. The name of the result depends only on the arguments, so that equal calls share their partitions.
    Models keep rows apart: the output of a row depends on that row alone. Needs the extra ``frames``.

    Parameters
    ----------
    ddf : dask.dataframe.DataFrame
        The rows. By default each column is an input of its name.
    model_name : str
        The model.
    client : TcmClient
        As `infer_array` takes it.
    columns, stack
        As `TcmClient.infer_frame` takes them.
    output_dtypes : mapping of str to dtype, optional
        The dtypes of the wanted outputs by name. Left out, the signature's.
    output_shapes : mapping of str to sequence of int, optional
        The shape of one row of an output: ``()``, which is one column, or ``(n,)``, which is n columns. Left
        out, the signature's, or ``()``.
    signature : ModelSignature, optional
        Which columns are which inputs, as `Model.infer_frame` uses it; no message has more rows than its
        ``max_batch_size``.
    rows, limit
        As `infer_array` takes them.

    Returns
    -------
    dask.dataframe.DataFrame
        One row for each of `ddf`, with its index and divisions. An output of one column has its name, one of
        n columns is ``NAME_0`` to ``NAME_{n-1}``.

    Raises
    ------
    ConfigError
        narwhals is not installed.
    InputError
        An argument is wrong, or a column has a dtype that cannot be sent. When a partition is computed: its
        values were refused, or the outputs are not as they were declared.
    TcmError
        When a partition is computed: it failed; the message names the partition.

    Examples
    --------
    >>> scores = infer_frame(ddf, "scores", client=client,
    ...                      output_dtypes={"score": np.float32})  # doctest: +SKIP
    """
    checked_client(client).model(model_name, signature=signature)  # checks them, and that there is a route
    rows, limit = checked_rows(rows), checked_limit(limit)
    _check_frame(ddf)
    columns = None if columns is None else list(columns)
    Table(ddf._meta, columns=columns, stack=stack, signature=signature, is_meta=True)  # noqa: SLF001
    if output_dtypes is not None and not isinstance(output_dtypes, Mapping):
        raise InputError("output_dtypes must be a mapping: the names of the outputs become those of columns")
    outputs = declared_outputs(output_dtypes, output_shapes, signature, ())
    meta = _meta(outputs, ddf._meta.index)  # noqa: SLF001
    run = _RunPartition(
        BlockClient(client),
        model_name,
        columns,
        stack,
        outputs,
        signature,
        rows,
        limit,
        meta.reset_index(drop=True),
    )
    return ddf.map_partitions(run, meta=meta, enforce_metadata=False)


def _check_frame(ddf: object) -> None:
    try:
        import dask.dataframe as dd
    except ImportError as error:
        raise shortened(
            ImportError(f"infer_frame needs dask.dataframe: pip install 'dask[dataframe]' ({error})")
        ) from None
    if not isinstance(ddf, dd.DataFrame):
        raise InputError(
            f"the frame must be a Dask DataFrame, not {type(ddf).__name__}: dask.dataframe.from_pandas makes "
            "one of a pandas DataFrame, and to_frame() one of a Series"
        )
    import pandas as pd  # which dask.dataframe needs

    meta = ddf._meta  # noqa: SLF001
    if not isinstance(meta, pd.DataFrame):
        library = type(meta).__module__.partition(".")[0]
        raise InputError(
            f"the partitions must be pandas DataFrames, not those of {library}: "
            'ddf.to_backend("pandas") converts them'
        )


def _meta(outputs: Sequence[Output], index: pd.Index[Any]) -> pd.DataFrame:
    """Return an empty frame like the result."""
    import pandas as pd

    empty = columns_of(
        {str(output.name): output.empty(0) for output in outputs},
        "pass output_dtypes with only the outputs that make columns; infer_array() returns the others",
    )
    text = pd.Series([""]).iloc[:0].array  # of the dtype that pandas gives to a column of text
    return pd.DataFrame(
        {name: text if values.dtype == object else values for name, values in empty.items()}, index=index
    )


@dataclass(frozen=True)
class _RunPartition:
    """Runs the model on one partition."""

    client: BlockClient
    model_name: str
    columns: list[Any] | None
    stack: str | Mapping[str, Sequence[Any]] | None
    outputs: tuple[Output, ...]
    signature: ModelSignature | None
    rows: int | None
    limit: Limit
    meta: pd.DataFrame  # with an index of its own

    __name__ = "tcm-infer"  # what Dask calls the tasks

    def __call__(self, frame: pd.DataFrame, partition_info: Mapping[str, Any] | None = None) -> pd.DataFrame:
        if len(frame) == 0:
            return self.meta.set_axis(frame.index)
        try:
            return self._run(frame)
        except TcmError as error:
            number = "" if partition_info is None else f" {partition_info['number']}"
            error.args = (f"partition{number}: {error.message}",)
            error.model_name = error.model_name or self.model_name
            raise

    def _run(self, frame: pd.DataFrame) -> pd.DataFrame:
        client = self.client.get()
        model = client.model(self.model_name, signature=self.signature)
        with lease(client, self.limit) as concurrency:
            found: pd.DataFrame = model.infer_frame(
                frame,
                columns=self.columns,
                stack=self.stack,
                outputs=[str(output.name) for output in self.outputs],
                rows=self.rows,
                output_dtypes={str(output.name): output.dtype for output in self.outputs},
                concurrency=concurrency,
            )
        wanted = list(self.meta.columns)
        if missing := [name for name in wanted if name not in found.columns]:
            raise InputError(
                f"the outputs make the columns {', '.join(map(str, found.columns))}, and not "
                f"{', '.join(missing)}: output_dtypes and output_shapes must say what the model returns"
            )
        return found[wanted].astype(self.meta.dtypes.to_dict())
