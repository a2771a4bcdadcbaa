"""The datatypes that the wire can carry, and their numpy dtypes (docs/wire.rst, "Datatypes")."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from tcm_sync._numbers import shown


class TensorError(Exception):
    """Data cannot be a tensor, and why. Callers turn it into an error for users, with the tensor's name."""


class Datatype(msgspec.Struct, frozen=True):
    """One of Triton's datatypes.

    Attributes
    ----------
    name : str
        Its name in Triton and on the wire.
    dtype : numpy.dtype
        Its numpy dtype, in native byte order; ``object`` (of `str`) for BYTES.
    itemsize : int or None
        Bytes of an element in Triton's memory; None for BYTES, whose elements differ.
    json_bytes : int
        The fewest bytes that an element and its separator take in JSON.
    """

    name: str
    dtype: np.dtype[Any]
    itemsize: int | None
    json_bytes: int


def _table() -> dict[str, Datatype]:
    numbers = [
        *((f"UINT{bits}", f"uint{bits}", 2) for bits in (8, 16, 32, 64)),
        *((f"INT{bits}", f"int{bits}", 2) for bits in (8, 16, 32, 64)),
        *((f"FP{bits}", f"float{bits}", 4) for bits in (16, 32, 64)),
    ]
    table = {"BOOL": Datatype("BOOL", np.dtype(bool), 1, 5)}
    for name, numpy_name, json_bytes in numbers:
        dtype = np.dtype(numpy_name)
        table[name] = Datatype(name, dtype, dtype.itemsize, json_bytes)
    table["BYTES"] = Datatype("BYTES", np.dtype(object), None, 3)
    return table


#: Every datatype of the wire by its name.
DATATYPES: Mapping[str, Datatype] = MappingProxyType(_table())

_BY_DTYPE = {datatype.dtype: datatype for datatype in DATATYPES.values()}

#: The datatypes of numbers by the dtype in native byte order.
NATIVE_NUMBERS = {dtype: datatype for dtype, datatype in _BY_DTYPE.items() if dtype.kind != "O"}

_TYPE_PREFIX = "TYPE_"
_NAMES = ", ".join(DATATYPES)


def datatype_named(name: object) -> Datatype:
    """Return the datatype that a request states.

    Parameters
    ----------
    name : str
        A name in `DATATYPES`, or its form in model configurations: ``TYPE_FP32``, and ``TYPE_STRING`` for
        BYTES.

    Raises
    ------
    TensorError
        There is no such datatype, or the wire cannot carry it.
    """
    if isinstance(name, str):
        plain = "BYTES" if name == "TYPE_STRING" else name.removeprefix(_TYPE_PREFIX)
        if plain in DATATYPES:
            return DATATYPES[plain]
        if plain == "BF16":
            raise TensorError("BF16 has no form in JSON; FP32 holds every value of it")
    raise TensorError(f"{shown(name)} is not a datatype; the datatypes are {_NAMES}")


def datatype_of(dtype: np.dtype[Any]) -> Datatype:
    """Return the datatype that carries a numpy dtype of either byte order.

    Raises
    ------
    TensorError
        There is none; the message says what to do.
    """
    found = _BY_DTYPE.get(dtype)
    if found is None and not dtype.isnative:
        found = _BY_DTYPE.get(dtype.newbyteorder("="))
    if found is None:
        raise TensorError(_advice(dtype))
    return found


def _advice(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "c":
        return f"{dtype} has no datatype; send .real and .imag as two tensors"
    if dtype.kind in "mM":
        return f"{dtype} has no datatype; send integers, .astype('int64') of a stated unit"
    if dtype.names is not None:
        return f"{shown(dtype)} is structured; send each field as a tensor of its own"
    if dtype.kind == "f" and dtype.itemsize > 8:
        return f"{dtype} (longdouble) has no datatype; send .astype('float64')"
    if dtype.name == "bfloat16":
        return "bfloat16 (BF16) has no form in JSON; send .astype('float32'), as FP32"
    return f"{shown(dtype)} has no datatype; use .astype() to make it bool, int, float or str"
