"""The handwritten digits that the demo recognises, and the model that recognises them.

Both are files of this package, written by ``examples/train_digits.py`` (see
``data/ATTRIBUTION.txt`` for where the digits come from). The model takes ``image``, FP32 [-1, 64],
and returns ``probabilities``, FP32 [-1, 10].
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

_DATA = resources.files("tcm_sync.local") / "data"


class Digit(NamedTuple):
    """One handwritten digit that the model was not trained on.

    Attributes
    ----------
    row : int
        Its index in scikit-learn's ``load_digits()``.
    label : int
        The digit that it shows, 0 to 9.
    image : numpy.ndarray
        float32 [64]: 8 rows of 8 grey levels, from 0 (paper) to 16 (ink).
    """

    row: int
    label: int
    image: NDArray[np.float32]


def model_file() -> AbstractContextManager[Path]:
    """Return a context manager whose value is the path of the classifier's ONNX file."""
    return resources.as_file(_DATA / "digits.onnx")


def load_samples() -> list[Digit]:
    """Read the sample digits: two of each, in the order 0 to 9 and again 0 to 9."""
    lines = (_DATA / "digits.csv").read_text(encoding="ascii").splitlines()
    table = np.loadtxt(lines, dtype=np.int64, delimiter=",", ndmin=2)
    return [Digit(int(line[0]), int(line[1]), line[2:].astype(np.float32)) for line in table]
