"""What counts as an array: numpy's own in every layout, other libraries', lists and their elements."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tcm_sync._tensors import check_inputs
from tcm_sync.errors import InputError

from ..helpers.names import steady

if TYPE_CHECKING:
    from pathlib import Path


def made(data: object) -> np.ndarray:
    """Return the checked array; whatever comes in, this is what the encoder can take."""
    (tensor,) = check_inputs({"x": data})
    assert type(tensor.array) is np.ndarray
    assert tensor.array.flags.c_contiguous
    assert tensor.array.flags.aligned
    assert tensor.array.dtype.isnative
    assert tensor.shape == tensor.array.shape
    return tensor.array


def datatype(data: object) -> str:
    return check_inputs({"x": data})[0].datatype


def refused(data: object, match: str) -> None:
    with pytest.raises(InputError, match=rf'^input "x": .*{match}'):
        check_inputs({"x": data})


# --- numpy arrays ---

GRID = np.arange(12, dtype=np.float32).reshape(3, 4)


def misaligned(values: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"\0" + values.tobytes(), values.dtype, offset=1).reshape(values.shape)


@pytest.mark.parametrize(
    "data",
    [
        GRID,
        np.asfortranarray(GRID),
        GRID.astype(">f4"),
        GRID.astype("<f4"),
        np.repeat(GRID, 2, axis=1)[:, ::2],
        GRID[::-1, ::-1][::-1, ::-1],
        GRID.T.copy().T,
        misaligned(GRID),
        misaligned(GRID.astype(">f4")),
        GRID.view(type("Measured", (np.ndarray,), {})),
        GRID.view(np.ma.MaskedArray),
        np.ma.masked_array(GRID, mask=np.zeros(GRID.shape, bool)),
    ],
)
def test_every_layout_of_an_array_is_the_same_tensor(data: np.ndarray) -> None:
    before = data.copy()
    result = made(data)
    assert result.dtype == np.float32
    assert result.tolist() == GRID.tolist()
    assert np.array_equal(data, before)


def test_a_read_only_array_is_taken_as_it_is() -> None:
    data = GRID.copy()
    data.flags.writeable = False
    assert made(data) is data


def test_a_broadcast_array_stays_one() -> None:
    (tensor,) = check_inputs({"x": np.broadcast_to(np.float32(7), (2, 3))})
    assert tensor.array.tolist() == [[7.0] * 3] * 2
    assert tensor.array.strides == (0, 0)


def test_a_memory_mapped_array_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "grid.npy"
    np.save(path, GRID)
    data = np.load(path, mmap_mode="r")
    assert isinstance(data, np.memmap)
    assert made(data).tolist() == GRID.tolist()


@pytest.mark.parametrize("data", [np.ma.masked_array(GRID, mask=GRID > 4), [np.ma.masked, 1.5]])
def test_masked_elements_are_refused(data: Any) -> None:
    refused(data, r"masked elements have no form in JSON; \.filled\(\)|mixes MaskedConstant and float")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("?", "BOOL"),
        ("b", "INT8"),
        ("h", "INT16"),
        ("i", "INT32"),
        ("q", "INT64"),
        ("B", "UINT8"),
        ("H", "UINT16"),
        ("I", "UINT32"),
        ("Q", "UINT64"),
        ("e", "FP16"),
        ("f", "FP32"),
        ("d", "FP64"),
        ("U3", "BYTES"),
        ("S3", "BYTES"),
        ("intp", "INT64"),
    ],
)
def test_the_datatype_is_that_of_the_dtype(dtype: str, expected: str) -> None:
    assert datatype(np.ones((1, 2), dtype)) == expected
    assert datatype(np.ones((1, 2), np.dtype(dtype).newbyteorder())) == expected


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (np.zeros(2, "complex128"), "complex128.*two tensors"),
        (np.zeros(2, "datetime64[s]"), "datetime64.*integers"),
        (np.zeros(2, "timedelta64[D]"), "timedelta64.*integers"),
        (np.zeros(2, [("a", "f4")]), "structured; send each field"),
        (np.zeros(2, "V3"), "astype"),
        (np.rec.fromarrays([[1], [2.0]]), "structured; send each field"),
        (np.array([1.0, np.inf], "f4"), "infinity"),
        (np.array([-np.inf], "f2"), "infinity"),
    ],
)
def test_arrays_that_no_datatype_carries_are_refused(data: np.ndarray, advice: str) -> None:
    refused(data, advice)


@pytest.mark.skipif(np.dtype("longdouble").itemsize == 8, reason="longdouble is float64 here")
def test_longdouble_is_refused_alone_and_among_floats() -> None:
    refused(np.zeros(2, "longdouble"), "longdouble.*float64")
    refused([np.longdouble(1)], "longdouble.*make the numbers float")
    refused([np.longdouble(1), 1.0], "longdouble.*make the numbers float")


def test_the_small_floats_of_frameworks_are_refused() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    refused(np.zeros(2, ml_dtypes.bfloat16), "BF16.*float32")
    refused([ml_dtypes.bfloat16(1)], "bfloat16 has no datatype")


# --- other libraries' arrays ---


def test_pandas_objects_are_arrays() -> None:
    pd = pytest.importorskip("pandas")
    assert made(pd.Series([1.5, 2.5], dtype="float32")).tolist() == [1.5, 2.5]
    assert datatype(pd.Series([1.5], dtype="float32")) == "FP32"
    assert datatype(pd.Series([1, 2], dtype="Int64")) == "INT64"
    assert datatype(pd.Series([True, False])) == "BOOL"
    assert made(pd.Series(["a", "b"])).tolist() == ["a", "b"]
    assert made(pd.Series(["a", "b"], dtype="string")).tolist() == ["a", "b"]
    assert made(pd.Series(["a", "b", "a"], dtype="category")).tolist() == ["a", "b", "a"]
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    assert made(frame).tolist() == [[1.0, 0.5], [2.0, 1.5]]
    assert made(frame.to_numpy().astype(object)).tolist() == [[1.0, 0.5], [2.0, 1.5]]
    assert made([pd.Series([1, 2]), pd.Series([3, 4])]).tolist() == [[1, 2], [3, 4]]


def test_what_pandas_holds_besides_is_refused() -> None:
    pd = pytest.importorskip("pandas")
    refused(pd.DataFrame({"a": [1], "b": ["x"]}), "mixes int and str")
    refused(pd.Series(["a", None], dtype=object), "None is not a value")
    refused(pd.Series([1, pd.NA], dtype=object), "NA is not a value")
    refused(pd.Series(pd.to_datetime(["2020-01-01"])), "datetime64.*integers")
    refused(pd.Series(pd.to_datetime(["2020-01-01"])).astype(object), "Timestamp.*integers")


BIG = 2**53 + 1  # the first integer that no float64 is


def test_numbers_that_pandas_turned_into_others_are_refused_by_column() -> None:
    pd = pytest.importorskip("pandas")
    changed = rf"{BIG} became 9007199254740992\.0 in the conversion to float64"
    refused(pd.DataFrame({"s": [0.5], "id": [BIG]}), rf'column "id": {changed}')
    refused(pd.DataFrame({"s": np.float32([0.5]), "id": [BIG]}), rf'column "id": {changed}')
    refused(pd.DataFrame({"k": [-1], "id": np.uint64([BIG])}), rf'column "id": {changed}')
    refused(pd.DataFrame({"id": [-BIG], "k": np.uint64([7])}), rf'column "id": -{BIG} became')
    refused(pd.DataFrame({"id": pd.array([BIG, None], dtype="Int64")}), rf'column "id": {changed}')
    refused(pd.DataFrame([[1.5, BIG]]).set_axis(["a", "a"], axis=1), rf'column "a": {changed}')
    refused(pd.DataFrame({"a": pd.arrays.SparseArray([BIG, 0]), "b": 0.5}), rf'column "a": {changed}')
    for series in (pd.Series([BIG, None], dtype="Int64"), pd.Series(pd.Categorical([BIG, None]))):
        refused(series, changed)
        refused([series, series], changed)
    refused(pd.Index([BIG, None], dtype="Int64"), changed)
    refused(pd.Series([BIG, 0.5], dtype=object), "an integer among the floats")
    refused(pd.DataFrame({"id": [BIG], "s": [0.5]}, dtype=object), "an integer among the floats")


def test_numbers_that_pandas_kept_are_taken() -> None:
    pd = pytest.importorskip("pandas")
    assert made(pd.DataFrame({"id": [2**53, 2**60], "s": [0.5, 1e300]})).tolist() == [
        [2.0**53, 0.5],
        [2.0**60, 1e300],
    ]
    assert made(pd.DataFrame({"id": [BIG], "k": np.int8([1])})).tolist() == [[BIG, 1]]
    assert made(pd.DataFrame({"id": pd.array([BIG], dtype="Int64"), "k": [1]})).tolist() == [[BIG, 1]]
    assert made(pd.DataFrame({"a": np.uint64([2**64 - 1])})).tolist() == [[2**64 - 1]]
    assert made(pd.Series([1.0, float(BIG)])).tolist() == [1.0, 2.0**53]
    nullable = made(pd.Series([1, None], dtype="Int64"))
    assert nullable[0] == 1.0
    assert np.isnan(nullable[1])
    column = np.float32([2**24, 2**30])
    assert made(pd.DataFrame({"a": column, "b": np.int16([1, 2])})).tolist() == [[2.0**24, 1], [2.0**30, 2]]


class Column:
    """A column as polars and pyarrow have it: integers with a missing value become floats."""

    def __init__(self, *values: Any, as_list: str = "to_list") -> None:
        self.values = list(values)
        setattr(self, as_list, lambda: self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if None in self.values:
            return np.array([np.nan if value is None else value for value in self.values])
        return np.array(self.values)


class Table:
    """A table as polars has it: all columns become one dtype."""

    def __init__(self, **columns: Column) -> None:
        self.columns = list(columns)
        self._columns = list(columns.values())

    def get_columns(self) -> list[Column]:
        return self._columns

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.column_stack([np.asarray(column) for column in self._columns])


class ArrowTable(Table):
    """The same as pyarrow has it."""

    def __init__(self, **columns: Column) -> None:
        super().__init__(**columns)
        self.column_names = self.columns
        self.columns = self._columns  # type: ignore[assignment]

    def column(self, place: int) -> Column:
        return self._columns[place]


@pytest.mark.parametrize("kind", [Table, ArrowTable])
def test_tables_of_other_libraries_are_held_to_their_columns(kind: Any) -> None:
    refused(kind(s=Column(0.5, 1), id=Column(2, BIG)), f'column "id": {BIG} became')
    refused(kind(id=Column(2, BIG), u=Column(2**63, 1), k=Column(-1, 1)), f'column "id": {BIG} became')
    refused(kind(id=Column(None, BIG)), f'column "id": {BIG} became')
    refused(
        kind(a=Column(True, False), b=Column(0.5, 1)), 'mixes bool in column "a" and numbers in column "b"'
    )
    refused(kind(a=Column(True, False), b=Column(5, 1)), 'mixes bool in column "a" and numbers in column "b"')
    assert made(kind(s=Column(0.5, 1), id=Column(2, 3))).tolist() == [[0.5, 2.0], [1.0, 3.0]]
    assert made(kind(id=Column(2, BIG), k=Column(-1, 1))).tolist() == [[2, -1], [BIG, 1]]


@pytest.mark.parametrize("name", ["to_pylist", "to_list", "tolist"])
def test_columns_of_other_libraries_are_held_to_their_elements(name: str) -> None:
    refused(Column(BIG, None, as_list=name), f"{BIG} became")
    refused(Column(None, BIG, 3, as_list=name), f"{BIG} became")
    assert made(Column(2, 2**53, as_list=name)).tolist() == [2, 2**53]
    assert made(Column(None, 2**60, as_list=name)).tolist()[1] == 2.0**60


class Wrapped:
    """An array of another library, as far as numpy sees it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values


class Interfaced:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.values.__array_interface__


class Packed:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


class Both(Wrapped):
    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("__array__ comes first")


@pytest.mark.parametrize("kind", [Wrapped, Interfaced, Packed, Both])
def test_the_array_protocols_are_understood_alone_and_in_lists(kind: Any) -> None:
    assert made(kind(GRID)).tolist() == GRID.tolist()
    assert datatype(kind(GRID)) == "FP32"
    assert made([kind(GRID), kind(GRID)]).shape == (2, 3, 4)


def test_text_that_comes_through_a_protocol_is_checked_like_any_other() -> None:
    assert made(Wrapped(np.array(["a", "é"]))).tolist() == ["a", "é"]
    refused(Wrapped(np.array(["a", 1], object)), "mixes int and str")


class Unwilling:
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("can't convert a device tensor; use .cpu() first")


class UnwillingPack:
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("bfloat16 cannot be exported")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def test_what_an_array_raises_that_will_not_convert_goes_up_as_it_is() -> None:
    for data in (Unwilling(), [Unwilling()]):
        with pytest.raises(TypeError, match="can't convert a device tensor"):
            check_inputs({"x": data})
    with pytest.raises(BufferError, match="bfloat16 cannot"):
        check_inputs({"x": UnwillingPack()})


def test_buffers_are_arrays() -> None:
    assert made(array.array("f", [1.5, 2.5])).tolist() == [1.5, 2.5]
    assert datatype(array.array("f", [1.5])) == "FP32"
    assert made(memoryview(GRID)).tolist() == GRID.tolist()
    with mmap.mmap(-1, 16) as region, memoryview(region) as view:
        result = made(view).tolist()
    assert result == [0] * 16
    assert made([array.array("h", [1, 2]), array.array("h", [3, 4])]).tolist() == [[1, 2], [3, 4]]
    released = memoryview(b"")
    released.release()
    refused(released, "memoryview did not become a numpy array")


# --- lists ---


@pytest.mark.parametrize(
    ("data", "expected", "values"),
    [
        ([1.5, 2.5], "FP64", [1.5, 2.5]),
        ([[1, 2], [3, 4]], "INT64", [[1, 2], [3, 4]]),
        (((1, 2), [3, 4]), "INT64", [[1, 2], [3, 4]]),
        (range(3), "INT64", [0, 1, 2]),
        (collections.deque([1, 2]), "INT64", [1, 2]),
        ([True, np.False_], "BOOL", [True, False]),
        ([1, 2.5], "FP64", [1.0, 2.5]),
        ([np.float32(0.5), 2], "FP64", [0.5, 2.0]),
        ([2**53, 0.5], "FP64", [2.0**53, 0.5]),
        ([2**63, 1], "UINT64", [2**63, 1]),
        ([-(2**63), 2**63 - 1], "INT64", [-(2**63), 2**63 - 1]),
        ([np.uint64(2**64 - 1), 0], "UINT64", [2**64 - 1, 0]),
        ([np.int8(1), np.int64(2)], "INT64", [1, 2]),
        ([np.uint64(1), np.int64(-1)], "INT64", [1, -1]),
        ([np.float32(1.5), np.float32(2.5)], "FP32", [1.5, 2.5]),
        ([np.float16(1.5)], "FP16", [1.5]),
        ([np.int8(1)], "INT8", [1]),
        ([[np.uint16(1)], [np.uint16(2)]], "UINT16", [[1], [2]]),
        (["a", "b"], "BYTES", ["a", "b"]),
        ([["a"], [b"b"]], "BYTES", [["a"], ["b"]]),
        ([np.str_("é"), np.bytes_(b"b")], "BYTES", ["é", "b"]),
        ([], "FP64", []),
        ([[], []] * 0 + [[]], "FP64", [[]]),
        ([np.array([1, 2], "i2"), np.array([3, 4], "i2")], "INT16", [[1, 2], [3, 4]]),
        ([[np.ones((1, 2))], [np.zeros((1, 2))]], "FP64", [[[[1.0, 1.0]]], [[[0.0, 0.0]]]]),
        ([np.array(1.5), np.array(2.5)], "FP64", [1.5, 2.5]),
        ([np.array(["a"]), np.array(["bc"])], "BYTES", [["a"], ["bc"]]),
        (np.array([1, 2], object), "INT64", [1, 2]),
        (np.array([[1.5, 2]], object), "FP64", [[1.5, 2.0]]),
        (np.array([True], object), "BOOL", [True]),
    ],
)
def test_lists_have_numpys_datatypes(data: Any, expected: str, values: list[Any]) -> None:
    assert datatype(data) == expected
    assert made(data).tolist() == values


def test_an_object_array_of_arrays_is_joined() -> None:
    data = np.empty(2, object)
    data[0], data[1] = np.array([1, 2]), np.array([3, 4])
    assert made(data).tolist() == [[1, 2], [3, 4]]


def test_members_of_an_integer_enum_are_integers() -> None:
    class Level(enum.IntEnum):
        LOW = 1
        HIGH = 2

    assert made([Level.LOW, Level.HIGH]).tolist() == [1, 2]
    assert datatype([Level.LOW]) == "INT64"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([True, 1], "mixes bool and int"),
        ([True, 1.0], "mixes bool and float"),
        (["a", 1], "mixes int and str"),
        (["a", True], "mixes bool and str"),
        ([b"a", 1.5], "mixes bytes and float"),
        (np.array(["a", 1], object), "mixes int and str"),
        ([[1, 2], [3]], "ragged: dimension 1 has lists of lengths 1, 2"),
        ([[[1], [2]], [[3], [4, 5]]], "ragged: dimension 2 has lists of lengths 1, 2"),
        ([[1], []], "ragged: dimension 1"),
        ([1, [2]], "ragged: lists beside elements"),
        ([[1], 2], "ragged: lists beside elements"),
        ([[], 2], "ragged: lists beside elements"),
        ([[1], [[2]]], "ragged: lists beside elements"),
        (np.array([[1], [2, 3]], object), "ragged: .*object array"),
        ([np.ones(2), np.ones(3)], r"ragged: arrays of shapes \(2,\) and \(3,\)"),
        ([np.ones(2, "f4"), np.ones(2, "f8")], "mixes arrays of float32 and float64; .astype"),
        ([np.ones(2), 1.0], "mixes float and ndarray"),
        ([np.ones(2), [1.0, 2.0]], "ragged: lists beside elements"),
        ([2**64], "fit neither INT64 nor UINT64"),
        ([-(2**63) - 1], "fit neither INT64 nor UINT64"),
        ([2**63, -1], "fit neither INT64 nor UINT64"),
        ([10**5000], "fit neither INT64 nor UINT64"),
        ([2**53 + 1, 0.5], "an integer among the floats"),
        ([10**400, 0.5], "an integer among the floats"),
        ([None, 1.0], "None is not a value; a missing float is"),
        ([1j], "complex has no datatype.*two tensors"),
        ([np.complex64(1)], "complex64 has no datatype.*two tensors"),
        ([decimal.Decimal(1)], "Decimal has no datatype; elements are bool, int"),
        ([{"a": 1}, 2], "dict has no datatype"),
        ([{1}], "set has no datatype"),
        ([range(2)], "range has no datatype"),
        ([bytearray(b"a")], "bytearray has no datatype"),
        ([datetime.datetime(2020, 1, 1)], "datetime has no datatype; send times as integers"),
        ([datetime.timedelta(1)], "timedelta has no datatype; send times"),
        ([np.datetime64("2020")], "datetime64 has no datatype; send times"),
        ([np.timedelta64(1, "s")], "timedelta64 has no datatype; send times"),
        ([np.void(b"a")], "void has no datatype"),
        ([float("inf")], "infinity"),
        ([[1.5], [-float("inf")]], "infinity"),
        ({"y": 1}, "dict is not array-like; pass a numpy array or nested lists"),
        ({1, 2}, "set is not array-like"),
        (iter([1]), "list_iterator is not array-like"),
        (object(), "object is not array-like"),
        (bytearray(b"ab"), "bytearray is 0-d"),
    ],
    ids=lambda value: f"{type(value).__name__} {steady(value):.40}" if not isinstance(value, list) else None,
)
def test_what_is_no_tensor_is_refused_with_the_reason(data: Any, match: str) -> None:
    refused(data, match)


def test_numpys_warning_about_a_list_does_not_come_instead_of_the_refusal() -> None:
    refused([np.ones(2), np.ones((2, 2))], "ragged: arrays of shapes")


@pytest.mark.parametrize("depth", [33, 100, 100_000])
def test_lists_nested_too_deep_are_refused(depth: int) -> None:
    data: list[Any] = [1]
    for _ in range(depth - 1):
        data = [data]
    refused(data, "nested more than 32 deep")
    while data and isinstance(data[0], list):  # taken apart from outside: freeing it recurses otherwise
        data = data[0]


def test_lists_nested_32_deep_pass_and_arrays_in_them_count() -> None:
    data: Any = 1
    for _ in range(32):
        data = [data]
    assert made(data).shape == (1,) * 32
    deep: Any = np.ones(2)
    for _ in range(31):
        deep = [deep]
    assert made(deep).shape == (1,) * 31 + (2,)
    refused([deep], "nested more than 32 deep")


def test_an_array_that_holds_itself_is_refused() -> None:
    data = np.empty(1, object)
    data[0] = data
    refused(data, "arrays within arrays, nested too deeply")
    data[0] = None


def test_a_list_that_holds_itself_is_refused() -> None:
    data: list[Any] = []
    data.append(data)
    refused(data, "nested more than 32 deep")
    data.clear()


@pytest.mark.parametrize("code_point", [0x110000, 0xFFFFFFFF, 0x6C6C756E])
def test_an_array_of_text_whose_code_points_do_not_exist_is_refused(code_point: int) -> None:
    refused(np.array([0x61, code_point], np.uint32).view("<U1"), "its bytes are no text")


def test_the_fields_of_a_polars_struct_are_not_sent_without_their_names():
    polars = pytest.importorskip("polars")
    for column in ([{"a": 1, "b": 2}], [{"a": 2**60 + 1, "b": 2.5}], [{"a": True, "b": 2}]):
        with pytest.raises(InputError, match=r'structs have no datatype.*"a" and "b"'):
            check_inputs({"x": polars.Series(column)})


@pytest.mark.parametrize("texts", [["\u00e9\0", "b"], [b"a\0", b"b"]])
def test_a_nul_at_the_end_of_a_text_of_polars_is_refused_and_not_lost(texts):
    polars = pytest.importorskip("polars")
    with pytest.raises(InputError, match="ends in NUL"):
        check_inputs({"x": polars.Series(texts)})


@pytest.mark.parametrize("texts", [[], ["a", "\u00e9"], ["a\0b", ""]])
def test_texts_of_polars_arrive_as_they_are(texts):
    polars = pytest.importorskip("polars")
    (tensor,) = check_inputs({"x": polars.Series(texts, dtype=polars.String)})
    assert tensor.array.tolist() == texts
    assert tensor.datatype == "BYTES"
