"""The pytest plugin, in projects of its users: each is run by a pytest of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from ..helpers.environment import without_settings
from ..helpers.waiting import GUARD

PAGE = Path(__file__).parents[2] / "docs" / "testing.rst"


class Outcome(NamedTuple):
    """What a run of pytest wrote, and its tests by their outcome."""

    output: str
    tests: dict[str, set[str]]


@pytest.fixture
def run(tmp_path):
    """Write files, run pytest on them, and return what became of each test."""

    def run_pytest(files, *arguments, workers=0):
        for name, text in files.items():
            (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
        parallel = ("-n", str(workers)) if workers else ("-p", "no:xdist")
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:timeout"]
        done = subprocess.run(
            [*command, *parallel, *arguments],
            cwd=tmp_path,
            env={name: value for name, value in without_settings().items() if not name.startswith("PYTEST")},
            capture_output=True,
            text=True,
            timeout=10 * GUARD,
            check=False,
        )
        found: dict[str, set[str]] = {}
        for outcome, test in re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", done.stdout, re.M):
            found.setdefault(outcome, set()).add(test)
        return Outcome(done.stdout + done.stderr, found)

    return run_pytest


FIXTURES = """
    import numpy as np
    import pytest
    from tcm_sync import ConfigError, TcmClient, TritonOverloadedError

    X = {"x": np.ones((1, 2), np.float32)}
    pytestmark = pytest.mark.tcm_manager(models={"double": lambda arrays: {"y": arrays["x"] * 2}}, workers=1)

    def test_models_of_the_fixture_and_of_the_marks_are_served(tcm_client):
        assert tcm_client.infer("double", X)["y"].tolist() == [[2.0, 2.0]]
        assert tcm_client.infer("echo", X)["x"].tolist() == [[1.0, 1.0]]

    @pytest.mark.tcm_manager(models={"half": lambda arrays: {"y": arrays["x"] / 2}}, vm_ip="10.0.0.1")
    def test_the_mark_of_a_test_adds_to_that_of_its_module(tcm_client, tcm_manager):
        assert tcm_client.infer("half", X)["y"].tolist() == [[0.5, 0.5]]
        assert tcm_client.infer("double", X)["y"].tolist() == [[2.0, 2.0]]
        assert (tcm_manager.route.vm_ip, tcm_manager._settings.workers) == ("10.0.0.1", 1)

    @pytest.mark.tcm_client(retry=None)
    def test_faults(tcm_client, tcm_faults):
        tcm_faults.fail_next("TRITON_OVERLOADED")
        with pytest.raises(TritonOverloadedError):
            tcm_client.infer("double", X)
        tcm_client.infer("double", X)

    def test_a_fault_that_is_not_taken(tcm_faults):
        tcm_faults.drop_next()

    def test_a_fault_that_is_dropped(tcm_faults):
        tcm_faults.drop_next()
        tcm_faults.clear_faults()

    def test_a_failure_hides_no_other(tcm_faults):
        tcm_faults.drop_next()
        assert False

    def test_the_environment(tcm_env):
        with TcmClient.from_env() as client:
            assert client.infer("double", X)["y"].tolist() == [[2.0, 2.0]]

    def test_the_environment_is_reset(monkeypatch):
        with pytest.raises(ConfigError):
            TcmClient.from_env()

    @pytest.mark.tcm_client("ws://elsewhere")
    def test_positional_arguments(tcm_client):
        pass
"""
CONFTEST = """
    import pytest

    @pytest.fixture
    def tcm_models():
        return {"echo": dict}
"""


def test_the_fixtures_work_also_under_xdist(run):
    ini = "[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n"
    outcome = run({"test_it.py": FIXTURES, "conftest.py": CONFTEST, "pytest.ini": ini}, workers=2)
    errors = {"test_a_fault_that_is_not_taken", "test_positional_arguments"}
    assert outcome.tests == {
        "PASSED": {
            "test_models_of_the_fixture_and_of_the_marks_are_served",
            "test_the_mark_of_a_test_adds_to_that_of_its_module",
            "test_faults",
            "test_a_fault_that_is_not_taken",
            "test_a_fault_that_is_dropped",
            "test_the_environment",
            "test_the_environment_is_reset",
        },
        "FAILED": {"test_a_failure_hides_no_other"},
        "ERROR": errors,
    }, outcome.output
    assert "no request has taken the planned faults drop_next()" in outcome.output
    assert "the mark tcm_client takes keyword arguments only" in outcome.output


STRICT = """
    import pytest
    from tcm_sync import TcmClient

    @pytest.fixture(scope="module")
    def outliving():
        with TcmClient("ws://127.0.0.1:1/ws") as client:
            yield client

    @pytest.fixture
    def of_the_test(outliving):
        client = TcmClient("ws://127.0.0.1:2/ws")
        client.__enter__()
        yield client
        client.close()

    def test_fixtures_close_theirs(of_the_test, tcm_client, outliving):
        pass

    def test_left_open():
        global kept
        kept = TcmClient("ws://127.0.0.1:3/ws")
        kept.__enter__()

    def test_left_open_and_dropped():
        TcmClient("ws://127.0.0.1:4/ws").__enter__()

    def test_never_opened():
        TcmClient("ws://127.0.0.1:5/ws")

    @pytest.mark.tcm_strict(False)
    def test_allowed():
        global allowed
        allowed = TcmClient("ws://127.0.0.1:6/ws")
        allowed.__enter__()

    @pytest.mark.tcm_strict
    def test_marked():
        test_left_open()
"""


def test_in_the_strict_mode_a_test_fails_that_leaves_a_client_open(run):
    outcome = run({"test_it.py": STRICT, "pytest.ini": "[pytest]\ntcm_strict = true\n"})
    assert outcome.tests["ERROR"] == {"test_left_open", "test_left_open_and_dropped", "test_marked"}
    assert "FAILED" not in outcome.tests
    assert re.search(
        r"ws://127\.0\.0\.1:3/ws.*, made at .*test_it\.py:\d+: kept = TcmClient\(", outcome.output
    )
    assert re.search(r"ws://127\.0\.0\.1:4/ws.*, made at .*test_it\.py:\d+: TcmClient\(", outcome.output)


UNUSED = """
    import sys

    # now, before the other file is collected
    loaded = [name for name in sys.modules if name.split(".")[0] in ("numpy", "tcm_sync", "websockets")]

    def test_nothing_is_imported():
        assert "pytest_tcm_sync" in sys.modules
        assert loaded == []
"""


def test_nothing_is_imported_until_a_test_uses_it_and_without_the_option_marked_tests_alone_are_strict(run):
    outcome = run({"test_first.py": UNUSED, "test_later.py": STRICT})
    assert "test_nothing_is_imported" in outcome.tests["PASSED"], outcome.output
    assert outcome.tests["ERROR"] == {"test_marked"}


def files_of_the_page():
    """Return the files that the page shows, by their names."""
    pattern = r"^\.\. code-block:: \w+\n   :caption: (\S+)\n\n((?: {3}.*\n|\n)+)"
    return dict(re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.M))


def test_the_tests_of_the_page_pass(run):
    files = files_of_the_page()
    assert {"service.py", "conftest.py", "prices.py", "pytest.ini"} < set(files)
    outcome = run(files)
    written = set(re.findall(r"^ +def (test_\w+)", "".join(files.values()), re.M))
    assert outcome.tests == {"PASSED": written}, outcome.output
    assert len(written) >= 14


def test_the_page_counts_its_lines():
    """The lines of a test with a fixture of one's own, and with those of the plugin."""
    page, files = PAGE.read_text(encoding="utf-8"), files_of_the_page()
    before, after = (
        sum(1 for line in files[name].splitlines() if line.strip())
        for name in ("test_by_hand.py", "conftest.py")
    )
    assert f"{before} lines" in page
    assert f"{after} lines" in page
