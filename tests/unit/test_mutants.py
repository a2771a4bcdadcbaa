"""The bugs that are planted on purpose, and the command that runs the tests against them."""

from __future__ import annotations

import pytest

from ..mutants import drawn, planted
from ..mutants.__main__ import ROOT, main
from ..mutants.nearest import NEAREST, NOT_DRAWN, nearest

PATCH = """What: {what}
Tests: {tests}
--- a/sums.py
+++ b/sums.py
@@ -1,2 +1,2 @@
 def add(a, b):
-    return a {sign} b
+    return a - b
"""


@pytest.mark.parametrize("bug", planted.read_all(), ids=lambda bug: bug.name)
def test_every_planted_bug_can_be_planted(bug):
    assert planted.apply(bug.path, ROOT, "--check") == "", "make the patch again: CONTRIBUTING.md says how"
    assert [name for name in bug.tests if not (ROOT / name).is_file()] == []


def test_the_modules_and_their_nearest_tests_are_there():
    names = [*NEAREST, *(name for module in NEAREST for name in nearest(module))]
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_every_module_has_its_nearest_tests_or_a_reason_for_having_none():
    def found(pattern):
        return {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}

    left_out = {pattern: found(pattern) for pattern in NOT_DRAWN}
    assert [pattern for pattern, modules in left_out.items() if not modules] == []
    assert found("tcm_sync/**/*.py") - set().union(NEAREST, *left_out.values()) == set()


def test_every_mutant_that_is_listed_as_equivalent_is_one_of_a_line_that_is_there():
    for name, reason in drawn.read_equivalent().items():
        module, before, _ = name.split(" || ")
        lines = [line.strip() for line in (ROOT / module).read_text(encoding="utf-8").splitlines()]
        assert before in lines
        assert reason


@pytest.fixture
def tree(tmp_path):
    """A program of one function with a test, and three planted bugs."""
    folder = tmp_path / "tests" / "mutants" / "planted"
    folder.mkdir(parents=True)
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_add.py").write_text(
        "import sums\n\ndef test_add():\n    assert sums.add(2, 1) == 3\n"
    )
    (tmp_path / "tests" / "test_zero.py").write_text(
        "import sums\n\ndef test_zero():\n    assert sums.add(2, 0) == 2\n"
    )
    for name, tests, sign in (
        ("found", "tests/test_add.py", "+"),
        ("missed", "tests/test_add.py tests/test_zero.py", "+"),
        ("outdated", "tests/test_add.py", "*"),
    ):
        text = PATCH.format(what=f"the bug that is {name}", tests=tests, sign=sign)
        (folder / f"{name}.patch").write_text(text)
    return tmp_path


def test_a_bug_is_killed_if_each_file_that_it_names_fails(tree, capsys):
    before = (tree / "sums.py").read_text()
    assert main(["--workers", "1"], tree) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "s the bug that is found tests/test_add.py::test_add" in printed
    assert "s the bug that is missed tests/test_zero.py: 1 passed" in printed
    assert "s the bug that is outdated error: patch failed: sums.py:1" in printed
    assert printed.endswith("1 DOES NOT APPLY, 1 SURVIVED, 1 killed")
    assert (tree / "sums.py").read_text() == before


def test_a_bug_is_not_killed_by_a_test_that_fails_without_it(tree, capsys):
    (tree / "tests" / "test_add.py").write_text("def test_add():\n    raise ValueError\n")
    assert main(["found"], tree) == 1
    assert "tests/test_add.py fails without the mutant too" in capsys.readouterr().out


def test_those_drawn_by_one_seed_are_the_same(tree, capsys):
    drawn_twice = []
    for _ in range(2):
        assert main(["--draw", "2", "--seed", "5", "--list"], tree) == 0
        drawn_twice.append(capsys.readouterr().out)
    assert drawn_twice[0] == drawn_twice[1]
    assert drawn_twice[0].startswith("2 mutants drawn by --seed=5\n")
    assert drawn_twice[0].count("the bug that is") == 2


def test_only_whether_they_apply_is_checked_at_once(tree, capsys):
    assert main(["--check"], tree) == 1
    assert capsys.readouterr().out.endswith("2 of 3 patches apply\n")


def test_a_patch_without_its_header_is_refused(tmp_path):
    path = tmp_path / "bare.patch"
    path.write_text("What: something\n--- a/sums.py\n+++ b/sums.py\n")
    with pytest.raises(ValueError, match="the header lacks Tests"):
        planted.Planted.read(path)
