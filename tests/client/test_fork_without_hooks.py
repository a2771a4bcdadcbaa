"""A child of a fork that calls none of Python's hooks, as uWSGI and C extensions make them.

The forking process is one of its own, with threads that all wait: were one of them busy at such a fork, the
lock of the interpreter itself would be lost to the child.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.waiting import GUARD

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library is found by its symbols")

ROOT = Path(__file__).parents[2]

PARENT = """
import ctypes, faulthandler, gc, json, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tcm_sync import BatchPolicy, ConnectionLostError, Route, TcmClient
from tcm_sync._pool import pool_state
from tcm_sync._transport import reader
from tcm_sync.events import Listener, _listeners, flush
from tests.client.test_fork import locks_in

_, uri, transient, vm_ip, use = sys.argv
client = TcmClient(uri, route=Route("local"), timeout=20.0, pool_size=4)
model = client.model("echo", container_id="local", batch=BatchPolicy(max_size=4, max_wait=0.0))
heard = []

class Hearing(Listener):
    def call_finished(self, event):
        heard.append(event)

listened = TcmClient(uri, route=Route("local"), timeout=20.0, listeners=[Hearing()])

def ask_and_hear():
    heard.clear()
    return bool(listened.infer("echo", {"x": SMALL})) and flush(20) and len(heard) == 1

SHARED = np.arange(8192.0)
SMALL = np.ones((1, 4), np.float32)

def ask(number=7):
    return client.infer("echo", {"x": [number]})["x"].tolist() == [number]

def begin_stream():
    route = {"container_id": transient, "vm_ip": vm_ip, "allow_transient": True}
    return client.stream("llm", {"text": ["a b c"]}, idle_timeout=20.0, **route)

def refused(work):
    try:
        work()
    except ConnectionLostError as error:
        return "process" in str(error)
    return False

def in_threads():
    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(ask, range(40)))

def drop_client():
    global client, model
    client = model = None
    gc.collect()
    return True

def drop_stream_and_map():
    global stream, results
    stream = results = None
    gc.collect()
    return ask()

USES = {
    "infer": ask,
    "in_threads": in_threads,
    "submit": lambda: client.submit("echo", {"x": [7]}).result(20)["x"].tolist() == [7],
    "map": lambda: [one["x"].tolist() for one in client.map("echo", [{"x": [7]}])] == [[7]],
    "infer_chunked": lambda: client.infer_chunked("echo", {"x": [7, 8]})["x"].tolist() == [7, 8],
    "infer_sample": lambda: model.infer_sample({"x": [7]})["x"].tolist() == [7],
    "stream": lambda: next(begin_stream()) == "a",
    "shared": lambda: np.array_equal(client.infer("echo", {"x": SHARED}, transport="shm")["x"], SHARED),
    "empty_shared": lambda: client.empty_shared(4, "f4").tolist() == [0.0] * 4,
    "explain": lambda: client.explain({"x": SHARED}, transport="shm").startswith("through shared memory"),
    "queue_stats": lambda: client.queue_stats() is not None,
    "health": lambda: bool(client.health()),
    "ready": lambda: bool(client.ready()),
    "wait_until_ready": lambda: bool(client.wait_until_ready(20.0)),
    "stats": lambda: client.stats().calls == 0,
    "repr": lambda: repr(client).startswith("<TcmClient"),
    "open": lambda: client.open() is client,
    "close": lambda: client.close() is None,
    "drop_client": drop_client,
    "stream_of_the_parent": lambda: refused(lambda: next(stream)) and stream.close() is None and ask(),
    "map_of_the_parent": lambda: refused(lambda: list(results)) and ask(),
    "drop_stream_and_map": drop_stream_and_map,
    "listened": ask_and_hear,
}

def places():
    found = {ident: (frame.f_code, frame.f_lasti) for ident, frame in sys._current_frames().items()}
    del found[threading.get_ident()]
    return found

def wait_until_all_others_wait():
    same, before = 0, None
    while same < 20:
        now = places()
        same, before = (same + 1 if now == before else 0), now
        time.sleep(0.005)  # in which a thread that does not wait continues

def in_child(work):
    wait_until_all_others_wait()
    pid = ctypes.PyDLL(None).fork()
    if not pid:
        try:
            faulthandler.dump_traceback_later(60, exit=True)
            good = work()
            os.write(1, b"" if good else b"the child did not get what it should\\n")
            os._exit(0 if good else 3)
        finally:
            faulthandler.dump_traceback(all_threads=False)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert ask() and ask_and_hear() and USES["submit"]() and USES["infer_sample"]() and USES["shared"]()
stream = begin_stream()
assert next(stream) == "a"
results = client.map("echo", [{"x": [number]} for number in range(40)])
assert next(results)["x"].tolist() == [0]

held, done = threading.Event(), threading.Event()

def hold():
    things = [client, model, stream, results._results.gi_frame.f_locals, listened]
    things += [_listeners._all_listeners, _listeners._delivery]
    locks = [lock for lock in locks_in(things, set()) if lock.acquire(blocking=False)]
    assert len(locks) >= 8, locks  # the client's, the pool's, the gates', the connection's ...
    held.set()
    done.wait()
    for lock in locks:
        lock.release()

holder = threading.Thread(target=hold)
holder.start()
assert held.wait(20)
statuses = {name: in_child(USES[name]) for name in (USES if use == "all" else [use])}
done.set()
holder.join()
assert next(stream) == "b"
stream.close()
assert [one["x"].tolist() for one in results] == [[number] for number in range(1, 40)]
assert ask()
client.close()
listened.close()

def wait_until_suspended():
    # until the reader has ended, with its descriptors, as it does when there is no socket to read
    runtime = client._core.runtime
    until = time.monotonic() + 20
    while not runtime.reader._suspended or runtime.reader._thread.is_alive():
        for connection in list(runtime.pool.state.inventory.all.values()):  # one may just have been opened
            runtime.pool.expire(connection, "planned")
        assert time.monotonic() < until
        time.sleep(0.001)

reader._IDLE_SECONDS = pool_state.AUDIT_INTERVAL = 0.001
client = TcmClient(uri, route=Route("local"), timeout=20.0, pool_size=4)
model = client.model("echo", container_id="local", batch=BatchPolicy(max_size=4, max_wait=0.0))
for name in ("infer", "in_threads", "submit", "infer_sample", "stream", "close"):
    assert ask()
    wait_until_suspended()
    files = os.listdir("/proc/self/fd")
    statuses[name + " while the reader is suspended"] = in_child(USES[name])
    assert client._core.runtime.reader._suspended and os.listdir("/proc/self/fd") == files
assert in_threads()
client.close()
print(json.dumps(statuses))
"""


def test_every_use_of_a_client_works_in_the_child_though_all_locks_were_held_at_the_fork(serve):
    manager = serve(workers=8)
    route = manager.transient_route
    command = [sys.executable, "-c", PARENT, manager.uri, route.container_id, route.vm_ip, "all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20 * GUARD, check=False)
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout)
    assert statuses == dict.fromkeys(statuses, 0), done.stderr
    assert len(statuses) == 29
    assert manager.stats().lost_replies == 0
