"""Tensors in and out of JSON, and the form of requests, where no recording shows it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tcm_sync.local.tensors import to_array, to_json

from ..helpers.raw_connection import tensor


@pytest.mark.parametrize(
    ("data", "datatype", "expected"),
    [
        ([True, False, 1, 0, None], "BOOL", [True, False, True, False, False]),
        ([-128, 127], "INT8", [-128, 127]),
        ([1.9, -1.9], "INT64", [1, -1]),
        ([0, 255], "UINT8", [0, 255]),
        ([2**63 - 1, -(2**63)], "INT64", [2**63 - 1, -(2**63)]),
        ([2**64 - 1, 0], "UINT64", [2**64 - 1, 0]),
        ([0.1, 65504, None], "FP16", [0.0999755859375, 65504.0, None]),
        ([0.1, 3e38], "FP32", [0.10000000149011612, float(np.float32(3e38))]),
        ([0.1, -1e300, 2**70], "FP64", [0.1, -1e300, 2.0**70]),
        ([1e39, -1e39, 1.0], "FP32", [None, None, 1.0]),
        (["a\0", "\0", "b"], "BYTES", ["a", "", "b"]),
        (["a", 1, 1.5, True, None], "BYTES", ["a", "1", "1.5", "True", "None"]),
        ([["a", "b"], ["c", "d"]], "BYTES", ["a", "b", "c", "d"]),
        ([["a"]], "BYTES", "a"),
        ([[[]]], "BYTES", [[[]]]),
        ([[[]]], "FP32", [[[]]]),
        (1.5, "FP32", [1.5]),
    ],
)
def test_values_survive_as_they_do_on_the_real_manager(data, datatype, expected):
    shape = list(np.shape(data)) or [1]
    array = to_array(data, shape, datatype)
    assert json.dumps(to_json(array)) == json.dumps(expected)
    assert array.shape == tuple(shape)


@pytest.mark.parametrize(
    ("value", "datatype", "message"),
    [
        (128, "INT8", "Python integer 128 out of bounds for int8"),
        (300.5, "INT8", "Python integer 300 out of bounds for int8"),
        (-1, "UINT32", "Python integer -1 out of bounds for uint32"),
        (-1, "UINT64", "Python integer -1 out of bounds for uint64"),
        (2**63, "INT64", "Python int too large to convert to C long"),
        (float(2**64), "UINT64", "Python int too large to convert to C long"),
    ],
)
def test_integers_out_of_range_are_refused(value, datatype, message):
    with pytest.raises(OverflowError, match=message):
        to_array([value], [1], datatype)


@pytest.mark.parametrize(
    ("data", "datatype"),
    [
        ([None], "INT32"),
        (["a"], "FP32"),
        ([{}], "FP64"),
        ([[1], [2, 3]], "FP32"),
        ([["a"], ["b", "c"]], "BYTES"),
    ],
)
def test_what_is_no_such_value_is_refused(data, datatype):
    with pytest.raises((TypeError, ValueError)):
        to_array(data, [2, 1], datatype)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (np.array(1.5), 1.5),
        (np.array([1, np.inf, -np.inf, np.nan], np.float16), [1.0, None, None, None]),
        (np.array([[1, 2]], ">i4"), [[1, 2]]),
        (np.array([b"a", "b"], object), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([b"\xc3\xa9"]), "é"),
        (np.zeros((2, 0), np.float32), [[], []]),
    ],
)
def test_outputs_of_every_kind(output, expected):
    assert json.dumps(to_json(output)) == json.dumps(expected)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("x", "Field 'request.inputs[0]' must be a dictionary"),
        ({"shape": [1], "datatype": "FP32", "data": [1]}, "Missing required field 'request.inputs[0].name'"),
        ({"name": "x", "datatype": "FP32", "data": [1]}, "Missing required field 'request.inputs[0].shape'"),
        ({"name": "x", "shape": [1], "data": [1]}, "Missing required field 'request.inputs[0].datatype'"),
        ({"name": "x", "shape": [1], "datatype": "FP32"}, "Missing required field 'request.inputs[0].data'"),
        (tensor([1], "BF16"), "Unsupported datatype 'BF16' of input 'x'"),
        (tensor([1], shape=[-1]), "Field 'request.inputs[0].shape' must be a list of sizes"),
        (tensor([1], shape=[True]), "Field 'request.inputs[0].shape' must be a list of sizes"),
        (tensor([1], shape="1"), "Field 'request.inputs[0].shape' must be a list of sizes"),
    ],
)
def test_an_input_without_the_form_of_one_is_a_contract_error(serve, dial, sent, message):
    answer = dial(serve(), "u").infer("echo", sent)
    assert answer == {"data": message, "status": "FAILED", "model_name": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": None}, "Missing required field 'model_name'"),
        ({"request": {"protocol": "http"}}, "Missing required field 'request.inputs'"),
        ({"request": {"inputs": {}}}, "Missing required field 'request.inputs'"),
        ({"request": []}, "Missing required field 'request.inputs'"),
        ({"request": {"protocol": "grpc"}}, "Missing required field 'request.inputs'"),
    ],
)
def test_a_request_without_the_form_of_one_is_a_contract_error(serve, dial, change, message):
    answer = dial(serve(), "u").infer("echo", tensor([1.0]), **change)
    assert answer == {"data": message, "status": "FAILED", "model_name": None}


@pytest.mark.parametrize("allow_transient", [True, False])
def test_a_registered_server_is_asked_whether_or_not_others_are_allowed(serve, dial, allow_transient):
    request = {"inputs": [tensor([1.0])], "allow_transient": allow_transient}
    assert dial(serve(), "u").infer("echo", request=request)["status"] == "COMPLETED"


@pytest.mark.parametrize(("allow_transient", "status"), [(True, "COMPLETED"), (False, "FAILED")])
def test_another_one_only_if_allowed(serve, dial, allow_transient, status):
    manager = serve()
    request = {"inputs": [tensor([1.0])], "allow_transient": allow_transient}
    container_id = manager.transient_route.container_id
    answer = dial(manager, "u").infer("echo", request=request, container_id=container_id)
    assert answer["status"] == status


def test_a_container_id_that_is_no_text_is_not_known(serve, dial):
    answer = dial(serve(), "u").infer("echo", tensor([1.0]), container_id=["local"])
    assert answer["data"] == "Container ['local'] not found in known containers"


def test_the_managers_own_form_of_an_input_has_strings(serve, dial):
    raw = dial(serve(), "u")
    sent = {"name": "x", "dims": [2], "type": "TYPE_STRING", "value": ["a", "b"]}
    assert raw.infer("echo", sent)["data"] == {"x": ["a", "b"]}


def test_a_scalar_where_the_lists_are_deeper_elsewhere_is_refused(serve, dial):
    answer = dial(serve(), "u").infer("echo", tensor([1.0, [2.0]], shape=[2]))
    assert answer["data"]["code"] == "TRITON_INFERENCE_FAILED"
