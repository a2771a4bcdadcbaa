"""Copy an ONNX file without its weights, so that protobuf parses only what an analysis needs.

protobuf keeps a copy of every field beside the file's bytes, which would take twice the size of the file for
weights that are not needed. So they are left out before parsing. Only tags and lengths are decoded here, to
find where each field ends (https://protobuf.dev/programming-guides/encoding). The numbers of the fields come
from onnx's descriptors.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from tcm_sync.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PARTS = 10_000_000  # fields that are read, in some 10 s
MAX_KEPT = 1_000_000  # fields that are kept; parsed, each takes some hundred bytes
MAX_BYTES = 16 * 1024 * 1024  # bytes that are kept: parsed, they may take a hundred times as much memory
MAX_DEPTH = 100  # levels of nested messages, which is protobuf's limit

_WINDOW = 16 * 1024  # bytes of a file that are read at a time
_MAX_VARINT_BYTES = 10  # bytes

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

#: The fields that are kept of each type of message. Messages of other types are kept whole.
_KEPT = {
    "ModelProto": (
        "ir_version",
        "opset_import",
        "producer_name",
        "producer_version",
        "domain",
        "model_version",
        "graph",
        "functions",
    ),
    "GraphProto": ("name", "node", "initializer", "sparse_initializer", "input", "output"),
    "FunctionProto": ("node",),
    "NodeProto": ("attribute",),
    "AttributeProto": ("t", "g", "tensors", "graphs", "sparse_tensor", "sparse_tensors"),
    "SparseTensorProto": ("values", "indices"),
    "TensorProto": ("dims", "data_type", "name", "external_data", "data_location"),
}
#: Lists that may have millions of elements, each with its own tag. An attribute has one value, so nothing
#: that is needed follows them.
_ENDING = ("floats", "ints", "strings")

_WHOLE: dict[int, Any] = {}  # marks a field that is kept as it is
_END: dict[int, Any] = {}  # marks a field after which nothing of its message is kept


class FileBytes:
    """The bytes of an open file.

    It is read and not mapped: if another process truncates a mapped file, reading the mapping ends this
    process with a signal.

    Parameters
    ----------
    descriptor : int
        Of the file, which stays open.
    size : int
        Its size in bytes.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self, start: int, size: int) -> bytes:
        """Read so many bytes, or those up to the end of the file.

        Raises
        ------
        ModelFileError
            The file is shorter than it was.
        OSError
            It cannot be read.
        """
        left = min(size, self._size - start)
        parts = []
        while left > 0:
            part = os.pread(self._descriptor, left, start)
            if not part:
                raise ModelFileError(f"it was truncated while it was read: byte {start:,} is gone")
            parts.append(part)
            start += len(part)
            left -= len(part)
        return b"".join(parts)


def strip_weights(data: bytes | FileBytes) -> bytes:
    """Return an ONNX model without weights, nodes' plain attributes, and documentation.

    Parameters
    ----------
    data : bytes or FileBytes
        A serialised ``ModelProto``. Of a file only those parts are read that hold tags and names.

    Raises
    ------
    ModelFileError
        It is truncated, nested too deeply, or has too many parts.
    OSError
        The file cannot be read.
    """
    return _WeightStripper(data).message(0, len(data), _table()["ModelProto"], 0)


@functools.cache
def _table() -> Mapping[str, dict[int, Any]]:
    """Return, for each type of message, how to handle its fields, by their numbers."""
    from onnx import ModelProto

    table: dict[str, dict[int, Any]] = {name: {} for name in _KEPT}

    def fill(descriptor: Any) -> None:
        fields = table[descriptor.name]
        if fields:
            return
        for name in _KEPT[descriptor.name]:
            field = descriptor.fields_by_name.get(name)
            if field is None:  # an older onnx
                continue
            inner = field.message_type
            known = inner is not None and inner.name in table
            fields[field.number] = table[inner.name] if known else _WHOLE
            if known:
                fill(inner)
        if descriptor.name == "AttributeProto":
            fields.update((descriptor.fields_by_name[name].number, _END) for name in _ENDING)

    fill(ModelProto.DESCRIPTOR)
    return table


class _WeightStripper:
    def __init__(self, data: bytes | FileBytes) -> None:
        self._file = None if isinstance(data, bytes) else data
        self._window = data if isinstance(data, bytes) else b""  # a part of the file
        self._window_start = 0
        self._parts = 0
        self._kept = 0
        self._bytes = 0

    def message(self, start: int, end: int, fields: Mapping[int, Any], depth: int) -> bytes:
        """Return the kept parts of the message from start to end."""
        if depth > MAX_DEPTH:
            raise ModelFileError(f"it is nested more than {MAX_DEPTH} deep, which no model is")
        kept: list[bytes] = []
        while start < end:
            self._count()
            tag, place = self._varint(start, end)
            stop = self._stop(tag, place, end)
            handling = fields.get(tag >> 3)
            if handling is _END:
                break
            if handling is _WHOLE or (handling is not None and tag & 7 != _LENGTH):
                kept.append(self._keep(start, stop))
            elif handling is not None:
                _, inside = self._varint(place, end)
                inner = self.message(inside, stop, handling, depth + 1)
                if inner:
                    kept += (self._keep(start, place), _as_varint(len(inner)), inner)
            start = stop
        return b"".join(kept)

    def _count(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ModelFileError(f"it has more than {MAX_PARTS:,} parts, which no model has")

    def _keep(self, start: int, stop: int) -> bytes:
        self._kept += 1
        self._bytes += stop - start
        if self._kept > MAX_KEPT:
            raise ModelFileError(f"it has over {MAX_KEPT:,} tensors, names and sizes, which no model has")
        if self._bytes > MAX_BYTES:
            raise ModelFileError(f"it has over {MAX_BYTES:,} bytes beside its weights, which no model has")
        first = self._window_start
        if self._file is not None and not first <= start <= stop <= first + len(self._window):
            return self._file.read(start, stop - start)
        return self._window[start - first : stop - first]

    def _move_window(self, place: int) -> None:
        """Have the bytes from a place on in the window."""
        if self._file is not None:
            self._window, self._window_start = self._file.read(place, _WINDOW), place

    def _stop(self, tag: int, place: int, end: int) -> int:
        """Return the end of the field whose tag ends at place."""
        kind = tag & 7
        if kind == _LENGTH:
            length, place = self._varint(place, end)
            stop = place + length
        elif kind == _VARINT:
            _, stop = self._varint(place, end)
        elif kind in (_FIXED64, _FIXED32):
            stop = place + (8 if kind == _FIXED64 else 4)
        else:
            raise ModelFileError(f"it is damaged or not ONNX: byte {place - 1:,} does not begin a field")
        if stop > end:
            raise ModelFileError(
                f"it is truncated or damaged: the part that begins at byte {place:,} has {stop - place:,} "
                f"bytes, and only {end - place:,} are left"
            )
        return stop

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        """Decode a number of variable length; return it and its end."""
        if not self._window_start <= place <= self._window_start + len(self._window) - _MAX_VARINT_BYTES:
            self._move_window(place)
        window, before = self._window, self._window_start
        value = shift = 0
        while place < end and shift < 7 * _MAX_VARINT_BYTES:
            byte = window[place - before]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
            shift += 7
        raise ModelFileError(f"it is truncated or damaged: a number does not end before byte {place:,}")


def _as_varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
