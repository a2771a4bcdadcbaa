"""What a call needs is imported before the first one.

A fork in the middle of an import leaves its lock to the child; without a free descriptor nothing is imported.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from ..helpers.peer_scripts import echo as echoing
from ..helpers.scripted_peer import ScriptedPeer
from ..helpers.waiting import GUARD

ROOT = Path(__file__).parents[2]

HEAD = """
import json, socket, sys, threading, traceback
from importlib.abc import MetaPathFinder

import numpy as np

from tcm_sync import BatchPolicy, PipelineStep, RetryPolicy, Route, TcmClient, TcmError, TlsSettings

imported = []

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        imported.append(name)
        raise ImportError(f"{name} is imported too late")

def resolve(host, *arguments, real=socket.getaddrinfo, **kinds):
    if host != "no-such-name.invalid":
        return real(host, *arguments, **kinds)
    host.encode("idna")  # as the real one does first
    raise socket.gaierror(socket.EAI_NONAME, "there is no such name")  # no query is sent for it

socket.getaddrinfo = resolve

def refuse_imports():
    sys.meta_path.insert(0, Refuse())
"""

USES = (
    HEAD
    + """
_, uri, transient, vm_ip = sys.argv
client = TcmClient(uri, route=Route("local"), timeout=20.0)
client.open()
refuse_imports()

def failing(work):
    def fail():
        try:
            work()
        except TcmError as error:
            return type(error).__name__ + str(error) + repr(error)
        raise AssertionError("it did not fail")
    return fail

def stream():
    route = {"container_id": transient, "vm_ip": vm_ip, "allow_transient": True}
    return list(client.stream("llm", {"text": ["a b"]}, idle_timeout=0.2, on_idle="end", **route))

def sample():
    model = client.model("echo", container_id="local", batch=BatchPolicy(max_size=4, max_wait=0.0))
    return model.infer_sample({"x": [7]})

def submitted_sample():
    model = client.model("echo", container_id="local", batch=BatchPolicy(max_size=4, max_wait=0.0))
    return model.submit_sample({"x": [7]}).result(20)

def elsewhere(**settings):
    settings = {"route": Route("local"), "timeout": 1.0, "connect_timeout": 0.5, **settings}
    with TcmClient("ws://127.0.0.1:1/ws", **settings) as other:
        other.infer("echo", {"x": [1]})

SHARED = np.arange(8192.0)
USES = {
    "infer": lambda: client.infer("echo", {"x": [7]}),
    "texts": lambda: client.infer("echo", {"x": ["a", "\\u00e9"]}),
    "dtypes": lambda: client.infer("echo", {"x": np.float32([7.5])}, output_dtypes="f4"),
    "stream": stream,
    "map": lambda: list(client.map("echo", [{"x": [7]}, {"x": [8]}], ordered=False)),
    "submit": lambda: client.submit("echo", {"x": [7]}).result(20),
    "infer_chunked": lambda: client.infer_chunked("echo", {"x": np.ones((9000, 4))}),
    "infer_sample": sample,
    "submit_sample": submitted_sample,
    "pipeline": lambda: client.pipeline([PipelineStep("echo", {"x": [7]})]),
    "management": failing(lambda: client.management("no such action")),
    "create": failing(client.create),
    "info": lambda: client.info("queue_stats"),
    "queue_stats": lambda: repr(client.queue_stats()),
    "health": lambda: client.health(),
    "ready": lambda: client.ready(),
    "wait_until_ready": lambda: client.wait_until_ready(20.0),
    "shared": lambda: client.infer("echo", {"x": SHARED}, transport="shm"),
    "empty_shared": lambda: client.infer("echo", {"x": client.empty_shared(4, "f4")}, transport="shm"),
    "explain": lambda: client.explain({"x": SHARED}),
    "stats": lambda: repr(client.stats()),
    "repr": lambda: repr(client),
    "a wrong input": failing(lambda: client.infer("echo", {"x": [object()]})),
    "too large": failing(lambda: client.infer("echo", {"x": np.ones(90_000)}, transport="json")),
    "no such model": failing(lambda: client.infer("none", {"x": [7]})),
    "refused": failing(elsewhere),
    "refused at once": failing(lambda: elsewhere(retry=None)),
    "by name": lambda: TcmClient(uri.replace("127.0.0.1", "localhost")).open().close(),
    "no such name": failing(
        lambda: TcmClient("ws://no-such-name.invalid/ws", connect_timeout=0.5).open(timeout=0.5)
    ),
    "an address": lambda: client.explain({"x": SHARED}, container_id="local", vm_ip="192.0.2.7"),
    "close": client.close,
    "closed": failing(lambda: client.infer("echo", {"x": [7]})),
}
late = {}
for name, use in USES.items():
    try:
        use()
    except BaseException:
        imported.append(traceback.format_exc())
    if imported:
        late[name] = imported[:]
        imported.clear()
print(json.dumps([len(USES), late]))
"""
)

SECURED = (
    HEAD
    + """
_, uri, ca_file = sys.argv
client = TcmClient(uri, route=Route("c1"), timeout=20.0, tls=TlsSettings(ca_file=ca_file))
refuse_imports()
assert client.infer("m", {"x": [[7.0]]})["y"].item() == 7.0
client.close()
strange = TcmClient(uri, route=Route("c1"), timeout=2.0, connect_timeout=1.0, retry=None)
try:
    strange.open()
except TcmError as error:
    assert "not trusted" in str(error), error
strange.close()
print(json.dumps([2, {"secured": imported} if imported else {}]))
"""
)


def outcome_of(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=6 * GUARD, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_call_and_no_failure_imports_anything_after_the_first_socket_is_open(serve):
    manager = serve(workers=8)
    route = manager.transient_route
    count, late = outcome_of(USES, manager.uri, route.container_id, route.vm_ip)
    assert count >= 30
    assert not late, "\n".join(f"{use}: {what}" for use, found in late.items() for what in found)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tls_imports_nothing_after_the_client_is_made(tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with ScriptedPeer(echoing, tls=context) as peer:
        count, late = outcome_of(SECURED, peer.uri, tmp_path / "ca.pem")
    assert count == 2
    assert not late, "\n".join(f"{use}: {what}" for use, found in late.items() for what in found)
