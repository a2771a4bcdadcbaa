"""The pytest plugin, in projects of its users: each is run by a pytest of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from ..helpers.environment import without_settings
from ..helpers.waiting import GUARD

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.rst"


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
    from flask import Flask
    from tcm_sync import TcmClient
    from tcm_sync.integrations.flask import Tcm

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

    def test_of_an_application(tcm_env):
        global app
        app = Flask("app")
        Tcm(app)["default"].__enter__()

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


FAILING = """
    import unittest
    from concurrent.futures import ThreadPoolExecutor
    from tcm_sync import RetryPolicy, TcmClient

    def of_the_user():
        yield {"x": [1.0]}
        raise RuntimeError("of the user")

    def test_refused(tcm_client):
        tcm_client.infer("echo", {"x": [object()]})

    def test_repeated(tcm_client, tcm_manager):
        tcm_manager.fail_next("TRITON_OVERLOADED")
        tcm_manager.fail_next("TRITON_OVERLOADED")
        tcm_client.infer("echo", {"x": [1.0]}, retry=RetryPolicy(attempts=2, initial=0.001))

    def test_in_the_background(tcm_client):
        tcm_client.submit("none", {"x": [1.0]}).result()

    def test_through_the_package(tcm_client):
        list(tcm_client.map("echo", of_the_user()))

    class TestCase(unittest.TestCase):
        def test_of_unittest(self):
            TcmClient("http://nowhere")

    def test_without_the_package():
        with ThreadPoolExecutor() as threads:
            threads.submit(int, "x").result()
"""


def frames_of(output):
    """Return the files of the frames that each failed test shows, by its name, outermost first."""
    tests = re.findall(r"^_+ (?:TestCase\.)?(test_\w+) _+$(.*?)(?=^_{4,} |^={4,} )", output, re.M | re.S)
    return {
        name: [Path(file).name for file in re.findall(r"^(\S+\.py):\d+: ", text, re.M)]
        for name, text in tests
    }


def test_failures_show_the_lines_of_the_user(run):
    outcome = run({"test_it.py": FAILING, "conftest.py": CONFTEST})
    mine = "test_it.py"
    frames = frames_of(outcome.output)
    unrelated = frames.pop("test_without_the_package")  # shows the standard library
    assert unrelated[:2] == [mine, "_base.py"]
    assert unrelated[-1] == "thread.py"
    assert frames == {
        "test_refused": [mine],
        "test_repeated": [mine],
        "test_in_the_background": [mine],
        "test_through_the_package": [mine, mine],
        "test_of_unittest": [mine],
    }, outcome.output


def test_an_option_shows_all_frames(run):
    options = ("-o", "tcm_hide_frames=false", "-k", "test_refused")
    outcome = run({"test_it.py": FAILING, "conftest.py": CONFTEST}, *options)
    assert frames_of(outcome.output)["test_refused"][:3] == ["test_it.py", "client.py", "inference.py"]


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
    """Return the files that the page shows, by their names; those of a Django project are below django/."""
    pattern = r"^\.\. code-block:: \w+\n   :caption: (\S+)\n\n((?: {3}.*\n|\n)+)"
    found = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.M)
    return {name: textwrap.dedent(text) for name, text in found}


def test_the_tests_of_the_page_pass(run):
    files = {name: text for name, text in files_of_the_page().items() if not name.startswith("django/")}
    assert {"service.py", "conftest.py", "prices.py", "pytest.ini"} < set(files)
    outcome = run(files)
    written = set(re.findall(r"^ *def (test_\w+)", "".join(files.values()), re.M))
    assert outcome.tests == {"PASSED": written}, outcome.output
    assert len(written) >= 14


OF_DJANGO = """
    from urllib.request import urlopen

    import pytest
    from django.contrib.contenttypes.models import ContentType
    from tcm_sync.integrations.django import tcm, tcms

    pytestmark = pytest.mark.usefixtures("tcm_django")

    @pytest.fixture
    def tcm_models():
        return {"digits": lambda inputs: {"probabilities": [[0.0, 1.0]]}}

    def test_a_fault_that_the_next_test_does_not_meet(tcm_manager):
        tcm_manager.fail_next("TRITON_MODEL_MISSING")

    def test_a_fault_that_is_not_taken(tcm_faults):
        tcm_faults.fail_next("TRITON_MODEL_MISSING")

    def test_a_database(client, db):
        assert ContentType.objects.count() == 1
        assert client.get("/digits?number=3").json() == {"probabilities": [[0.0, 1.0]]}

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_server(live_server, tcm_faults, number):
        tcm_faults.fail_next("TRITON_OVERLOADED")
        with urlopen(f"{live_server.url}/digits?number={number}") as answer:
            assert answer.read() == b'{"probabilities": [[0.0, 1.0]]}'

    def test_the_clients_keep_their_other_settings(tcm_manager):
        image = {"image": [[0.0]]}
        assert tcms["slow"].infer("digits", image)["probabilities"].tolist() == [[0.0, 1.0]]
        assert [each._core.settings.timeout for each in (tcm, tcms["slow"])] == [35.0, 120.0]
"""
A_CLASS = """
    from django.test import SimpleTestCase
    from tcm_sync.integrations.django.test import LocalManagerMixin

    class TestDigits(LocalManagerMixin, SimpleTestCase):
        tcm_models = {"digits": lambda inputs: {"probabilities": [[1.0]]}}

        def test_a_client_for_all_tests_of_a_class(self):
            self.assertEqual(self.client.get("/digits?number=1").json(), {"probabilities": [[1.0]]})

        def test_another_of_its_tests(self):
            self.test_a_client_for_all_tests_of_a_class()
"""
FOR_THE_DATABASE = """
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3"}}
INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.contenttypes"]
STATIC_URL = "static/"
TCM["slow"] = {"uri": "wss://manager.invalid/ws", "ca_file": "/", "container_id": "c", "timeout": 120}
"""


def test_with_pytest_django_views_and_its_server_use_the_manager_of_the_test(run, tmp_path):
    shutil.copytree(ROOT / "examples" / "django", tmp_path, dirs_exist_ok=True)
    files = {name[7:]: text for name, text in files_of_the_page().items() if name.startswith("django/")}
    files["pytest.ini"] += "filterwarnings = error\ntcm_strict = true\n"
    files["settings_test.py"] += FOR_THE_DATABASE
    outcome = run({**files, "test_more.py": OF_DJANGO, "test_class.py": A_CLASS})
    assert outcome.tests.pop("ERROR") == {"test_a_fault_that_is_not_taken"}, outcome.output
    written = re.findall(r"^ *def (test_\w+)", files["test_views.py"] + OF_DJANGO + A_CLASS, re.M)
    assert outcome.tests == {"PASSED": set(written)}, outcome.output


def test_the_page_counts_its_lines():
    """The lines of a test with a fixture of one's own, and with those of the plugin."""
    page, files = PAGE.read_text(encoding="utf-8"), files_of_the_page()
    before, after = (
        sum(1 for line in files[name].splitlines() if line.strip())
        for name in ("test_by_hand.py", "conftest.py")
    )
    assert f"{before} lines" in page
    assert f"{after} lines" in page
