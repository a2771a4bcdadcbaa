"""The outputs of a model as the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt


def check_is_table(outputs: Mapping[str, npt.NDArray[Any]], advice: str) -> None:
    """Refuse an output that is neither one column nor several, with what to do instead."""
    for name, array in outputs.items():
        if array.ndim not in (1, 2):
            shape = ", ".join(["rows", *map(str, array.shape[1:])]) if array.ndim else ""
            raise InputError(
                f'output "{quote(name)}" has the shape [{shape}], and a table takes [rows] or '
                f"[rows, columns]: {advice}"
            )
        if array.ndim == 2 and array.shape[1] == 0:
            raise InputError(
                f'output "{quote(name)}" has the shape [rows, 0], which makes no column: {advice}'
            )


def columns_of(
    outputs: Mapping[str, npt.NDArray[Any]], advice: str = "take it from the result by its name"
) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs as columns of one length, by name.

    Parameters
    ----------
    outputs : mapping of str to ndarray
        Of shape [rows] or [rows, 1], which are a column of the output's name each; or [rows, n], which are
        ``NAME_0`` to ``NAME_{n-1}``.
    advice : str
        What to do with an output of another shape.

    Raises
    ------
    InputError
        An output has another shape, two columns would have one name, or the numbers of rows differ.
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    check_is_table(outputs, advice)
    for name, array in outputs.items():
        for column, values in _split(name, array).items():
            if column in columns:
                raise InputError(f'two columns would be called "{quote(column)}"; take the arrays by name')
            columns[column] = values
    lengths = {name: array.shape[0] for name, array in outputs.items()}
    if len(set(lengths.values())) > 1:
        rows = ", ".join(f'"{quote(name)}" has {length}' for name, length in lengths.items())
        raise InputError(f"the outputs are no table, since their numbers of rows differ: {rows}")
    return columns


def _split(name: str, array: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    if array.ndim == 1:
        return {name: array}
    if array.shape[1] == 1:
        return {name: array[:, 0]}
    return {f"{name}_{place}": array[:, place] for place in range(array.shape[1])}
