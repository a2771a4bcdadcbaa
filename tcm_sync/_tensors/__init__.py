"""numpy and the wire: check and encode the inputs of a call, and decode its outputs.

Messages as a whole do not belong here (`tcm_sync._wire`), nor does shared memory (`tcm_sync._shm`).
"""

from tcm_sync._tensors.check import (
    EachInputsWithSignature,
    InputsWithSignature,
    SizedInputsWithSignature,
    check_call,
    fit_inputs,
)
from tcm_sync._tensors.datatypes import DATATYPES, Datatype
from tcm_sync._tensors.encode import (
    encode_data,
    encode_described,
    encode_inputs,
    encode_small,
    minimum_json_bytes,
)
from tcm_sync._tensors.foreign import is_frame
from tcm_sync._tensors.inputs import InferenceInput, Tensor, check_inputs, refuse_frame
from tcm_sync._tensors.outputs import OutputDtypes, check_output_dtypes, decode_outputs
from tcm_sync._tensors.signature import ModelSignature, TensorSpec, rows_of_a_message

__all__ = [
    "DATATYPES",
    "Datatype",
    "EachInputsWithSignature",
    "InferenceInput",
    "InputsWithSignature",
    "ModelSignature",
    "OutputDtypes",
    "SizedInputsWithSignature",
    "Tensor",
    "TensorSpec",
    "check_call",
    "check_inputs",
    "check_output_dtypes",
    "decode_outputs",
    "encode_data",
    "encode_described",
    "encode_inputs",
    "encode_small",
    "fit_inputs",
    "is_frame",
    "minimum_json_bytes",
    "refuse_frame",
    "rows_of_a_message",
]
