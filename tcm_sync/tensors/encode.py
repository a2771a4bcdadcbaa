"""Tensors as JSON text, nested as their shapes say."""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from msgspec import Raw

from tcm_sync.tensors.datatypes import DATATYPES
from tcm_sync.tensors.inputs import Tensor
from tcm_sync.wire.messages import InputTensor


def encode_inputs(tensors: Iterable[Tensor]) -> tuple[InputTensor, ...]:
    """Write the data of each tensor as JSON.

    Floats have the fewest digits that identify them within their own datatype; NaN is ``null``
    (docs/wire.rst, "Datatypes"). The text does not refer to the arrays.
    """
    return tuple(
        [InputTensor(tensor.name, tensor.shape, tensor.datatype, Raw(_data(tensor))) for tensor in tensors]
    )


def _data(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return orjson.dumps(tensor.array.tolist())
    return orjson.dumps(tensor.array, option=orjson.OPT_SERIALIZE_NUMPY)


def minimum_json_bytes(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes of JSON the data will have at least, without writing it.

    It is for refusing a message that is hopelessly over a limit before time and memory go into its text.
    """
    total = 0
    for tensor in tensors:
        total += tensor.array.size * DATATYPES[tensor.datatype].json_bytes
        if tensor.datatype == "BYTES":
            total += sum(map(len, tensor.array.ravel().tolist()))
    return total
