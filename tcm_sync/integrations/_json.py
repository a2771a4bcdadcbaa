"""Results and arrays as values that every JSON encoder can write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tcm_sync.results import InferResult


def to_json(value: object, otherwise: Callable[[Any], Any]) -> Any:
    """Return a result, an array, a scalar of numpy or a mapping as dicts, lists and plain numbers.

    JSON has no NaN and no infinity: in results and arrays they become None.

    Parameters
    ----------
    value : InferResult, ndarray or numpy.generic
        What an encoder cannot write itself.
    otherwise : callable
        The method of the encoder for everything else; called with `value`.
    """
    if isinstance(value, InferResult):
        return {name: _array(array) for name, array in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _array(np.asarray(value))
    if isinstance(value, Mapping):
        return dict(value)
    return otherwise(value)


def _array(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        array = array.astype(object)
        array[~finite] = None
    return array.tolist()
