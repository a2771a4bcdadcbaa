"""What a public method raises by itself is a `TcmError`, whatever it was given."""

from __future__ import annotations

import contextlib
import inspect
import os
import resource
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas
import pytest

from tcm_sync import (
    AuthContext,
    BatchPolicy,
    InferenceInput,
    ModelSignature,
    PipelineStep,
    RetryPolicy,
    Route,
    SHMReference,
    TcmClient,
    TcmError,
    TensorSpec,
    TlsSettings,
    models,
)
from tcm_sync.local import LocalManager

from ..helpers.onnx_build import model as onnx_model
from ..helpers.served_models import echo
from .odd_values import odd_values

X = np.ones((2, 3), np.float32)
INPUTS = {"x": X}
#: What an array raises that is asked for its elements goes up as it is.
ARRAYS = ("inputs", "data", "many_inputs")
TOO_MUCH_MEMORY = ("empty_shared", "shape", "2**31")  # 8 GiB, which a large machine has


def talk(_):
    yield "a"
    yield None


@pytest.fixture
def manager():
    with LocalManager({"echo": echo, "llm": talk, "a": echo, "text": echo}, tick=0) as manager:
        yield manager


@pytest.fixture
def client(manager):
    with made(manager) as client:
        yield client


def made(manager, **settings):
    return TcmClient(**{"uri": manager.uri, "route": manager.route, "timeout": 5.0, "retry": None} | settings)


def used(manager, **settings):
    with made(manager, **settings) as client:
        client.infer("echo", INPUTS, timeout=5.0)
        repr(client)
        client.stats()
        client.health(timeout=5.0)


def closed(manager, **options):
    with made(manager) as client:
        client.close(**options)


def started(**settings):
    manager = LocalManager(**settings)
    try:
        manager.start()
    finally:
        manager.kill()
        manager.stop()


def signature(**changes):
    return ModelSignature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),), **changes)


def calls(client, manager) -> dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[..., Any]]]:
    """Return by name: what is called, with which good arguments, and whose signature names the others."""
    model = client.model("echo")
    streaming = {
        "allow_transient": True,
        "container_id": manager.transient_route.container_id,
        "idle_timeout": 5.0,
        "timeout": 5.0,
    }
    stated = {"name": "x", "shape": (2, 3), "datatype": "FP32", "data": X}
    referred = {"name": "x", "shm_key": "/nowhere", "byte_size": 24, "shape": (2, 3), "dtype": "FP32"}
    analysis = models.analyze(onnx_model().SerializeToString())
    return {
        "infer": (client.infer, {"model_name": "echo", "inputs": INPUTS}, client.infer),
        "infer_chunked": (
            client.infer_chunked,
            {"model_name": "echo", "inputs": INPUTS},
            client.infer_chunked,
        ),
        "infer_frame": (
            client.infer_frame,
            {"model_name": "echo", "frame": pandas.DataFrame({"x": [1.0]})},
            client.infer_frame,
        ),
        "submit": (
            lambda **given: client.submit(**given).result(10.0),
            {"model_name": "echo", "inputs": INPUTS},
            client.submit,
        ),
        "map": (
            lambda **given: list(client.map(**given)),
            {"model_name": "echo", "many_inputs": [INPUTS]},
            client.map,
        ),
        "stream": (
            lambda **given: client.stream(**given).close(),
            {"model_name": "llm", "inputs": INPUTS, **streaming},
            client.stream,
        ),
        "pipeline": (client.pipeline, {"steps": [PipelineStep("echo", INPUTS)]}, client.pipeline),
        "PipelineStep": (
            lambda **given: client.pipeline([PipelineStep(**given)]),
            {"model_name": "echo", "inputs": INPUTS},
            PipelineStep,
        ),
        "step": (
            lambda **given: client.pipeline([given]),
            {"model_name": "echo", "inputs": INPUTS},
            PipelineStep,
        ),
        "info": (client.info, {"action": "queue_stats"}, client.info),
        "info's body": (
            partial(client.info, "queue_stats"),
            {},
            lambda job_id=None, extra=None: None,
        ),
        "queue_stats": (client.queue_stats, {}, client.queue_stats),
        "management": (client.management, {"action": "nothing"}, client.management),
        "management's body": (partial(client.management, "nothing"), {}, lambda extra=None: None),
        "create": (client.create, {}, client.create),
        "delete": (client.delete, {}, client.delete),
        "empty_shared": (client.empty_shared, {"shape": (2, 3), "dtype": "f4"}, client.empty_shared),
        "explain": (client.explain, {"inputs": INPUTS}, client.explain),
        "health": (client.health, {}, client.health),
        "ready": (client.ready, {}, client.ready),
        "wait_until_ready": (client.wait_until_ready, {"timeout": 0.2}, client.wait_until_ready),
        "stats": (client.stats, {}, client.stats),
        "open": (client.open, {}, client.open),
        "close": (partial(closed, manager), {}, client.close),
        "model": (lambda **given: client.model(**given).infer(INPUTS), {"model_name": "echo"}, client.model),
        "model of samples": (
            lambda **given: client.model(**given).infer_sample(X),
            {"model_name": "echo"},
            client.model,
        ),
        "Model.infer": (model.infer, {"inputs": INPUTS}, model.infer),
        "Model.infer_sample": (model.infer_sample, {"inputs": INPUTS}, model.infer_sample),
        "Model.submit_sample": (
            lambda **given: model.submit_sample(**given).result(10.0),
            {"inputs": INPUTS},
            model.submit_sample,
        ),
        "Model.infer_chunked": (model.infer_chunked, {"inputs": INPUTS}, model.infer_chunked),
        "Model.infer_frame": (
            model.infer_frame,
            {"frame": pandas.DataFrame({"x": [1.0]})},
            model.infer_frame,
        ),
        "Model.submit": (
            lambda **given: model.submit(**given).result(10.0),
            {"inputs": INPUTS},
            model.submit,
        ),
        "Model.map": (lambda **given: list(model.map(**given)), {"many_inputs": [INPUTS]}, model.map),
        "Model.stream": (
            lambda **given: client.model("llm").stream(**given).close(),
            {"inputs": INPUTS, **{name: value for name, value in streaming.items() if name not in WHERE}},
            model.stream,
        ),
        "signed Model.infer": (
            client.model("echo", signature=signature()).infer,
            {"inputs": X},
            model.infer,
        ),
        "ModelSignature": (
            lambda **given: client.model("echo", signature=ModelSignature(**given)).infer(INPUTS),
            {"inputs": signature().inputs, "outputs": signature().outputs},
            ModelSignature,
        ),
        "TensorSpec": (
            lambda **given: client.model(
                "echo", signature=ModelSignature((TensorSpec(**given),), signature().outputs)
            ).infer(INPUTS),
            {"name": "x", "datatype": "FP32", "dims": (2, 3)},
            TensorSpec,
        ),
        "InferenceInput": (
            lambda **given: client.infer("echo", [InferenceInput(**given)]),
            stated,
            InferenceInput,
        ),
        "a described input": (lambda **given: client.infer("echo", [given]), stated, InferenceInput),
        "SHMReference": (
            lambda **given: client.infer("echo", [SHMReference(**given)]),
            referred,
            SHMReference,
        ),
        "AuthContext": (lambda **given: used(manager, auth=AuthContext(**given)), {}, AuthContext),
        "a token callable": (
            lambda token: used(manager, auth=AuthContext(token=lambda: token)),
            {},
            lambda token=None: None,
        ),
        "Route": (
            lambda **given: used(manager, route=Route(**given)),
            {"container_id": manager.route.container_id},
            Route,
        ),
        "TlsSettings": (TlsSettings, {}, TlsSettings),
        "TLS context": (
            lambda **given: TlsSettings(**given).context(),
            {},
            lambda ca_file=None, cert_file=None: None,
        ),
        "RetryPolicy": (lambda **given: used(manager, retry=RetryPolicy(**given)), {}, RetryPolicy),
        "BatchPolicy": (
            lambda **given: client.model("echo", batch=BatchPolicy(**given)).infer_sample(X),
            {"max_wait": 0.0},
            BatchPolicy,
        ),
        "TcmClient": (partial(used, manager), {}, TcmClient),
        "analyze": (models.analyze, {}, models.analyze),
        "config_pbtxt": (models.config_pbtxt, {"analysis": analysis}, models.config_pbtxt),
        "sample_inputs": (
            models.sample_inputs,
            {"signature": analysis.signature},
            models.sample_inputs,
        ),
        "LocalManager": (started, {}, LocalManager),
    }


def outcome(call: Callable[[], Any]) -> str | None:
    """Make a call, and say what it raised if that is no error of ours."""
    try:
        call()
    except TcmError:
        return None
    except Exception as error:  # noqa: BLE001 - that is the question
        return f"{type(error).__name__}: {error!s:.100}"
    return None


class Everything:
    """A stand-in for the client and the manager, of which only the names of the calls are asked."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


#: What a bound model has already.
WHERE = ("vm_ip", "container_id", "vm_id")

NAMES = tuple(calls(Everything(), Everything()))


@pytest.fixture
def no_names(monkeypatch):
    """Have odd texts resolve to nothing, without a query."""
    real = socket.getaddrinfo

    def resolve(host, *args, **kinds):
        if isinstance(host, str) and not host.startswith(("127.", "localhost")):
            raise socket.gaierror(socket.EAI_NONAME, "there is no such name")
        return real(host, *args, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize("name", NAMES)
def test_odd_values_are_taken_or_refused_with_an_error_of_ours(name, client, manager, no_names):
    call, good, signature_of = calls(client, manager)[name]
    raw = []
    for parameter in inspect.signature(signature_of).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            pytest.fail(f"{name} takes *{parameter.name}, which is not tried")
        for label, value in odd_values().items():
            own = label == "released memoryview" and parameter.name in ARRAYS
            if own or (name, parameter.name, label) == TOO_MUCH_MEMORY:
                continue
            given = good | {parameter.name: value}
            if (raised := outcome(partial(call, **given))) is not None:
                raw.append(f"{parameter.name}={label}: {raised}")
    assert not raw, "\n".join(raw)


def fits_environment(text):
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def from_env():
    with TcmClient.from_env() as client:
        client.infer("echo", INPUTS, timeout=5.0, retry=None)


VARIABLES = (
    "TCM_WS_URI",
    "TCM_CLIENT_UUID",
    "TCM_CLIENT_TOKEN",
    "TCM_CLIENT_SUB",
    "TCM_CLIENT_TENANT_ID",
    "TCM_CLIENT_ROLES",
    "TCM_CONTAINER_ID",
    "TCM_VM_IP",
    "TCM_VM_ID",
    "TCM_CA_FILE",
    "TCM_PROXY",
    "TCM_TIMEOUT",
    "TCM_POOL_SIZE",
)


@pytest.mark.parametrize("variable", VARIABLES)
def test_odd_variables_are_taken_or_refused_with_an_error_of_ours(variable, manager, monkeypatch):
    texts = [value for value in odd_values().values() if type(value) is str and fits_environment(value)]
    raw = []
    for value in [
        *texts,
        "1e400",
        "-1",
        "9" * 5000,
        "nan",
        "ws://a..b/",
        "wss://\udc80",
        "ws://[/",
        "ws://h:99999",
    ]:
        monkeypatch.setenv("TCM_WS_URI", manager.uri)
        monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
        monkeypatch.setenv(variable, value)
        if (raised := outcome(from_env)) is not None:
            raw.append(f"{value!r:.80}: {raised}")
    assert not raw, "\n".join(raw)


@contextlib.contextmanager
def free_descriptors(count):
    """Let the process open so many descriptors and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    taken: list[int] = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for _ in range(count):
            os.close(taken.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)


def without_a_manager(name):
    """Make one call of a client of its own, which nobody answers."""
    settings = {"retry": None, "connect_timeout": 0.1, "timeout": 0.1, "route": Route("nowhere")}
    with TcmClient("ws://127.0.0.1:9/ws", **settings) as client:
        call, good, _ = calls(client, Everything())[name]
        call(**{key: value for key, value in good.items() if not isinstance(value, Everything)})


#: The calls of a client, of whatever kind: each fails, as nobody listens.
WITHOUT_A_MANAGER = (
    *("infer", "infer_chunked", "infer_frame", "submit", "map", "stream", "pipeline", "info"),
    *("queue_stats", "management"),
    *("create", "delete", "empty_shared", "explain", "health", "ready", "wait_until_ready", "stats", "open"),
    *("model", "model of samples"),
)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.parametrize("count", range(7))
def test_without_descriptors_calls_fail_with_an_error_of_ours(count, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model().SerializeToString())
    made_of_files = {
        "analyze a file": partial(models.analyze, path),
        "a TLS context": lambda: TlsSettings(ca_file=path).context(),
        "shm_group": lambda: TcmClient("ws://localhost/", shm_group="nobody here").close(),
    }
    clients = {name: partial(without_a_manager, name) for name in WITHOUT_A_MANAGER}
    outcome(partial(without_a_manager, "infer"))  # which loads what is loaded once
    raw = []
    for name, call in {**made_of_files, **clients}.items():
        with free_descriptors(count):
            raised = outcome(call)
        if raised is not None:
            raw.append(f"{name}: {raised}")
    assert not raw, "\n".join(raw)
