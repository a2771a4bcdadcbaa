"""Recognise handwritten digits through the real client: ``python -m tcm_sync.local.demo``.

Starts a `LocalManager` with a small ONNX classifier, sends it one request a digit from several
threads at a time, and draws each digit with the answer. The exit status is 0 if every request was
answered and nearly every answer is right.
"""

from __future__ import annotations

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np

from tcm_sync import TcmClient
from tcm_sync.errors import TcmError
from tcm_sync.local import LocalManager
from tcm_sync.local.digits import Digit, load_samples, model_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

THREADS = 4
GOOD_ENOUGH = 0.9  # of the answers right; the model is right on 98.7% of the digits held out for testing

DARKEST = 16  # the grey level of ink
SHADES = " ░▒▓█"
ASCII_SHADES = " .:-=+*#%@"
WIDTH = 16  # columns of a drawn digit: two characters a pixel make it square
GAP = 3


class Answer(NamedTuple):
    """The result for one digit: the model's answer, or the error."""

    digit: Digit
    label: int | None = None
    confidence: float = 0.0
    error: TcmError | None = None

    @property
    def right(self) -> bool:
        """Whether the model's answer is right."""
        return self.label == self.digit.label

    @property
    def caption(self) -> str:
        """The line under the drawing."""
        if self.label is None:
            return "no answer"
        mistake = "" if self.right else f", not {self.digit.label}"
        return f"{self.label}{mistake}  {self.confidence:.1%}"


def recognise(client: TcmClient, digit: Digit) -> Answer:
    """Ask the model what one digit is."""
    try:
        result = client.infer("digits", {"image": digit.image.reshape(1, -1)}, output_dtypes=np.float32)
    except TcmError as error:
        return Answer(digit, error=error)
    probabilities = result["probabilities"][0]
    label = int(probabilities.argmax())
    return Answer(digit, label, float(probabilities[label]))


def draw(image: NDArray[np.float32], shades: str) -> list[str]:
    """Draw grey levels (float32 [64], 0 to 16) as 8 lines of `WIDTH` characters."""
    darkness = np.rint(image.reshape(8, 8) * (len(shades) - 1) / DARKEST).astype(int)
    return ["".join(shades[level] * 2 for level in row) for row in darkness]


def pick_shades(out: TextIO) -> str:
    """Choose characters that the encoding of `out` can write."""
    try:
        SHADES.encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII_SHADES
    return SHADES


def lay_out(answers: Sequence[Answer], shades: str, columns: int) -> Iterator[str]:
    """Yield the lines of all drawings and captions, as many side by side as `columns` can hold."""
    per_line = max(1, (columns + GAP) // (WIDTH + GAP))
    for start in range(0, len(answers), per_line):
        blocks = [
            [*draw(answer.digit.image, shades), answer.caption.center(WIDTH)]
            for answer in answers[start : start + per_line]
        ]
        for lines in zip(*blocks, strict=True):
            yield (" " * GAP).join(lines).rstrip()
        yield ""


def main(out: TextIO) -> int:
    """Run the demo, writing to `out`.

    Returns
    -------
    int
        The exit status.
    """
    digits = load_samples()
    with (
        model_file() as path,
        LocalManager(models={"digits": path}) as manager,
        TcmClient(manager.uri, route=manager.route) as client,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        print(f"Handwritten digits, sent to the model behind {manager.uri}\n", file=out)
        start = time.perf_counter()
        answers = list(pool.map(lambda digit: recognise(client, digit), digits))
        elapsed = time.perf_counter() - start

    for line in lay_out(answers, pick_shades(out), shutil.get_terminal_size().columns):
        print(line, file=out)
    failures = [answer for answer in answers if answer.error is not None]
    for answer in failures:
        print(f"digit {answer.digit.row}: {type(answer.error).__name__}: {answer.error}", file=out)
    right = sum(answer.right for answer in answers)
    accuracy = right / len(answers)
    print(
        f"accuracy {accuracy:.1%} ({right} of {len(answers)}), "
        f"{len(answers)} requests from {THREADS} threads in {elapsed:.2f} s",
        file=out,
    )
    return 0 if not failures and accuracy >= GOOD_ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main(sys.stdout))
