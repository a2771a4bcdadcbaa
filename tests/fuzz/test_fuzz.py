"""Bytes that nobody should send: mutations of good ones, few in every run, and as many as wanted by command.

`nox -s fuzz` draws 20,000 for each format (``TCM_FUZZ_EXAMPLES`` sets another number), and adds what fails to
tests/fuzz/corpus, from which later runs begin, and which every run reads whole.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from .targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = int(os.environ.get("TCM_FUZZ_EXAMPLES", "0"))
FEW = {"onnx": 100, "probes": 150, "handshakes": 150, "cli-files": 150}


def corpus(name):
    return sorted((CORPUS / name).glob("*"))


@pytest.mark.parametrize(
    ("name", "file"),
    [pytest.param(name, path, id=f"{name}-{path.name}") for name in TARGETS for path in corpus(name)],
)
def test_the_corpus_does_no_harm(name, file):
    TARGETS[name].check(file.read_bytes())


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize("name", TARGETS)
def test_mutations_do_no_harm(name):
    target = TARGETS[name]
    worst = []

    @settings(
        max_examples=EXAMPLES or FEW.get(name, 400),
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=not EXAMPLES,
    )
    @given(target.inputs([path.read_bytes() for path in corpus(name)]))
    def run(data):
        try:
            target.check(data)
        except Exception:
            worst[:] = [data]  # the last one is the smallest
            raise

    try:
        run()
    except BaseException:
        if EXAMPLES and worst:
            folder = CORPUS / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(worst[0]).hexdigest()[:12]).write_bytes(worst[0])
        raise
