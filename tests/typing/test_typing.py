"""Users' programs under mypy and pyright, both strict: what is right passes, and each mistake is reported.

Without the extra ``lint`` these tests are skipped; .ci/run runs them after it has installed that.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = (HERE / "good.py", HERE / "bad.py")
Mistakes = set[tuple[str, int]]  # by file and line


def output(*command: str, **variables: str) -> str:
    """Run a type checker, whose exit status says whether it found anything."""
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=HERE,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.stdout


def found_by_mypy(scratch: Path) -> Mistakes:
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={scratch}"]
    found = output("mypy", *options, *(path.name for path in PROGRAMS), MYPYPATH=str(ROOT))
    return {(name, int(line)) for name, line in re.findall(r"^(\w+\.py):(\d+): error:", found, re.MULTILINE)}


def found_by_pyright(scratch: Path) -> Mistakes:
    settings = {"typeCheckingMode": "strict", "include": list(map(str, PROGRAMS)), "extraPaths": [str(ROOT)]}
    project = scratch / "pyrightconfig.json"
    project.write_text(json.dumps(settings), encoding="utf-8")
    found = output("basedpyright", "--project", str(project), "--pythonpath", sys.executable, "--outputjson")
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in json.loads(found)["generalDiagnostics"]
        if each["severity"] == "error"
    }


CHECKERS = {"mypy": found_by_mypy, "basedpyright": found_by_pyright}


@pytest.mark.parametrize("name", CHECKERS)
def test_a_type_checker_reports_each_mistake_of_a_user_and_nothing_else(name, tmp_path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    check: Callable[[Path], Mistakes] = CHECKERS[name]
    lines = (HERE / "bad.py").read_text(encoding="utf-8").splitlines()
    expected = {("bad.py", number) for number, line in enumerate(lines, 1) if line.endswith("# mistake")}
    assert expected
    assert check(tmp_path) == expected
