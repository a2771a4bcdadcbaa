#!/usr/bin/env python3
"""Run unit, wire and peer tests with the newest release of everything: what `pip install` brings users today.

    .ci/newest.py [PYTHON]

It makes a virtual environment of its own, without constraints.txt, and ends with the versions that are not
those of the lock and the tests that do not pass. The exit status is 1 if there are any of these. A few slow
test files that use no dependency are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/unit", "tests/wire", "tests/peer")
#: Slow ones that no release of a dependency can fail.
LEFT_OUT = ("test_benchmarks", "test_marked_secrets", "test_mutants", "test_pool_model", "test_turn_table")
SECONDS = 1200


def main() -> int:
    """Install, test, and print what came of it."""
    interpreter = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    with tempfile.TemporaryDirectory() as scratch:
        python = os.path.join(scratch, "venv", "bin", "python")
        for command in (
            [interpreter, "-m", "venv", os.path.join(scratch, "venv")],
            [python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"],
            [python, "-m", "pip", "install", "--quiet", "--editable", ".[test]"],
        ):
            done, printed = run(command)
            if not done:
                print(f"The newest releases cannot be installed together:\n{printed[-3000:]}")
                return 1
        print_versions(python)
        report = os.path.join(scratch, "report.xml")
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
        left_out = [f"--ignore=tests/unit/{name}.py" for name in LEFT_OUT]
        done, printed = run([*pytest, *left_out, *TESTS])
        if done:
            print("Every test passes with them.")
            return 0
        print_failures(report, printed)
        return 1


def run(command: list[str]) -> tuple[bool, str]:
    """Run a command without the lock; return whether it went well, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_CONSTRAINT")}
    try:
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"it did not end within {SECONDS} s: {' '.join(command)}"
    return ended.returncode == 0, ended.stdout


def print_versions(python: str) -> None:
    """Print each release that the lock does not have, and how many it has."""
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    locked = re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.M)
    installed = re.findall(r"^([\w.-]+)==(\S+)$", run([python, "-m", "pip", "freeze", "--all"])[1], re.M)
    as_locked = 0
    print("The newest releases:")
    for name, version in installed:
        name = re.sub(r"[-_.]+", "-", name).lower()
        pins = [pin for distribution, pin in locked if distribution == name]
        if version in pins:
            as_locked += 1
        else:
            print(f"  {name} {version} (locked: {' or '.join(pins) or 'no'})")
    print(f"  {as_locked} more, which are those of the lock")


def print_failures(report: str, printed: str) -> None:
    """Print the name of each test that does not pass, and the first line of why."""
    wrong = []
    if os.path.exists(report):
        for case in ElementTree.parse(report).iter("testcase"):
            for outcome in (*case.findall("failure"), *case.findall("error")):
                reason = outcome.get("message", "").partition("\n")[0]
                wrong.append(f"  {case.get('classname')}::{case.get('name')}: {reason[:200]}")
    if wrong:
        print(f"These {len(wrong)} tests do not pass with them:", *wrong, sep="\n")
    else:
        print(f"The tests could not be run with them:\n{printed[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
