"""Models over Dask data frames: what the result is like before it is computed, and its partitions."""

from __future__ import annotations

import sys

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tcm_sync import InputError, ModelSignature, Route, TcmClient, TensorSpec
from tcm_sync.errors import InferenceError, TcmError
from tcm_sync.integrations.dask import infer_frame

URI = "ws://localhost:1/ws"  # nobody is asked
SIGNATURE = ModelSignature(
    (TensorSpec("a", "FP64", (-1, 1)), TensorSpec("b", "INT64", (-1,))),
    (
        TensorSpec("pair", "FP32", (-1, 2)),
        TensorSpec("sum", "FP64", (-1, 1)),
        TensorSpec("name", "BYTES", (-1,)),
    ),
    batch_axis=False,
)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def unused():
    """A client that never opens."""
    return TcmClient(URI, route=Route("c"))


@pytest.fixture
def frame():
    index = pd.Index([10 * number for number in range(20)], name="id")
    return pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20)}, index=index)


def described(arrays):
    a, b = arrays["a"].reshape(-1), arrays["b"]
    return {
        "pair": np.stack([a, a * 2], axis=1),
        "sum": (a + b).reshape(-1, 1),
        "name": np.array([f"row {int(number)}" for number in b], object),
    }


def added(arrays):
    return {"sum": arrays["a"] + arrays["b"]}


def test_the_result_has_its_columns_dtypes_and_divisions_before_anything_is_sent(unused, frame):
    ddf = dd.from_pandas(frame, npartitions=4)
    y = infer_frame(
        ddf,
        "m",
        client=unused,
        output_dtypes={"label": np.int32, "scores": np.float32},
        output_shapes={"scores": (3,)},
    )
    assert y.dtypes.to_dict() == {
        "label": np.int32,
        **{f"scores_{number}": np.float32 for number in range(3)},
    }
    assert y.divisions == ddf.divisions
    assert y._meta.index.name == "id"
    assert "not open" in repr(unused)


def test_the_rows_and_their_index_come_back_with_the_declared_dtypes(serve, client_of, frame):
    client = client_of(serve({"m": described}))
    y = infer_frame(dd.from_pandas(frame, npartitions=3), "m", client=client, signature=SIGNATURE)
    expected = pd.DataFrame(
        {
            "pair_0": frame["a"].astype(np.float32),
            "pair_1": (frame["a"] * 2).astype(np.float32),
            "sum": frame["a"] + frame["b"],
            "name": [f"row {number}" for number in frame["b"]],
        },
        index=frame.index,
    )
    found = y.compute()
    pd.testing.assert_frame_equal(found, expected)
    assert found.dtypes.to_dict() == y.dtypes.to_dict()


def test_operations_come_before_and_after_and_partitions_may_be_empty(serve, client_of, frame):
    client = client_of(serve({"m": added}))
    ddf = dd.from_pandas(frame, npartitions=4)
    more = ddf.assign(b=ddf["b"] * 10)
    few = more[more["a"] > 11]  # nothing in the first two
    y = infer_frame(few, "m", client=client, output_dtypes={"sum": np.float64})
    assert (y["sum"] + 1).compute().to_dict() == {10 * n: 11.0 * n + 1 for n in range(12, 20)}
    assert (few.join(y)["sum"] - y["sum"]).abs().sum().compute() == 0


def test_an_empty_partition_has_the_index_of_the_others(unused, frame):
    ddf = dd.from_pandas(frame, npartitions=2)
    y = infer_frame(ddf[ddf["a"] > 99], "m", client=unused, output_dtypes={"sum": np.float64})
    pd.testing.assert_frame_equal(y.compute(), y._meta)
    assert y.compute().index.name == "id"


def test_columns_are_chosen_and_stacked_as_by_the_client(serve, client_of, frame):
    def rows(arrays):
        return {"y": arrays["x"] @ np.array([1.0, 100.0])}

    client = client_of(serve({"m": rows}))
    ddf = dd.from_pandas(frame.assign(text="no"), npartitions=2)
    y = infer_frame(ddf, "m", client=client, columns=["a", "b"], stack="x", output_dtypes={"y": np.float64})
    assert y["y"].compute().tolist() == [101.0 * n for n in range(20)]


TEXTS = {
    "object": pd.Series(["a", "é"], dtype=object),
    "string of pandas": pd.Series(["a", "é"], dtype="string[python]"),
    "string of Arrow": pd.Series(["a", "é"], dtype="string[pyarrow]"),
    "Arrow": pd.Series(["a", "é"], dtype=pd.ArrowDtype(pa.string())),
    "categories": pd.Series(["a", "é"], dtype="category"),
    "a dictionary of Arrow": pd.Series(
        ["a", "é"], dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))
    ),
}


@pytest.mark.parametrize("convert", [True, False], ids=["converted by Dask", "as it is"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_columns_of_every_kind_of_pandas_are_sent(serve, client_of, text, convert):
    """What Dask takes for an example of a column may have missing values, although the column has none."""
    columns = {
        "text": text,
        "Int64": pd.array([2**53 + 1, 2], "Int64"),
        "int64 of Arrow": pd.array([2**53 + 1, 2], "int64[pyarrow]"),
        "Float32": pd.array([0.5, None], "Float32"),
        "boolean": pd.array([True, False], "boolean"),
    }
    client = client_of(serve())
    with dask.config.set({"dataframe.convert-string": convert}):
        ddf = dd.from_pandas(pd.DataFrame(columns), npartitions=2)
    dtypes = {"text": object, "Int64": int, "int64 of Arrow": int, "Float32": np.float32, "boolean": bool}
    y = infer_frame(ddf, "echo", client=client, output_dtypes=dtypes)
    found = y.compute()
    assert found.dtypes.to_dict() == y.dtypes.to_dict()
    assert found.iloc[0].tolist() == ["a", 2**53 + 1, 2**53 + 1, 0.5, True]
    assert found["text"].tolist() == ["a", "é"]
    assert np.isnan(found["Float32"].iloc[1])


def test_partitions_that_are_not_of_pandas_are_refused(unused, frame, monkeypatch):
    ddf = dd.from_pandas(frame, npartitions=2)
    monkeypatch.setattr(type(ddf), "_meta", pl.DataFrame({"a": [1.0]}))
    with pytest.raises(InputError, match=r'not those of polars: ddf\.to_backend\("pandas"\)'):
        infer_frame(ddf, "m", client=unused, output_dtypes={"y": np.float32})


def test_outputs_that_are_not_wanted_may_have_any_shape(serve, client_of, frame):
    def boxes(arrays):
        a = arrays["a"]
        return {"box": np.zeros((len(a), 2, 2)), "sum": a + arrays["b"], "count": np.array([len(a)])}

    client = client_of(serve({"boxes": boxes}))
    ddf = dd.from_pandas(frame, npartitions=2)
    y = infer_frame(ddf, "boxes", client=client, output_dtypes={"sum": np.float64})
    assert y["sum"].compute().tolist() == [2.0 * n for n in range(20)]
    y = infer_frame(ddf, "boxes", client=client, output_dtypes={"box": np.float64})
    with pytest.raises(InputError, match=r'^partition \d: output "box" has the shape \[rows, 2, 2\]'):
        y.compute()


def test_equal_calls_have_equal_names(unused, frame):
    ddf = dd.from_pandas(frame, npartitions=2)

    def name(model="m", dtype=np.float32, client=unused, **options):
        return infer_frame(ddf, model, client=client, output_dtypes={"y": dtype}, **options)._name

    same = TcmClient(URI, route=Route("c"))
    other = TcmClient(URI, route=Route("d"))
    assert name() == name() == name(client=same)
    assert name().startswith("tcm-infer-")
    different = [name("n"), name(dtype=np.float64), name(client=other), name(columns=["a"]), name(stack="x")]
    assert len({name(), *different}) == 6


def test_a_partition_that_fails_names_itself_and_its_model(serve, client_of, frame):
    def picky(arrays):
        if 15 in arrays["a"]:
            raise RuntimeError("no")
        return added(arrays)

    client = client_of(serve({"picky": picky}), retry=None)
    y = infer_frame(
        dd.from_pandas(frame, npartitions=4), "picky", client=client, output_dtypes={"sum": np.float64}
    )
    with pytest.raises(InferenceError, match=r"^partition 3: rows 0 to 4: .*model 'picky'") as caught:
        y.compute()
    assert caught.value.model_name == "picky"


def test_outputs_that_are_not_as_declared_fail(serve, client_of, frame):
    client = client_of(serve({"m": added}))
    ddf = dd.from_pandas(frame, npartitions=1)
    for dtypes, shapes, said in (
        ({"total": np.float64}, None, 'there is no output "total"'),
        ({"sum": np.float64}, {"sum": (2,)}, "the outputs make the columns sum, and not sum_0, sum_1"),
    ):
        y = infer_frame(ddf, "m", client=client, output_dtypes=dtypes, output_shapes=shapes)
        with pytest.raises(TcmError, match=f"^partition 0: .*{said}"):
            y.compute()


DTYPES = {"y": np.float32}


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda ddf: ddf.compute(), {}, "from_pandas"),
        (lambda ddf: ddf["a"], {}, "to_frame"),
        (lambda ddf: ddf.assign(when=pd.Timestamp(0)), {}, '"when"'),
        (None, {"columns": ["nobody"]}, "nobody"),
        (None, {"output_dtypes": np.float32}, "must be a mapping"),
        (None, {"output_dtypes": None}, "pass output_dtypes or a signature"),
        (
            None,
            {"output_shapes": {"y": (2, 3)}},
            r'"y" has the shape \[rows, 2, 3\].* pass output_dtypes with only',
        ),
        (None, {"limit": 0}, "limit"),
        (None, {"rows": 0}, "rows"),
        (None, {"client": URI}, "client must be a TcmClient"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_computed(unused, frame, change, options, said):
    ddf = dd.from_pandas(frame, npartitions=2)
    with pytest.raises(InputError, match=said):
        infer_frame(
            ddf if change is None else change(ddf),
            "m",
            **{"client": unused, "output_dtypes": DTYPES, **options},
        )


def test_without_dask_dataframe_an_error_says_what_to_install(unused, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.dataframe", None)
    with pytest.raises(ImportError, match=r"pip install 'dask\[dataframe\]'"):
        infer_frame(None, "m", client=unused, output_dtypes=DTYPES)
