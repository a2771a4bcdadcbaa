"""A part of the tests, run with marked secrets: none of them is shown. `nox -s secrets` runs all tests so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..helpers.marked_secrets import MARKS, marks_in

ROOT = Path(__file__).parents[2]
PART = ["tests/peer/test_auth.py", "tests/peer/test_handshake_answers.py", "tests/peer/test_known_faults.py"]
PART += ["tests/peer/test_probes.py", "tests/peer/test_outcomes.py"]
GUARD = 120.0  # seconds


def test_a_part_of_the_tests_shows_no_secret():
    command = [sys.executable, "-m", "tests.helpers.marked_secrets", *PART]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=GUARD, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_a_mark_that_is_shown_is_found(tmp_path):
    (tmp_path / "record").write_text(f"nothing here, and {MARKS['cookie']} there")
    (found,) = marks_in(tmp_path)
    assert found.startswith("record: the cookie is shown 1 times: ")
