"""Analyse an ONNX model without running it: its inputs, outputs, versions and size."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Struct

from tcm_sync._handlers import is_of_handler
from tcm_sync._secrets import hide
from tcm_sync._tables import html_table
from tcm_sync._tensors import ModelSignature, TensorSpec
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ModelFileError
from tcm_sync.models.batch import FirstAxis, guess_first_axis
from tcm_sync.models.config import config_pbtxt
from tcm_sync.models.elements import read_value, text
from tcm_sync.models.strip_weights import FileBytes, strip_weights
from tcm_sync.models.weights import count_weights

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSETS_SINCE = 3  # the IR version from which a model must name its operator sets
MAX_VALUES = 10_000  # inputs, and outputs
_OVERRIDABLE_SINCE = 4  # before it, every initialiser had to be an input as well, and is a constant


class ModelAnalysis(Struct, frozen=True, kw_only=True):
    """The analysis of a model file, from `analyze`.

    Attributes
    ----------
    source : str
        The file, or ``"bytes"`` or ``"ModelProto"``.
    graph : str
        The name of the model's graph.
    inputs, outputs : tuple of TensorSpec
        In the model's order, without inputs that are initialisers too.
    overridable : tuple of TensorSpec
        The inputs that are initialisers too, if a request may override them.
    unsupported : mapping of str to str
        Why no request or reply can carry an input or output, by its name.
    first_axis : FirstAxis
        Whether the first dimension is a batch.
    ir_version : int
    opsets : mapping of str to int
        The versions of the operator sets by domain; ONNX's own is ``"ai.onnx"``.
    producer : str
        The program that wrote the file, with its version.
    parameters : int
        The number of elements of all initialisers and of the constants in nodes.
    parameter_bytes : int
        The bytes of these elements, without texts.
    file_bytes : int or None
        The size of the file; None for a ``ModelProto``.
    external : mapping of str to int
        The sizes of the external files with weights, by name. If the model was not read from a file, the
        bytes that it needs of each.
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

    def __repr__(self) -> str:
        facts = (f"  {name}: {fact}" for name, fact in self._facts())
        tensors = repr(self.signature).partition("\n")[2]
        return hide("\n".join([f"<ModelAnalysis of {self.source!r}", tensors, *facts]) + ">")

    def _repr_html_(self) -> str:
        """Show what the model takes and returns, and how large it is, in a notebook."""
        title = f"ModelAnalysis of {self.source!r}"
        return html_table(title, (), self._facts()) + self.signature._repr_html_()

    def _facts(self) -> list[tuple[str, str]]:
        """Return the facts besides the signature, by name."""
        axis = self.first_axis
        batch = "a batch" if axis.is_batch else "no batch"
        opsets = ", ".join(f"{domain} {version}" for domain, version in self.opsets.items())
        outside = ", ".join(f"{name} ({size:,} bytes)" for name, size in self.external.items())
        facts = {
            "first axis": f"{batch} ({axis.certainty}): {axis.reason}",
            "versions": f"IR {self.ir_version}" + (f", {opsets}" if opsets else ""),
            "written by": self.producer,
            "parameters": f"{self.parameters:,} ({self.parameter_bytes:,} bytes)",
            "external weights": outside,
            "overridable": ", ".join(map(str, self.overridable)),
            "cannot be carried": "; ".join(f"{name}: {why}" for name, why in self.unsupported.items()),
        }
        return [(name, fact) for name, fact in facts.items() if fact]

    def to_json(self) -> str:
        """Write it as JSON: an object with the attributes above.

        Returns
        -------
        str
            JSON text.
        """
        return msgspec.json.encode(self).decode()


def analyze(model: str | os.PathLike[str] | bytes | ModelProto) -> ModelAnalysis:
    """Analyse an ONNX model without loading its weights.

    Weights are skipped, so that time and memory do not depend on the size of the model. Files with external
    weights are not read, but must be in the model's folder or, if the model's name is a link, in that of the
    link's target.

    Parameters
    ----------
    model : str, path, bytes or onnx.ModelProto
        The file's path, its contents, or the parsed model.

    Returns
    -------
    ModelAnalysis
        What the model takes and returns, and how large it is.

    Raises
    ------
    ModelFileError
        The file is missing, empty, truncated, damaged or not ONNX; it is malicious (nested too deeply, too
        many parts, names of more than 1,000 characters for dimensions, or external weights outside its
        folder); or its external weights are missing.
    """
    if isinstance(model, (str, os.PathLike)):
        source = os.fsdecode(model)
        return _naming_source(source, lambda: _of_file(source))
    if isinstance(model, (bytes, bytearray, memoryview)):
        try:
            data = bytes(model)
        except ValueError as error:
            raise ModelFileError(f"the memory given cannot be read: {error}") from error
        return _naming_source("the bytes given", lambda: _analysis(_of_bytes(data), "bytes", len(data), None))
    if getattr(getattr(model, "DESCRIPTOR", None), "name", None) == "ModelProto":
        return _naming_source("the ModelProto given", lambda: _analysis(model, "ModelProto", None, None))
    raise ModelFileError(
        f"a model must be the path of an ONNX file, its bytes or a ModelProto, not {type(model).__name__}"
    )


def _naming_source(source: str, analysis: Callable[[], ModelAnalysis]) -> ModelAnalysis:
    """Run an analysis, and name its source in the message of a failure."""
    try:
        return analysis()
    except ModelFileError as error:
        raise ModelFileError(f"{quote(source)}: {error.message}") from error.__cause__


def _of_file(path: str) -> ModelAnalysis:
    rest, size = _file_without_weights(path)
    return _analysis(_parsed(rest), path, size, path)


def _of_bytes(data: bytes) -> ModelProto:
    if not data:
        raise ModelFileError("they are empty")
    return _parsed(strip_weights(data))


def _file_without_weights(path: str) -> tuple[bytes, int]:
    """Return a file without its weights, and its size."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for a writer
            raise ModelFileError("it is not a file")
        # A file object and not a descriptor, which an interrupt could lose before it is assigned.
        with io.FileIO(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise ModelFileError("it is empty")
            return strip_weights(FileBytes(file.fileno(), size)), size
    except ModelFileError:
        raise
    except (OSError, ValueError) as error:
        if is_of_handler(error):
            raise
        raise ModelFileError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parsed(data: bytes) -> ModelProto:
    from onnx import ModelProto

    try:
        return cast("ModelProto", ModelProto.FromString(data))
    except Exception as error:  # protobuf's class, whose name depends on the version
        if is_of_handler(error):
            raise
        raise ModelFileError(f"it is damaged, not an ONNX model, or nested too deeply: {error}") from error


def _analysis(model: ModelProto, source: str, file_bytes: int | None, file: str | None) -> ModelAnalysis:
    graph = model.graph
    opsets = {text(each.domain) or "ai.onnx": each.version for each in model.opset_import}
    if not model.HasField("graph") or model.ir_version < 1:
        raise ModelFileError(f"it is not an ONNX model: it has no {'IR version' if graph.input else 'graph'}")
    if not opsets and model.ir_version >= _OPSETS_SINCE:
        raise ModelFileError("it names no operator set, which comes last in a model: it may be truncated")
    weights = count_weights(model, file)
    initialisers = [*graph.initializer, *(each.values for each in graph.sparse_initializer)]
    own = {text(each.name) for each in initialisers}
    unsupported: dict[str, str] = {}
    inputs = _specs((each for each in graph.input if each.name not in own), "input", unsupported)
    outputs = _specs(graph.output, "output", unsupported)
    overridable = [
        each for each in graph.input if each.name in own and model.ir_version >= _OVERRIDABLE_SINCE
    ]
    return ModelAnalysis(
        source=source,
        graph=text(graph.name),
        inputs=inputs,
        outputs=outputs,
        overridable=tuple(read_value(each, optional=True)[0] for each in overridable),
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
    """Read inputs or outputs, and add those that no message can carry to `unsupported`."""
    specs: dict[str, TensorSpec] = {}
    for place, value in enumerate(values):
        if place >= MAX_VALUES:
            raise ModelFileError(f"it has more than {MAX_VALUES:,} {kind}s, which no model has")
        name = text(value.name)
        if not name:
            raise ModelFileError(f"its {kind} {place} has no name")
        if name in specs:
            raise ModelFileError(f"it has two {kind}s called {quote(name)!r}")
        specs[name], reason = read_value(value)
        if reason is not None:
            unsupported[name] = reason
    return tuple(specs.values())
