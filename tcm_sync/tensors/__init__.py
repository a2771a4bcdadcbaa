"""numpy <-> the wire: checking and encoding the inputs of a call, and making arrays of its outputs."""

from tcm_sync.tensors.datatypes import DATATYPES, Datatype
from tcm_sync.tensors.encode import encode_inputs, minimum_json_bytes
from tcm_sync.tensors.inputs import InferenceInput, Tensor, check_inputs
from tcm_sync.tensors.outputs import OutputDtypes, check_output_dtypes, decode_outputs
from tcm_sync.tensors.signature import ModelSignature, TensorSpec

__all__ = [
    "DATATYPES",
    "Datatype",
    "InferenceInput",
    "ModelSignature",
    "OutputDtypes",
    "Tensor",
    "TensorSpec",
    "check_inputs",
    "check_output_dtypes",
    "decode_outputs",
    "encode_inputs",
    "minimum_json_bytes",
]
