"""Guess whether the first dimension of a model's tensors is a batch, which ONNX does not declare."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from tcm_sync._tensors import TensorSpec

_BATCH = re.compile(r"(?i)n|bs?|(?:.*[^a-z])?batch(?:[^a-z].*|size)?|.*[a-z]Batch(?:[^a-z].*|Size)?|samples?")
_OTHER = re.compile(r"(?i).*(?:seq|time|len|step|token|height|width|channel|past|class).*")

# Names that exporters and shape inference make up for unknown dimensions.
_MADE_UP = re.compile(
    r"unk_*\d*"  # tf2onnx and onnx.shape_inference: unk__12
    r"|(?:p2o\.)?DynamicDimension\.\d+"  # Paddle2ONNX
    r"|.*_dynamic_axes_\d+"  # torch.onnx.export with dynamic_axes={"x": [0]}: x_dynamic_axes_1
    r"|.*_dim_\d+"  # torch.onnx.export, for outputs: Softmax_dim_0
    r"|.*\b[su]\d+\b.*"  # torch.export, expressions included: s77, u0, 2*s0
    r"|.*_o\d+__d\d+_?"  # onnxruntime's symbolic shape inference: NonZero_5_o0__d1
    r"|(?:dim|axis|d)_?\d+|(?i:dynamic|unknown.*|none)|-?\d+|[?*]"
)


_MAX_SHOWN = 10  # names in a reason


class FirstAxis(Struct, frozen=True):
    """A guess whether the first dimension of a model's inputs and outputs is a batch.

    Attributes
    ----------
    is_batch : bool
        Whether it is probably a batch.
    certainty : {"certain", "likely", "unsure"}
    reason : str
        Why.
    """

    is_batch: bool
    certainty: Literal["certain", "likely", "unsure"]
    reason: str


def is_made_up(name: str) -> bool:
    """Return whether an exporter has made up the name of a dimension, so that it means nothing."""
    return _MADE_UP.fullmatch(name) is not None


def has_first_size_again(spec: TensorSpec) -> bool:
    """Return whether another dimension has the first one's name, and so its size: then it is not a batch."""
    name, *others = spec.dim_names or (None,)
    return name is not None and name in others and not is_made_up(name)


def guess_first_axis(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> FirstAxis:
    """Guess from the sizes and names of the tensors' first dimensions."""
    if not inputs or not outputs:
        return FirstAxis(False, "certain", f"it has no {'outputs' if inputs else 'inputs'}")
    specs = [*inputs, *outputs]
    for spec in specs:
        if spec.dims is not None and (not spec.dims or spec.dims[0] >= 0):
            what = f"is fixed at {spec.dims[0]}" if spec.dims else "does not exist"
            return FirstAxis(False, "certain", f"the first dimension of {spec.name!r} {what}")
    unknown = [spec.name for spec in specs if spec.dims is None]
    if unknown:
        return FirstAxis(False, "unsure", f"the shape of {unknown[0]!r} is not known")
    for spec in specs:
        if has_first_size_again(spec):
            return FirstAxis(
                False, "certain", f"two dimensions of {spec.name!r} are called {spec.dim_names[0]!r}"
            )
    names = [spec.dim_names[0] if spec.dim_names else None for spec in inputs]
    made_up = [name for name in names if name is not None and is_made_up(name)]
    if made_up and len(made_up) == len(names):
        return FirstAxis(
            True,
            "unsure",
            f"the first dimension of all is open, and the name {made_up[0]!r} is an exporter's",
        )
    batch = [bool(name and _BATCH.fullmatch(name) and not is_made_up(name)) for name in names]
    if len(set(names)) > 1 and not all(batch):
        shown = ", ".join(map(repr, list(dict.fromkeys(names))[:_MAX_SHOWN]))
        return FirstAxis(False, "unsure", f"the first dimensions of the inputs are called {shown}")
    if all(batch):
        after = [spec.dim_names[0] if spec.dim_names else None for spec in outputs]
        if set(after) <= set(names):
            return FirstAxis(True, "certain", f"the first dimension of all is called {names[0]!r}")
        return FirstAxis(True, "likely", f"the first dimension of the inputs is called {names[0]!r}")
    if names[0] is None:
        return FirstAxis(True, "likely", "the first dimension of all is open, and has no name")
    if _OTHER.fullmatch(names[0]):
        return FirstAxis(False, "likely", f"the first dimension of the inputs is called {names[0]!r}")
    return FirstAxis(True, "unsure", f"the first dimension of all is open, and called {names[0]!r}")
