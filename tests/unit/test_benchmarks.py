"""The benchmarks run: each subject once, as short as can be. No figure is judged."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SUBJECTS = (
    "batching",
    "idle",
    "image",
    "imports",
    "memory",
    "reply",
    "roundtrip",
    "sockets",
    "stream",
    "threads",
    "tick",
)
NEED_THE_PEER = {"image", "roundtrip"}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="they read /proc, and their server uses epoll"
)


def needs(module: str) -> None:
    """Skip where the extra ``bench`` is missing: its libraries want newer ones than the oldest of ours."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=100
    ).stdout


def test_no_subject_is_left_out() -> None:
    assert sorted(run("--list").split()) == list(SUBJECTS)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_yields_rows_with_a_verdict(name: str) -> None:
    if name in NEED_THE_PEER:
        needs("tcm_client")
    rows: list[dict[str, Any]] = json.loads(run("--short", "--json", "--only", name))["rows"]
    assert any(row["passed"] is not None for row in rows)
    for row in rows:
        assert all(math.isfinite(figure) for figure in row["figures"])
        assert row["figures"]
        assert (row["least"] is None and row["most"] is None) == (row["passed"] is None)


def test_the_table_is_written_for_the_documentation(tmp_path: Path) -> None:
    run("sockets", "--short", "--rst", str(tmp_path / "table.inc"))
    table = (tmp_path / "table.inc").read_text(encoding="utf-8")
    assert ":commit: " in table
    assert table.count("\n   * - ") == 2  # its head, and one row
    assert "64 sockets open" in table


def test_growth_is_drawn(tmp_path: Path) -> None:
    needs("matplotlib")
    run("growth", "--short", "--only", "sockets", "--plot", str(tmp_path))
    assert "commit " in (tmp_path / "growth-sockets.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["threads", "sockets", "size"])
def test_growth_is_measured_at_every_point(kind: str) -> None:
    contenders = {"threads": 3, "sockets": 2, "size": 2}[kind]
    assert len(run("growth", "--short", "--only", kind).splitlines()) == 3 * contenders


def test_turns_are_measured_and_drawn(tmp_path: Path) -> None:
    needs("matplotlib")
    figures, plot = tmp_path / "turns.json", tmp_path / "turns.svg"
    run("turns", "--only", "1x4", "--seconds", "0.2", "--save", str(figures), "--plot", str(plot))
    cases: dict[str, dict[str, Any]] = json.loads(figures.read_text(encoding="utf-8"))["cases"]
    for figure in cases["1x4"].values():
        assert figure["failed"] == 0
        assert 0 < figure["p50"] <= figure["p99"] <= figure["slowest"]
    assert "commit " in plot.read_text(encoding="utf-8")


def test_callers_of_gunicorn_are_measured() -> None:
    needs("gunicorn")
    options = {"connections": "new", "seconds": "0.2", "workers": "1", "threads": "2", "callers": "2"}
    lines = run("gunicorn_turns", *(part for each in options.items() for part in (f"--{each[0]}", each[1])))
    assert "answers of each worker" in lines
    assert "FAILED" not in lines
