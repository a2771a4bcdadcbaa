"""`tcm_sync.integrations.django`, in a Django project of this file and in the one of examples/django."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from typing import ClassVar

import django
import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.conf import settings
from django.core import checks
from django.core.management import CommandError, call_command
from django.http import JsonResponse
from django.test import AsyncClient, Client, SimpleTestCase, override_settings
from django.urls import include, path

from tcm_sync import InferResult, errors
from tcm_sync.integrations.django import TcmJSONEncoder, tcm, tcms

from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import GUARD, wait_until
from .web_servers import ROOT, environment, free_port, get

NOWHERE = {"default": {"uri": "ws://127.0.0.1:1/ws", "container_id": "local", "retry": None}}

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["tcm_sync.integrations.django"],
        LOGGING_CONFIG=None,
        MIDDLEWARE=["tcm_sync.integrations.django.middleware.TcmMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="of the tests",
        TCM=NOWHERE,
        USE_TZ=True,
    )
    django.setup()
from tcm_sync.integrations.django.test import LocalManagerMixin  # noqa: E402 - its Django is set up now


def echo(request, number):
    return JsonResponse(tcm.infer("echo", {"x": [number]}).tolist())


def wait(request):
    return JsonResponse(tcm.infer("gated", {"x": [1]}).tolist())


async def both(request):
    infer = sync_to_async(tcm.infer, thread_sensitive=False)
    results = await asyncio.gather(*(infer("meet", {"x": [number]}) for number in (1, 2)))
    return JsonResponse([result.tolist() for result in results], safe=False)


async def wait_async(request):
    return JsonResponse(
        (await sync_to_async(tcm.infer, thread_sensitive=False)("gated", {"x": [1]})).tolist()
    )


def fail(request, name):
    raise getattr(errors, name)("secret-host-7 failed", retry_after=2.1)


def fail_otherwise(request):
    raise KeyError("of the view")


def encode(request):
    result = InferResult("m", {"y": [1.5, math.nan], "name": ["ä"]})
    return JsonResponse({"result": result, "array": result["y"]}, encoder=TcmJSONEncoder)


urlpatterns = [
    path("echo/<int:number>", echo),
    path("wait", wait),
    path("both", both),
    path("wait-async", wait_async),
    path("fail/<name>", fail),
    path("fail", fail_otherwise),
    path("encode", encode),
    path("", include("tcm_sync.integrations.django.urls")),
]


@pytest.fixture(scope="module", autouse=True)
def _thread_of_asgiref():
    """Start the thread that lives as long as the process, before anything is counted."""
    SyncToAsync.single_thread_executor.submit(int).result(GUARD)


@pytest.fixture
def project():
    """Replace the setting TCM, among others."""
    overrides = []

    def use(manager=None, **changed):
        near = {"default": {"uri": manager.uri, "container_id": "local"}} if manager else NOWHERE
        override = override_settings(**{"TCM": near, **changed})
        override.enable()
        overrides.append(override)

    yield use
    while overrides:
        overrides.pop().disable()


def test_a_view_returns_the_outputs_of_the_manager(serve, project):
    project(serve())
    answer = Client().get("/echo/7")
    assert (answer.status_code, answer.json()) == (200, {"x": [7]})


def test_clients_by_name(serve, project):
    managers = [serve({"which": lambda inputs, number=number: {"number": [number]}}) for number in (1, 2)]
    names = ("default", "other")
    given = {
        name: {"uri": each.uri, "container_id": "local"} for name, each in zip(names, managers, strict=True)
    }
    project(TCM=given)
    assert tcms["other"].infer("which", {"x": [0]})["number"].tolist() == [2]
    assert tcm.infer("which", {"x": [0]})["number"].tolist() == [1]
    assert list(tcms) == ["default", "other"]
    with pytest.raises(errors.ConfigError, match="'third'"):
        _ = tcms["third"]


def test_all_threads_have_the_same_client(serve, project):
    project(serve())
    found = []
    threads = [threading.Thread(target=lambda: found.append(tcms["default"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert len(set(map(id, found))) == 1


def test_other_settings_make_other_clients_and_close_the_old_ones(serve, project):
    first = serve()
    project(first)
    assert tcm.infer("echo", {"x": [1]})["x"].tolist() == [1]
    old = tcms["default"]
    project(serve())
    assert tcm.infer("echo", {"x": [2]})["x"].tolist() == [2]
    assert first.stats().messages == 1
    with pytest.raises(errors.ClientClosedError):
        old.infer("echo", {"x": [3]})


# --- asynchronous views ---


def test_an_asynchronous_view_makes_calls_at_the_same_time(serve, project):
    meeting = threading.Barrier(2)

    def meet(inputs):
        meeting.wait(GUARD)
        return inputs

    project(serve({"meet": meet}))
    answer = asyncio.run(AsyncClient().get("/both"))
    assert json.loads(answer.content) == [{"x": [1]}, {"x": [2]}]


@pytest.mark.parametrize("view", ["/wait", "/wait-async"])
@pytest.mark.parametrize("server", ["wsgi", "asgi"])
def test_calls_end_with_their_request(serve, project, gated, view, server):
    project(serve(), TCM_REQUEST_TIMEOUT=0.3)
    tcms["default"].open()
    answer = Client().get(view) if server == "wsgi" else asyncio.run(AsyncClient().get(view))
    assert answer.status_code == 504
    assert json.loads(answer.content)["error"]["type"] == "CallTimeoutError"
    assert tcms["default"]._defaults.timeout == 35, "outside a request there is no deadline"


# --- errors as responses ---


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("InputError", 400),
        ("TritonError", 502),
        ("TritonOverloadedError", 503),
        ("PoolTimeoutError", 503),
        ("TritonTimeoutError", 504),
    ],
)
def test_an_error_becomes_a_response_in_json(project, name, status):
    project()
    answer = Client().get(f"/fail/{name}")
    assert answer.status_code == status
    assert answer.get("Retry-After") == ("3" if status == 503 else None)
    body = answer.json()["error"]
    assert (body["type"], body["retriable"]) == (name, status == 503)
    assert (b"secret-host-7" in answer.content) is (status == 400)


@pytest.mark.parametrize(("path", "error"), [("/fail/ConfigError", errors.ConfigError), ("/fail", KeyError)])
def test_mistakes_of_the_service_are_left_to_django(project, path, error):
    project()
    with pytest.raises(error):
        Client().get(path)


def test_a_manager_that_is_away_is_a_503(project):
    project()
    answer = Client().get("/echo/1")
    assert (answer.status_code, answer["Retry-After"]) == (503, "1")


# --- probes and JSON ---


def test_probes(serve, project):
    project(serve())
    assert Client().get("/healthz").json() == {"status": "ok"}
    answer = Client().get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "managers": {"default": "ready"}})
    project()
    answer = asyncio.run(AsyncClient().get("/readyz"))
    assert answer.status_code == 503
    assert json.loads(answer.content)["managers"] == {"default": "unreachable"}


def test_a_manager_that_hangs_holds_up_no_probe(project):
    over = threading.Event()
    with ScriptedPeer() as peer:
        peer.http["/ready"] = lambda _: over.wait(GUARD)
        project(TCM={"default": {"uri": peer.uri, "container_id": "local"}}, TCM_READY_TIMEOUT=0.1)
        try:
            assert {Client().get("/readyz").status_code for _ in range(4)} == {503}
            assert not over.is_set()
        finally:
            over.set()


def test_the_encoder_writes_results_and_arrays(project):
    project()
    expected = {"result": {"y": [1.5, None], "name": ["ä"]}, "array": [1.5, None]}
    assert json.loads(Client().get("/encode").content, parse_constant=pytest.fail) == expected
    with pytest.raises(TypeError):
        json.dumps(object(), cls=TcmJSONEncoder)


# --- checks and commands ---


def ids(**changed):
    with override_settings(**changed):
        return [message.id for message in checks.run_checks(tags=["tcm"], include_deployment_checks=True)]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (NOWHERE, []),
        (None, ["tcm.E001"]),
        ("ws://h/ws", ["tcm.E001"]),
        ({"other": {"uri": "ws://127.0.0.1/ws"}}, ["tcm.E002"]),
        ({"default": {"url": "ws://h/ws"}}, ["tcm.E003"]),
        ({"default": {"uri": "ws://h/ws", "timeout": "soon"}}, ["tcm.E003"]),
        ({"default": {"uri": "ws://h/ws", "token": "t"}}, ["tcm.W001"]),
        ({"default": {"uri": "wss://h/ws", "token": "t"}}, []),
        ({"default": {"uri": "ws://127.0.0.2/ws", "token": "t"}}, []),
    ],
)
def test_the_checks_find_what_cannot_work(given, found):
    assert ids(TCM=given) == found


def test_the_checks_find_a_wrong_deadline():
    assert ids(TCM_REQUEST_TIMEOUT="soon") == ["tcm.E004"]
    assert ids(TCM_READY_TIMEOUT=0) == ["tcm.E004"]
    assert ids(TCM_READY_TIMEOUT=None) == ids()


def test_the_command_examines_a_client(serve, project, capsys):
    manager = serve()
    project(TCM={**NOWHERE, "near": {"uri": manager.uri, "container_id": "local"}})
    call_command("tcm_doctor", "--client", "near", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {step["name"]: step["status"] for step in report["steps"]}["round trip"] == "ok"
    with pytest.raises(CommandError) as caught:
        call_command("tcm_doctor", "--timeout", "5")
    assert caught.value.returncode == 3
    with pytest.raises(CommandError, match="'far'"):
        call_command("tcm_doctor", "--client", "far")


# --- tests of a project ---


class Doubling(LocalManagerMixin, SimpleTestCase):
    __test__ = False  # pytest leaves it to a test below
    tcm_models: ClassVar = {"echo": lambda inputs: {"x": inputs["x"] * 2}}

    def test_it(self):
        assert self.client.get("/echo/7").json() == {"x": [14]}
        assert self.tcm_manager.stats().messages == 1

    async def test_it_asynchronously(self):
        answer = await self.async_client.get("/echo/8")
        assert json.loads(answer.content) == {"x": [16]}


def test_a_class_of_tests_has_a_manager_of_its_own():
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Doubling).run(result)  # in alphabetical order
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])
    assert settings.TCM == NOWHERE


class LeavingFaults(LocalManagerMixin, SimpleTestCase):
    __test__ = False
    tcm_models: ClassVar = {"echo": dict}

    def test_1(self):
        self.tcm_manager.fail_next("TRITON_OVERLOADED")
        self.tcm_manager.drop_next()

    def test_2(self):
        assert self.client.get("/echo/7").json() == {"x": [7]}


def test_a_test_that_leaves_a_planned_fault_fails_and_the_next_one_does_not_meet_it():
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(LeavingFaults).run(result)
    assert (result.testsRun, result.errors) == (2, [])
    ((test, text),) = result.failures
    assert test.id().endswith("LeavingFaults.test_1")
    assert "no request has taken the planned faults fail_next('TRITON_OVERLOADED'), drop_next()" in text


def test_a_class_that_would_use_the_real_manager_is_refused():
    with pytest.raises(TypeError, match=r"class Wrong\(LocalManagerMixin, …\)"):
        type("Wrong", (SimpleTestCase, LocalManagerMixin), {})


# --- the project of examples/django ---

PROJECT = ROOT / "examples" / "django"


def test_the_example_passes_its_checks(digits_manager):
    command = [sys.executable, "-W", "error", "manage.py", "check"]
    given = {"cwd": PROJECT, "env": environment(digits_manager), "capture_output": True, "text": True}
    done = subprocess.run(command, **given, timeout=3 * GUARD, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_by_hand_answers_as_the_example_does(digits_manager, expected, project, monkeypatch):
    """docs/deploying.rst compares their lines; test_prefork has the answers of the example."""
    monkeypatch.setenv("TCM_WS_URI", digits_manager.uri)
    monkeypatch.setenv("TCM_CONTAINER_ID", "local")
    name = "service_by_hand"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "by_hand/django_service.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    project(ROOT_URLCONF=name, MIDDLEWARE=[f"{name}.Middleware"])
    with module.client:
        assert Client().get("/digits?number=3").json() == expected[3]
        assert Client().get("/digits/both?number=3").json() == expected[3:5]
        digits_manager.fail_next("TRITON_INFERENCE_FAILED")
        assert Client().get("/digits?number=3").status_code == 502
        assert [Client().get(probe).status_code for probe in ("/healthz", "/readyz")] == [200, 200]


def test_autoreload_leaves_nothing_behind(digits_manager, tmp_path):
    port = free_port()
    project = tmp_path / "project"
    subprocess.run(["cp", "-r", PROJECT, project], check=True)
    command = [sys.executable, "manage.py", "runserver", "--skip-checks", f"127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=project,
            env={**environment(digits_manager), "DEBUG": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        first = get(port, "/digits?number=1")
        before = digits_manager.stats().uuids
        views = project / "service" / "views.py"
        views.write_text(views.read_text().replace("result.tolist()", '{"second": result.tolist()}', 1))

        def is_reloaded():
            os.utime(views)  # each time: what the reloader sees for the first time is no change to it
            return get(port, "/digits?number=1") == {"second": first}

        wait_until(is_reloaded, "the server is started again")
        assert digits_manager.stats().uuids != before
        wait_until(lambda: digits_manager.stats().connected == 1, "the first process has closed its own")
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(GUARD)
    wait_until(lambda: not digits_manager.stats().connected, "the connections are closed")
    assert "ResourceWarning" not in (tmp_path / "log").read_text()


def test_the_package_says_what_to_install_where_django_is_missing():
    code = "import importlib.util as u; u.find_spec = lambda name: None\nimport tcm_sync.integrations.django"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("pip install 'tcm-sync[django]'")
