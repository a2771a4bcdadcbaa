"""The signature of a model: its inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr

from tcm_sync._arguments import check_flag, check_whole, is_iterable
from tcm_sync._handlers import is_of_handler
from tcm_sync._numbers import as_whole, shown
from tcm_sync._secrets import hide
from tcm_sync._tables import html_table
from tcm_sync._tensors.datatypes import DATATYPES
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError, ProtocolError

if TYPE_CHECKING:
    import numpy as np

_SIDES = ("inputs", "outputs")


class TensorSpec(Struct, frozen=True, omit_defaults=True):
    """One input or output as a model declares it.

    Attributes
    ----------
    name : str
    datatype : str
        Triton's name: ``"FP32"``, ``"BYTES"`` ... (docs/wire.rst, "Datatypes"); where Triton has none, the
        name in the model's format.
    dims : tuple of int, or None
        The size of each dimension; -1 is any. None if the number of dimensions is not known.
    dim_names : tuple of (str or None)
        The model's name of each dimension; empty if it names none.
    optional : bool
        Whether a request may leave it out.
    """

    name: str
    datatype: str
    dims: tuple[int, ...] | None
    dim_names: tuple[str | None, ...] = ()
    optional: bool = False

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("datatype", self.datatype)):
            if not isinstance(text, str):
                raise InputError(f"the {what} of a TensorSpec must be a text, not {shown(text)}")
        if self.dims is not None:
            force_setattr(self, "dims", _checked_dims(self.name, self.dims))
        if not _all_of(self.dim_names, (str, type(None))):
            raise InputError(f"{self.name!r}: dim_names must be texts or None, not {shown(self.dim_names)}")
        check_flag(f"{self.name!r}: optional", self.optional)
        count = len(self.dims or ())
        if self.dim_names and len(self.dim_names) != count:
            raise InputError(f"{self.name!r} has {count} dims and {len(self.dim_names)} dim_names")

    @property
    def shape(self) -> str:
        """The dims as text; open ones are shown by their name, if they have one: ``[batch, 64]``."""
        if self.dims is None:
            return "[...]"
        names = self.dim_names or (None,) * len(self.dims)
        return f"[{', '.join(_dim(size, name) for size, name in zip(self.dims, names, strict=True))}]"

    def __str__(self) -> str:
        return f"{quote(self.name)}: {self.datatype}{self.shape}"


def _all_of(values: object, kind: type | tuple[type, ...]) -> bool:
    """Return whether values are a tuple or list with elements of one kind only."""
    return isinstance(values, (tuple, list)) and all(isinstance(value, kind) for value in values)


class Described(Protocol):
    """An object with inputs and outputs, such as the analysis of a model file."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns."""


class ModelSignature(Struct, frozen=True, omit_defaults=True):
    """The inputs and outputs of a model, in its order.

    Attributes
    ----------
    inputs, outputs : tuple of TensorSpec
    max_batch_size : int or None
        The most samples that a request may hold; None if there is no such limit, or it is not known.
    batch_axis : bool or None
        Whether the shape of a request has a batch axis before the `dims`, as in Triton's configurations with
        a maximum batch size. False: the dims are the whole shape. None: unknown, so both are accepted.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int | None = None
    batch_axis: bool | None = None

    def __post_init__(self) -> None:
        for what, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not _all_of(specs, TensorSpec):
                raise InputError(f"{what} must be a tuple of TensorSpec, not {shown(specs)}")
        check_flag("batch_axis", self.batch_axis)
        if self.max_batch_size is not None:
            most = check_whole("max_batch_size", self.max_batch_size, kind=InputError)
            force_setattr(self, "max_batch_size", most)

    @classmethod
    def from_analysis(cls, analysis: Described, *, max_batch_size: int | None = None) -> ModelSignature:
        """Make a signature from the analysis of a model file.

        Parameters
        ----------
        analysis : ModelAnalysis
            The result of `tcm_sync.models.analyze`.
        max_batch_size : int, optional
            As the model's configuration sets it; a model file does not have it.
        """
        return cls(tuple(analysis.inputs), tuple(analysis.outputs), max_batch_size, batch_axis=False)

    @classmethod
    def from_management(cls, data: Mapping[str, Any]) -> ModelSignature:
        """Read the reply to a creation: its ``inputs`` and ``outputs``, each ``{name, type, dims}``.

        The reply does not say whether a batch axis comes before the dims.

        Parameters
        ----------
        data : mapping
            `ManagementResult.data` of a creation.

        Raises
        ------
        ProtocolError
            They have another form.
        """
        inputs, outputs = (_specs(data.get(where), where, ("type", "dims")) for where in _SIDES)
        return cls(inputs, outputs)

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any] | str | bytes, *, max_batch_size: int | None = None
    ) -> ModelSignature:
        """Read the metadata of a model from a server of the KServe protocol: ``GET v2/models/NAME``.

        Parameters
        ----------
        metadata : mapping, str or bytes
            The answer: an object whose ``inputs`` and ``outputs`` are each ``{name, datatype, shape}``; or
            its JSON. The shapes include the batch axis.
        max_batch_size : int, optional
            As the model's configuration sets it; the metadata do not have it.

        Raises
        ------
        ProtocolError
            They have another form.
        """
        if isinstance(metadata, (str, bytes)):
            try:
                metadata = json.loads(metadata)
            except (ValueError, RecursionError) as error:
                if is_of_handler(error):
                    raise
                raise ProtocolError(f"the metadata are not JSON: {quote(str(error))}") from None
        if not isinstance(metadata, Mapping):
            raise ProtocolError("the metadata are not an object")
        inputs, outputs = (_specs(metadata.get(where), where, ("datatype", "shape")) for where in _SIDES)
        return cls(inputs, outputs, max_batch_size, batch_axis=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelSignature:
        """Read what `to_json` wrote.

        Parameters
        ----------
        text : str or bytes
            JSON text.

        Raises
        ------
        InputError
            It is something else.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InputError(f"not the JSON of a signature: {quote(str(error))}") from None

    def to_json(self) -> str:
        """Write it as JSON: an object with ``inputs`` and ``outputs``, each of ``{name, datatype, dims}``.

        Returns
        -------
        str
            JSON text, which `from_json` reads.
        """
        return msgspec.json.encode(self).decode()

    @property
    def output_dtypes(self) -> dict[str, np.dtype[Any]]:
        """The dtypes of the outputs by name, without those that have no form in JSON."""
        return {
            spec.name: DATATYPES[spec.datatype].dtype for spec in self.outputs if spec.datatype in DATATYPES
        }

    def __str__(self) -> str:
        return hide(f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))})")

    def __repr__(self) -> str:
        rows = _rows(self)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "".join(f"  {cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        return hide("\n".join(line.rstrip() for line in ["ModelSignature", *lines, *_notes(self)]))

    def _repr_html_(self) -> str:
        """Show it as a table in a notebook."""
        head, *rows = _rows(self)
        notes = "".join(f"<p>{note.strip()}</p>" for note in _notes(self))
        return html_table("", head, rows) + notes


def possible_shapes(
    signature: ModelSignature, spec: TensorSpec, *, sample: bool = False
) -> list[tuple[int, ...]]:
    """Return the shapes that an input may have, -1 for any size; its dims must be known.

    Parameters
    ----------
    signature : ModelSignature
    spec : TensorSpec
        One of its inputs.
    sample : bool
        Whether it is one sample, which gets its batch axis later.
    """
    dims = spec.dims or (1,)  # 0-d is sent as one element (docs/wire.rst, "What cannot be carried")
    forms: list[tuple[int, ...]] = []
    if signature.batch_axis is not False:
        forms.append(dims if sample else (-1, *dims))
    if not signature.batch_axis and not sample:
        forms.append(dims)
    elif not signature.batch_axis and dims[0] in (-1, 1):
        forms.append(dims[1:])
    return forms


def rows_of_a_message(signature: ModelSignature) -> int | None:
    """Return how many rows a message must have, if the first dimension of the required inputs says so.

    That is so for a model file that was exported with a fixed batch size, often 1.
    """
    if signature.batch_axis is not False:
        return None
    sizes = {spec.dims[0] for spec in signature.inputs if spec.dims and not spec.optional} - {-1}
    size = sizes.pop() if len(sizes) == 1 else 0
    return size if size > 0 else None


def _checked_dims(name: str, dims: Sequence[int]) -> tuple[int, ...]:
    """Return dims as a tuple of int."""
    sizes = [as_whole(size) for size in dims] if is_iterable(dims) else [None]
    if None in sizes:
        raise InputError(f"the dims of {shown(name)} must be whole numbers, -1 for any, not {shown(dims)}")
    return tuple(size for size in sizes if size is not None)


def _dim(size: int, name: str | None) -> str:
    return name if name and size < 0 else str(size)


def _rows(signature: ModelSignature) -> list[tuple[str, ...]]:
    """Return the cells of the table, its head first."""
    rows: list[tuple[str, ...]] = [("", "name", "datatype", "shape")]
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            shown = f"{kind} (optional)" if spec.optional else kind
            rows.append((shown, quote(spec.name), spec.datatype, quote(spec.shape)))
    return rows


def _notes(signature: ModelSignature) -> list[str]:
    notes = []
    if signature.batch_axis:
        notes.append("  a batch axis comes before each shape")
    if signature.max_batch_size is not None:
        notes.append(f"  at most {signature.max_batch_size} samples in a request")
    return notes


def _specs(found: object, where: str, keys: tuple[str, str]) -> tuple[TensorSpec, ...]:
    if not isinstance(found, Iterable) or isinstance(found, (str, Mapping)):
        raise ProtocolError(f"{where} is not a list")
    return tuple(_spec(each, f"{where}[{place}]", keys) for place, each in enumerate(found))


def _spec(found: object, where: str, keys: tuple[str, str]) -> TensorSpec:
    if isinstance(found, Mapping):
        name, datatype, dims = (found.get(key) for key in ("name", *keys))
        whole = isinstance(dims, Sequence) and None not in map(as_whole, dims)
        if isinstance(name, str) and isinstance(datatype, str) and isinstance(dims, Sequence) and whole:
            triton = datatype.removeprefix("TYPE_")
            return TensorSpec(name, "BYTES" if triton == "STRING" else triton, tuple(dims))
    raise ProtocolError(f"{where} is not a tensor with name, {keys[0]} and {keys[1]}")
