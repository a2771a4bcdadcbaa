"""Models: ONNX files under both backends, callables, and what goes wrong with either."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from tcm_sync import TcmClient
from tcm_sync.errors import ConfigError, InferenceFailedError, ModelFileError
from tcm_sync.local import LocalManager, ModelFailure
from tcm_sync.local.loaded_model import TensorSpec
from tcm_sync.local.models import load_model

from ..helpers.raw_connection import tensor
from ..helpers.served_models import add_sub_onnx, identity_onnx, onnx_bytes


@pytest.fixture(params=["onnxruntime", "reference"])
def backend(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    return request.param


def test_an_onnx_file_is_served(backend, serve, dial, tmp_path):
    file = tmp_path / "add_sub.onnx"
    file.write_bytes(add_sub_onnx())
    manager = serve({"by_path": file, "by_name": str(file), "by_bytes": add_sub_onnx()})
    raw = dial(manager, "u")
    inputs = tensor([[1.0, 2.0]], name="INPUT0"), tensor([[0.5, 0.5]], name="INPUT1")
    for name in ("by_path", "by_name", "by_bytes"):
        assert raw.infer(name, *inputs)["data"] == {"SUM": [[1.5, 2.5]], "DIFF": [[0.5, 1.5]]}


@pytest.mark.parametrize(
    ("element", "datatype", "data"),
    [
        (TensorProto.BOOL, "BOOL", [True, False]),
        (TensorProto.INT8, "INT8", [-128, 127]),
        (TensorProto.UINT64, "UINT64", [0, 2**64 - 1]),
        (TensorProto.FLOAT16, "FP16", [1.5, -0.5]),
        (TensorProto.DOUBLE, "FP64", [0.1, 1e300]),
        (TensorProto.STRING, "BYTES", ["é", "b"]),
    ],
)
def test_datatypes_reach_an_onnx_model_and_come_back(backend, serve, dial, element, datatype, data):
    raw = dial(serve({"m": identity_onnx(element, ["n"])}), "u")
    answer = raw.infer("m", tensor(data, datatype, name="INPUT__0"))
    assert answer["data"] == {"OUTPUT__0": data}


def test_the_backend_is_said_in_the_log(backend, caplog):
    with caplog.at_level(logging.INFO, "tcm_sync.local"):
        load_model("adder", add_sub_onnx())
    expected = "reference evaluator" if backend == "reference" else "onnxruntime"
    assert [record for record in caplog.records if "'adder'" in record.message and expected in record.message]


def test_the_inputs_are_what_the_file_declares(backend):
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    model = onnx_bytes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", 3]), ("w", TensorProto.FLOAT, [3, 2])],
        [("y", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    assert load_model("m", model).inputs == (TensorSpec("x", "FP32", (-1, 3)),)


def test_a_declared_shape_is_held_to(backend, serve, dial):
    raw = dial(serve({"m": identity_onnx(dims=["n", 2])}), "u")
    assert raw.infer("m", tensor([[1.0, 2.0]], name="INPUT__0"))["status"] == "COMPLETED"
    answer = raw.infer("m", tensor([[1.0, 2.0, 3.0]], name="INPUT__0"))
    assert "unexpected shape for input 'INPUT__0' for model 'm'. Expected [-1,2], got [1,3]. NOTE:" in str(
        answer
    )


def test_an_input_that_the_model_does_not_have_is_refused(backend, serve, dial):
    raw = dial(serve({"m": identity_onnx(dims=[1])}), "u")
    answer = raw.infer("m", tensor([1.0], name="INPUT__0"), tensor([1.0], name="more"))
    assert "unexpected inference input 'more' for model 'm'" in answer["data"]["message"]


def test_a_shape_without_an_open_batch_gets_no_note_on_batching(backend, serve, dial):
    raw = dial(serve({"m": identity_onnx(dims=[1])}), "u")
    message = raw.infer("m", tensor([1.0, 2.0], name="INPUT__0"))["data"]["message"]
    assert message.endswith("Expected [1], got [2].")


def test_what_the_backend_raises_is_the_reason(backend, serve, dial):
    reshape = onnx_bytes(
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["m"])],
        [numpy_helper.from_array(np.array([7], np.int64), "to")],
    )
    raw = dial(serve({"m": reshape}), "u")
    answer = raw.infer("m", tensor([1.0, 2.0]))
    assert (answer["status"], answer["data"]["code"]) == ("FAILED", "TRITON_INFERENCE_FAILED")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x00\xff" * 100])
def test_a_file_that_is_no_model_is_named_with_its_model(backend, tmp_path, content):
    file = tmp_path / "bad.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model 'm': .*bad\.onnx cannot be run"):
        LocalManager({"m": file})
    with pytest.raises(ModelFileError, match="model 'm': the bytes given cannot be run"):
        LocalManager({"m": content})


def test_a_file_that_is_not_there_is_named_with_its_model(backend, tmp_path):
    with pytest.raises(ModelFileError, match=r"model 'm': .*none\.onnx cannot be run as an ONNX model: "):
        LocalManager({"m": tmp_path / "none.onnx"})


def test_an_input_of_no_tensor_type_is_refused(backend):
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["s"], ["n"])],
        "test",
        [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelFileError, match="input 's' is not a tensor"):
        load_model("m", model.SerializeToString())


def test_what_is_no_model_is_refused():
    with pytest.raises(
        ConfigError, match="model 'm' must be the path of an ONNX file, its bytes, or a callable, not int"
    ):
        LocalManager({"m": 5})


# Callables


def failure_of(serve, dial, model):
    answer = dial(serve({"m": model}), "u").infer("m", tensor([1.0]))
    assert (answer["status"], answer["model_name"]) == ("FAILED", "m")
    return answer["data"]


def raising(error):
    def model(arrays):
        raise error

    return model


def test_a_callable_gets_arrays_by_name(serve, dial):
    seen = []

    def model(arrays):
        seen.append(arrays)
        return {"y": arrays["x"].sum(axis=1), "n": [len(arrays["s"])]}

    raw = dial(serve({"m": model}), "u")
    answer = raw.infer("m", tensor([[1, 2], [3, 4]], "INT16"), tensor(["a"], "BYTES", name="s"))
    assert answer["data"] == {"y": [3, 7], "n": [1]}
    (arrays,) = seen
    assert (arrays["x"].dtype, arrays["x"].tolist()) == (np.int16, [[1, 2], [3, 4]])
    assert (arrays["s"].dtype, arrays["s"].tolist()) == (object, ["a"])


def test_any_exception_is_a_failed_inference(serve, dial):
    assert failure_of(serve, dial, raising(RuntimeError("broken"))) == {
        "code": "TRITON_INFERENCE_FAILED",
        "message": "[TritonThread] TRITON_INFERENCE_FAILED: model='m' retriable=False reason=broken",
        "retriable": False,
    }


def test_a_failure_of_a_known_code_is_retriable_as_the_code_is(serve, dial):
    assert failure_of(serve, dial, raising(ModelFailure("TRITON_OVERLOADED", "busy"))) == {
        "code": "TRITON_OVERLOADED",
        "message": "[TritonThread] TRITON_OVERLOADED: model='m' retriable=True reason=busy",
        "retriable": True,
    }


def test_a_failure_may_say_everything_itself(serve, dial):
    failure = ModelFailure("MINE", "no", retriable=True, retry_after_seconds=0.5)
    assert failure_of(serve, dial, raising(failure)) == {
        "code": "MINE",
        "message": "[TritonThread] MINE: model='m' retriable=True reason=no",
        "retriable": True,
        "retry_after_seconds": 0.5,
    }


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ([1.0], "the model returned a list, not a mapping of tensors by name"),
        ({"y": [1j]}, "an output of dtype complex128 has no JSON form"),
        ({"y": np.array(["2020"], "M8[D]")}, "an output of dtype datetime64[D] has no JSON form"),
        ({"y": np.array([None])}, "an output that holds a NoneType has no JSON form"),
        ({"y": [b"\xff"]}, "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_an_output_that_cannot_be_sent_is_a_failed_inference(serve, dial, output, reason):
    assert failure_of(serve, dial, lambda arrays: output)["message"].endswith("reason=" + reason)


@pytest.mark.parametrize(
    ("output", "sent"),
    [
        ([2**64 - 1, 1], [2**64 - 1, 1]),
        ([[2**63], [0]], [[2**63], [0]]),
        ([1, 2.5], [1.0, 2.5]),
        ([2**53 + 1, 2], [2**53 + 1, 2]),
    ],
)
def test_an_output_in_lists_keeps_its_numbers(serve, dial, output, sent):
    manager = serve({"f": lambda arrays: {"y": output}})
    assert dial(manager, "u").infer("f", tensor([1.0]))["data"] == {"y": sent}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ([2**53 + 1, 0.5], "an integer among the floats may have no exact float64"),
        ([2**63 + 1, -1], "the integers fit neither INT64 nor UINT64"),
        (pd.DataFrame({"id": [2**53 + 1], "s": [0.5]}), 'column "id": 9007199254740993 became'),
    ],
)
def test_an_output_that_numpy_would_change_is_a_failed_inference(serve, dial, output, reason):
    assert reason in failure_of(serve, dial, lambda arrays: {"y": output})["message"]


@pytest.mark.parametrize(
    "output",
    [{("a", 1): [1.0]}, {1: [1.0]}, {b"y": [1.0]}, {None: [1.0]}],
    ids=repr,
)
def test_an_output_whose_name_is_no_text_is_a_failed_inference_and_costs_no_worker(serve, dial, output):
    manager = serve({"bad": lambda arrays: output}, workers=1)
    raw = dial(manager, "u")
    for _ in range(2):
        answer = raw.infer("bad", tensor([1.0]))
        assert answer["status"] == "FAILED"
        assert "whose name is a" in answer["data"]["message"]
    assert raw.infer("echo", tensor([1.0]))["data"] == {"x": [1.0]}


class Unspeakable(Exception):
    """What has no text."""

    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Unspeakable(), StopIteration()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_model_raises_is_answered_and_costs_no_worker(serve, dial, error):
    raw = dial(serve({"bad": raising(error)}, workers=1), "u")
    for _ in range(2):
        assert raw.infer("bad", tensor([1.0]))["status"] == "FAILED"
        raw.ask_stream("a", "bad")
        assert raw.receive_stream()[1]["status"] == "FAILED"
    assert raw.infer("echo", tensor([1.0]))["data"] == {"x": [1.0]}


def test_whatever_a_step_of_a_job_raises_is_answered_and_costs_no_worker(serve, dial):
    raw = dial(serve(on_cloud_step=raising(SystemExit(3)), management_workers=1), "u")
    for number in range(2):
        raw.ask_job("create_vm", openstack={"name": f"vm-{number}"})
        assert raw.receive_job()[0] is False


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (7, {}),
        ("", {}),
        ("X", {"retry_after_seconds": "soon"}),
        ("X", {"retry_after_seconds": -1}),
        ("X", {"retry_after_seconds": float("nan")}),
    ],
    ids=str,
)
def test_a_failure_that_no_reply_can_carry_is_refused_where_it_is_made(code, more):
    with pytest.raises(ConfigError, match="ModelFailure"):
        ModelFailure(code, "text", **more)


def test_a_failure_keeps_numbers_of_numpy_as_pythons_own():
    failure = ModelFailure("X", "text", retriable=np.True_, retry_after_seconds=np.float32(0.5))
    assert type(failure.retriable) is bool
    assert type(failure.retry_after_seconds) is float
    assert (failure.retriable, failure.retry_after_seconds) == (True, 0.5)


def test_as_many_models_run_at_a_time_as_there_are_workers(serve, dial, gated):
    manager = serve(workers=3)
    raw = dial(manager, "u")
    for number in range(4):
        raw.ask("gated", tensor([float(number)]))
    for number in (2, 0, 1, 3):  # any of the first three may be the first to end
        gated.open(number)
        assert raw.receive()["payload"]["data"] == {"y": [number]}


BATCHED = {"max_batch_sizes": {"add_sub": 64}}


def add_sub_inputs(first, second):
    return [tensor([[1.0]] * rows, name=name) for name, rows in (("INPUT0", first), ("INPUT1", second))]


@pytest.mark.parametrize("model", [add_sub_onnx(), lambda arrays: arrays], ids=["onnx", "callable"])
def test_a_batch_over_max_batch_size_is_refused_and_does_not_run(serve, dial, model):
    manager = serve({"add_sub": model}, **BATCHED)
    raw = dial(manager, "u")
    assert raw.infer("add_sub", *add_sub_inputs(64, 64))["status"] == "COMPLETED"
    answer = raw.infer("add_sub", *add_sub_inputs(65, 65))
    assert answer["data"]["message"].endswith("inference request batch-size must be <= 64 for 'add_sub'")
    assert (answer["data"]["code"], answer["data"]["retriable"]) == ("TRITON_INFERENCE_FAILED", False)
    assert manager.stats().executions == {"add_sub": 1}


def test_a_pipeline_with_a_batch_over_max_batch_size_fails_as_a_whole(serve, dial):
    manager = serve({"add_sub": add_sub_onnx()}, **BATCHED)
    raw = dial(manager, "u")
    steps = [
        {"name": name, "model_name": "add_sub", "inputs": add_sub_inputs(rows, rows)}
        for name, rows in (("a", 1), ("b", 65))
    ]
    answer = raw.infer("add_sub", pipeline=steps)
    assert answer["data"]["message"].endswith("batch-size must be <= 64 for 'add_sub'")


def test_inputs_of_a_batched_model_have_the_same_number_of_rows(serve, dial):
    manager = serve({"add_sub": add_sub_onnx(), "free": add_sub_onnx()}, **BATCHED)
    raw = dial(manager, "u")
    answer = raw.infer("add_sub", *add_sub_inputs(2, 1))
    assert "input 'INPUT1' batch size does not match other inputs" in answer["data"]["message"]
    assert raw.infer("free", *add_sub_inputs(2, 1))["status"] == "COMPLETED", "nothing is known of it"


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ("# max_batch_size: 9\nmax_batch_size: 8\n", 8),
        ('name: "m"\n', 0),
        (None, None),
    ],
)
def test_max_batch_size_is_that_of_the_model_repository(tmp_path, config, most):
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    file = folder / "model.onnx"
    file.write_bytes(add_sub_onnx())
    if config is not None:
        (tmp_path / "m" / "config.pbtxt").write_text(config)
    assert load_model("m", file).max_batch_size == most
    assert load_model("m", str(file), 3).max_batch_size == 3
    assert load_model("m", add_sub_onnx()).max_batch_size is None


@pytest.mark.parametrize("sizes", [{"other": 1}, {"m": -1}, {"m": 1.5}, {"m": True}])
def test_max_batch_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ConfigError, match="max_batch_sizes"):
        LocalManager({"m": add_sub_onnx()}, max_batch_sizes=sizes)


def test_the_note_on_batching_is_for_models_that_are_batched(serve, dial):
    models = {name: identity_onnx(dims=("n", "m")) for name in ("batched", "open", "whole")}
    raw = dial(serve(models, max_batch_sizes={"batched": 4, "whole": 0}), "u")
    for name, noted in (("batched", True), ("open", True), ("whole", False)):
        message = raw.infer(name, tensor([1.0], name="INPUT__0"))["data"]["message"]
        assert ("NOTE: Setting a non-zero max_batch_size" in message) is noted


def test_a_function_that_reads_an_input_that_is_not_there_fails_with_its_name(serve):
    models = {"half": lambda inputs: {"y": inputs["x"] / 2}, "others": lambda inputs: {"y": {}["z"]}}
    manager = serve(models)
    with TcmClient(manager.uri, route=manager.route) as client:
        with pytest.raises(InferenceFailedError) as failed:
            client.infer("half", np.ones(2))
        assert "Got input(s) ['INPUT__0'], but missing required input(s) ['x']" in failed.value.message
        assert failed.value.message.endswith('Pass each input by its name: {"x": array}')
        with pytest.raises(InferenceFailedError) as other:
            client.infer("others", {"x": np.ones(2)})
        assert "missing required" not in other.value.message
