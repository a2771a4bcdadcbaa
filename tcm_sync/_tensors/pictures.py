"""Arrays that look like images, as small PNG pictures for notebooks."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_MIN_SIDE, _MAX_SIDE = 16, 256  # pixels of a side: what is smaller is a table, what is larger is thinned out
_MAX_ASPECT = 4  # times its other side; longer ones are tables too
_SHOWN = 192  # pixels of the longer side, up to which small pictures are enlarged
_COLOURS = {1: 0, 3: 2, 4: 6}  # PNG's number for grey, RGB and RGBA


def picture_of(array: npt.NDArray[Any]) -> str | None:
    """Return an image as a ``data:`` URI of a PNG, or None if the array is no image.

    Images are uint8, other integers from 0 to 255, floats from 0 to 1, or bool; of shape [height, width],
    with 3 or 4 colours after or before that, with or without axes of 1 or a batch, of which it is the first.
    Three or four images without colours look like the colours of one.
    """
    pixels = _pixels(array)
    if pixels is None or (pixels := _bytes(pixels)) is None:
        return None
    return "data:image/png;base64," + b64encode(_png(pixels)).decode()


def _pixels(array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return an array as [height, width, colours], thinned out if large; None if it has no such shape."""
    if array.dtype.kind not in "biuf" or array.size == 0:
        return None
    if array.ndim == 4:
        array = array[0]
    if array.ndim == 3 and (array.shape[0] == 1 or not {array.shape[0], array.shape[2]} & _COLOURS.keys()):
        array = array[0]  # of a batch without colours
    if array.ndim == 3 and array.shape[0] in _COLOURS and array.shape[2] not in _COLOURS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    if array.ndim != 3 or array.shape[2] not in _COLOURS:
        return None
    short, long = sorted(array.shape[:2])
    if short < _MIN_SIDE or long > short * _MAX_ASPECT:
        return None
    step = -(-long // _MAX_SIDE)
    return array[::step, ::step]


def _bytes(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """Return pixels as bytes, enlarged if they are few; None if their values are no brightness."""
    low, high = pixels.min(), pixels.max()
    if not low >= 0 or high > (1 if pixels.dtype.kind in "bf" else 255):  # NaN is neither
        return None
    if pixels.dtype.kind in "bf":
        pixels = np.rint(pixels.astype(np.float64) * 255)
    times = max(1, _SHOWN // max(pixels.shape[:2]))
    return pixels.astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Write pixels as a PNG without filters (PNG specification, third edition, sections 5 and 11.2)."""
    height, width, colours = pixels.shape
    lines = np.zeros((height, 1 + width * colours), np.uint8)  # the first byte names the filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[colours], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
