"""numpy <-> the wire: checking and encoding the inputs of a call, and making arrays of its outputs."""

from tcm_sync.tensors.datatypes import DATATYPES, Datatype
from tcm_sync.tensors.encode import encode_inputs, minimum_json_bytes
from tcm_sync.tensors.inputs import InferenceInput, Tensor, check_inputs
from tcm_sync.tensors.outputs import OutputDtypes, check_output_dtypes, decode_outputs

__all__ = [
    "DATATYPES",
    "Datatype",
    "InferenceInput",
    "OutputDtypes",
    "Tensor",
    "check_inputs",
    "check_output_dtypes",
    "decode_outputs",
    "encode_inputs",
    "minimum_json_bytes",
]
