"""Data frames of pandas, Polars and pyarrow: their columns as inputs, and the outputs as a frame again."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tcm_sync import (
    InferenceError,
    InferResult,
    InputError,
    ModelSignature,
    Route,
    TcmClient,
    TcmError,
    TensorSpec,
)
from tcm_sync._calls import frames
from tcm_sync.local import ModelFailure

LIBRARIES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}
IDS = [2**60 + 1, 7, 2**60 + 3]


def linear(arrays):
    """Return sums of rows, and the rows doubled."""
    return {"sum": arrays["x"].sum(axis=1), "twice": arrays["x"] * 2}


def described(arrays):
    """Return the datatypes and shapes of the inputs, once a row."""
    rows = len(next(iter(arrays.values())))
    what = " ".join(f"{name}:{array.dtype}{array.shape[1:]}" for name, array in sorted(arrays.items()))
    return {"described": np.array([what] * rows, object)}


def picky(arrays):
    if 13 in arrays["a"]:
        raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")
    return arrays


@pytest.fixture
def client(serve, client_of):
    return client_of(serve({"linear": linear, "described": described, "picky": picky}))


@pytest.fixture(params=LIBRARIES)
def frame_of(request):
    return LIBRARIES[request.param]


def columns(frame):
    """Return the columns of a frame of any library as lists, by name."""
    return (
        frame.to_pydict()
        if isinstance(frame, pa.Table)
        else frame.to_dict("list" if isinstance(frame, pd.DataFrame) else None)
        if isinstance(frame, pd.DataFrame)
        else frame.to_dict(as_series=False)
    )


def signature(*inputs, **more):
    return ModelSignature(inputs, (), **more)


# --- infer_frame ---


def test_each_column_is_an_input_of_its_name_and_dtype(client, frame_of):
    frame = frame_of({"id": IDS, "f": [0.5, 1.5, 2.5], "b": [True, False, True], "s": ["a", "é", ""]})
    made = client.infer_frame("echo", frame)
    assert type(made) is type(frame)
    assert columns(made) == columns(frame)
    (what,) = set(columns(client.infer_frame("described", frame))["described"])
    assert what == "b:bool() f:float64() id:int64() s:object()"


def test_64_bit_ids_beside_floats_and_missing_floats_stay_what_they_are(client, frame_of):
    made = columns(client.infer_frame("echo", frame_of({"id": IDS, "f": [0.5, None, 2.5]})))
    assert made["id"] == IDS
    assert np.array_equal(np.array(made["f"], float), [0.5, np.nan, 2.5], equal_nan=True)


def test_columns_are_chosen_and_stacked_in_the_order_given(client, frame_of):
    frame = frame_of({"id": IDS, "b": [1, 2, 3], "a": [0.5, 1.5, 2.5]})
    made = columns(client.infer_frame("linear", frame, columns=["a", "b"], stack="x"))
    assert made == {"sum": [1.5, 3.5, 5.5], "twice_0": [1.0, 3.0, 5.0], "twice_1": [2.0, 4.0, 6.0]}
    chosen = client.infer_frame("linear", frame, columns=["b", "a"], stack={"x": ["a", "b"]})
    assert columns(chosen) == made


def test_some_columns_are_stacked_and_the_others_are_inputs(client, frame_of):
    frame = frame_of({"id": IDS, "b": [1, 2, 3], "a": [0.5, 1.5, 2.5]})
    made = client.infer_frame(
        "described", frame, stack={"x": ["a", "b"], "y": ["id"]}, columns=["a", "b", "id"]
    )
    assert set(columns(made)["described"]) == {"x:float64(2,) y:int64(1,)"}
    made = client.infer_frame("described", frame, stack={"x": ["a", "b"]})
    assert set(columns(made)["described"]) == {"id:int64() x:float64(2,)"}


def boxes(arrays):
    a = arrays["a"]
    return {"box": np.zeros((len(a), 2, 2)), "twice": a * 2, "count": np.array([len(a)]), "a": a}


def test_outputs_are_chosen_and_the_others_may_have_any_shape(serve, client_of, frame_of):
    client = client_of(serve({"boxes": boxes}))
    frame = frame_of({"a": [1, 2, 3]})
    made = columns(client.infer_frame("boxes", frame, outputs=["twice", "a"], rows=2))
    assert list(made.items()) == [("twice", [2, 4, 6]), ("a", [1, 2, 3])]


def test_an_output_that_is_no_column_is_named_after_the_first_reply(serve, client_of):
    manager = serve({"boxes": boxes})
    client = client_of(manager, pool_size=1)
    frame = pd.DataFrame({"a": np.arange(100)})
    with pytest.raises(
        InputError, match=r'^output "box" has the shape \[rows, 2, 2\].*outputs=\[\.\.\.\]; infer_chunked'
    ):
        client.infer_frame("boxes", frame, rows=1)
    assert manager.stats().executions["boxes"] < 20


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ("twice", "outputs must be a sequence of names, not 'twice'"),
        ([], "one or more names"),
        (["a", "a"], "one or more names, each once"),
        ([1], "one or more names"),
        (["nobody"], 'no output "nobody", but "box", "twice", "count", "a"'),
    ],
    ids=str,
)
def test_outputs_that_cannot_be_chosen_are_refused(serve, client_of, outputs, said):
    client = client_of(serve({"boxes": boxes}))
    with pytest.raises(InputError, match=re.escape(said)):
        client.infer_frame("boxes", pd.DataFrame({"a": [1]}), outputs=outputs)


def test_outputs_that_a_signature_does_not_have_are_refused_before_anything_is_sent():
    client = TcmClient("ws://localhost:1/ws", route=Route("c"))
    declared = ModelSignature((TensorSpec("a", "INT64", (-1,)),), (TensorSpec("y", "INT64", (-1,)),))
    with pytest.raises(InputError, match='no output "z", but "y"'):
        client.model("m", signature=declared).infer_frame(pd.DataFrame({"a": [1]}), outputs=["z"])


@pytest.mark.parametrize("rows", [None, 7])
def test_a_long_frame_is_cut_and_joined_in_order(client, frame_of, rows):
    count = 40_000 if rows is None else 100
    values = np.arange(count, dtype=np.int32)
    made = columns(client.infer_frame("echo", frame_of({"a": values}), rows=rows))
    assert made == {"a": list(range(count))}
    assert client.stats().messages_sent > count // (rows or 40_000)


def test_pandas_keeps_its_index(client):
    index = pd.MultiIndex.from_tuples([("x", 1), ("x", 2), ("y", 1)], names=["k", "n"])
    frame = pd.DataFrame({"a": [1, 2, 3]}, index=index)
    made = client.infer_frame("echo", frame)
    pd.testing.assert_frame_equal(made, frame)
    reordered = frame.iloc[[2, 0]].reset_index(drop=True).set_index(np.array([5, 5]))
    pd.testing.assert_frame_equal(client.infer_frame("echo", reordered), reordered)


@pytest.mark.parametrize(
    "column",
    [
        pd.array([1, 2], dtype="Int64"),
        pd.array([1, 2], dtype="int64[pyarrow]"),
        pd.Series(["a", "b"], dtype=object),
        pd.array(["a", "b"], dtype="string[pyarrow]"),
        pd.Categorical(["b", "a"]),
        pd.array([True, False], dtype="boolean"),
        pd.array([1.5, None], dtype="Float32"),
    ],
    ids=lambda column: str(column.dtype),
)
def test_columns_of_pandas_own_dtypes_are_sent_as_their_values(client, column):
    made = client.infer_frame("echo", pd.DataFrame({"c": column}))
    wanted = [value if value is not pd.NA else None for value in list(column)]
    assert [None if pd.isna(value) else value for value in made["c"].tolist()] == wanted


def test_categories_of_polars_and_pyarrow_are_sent_as_their_texts(client):
    texts = ["b", "a", "b"]
    for kind in (pl.Categorical, pl.Enum(["a", "b"])):
        made = client.infer_frame("echo", pl.DataFrame({"c": pl.Series(texts, dtype=kind)}))
        assert made["c"].to_list() == texts
    made = client.infer_frame("echo", pa.table({"c": pa.array(texts).dictionary_encode()}))
    assert made["c"].to_pylist() == texts


@pytest.mark.parametrize(
    "values", [[1, None, 3], [True, None, False], ["a", None, "c"]], ids=["int", "bool", "str"]
)
def test_a_missing_value_that_is_no_float_is_refused_with_its_column(client, frame_of, values):
    if frame_of is pd.DataFrame:
        values = pd.array(values, dtype={int: "Int64", bool: "boolean", str: "string"}[type(values[0])])
    frame = frame_of({"good": [1, 2, 3], "bad": values})
    with pytest.raises(InputError, match='column "bad": 1 of 3 values are missing'):
        client.infer_frame("echo", frame)
    assert client.stats().messages_sent == 0
    assert columns(client.infer_frame("echo", frame, columns=["good"])) == {"good": [1, 2, 3]}


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"bad": pd.to_datetime(["2020-01-01"])}),
        pd.DataFrame({"bad": pd.Series([1, "a"], dtype=object)}),
        pd.DataFrame({"bad": pd.Series(["a"] * 200 + [1], dtype=object)}),
        pd.DataFrame({"bad": pd.Series(["a"] * 8192 + [1] * 9000, dtype=object)}),
        pd.DataFrame({"bad": pd.Categorical([3, 1])}),
        pd.DataFrame({"bad": [1j]}),
        pd.DataFrame({"bad": [[1, 2]]}),
        pd.DataFrame({"bad": ["ends in NUL\0"]}),
        pd.DataFrame({"bad": [1.0, np.inf]}),
        pl.DataFrame({"bad": [[1, 2]]}),
        pl.DataFrame({"bad": [None, None]}),
        pl.DataFrame({"bad": [{"a": 1}]}),
        pl.DataFrame({"bad": pl.Series([1]).cast(pl.Decimal(10, 2))}),
        pl.DataFrame({"bad": pl.Series([1]).cast(pl.Duration)}),
        pa.table({"bad": pa.nulls(3)}),
        pa.table({"bad": pa.array([[1.0]])}),
        pa.table({"bad": pa.array([1, 2]).dictionary_encode()}),
    ],
    ids=lambda frame: f"{type(frame).__module__.partition('.')[0]}",
)
def test_a_column_that_cannot_be_sent_is_refused_by_name_before_anything_is_sent(client, frame):
    with pytest.raises(InputError, match=r'(column|input) "bad"'):
        client.infer_frame("echo", frame)
    assert client.stats().messages_sent == 0


@pytest.mark.parametrize(
    ("frame", "dtype"),
    [
        (pd.DataFrame({"bad": pd.period_range("2020", periods=2, freq="D")}), r"period\[D\]"),
        (pd.DataFrame({"bad": np.array([1, 2], ">i4")}), ">i4"),
        (pd.DataFrame({"bad": pd.arrays.SparseArray([1, 2])}), r"Sparse\[int64, 0\]"),
        (pl.DataFrame({"bad": [None, None]}), "Null"),
        (pl.DataFrame({"bad": pl.Series([1]).cast(pl.Int128)}), "Int128"),
        (pa.table({"bad": pa.nulls(3)}), "null"),
    ],
    ids=str,
)
def test_a_dtype_without_a_datatype_is_called_as_its_library_calls_it(client, frame, dtype):
    with pytest.raises(InputError, match=f'column "bad" is of dtype {dtype}, which has no datatype: '):
        client.infer_frame("echo", frame)


@pytest.mark.parametrize(
    ("series", "why"),
    [
        (pl.Series([1]).cast(pl.Int128), "Int128 has no datatype; convert it to 64 bits"),
        (pd.Series([True, None], dtype="boolean"), "NA is not a value"),
        (pd.Series(["a", np.nan], dtype=object), "a NaN among texts is a missing one: fill it"),
    ],
    ids=str,
)
def test_a_column_by_its_name_that_cannot_be_sent_is_refused(client, series, why):
    for inputs in ({"x": series}, {"x": [series, series]}):
        with pytest.raises(InputError, match=f'input "x": .*{why}'):
            client.infer("echo", inputs)
    assert client.stats().messages_sent == 0


def test_a_value_of_the_last_rows_that_cannot_be_sent_is_found_before_any_is_sent(
    serve, client_of, monkeypatch
):
    monkeypatch.setattr(frames, "_CHECKED_ROWS", 4)
    manager = serve()
    signature = ModelSignature((TensorSpec("a", "UINT8", (-1,)),), (), batch_axis=True)
    model = client_of(manager).model("echo", signature=signature)
    with pytest.raises(InputError, match="300"):
        model.infer_frame(pd.DataFrame({"a": [*[1] * 59, 300]}), rows=2, concurrency=1)
    assert not manager.stats().executions


def test_ids_that_floats_cannot_hold_are_not_stacked_with_them(client, frame_of):
    frame = frame_of({"id": IDS, "f": [0.5, 1.5, 2.5], "b": [True, True, False], "s": ["a", "b", "c"]})
    for used, wrong in (
        (["id", "f"], f'column "id": {2**60 + 1} has no exact float64'),
        (["f", "b"], 'input "x" would mix numbers in column "f" and bool in column "b"'),
        (["s", "f"], 'input "x" would mix text in column "s" and numbers in column "f"'),
    ):
        with pytest.raises(InputError, match=wrong):
            client.infer_frame("echo", frame, columns=used, stack="x")


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (["float32", "int64"], "float32"),
        (["float32", "float64"], "float64"),
        (["uint8", "uint32"], "uint32"),
        (["int8", "int16"], "int16"),
        (["uint64", "int8"], "int64"),
        (["bool", "bool"], "bool"),
    ],
)
def test_stacked_columns_get_the_dtype_that_holds_them_all(client, dtypes, common):
    frame = pd.DataFrame({f"c{place}": np.array([1, 0], dtype) for place, dtype in enumerate(dtypes)})
    assert set(client.infer_frame("described", frame, stack="x")["described"]) == {f"x:{common}(2,)"}


def test_unsigned_numbers_too_large_to_stack_with_signed_ones_are_refused(client):
    frame = pd.DataFrame({"u": np.array([2**63], np.uint64), "i": [-1]})
    with pytest.raises(InputError, match=f'column "u": {2**63} is out of range for int64'):
        client.infer_frame("echo", frame, stack="x")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"columns": "a"}, "columns must be a sequence of names"),
        ({"columns": []}, "columns names no column"),
        ({"columns": ["a", "z"]}, 'no column "z"; its columns are "a", "b"'),
        ({"columns": [["a"]]}, "no column"),
        ({"columns": ["a", "a"]}, 'column "a" is named twice'),
        ({"stack": 3}, "stack must be a name"),
        ({"stack": {"x": "a"}}, "columns must be a sequence of names"),
        ({"stack": {"x": ["z"]}}, 'no column "z"'),
        ({"stack": {"b": ["a"]}}, 'input "b" would be made twice'),
        ({"stack": ""}, "must be a non-empty text"),
        ({"rows": 0}, "rows"),
        ({"progress": "yes"}, "progress"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_and_named(client, frame_of, arguments, wrong):
    with pytest.raises(InputError, match=wrong):
        client.infer_frame("echo", frame_of({"a": [1], "b": [2]}), **arguments)


@pytest.mark.parametrize(
    ("frame", "wrong"),
    [
        ([[1, 2]], "list is not a data frame in memory"),
        (pl.LazyFrame({"a": [1]}), r"LazyFrame is not a data frame in memory.*\.collect\(\)"),
        (pa.record_batch({"a": [1]}), "RecordBatch is not a data frame in memory"),
        (pd.Series([1]), "Series is not a data frame in memory"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "cannot be read"),
        (pd.DataFrame([[1, 2]]), "the name of an input must be a non-empty text, not 0"),
        (pd.DataFrame({"a": []}), "no rows"),
        (pd.DataFrame(index=[1, 2]), "no columns"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_what_is_no_usable_frame_is_refused(client, frame, wrong):
    with pytest.raises(InputError, match=wrong):
        client.infer_frame("echo", frame)


def test_a_frame_whose_columns_are_numbers_can_be_stacked(client):
    made = client.infer_frame("linear", pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]), columns=[1, 0], stack="x")
    assert made["twice_0"].tolist() == [4.0, 8.0]


def test_a_message_that_fails_names_its_rows(client, frame_of):
    with pytest.raises(InferenceError, match=r"rows 10 to 14: .*unlucky"):
        client.infer_frame("picky", frame_of({"a": list(range(20))}), rows=5)


def test_the_rows_of_a_long_frame_are_not_all_converted_at_once(serve, client_of):
    client = client_of(serve({"first": lambda arrays: {"y": arrays["x"][:, 0]}}), pool_size=2)
    frame = pd.DataFrame(np.zeros((20_000, 50)), columns=[f"c{place}" for place in range(50)])
    used = list(frame.columns[:49])
    client.infer_frame("first", frame[:300], columns=used, stack="x")  # imports
    tracemalloc.start()
    try:
        made = client.infer_frame("first", frame, columns=used, stack="x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made) == 20_000
    assert peak < 6e6, "the frame has 8 MB"


# --- infer and its kin, without a signature ---


def test_a_frame_alone_is_refused_by_every_call_and_infer_frame_is_named(client, frame_of):
    frame = frame_of({"a": [1, 2], "b": [3, 4]})
    model = client.model("echo")
    calls = {
        "infer": lambda: client.infer("echo", frame),
        "model": lambda: model.infer(frame),
        "list": lambda: client.infer("echo", [frame, frame]),
        "chunked": lambda: client.infer_chunked("echo", frame),
        "submit": lambda: client.submit("echo", frame),
        "map": lambda: client.map("echo", frame),
        "map of frames": lambda: next(client.map("echo", [frame])),
        "map of a model": lambda: client.model(
            "echo", signature=signature(TensorSpec("a", "INT64", (-1,)))
        ).map(frame),
        "stream": lambda: client.stream("echo", frame),
        "sample": lambda: model.infer_sample(frame),
        "shm": lambda: client.infer("echo", frame, transport="shm"),
        "lazy": lambda: client.infer("echo", pl.LazyFrame({"a": [1]})),
        "batch": lambda: client.infer("echo", pa.record_batch({"a": [1]})),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match="infer_frame"):
            pytest.fail(f"{name} returned {call()}")
    assert client.stats().messages_sent == 0


def test_a_frame_by_its_name_is_one_array(client):
    made = client.infer("echo", {"x": pd.DataFrame({"a": [1, 2], "b": [3, 4]})})
    assert made["x"].tolist() == [[1, 3], [2, 4]]


# --- with a signature ---


@pytest.mark.parametrize(
    ("dims", "batch_axis", "shape"),
    [
        ((-1,), False, "()"),
        ((-1, 1), False, "(1,)"),
        ((-1, -1), False, "(1,)"),
        ((), True, "(1,)"),
        ((1,), True, "(1,)"),
        ((1,), None, "(1,)"),
        ((-1,), None, "()"),
        (None, None, "()"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_columns_have_the_shape_that_the_signature_says(client, frame_of, dims, batch_axis, shape, rows):
    specs = [TensorSpec(name, datatype, dims) for name, datatype in (("a", "FP32"), ("b", "INT64"))]
    model = client.model("described", signature=signature(*specs, batch_axis=batch_axis))
    frame = frame_of({"b": [2**60 + 1] * rows, "a": np.array([0.5] * rows, np.float32)})
    wanted = {f"a:float32{shape} b:int64{shape}"}
    assert set(model.infer(frame)["described"].ravel()) == wanted
    assert set(columns(model.infer_frame(frame))["described"]) == wanted


@pytest.mark.parametrize(("dims", "batch_axis"), [((-1, 2), False), ((2,), True), ((-1, -1), None)])
def test_a_single_matrix_takes_all_columns(client, frame_of, dims, batch_axis):
    model = client.model("linear", signature=signature(TensorSpec("x", "FP64", dims), batch_axis=batch_axis))
    frame = frame_of({"a": [1, 2], "b": [0.5, 0.25]})
    assert model.infer(frame)["sum"].tolist() == [1.5, 2.25]
    assert columns(model.infer_frame(frame))["sum"] == [1.5, 2.25]
    wide = frame_of({"b": [0.5, 0.25], "skip": ["x", "y"], "a": [1, 2]})
    assert columns(model.infer_frame(wide, columns=["a", "b"]))["twice_0"] == [2.0, 4.0]


def test_an_input_called_like_one_of_its_columns_takes_the_matrix_if_that_fits(client):
    model = client.model("linear", signature=signature(TensorSpec("x", "INT64", (-1, 2)), batch_axis=False))
    assert model.infer(pd.DataFrame({"x": [1, 2], "y": [3, 4]}))["sum"].tolist() == [4, 6]


@pytest.mark.parametrize(
    ("frame", "wrong"),
    [
        ({"a": [1.5]}, 'no column for the input "b"'),
        ({"a": [1.5], "b": [1], "c": [2]}, 'no input for the column "c"'),
        ({"a": ["x"], "b": [1]}, 'input "a": expected FP64'),
        ({"a": [1.5], "b": [1.5]}, 'input "b": expected INT64'),
    ],
    ids=str,
)
def test_a_frame_that_does_not_fit_the_signature_is_refused_with_what_is_wrong(
    client, frame_of, frame, wrong
):
    specs = [TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "INT64", (-1,))]
    model = client.model("echo", signature=signature(*specs, batch_axis=False))
    for call in (model.infer, model.infer_frame, model.infer_chunked):
        with pytest.raises(InputError, match=wrong):
            call(frame_of(frame))
    assert client.stats().messages_sent == 0


def test_a_matrix_is_not_made_of_columns_of_which_one_is_an_optional_input(client):
    specs = [TensorSpec("x", "FP64", (-1, -1)), TensorSpec("mask", "FP64", (-1,), optional=True)]
    model = client.model("linear", signature=signature(*specs, batch_axis=False))
    frame = pd.DataFrame({"a": [1.0], "b": [2.0], "mask": [0.0]})
    with pytest.raises(InputError, match='no column for the input "x"'):
        model.infer(frame)
    assert model.infer_frame(frame, columns=["a", "b"])["sum"].tolist() == [3.0]


def test_no_message_has_more_rows_than_the_signature_allows(serve, client_of):
    sizes = []

    def counting(arrays):
        sizes.append(len(arrays["a"]))
        return arrays

    spec = TensorSpec("a", "INT64", (-1,))
    client = client_of(serve({"counting": counting}))
    model = client.model("counting", signature=signature(spec, max_batch_size=8, batch_axis=False))
    made = model.infer_frame(pl.DataFrame({"a": range(20)}))
    assert made["a"].to_list() == list(range(20))
    assert sorted(sizes) == [4, 8, 8]


@pytest.mark.parametrize(
    ("dims", "size"),
    [((1,), 1), ((3,), 3), ((1, 1), 1), ((2, 1), 2)],
    ids=str,
)
def test_a_model_with_a_fixed_first_dimension_gets_messages_of_that_size(serve, client_of, dims, size):
    shapes = []

    def counting(arrays):
        shapes.append(arrays["a"].shape)
        return {"y": arrays["a"].reshape(-1) * 2}

    client = client_of(serve({"counting": counting}))
    model = client.model("counting", signature=signature(TensorSpec("a", "INT64", dims), batch_axis=False))
    a = np.arange(6)
    assert model.infer_frame(pl.DataFrame({"a": a}))["y"].to_list() == (a * 2).tolist()
    assert model.infer_chunked({"a": a.reshape(-1, *dims[1:])}, rows=size)["y"].tolist() == (a * 2).tolist()
    assert shapes == [(size, *dims[1:])] * (2 * 6 // size)


@pytest.mark.parametrize(
    "inputs",
    [
        [TensorSpec("a", "INT64", (0,))],
        [TensorSpec("a", "INT64", (-2,))],
        [TensorSpec("a", "INT64", ())],
        [TensorSpec("a", "INT64", (2,)), TensorSpec("b", "INT64", (3,))],
        [TensorSpec("a", "INT64", (2,)), TensorSpec("b", "INT64", (3,), optional=True)],
    ],
    ids=str,
)
def test_inputs_of_which_no_number_of_rows_fits_all_are_refused(client, inputs):
    model = client.model("echo", signature=signature(*inputs, batch_axis=False))
    with pytest.raises(InputError, match="do not fit the model's signature"):
        model.infer_chunked({spec.name: np.arange(6) for spec in inputs})
    assert client.stats().messages_sent == 0


def test_no_message_of_a_fixed_size_is_cut_smaller_whatever_is_refused(serve, client_of):
    sizes = []

    def strict(arrays):
        sizes.append(len(arrays["a"]))
        return {"y": np.zeros((len(arrays["a"]), 10_000))}

    manager = serve({"strict": strict})
    client = client_of(manager, max_reply_bytes=100_000)
    fixed = signature(TensorSpec("a", "INT64", (8,)), batch_axis=False, max_batch_size=4)
    for _ in range(2):
        with pytest.raises(TcmError, match=r"rows 0 to 7: .*max_reply_bytes"):
            client.model("strict", signature=fixed).infer_chunked({"a": np.arange(16)}, concurrency=1)
    assert set(sizes) == {8}


def test_an_optional_input_that_is_not_given_fixes_no_number_of_rows(client):
    inputs = TensorSpec("a", "INT64", (2,)), TensorSpec("b", "INT64", (3,), optional=True)
    model = client.model("echo", signature=signature(*inputs, batch_axis=False))
    assert model.infer_chunked({"a": np.arange(6)})["a"].tolist() == list(range(6))


def test_a_matrix_with_a_fixed_first_dimension_takes_all_columns_of_so_many_rows(client):
    model = client.model("linear", signature=signature(TensorSpec("x", "INT64", (1, 2)), batch_axis=False))
    made = model.infer_frame(pd.DataFrame({"a": [1, 2, 3], "b": [4, 5, 6]}, index=[7, 8, 9]))
    assert made["sum"].to_dict() == {7: 5, 8: 7, 9: 9}


def test_rows_that_a_fixed_first_dimension_does_not_divide_are_refused_before_anything_is_sent(client):
    model = client.model("echo", signature=signature(TensorSpec("a", "INT64", (4,)), batch_axis=False))
    wanted = (
        "has 10 rows, and the model takes exactly 4 at a time: add 2 of any values, and drop their outputs"
    )
    with pytest.raises(InputError, match=wanted):
        model.infer_frame(pd.DataFrame({"a": range(10)}))
    with pytest.raises(InputError, match=wanted):
        model.infer_chunked({"a": np.arange(10)})
    with pytest.raises(InputError, match="rows is 2, and the model takes exactly 4 at a time"):
        model.infer_chunked({"a": np.arange(8)}, rows=2)
    assert client.stats().messages_sent == 0


# --- results ---


def test_a_result_becomes_a_pandas_frame():
    result = InferResult("m", {"n": [1, 2], "one": [[0.5], [1.5]], "two": [[1, 2], [3, 4]], "s": ["a", "b"]})
    frame = result.to_pandas()
    wanted = {"n": [1, 2], "one": [0.5, 1.5], "two_0": [1, 3], "two_1": [2, 4], "s": ["a", "b"]}
    assert frame.to_dict("list") == wanted
    frame.loc[0, "n"] = 9
    assert result["n"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("outputs", "wrong"),
    [
        ({"x": np.zeros((2, 2, 2))}, r'output "x" has the shape \[rows, 2, 2\]'),
        ({"x": 3}, r'output "x" has the shape \[\]'),
        (
            {"x": np.zeros((2, 0)), "y": [1, 2]},
            r'output "x" has the shape \[rows, 0\], which makes no column',
        ),
        ({"x": [1, 2], "y": [1]}, '"x" has 2, "y" has 1'),
        ({"x": [[1, 2]], "x_1": [1]}, 'two columns would be called "x_1"'),
    ],
    ids=str,
)
def test_outputs_that_are_no_table_do_not_become_a_frame(outputs, wrong):
    with pytest.raises(InputError, match=wrong):
        InferResult("m", outputs).to_pandas()


def test_a_result_is_not_silently_an_array_or_a_frame_of_its_names():
    result = InferResult("m", {"a": [1, 2], "b": [3.0, 4.0]})
    for make in (
        pd.DataFrame,
        np.asarray,
        np.array,
        lambda result: np.array(result, dtype=object, copy=True),
    ):
        with pytest.raises(InputError, match=r"to_pandas\(\)"):
            make(result)
    with contextlib.suppress(TypeError):  # Polars before 2.1 takes dictionaries alone
        assert pl.DataFrame(result).to_dict(as_series=False) == {"a": [1, 2], "b": [3.0, 4.0]}
    assert dict(result).keys() == {"a", "b"}


# --- what is not installed ---


def test_without_the_extra_the_error_names_it(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals.stable.v2", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    from tcm_sync import ConfigError

    frame = pl.DataFrame({"a": [1]})
    with pytest.raises(ConfigError, match=r"pip install 'tcm-sync\[frames\]'"):
        client.infer_frame("echo", frame)
    with pytest.raises(InputError, match="infer_frame"):
        client.infer("echo", frame)
    with pytest.raises(ConfigError, match="pip install pandas"):
        InferResult("m", {"a": [1]}).to_pandas()


def test_importing_the_package_imports_no_library_of_data_frames():
    program = "import sys, tcm_sync; print({'pandas', 'polars', 'pyarrow', 'narwhals'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


# --- torch ---


class Refusing:
    """Does what a tensor of torch does that cannot become an array, without torch."""

    def __init__(self, dtype="torch.float32", requires_grad=False, device="cpu"):
        self.dtype, self.requires_grad = dtype, requires_grad
        self.device = type("device", (), {"type": device, "__repr__": lambda _: f"{device}:0"})()

    def cpu(self):
        """Return nothing: it is not called."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("cannot be converted")


@pytest.mark.parametrize(
    ("tensor", "advice"),
    [
        (Refusing(requires_grad=True), r"requires gradients; send \.detach\(\)"),
        (Refusing(device="cuda"), r"on the device cuda:0; send \.cpu\(\)"),
        (Refusing(device="cuda", requires_grad=True), r"send \.detach\(\)\.cpu\(\)"),
        (Refusing(dtype="torch.bfloat16"), r"send \.float\(\), as FP32"),
    ],
    ids=["gradients", "device", "both", "bfloat16"],
)
def test_a_tensor_that_its_library_does_not_convert_is_refused_with_what_to_write(client, tensor, advice):
    for inputs in ({"x": tensor}, {"x": [tensor]}):
        with pytest.raises(InputError, match=f'input "x": .*{advice}'):
            client.infer("echo", inputs)


def test_another_failure_of_a_conversion_is_raised_as_it_is(client):
    with pytest.raises(TypeError, match="cannot be converted"):
        client.infer("echo", {"x": Refusing()})


@pytest.mark.needs_torch
def test_a_tensor_that_torch_does_not_convert_is_refused_with_what_to_write(client):
    import torch

    weights = torch.ones(2, requires_grad=True)
    for tensor, advice in (
        (weights, r"\.detach\(\)"),
        (weights * 2, r"\.detach\(\)"),
        (torch.ones(2, dtype=torch.bfloat16), r"\.float\(\)"),
    ):
        for inputs in ({"x": tensor}, {"x": [tensor]}):
            with pytest.raises(InputError, match=f'input "x": .*{advice}'):
                client.infer("echo", inputs)
    assert client.infer("echo", {"x": weights.detach()})["x"].tolist() == [1.0, 1.0]
    half = torch.ones(2, dtype=torch.bfloat16)
    assert client.infer("echo", {"x": half.float()})["x"].tolist() == [1.0, 1.0]
