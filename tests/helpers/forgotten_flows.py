"""A client, a router and a manager in three network namespaces: the router forgets every flow there is.

``unshare --net python -m tests.helpers.forgotten_flows`` is the router, and starts the other two. What it
writes is JSON: for each call its outcome, and the seconds from the loss to its answer. It takes iproute2 and
the right to make network namespaces. No packet has a way out of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_MANAGER, _PORT = "10.2.0.2", 8000
_SOCKETS, _CALLS, _TIMEOUT = 4, 8, 30.0
_UNANSWERED = -1.0  # a number that is not answered on the connections that will be lost


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _be_router() -> None:
    """Connect the two others, forward between them, and drop the client's flows when it says so."""
    with _start("manager") as manager, _start("client") as client:
        for number, end in ((1, client), (2, manager)):
            _read(end)
            link = f"r{number}"
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(end.pid))
            _ip("address", "add", f"10.{number}.0.1/24", "dev", link)
            _ip("link", "set", link, "up")
            _write(end, "connected")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        _read(manager)
        _write(client, "begin")
        for port in _read(client):
            for side in ("sport", "dport"):
                _ip("rule", "add", "pref", "1", "ipproto", "tcp", side, str(port), "blackhole")
        _write(client, "lost")
        _say(_read(client))
        _write(manager, "end")


def _start(role: str) -> subprocess.Popen[str]:
    command = ["unshare", "--net", sys.executable, "-m", "tests.helpers.forgotten_flows", role]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _read(process: subprocess.Popen[str]):
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def _write(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def _say(what: object) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def _join_network(number: int) -> None:
    """Configure this process's end of the link to the router, once it is there."""
    _say("here")
    sys.stdin.readline()
    _ip("link", "set", "lo", "up")
    _ip("address", "add", f"10.{number}.0.2/24", "dev", "eth0")
    _ip("link", "set", "eth0", "up")
    _ip("route", "add", "default", "via", f"10.{number}.0.1")


def _be_manager() -> None:
    from .scripted_peer import ScriptedPeer

    _join_network(2)
    together = threading.Barrier(_SOCKETS)

    def script(connection):
        connection.welcome()
        while True:
            data = connection.recv_request()["request"]["inputs"][0]["data"]
            if connection.number < 2 * _SOCKETS and connection.requests == 1:
                together.wait(_TIMEOUT)  # so that each client opens all its sockets
            elif data == [[_UNANSWERED]] and connection.number < 2 * _SOCKETS:
                connection.wait_eof()
            connection.reply({"y": data})

    class Peer(ScriptedPeer):
        def listen(self) -> None:
            self.port = _PORT
            super().listen()

    with Peer(script, host=_MANAGER) as peer:
        _say("listening")
        sys.stdin.readline()
        for connection in list(peer.connections):
            connection.interrupt()


def _be_client() -> None:
    from tcm_sync import Route, TcmClient

    _join_network(1)
    sys.stdin.readline()
    uri = f"ws://{_MANAGER}:{_PORT}/ws"
    with (
        TcmClient(uri, route=Route("c"), pool_size=_SOCKETS) as idle,
        TcmClient(uri, route=Route("c"), pool_size=_SOCKETS) as waiting,
        ThreadPoolExecutor(2 * _CALLS) as threads,
    ):
        lost = [0.0]

        def call(client: TcmClient, value: float):
            try:
                answer = client.infer("m", {"x": [[value]]}, timeout=_TIMEOUT)["y"].item()
            except Exception as error:  # noqa: BLE001 - it is reported
                return repr(error), time.monotonic() - lost[0]
            return "right" if answer == value else f"wrong: {answer}", time.monotonic() - lost[0]

        for client in (idle, waiting):
            list(threads.map(lambda value, client=client: call(client, value), range(_SOCKETS)))
        waits = [threads.submit(call, waiting, _UNANSWERED) for _ in range(_CALLS)]
        pool = waiting._core.running().pool
        while pool.read_unlocked() != (_SOCKETS, _SOCKETS, _CALLS - _SOCKETS):
            time.sleep(0.01)
        time.sleep(0.5)  # until the requests have arrived, whose loss would be another case
        pools = [client._core.running().pool for client in (idle, waiting)]
        _say([c.sock.getsockname()[1] for pool in pools for c in pool.state.inventory.all.values()])
        sys.stdin.readline()
        lost[0] = time.monotonic()
        idles = [threads.submit(call, idle, float(value)) for value in range(_CALLS)]
        _say({"idle": [each.result() for each in idles], "waiting": [each.result() for each in waits]})


if __name__ == "__main__":
    {"client": _be_client, "manager": _be_manager}.get("".join(sys.argv[1:]), _be_router)()
