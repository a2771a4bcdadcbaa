import io
import os
import re
import subprocess
import sys
from importlib import resources

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from tcm_sync.errors import ConnectionLostError
from tcm_sync.local import demo
from tcm_sync.local.digits import load_samples, model_file

LAST_LINE = re.compile(
    r"accuracy (\d+\.\d)% \((\d+) of (\d+)\), (\d+) requests from (\d+) threads in \d+\.\d\d s"
)


def run_demo(encoding):
    """Run the demo as a user does, in a terminal of 80 columns; a leak of any kind writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-m", "tcm_sync.local.demo"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.decode() == ""
    assert done.returncode == 0
    return done.stdout.decode(encoding).splitlines()


@pytest.fixture
def digits():
    return load_samples()


@pytest.fixture
def images(digits):
    return np.stack([digit.image for digit in digits])


class TestTheCommand:
    def test_draws_every_digit_and_ends_with_the_figures(self):
        lines = run_demo("utf-8")
        accuracy, right, digits, requests, threads = LAST_LINE.fullmatch(lines[-1]).groups()
        assert digits == requests == "20"
        assert int(threads) > 1
        assert float(accuracy) == pytest.approx(100 * int(right) / 20, abs=0.05)
        assert float(accuracy) >= 90
        captions = re.findall(r"\b(\d)(?:, not \d)?  \d+\.\d%", "\n".join(lines[:-1]))
        assert len(captions) == 20
        assert set(captions) == set("0123456789")
        assert any("█" in line for line in lines)
        assert max(map(len, lines)) <= 80

    def test_writes_plain_ascii_where_the_terminal_cannot_do_better(self):
        lines = run_demo("ascii")
        assert any("@@" in line for line in lines)
        assert LAST_LINE.fullmatch(lines[-1])


class TestTheVerdict:
    @pytest.fixture
    def answer_with(self, monkeypatch):
        """Run the demo with the given function in place of the request."""

        def run(recognise):
            monkeypatch.setattr(demo, "recognise", lambda client, digit: recognise(digit))
            out = io.StringIO()
            return demo.main(out), out.getvalue()

        return run

    def test_one_unanswered_request_fails_it(self, digits, answer_with):
        def recognise(digit):
            if digit.row == digits[3].row:
                return demo.Answer(digit, error=ConnectionLostError("the peer hung up"))
            return demo.Answer(digit, digit.label, 1.0)

        status, text = answer_with(recognise)
        assert status == 1
        assert "no answer" in text
        assert f"digit {digits[3].row}: ConnectionLostError: the peer hung up" in text
        assert "accuracy 95.0% (19 of 20)" in text

    @pytest.mark.parametrize(("mistakes", "status"), [(2, 0), (3, 1)])
    def test_it_fails_below_nine_answers_in_ten(self, digits, answer_with, mistakes, status):
        wrong = {digit.row for digit in digits[:mistakes]}

        def recognise(digit):
            return demo.Answer(digit, (digit.label + (digit.row in wrong)) % 10, 0.5)

        assert answer_with(recognise)[0] == status

    def test_a_failed_call_becomes_an_answer_that_carries_the_error(self, digits):
        class Client:
            def infer(self, *args, **kwargs):
                raise ConnectionLostError("the peer hung up")

        answer = demo.recognise(Client(), digits[0])
        assert isinstance(answer.error, ConnectionLostError)
        assert not answer.right
        assert answer.caption == "no answer"


class TestTheDrawing:
    def test_paper_is_blank_and_ink_is_dense(self):
        image = np.zeros(64, np.float32)
        image[:8] = 16
        for shades in (demo.SHADES, demo.ASCII_SHADES):
            drawing = demo.draw(image, shades)
            assert drawing == [shades[-1] * 16] + [" " * 16] * 7

    def test_more_ink_is_never_lighter(self):
        for shades in (demo.SHADES, demo.ASCII_SHADES):
            drawn = [demo.draw(np.full(64, level, np.float32), shades)[0][0] for level in range(17)]
            assert [shades.index(shade) for shade in drawn] == sorted(map(shades.index, drawn))
            assert set(drawn) == set(shades)

    @pytest.mark.parametrize(("columns", "abreast"), [(10, 1), (16, 1), (80, 4), (200, 10)])
    def test_digits_stand_side_by_side_as_the_terminal_is_wide(self, digits, columns, abreast):
        answers = [demo.Answer(digit, digit.label, 1.0) for digit in digits]
        lines = list(demo.lay_out(answers, demo.SHADES, columns))
        assert lines[8].split() == [
            text for digit in digits[:abreast] for text in (str(digit.label), "100.0%")
        ]
        assert len(lines) == 10 * -(-len(digits) // abreast)

    def test_a_mistake_is_shown_as_one(self, digits):
        assert demo.Answer(digits[0], 7, 0.512).caption == "7, not 0  51.2%"


class TestTheSamples:
    def test_every_digit_twice_from_different_places_of_the_data_set(self, digits):
        assert [digit.label for digit in digits] == [*range(10), *range(10)]
        rows = [digit.row for digit in digits]
        assert len(set(rows)) == 20
        assert all(0 <= row < 1797 for row in rows)

    def test_images_are_grey_levels_of_the_data_set(self, digits, images):
        assert images.shape == (20, 64)
        assert images.dtype == np.float32
        assert images.min() == 0
        assert images.max() == 16
        assert np.array_equal(images, np.rint(images))

    def test_they_and_the_model_stay_small(self):
        files = list((resources.files("tcm_sync.local") / "data").iterdir())
        assert {file.name for file in files} == {"ATTRIBUTION.txt", "digits.csv", "digits.onnx"}
        assert sum(len(file.read_bytes()) for file in files) < 60_000


class TestTheModel:
    @pytest.fixture
    def runs(self, images):
        with model_file() as path:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            reference = ReferenceEvaluator(onnx.load(path))
        return {
            "onnxruntime": session.run(None, {"image": images})[0],
            "reference": reference.run(None, {"image": images})[0],
        }

    def test_its_signature_is_the_documented_one(self):
        with model_file() as path:
            graph = onnx.load(path).graph
        (image,), (probabilities,) = graph.input, graph.output
        assert (image.name, probabilities.name) == ("image", "probabilities")
        for tensor, width in ((image, 64), (probabilities, 10)):
            kind = tensor.type.tensor_type
            assert kind.elem_type == onnx.TensorProto.FLOAT
            batch, features = kind.shape.dim
            assert batch.dim_param
            assert features.dim_value == width

    def test_both_evaluators_agree(self, runs):
        assert runs["onnxruntime"].dtype == runs["reference"].dtype == np.float32
        np.testing.assert_allclose(runs["onnxruntime"], runs["reference"], rtol=1e-4, atol=1e-6)

    def test_it_answers_probabilities_and_reads_the_samples(self, runs, digits):
        for probabilities in runs.values():
            assert probabilities.shape == (20, 10)
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
            right = probabilities.argmax(axis=1) == [digit.label for digit in digits]
            assert right.mean() >= 0.9
