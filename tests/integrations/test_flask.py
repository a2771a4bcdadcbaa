"""`tcm_sync.integrations.flask`, with a real Flask application and a real manager."""

from __future__ import annotations

import gc
import json
import logging
import math
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from uuid import UUID

import flask
import numpy as np
import pytest

from tcm_sync import InferResult, TcmError, errors
from tcm_sync.integrations.flask import Tcm, TcmJSONProvider, current_tcm, health

from ..helpers.peer_scripts import ROUTE
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import GUARD, collected_while_held, wait_until


@pytest.fixture
def make_app():
    """Make applications whose clients are closed in the end."""
    made = []

    def make(uri, **config):
        app = flask.Flask("service")
        app.config.update(TCM_WS_URI=uri, TCM_CONTAINER_ID="local", TESTING=True, **config)
        made.append((tcm := Tcm(app), app))
        app.tcm = tcm
        return app

    yield make
    for tcm, _ in made:
        tcm.close()


def add_echo(app):
    @app.get("/echo/<int:number>")
    def echo(number):
        return current_tcm.infer("echo", {"x": [number]}).tolist()


def test_a_view_returns_the_outputs_of_the_manager(serve, make_app):
    app = make_app(serve().uri)
    add_echo(app)
    answer = app.test_client().get("/echo/7")
    assert (answer.status_code, answer.json) == (200, {"x": [7]})


def test_the_application_may_be_given_later(serve):
    manager = serve()
    tcm = Tcm()
    app = flask.Flask("service")
    app.config.update(TCM_WS_URI=manager.uri, TCM_CONTAINER_ID="local")
    tcm.init_app(app)
    with app.app_context():
        assert tcm.client.infer("echo", {"x": [1]})["x"].tolist() == [1]
        tcm.close()
    with pytest.raises(RuntimeError, match="app_context"):
        _ = tcm.client


def test_a_test_may_replace_the_client_of_an_application(serve, connect, make_app, monkeypatch):
    app = make_app("ws://127.0.0.1:1/ws")
    add_echo(app)
    monkeypatch.setitem(app.extensions["tcm"], "default", connect(serve()))
    assert app.test_client().get("/echo/7").json == {"x": [7]}


def test_two_applications_have_their_own_clients(serve):
    tcm = Tcm()
    apps = []
    for number in (1, 2):
        manager = serve({"which": lambda inputs, number=number: {"number": [number]}})
        app = flask.Flask("service")
        app.config.update(TCM_WS_URI=manager.uri, TCM_CONTAINER_ID="local")
        tcm.init_app(app)
        apps.append(app)
    for number, app in enumerate(apps, 1):
        with app.app_context():
            assert current_tcm.infer("which", {"x": [0]})["number"].tolist() == [number]
            tcm.close()


def test_an_application_gets_one_tcm(serve):
    app = flask.Flask("service")
    app.config.update(TCM_WS_URI="ws://127.0.0.1:1/ws")
    Tcm(app)
    with pytest.raises(errors.ConfigError, match="once"):
        Tcm(app)


def test_a_key_that_the_configuration_lacks_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TCM_WS_URI", "ws://127.0.0.1:1/ws")
    monkeypatch.setenv("TCM_CONTAINER_ID", "of the environment")
    app = flask.Flask("service")
    app.config.update(TCM_CONTAINER_ID="of the configuration", TCM_CLIENT_ROLES=["inference", "admin"])
    app.config.update(TCM_TIMEOUT=12, TCM_OPTIONS={"retry": None, "max_requests": 9})
    settings = Tcm(app).client._core.settings
    assert (settings.uri, settings.route.container_id) == ("ws://127.0.0.1:1/ws", "of the configuration")
    assert tuple(settings.auth.roles) == ("inference", "admin")
    assert (settings.timeout, settings.retry, settings.max_requests) == (12, None, 9)


def test_the_token_may_be_a_callable():
    app = flask.Flask("service")
    app.config.update(TCM_WS_URI="ws://127.0.0.1:1/ws", TCM_CLIENT_TOKEN=lambda: "fresh", TCM_CLIENT_SUB="me")
    auth = Tcm(app).client._core.settings.auth
    assert (auth.token(), auth.sub) == ("fresh", "me")


def test_several_clients_by_name(serve):
    first, second = (
        serve({"which": lambda inputs, number=number: {"number": [number]}}) for number in (1, 2)
    )
    app = flask.Flask("service")
    app.config["TCM_WS_URI"] = first.uri
    app.config["TCM_CONTAINER_ID"] = "local"
    app.config["TCM_CLIENTS"] = {"other": {"uri": second.uri, "container_id": "local", "timeout": 7}}
    tcm = Tcm(app)
    try:
        assert tcm["other"].infer("which", {"x": [0]})["number"].tolist() == [2]
        assert tcm.client.infer("which", {"x": [0]})["number"].tolist() == [1]
        assert tcm["other"]._core.settings.timeout == 7
        with pytest.raises(errors.ConfigError, match=r"'third'.*'default', 'other'"):
            _ = tcm["third"]
    finally:
        tcm.close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "TCM_WS_URI"),
        ({"TCM_WS_URI": "http://x"}, "ws://"),
        ({"TCM_WS_URI": "ws://h/ws", "TCM_TIMEOUT": "soon"}, "TCM_TIMEOUT"),
        ({"TCM_WS_URI": "ws://h/ws", "TCM_OPTIONS": {"size": 1}}, "TCM_OPTIONS.*size"),
        ({"TCM_WS_URI": "ws://h/ws", "TCM_REQUEST_TIMEOUT": -1}, "TCM_REQUEST_TIMEOUT"),
        ({"TCM_WS_URI": "ws://h/ws", "TCM_READY_TIMEOUT": 0}, "TCM_READY_TIMEOUT must be a positive"),
        ({"TCM_WS_URI": "ws://h/ws", "TCM_READY_TIMEOUT": "1"}, "TCM_READY_TIMEOUT must be a positive"),
        ({"TCM_CLIENTS": ["ws://h/ws"]}, "TCM_CLIENTS must be a dictionary"),
        ({"TCM_CLIENTS": {"default": "ws://h/ws"}}, r"TCM_CLIENTS\['default'\] must be a dictionary"),
        ({"TCM_CLIENTS": {"default": {"url": "ws://h/ws"}}}, "'url' is unknown"),
        ({"TCM_CLIENTS": {"default": {"container_id": "c"}}}, "'uri' is missing"),
        ({"TCM_CLIENTS": {"default": {"uri": "ws://h/ws", "vm_ip": "10.0.0.1"}}}, "container_id"),
        ({"TCM_CLIENTS": {"default": {"uri": "ws://h/ws", "route": ROUTE, "vm_ip": "1"}}}, "route is given"),
        (
            {"TCM_CLIENTS": {"default": {"uri": "ws://h/ws", "container_id": ""}}},
            r"\['default'\].*container_id",
        ),
    ],
)
def test_a_wrong_setting_is_reported_at_the_start(monkeypatch, config, message):
    monkeypatch.delenv("TCM_WS_URI", raising=False)
    app = flask.Flask("service")
    app.config.update(config)
    with pytest.raises(errors.ConfigError, match=message):
        Tcm(app)


def test_clients_are_closed_when_their_application_is_collected(serve):
    manager = serve()

    def serve_once():
        app = flask.Flask("service")
        app.config.update(TCM_WS_URI=manager.uri, TCM_CONTAINER_ID="local")
        Tcm(app)
        add_echo(app)
        assert app.test_client().get("/echo/1").status_code == 200

    serve_once()
    gc.collect()  # an open client would warn, which is an error here
    wait_until(lambda: manager.stats().connected == 0, "its connection is closed")


def test_an_application_is_collected_without_waiting_for_a_lock_of_its_clients(serve):
    manager = serve()
    app = flask.Flask("service")
    app.config.update(TCM_WS_URI=manager.uri, TCM_CONTAINER_ID="local")
    with app.app_context():
        Tcm(app).client.open()
    lock = app.extensions["tcm"]["default"]._core.lock
    held = [app]
    del app
    assert collected_while_held(held, lock)
    wait_until(lambda: manager.stats().connected == 0, "its connection is closed")


def test_the_error_of_an_application_without_a_tcm_says_what_to_do():
    app = flask.Flask("service")
    app.testing = True
    app.register_blueprint(health)
    with app.app_context(), pytest.raises(RuntimeError, match="Tcm"):
        current_tcm.stats()
    with app.app_context(), pytest.raises(RuntimeError, match="Tcm"):
        Tcm().close()
    with pytest.raises(RuntimeError, match="this application has no Tcm"):
        app.test_client().get("/readyz")


# --- errors as responses ---

#: Each error, and what it is answered with.
ANSWERS = {
    "ConnectionLostError": 503,
    "ConnectFailedError": 503,
    "AuthenticationError": 502,
    "PermissionDeniedError": 502,
    "CallTimeoutError": 504,
    "PoolTimeoutError": 503,
    "ShuttingDownError": 503,
    "BackpressureError": 503,
    "RateLimitedError": 503,
    "ProtocolError": 502,
    "MessageTooLargeError": 400,
    "ContractError": 400,
    "InputError": 400,
    "ConfigError": 500,
    "ModelFileError": 500,
    "ManagementError": 502,
    "ClientClosedError": 500,
    "ReentrantCallError": 500,
    "InferenceError": 502,
    "TritonTimeoutError": 504,
    "TritonNetworkError": 503,
    "TritonOverloadedError": 503,
    "CircuitOpenError": 503,
    "ServerNotReadyError": 503,
    "ModelNotReadyError": 503,
    "ConfigDownloadError": 503,
    "InferenceFailedError": 502,
    "KnownFaultError": 503,
    "StreamBusyError": 503,
    "ShapeMismatchError": 400,
    "ModelMissingError": 502,
    "TritonAuthError": 502,
    "ModelLoadError": 502,
    "SharedMemoryUnavailableError": 502,
    "SharedMemoryRegistrationError": 502,
    "ServerCreationError": 502,
    "MissingArgumentError": 502,
    "MissingInstanceError": 502,
    "TritonError": 502,
    "PayloadTooLargeError": 400,
    "StreamTimeoutError": 504,
}


def every_error():
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, TcmError) and kind is not TcmError
    }


def test_the_table_of_answers_has_every_error():
    assert set(ANSWERS) == set(every_error())


@pytest.mark.parametrize("name", ANSWERS)
def test_an_error_becomes_a_response_in_json(make_app, name):
    app = make_app("ws://127.0.0.1:1/ws", TCM_HANDLE_ERRORS=True)
    error = every_error()[name]("secret-host-7 failed", retry_after=2.1, uuid="u-1")

    @app.get("/")
    def view():
        raise error

    if ANSWERS[name] == 500:
        with pytest.raises(type(error)):
            app.test_client().get("/")
        return
    answer = app.test_client().get("/")
    assert answer.status_code == ANSWERS[name]
    assert answer.headers.get("Retry-After") == ("3" if ANSWERS[name] == 503 else None)
    body = answer.json["error"]
    assert (body["type"], body["code"], body["retriable"]) == (name, error.code, ANSWERS[name] == 503)
    assert ("secret-host-7" in answer.text) is (ANSWERS[name] == 400)
    assert "u-1" not in answer.text


def test_a_batch_that_the_model_does_not_take_is_a_bad_request(make_app):
    app = make_app("ws://127.0.0.1:1/ws", TCM_HANDLE_ERRORS=True)

    @app.get("/")
    def view():
        raise errors.InferenceFailedError("at most 8 rows", max_batch_size=8)

    assert app.test_client().get("/").status_code == 400


def test_a_failure_that_passes_has_a_retry_after_even_if_the_manager_names_none(make_app):
    app = make_app("ws://127.0.0.1:1/ws", TCM_HANDLE_ERRORS=True, TCM_OPTIONS={"retry": None})
    add_echo(app)
    answer = app.test_client().get("/echo/1")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json["error"]["type"] == "ConnectFailedError"


def test_the_log_has_the_details_of_an_error(make_app, caplog):
    app = make_app("ws://127.0.0.1:1/ws", TCM_HANDLE_ERRORS=True)

    @app.get("/")
    def view():
        raise errors.TritonError("secret-host-7 failed", uuid="u-1")

    app.test_client().get("/")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tcm_sync.integrations", logging.WARNING)
    assert "secret-host-7" in record.getMessage()
    assert "u-1" in record.getMessage()


def test_errors_are_left_to_flask_unless_that_is_asked_for(make_app):
    app = make_app("ws://127.0.0.1:1/ws", TCM_OPTIONS={"retry": None})
    add_echo(app)
    with pytest.raises(errors.ConnectFailedError):
        app.test_client().get("/echo/1")


# --- the deadline of a request ---


def test_calls_end_with_their_request(serve, make_app, gated):
    app = make_app(serve().uri, TCM_HANDLE_ERRORS=True, TCM_REQUEST_TIMEOUT=0.3, TCM_TIMEOUT=GUARD)

    @app.get("/")
    def view():
        return current_tcm.infer("gated", {"x": [1]}).tolist()

    app.tcm.client.open()
    answer = app.test_client().get("/")
    assert (answer.status_code, answer.json["error"]["type"]) == (504, "CallTimeoutError")


def test_a_call_has_what_is_left_of_its_request(make_app, clock):
    app = make_app("ws://127.0.0.1:1/ws", TCM_HANDLE_ERRORS=True, TCM_REQUEST_TIMEOUT=20, TCM_TIMEOUT=15)
    left = []

    @app.get("/")
    def view():
        for _ in range(3):
            left.append(app.tcm.client._defaults.timeout)
            clock.ahead += 9
        return current_tcm.infer("echo", {"x": [1]}).tolist()

    answer = app.test_client().get("/")
    assert left[0] == 15
    assert left[1] == pytest.approx(11, abs=1)
    assert left[2] == pytest.approx(2, abs=1)
    assert (answer.status_code, answer.json["error"]["type"]) == (504, "CallTimeoutError")
    with app.app_context():
        assert current_tcm._defaults.timeout == 15, "outside a request there is no deadline"


# --- probes ---


def test_probes_answer_while_the_manager_is_ready(serve, make_app):
    app = make_app(serve().uri)
    app.register_blueprint(health, url_prefix="/internal")
    client = app.test_client()
    assert client.get("/internal/healthz").json == {"status": "ok"}
    answer = client.get("/internal/readyz")
    assert (answer.status_code, answer.json) == (
        200,
        {"status": "ready", "managers": {"default": "ready"}},
    )


def test_readiness_fails_if_one_of_the_managers_is_away(serve, make_app, caplog):
    app = make_app(
        serve().uri, TCM_CLIENTS={"other": {"uri": "ws://127.0.0.1:1/ws", "container_id": "local"}}
    )
    app.register_blueprint(health)
    answer = app.test_client().get("/readyz")
    assert answer.status_code == 503
    assert answer.json == {"status": "not ready", "managers": {"default": "ready", "other": "unreachable"}}
    assert "client 'other'" in caplog.text
    assert app.test_client().get("/healthz").status_code == 200, "a restart would not help"


def test_a_manager_that_hangs_holds_up_no_probe(make_app):
    over = threading.Event()
    with ScriptedPeer() as peer:
        peer.http["/ready"] = lambda _: over.wait(GUARD)
        app = make_app(peer.uri, TCM_READY_TIMEOUT=0.1)
        app.register_blueprint(health)
        try:
            start = time.monotonic()
            answers = [app.test_client().get("/readyz") for _ in range(4)]
            assert time.monotonic() - start < 10
            assert {answer.status_code for answer in answers} == {503}
        finally:
            over.set()


# --- JSON ---


def test_the_provider_writes_results_and_arrays(make_app):
    app = make_app("ws://127.0.0.1:1/ws")
    app.json = TcmJSONProvider(app)
    result = InferResult("m", {"y": [[1.5, math.nan], [math.inf, -2.0]], "name": ["ä"], "n": np.int64(3)})

    @app.get("/")
    def view():
        return flask.jsonify(result=result, score=np.float32(0.5), nothing=np.float32("nan"))

    text = app.test_client().get("/").text
    assert json.loads(text, parse_constant=pytest.fail) == {
        "result": {"y": [[1.5, None], [None, -2.0]], "name": ["ä"], "n": 3},
        "score": 0.5,
        "nothing": None,
    }
    with pytest.raises(TypeError):
        app.json.dumps(object())
    assert app.json.dumps(UUID(int=0)) == '"00000000-0000-0000-0000-000000000000"', "as Flask does"


def test_a_result_has_its_outputs_as_lists():
    result = InferResult(
        "m", {"y": np.array([[1, 2]], np.int32), "s": np.array(True), "t": np.array(["a"], object)}
    )
    assert result.tolist() == {"y": [[1, 2]], "s": True, "t": ["a"]}
    assert json.loads(json.dumps(result.tolist())) == result.tolist()


# --- the command ---


def test_the_command_examines_the_client_of_the_application(serve, make_app):
    manager = serve()
    app = make_app("ws://127.0.0.1:1/ws", TCM_CLIENTS={"near": {"uri": manager.uri, "container_id": "local"}})
    runner = app.test_cli_runner()
    done = runner.invoke(args=["tcm", "doctor", "--client", "near", "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["ok"]) == (0, True)
    assert {step["name"]: step["status"] for step in report["steps"]}["round trip"] == "ok"
    assert runner.invoke(args=["tcm", "doctor", "--json"]).exit_code == 3
    done = runner.invoke(args=["tcm", "doctor", "--client", "far"])
    assert done.exit_code == 1
    assert "'far'" in done.output


def test_the_package_says_what_to_install_where_flask_is_missing():
    code = "import sys; sys.modules['flask'] = None\nimport tcm_sync.integrations.flask"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("pip install 'tcm-sync[flask]'")


# --- the page ---


@pytest.mark.parametrize("how", ["by hand", "page"])
def test_the_service_of_the_page_and_the_one_by_hand_answer_alike(digits_manager, monkeypatch, how):
    """They are what docs/deploying.rst compares by their lines."""
    monkeypatch.setenv("TCM_WS_URI", digits_manager.uri)
    monkeypatch.setenv("TCM_CONTAINER_ID", "local")
    page = (Path(__file__).parents[2] / "docs" / "deploying.rst").read_text()
    block = re.search(r"^\.\. code-block:: python\n\n((?: {3}.*\n|\n)+)", page, re.M)[1]
    by_hand = Path(__file__).with_name("by_hand") / "flask_service.py"
    names = {"__name__": "service"}
    exec(by_hand.read_text() if how == "by hand" else textwrap.dedent(block), names)
    client = names["app"].test_client()
    right = client.post("/digits", json={"image": [[0] * 64]})
    digits_manager.fail_next("TRITON_INFERENCE_FAILED")
    wrong = client.post("/digits", json={"image": [[0] * 64]})
    assert (right.status_code, len(right.json["probabilities"][0])) == (200, 10)
    assert (wrong.status_code, wrong.json["error"]["code"]) == (502, "TRITON_INFERENCE_FAILED")
    assert [client.get(probe).status_code for probe in ("/healthz", "/readyz")] == [200, 200]
    names["client" if how == "by hand" else "tcm"].close()
