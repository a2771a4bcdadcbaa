"""Analyses take the memory and time of what they look at, and not of the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.onnx_build import model, outside, value, weight

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")

# What an analysis adds to the peak of a process that has onnx loaded, in megabytes; and its seconds.
PROBE = """
import json, re, sys, time
import onnx
from tcm_sync.models import analyze

def peak():  # of this program alone: that of getrusage begins with its parent's
    return int(re.search("VmHWM: +(.+) kB", open("/proc/self/status").read().replace("\\t", " "))[1]) / 1024

before, start = peak(), time.monotonic()
analysis = analyze(onnx.load(sys.argv[1]) if "--load" in sys.argv else sys.argv[1])
print(json.dumps([peak() - before, time.monotonic() - start, analysis.parameter_bytes]))
"""


def probe(path: Path, *how: str) -> tuple[float, float, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, path, *how], capture_output=True, text=True, timeout=60, check=True
    )
    grown, seconds, size = json.loads(done.stdout)
    return grown, seconds, size


def test_weights_in_the_file_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(weights=[weight(f"w{n}", 5_000_000) for n in range(3)]).SerializeToString())
    grown, _, size = probe(path)
    assert size == 60_000_000
    assert grown < 10
    assert probe(path, "--load")[0] > 100  # what protobuf takes of itself: the file, and the message


def test_external_weights_are_never_read_whatever_their_size(tmp_path: Path) -> None:
    each, count = 2**30, 1000
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(each * 4 * count)  # a hole of 4 TB
    weights = [outside("w.bin", each, name=f"w{n}", offset=n * 4 * each) for n in range(count)]
    path = tmp_path / "m.onnx"
    path.write_bytes(model([value("x")], weights=weights).SerializeToString())
    grown, seconds, size = probe(path)
    assert size == 4 * each * count
    assert grown < 50
    assert seconds < 10  # a tenth of a second in truth
