"""Encode tensors as JSON text, nested as their shapes say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from msgspec import Raw

from tcm_sync._tensors.arrays import without_repeats
from tcm_sync._tensors.datatypes import DATATYPES
from tcm_sync._tensors.inputs import Tensor, check_finite, datatype_if_ready
from tcm_sync._wire.encode import encode_part
from tcm_sync._wire.messages import InputTensor
from tcm_sync.errors import CallTimeoutError

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._deadline import Deadline

# Up to so many elements it is faster to look for null in their text than to ask numpy for infinities. So few
# are never worth shared memory.
_FEW = 256

# Elements that are encoded between two checks of the deadline: some 10 ms.
_PIECE = 2**18

# An array of so many elements is written only if there is memory for so many bytes an element: the longest
# text (25 bytes), in a buffer that orjson doubles while it still has the one before.
_MANY, _MAX_BYTES = 8192, 64


def encode_inputs(tensors: Iterable[Tensor], deadline: Deadline | None = None) -> list[bytes]:
    """Encode tensors as the inputs of a request, as `encode_described` does.

    Raises
    ------
    InputError
        A tensor holds an infinity.
    CallTimeoutError
        The deadline passed while they were encoded.
    """
    return encode_described(
        [(each.name, each.datatype, each.shape, _encode_pieces(each, deadline)) for each in tensors]
    )


def encode_small(inputs: object) -> list[bytes] | None:
    """Check and encode the most frequent kind of inputs in one step: a dict of small arrays of numbers.

    Parameters
    ----------
    inputs : object
        What `check_inputs` takes.

    Returns
    -------
    list of bytes or None
        The same text as `encode_inputs`. None if any of them is unusual, or holds NaN: then `check_inputs`
        and `encode_inputs` are needed.
    """
    if type(inputs) is not dict:
        return None
    pieces: list[bytes] = []
    room = _FEW
    for name, array in inputs.items():
        if type(array) is not np.ndarray or (room := room - array.size) < 0:
            return None
        datatype = datatype_if_ready(name, array)
        if datatype is None:
            return None
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" in text:
            return None
        pieces += (_head(name, datatype, array.shape), text, b"},")
    if pieces:
        pieces[-1] = b"}"
    return pieces or None


def encode_described(inputs: Iterable[tuple[str, str, tuple[int, ...], Sequence[bytes]]]) -> list[bytes]:
    """Encode inputs as the elements of a JSON list, in pieces, so that large texts are not copied.

    Parameters
    ----------
    inputs : iterable of (name, datatype, shape, data)
        `data` is JSON text in pieces.
    """
    pieces: list[bytes] = []
    for name, datatype, shape, data in inputs:
        pieces += (_head(name, datatype, shape), *data, b"},")
    pieces[-1] = b"}"
    return pieces


@lru_cache(maxsize=1024)
def _head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """Encode an input up to its data, which is its last field."""
    return encode_part(InputTensor(name, shape, datatype, Raw(b"null"))).removesuffix(b"null}")


def encode_data(tensor: Tensor) -> bytes:
    """Encode the elements of a tensor, nested as its shape says. The text shares no memory with the array.

    Floats have the fewest digits that identify them within their datatype; NaN is ``null`` (docs/wire.rst,
    "Datatypes").

    Raises
    ------
    InputError
        It holds an infinity, which has no form in JSON.
    MemoryError
        There is none for the text.
    """
    array = tensor.array
    if not array.size:
        return _empty(array.shape)
    if array.size > _FEW:
        check_finite((tensor,))
        return _text_of(array)
    text = _text_of(array)
    if b"null" in text:  # orjson encodes infinities as null too
        check_finite((tensor,))
    return text


def _encode_pieces(tensor: Tensor, deadline: Deadline | None) -> Sequence[bytes]:
    """Encode the elements of a tensor as `encode_data` does, in pieces if there are many."""
    if tensor.array.size <= _PIECE:
        return (encode_data(tensor),)
    check_finite((tensor,))
    pieces = []
    for piece in _pieces_of(tensor.array):
        if deadline is not None and deadline.expired():
            raise CallTimeoutError(
                "the deadline passed while the request was being encoded; nothing was sent",
                elapsed=deadline.elapsed(),
            )
        pieces.append(piece)
    return pieces


def _pieces_of(array: npt.NDArray[Any]) -> Iterator[bytes]:
    """Encode an array some rows at a time; a row that is too long is cut as well."""
    each = array.size // len(array)
    rows = max(1, _PIECE // each)
    for start in range(0, len(array), rows):
        yield b"," if start else b"["
        if each > _PIECE:
            yield from _pieces_of(array[start])
        else:
            yield _text_of(array[start : start + rows])[1:-1]
    yield b"]"


def _text_of(array: npt.NDArray[Any]) -> bytes:
    if array.dtype.kind == "O":
        return orjson.dumps(array.tolist())
    if not array.flags.c_contiguous:  # it repeats an array
        array = np.ascontiguousarray(array)
    if array.size >= _MANY:
        _check_memory(array.size)
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)


def _check_memory(elements: int) -> None:
    """Raise a MemoryError where orjson would get no memory, which ends the process (SIGSEGV)."""
    try:
        np.empty(elements * _MAX_BYTES, np.uint8)
    except MemoryError:
        raise MemoryError(f"there is no memory to write {elements:,} elements as JSON") from None


def _empty(shape: tuple[int, ...]) -> bytes:
    """Encode an array whose last dimension is 0, for which orjson is slow if there are many rows."""
    text = b"[]"
    for size in reversed(shape[:-1]):
        text = b"[%b%b]" % ((text + b",") * (size - 1), text)
    return text


def _empty_bytes(shape: tuple[int, ...]) -> int:
    """Count the bytes of the text of `_empty`."""
    count = 2
    for size in reversed(shape[:-1]):
        count = 2 + size * count + size - 1
    return count


def minimum_json_bytes(tensors: Iterable[Tensor]) -> int:
    """Return a lower bound of the data's size in JSON, without encoding it.

    A message that is far over a limit is refused by it before its text takes time and memory.
    """
    total = 0
    for tensor in tensors:
        if not tensor.array.size:
            total += _empty_bytes(tensor.shape)
            continue
        total += tensor.array.size * DATATYPES[tensor.datatype].json_bytes
        if tensor.datatype == "BYTES":
            once = without_repeats(tensor.array)
            total += sum(map(len, once.ravel().tolist())) * (tensor.array.size // once.size)
    return total
