"""Events: what listeners receive, on which thread, and that no call waits for them."""

from __future__ import annotations

import contextvars
import gc
import itertools
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tcm_sync import (
    AuthContext,
    BatchPolicy,
    CircuitOpenError,
    ConfigError,
    ConnectFailedError,
    InferenceError,
    InputError,
    PoolTimeoutError,
    Route,
    TcmClient,
)
from tcm_sync._pool import turns
from tcm_sync._pool.gate import Gate
from tcm_sync.events import (
    AttemptFailed,
    BatchSent,
    CallFinished,
    CallStarted,
    ConnectionClosed,
    ConnectionOpened,
    GateOpened,
    GateShut,
    Listener,
    WaitFinished,
    WaitStarted,
    add_listener,
    flush,
    remove_listener,
)
from tcm_sync.events import _listeners as listeners
from tcm_sync.events._watch import Watch
from tcm_sync.local import ModelFailure

from ..helpers.waiting import GUARD, wait_until

request_id = contextvars.ContextVar("request_id", default=None)


class Recorder(Listener):
    """Keeps all events, and where they were received."""

    def __init__(self):
        self.all = []
        self.threads = set()
        self.ids = []

    def receive(self, event):
        self.all.append(event)
        self.threads.add(threading.current_thread().name)
        self.ids.append(request_id.get())

    call_started = call_finished = attempt_failed = connection_opened = connection_closed = receive
    gate_shut = gate_opened = batch_sent = wait_started = wait_finished = receive

    def of(self, kind):
        assert flush(GUARD)
        return [event for event in self.all if type(event) is kind]

    def only(self, kind):
        (event,) = self.of(kind)
        return event


@pytest.fixture(autouse=True)
def _thread_ends_soon(monkeypatch):
    threads = listeners._delivery._threads
    monkeypatch.setattr(threads, "_idle_seconds", 0.01)
    yield
    wait_until(lambda: not threads._threads)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def manager(serve):
    return serve(workers=8)


@pytest.fixture
def client(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, listeners=[recorder]) as client:
        yield client


def streaming(client, manager, **options):
    view = client.with_options(route=manager.transient_route)
    return view.stream("llm", {"text": ["hello"]}, allow_transient=True, **options)


def test_a_call_is_reported_when_it_begins_and_when_it_has_ended(client, manager, recorder):
    client.infer("echo", {"x": [1.5]})
    started, finished = recorder.only(CallStarted), recorder.only(CallFinished)
    assert started.call_id == finished.call_id
    assert (started.kind, started.model_name) == ("infer", "echo")
    assert started.container_id == manager.route.container_id
    assert started.manager in manager.uri
    assert (finished.code, finished.error, finished.attempts) == (None, None, 1)
    assert (finished.transport, finished.batch_size) == ("json", None)
    assert recorder.threads == {"tcm-sync-events"}


def test_the_seconds_of_a_call_are_those_of_its_phases(client, recorder):
    client.infer("echo", {"x": np.arange(500.0)})
    finished = recorder.only(CallFinished)
    phases = {name: getattr(finished.phases, name) for name in finished.phases.__struct_fields__}
    assert sum(phases.values()) == pytest.approx(finished.seconds)
    assert phases["pausing"] == 0.0
    assert all(phases[name] > 0.0 for name in ("encoding", "socket", "sending", "reply", "decoding"))


def test_the_bytes_of_a_call_are_those_of_its_messages(client, recorder):
    texts = np.array(["a" * 3000])
    client.infer("echo", {"x": texts})
    finished = recorder.only(CallFinished)
    assert 3000 < finished.bytes_sent < 3500
    assert 3000 < finished.bytes_received < 3500


def test_waiting_for_a_socket_and_for_the_reply_are_distinguished(manager, recorder, gated):
    with TcmClient(manager.uri, route=manager.route, pool_size=1, listeners=[recorder]) as client:
        first = client.submit("gated", {"x": [1.0]})
        wait_until(lambda: client.stats().messages_sent, "it waits for its reply")
        with pytest.raises(PoolTimeoutError):
            client.infer("echo", {"x": [1.0]}, timeout=0.1)
        gated.open_all()
        first.result(GUARD)
        assert flush(GUARD)
    late = next(event for event in recorder.of(CallFinished) if event.code)
    assert (late.code, late.error, late.attempts) == ("PoolTimeoutError", "PoolTimeoutError", 0)
    assert late.phases.socket > late.phases.reply == 0.0
    good = next(event for event in recorder.of(CallFinished) if not event.code)
    assert good.phases.reply > late.phases.socket / 2
    assert recorder.of(AttemptFailed) == []  # it had no socket


def opened_late(recorder):
    """Return an identity for a client whose connections open once a wait for each was reported."""
    numbers = itertools.count(1)

    def token():
        number = next(numbers)
        wait_until(lambda: sum(isinstance(each, WaitStarted) for each in recorder.all) >= number)
        return "a token"

    return AuthContext(token=token)


def waits_of(recorder):
    """Return what was waited for, and check that each wait has ended."""
    started, finished = recorder.of(WaitStarted), recorder.of(WaitFinished)
    assert [(each.call_id, each.wait) for each in started] == [(each.call_id, each.wait) for each in finished]
    assert all(each.seconds > 0.0 for each in finished)
    return [each.wait for each in started]


def test_a_wait_for_a_socket_is_reported_where_there_is_one(manager, recorder, gated):
    options = {"pool_size": 1, "turns": "off", "listeners": [recorder], "auth": opened_late(recorder)}
    with TcmClient(manager.uri, route=manager.route, **options) as client, ThreadPoolExecutor(1) as thread:
        client.infer("echo", {"x": [1.0]})
        client.infer("echo", {"x": [1.0]})
        assert waits_of(recorder) == ["socket"], "the first call waits until it is opened"
        recorder.all.clear()
        first = client.submit("gated", {"x": [1.0]})
        wait_until(lambda: client.stats().busy)
        second = thread.submit(client.infer, "echo", {"x": [1.0]})
        wait_until(lambda: recorder.of(WaitStarted), "the second call waits")
        assert recorder.of(WaitFinished) == []
        gated.open_all()
        first.result(GUARD)
        second.result(GUARD)
        assert waits_of(recorder) == ["socket"]
        (wait,) = recorder.of(WaitFinished)
        call = next(each for each in recorder.of(CallFinished) if each.call_id == wait.call_id)
        assert wait.model_name == "echo"
        assert 0.0 < wait.seconds <= call.phases.socket


def test_a_wait_that_fails_is_reported_as_ended(manager, recorder, gated):
    options = {"pool_size": 1, "listeners": [recorder], "auth": opened_late(recorder)}
    with TcmClient(manager.uri, route=manager.route, **options) as client:
        first = client.submit("gated", {"x": [1.0]})
        wait_until(lambda: client.stats().messages_sent)
        with pytest.raises(PoolTimeoutError):
            client.infer("echo", {"x": [1.0]}, timeout=0.05)
        assert waits_of(recorder) == ["socket", "socket"]
        gated.open_all()
        first.result(GUARD)


def test_a_wait_for_a_turn_is_reported(manager, recorder, gated, monkeypatch):
    monkeypatch.setattr(turns, "LONG_AGE_NS", 10**15)
    options = {"turns": 1, "listeners": [recorder], "auth": opened_late(recorder)}
    with TcmClient(manager.uri, route=manager.route, **options) as client:
        first = client.submit("gated", {"x": [1.0]})
        wait_until(lambda: client.stats().messages_sent == 1)
        second = client.submit("echo", {"x": [1.0]})
        wait_until(lambda: "turn" in [each.wait for each in recorder.of(WaitStarted)], "the second waits")
        assert "turn" not in [each.wait for each in recorder.of(WaitFinished)]
        gated.open_all()
        first.result(GUARD)
        second.result(GUARD)
        assert waits_of(recorder) == ["socket", "socket", "turn"]


def test_each_attempt_that_failed_is_reported_and_its_pause_measured(serve, recorder):
    left = [2]

    def flaky(arrays):
        if left[0]:
            left[0] -= 1
            raise ModelFailure("TRITON_OVERLOADED", "busy")
        return {"y": arrays["x"]}

    manager = serve({"flaky": flaky})
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, listeners=[recorder]) as client:
        result = client.infer("flaky", {"x": [1.0]})
    failed = recorder.of(AttemptFailed)
    assert [(each.attempt, each.code) for each in failed] == [
        (1, "TRITON_OVERLOADED"),
        (2, "TRITON_OVERLOADED"),
    ]
    assert all("busy" in each.message and each.uuid for each in failed)
    finished = recorder.only(CallFinished)
    assert (finished.code, finished.attempts) == (None, result.attempts)
    assert {each.call_id for each in failed} == {finished.call_id}
    assert finished.phases.pausing > 0.0


def test_the_error_of_a_call_is_reported_with_its_code(serve, recorder):
    def refuse(arrays):
        raise ModelFailure("TRITON_INFERENCE_FAILED", "unlucky")

    manager = serve({"picky": refuse})
    client = TcmClient(manager.uri, route=manager.route, timeout=GUARD, listeners=[recorder])
    with client, pytest.raises(InferenceError):
        client.infer("picky", {"x": [1.0]})
    finished = recorder.only(CallFinished)
    assert (finished.code, finished.error) == ("TRITON_INFERENCE_FAILED", "InferenceFailedError")
    assert recorder.only(AttemptFailed).attempt == 1


def test_arguments_that_are_refused_make_no_event(client, recorder):
    with pytest.raises(InputError):
        client.infer("echo", {"x": [object()]})
    assert recorder.of(CallStarted) == recorder.of(CallFinished) == []


@pytest.mark.parametrize("kind", ["infer", "batch", "pipeline", "stream", "info", "management"])
def test_every_kind_of_call_is_reported_once(client, manager, recorder, talker, steps, kind):
    if kind == "infer":
        client.infer_chunked("echo", {"x": np.ones((3, 1))}, rows=3)
    elif kind == "batch":
        client.model("echo", batch=BatchPolicy(4, 0.0)).infer_sample({"x": [1.0]})
    elif kind == "pipeline":
        client.pipeline([{"model_name": "echo", "inputs": {"x": [1.0]}}])
    elif kind == "stream":
        talker.go_on()
        list(streaming(client, manager, idle_timeout=0.05, on_idle="end"))
    elif kind == "info":
        client.queue_stats()
    else:
        steps.release()
        client.management("create_vm", openstack={"name": "a"}, timeout=GUARD)
    finished = recorder.only(CallFinished)
    assert recorder.only(CallStarted).call_id == finished.call_id
    assert finished.kind == kind
    assert finished.attempts == 1
    assert finished.batch_size == (1 if kind == "batch" else None)


def test_a_stream_is_reported_when_it_has_ended(client, manager, recorder, talker):
    with streaming(client, manager) as stream:
        next(stream)
        assert recorder.of(CallFinished) == []
    finished = recorder.only(CallFinished)
    assert (finished.kind, finished.code, finished.error) == ("stream", "closed", None)
    assert finished.bytes_received > 0


def test_a_stream_that_is_dropped_is_reported_as_closed(client, manager, recorder, talker):
    stream = streaming(client, manager)
    next(stream)
    del stream
    gc.collect()
    wait_until(lambda: recorder.of(CallFinished))
    assert recorder.only(CallFinished).code == "closed"


def test_a_batch_is_reported_when_it_goes_out(client, recorder, manager):
    model = client.model("echo", batch=BatchPolicy(max_size=2, max_wait=GUARD))
    for future in [model.submit_sample({"x": [1.0]}) for _ in range(2)]:
        future.result(GUARD)
    sent = recorder.only(BatchSent)
    assert (sent.model_name, sent.container_id, sent.size) == ("echo", manager.route.container_id, 2)
    assert recorder.only(CallFinished).batch_size == 2


def test_shared_memory_is_reported(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, listeners=[recorder]) as client:
        client.infer("echo", {"x": np.ones(100_000)}, transport="shm", output_dtypes="f8")
    finished = recorder.only(CallFinished)
    assert finished.transport == "shm"
    assert finished.bytes_sent < 1000


def test_connections_are_reported_with_the_reason_of_their_end(manager, recorder):
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, listeners=[recorder]) as client:
        client.infer("echo", {"x": [1.0]})
    opened, closed = recorder.only(ConnectionOpened), recorder.only(ConnectionClosed)
    assert opened.uuid == closed.uuid
    assert (opened.pool, closed.pool, closed.requests) == ("inference", "inference", 1)
    assert closed.reason == "the client was closed"
    assert opened.seconds > 0.0
    assert closed.seconds > 0.0


def test_a_connection_that_is_lost_is_reported_once(client, recorder, manager):
    client.infer("echo", {"x": [1.0]})
    manager.stop()
    wait_until(lambda: recorder.of(ConnectionClosed))
    client.close()
    assert len(recorder.of(ConnectionClosed)) == len(recorder.of(ConnectionOpened)) == 1


def test_a_gate_is_reported_when_it_is_shut_and_when_it_opens(serve, recorder):
    left = [1]

    def full(arrays):
        if left[0]:
            left[0] -= 1
            raise ModelFailure("TRITON_CIRCUIT_OPEN", "open", retry_after_seconds=0.2)
        return {"y": arrays["x"]}

    manager = serve({"full": full})
    options = {"listeners": [recorder], "auth": opened_late(recorder)}
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, **options) as client:
        client.infer("full", {"x": [1.0]})
    shut, opened = recorder.only(GateShut), recorder.only(GateOpened)
    assert shut.gate == opened.gate == "circuit of 'full'"
    assert shut.gate_id == opened.gate_id
    assert (shut.code, shut.message) == ("TRITON_CIRCUIT_OPEN", shut.message)
    assert shut.seconds > 0.0
    assert opened.seconds > 0.0
    assert waits_of(recorder) == ["socket", "gate"]


def test_a_gate_that_is_shut_when_its_client_is_closed_is_reported_as_open(recorder):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = TcmClient(f"ws://127.0.0.1:{port}/ws", route=Route("c"), listeners=[recorder])
    with client, pytest.raises(ConnectFailedError):
        client.infer("echo", {"x": [1.0]}, retry=None, timeout=GUARD)
    assert {each.gate for each in recorder.of(GateShut)} == {"manager"}
    assert recorder.of(GateOpened)[-1].gate == "manager"
    assert type([each for each in recorder.all if hasattr(each, "gate")][-1]) is GateOpened


def test_a_circuit_that_is_forgotten_is_reported_as_open(serve, recorder, monkeypatch):
    manager = serve()
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, listeners=[recorder]) as client:
        for container_id in ("one", "two"):
            monkeypatch.setattr(Gate, "is_past", lambda gate: True)
            manager.fail_next("TRITON_CIRCUIT_OPEN", retry_after_seconds=20.0)
            with pytest.raises(CircuitOpenError):
                client.infer("echo", {"x": [1.0]}, retry=None, container_id=container_id, vm_ip="127.0.0.1")
            assert len(recorder.of(GateShut)) == len(recorder.of(GateOpened)) + 1
    assert len(recorder.of(GateOpened)) == 2
    ids = [each.gate_id for each in recorder.of(GateShut)]
    assert ids[0] != ids[1]
    assert ids == [each.gate_id for each in recorder.of(GateOpened)]


@pytest.mark.parametrize("call", ["infer", "submit", "map", "infer_chunked"])
def test_listeners_run_in_the_context_of_the_caller(manager, recorder, call):
    request_id.set("request 7")
    inputs = {"x": np.ones((1, 1))}
    options = {"listeners": [recorder], "auth": opened_late(recorder)}
    with TcmClient(manager.uri, route=manager.route, **options) as client:
        if call == "submit":
            client.submit("echo", inputs).result(GUARD)
        elif call == "map":
            list(client.map("echo", [inputs]))
        else:
            getattr(client, call)("echo", inputs)
    request_id.set(None)
    recorder.only(CallFinished)
    ids = [each for event, each in zip(recorder.all, recorder.ids, strict=True) if hasattr(event, "call_id")]
    assert ids == ["request 7"] * 4, "its beginning and end, and those of the wait for the first socket"


def test_the_code_of_submit_runs_in_the_context_of_its_caller(client, monkeypatch):
    from tcm_sync._calls import submit_map

    seen = []
    send = submit_map.send_watched
    monkeypatch.setattr(
        submit_map, "send_watched", lambda *given: seen.append(request_id.get()) or send(*given)
    )
    request_id.set("request 8")
    future = client.submit("echo", {"x": [1.0]})
    request_id.set(None)
    future.result(GUARD)
    assert seen == ["request 8"]


def test_views_and_copies_share_the_listeners(client, recorder):
    client.with_options(timeout=7.0).infer("echo", {"x": [1.0]})
    with pickle.loads(pickle.dumps(client)) as copy:
        copy.infer("echo", {"x": [1.0]})
    assert len(recorder.of(CallFinished)) == 2


class _Unpicklable(Recorder):
    def __reduce__(self):
        raise TypeError("a listener was pickled")


def test_listeners_do_not_travel_in_a_pickle(manager):
    with TcmClient(manager.uri, route=manager.route, listeners=[_Unpicklable()]) as client:
        text = pickle.dumps(client)
    with pickle.loads(text) as copy:
        assert copy._core.listeners.registered == ()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_listeners_are_kept_over_a_fork(client, manager, recorder):
    add_listener(of_all := Recorder())
    try:
        client.infer("echo", {"x": [1.0]})
        assert flush(GUARD)
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                recorder.all.clear()
                of_all.all.clear()
                client.infer("echo", {"x": [1.0]})
                with TcmClient(manager.uri, route=manager.route, timeout=GUARD) as other:
                    other.infer("echo", {"x": [1.0]})
                kinds = CallFinished, ConnectionOpened
                counts = [len(each.of(kind)) for each in (recorder, of_all) for kind in kinds]
                os.write(writing, repr(counts).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b"[1, 1, 2, 2]"
        os.waitpid(pid, 0)
        assert len(recorder.of(CallFinished)) == len(of_all.of(CallFinished)) == 1
    finally:
        remove_listener(of_all)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_events_that_wait_at_a_fork_are_delivered_in_the_parent_alone(recorder):
    of_client = listeners.Listeners([recorder])
    of_client.add(GateOpened(at=0.0, manager="m", gate="g", gate_id=1, seconds=1.0))  # which wakes no thread
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = len(recorder.of(GateOpened))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(recorder.of(GateOpened)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_the_listener_that_is_running(client):
    lock = threading.Lock()
    entered, go_on = threading.Event(), threading.Event()

    class Locking(Listener):
        def call_finished(self, event):
            with lock:
                entered.set()
                go_on.wait(GUARD)

    add_listener(listener := Locking())
    try:
        client.infer("echo", {"x": [1.0]})
        assert entered.wait(GUARD)
        timer = threading.Timer(0.05, go_on.set)
        timer.start()
        pid = os.fork()
        if not pid:
            os._exit(int(not lock.acquire(timeout=1.0)))
        assert os.waitpid(pid, 0)[1] == 0
        timer.join()
    finally:
        go_on.set()
        remove_listener(listener)


def test_a_listener_of_all_clients_hears_those_that_exist_already(client, manager):
    client.infer("echo", {"x": [1.0]})
    flush(GUARD)
    add_listener(listener := Recorder())
    try:
        client.infer("echo", {"x": [1.0]})
        with TcmClient(manager.uri, route=manager.route) as later:
            later.infer("echo", {"x": [1.0]})
        assert len(listener.of(CallFinished)) == 2
    finally:
        remove_listener(listener)
    client.infer("echo", {"x": [1.0]})
    assert len(listener.of(CallFinished)) == 2


def test_nothing_is_made_for_events_when_nobody_listens(manager, monkeypatch):
    from tcm_sync._calls import inference, retrying, streams

    for module in (inference, retrying, streams):
        monkeypatch.delattr(module, "Watch")
    for name in ("add", "add_beginning", "move_end"):
        monkeypatch.setattr(listeners._delivery, name, None)
    with TcmClient(manager.uri, route=manager.route) as client:
        client.infer("echo", {"x": [1.0]})
        client.queue_stats()


@pytest.mark.parametrize("error", [ValueError("a fault of a listener"), SystemExit("a fault of a listener")])
def test_a_listener_that_raises_is_logged_once_and_harms_nobody(manager, caplog, recorder, error):
    class Faulty(Listener):
        def call_started(self, event):
            raise error

    with TcmClient(manager.uri, route=manager.route, listeners=[Faulty(), recorder]) as client:
        for _ in range(3):
            client.infer("echo", {"x": [1.0]})
    assert len(recorder.of(CallStarted)) == 3
    (record,) = [record for record in caplog.records if record.name == "tcm_sync.events"]
    assert (record.levelno, record.exc_info[1]) == (logging.ERROR, error)
    assert "Faulty" in record.getMessage()


def test_no_call_waits_for_a_listener_and_what_is_too_much_is_dropped(manager, caplog, monkeypatch):
    monkeypatch.setattr(listeners, "_MAX_WAITING", 5)
    monkeypatch.setattr(listeners, "_SLOW", 0.0)
    monkeypatch.setattr(listeners._delivery, "_has_dropped", False)  # another test may have had it logged
    go_on = threading.Event()

    class Slow(Recorder):
        def connection_opened(self, event):
            go_on.wait(GUARD)

    slow = Slow()
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD, listeners=[slow]) as client:
        for _ in range(10):
            client.infer("echo", {"x": [1.0]})
        assert slow.all == [] or isinstance(slow.all[0], CallStarted)
        go_on.set()
        assert flush(GUARD)
        assert 0 < len(slow.all) <= 14  # no end of what had begun is dropped
    lines = [record.getMessage() for record in caplog.records if record.name == "tcm_sync.events"]
    assert sum("dropped: the listeners are too slow" in line for line in lines) == 1
    assert sum("Slow" in line for line in lines) == 1


class Blocked(Recorder):
    """Receives its first event until `go_on` is set."""

    def __init__(self):
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def receive(self, event):
        self.begun.set()
        assert self.go_on.wait(GUARD)
        super().receive(event)

    call_started = call_finished = wait_started = wait_finished = gate_opened = receive


def test_what_begins_and_ends_while_events_are_dropped_is_not_delivered_and_the_rest_whole(monkeypatch):
    monkeypatch.setattr(listeners, "_MAX_WAITING", 3)
    blocked = Blocked()
    reporter = listeners.Listeners([blocked], "here:1")
    first, second, third, fourth = (Watch(reporter, "info") for _ in range(4))
    first.__enter__()
    assert blocked.begun.wait(GUARD)
    second.__enter__()
    second.waits("socket")
    second.waits("turn")  # of which only the end of the wait for a socket has room
    third.__enter__()
    third.waits("gate")
    fourth.__enter__()
    for watch in (first, fourth):
        watch.finish()
    second.enter("sending")
    blocked.go_on.set()
    assert flush(GUARD)
    third.enter("sending")
    for watch in (second, third):
        watch.finish()
    assert flush(GUARD)
    ids = [each._facts["call_id"] for each in (first, second, third, fourth)]
    assert [(type(event), ids.index(event.call_id)) for event in blocked.all] == [
        (CallStarted, 0),
        (CallStarted, 1),
        (WaitStarted, 1),
        (WaitFinished, 1),
        (CallFinished, 0),
        (CallStarted, 2),
        (WaitStarted, 2),
        (WaitFinished, 2),
        (CallFinished, 1),
        (CallFinished, 2),
    ]
    assert not listeners._delivery._held_back


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_flush_that_fails_shortens_no_later_pause_and_keeps_nothing(monkeypatch, error):
    def fails(job, key=None):
        raise error

    delivery = listeners._delivery
    with monkeypatch.context() as patched:
        patched.setattr(delivery._threads, "submit", fails)
        patched.setattr(listeners, "_MAX_WAITING", 0)
        if isinstance(error, RuntimeError):
            assert flush(GUARD)
        else:
            with pytest.raises(KeyboardInterrupt):
                flush(GUARD)
        assert delivery._is_empty()
    pauses = []
    monkeypatch.setattr(listeners, "sleep", pauses.append)
    recorder = Recorder()
    listeners.Listeners([recorder]).report(
        GateOpened(at=0.0, manager="m", gate="manager", gate_id=1, seconds=0.0)
    )
    wait_until(lambda: recorder.all and delivery._threads.is_idle())
    assert pauses == [listeners._PAUSE]


def test_a_flush_that_is_not_waited_for_keeps_nothing(monkeypatch):
    monkeypatch.setattr(listeners, "_MAX_WAITING", 3)
    blocked = Blocked()
    listeners.Listeners([blocked]).report(
        GateOpened(at=0.0, manager="m", gate="manager", gate_id=1, seconds=0.0)
    )
    assert blocked.begun.wait(GUARD)
    for _ in range(10):
        assert not flush(0.0)
    assert len(listeners._delivery._waiting) <= 3
    assert not listeners._delivery._held_back
    blocked.go_on.set()
    assert flush(GUARD)


def test_events_of_a_pause_are_delivered_after_it_without_waking_the_thread_and_later_ones_wake_it(
    monkeypatch,
):
    recorder = Recorder()
    reporter = listeners.Listeners([recorder], "here:1")
    made = [
        GateOpened(at=number, manager="here:1", gate="manager", gate_id=1, seconds=0.0) for number in range(3)
    ]
    submitted = []
    threads = listeners._delivery._threads
    submit = threads.submit
    monkeypatch.setattr(threads, "submit", lambda job, key=None: submitted.append(key) or submit(job, key))

    def pause(seconds):
        if len(recorder.all) == 1:
            reporter.report(made[1])

    monkeypatch.setattr(listeners, "sleep", pause)
    reporter.report(made[0])
    wait_until(lambda: len(recorder.all) == 2 and threads.is_idle())
    assert submitted == ["deliver"]
    reporter.report(made[2])
    wait_until(lambda: recorder.all == made)
    assert submitted == ["deliver", "deliver"]


def test_a_listener_may_use_the_client(client):
    seen = []

    class Asking(Listener):
        def connection_opened(self, event):
            seen.append(client.infer("echo", {"x": [2.0]})["x"].item())

    add_listener(listener := Asking())
    try:
        client.infer("echo", {"x": [1.0]})
        wait_until(lambda: seen)
        assert flush(GUARD)
    finally:
        remove_listener(listener)
    assert seen[0] == 2.0


@pytest.mark.parametrize("given", [Recorder(), [Recorder], [print], "ab"])
def test_what_is_no_list_of_listeners_is_refused(given):
    with pytest.raises(ConfigError, match="listener"):
        TcmClient("ws://127.0.0.1:1/ws", route=Route("c"), listeners=given)


def test_only_a_listener_can_be_added():
    with pytest.raises(ConfigError, match="not function"):
        add_listener(lambda event: None)


@pytest.mark.parametrize(
    ("is_handled", "how", "printed"),
    [
        (False, "time.sleep(0.05)", "echo\n"),
        (True, "time.sleep(0.3)", "echo\n"),
        (True, "threading.Event().wait()", ""),
    ],
)
def test_a_process_that_ends_waits_for_its_listeners_but_not_for_ever(manager, is_handled, how, printed):
    """Also if a listener handles the last event already, and no other waits; before an exporter ends."""
    code = f"""
import atexit, threading, time, tcm_sync, tcm_sync.events as events
begun = threading.Event()
class Slow(events.Listener):
    def call_finished(self, event):
        begun.set()
        threading.main_thread().join(10 if {is_handled} else 0)
        {how}
        print(event.model_name, flush=True)
route = tcm_sync.Route({manager.route.container_id!r})
client = tcm_sync.TcmClient({manager.uri!r}, route=route, listeners=[Slow()])
atexit.register(print, "the end of an exporter", flush=True)
client.infer("echo", {{"x": [1.0]}})
if {is_handled}:
    begun.wait()
else:
    client.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD, check=True)
    assert (done.stdout, done.stderr) == (f"{printed}the end of an exporter\n", "")
