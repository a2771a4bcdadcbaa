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


def test_the_reason_names_the_tensor_that_settled_it() -> None:
    found = guess_first_axis(specs(("batch", 4), (3, 2)), specs(("batch",)))
    assert found.reason == "the first dimension of 't1' is fixed at 3"
