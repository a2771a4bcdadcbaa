"""Data frames of any library as inputs, through narwhals: which column goes where, and its rows as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from tcm_sync._arguments import is_iterable
from tcm_sync._numbers import shown
from tcm_sync._tensors.arrays import as_array
from tcm_sync._tensors.casts import cast
from tcm_sync._tensors.columns import columns_of
from tcm_sync._tensors.datatypes import TensorError
from tcm_sync._tensors.signature import possible_shapes
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ConfigError, InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._tensors.signature import ModelSignature, TensorSpec

#: The columns of one input each, by its name: all that are not named in `stack`.
Stack = str | Mapping[str, Sequence[Any]] | None

_NUMBERS = {
    f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits}")
    for kind, sizes in (("Int", (8, 16, 32, 64)), ("UInt", (8, 16, 32, 64)), ("Float", (16, 32, 64)))
    for bits in sizes
}
_DTYPES = {**_NUMBERS, "Boolean": np.dtype(bool)}
_TEXTS = ("String", "Categorical", "Enum")
_OBJECT = np.dtype(object)
_ADVICE = {
    **dict.fromkeys(
        ("Date", "Datetime", "Duration", "Time"),
        "send times as integers of a stated unit, in a column of int64",
    ),
    **dict.fromkeys(
        ("List", "Array", "Struct"), "pass infer_chunked() an array of shape [rows, ...] instead, by its name"
    ),
    "Object": "its values may be of any type; convert it to one of bool, integers, floats or text",
}


class _Input(Struct, frozen=True):
    """An input of the model, and which of the chosen columns it is made of."""

    name: str
    places: tuple[int, ...]
    dims: int  # 1: shape [rows]; 2: [rows, columns]


class Table:
    """A data frame whose columns are the inputs of a model.

    Parameters
    ----------
    frame : data frame
        Of pandas, Polars, pyarrow (a Table), or another library that narwhals reads and that is not lazy.
    columns : sequence, optional
        The names of the columns to use, all by default.
    stack : str or mapping of str to sequence, optional
        The name of the input that all columns make together, or which columns make which. The other columns
        are inputs of their own.
    signature : ModelSignature, optional
        Without `stack` it decides.
    is_meta : bool
        Whether the frame only has the columns of others, as the meta of a Dask DataFrame does, and no rows.

    Raises
    ------
    ConfigError
        narwhals is not installed.
    InputError
        It is no such frame, a column is not there, or one cannot be sent: its dtype has no datatype, or
        values are missing in one of integers, bool or text.
    """

    def __init__(
        self,
        frame: object,
        *,
        columns: Sequence[Any] | None = None,
        stack: Stack = None,
        signature: ModelSignature | None = None,
        is_meta: bool = False,
    ) -> None:
        self._frame = _as_narwhals(frame)
        self.names: list[Any] = list(self._frame.columns)
        if columns is not None:
            self.names = _checked_columns(columns, self.names)
        self.length: int = self._frame.shape[0]
        if not self.names:
            raise InputError("the data frame has no columns")
        if not self.length and not is_meta:
            raise InputError("the data frame has no rows")
        self._dtypes = [_checked_dtype(self._frame.get_column(name)) for name in self.names]
        self._inputs = self._planned(stack, signature)
        self._stacked = [_common_dtype(self.names, self._dtypes, each) for each in self._inputs]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in numpy; a text counts as its reference."""
        return sum(dtype.itemsize for dtype in self._dtypes)

    def take(self, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
        """Return some rows as arrays by the names of the inputs.

        Raises
        ------
        InputError
            A value cannot be sent. The message names the column.
        """
        part = self._frame[start:stop]
        arrays = [
            _values(part.get_column(name), name, dtype)
            for name, dtype in zip(self.names, self._dtypes, strict=True)
        ]
        return {
            each.name: _joined(each, self.names, arrays, dtype)
            for each, dtype in zip(self._inputs, self._stacked, strict=True)
        }

    def like(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Any:
        """Return outputs of all rows as a frame of the same library, with the same index if there is one."""
        import narwhals.stable.v2 as nw

        made: Any = nw.from_dict(columns_of(outputs), backend=self._frame.implementation).to_native()
        index = nw.maybe_get_index(self._frame)
        if index is not None:
            made.index = index
        return made

    def _planned(self, stack: Stack, signature: ModelSignature | None) -> list[_Input]:
        """Decide which columns each input is made of."""
        places = {name: place for place, name in enumerate(self.names)}
        if stack is None and signature is not None:
            return _by_signature(signature, places)
        if stack is None:
            stack = {}
        elif isinstance(stack, str):
            stack = {stack: self.names}
        elif not isinstance(stack, Mapping):
            raise InputError(f"stack must be a name, or a mapping of names to columns, not {shown(stack)}")
        stacked = {name: _checked_columns(columns, self.names) for name, columns in stack.items()}
        used = {column for columns in stacked.values() for column in columns}
        plan = [
            _Input(_input_name(name), tuple(places[column] for column in columns), 2)
            for name, columns in stacked.items()
        ]
        plan += [_Input(_input_name(name), (places[name],), 1) for name in self.names if name not in used]
        if twice := {each.name for each in plan if [other.name for other in plan].count(each.name) > 1}:
            raise InputError(f'the input "{quote(min(twice))}" would be made twice: by stack and by a column')
        return plan


def _as_narwhals(frame: object) -> Any:
    try:
        import narwhals.stable.v2 as nw
    except ImportError:
        raise ConfigError("data frames need narwhals: pip install 'tcm-sync[frames]'") from None
    except OSError as error:  # no descriptor is left
        raise ConfigError(f"data frames need narwhals, which cannot be imported: {error}") from None
    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError:
        raise InputError(
            f"{type(frame).__module__.partition('.')[0]}.{type(frame).__name__} is not a data frame in "
            "memory: pass a pandas DataFrame, a polars DataFrame (.collect() makes one) or a pyarrow Table"
        ) from None
    except ValueError as error:  # two columns of one name
        raise InputError(f"the data frame cannot be read: {error}") from None


def _checked_columns(columns: object, there: Sequence[Any]) -> list[Any]:
    """Return names of columns as a list, or raise if one is not in the frame or is named twice."""
    if isinstance(columns, (str, bytes)) or not is_iterable(columns) or not isinstance(columns, Iterable):
        raise InputError(f"columns must be a sequence of names, not {shown(columns)}")
    names = list(columns)
    if not names:
        raise InputError("columns names no column")
    known, seen = set(there), set()
    for name in names:
        if not _is_among(name, known):
            listed = ", ".join(map(_named, there))
            raise InputError(f"the data frame has no column {_named(name)}; its columns are {listed}")
        if name in seen:
            raise InputError(f"column {_named(name)} is named twice")
        seen.add(name)
    return names


def _is_among(name: object, names: set[Any]) -> bool:
    try:
        return name in names  # of a set: elements of arrays do not compare with texts
    except TypeError:  # it is not hashable
        return False


def _named(column: object) -> str:
    return f'"{quote(column)}"' if isinstance(column, str) else shown(column)


def _input_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InputError(
            f"the name of an input must be a non-empty text, not {shown(name)}: rename the column, or pass "
            "infer_frame(..., stack=NAME) for one input of all columns"
        )
    return name


def _checked_dtype(column: Any) -> np.dtype[Any]:
    """Return the numpy dtype of a column, or raise if it cannot be sent."""
    kind = str(column.dtype).partition("(")[0]
    where = f"column {_named(column.name)}"
    dtype = _OBJECT if kind in _TEXTS else _DTYPES.get(kind)
    if dtype is None:
        advice = _ADVICE.get(kind, "convert it to one of bool, integers, floats or text")
        native = column.to_native()  # whose dtype narwhals may not know
        named = getattr(native, "dtype", getattr(native, "type", column.dtype))
        raise InputError(f"{where} is of dtype {named}, which has no datatype: {advice}")
    missing = 0 if dtype.kind == "f" else column.null_count()  # a missing float is NaN
    if missing:
        raise InputError(
            f"{where}: {missing:,} of {len(column):,} values are missing, and {column.dtype} has no value "
            f"for that on the wire; fill them{', or' if kind in _TEXTS else ','} drop their rows"
            f"{'' if kind in _TEXTS else ', or make them floats (NaN can be sent)'}"
        )
    return dtype


def _values(column: Any, name: object, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the values of some rows of a column as an array of the dtype that the column has."""
    try:
        if dtype != _OBJECT:
            array: npt.NDArray[Any] = column.to_numpy()
            if array.dtype == _OBJECT and dtype.kind != "f":  # nullable ones of older releases of pandas
                array = array.astype(dtype)
            if array.dtype != dtype:
                raise TensorError(f"became {array.dtype} in the conversion to numpy, not {dtype}")
            return array
        array = as_array(column.to_list())
        if array.dtype != _OBJECT:
            raise TensorError(
                f"is of dtype {column.dtype} and has values that are not text; convert them to text"
            )
        return array
    except TensorError as reason:
        raise InputError(f"column {_named(name)}: {reason}") from None


def _common_dtype(names: list[Any], dtypes: list[np.dtype[Any]], made: _Input) -> np.dtype[Any]:
    """Return the dtype that the columns of one input share; integers beside floats become floats."""
    ours = [dtypes[place] for place in made.places]
    words = {"b": "bool", "O": "text"}
    kinds: dict[str, Any] = {}
    for place, dtype in zip(made.places, ours, strict=True):
        kinds.setdefault(words.get(dtype.kind, "numbers"), names[place])
    if len(kinds) > 1:
        mixed = " and ".join(f"{kind} in column {_named(name)}" for kind, name in kinds.items())
        raise InputError(f'input "{quote(made.name)}" would mix {mixed}; send them as inputs of their own')
    for kind in "fiu":  # floats win over integers, and signed integers over unsigned ones
        if some := [dtype for dtype in ours if dtype.kind == kind]:
            widest = max(some, key=lambda dtype: dtype.itemsize)
            return widest if kind != "i" or len(some) == len(ours) else np.dtype(np.int64)
    return ours[0]


def _joined(
    made: _Input, names: list[Any], arrays: list[npt.NDArray[Any]], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return the array of one input."""
    if len(made.places) == 1:
        array = arrays[made.places[0]]
        return array if made.dims == 1 else array.reshape(-1, 1)
    whole = np.empty((len(arrays[made.places[0]]), len(made.places)), dtype)
    for target, place in enumerate(made.places):
        try:
            whole[:, target] = cast(arrays[place], dtype, dtype)
        except TensorError as reason:
            raise InputError(f"column {_named(names[place])}: {reason}") from None
    return whole


def _by_signature(signature: ModelSignature, places: Mapping[Any, int]) -> list[_Input]:
    """Give each input the column of its name, or the only input all columns."""
    specs = {spec.name: spec for spec in signature.inputs}
    needed = [spec for spec in signature.inputs if not spec.optional]
    if len(needed) == 1 and _takes_all(signature, needed[0], places):
        return [_Input(needed[0].name, tuple(places.values()), 2)]
    wrong = [f"no column for the input {_named(spec.name)}" for spec in needed if spec.name not in places]
    wrong += [f"no input for the column {_named(name)}" for name in places if name not in specs]
    if wrong:
        raise InputError(
            f"the data frame does not fit the model's signature: {', '.join(wrong)}; "
            "Model.infer_frame(frame, columns=..., stack=...) says which columns are used, and how"
        )
    return [_Input(name, (place,), _dims_of(signature, specs[name])) for name, place in places.items()]


def _takes_all(signature: ModelSignature, spec: TensorSpec, places: Mapping[Any, int]) -> bool:
    """Return whether an input takes the matrix of all columns."""
    if spec.name not in places and any(each.name in places for each in signature.inputs):
        return False
    if spec.dims is None:
        return spec.name not in places
    widths = {form[1] for form in possible_shapes(signature, spec) if len(form) == 2}
    if spec.name in places:  # then only if nothing else fits
        return len(places) > 1 and len(places) in widths
    return bool(widths)


def _dims_of(signature: ModelSignature, spec: TensorSpec) -> int:
    """Return whether a column becomes [rows] or [rows, 1]."""
    forms = [] if spec.dims is None else possible_shapes(signature, spec)
    if any(len(form) == 2 and form[1] in (-1, 1) for form in forms) and (-1,) not in forms:
        return 2
    return 1
