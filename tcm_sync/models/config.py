"""Write a model's configuration for Triton, ``config.pbtxt``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from tcm_sync._arguments import check_choice, check_flag, check_text, check_whole, is_iterable
from tcm_sync._numbers import as_number, shown
from tcm_sync._tensors import DATATYPES, TensorSpec
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ConfigError, ModelFileError
from tcm_sync.models.batch import FirstAxis, has_first_size_again

_MAX_BATCH_SIZE = 32  # the default of BatchPolicy
_UNSAFE = re.compile(r'["\\\x00-\x1f\x7f]')


class Analysis(Protocol):
    """The part of a `ModelAnalysis` that a configuration needs."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns."""

    @property
    def overridable(self) -> tuple[TensorSpec, ...]:
        """Initialisers that a request may override."""

    @property
    def first_axis(self) -> FirstAxis:
        """Whether the first dimension is a batch."""


def config_pbtxt(
    analysis: Analysis,
    *,
    name: str | None = None,
    max_batch_size: int | None = None,
    overridable: bool = False,
    instances: int | None = None,
    kind: Literal["auto", "cpu", "gpu"] = "auto",
    gpus: Sequence[int] = (),
    dynamic_batching: bool = False,
    preferred_batch_sizes: Sequence[int] = (),
    max_queue_delay: float | None = None,
) -> str:
    """Write the configuration of an ONNX model for Triton.

    Parameters
    ----------
    analysis : ModelAnalysis
        The result of `analyze`.
    name : str, optional
        The model's name. By default Triton uses the name of its folder.
    max_batch_size : int, optional
        The most samples of a batch. The first dimension is then not among the dims. With 0 the dims are the
        whole shape. The default is 32 if the first dimension is certainly or likely a batch
        (``analysis.first_axis``), and else 0.
    overridable : bool
        Whether to write initialisers that a request may override, as optional inputs.
    instances : int, optional
        How many instances of the model run at the same time, on each GPU if they run on GPUs.
    kind : {"auto", "cpu", "gpu"}
        Where they run.
    gpus : sequence of int
        On which GPUs.
    dynamic_batching : bool
        Whether Triton may combine requests into batches.
    preferred_batch_sizes : sequence of int
        Sizes at which Triton runs a batch without waiting for more; with `dynamic_batching`.
    max_queue_delay : float, optional
        The most seconds that a request waits for others; with `dynamic_batching`.

    Returns
    -------
    str
        The text, in the order and form of Triton's documentation. A tensor without dimensions, or with only
        the batch, is written with the dims ``[1]`` and a reshape.

    Raises
    ------
    ModelFileError
        Triton has no datatype for an input or output, or its rank is not known.
    ConfigError
        The arguments contradict each other or the model.
    """
    if not hasattr(analysis, "first_axis"):
        raise ConfigError(f"analysis must be the result of analyze, not {type(analysis).__name__}")
    overridable = check_flag("overridable", overridable, ConfigError)
    dynamic_batching = check_flag("dynamic_batching", dynamic_batching, ConfigError)
    check_choice("kind", kind, ("auto", "cpu", "gpu"), ConfigError)
    for what, numbers in (("gpus", gpus), ("preferred_batch_sizes", preferred_batch_sizes)):
        if not isinstance(numbers, Sequence) or not is_iterable(numbers):
            raise ConfigError(f"{what} must be a sequence of whole numbers, not {shown(numbers)}")
    inputs = [*analysis.inputs, *(analysis.overridable if overridable else ())]
    if max_batch_size is None:
        axis = analysis.first_axis
        max_batch_size = _MAX_BATCH_SIZE if axis.is_batch and axis.certainty != "unsure" else 0
    max_batch_size = _check_count("max_batch_size", max_batch_size, least=0)
    message: dict[str, Any] = {} if name is None else {"name": _checked_name(name)}
    message |= {
        "platform": "onnxruntime_onnx",
        "max_batch_size": max_batch_size,
        "input": [_tensor(spec, batched=max_batch_size > 0) for spec in inputs],
        "output": [_tensor(spec, batched=max_batch_size > 0) for spec in analysis.outputs],
    }
    if instances is not None or kind != "auto" or gpus:
        message["instance_group"] = [_instance_group(instances, kind, gpus)]
    if dynamic_batching:
        message["dynamic_batching"] = _batching(max_batch_size, preferred_batch_sizes, max_queue_delay)
    elif preferred_batch_sizes or max_queue_delay is not None:
        raise ConfigError("preferred_batch_sizes and max_queue_delay need dynamic_batching=True")
    return "\n".join(_lines(message)) + "\n"


def _checked_name(name: str) -> str:
    return check_text("name", name)


def _check_count(what: str, count: object, *, least: int = 1) -> int:
    number = check_whole(what, count, least)
    if number >= 2**31:
        raise ConfigError(f"{what} must be a whole number below 2**31, not {shown(count)}")
    return number


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    """Write an input or output as Triton's ``ModelInput`` or ``ModelOutput``."""
    label = quote(spec.name)
    if spec.datatype not in DATATYPES and spec.datatype != "BF16":
        raise ModelFileError(f'"{label}" is {spec.datatype}, for which Triton has no datatype')
    if spec.dims is None:
        raise ModelFileError(
            f'"{label}" has no known rank, which Triton needs; onnx.shape_inference.infer_shapes may find it'
        )
    if 0 in spec.dims:
        raise ModelFileError(f'"{label}" has the shape {spec.shape}; Triton takes no dimension of 0')
    dims = spec.dims
    if batched:
        if dims[:1] != (-1,):
            raise ConfigError(
                f'max_batch_size must be 0: the first dimension of "{label}", {spec.shape}, is not open'
            )
        if has_first_size_again(spec):
            raise ConfigError(
                f'max_batch_size must be 0: two dimensions of "{label}", {spec.shape}, have one size'
            )
        dims = dims[1:]
    written: dict[str, Any] = {
        "name": spec.name,
        "data_type": _Unquoted(f"TYPE_{'STRING' if spec.datatype == 'BYTES' else spec.datatype}"),
        "dims": list(dims) or [1],
    }
    if not dims:
        written["reshape"] = {"shape": []}
    if spec.optional:
        written["optional"] = _Unquoted("true")
    return written


def _instance_group(instances: int | None, kind: str, gpus: Sequence[int]) -> dict[str, Any]:
    if gpus and kind == "cpu":
        raise ConfigError("gpus cannot be given with kind='cpu'")
    group: dict[str, Any] = {}
    if instances is not None:
        group["count"] = _check_count("instances", instances)
    group["kind"] = _Unquoted(f"KIND_{kind.upper()}")
    if gpus:
        group["gpus"] = [_check_count("gpus", gpu, least=0) for gpu in gpus]
    return group


def _batching(most: int, preferred: Sequence[int], delay: float | None) -> dict[str, Any]:
    if most < 1:
        raise ConfigError("dynamic_batching needs a max_batch_size of at least 1, and a model with a batch")
    batching: dict[str, Any] = {}
    sizes = [_check_count("preferred_batch_sizes", size) for size in preferred]
    for size in sizes:
        if size > most:
            raise ConfigError(f"preferred_batch_sizes: {size} is over max_batch_size, {most}")
    if sizes:
        batching["preferred_batch_size"] = sizes
    if delay is not None:
        seconds = as_number(delay)
        if seconds is None or not 0 <= seconds <= 3600:
            raise ConfigError(
                f"max_queue_delay must be a number of seconds from 0 to 3600, not {shown(delay)}"
            )
        batching["max_queue_delay_microseconds"] = round(seconds * 1e6)
    return batching


class _Unquoted(str):
    """A value that is written without quotes: a name of an enumeration, true or false."""

    __slots__ = ()


def _lines(message: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write a message in protobuf's text form (https://protobuf.dev/reference/protobuf/textformat-spec)."""
    for key, value in message.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for each in value:
                yield from _lines({key: each}, indent)
        else:
            yield f"{indent}{key}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(map(str, value))} ]" if value else "[ ]"
    if isinstance(value, str) and not isinstance(value, _Unquoted):
        return '"' + _UNSAFE.sub(lambda match: f"\\{ord(match[0]):03o}", value) + '"'
    return str(value)
