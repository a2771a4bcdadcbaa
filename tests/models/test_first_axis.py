"""Whether the first dimension is a batch, and how sure that is."""

from __future__ import annotations

import pytest

from tcm_sync import TensorSpec
from tcm_sync.models.batch import guess_first_axis


def specs(*tensors):
    """Make specs of (first dimension, more): a name, None, or a size; or None for an unknown rank."""
    made = []
    for place, dims in enumerate(tensors):
        if dims is None:
            made.append(TensorSpec(f"t{place}", "FP32", None))
            continue
        sizes = tuple(size if isinstance(size, int) else -1 for size in dims)
        names = tuple(size if isinstance(size, str) else None for size in dims)
        made.append(TensorSpec(f"t{place}", "FP32", sizes, names if any(names) else ()))
    return made


@pytest.mark.parametrize(
    ("inputs", "outputs", "is_batch", "certainty"),
    [
        ([("batch", 4)], [("batch", 2)], True, "certain"),
        ([("N", 4), ("N", "seq")], [("N",)], True, "certain"),
        ([("batch_size", "sequence_length")], [("batch_size", 2)], True, "certain"),
        ([("dynamic_batch", 4)], [(None, 2)], True, "likely"),
        ([("batchSize", 4)], [("Softmax_dim_0", 2)], True, "likely"),
        ([(None, 4)], [(None, 2)], True, "likely"),
        ([("unk__12", 4)], [("unk__12", 2)], True, "unsure"),
        ([("seq_len", 4)], [("seq_len", 2)], False, "likely"),
        ([("N", "N"), ("N", 16)], [("N", 16)], False, "certain"),
        ([("N", 16)], [("N", "N")], False, "certain"),
        ([("batch", 16), ("batch", 8)], [("batch", "batch")], False, "certain"),
        ([("N", 16), ("N", "M", "M")], [("N", "M")], True, "certain"),
        ([("unk__1", "unk__1")], [("unk__1",)], True, "unsure"),
        ([("unk__13", 4), ("unk__14", 4)], [("unk__15", 2)], True, "unsure"),
        ([("batch", 4), ("unk__14", 4)], [("unk__15", 2)], False, "unsure"),
        (
            [("p2o.DynamicDimension.0", 3, "p2o.DynamicDimension.1")],
            [("p2o.DynamicDimension.2",)],
            True,
            "unsure",
        ),
        ([("batch_dynamic_axes_1", 4)], [("batch_dynamic_axes_1", 4)], True, "unsure"),
        ([("tokens_dynamic_axes_1", 4)], [("y_dynamic_axes_1", 4)], True, "unsure"),
        ([("Classifier_dim_0", 4)], [("Classifier_dim_0", 4)], True, "unsure"),
        ([("batch", 4)], [("Softmaxclass_dim_0", 4)], True, "likely"),
        ([("s77", 4)], [("s77", 2)], True, "unsure"),
        ([("2*s0", 4)], [("s0 + 1", 2)], True, "unsure"),
        ([("u0", 4)], [("u0", 2)], True, "unsure"),
        ([("NonZero_5_o0__d1", 4)], [("x", 2)], True, "unsure"),
        ([("?", "?")], [("?",)], True, "unsure"),
        ([("-1", 3, "-1")], [("-1",)], True, "unsure"),
        ([("None", 4)], [("None", 4)], True, "unsure"),
        ([("samples", 4)], [("samples", 4)], True, "certain"),
        ([("num_tokens", 4)], [("num_tokens", 2)], False, "likely"),
        ([("batch", 4), ("other", 2)], [("batch",)], False, "unsure"),
        ([(None, 4)], [None], False, "unsure"),
        ([(1, 4)], [(1, 2)], False, "certain"),
        ([("batch", 4)], [(1,)], False, "certain"),
        ([()], [("batch",)], False, "certain"),
        ([], [("batch",)], False, "certain"),
        ([("batch",)], [], False, "certain"),
    ],
)
def test_the_first_dimension_is_judged_by_its_size_and_its_name(
    inputs, outputs, is_batch: bool, certainty: str
) -> None:
    found = guess_first_axis(specs(*inputs), specs(*outputs))
    assert (found.is_batch, found.certainty) == (is_batch, certainty), found.reason


def test_the_reason_names_the_dimension_that_is_there_twice() -> None:
    found = guess_first_axis(specs(("N", 16), ("N", "N")), specs(("N", 16)))
    assert found.reason == "two dimensions of 't1' are called 'N'"


def test_the_reason_names_the_tensor_that_settled_it() -> None:
    found = guess_first_axis(specs(("batch", 4), (3, 2)), specs(("batch",)))
    assert found.reason == "the first dimension of 't1' is fixed at 3"
