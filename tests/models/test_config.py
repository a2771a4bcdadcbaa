"""config.pbtxt, read back by the message of Triton that tritonclient ships."""

from __future__ import annotations

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from tcm_sync import ConfigError, ModelFileError
from tcm_sync._tensors import DATATYPES
from tcm_sync.models import analyze, config_pbtxt

from ..helpers.onnx_build import model, value, weight
from .test_onnxruntime import MODELS

#: Thirty that a message can carry: no tests of types and shapes that Triton has not.
_PLAIN = [path for path in MODELS if path.parent.parent.name != "node"]
REAL = _PLAIN[:: len(_PLAIN) // 30]


def parsed(written: str) -> model_config_pb2.ModelConfig:
    config = text_format.Parse(written, model_config_pb2.ModelConfig())
    again = text_format.Parse(text_format.MessageToString(config), model_config_pb2.ModelConfig())
    assert again == config
    return config


def configured(inputs=None, outputs=None, *, weights=(), **options) -> model_config_pb2.ModelConfig:
    return parsed(analyze(model(inputs, outputs, weights=weights)).config_pbtxt(**options))


def declared(tensors) -> list[tuple[str, str, list[int]]]:
    """Return what a configuration declares, in our words."""
    names = dict(model_config_pb2.DataType.items())
    words = {number: name.removeprefix("TYPE_").replace("STRING", "BYTES") for name, number in names.items()}
    return [(each.name, words[each.data_type], list(each.dims)) for each in tensors]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parent.name)
def test_the_configuration_of_a_real_model_is_read_without_loss(path) -> None:
    analysis = analyze(path)
    config = parsed(analysis.config_pbtxt(name=path.parent.name, overridable=True))
    assert (config.name, config.platform, config.max_batch_size) == (
        path.parent.name,
        "onnxruntime_onnx",
        0,
    )
    assert declared(config.output) == [
        (each.name, each.datatype, list(each.dims) or [1]) for each in analysis.outputs
    ]
    assert declared(config.input) == [
        (each.name, each.datatype, list(each.dims) or [1])
        for each in (*analysis.inputs, *analysis.overridable)
    ]
    assert [each.optional for each in config.input] == [False] * len(analysis.inputs) + [True] * len(
        analysis.overridable
    )


def test_at_least_twenty_real_models_are_read() -> None:
    assert len(REAL) >= 20


def test_a_dimension_that_a_tensor_has_twice_is_no_batch() -> None:
    config = configured(
        [value("adj", dims=["N", "N"]), value("x", dims=["N", 16])], [value("y", dims=["N", 4])]
    )
    assert config.max_batch_size == 0
    assert declared(config.input) == [("adj", "FP32", [-1, -1]), ("x", "FP32", [-1, 16])]
    with pytest.raises(ConfigError, match='max_batch_size must be 0: two dimensions of "adj"'):
        configured([value("adj", dims=["N", "N"])], max_batch_size=8)


def test_a_batch_is_taken_off_the_dims() -> None:
    config = configured([value("x", dims=["batch", 3, "h"])], [value("y", dims=["batch", 10])])
    assert config.max_batch_size == 32
    assert declared(config.input) == [("x", "FP32", [3, -1])]
    assert declared(config.output) == [("y", "FP32", [10])]
    assert configured(max_batch_size=8).max_batch_size == 8


def test_without_a_batch_the_dims_are_all_there_is() -> None:
    config = configured(max_batch_size=0)
    assert declared(config.input) == [("x", "FP32", [-1, 4])]


@pytest.mark.parametrize("dims", [[1, 4], ["seq_len", 4], ["unk__1", 4]])
def test_no_batch_is_made_of_what_may_not_be_one(dims) -> None:
    assert configured([value("x", dims=dims)], [value("y", dims=dims)]).max_batch_size == 0


def test_a_tensor_of_batch_alone_and_a_scalar_are_reshaped() -> None:
    batch = configured([value("x", dims=["batch"])])
    scalar = configured([value("x", dims=[])], max_batch_size=0)
    for config in (batch, scalar):
        (tensor,) = config.input
        assert list(tensor.dims) == [1]
        assert tensor.HasField("reshape")
        assert list(tensor.reshape.shape) == []
    assert (batch.max_batch_size, scalar.max_batch_size) == (32, 0)
    assert not batch.output[0].HasField("reshape")


def test_every_datatype_of_triton_is_written() -> None:
    elements = [TensorProto.BFLOAT16, *(helper.np_dtype_to_tensor_dtype(d.dtype) for d in DATATYPES.values())]
    inputs = [value(f"x{number}", element) for number, element in enumerate(elements)]
    assert [datatype for _, datatype, _ in declared(configured(inputs).input)] == ["BF16", *DATATYPES]


def test_overridable_initialisers_are_optional_inputs_when_asked_for() -> None:
    inputs, weights = [value("x"), value("w", dims=[4])], [weight("w", 4)]
    assert [each.name for each in configured(inputs, weights=weights).input] == ["x"]
    config = configured(inputs, weights=weights, overridable=True, max_batch_size=0)
    assert [(each.name, each.optional) for each in config.input] == [("x", False), ("w", True)]


@pytest.mark.parametrize("name", ['a"b', "back\\slash", "new\nline", "naïve ☃", "\x00\x7f\t", "'"])
def test_names_survive_whatever_is_in_them(name: str) -> None:
    config = configured([value(name)], name=name)
    assert config.name == config.input[0].name == name


def test_instances_and_dynamic_batching_are_written_when_asked_for() -> None:
    plain = configured()
    assert not plain.instance_group
    assert not plain.HasField("dynamic_batching")
    config = configured(
        instances=2,
        kind="gpu",
        gpus=[0, 3],
        dynamic_batching=True,
        preferred_batch_sizes=[4, 8],
        max_queue_delay=0.0025,
    )
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (2, group.KIND_GPU, [0, 3])
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert configured(dynamic_batching=True).HasField("dynamic_batching")
    assert configured(kind="cpu").instance_group[0].kind == group.KIND_CPU


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_batch_size": -1}, "max_batch_size"),
        ({"max_batch_size": True}, "max_batch_size"),
        ({"max_batch_size": 2**31}, "max_batch_size"),
        ({"name": ""}, "name"),
        ({"instances": 0}, "instances"),
        ({"kind": "tpu"}, "kind"),
        ({"kind": "cpu", "gpus": [0]}, "gpus"),
        ({"gpus": [-1]}, "gpus"),
        ({"preferred_batch_sizes": [4]}, "dynamic_batching=True"),
        ({"max_queue_delay": 1.0}, "dynamic_batching=True"),
        ({"dynamic_batching": True, "max_batch_size": 0}, "max_batch_size of at least 1"),
        ({"dynamic_batching": True, "preferred_batch_sizes": [64]}, "over max_batch_size"),
        ({"dynamic_batching": True, "preferred_batch_sizes": [0]}, "preferred_batch_sizes"),
        ({"dynamic_batching": True, "max_queue_delay": -1}, "max_queue_delay"),
    ],
)
def test_arguments_that_contradict_are_refused(options, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config_pbtxt(analyze(model()), **options)


def test_a_batch_of_a_model_that_has_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'the first dimension of "x", \[1, 4\], is not open'):
        configured([value("x", dims=[1, 4])], max_batch_size=8)


def test_what_triton_has_no_form_for_is_refused() -> None:
    sequence = onnx.helper.make_value_info(
        "s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    )
    for wrong, match in (
        (sequence, "no datatype"),
        (value("c", TensorProto.COMPLEX64), '"c" is COMPLEX64'),
        (value("u", dims=None), "no known rank"),
        (value("z", dims=["batch", 0]), "dimension of 0"),
    ):
        with pytest.raises(ModelFileError, match=match):
            configured([value("x"), wrong])
