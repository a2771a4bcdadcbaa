"""Count the weights of a model and find its external files, without reading any weights."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from tcm_sync._handlers import is_of_handler
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ModelFileError
from tcm_sync.models.elements import MAX_DIMS, bits_of, element_name, text

MAX_PATH = 4096  # characters of the name of an external file: Linux opens none that is longer


class Weights(NamedTuple):
    """The totals of all tensors of a model.

    Attributes
    ----------
    parameters : int
        The number of elements of initialisers and of constants in nodes.
    parameter_bytes : int
        The bytes of these elements, without texts.
    external : dict of str to int
        The size of each external file, by its name; if the model was not read from a file, the bytes that it
        needs of each.
    """

    parameters: int
    parameter_bytes: int
    external: dict[str, int]


def count_weights(model: Any, file: str | None) -> Weights:
    """Add up the tensors of a model.

    Parameters
    ----------
    model : onnx.ModelProto
        Its weights may have been left out.
    file : str or None
        The model's file, in whose folder the external files are; None if the model was not read from a file.

    Raises
    ------
    ModelFileError
        A tensor has an invalid shape; or its file is missing, too short, or outside the folder.
    """
    parameters = total = 0
    needed: dict[str, int] = {}
    for tensor in _tensors(model):
        count = _elements(tensor)
        size = (count * bits_of(element_name(tensor.data_type)) + 7) // 8
        parameters += count
        total += size
        if tensor.data_location == tensor.EXTERNAL:
            location, end = _external(tensor, size)
            needed[location] = max(end, needed.get(location, 0))
    if file is not None:
        needed = {location: _size_of(file, location, end) for location, end in needed.items()}
    return Weights(parameters, total, needed)


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of the graph, of the graphs in its nodes, and of its functions."""
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        if hasattr(graph, "initializer"):  # a function has none
            yield from graph.initializer
            yield from (sparse.values for sparse in graph.sparse_initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                yield from attribute.tensors
                graphs.extend(attribute.graphs)
                if attribute.HasField("sparse_tensor"):
                    yield attribute.sparse_tensor.values
                yield from (sparse.values for sparse in attribute.sparse_tensors)


def _elements(tensor: Any) -> int:
    if len(tensor.dims) > MAX_DIMS:
        raise ModelFileError(f"{_named(tensor)} has {len(tensor.dims):,} dimensions, more than {MAX_DIMS}")
    if any(size < 0 for size in tensor.dims):
        raise ModelFileError(f"{_named(tensor)} has the shape {list(tensor.dims)}")
    return math.prod(tensor.dims)


def _external(tensor: Any, size: int) -> tuple[str, int]:
    """Return the external file of a tensor, and the least size that the file must have."""
    if any(text(each.key) == "location" and len(each.value) > MAX_PATH for each in tensor.external_data):
        raise ModelFileError(
            f"{_named(tensor)} is external, and names a file by over {MAX_PATH:,} characters"
        )
    entries = {text(entry.key): text(entry.value) for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        offset, length = (int(entries.get(key) or 0) for key in ("offset", "length"))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0:
        raise ModelFileError(f"{_named(tensor)} has an invalid place in its file: {quote(str(entries))}")
    parts = PurePosixPath(location.replace("\\", "/")).parts
    if not location or "\0" in location or not parts:
        raise ModelFileError(f"{_named(tensor)} is external, and the name of its file is {location!r}")
    if location.startswith(("/", "\\")) or PureWindowsPath(location).is_absolute() or ".." in parts:
        raise ModelFileError(
            f"{_named(tensor)} is in {quote(location)!r}, outside the model's folder, which is not allowed"
        )
    return location, offset + max(length, size)


def _size_of(file: str, location: str, needed: int) -> int:
    """Return the size of a file with weights, which must be in the model's folder.

    That is the folder of the model's name or, if the name is a link, of its target: in Hugging Face's cache
    the files of a model are links to ``blobs``.
    """
    folder = os.path.dirname(os.path.abspath(file))
    path = os.path.join(folder, location)
    target = os.path.realpath(path)
    allowed = os.path.realpath(folder), os.path.dirname(os.path.realpath(file))
    if all(os.path.commonpath([each, target]) != each for each in allowed):
        raise ModelFileError(
            f"the external weights {quote(location)!r} are a link out of the model's folder, which is not "
            "followed; put the file itself beside the model"
        )
    try:
        found = os.stat(path)
    except OSError as error:
        if is_of_handler(error):
            raise
        raise ModelFileError(
            f"the external weights {quote(location)!r} are not in its folder: {error.strerror}"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise ModelFileError(f"the external weights {quote(location)!r} are not a file")
    if found.st_size < needed:
        raise ModelFileError(
            f"the external weights {quote(location)!r} are truncated: {found.st_size:,} bytes, and the model "
            f"needs {needed:,}"
        )
    return found.st_size


def _named(tensor: Any) -> str:
    return f"the tensor {quote(text(tensor.name))!r}"
