"""What a model takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tcm_sync.errors import ProtocolError
from tcm_sync.tensors.datatypes import DATATYPES

if TYPE_CHECKING:
    import numpy as np


class TensorSpec(Struct, frozen=True):
    """One input or output as a model declares it.

    Attributes
    ----------
    name : str
    datatype : str
        Triton's name: ``"FP32"``, ``"BYTES"`` ... (docs/wire.rst, "Datatypes").
    dims : tuple of int
        The size of each dimension; -1 is any.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.datatype}{list(self.dims)}"


class ModelSignature(Struct, frozen=True):
    """The inputs and outputs of a model, in its order.

    Attributes
    ----------
    inputs, outputs : tuple of TensorSpec
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_management(cls, data: Mapping[str, Any]) -> ModelSignature:
        """Read the answer of a creation: its ``inputs`` and ``outputs``, each ``{name, type, dims}``.

        Raises
        ------
        ProtocolError
            They have another form.
        """
        return cls(_specs(data.get("inputs"), "inputs"), _specs(data.get("outputs"), "outputs"))

    @property
    def output_dtypes(self) -> dict[str, np.dtype[Any]]:
        """The dtypes of the outputs by name, those left out that have no form in JSON."""
        return {
            spec.name: DATATYPES[spec.datatype].dtype for spec in self.outputs if spec.datatype in DATATYPES
        }

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))})"


def _specs(found: object, where: str) -> tuple[TensorSpec, ...]:
    if not isinstance(found, Iterable) or isinstance(found, (str, Mapping)):
        raise ProtocolError(f"{where} is no list")
    return tuple(_spec(each, f"{where}[{place}]") for place, each in enumerate(found))


def _spec(found: object, where: str) -> TensorSpec:
    if isinstance(found, Mapping):
        name, datatype, dims = (found.get(key) for key in ("name", "type", "dims"))
        whole = isinstance(dims, list) and all(type(size) is int for size in dims)
        if isinstance(name, str) and isinstance(datatype, str) and isinstance(dims, list) and whole:
            triton = datatype.removeprefix("TYPE_")
            return TensorSpec(name, "BYTES" if triton == "STRING" else triton, tuple(dims))
    raise ProtocolError(f"{where} is no tensor with name, type and dims")
