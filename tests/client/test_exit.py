"""How interpreters end that have a client open, and what becomes of a client that nobody closed."""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import subprocess
import sys
import threading
import warnings
import weakref

import pytest

from tcm_sync import ConfigError, ConnectFailedError, Route, TcmClient, _process

from ..helpers.waiting import GUARD, wait_until

PIPES = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)

#: What every script begins with. Nothing in it ever times out, so that an end that waits is one that hangs.
BEGIN = """
import contextlib, gc, signal, sys, threading, time
from tcm_sync import ClientClosedError, Route, TcmClient

uri, silent = sys.argv[1:]

def client_of(uri):
    return TcmClient(uri, route=Route("local"), timeout=None, connect_timeout=86_000)

def ask(model="echo"):
    return client.infer(model, {"x": [1.0]})["x"].item()

def leave(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()

def signal_main():
    # Until the main thread leaves: a signal that comes just before it blocks is not seen.
    input()
    while threading.main_thread().is_alive():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        time.sleep(0.05)

def streaming():
    stream = client.stream(
        "talk", {"x": [1.0]}, container_id="local-transient", allow_transient=True, timeout=None
    )
    next(stream)
    return stream

def in_background(work, count=1):
    for _ in range(count):
        threading.Thread(target=work, daemon=True).start()

client = client_of(uri)
"""

SCRIPTS = {
    "idle": "ask()",
    "never used": "",
    "closed": "ask(); client.close()",
    "in a reference cycle": "ask(); client.myself = client; del client",
    "in a function's default": "ask(); f = lambda kept=client: kept",
    "calls under way": """
in_background(lambda: ask("gated"), 6)
input()
""",
    "connecting": """
client = client_of(silent)
in_background(ask)
input()
""",
    "exit inside a call": """
signal.signal(signal.SIGTERM, leave)
in_background(signal_main)
ask("gated")
""",
    "exit inside a call that connects": """
signal.signal(signal.SIGTERM, leave)
in_background(signal_main)
client = client_of(silent)
ask()
""",
    "exit inside the inputs": """
class Tensor:
    def __array__(self, *_, **__):
        sys.exit()
client.open()
client.infer("echo", {"x": Tensor()})
""",
    "an exit handler asks": """
import atexit
ask()
atexit.register(ask)
""",
    "a finalizer asks": """
ask()
class Last:
    def __del__(self, ask=ask, print=print):
        try:
            self.client.infer("echo", {"x": [1.0]})
        except Exception as error:
            print(type(error).__name__)
last = Last()
last.client, last.cycle = client, last
""",
    "a stream is open": """
stream = streaming()
""",
    "a generator around a stream, beside threads that call": """
def words():
    with streaming() as chunks:
        yield from chunks
def for_ever():
    with contextlib.suppress(ClientClosedError):  # at the exit it may still get so far
        while True:
            ask()
kept = words()
next(kept)
in_background(for_ever, 6)
for _ in range(20):
    ask()
""",
    "futures wait": """
futures = [client.submit("gated", {"x": [1.0]}) for _ in range(20)]
""",
    "a map is left in the middle": """
import itertools
results = client.map("echo", ({"x": [number]} for number in itertools.count()))
next(results)
""",
}
PRINTED = {"a finalizer asks": "ClientClosedError\n"}
UNDER_WAY = {"calls under way": 6, "exit inside a call": 1}  # requests that are with the model at the exit


def talk(arrays):
    """Stream a word, and no end."""
    yield "a"
    yield "b"


@pytest.fixture
def silent():
    """A socket that accepts connections, and nobody says a word on them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(GUARD)
        yield listener


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the scripts send signals to threads")
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_interpreter_exits_at_once(serve, silent, name):
    manager = serve({"talk": talk}, workers=8)
    silent_uri = f"ws://127.0.0.1:{silent.getsockname()[1]}/ws"
    command = [sys.executable, "-X", "dev", "-c", BEGIN + SCRIPTS[name], manager.uri, silent_uri]
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, text=True, **PIPES))
        stack.callback(process.kill)
        if "client_of(silent)" in SCRIPTS[name]:
            stack.enter_context(silent.accept()[0])
        wait_until(lambda: manager.stats().running == UNDER_WAY.get(name, 0), "its calls are under way")
        out, errors = process.communicate("now\n", timeout=3 * GUARD)
    assert (process.returncode, out, errors) == (0, PRINTED.get(name, ""), "")


def use(client):
    assert client.infer("echo", {"x": [1.0]})["x"].item() == 1.0


def warnings_of_dropping(clients):
    """Drop the last reference to a client, given in a list, and return what is said to that."""
    gone = weakref.ref(clients[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clients.clear()
        gc.collect()
    said = [(warning.category, str(warning.message)) for warning in caught]
    del caught  # in which a warning has the client as its source
    assert gone() is None
    return said


@pytest.fixture
def reader_threads():
    """Tell which readers run, beside those from before."""
    before = set(threading.enumerate())
    return lambda: [
        thread for thread in threading.enumerate() if thread not in before and "reader" in thread.name
    ]


@pytest.mark.parametrize("cycle", [False, True])
def test_a_client_that_nobody_closed_is_warned_of_once_and_leaves_nothing(serve, reader_threads, cycle):
    manager = serve()
    clients = [TcmClient(manager.uri, route=manager.route)]
    use(clients[0])
    assert len(reader_threads()) == 1
    wait_until(lambda: manager.stats().connected == 1, "it is connected")
    if cycle:
        clients[0].myself = clients[0]
    ((category, message),) = warnings_of_dropping(clients)
    assert category is ResourceWarning
    assert f"unclosed <TcmClient {manager.uri} open, 1 of 16 sockets, 0 calls in flight>" in message
    wait_until(lambda: manager.stats().connected == 0, "its socket is closed")
    wait_until(lambda: not reader_threads(), "its reader has ended")


def test_a_client_that_was_closed_or_never_opened_is_not_warned_of(serve):
    manager = serve()
    closed, unused = (TcmClient(manager.uri, route=manager.route) for _ in range(2))
    use(closed)
    closed.close()
    clients = [closed]
    del closed
    assert not warnings_of_dropping(clients)
    clients = [unused]
    del unused
    assert not warnings_of_dropping(clients)


def test_a_client_that_could_not_be_made_is_not_warned_of():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ConfigError):
            TcmClient("http://nowhere")
        gc.collect()
    assert not caught


def test_a_client_dropped_while_it_connects_leaves_nothing(silent):
    uri = f"ws://127.0.0.1:{silent.getsockname()[1]}/ws"
    clients = [TcmClient(uri, route=Route("c"), connect_timeout=3600.0).open(wait=False)]
    with silent.accept()[0] as end:
        end.settimeout(GUARD)
        assert end.recv(4) == b"GET "
        assert len(warnings_of_dropping(clients)) == 1
        while end.recv(2**16):
            pass  # until it is closed


def test_no_thread_is_started_while_the_interpreter_ends(serve, monkeypatch):
    """Before Python 3.12 that may crash the interpreter."""
    manager = serve()
    with TcmClient(manager.uri, route=manager.route, timeout=GUARD) as client:
        monkeypatch.setattr(_process, "_exiting", True)
        with pytest.raises(ConnectFailedError, match="the interpreter is ending"):
            client.infer("echo", {"x": [1.0]})
        with pytest.raises(ConnectFailedError, match="the interpreter is ending"):
            client.submit("echo", {"x": [1.0]})
