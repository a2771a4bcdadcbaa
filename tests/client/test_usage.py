"""What a user does with a client, against a manager."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tcm_sync import (
    AuthContext,
    AuthenticationError,
    CallTimeoutError,
    ConfigError,
    ConnectFailedError,
    ContractError,
    InferenceFailedError,
    InferenceInput,
    InputError,
    PermissionDeniedError,
    RetryPolicy,
    Route,
    ShuttingDownError,
    TcmClient,
)
from tcm_sync._transport import reader
from tcm_sync._transport.poller import SelectorPoller
from tcm_sync.local import ModelFailure

from ..helpers.environment import without_settings
from ..helpers.peer_scripts import timing_out
from ..helpers.waiting import GUARD, wait_until, wait_until_all_go_on

TOKEN = "tok-8113-not-for-logs"
SECRET = 74_913.0  # an element of a tensor, which no log may show


def describe(arrays):
    """Answer with the names, dtypes and shapes of what arrived."""
    return {
        name: np.array([str(array.dtype), str(array.shape)], dtype=object) for name, array in arrays.items()
    }


X = np.array([[1.5, 2.5, 3.5]], dtype=np.float32)


class Tensor:
    """What only speaks DLPack."""

    def __dlpack__(self, **how):
        return X.__dlpack__()

    def __dlpack_device__(self):
        return X.__dlpack_device__()


FORMS = {
    "arrays by name": {"x": X},
    "lists by name": {"x": X.tolist()},
    "DLPack by name": {"x": Tensor()},
    "inputs": [InferenceInput("x", (1, 3), "FP32", X)],
    "inputs of flat data": [InferenceInput("x", (1, 3), "FP32", [1.5, 2.5, 3.5])],
    "dicts": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [[1.5, 2.5, 3.5]]}],
    "the manager's dicts": [{"name": "x", "dims": [1, 3], "type": "TYPE_FP32", "value": [[1.5, 2.5, 3.5]]}],
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_in_each_of_their_forms(serve, client_of, form):
    client = client_of(serve({"describe": describe}))
    assert client.infer("echo", FORMS[form])["x"].tolist() == X.tolist()
    dtype = "float64" if form == "lists by name" else "float32"
    assert client.infer("describe", FORMS[form])["x"].tolist() == [dtype, "(1, 3)"]


def test_one_array_alone_has_the_name_that_other_clients_give_it(serve, client_of):
    client = client_of(serve())
    assert client.infer("echo", X)["INPUT__0"].tolist() == X.tolist()
    assert client.infer("echo", [1, 2])["INPUT__0"].tolist() == [1, 2]


def test_columns_of_a_table_are_inputs(serve, client_of):
    table = pd.DataFrame({"age": [31, 47], "name": ["Ann", "Bob"]})
    result = client_of(serve()).infer("echo", {name: table[name] for name in table})
    assert result["age"].tolist() == [31, 47]
    assert result["name"].tolist() == ["Ann", "Bob"]


def test_output_dtypes_for_all_by_name_and_for_none(serve, client_of):
    def model(arrays):
        return {"scores": np.array([[0.1, np.nan]], np.float32), "count": np.array([7])}

    client = client_of(serve({"m": model}))

    def dtypes(output_dtypes):
        result = client.infer("m", X, output_dtypes=output_dtypes)
        assert np.isnan(result["scores"][0, 1])
        return str(result["scores"].dtype), str(result["count"].dtype)

    assert dtypes(None) == ("float64", "int64")
    assert dtypes("f4") == ("float32", "float32")
    assert dtypes({"scores": np.float16}) == ("float16", "int64")
    assert dtypes({"scores": "f4", "count": np.uint8}) == ("float32", "uint8")
    assert client.infer("m", X, output_dtypes="f4")["scores"][0, 0] == np.float32(0.1)


# --- where it runs ---


def test_an_empty_route_is_no_route(serve, client_of):
    client = client_of(serve())
    for wrong in ({"vm_ip": ""}, {"vm_id": ""}, {"container_id": ""}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            client.infer("echo", {"x": [1]}, **wrong)


def test_a_filter_of_the_users_that_raises_does_not_hurt_the_reader(serve, client_of, gated):
    """The reader logs that the manager drains; the call fails for that reason, and not for the filter's."""

    def refuse(record):
        raise ValueError("a filter of the user's")

    manager = serve(linger=60)
    client = client_of(manager, retry=None)
    client.open()
    logger = logging.getLogger("tcm_sync.pool")
    logger.addFilter(refuse)
    level = logger.level
    logger.setLevel(logging.INFO)
    logging.getLogger("tcm_sync.reader").disabled = True
    try:
        with ThreadPoolExecutor(1) as thread:
            stopping = thread.submit(manager.stop)
            wait_until(lambda: manager._server is None or manager._server.core.draining, "it drains")
            with pytest.raises(ShuttingDownError):
                client.infer("echo", {"x": [1]})
            manager.kill()
            stopping.result(GUARD)
    finally:
        logger.removeFilter(refuse)
        logger.setLevel(level)
        logging.getLogger("tcm_sync.reader").disabled = False


def test_the_route_comes_from_the_client_or_the_call(serve, client_of):
    manager = serve(container_id="ctr-7", vm_ip="10.0.0.7")
    with_route, without = client_of(manager), client_of(manager, route=None)
    elsewhere = client_of(manager, route=Route("ctr-8", "10.0.0.8"))
    for client, how in (
        (with_route, {}),
        (with_route, {"vm_ip": "10.0.0.7", "vm_id": "vm-1"}),
        (without, {"container_id": "ctr-7"}),
        (elsewhere, {"container_id": "ctr-7"}),
        (elsewhere, {"container_id": "ctr-7", "vm_ip": "10.0.0.7"}),
    ):
        assert client.infer("echo", X, **how)["INPUT__0"].tolist() == X.tolist()
    with pytest.raises(InputError, match="container_id"):
        without.infer("echo", X)
    with pytest.raises(ContractError, match="ctr-8") as caught:
        elsewhere.infer("echo", X)
    assert caught.value.route == Route("ctr-8", "10.0.0.8")
    with pytest.raises(InferenceFailedError, match="refused"):
        with_route.infer("echo", X, vm_ip="10.0.0.9")


SCRIPT = """
from tcm_sync import TcmClient
with TcmClient.from_env() as client:
    print(client.infer("echo", [1, 2])["INPUT__0"].tolist())
"""


def from_env(**variables):
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    environment = without_settings(**variables)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=3 * GUARD, check=False
    )


def test_settings_from_the_environment(serve):
    manager = serve(tokens={TOKEN: ["inference"]})
    done = from_env(
        TCM_WS_URI=manager.uri,
        TCM_CLIENT_UUID="from-env",
        TCM_CLIENT_TOKEN=TOKEN,
        TCM_CONTAINER_ID=manager.route.container_id,
        TCM_VM_IP=manager.route.vm_ip,
        TCM_TIMEOUT="20",
        TCM_POOL_SIZE="1",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2]\n", "")
    (uuid,) = manager.stats().uuids
    assert uuid.startswith("from-env-")


def test_an_environment_without_an_address_is_an_error():
    done = from_env()
    assert done.returncode == 1
    assert "ConfigError: TCM_WS_URI is not set" in done.stderr


# --- who calls ---


def test_a_wrong_token_is_reported_by_open_at_once(serve, client_of):
    manager = serve(tokens=[TOKEN])
    client = client_of(manager, auth=AuthContext(token="tok-wrong"))
    with pytest.raises(AuthenticationError) as caught:
        client.open()
    assert "tok-wrong" not in str(caught.value)
    assert client_of(manager, auth=AuthContext(token=TOKEN)).open().infer("echo", X)


def test_a_missing_role_is_named(serve, client_of):
    client = client_of(serve(), auth=AuthContext(roles=("management",)))
    with pytest.raises(PermissionDeniedError, match="inference"):
        client.infer("echo", X)


# --- probes ---


def test_probes_of_a_manager_that_is_up_drains_and_is_down(serve, gated, client_of):
    manager = serve()
    client = client_of(manager)
    assert client.health() is True
    assert client.ready()
    assert client.ready().status == "ready"
    assert manager.stats().connections == 0, "a probe is no connection"
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.infer, "gated", {"x": X})
        wait_until(lambda: manager.stats().running == 1, "the call runs")
        stopping = pool.submit(manager.stop)
        assert client.health()
        assert client.ready().ok, "a draining manager says that it is ready"
        gated.open_all()
        assert call.result(GUARD)["y"].tolist() == X.tolist()
        stopping.result(GUARD)
    assert client.health() is False
    down = client.ready()
    assert not down
    assert (down.ok, down.status) == (False, "unreachable")
    assert str(manager.port) in down.detail


# --- what goes wrong ---


def test_a_passing_failure_is_repeated_and_any_other_raised(serve, client_of):
    failures = iter(["TRITON_OVERLOADED", "TRITON_NETWORK"])

    def moody(arrays):
        for code in failures:
            raise ModelFailure(code, "try again")
        return arrays

    def broken(arrays):
        raise RuntimeError("no such weight")

    client = client_of(serve({"moody": moody, "broken": broken}), retry=RetryPolicy(initial=0.0))
    assert client.infer("moody", X).attempts == 3
    with pytest.raises(InferenceFailedError, match="no such weight") as caught:
        client.infer("broken", X)
    assert (caught.value.attempts, caught.value.retriable) == (1, False)
    with pytest.raises(InferenceFailedError, match="nobody"):
        client.infer("nobody", X, retry=None)


def test_a_call_that_takes_too_long_may_have_run(serve, client_of):
    manager = serve()
    with pytest.raises(CallTimeoutError) as caught, timing_out(lambda: manager.stats().running):
        client_of(manager).infer("gated", {"x": X})
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.outcome_unknown
    assert caught.value.uuid in manager.stats().uuids


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_managers_that_restart_under_load_cost_no_call(serve, client_of, how):
    """The same port, eight threads, three restarts; more than four replies may be lost to one call."""
    manager = serve()
    client = client_of(manager, timeout=3 * GUARD, retry=RetryPolicy(attempts=100))
    over = threading.Event()
    answered = [0] * 8

    def ask(number):
        while not over.is_set():
            x = np.array([[number, answered[number]]])
            assert client.infer("echo", {"x": x})["x"].tolist() == x.tolist()
            answered[number] += 1

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, number) for number in range(8)]
        try:
            for _ in range(3):
                wait_until_all_go_on(answered, asking)
                getattr(manager, how)()
                manager.start()
            wait_until_all_go_on(answered, asking)
        finally:
            over.set()
        for future in asking:
            future.result(3 * GUARD)


def test_calls_go_through_where_there_is_no_epoll(serve, client_of, monkeypatch):
    monkeypatch.setattr(reader, "make_poller", SelectorPoller)
    manager = serve()
    client = client_of(manager)
    for number in range(20):
        assert client.infer("echo", {"x": [number]})["x"].tolist() == [number]
    manager.kill()
    manager.start()
    assert client.infer("echo", {"x": [20]})["x"].tolist() == [20]


# --- what is logged ---


def test_logs_have_their_names_and_no_secrets(serve, client_of, caplog):
    caplog.set_level(logging.DEBUG, "tcm_sync")
    times = iter(range(1, 10**6))

    def moody(arrays):
        if next(times) == 1:
            raise ModelFailure("TRITON_OVERLOADED", "first line\nsecond line \x1b[31m" + "x" * 5000)
        return arrays

    manager = serve({"moody": moody}, tokens=[TOKEN])
    client = client_of(manager, auth=AuthContext(token=TOKEN), retry=RetryPolicy(initial=0.0))
    assert client.infer("moody", {"x": [SECRET], "t": ["secret words"]})["x"].tolist() == [SECRET]
    manager.alert("look\nhere")
    wait_until(lambda: "alert" in caplog.text, "the alert is logged")
    manager.kill()
    wait_until(lambda: "closed after" in caplog.text, "the client has noticed")
    with pytest.raises(ConnectFailedError):
        client.infer("echo", {"x": [SECRET]}, retry=None)
    client.close()
    with pytest.raises(AuthenticationError):
        client_of(serve(tokens=["t"]), auth=AuthContext(token=TOKEN)).open()

    records = [record for record in caplog.records if not record.name.startswith("tcm_sync.local")]
    assert {record.name for record in records} == {"tcm_sync.pool", "tcm_sync.reader", "tcm_sync.retry"}
    said = [record.getMessage() for record in records]
    for words in ("opened", "closed after", "repeating", "manager gate shut", "authentication gate shut"):
        assert any(words in message for message in said), words
    for message in said:
        assert TOKEN not in message
        assert f"{SECRET:.0f}" not in message
        assert "secret words" not in message
        assert message.isprintable()
        assert len(message) < 1000


def test_no_handler_is_ours():
    loggers = [
        logger for name, logger in logging.root.manager.loggerDict.items() if name.startswith("tcm_sync")
    ]
    assert loggers
    for logger in loggers:
        if isinstance(logger, logging.Logger):  # and not a stand-in for one that nobody has asked for
            assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True)


@pytest.mark.parametrize(("pool_size", "turns"), [(5, "off"), (6, "off"), (6, "auto")])
def test_a_pool_that_the_manager_would_starve_is_warned_of_once(serve, client_of, caplog, pool_size, turns):
    client = client_of(serve(), pool_size=pool_size, turns=turns)
    for _ in range(3):
        client.infer("echo", X)
    warnings = [record for record in caplog.records if "pool_size" in record.getMessage()]
    assert len(warnings) == (pool_size > 5 and turns == "off")
    assert all(record.levelno == logging.WARNING for record in warnings)


# --- where it does not run ---


@pytest.mark.parametrize(
    ("module", "question", "about"),
    [
        ("gevent.monkey", "is_module_patched", "threading"),
        ("gevent.monkey", "is_module_patched", "socket"),  # patch_all(thread=False) leaves that
        ("gevent.monkey", "is_module_patched", "select"),
        ("gevent.monkey", "is_module_patched", "ssl"),
        ("eventlet.patcher", "is_monkey_patched", "thread"),
        ("eventlet.patcher", "is_monkey_patched", "socket"),
    ],
)
def test_a_client_is_not_made_where_green_threads_took_the_place_of_threads_or_sockets(
    monkeypatch, module, question, about
):
    patched = {about}
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{question: patched.__contains__}))
    with pytest.raises(ConfigError, match=rf"{module.partition('.')[0]} has patched {about} .*worker"):
        TcmClient("ws://127.0.0.1:1/ws")
    patched.clear()
    TcmClient("ws://127.0.0.1:1/ws").close()


@pytest.mark.parametrize(
    ("module", "question", "about"),
    [
        ("gevent.monkey", "is_module_patched", "threading"),
        ("eventlet.patcher", "is_monkey_patched", "thread"),
    ],
)
def test_green_threads_are_refused_where_they_took_the_place_of_threads(
    serve, client_of, monkeypatch, module, question, about
):
    patched = set()
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{question: patched.__contains__}))
    client = client_of(serve())
    patched.add(about)
    with pytest.raises(ConfigError, match=module.partition(".")[0]):
        client.infer("echo", X)
    with pytest.raises(ConfigError, match="worker"):
        client.open()
    patched.clear()
    assert client.infer("echo", X)["INPUT__0"].tolist() == X.tolist()
