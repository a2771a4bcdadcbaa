"""What an ONNX model takes and returns, and what else can be told of it without running it."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Struct

from tcm_sync._handlers import is_of_handler
from tcm_sync._tensors import ModelSignature, TensorSpec
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ModelFileError
from tcm_sync.models.batch import FirstAxis, guess_first_axis
from tcm_sync.models.config import config_pbtxt
from tcm_sync.models.elements import read_value, text
from tcm_sync.models.skim import skim
from tcm_sync.models.weights import weigh

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSETS_SINCE = 3  # the IR version from which a model must name its operator sets
_OVERRIDABLE_SINCE = 4  # before it, every initialiser had to be an input as well, and is a constant


class ModelAnalysis(Struct, frozen=True, kw_only=True):
    """What `analyze` found.

    Attributes
    ----------
    source : str
        The file; or what was given in its place.
    graph : str
        The name of the model's graph.
    inputs, outputs : tuple of TensorSpec
        In the model's order. Initialisers that are inputs too are left out.
    overridable : tuple of TensorSpec
        Those, where a request may override them.
    unsupported : mapping of str to str
        Why no request or reply can carry an input or output, by its name.
    first_axis : FirstAxis
        Whether the first dimension is a batch.
    ir_version : int
    opsets : mapping of str to int
        The versions of the operator sets by domain; ONNX's own is ``"ai.onnx"``.
    producer : str
        What wrote the file, with its version.
    parameters : int
        Elements of all initialisers and of the constants in nodes.
    parameter_bytes : int
        What they take; text does not count.
    file_bytes : int or None
        The size of the file; None if a ``ModelProto`` was given.
    external : mapping of str to int
        The sizes of the files beside it that hold weights, by name. If the model was not read from a file,
        what is needed of each.
    """

    source: str
    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    overridable: tuple[TensorSpec, ...]
    unsupported: Mapping[str, str]
    first_axis: FirstAxis
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    parameters: int
    parameter_bytes: int
    file_bytes: int | None
    external: Mapping[str, int]

    @property
    def signature(self) -> ModelSignature:
        """The inputs and outputs, for ``client.model(..., signature=...)``."""
        return ModelSignature.from_analysis(self)

    def config_pbtxt(self, **options: Any) -> str:
        """Write the model's configuration for Triton: `tcm_sync.models.config_pbtxt`.

        Parameters
        ----------
        **options
            Those of that function.

        Returns
        -------
        str
            The text of a ``config.pbtxt``.
        """
        return config_pbtxt(self, **options)

    def to_json(self) -> str:
        """Write it as JSON: an object with the attributes above.

        Returns
        -------
        str
            JSON text.
        """
        return msgspec.json.encode(self).decode()


def analyze(model: str | os.PathLike[str] | bytes | ModelProto) -> ModelAnalysis:
    """Look at an ONNX model without loading its weights.

    They are passed over, wherever they are, so that it takes the same time and memory for a model of any
    size. Files with external weights are only looked for, in the model's own folder;
    where the model's name is a link, in the folder that it leads to as well.

    Parameters
    ----------
    model : str, path, bytes or onnx.ModelProto
        The file, what is in it, or what it was parsed to.

    Returns
    -------
    ModelAnalysis
        What the model takes and returns, and how large it is.

    Raises
    ------
    ModelFileError
        There is no such file; it is empty, truncated, damaged or no ONNX; it is made to do harm (nested
        without end, with external weights outside its folder); or its external weights are missing.
    """
    if isinstance(model, (str, os.PathLike)):
        source = os.fsdecode(model)
        return _told_of(source, lambda: _of_file(source))
    if isinstance(model, (bytes, bytearray, memoryview)):
        try:
            data = bytes(model)
        except ValueError as error:
            raise ModelFileError(f"the memory given cannot be read: {error}") from error
        return _told_of("the bytes given", lambda: _analysis(_of_bytes(data), "bytes", len(data), None))
    if getattr(getattr(model, "DESCRIPTOR", None), "name", None) == "ModelProto":
        return _told_of("the ModelProto given", lambda: _analysis(model, "ModelProto", None, None))
    raise ModelFileError(
        f"a model is the path of an ONNX file, its bytes or a ModelProto, not {type(model).__name__}"
    )


def _told_of(source: str, analysis: Callable[[], ModelAnalysis]) -> ModelAnalysis:
    """Say of what it is told, whatever is wrong with it."""
    try:
        return analysis()
    except ModelFileError as error:
        raise ModelFileError(f"{quote(source)}: {error.message}") from error.__cause__


def _of_file(path: str) -> ModelAnalysis:
    slim, size = _skimmed_file(path)
    return _analysis(_parsed(slim), path, size, path)


def _of_bytes(data: bytes) -> ModelProto:
    if not data:
        raise ModelFileError("they are empty")
    return _parsed(skim(data))


def _skimmed_file(path: str) -> tuple[bytes, int]:
    """Return a file without its weights, and its size."""
    try:
        # O_NONBLOCK: the opening of a pipe would wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ModelFileError("it is no file")
            if not found.st_size:
                raise ModelFileError("it is empty")
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
                return skim(mapped), len(mapped)
        finally:
            os.close(descriptor)
    except ModelFileError:
        raise
    except (OSError, ValueError) as error:
        if is_of_handler(error):
            raise
        raise ModelFileError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parsed(slim: bytes) -> ModelProto:
    from onnx import ModelProto

    try:
        return cast("ModelProto", ModelProto.FromString(slim))
    except Exception as error:  # protobuf's own class, and what it is called depends on its version
        if is_of_handler(error):
            raise
        raise ModelFileError(f"it is damaged, or no ONNX model, or nested too deep: {error}") from error


def _analysis(model: ModelProto, source: str, file_bytes: int | None, file: str | None) -> ModelAnalysis:
    graph = model.graph
    opsets = {text(each.domain) or "ai.onnx": each.version for each in model.opset_import}
    if not model.HasField("graph") or model.ir_version < 1:
        raise ModelFileError(f"it is no ONNX model: it has no {'IR version' if graph.input else 'graph'}")
    if not opsets and model.ir_version >= _OPSETS_SINCE:
        raise ModelFileError("it names no operator set, which comes last in a model: it may be truncated")
    weights = weigh(model, file)
    initialisers = [*graph.initializer, *(each.values for each in graph.sparse_initializer)]
    own = {text(each.name) for each in initialisers}
    unsupported: dict[str, str] = {}
    inputs = _specs((each for each in graph.input if each.name not in own), "input", unsupported)
    outputs = _specs(graph.output, "output", unsupported)
    again = [each for each in graph.input if each.name in own and model.ir_version >= _OVERRIDABLE_SINCE]
    return ModelAnalysis(
        source=source,
        graph=text(graph.name),
        inputs=inputs,
        outputs=outputs,
        overridable=tuple(read_value(each, optional=True)[0] for each in again),
        unsupported=unsupported,
        first_axis=guess_first_axis(inputs, outputs),
        ir_version=model.ir_version,
        opsets=opsets,
        producer=f"{text(model.producer_name)} {text(model.producer_version)}".strip(),
        parameters=weights.parameters,
        parameter_bytes=weights.parameter_bytes,
        file_bytes=file_bytes,
        external=weights.external,
    )


def _specs(values: Iterable[Any], kind: str, unsupported: dict[str, str]) -> tuple[TensorSpec, ...]:
    """Read inputs or outputs, and note those that no message can carry."""
    specs: dict[str, TensorSpec] = {}
    for place, value in enumerate(values):
        name = text(value.name)
        if not name:
            raise ModelFileError(f"its {kind} {place} has no name")
        if name in specs:
            raise ModelFileError(f"it has two {kind}s called {quote(name)!r}")
        specs[name], reason = read_value(value)
        if reason is not None:
            unsupported[name] = reason
    return tuple(specs.values())
