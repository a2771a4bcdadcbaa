"""Train the digit classifier of the demo, and choose the digits that the demo recognises.

    pip install scikit-learn
    python examples/train_digits.py

writes ``digits.onnx`` and ``digits.csv`` to ``tcm_sync/local/data``, from which the package reads
them. Seeds are fixed: the same versions on the same machine write the same bytes.

The data are scikit-learn's copy of the test part of UCI's "Optical Recognition of Handwritten
Digits" (E. Alpaydin and C. Kaynak, 1998; CC BY 4.0): 1797 images of 8 x 8 grey levels from 0
(paper) to 16 (ink). A quarter is held out for the test. The data do not say who wrote which digit, so
the same people wrote training and test images: the accuracy printed here does not hold for new writers.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

DATA = Path(__file__).parents[1] / "tcm_sync" / "local" / "data"
SEED = 0
HIDDEN = 128
EPOCHS = 100
INK = 16.0  # the darkest grey level
SAMPLES_PER_DIGIT = 2

# Old enough for the oldest onnx and onnxruntime that the package supports (setup.cfg).
OPSET = 17
IR_VERSION = 8


def with_shifted(images: np.ndarray) -> np.ndarray:
    """Add to `images` (float64 [n, 64]) each of them moved half a pixel left, right, up and down: [5n, 64].

    The set is small; in cross-validation over the training images this removes nearly a third of the errors.
    """
    margin = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    centre = margin[:, 1:-1, 1:-1]
    neighbours = [margin[:, 1:-1, :-2], margin[:, 1:-1, 2:], margin[:, :-2, 1:-1], margin[:, 2:, 1:-1]]
    moved = [(centre + neighbour) / 2 for neighbour in neighbours]
    return np.concatenate([centre, *moved]).reshape(-1, 64)


def train(images: np.ndarray, digits: np.ndarray) -> MLPClassifier:
    """Fit one hidden layer to `images` ([n, 64], grey levels) and their `digits` ([n])."""
    shifted = with_shifted(images / INK)
    classifier = MLPClassifier((HIDDEN,), max_iter=EPOCHS, n_iter_no_change=EPOCHS, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        return classifier.fit(shifted, np.tile(digits, len(shifted) // len(digits)))


def to_onnx(classifier: MLPClassifier) -> onnx.ModelProto:
    """Write the trained network as an ONNX graph.

    Grey levels are scaled inside the model, by dividing the first layer's weights, so that callers
    send the images as they are.

    Returns
    -------
    onnx.ModelProto
        ``image`` FP32 [-1, 64] in, ``probabilities`` FP32 [-1, 10] out.
    """
    hidden, output = classifier.coefs_
    hidden_bias, output_bias = classifier.intercepts_
    weights = {
        "hidden_weights": hidden / INK,
        "hidden_bias": hidden_bias,
        "output_weights": output,
        "output_bias": output_bias,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["image", "hidden_weights", "hidden_bias"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "output_weights", "output_bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="examples/train_digits.py",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def choose_samples(digits: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Take the first held-out examples of each digit, whether or not the model recognises them.

    Parameters
    ----------
    digits : numpy.ndarray
        int64 [n], the labels of the whole data set.
    test : numpy.ndarray
        int64 [m], the indices of the held-out images, ascending.

    Returns
    -------
    numpy.ndarray
        int64 [10 * SAMPLES_PER_DIGIT], indices into the data set: 0 to 9, and again 0 to 9.
    """
    first = [test[digits[test] == digit][:SAMPLES_PER_DIGIT] for digit in range(10)]
    return np.stack(first, axis=1).ravel()


def main() -> None:
    """Train, say how well it went, write the files."""
    parser = argparse.ArgumentParser(description="Train the digit classifier of the demo.")
    parser.add_argument("--directory", type=Path, default=DATA, help="where to write (default: the package)")
    directory = parser.parse_args().directory

    images, digits = load_digits(return_X_y=True)
    training, test = train_test_split(np.arange(len(digits)), stratify=digits, random_state=SEED)
    training.sort()
    test.sort()
    model = to_onnx(train(images[training], digits[training]))

    (answers,) = ReferenceEvaluator(model).run(None, {"image": images[test].astype(np.float32)})
    right = int((answers.argmax(axis=1) == digits[test]).sum())
    print(f"{len(training)} training images; {right} of {len(test)} others right: {right / len(test):.1%}")

    samples = choose_samples(digits, test)
    assert not set(samples) & set(training), "a sample is training data"
    table = np.column_stack([samples, digits[samples], images[samples]]).astype(int)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "digits.onnx")
    np.savetxt(
        directory / "digits.csv",
        table,
        fmt="%d",
        delimiter=",",
        header="index in sklearn.datasets.load_digits(), digit, 64 grey levels from 0 to 16, row by row",
    )
    for name in ("digits.onnx", "digits.csv"):
        print(f"{directory / name}: {(directory / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
