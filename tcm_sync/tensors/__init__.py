"""numpy <-> the wire: checking and encoding the inputs of a call, and making arrays of its outputs."""

from tcm_sync.tensors.check import Held, HeldAll, HeldEach, check_call, fit_inputs
from tcm_sync.tensors.datatypes import DATATYPES, Datatype
from tcm_sync.tensors.encode import (
    encode_data,
    encode_described,
    encode_inputs,
    encode_small,
    minimum_json_bytes,
)
from tcm_sync.tensors.inputs import InferenceInput, Tensor, check_inputs
from tcm_sync.tensors.outputs import OutputDtypes, check_output_dtypes, decode_outputs
from tcm_sync.tensors.references import SHMReference, as_references
from tcm_sync.tensors.signature import ModelSignature, TensorSpec

__all__ = [
    "DATATYPES",
    "Datatype",
    "Held",
    "HeldAll",
    "HeldEach",
    "InferenceInput",
    "ModelSignature",
    "OutputDtypes",
    "SHMReference",
    "Tensor",
    "TensorSpec",
    "as_references",
    "check_call",
    "check_inputs",
    "check_output_dtypes",
    "decode_outputs",
    "encode_data",
    "encode_described",
    "encode_inputs",
    "encode_small",
    "fit_inputs",
    "minimum_json_bytes",
]
