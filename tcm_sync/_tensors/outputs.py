"""Decode the JSON of a reply, which has neither dtypes nor shapes, to arrays (docs/wire.rst, "Inference").

Large arrays are decoded in pieces (`tcm_sync._tensors.pieces`), others at once (`tcm_sync._tensors.lists`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tcm_sync._handlers import is_of_handler
from tcm_sync._numbers import shown
from tcm_sync._tensors.arrays import MAX_DIMENSIONS
from tcm_sync._tensors.casts import cast
from tcm_sync._tensors.datatypes import DATATYPES, TensorError, datatype_of
from tcm_sync._tensors.lists import Text, decode_lists
from tcm_sync._tensors.pieces import MEDIUM, decode_in_pieces, has_any, is_for_pieces
from tcm_sync._tensors.text_pieces import decode_texts_in_pieces
from tcm_sync._wire.quote import quote
from tcm_sync._wire.split_json import SplitJson
from tcm_sync._wire.unreadable import UNREADABLE, out_of_memory, why_unreadable
from tcm_sync.errors import InputError, ProtocolError

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._deadline import Deadline

_BRACKETS = re.compile(rb"[\[ \t\r\n]*")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])

Data = bytes | msgspec.Raw | SplitJson


class OutputDtypes(msgspec.Struct, frozen=True, eq=False):
    """The output dtypes that a caller wants, checked.

    Attributes
    ----------
    default : numpy.dtype or None
        The dtype of the outputs that `named` does not name; None for numpy's reading of the JSON.
    named : mapping of str to numpy.dtype
    """

    default: np.dtype[Any] | None
    named: Mapping[str, np.dtype[Any]]

    @property
    def are_stated(self) -> bool:
        """Whether the caller wants any."""
        return self.default is not None or bool(self.named)


_UNSTATED = OutputDtypes(None, {})


def check_output_dtypes(output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None) -> OutputDtypes:
    """Check the output dtypes that a caller wants, before anything is sent.

    Parameters
    ----------
    output_dtypes : mapping of str to dtype_like, or dtype_like, or None
        One dtype for each output named, or one for all: bool, an integer, a float up to 64 bits; for text
        `str` or `object` (of `str`), or `bytes`.

    Raises
    ------
    InputError
        It is not one that an output can have.
    """
    if output_dtypes is None:
        return _UNSTATED
    if isinstance(output_dtypes, (type, str, np.dtype)):  # all of them hashable
        return _for_all(output_dtypes)  # type: ignore[arg-type]
    if not isinstance(output_dtypes, Mapping):
        return OutputDtypes(_checked_dtype(output_dtypes, "output_dtypes"), {})
    for name in output_dtypes:
        if not isinstance(name, str):
            raise InputError(f"output_dtypes: the name of an output must be a str, not {shown(name)}")
    return OutputDtypes(
        None,
        {
            name: _checked_dtype(wanted, f'output_dtypes["{quote(name)}"]')
            for name, wanted in output_dtypes.items()
        },
    )


@functools.lru_cache(maxsize=64)
def _for_all(wanted: Hashable) -> OutputDtypes:
    return OutputDtypes(_checked_dtype(wanted, "output_dtypes"), {})


def _checked_dtype(wanted: Any, where: str) -> np.dtype[Any]:
    if isinstance(wanted, str) and wanted in DATATYPES:
        right = "str" if wanted == "BYTES" else str(DATATYPES[wanted].dtype)
        raise InputError(f"{where}: {wanted} is a datatype of the wire; the numpy dtype is {right}")
    if wanted is None:  # numpy reads it as float64
        raise InputError(f"{where}: None is not a dtype; leave the output out for the JSON's own type")
    try:
        dtype: np.dtype[Any] = np.dtype(wanted)
        if dtype.kind in "US" and dtype.itemsize == 0:
            return dtype
        datatype_of(dtype)
    except Exception as error:
        if is_of_handler(error):
            raise
        raise InputError(f"{where}: {shown(wanted)} cannot be the dtype of an output: {error}") from error
    return dtype


def decode_outputs(
    data: Data, dtypes: OutputDtypes = _UNSTATED, deadline: Deadline | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Decode the data of a completed inference to arrays.

    Parameters
    ----------
    data : bytes, msgspec.Raw or SplitJson
        JSON: an object of nested lists by the outputs' names. A bare string, number or bool is one
        element, of shape (1,).
    dtypes : OutputDtypes
        The dtypes that the caller wants, from `check_output_dtypes`.
    deadline : Deadline, optional
        The call's. It is checked while large outputs are decoded.

    Returns
    -------
    dict of str to ndarray
        Writable, owning their memory, of the dtypes in `dtypes`; decimals are rounded to the nearest float,
        ``null`` is NaN. Without a dtype: float64, int64 (uint64 if a value needs it), bool, or an object
        array of `str`; an empty list is float64.

    Raises
    ------
    ProtocolError
        The JSON is invalid, nested too deeply, or not an object; an output is ragged, mixed or a bare
        ``null``, or does not fit its dtype. The message names the output.
    InputError
        `dtypes` names an output that the reply does not have.
    CallTimeoutError
        The deadline passed meanwhile.
    MessageTooLargeError
        There is not enough memory for the arrays.
    """
    try:
        texts = _split_by_output(data) if isinstance(data, SplitJson) else _object.decode(data)
        return _arrays(texts, dtypes, deadline)
    except MemoryError:
        raise out_of_memory(data.size() if isinstance(data, SplitJson) else len(data)) from None
    except UNREADABLE as error:
        text = data.text if isinstance(data, SplitJson) else bytes(data)
        reason = why_unreadable(error, text, wrong_form="it is not a JSON object")
        raise ProtocolError(f"the outputs of the inference cannot be read: {reason}") from None


def _split_by_output(data: SplitJson) -> Mapping[str, Text]:
    """Cut large data into the texts of its outputs."""
    texts: dict[str, Text] = {}
    for name, value in _object.decode(data.text).items():
        array = data.array(text := bytes(value))
        if array is None and data.has_sequence(text):
            raise ProtocolError(f'output "{quote(name)}": it has text among numbers')
        texts[name] = text if array is None else array
    if sum(type(text) is memoryview for text in texts.values()) == len(data.arrays):
        return texts
    return _object.decode(bytes(data))  # an array is only a part of an output


def _arrays(
    texts: Mapping[str, Text], dtypes: OutputDtypes, deadline: Deadline | None
) -> dict[str, npt.NDArray[Any]]:
    for name in dtypes.named:
        if name not in texts:
            there = ", ".join(f'"{quote(name)}"' for name in list(texts)[:20]) or "none"
            raise InputError(f'output_dtypes: there is no output "{quote(name)}"; there are: {there}')
    arrays = {}
    for name, text in texts.items():
        try:
            arrays[name] = _decode(text, dtypes.named.get(name, dtypes.default), deadline)
        except TensorError as reason:
            raise ProtocolError(f'output "{quote(name)}": {reason}') from None
    return arrays


def _decode(text: Text, dtype: np.dtype[Any] | None, deadline: Deadline | None) -> npt.NDArray[Any]:
    """Make the array of one output."""
    brackets: bytes = _BRACKETS.match(text).group()  # type: ignore[union-attr]  # maybe empty
    depth = brackets.count(b"[")
    if depth > MAX_DIMENSIONS:
        raise TensorError(f"nested more than {MAX_DIMENSIONS} deep")
    if depth and len(text) >= MEDIUM and is_for_pieces(view := memoryview(text)):
        kind = dtype.kind if dtype is not None else _kind_in(view, len(brackets))
        if kind in "biuf":
            return decode_in_pieces(view, depth, kind, dtype, deadline)
        if bytes(view[len(brackets) : len(brackets) + 1]) == b"]":  # no text at all
            return decode_in_pieces(view, depth, "f", None, deadline).astype(object)
        return decode_texts_in_pieces(view, depth, deadline, encode=kind == "S")
    kind = dtype.kind if dtype is not None else _kind_in(bytes(text), len(brackets))
    if depth == 0:
        text = bytes(text)
        if text == b"null":  # among other elements it is NaN; alone the output may be missing
            raise TensorError("null in place of a tensor")
        text, depth = b"[%b]" % text, 1
    array = decode_lists(text, depth, kind, dtype)
    if kind == "S":
        return _as_bytes(array)
    return array if dtype is None or kind in "fOU" else cast(array, dtype, dtype)


def _kind_in(text: bytes | memoryview, start: int) -> str:
    """Return the kind of dtype of the first element; the decoder refuses elements of other kinds."""
    first = bytes(text[start : start + 1])
    if first == b'"':
        return "O"
    if first in (b"t", b"f"):
        return "b"
    if first == b"]":
        return "f"
    if isinstance(text, bytes):
        is_float = b"." in text or b"e" in text or b"E" in text or b"null" in text
    else:
        is_float = has_any(text, (b".", b"e", b"E", b"n"))  # n is of null
    return "f" if is_float else "i"


def _as_bytes(text: npt.NDArray[Any]) -> npt.NDArray[Any]:
    encoded = np.empty(text.shape, dtype=object)
    encoded.reshape(-1)[:] = [element.encode() for element in text.ravel()]
    return encoded
