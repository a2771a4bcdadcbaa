"""A model that is ready to run, and the check of a request against what it declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ModelFunction = Callable[[dict[str, Any]], Mapping[str, Any] | Iterator[Any]]


class MissingInputError(KeyError):
    """A model's function reads an input that the request does not have; in the words of Triton."""

    __str__ = Exception.__str__  # a KeyError's is the repr of its text


class Inputs(dict[str, Any]):
    """The inputs of a request as a model's function gets them."""

    def __missing__(self, name: str) -> Any:
        raise MissingInputError(
            f"the function of the model reads an input that the request does not have. Got input(s) "
            f"{_quoted(list(self))}, but missing required input(s) {_quoted([str(name)])}."
        )


class TensorSpec(NamedTuple):
    """An input or output as a model declares it: Triton datatype, and dims (-1 is any; None is any shape)."""

    name: str
    datatype: str
    dims: tuple[int, ...] | None


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes
    ----------
    name : str
        Its name in requests.
    run : callable
        Takes a dict of arrays by input name, returns a mapping of array-likes by output name, or an iterator
        of chunks. Any thread may call it, several at a time.
    inputs : tuple of TensorSpec or None
        The declared inputs; None for a callable, which takes any inputs.
    outputs : tuple of TensorSpec
        The declared outputs; empty for a callable.
    max_batch_size : int or None
        The most rows of a request, as in Triton's configuration: the first dimension of every input is the
        batch. 0 is a model without a batch; None is unknown, and nothing is checked.
    decoupled : bool
        Whether it streams for certain: it is a generator function, or its ``__call__`` is one.
    """

    name: str
    run: ModelFunction
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] = ()
    max_batch_size: int | None = None
    decoupled: bool = False

    def check(self, datatypes: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Compare a request with the declared inputs; the messages are Triton's.

        Raises
        ------
        ValueError
            If they do not fit.
        """
        if self.inputs is not None:
            self._check_names(self.inputs, arrays)
        if self.max_batch_size:
            self._check_batch(self.max_batch_size, arrays)
        declared = {spec.name: spec for spec in self.inputs or ()}
        for name in reversed(list(arrays)):  # Triton looks at the last one first
            if name in declared:
                self._check_input(declared[name], datatypes[name], arrays[name].shape)

    def _check_names(self, inputs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]]) -> None:
        if missing := [spec.name for spec in inputs if spec.name not in arrays]:
            raise ValueError(
                f"[400] [request id: <id_unknown>] expected {len(inputs)} inputs but got {len(arrays)} "
                f"inputs for model '{self.name}'. Got input(s) {_quoted(list(arrays))}, but missing required "
                f"input(s) {_quoted(missing)}. Please provide all required input(s)."
            )
        declared = {spec.name for spec in inputs}
        for name in arrays:
            if name not in declared:
                raise ValueError(
                    f"[400] [request id: <id_unknown>] unexpected inference input '{name}' "
                    f"for model '{self.name}'"
                )

    def _check_batch(self, most: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        rows = {name: array.shape[0] for name, array in arrays.items()}
        batch = next(iter(rows.values()), 0)
        if other := next((name for name, size in rows.items() if size != batch), None):
            raise ValueError(
                f"[400] [request id: <id_unknown>] input '{other}' batch size does not match other inputs "
                f"for '{self.name}'"
            )
        if batch > most:
            raise ValueError(
                f"[400] [request id: <id_unknown>] inference request batch-size must be <= {most} "
                f"for '{self.name}'"
            )

    def _check_input(self, spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
        if datatype != spec.datatype:
            raise ValueError(
                f"[400] [request id: <id_unknown>] inference input '{spec.name}' data-type is '{datatype}', "
                f"but model '{self.name}' expects '{spec.datatype}'"
            )
        dims = spec.dims
        if dims is None or _fits(shape, dims):
            return
        message = (
            f"[400] [request id: <id_unknown>] unexpected shape for input '{spec.name}' for model "
            f"'{self.name}'. Expected {_listed(dims)}, got {_listed(shape)}."
        )
        most = self.max_batch_size
        if most is None and dims and dims[0] == -1:
            most = 1  # at least: without a configuration Triton batches such a model
        if most:
            message += _BATCHING_NOTE
        raise ValueError(message)


_BATCHING_NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended "
    "to each input shape. If you want to specify the full shape including the batch dim in your input dims "
    "config, try setting max_batch_size to zero. See the model configuration docs for more info on "
    "max_batch_size."
)


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) and all(
        wanted in (-1, size) for size, wanted in zip(shape, dims, strict=True)
    )


def _listed(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def _quoted(names: Sequence[str]) -> str:
    return "['" + "','".join(names) + "']"
