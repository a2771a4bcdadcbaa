"""``doctor``, against what is in order and what is not."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from tcm_sync._pool.call import Call
from tcm_sync.cli import checks, doctor
from tcm_sync.local import LocalManager

from ..helpers.scripted_peer import ScriptedPeer

STEPS = [step.name for step in doctor.STEPS]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def ca_file(authority, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


def context_of(authority, *names, **how):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **how).configure_cert(context)
    return context


@pytest.fixture
def examine(cli):
    """Run doctor: its exit status, the steps by name, and what is to be done."""

    def run(*arguments, stdin=b""):
        done = cli("doctor", "--json", "--timeout", "5", *arguments, stdin=stdin)
        assert done.err == ""
        found = json.loads(done.out)
        assert set(found) == {"ok", "steps", "todo"}
        assert [set(step) for step in found["steps"]] == [
            {"name", "status", "seconds", "detail", "advice"} for _ in STEPS
        ]
        steps = {step["name"]: step for step in found["steps"]}
        assert list(steps) == STEPS
        assert found["ok"] is (done.code == 0)
        assert found["todo"] == [f"{s['name']}: {s['advice']}" for s in found["steps"] if s["advice"]]
        return done.code, steps, found["todo"]

    return run


def failed(steps):
    return [name for name, step in steps.items() if step["status"] == "failed"]


def warned(steps):
    return [name for name, step in steps.items() if step["status"] == "warning"]


def test_all_is_well(cli, examine, manager):
    code, steps, todo = examine()
    assert (code, failed(steps), warned(steps), todo) == (0, [], [], [])
    assert [name for name, step in steps.items() if step["status"] == "skipped"] == ["TLS"]
    assert "median" in steps["round trip"]["detail"]
    done = cli("doctor")
    assert done.code == 0
    assert [line[:8].rstrip() for line in done.out.splitlines()[: len(STEPS)]].count("ok") == len(STEPS) - 1
    assert done.out.endswith("\nNothing to do.\n")


def test_all_is_well_over_tls(examine, authority, ca_file):
    with LocalManager({}, tick=0, ssl_context=context_of(authority, "127.0.0.1", "tcm.example")) as manager:
        code, steps, todo = examine("--uri", manager.uri, "--ca-file", ca_file)
    assert (code, failed(steps), todo) == (0, [], [])
    assert "tcm.example" in steps["TLS"]["detail"]
    assert "days left" in steps["TLS"]["detail"]


# --- broken set-ups ---


@pytest.mark.parametrize(
    "arguments", [("--uri", "http://localhost"), ("--uri", "wss://localhost", "--ca-file", "/no")]
)
def test_settings_that_cannot_work(examine, arguments):
    code, steps, todo = examine(*arguments)
    assert (code, failed(steps)) == (2, ["settings"])
    assert steps["WebSocket"]["status"] == "blocked"
    assert todo == ["settings: correct the option or the TCM_* variable"]


def test_a_host_that_cannot_be_resolved(examine, monkeypatch):
    def resolve(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "there is no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)  # no query is sent
    code, steps, todo = examine("--uri", "ws://nowhere.invalid/ws")
    assert (code, failed(steps)) == (3, ["name resolution"])
    assert "misspelt" in todo[0]
    assert steps["name resolution"]["detail"].startswith("the name 'nowhere.invalid' cannot be resolved: ")


def test_a_port_where_nothing_listens(cli, examine):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, steps, todo = examine("--uri", f"ws://127.0.0.1:{port}/ws")
    assert (code, failed(steps)) == (3, ["TCP"])
    assert "is the manager running" in todo[0]
    done = cli("doctor", "--uri", f"ws://127.0.0.1:{port}/ws")
    assert done.code == 3
    assert done.out.splitlines()[-2:] == ["To do:", f"- {todo[0]}"]


def test_a_listener_that_says_nothing(examine):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code, steps, todo = examine(
            "--uri", f"ws://127.0.0.1:{listener.getsockname()[1]}/ws", "--timeout", "0.3"
        )
    assert (code, failed(steps)) == (3, ["health"])
    assert "hangs" in todo[0]


def test_a_certificate_that_is_not_trusted(examine, authority):
    with LocalManager({}, tick=0, ssl_context=context_of(authority, "127.0.0.1")) as manager:
        code, steps, todo = examine("--uri", manager.uri)
    assert (code, failed(steps)) == (3, ["TLS"])
    assert "--ca-file" in todo[0]
    assert steps["TLS"]["detail"].startswith("TLS: the certificate of 127.0.0.1 is not trusted: ")


def test_a_certificate_of_another_name(examine, authority, ca_file):
    with LocalManager({}, tick=0, ssl_context=context_of(authority, "tcm.example")) as manager:
        code, steps, todo = examine("--uri", manager.uri, "--ca-file", ca_file)
    assert (code, failed(steps)) == (3, ["TLS"])
    assert "a name in --uri that the certificate contains" in todo[0]


def days(number):
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=number)


def test_a_certificate_that_has_expired(examine, authority, ca_file):
    context = context_of(authority, "127.0.0.1", not_before=days(-9), not_after=days(-2))
    with LocalManager({}, tick=0, ssl_context=context) as manager:
        code, steps, todo = examine("--uri", manager.uri, "--ca-file", ca_file)
    assert (code, failed(steps)) == (3, ["TLS"])
    assert "renew" in todo[0]


def test_a_certificate_that_expires_soon(examine, authority, ca_file):
    context = context_of(authority, "127.0.0.1", not_before=days(-9), not_after=days(3.5))
    with LocalManager({}, tick=0, ssl_context=context) as manager:
        code, steps, todo = examine("--uri", manager.uri, "--ca-file", ca_file)
    assert (code, warned(steps)) == (0, ["TLS"])
    assert todo == ["TLS: renew the manager's certificate"]
    assert "3 days left" in steps["TLS"]["detail"]


def test_tls_where_there_is_none(examine, manager):
    code, steps, todo = examine("--uri", manager.uri.replace("ws:", "wss:"))
    assert (code, failed(steps)) == (3, ["TLS"])
    assert "ws://" in todo[0]
    assert steps["TLS"]["detail"].startswith("TLS with 127.0.0.1 failed: ")


def test_no_tls_where_there_is(examine, authority):
    with LocalManager({}, tick=0, ssl_context=context_of(authority, "127.0.0.1")) as manager:
        code, steps, todo = examine("--uri", manager.uri.replace("wss:", "ws:"))
    assert (code, failed(steps)) == (3, ["health"])
    assert "wss://" in todo[0]


def test_a_wrong_path(examine, manager):
    code, steps, todo = examine("--uri", manager.uri + "wrong")
    assert (code, failed(steps)) == (3, ["WebSocket"])
    assert warned(steps) == ["health", "ready"]
    assert todo[-1].startswith(
        "WebSocket: a manager answers at this address: the path of --uri must end with"
    )


@contextmanager
def web_server(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"ws://127.0.0.1:{server.server_port}/ws"
        server.shutdown()
        thread.join()


class WebPage(BaseHTTPRequestHandler):
    """A web server that is no manager."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"Hello")

    def log_message(self, *_):
        pass


class Gatekeeper(WebPage):
    """A proxy that wants credentials."""

    def do_GET(self):
        self.send_error(403)


class Triton(WebPage):
    """Triton's HTTP port, which names itself at /v2 alone."""

    answers = {  # noqa: RUF012 - nobody changes it
        "/v2": b'{"name": "triton", "version": "2.42.0", "extensions": []}',
        "/v2/health/ready": b"",
    }

    def do_GET(self):
        body = self.answers.get(self.path)
        self.send_response_only(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")


class TritonWithoutName(Triton):
    """A Triton whose /v2 does not pass a proxy."""

    answers = {"/v2/health/ready": b""}  # noqa: RUF012


class Nothing(Triton):
    """A server that says nothing of itself."""

    answers = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("server", "who"),
    [
        (WebPage, "a web server answers (BaseHTTP/"),
        (Triton, "Triton 2.42.0 itself answers: --uri must be the manager's address"),
        (TritonWithoutName, "Triton itself seems to answer: --uri must be the manager's address"),
        (Nothing, "is the path right? usually /ws"),
    ],
)
def test_what_answers_in_place_of_a_manager_is_named(examine, server, who):
    with web_server(server) as uri:
        code, steps, todo = examine("--uri", uri)
    assert (code, failed(steps)) == (3, ["WebSocket"])
    assert todo[-1].startswith(f"WebSocket: {who}")


def test_triton_s_grpc_port_is_named(examine):
    """It answers whatever it is sent with a SETTINGS frame of HTTP/2, and closes."""

    def script(connection):
        connection.read_handshake()
        connection.send_raw(bytes.fromhex("000006040000000000000400400000"))
        connection.hang_up()

    with ScriptedPeer(script) as peer:
        peer.http["/health"] = script
        code, steps, todo = examine("--uri", peer.uri)
    assert (code, failed(steps)) == (3, ["health"])
    assert todo == ["health: this is how Triton's gRPC port answers: --uri must be the manager's address"]


def test_a_proxy_that_wants_credentials(examine):
    with web_server(Gatekeeper) as uri:
        code, steps, todo = examine("--uri", uri)
    assert (code, failed(steps)) == (4, ["WebSocket"])
    assert "credentials" in todo[-1]


@pytest.fixture
def no_patience(monkeypatch):
    """Have no call wait for its reply."""
    monkeypatch.setattr(Call, "wait", lambda call, future: False)


def mute(connection):
    """Let a client in, and say no more."""
    connection.welcome()
    connection.wait_eof()


@pytest.mark.usefixtures("no_patience")
def test_a_manager_that_is_not_ready(examine):
    with ScriptedPeer(mute) as peer:
        peer.http["/ready"] = (503, {"status": "not_ready", "reason": "no_cloud", "error_id": "e-7"})
        code, steps, todo = examine("--uri", peer.uri)
    assert code == 3
    assert failed(steps)[0] == "ready"
    assert "no_cloud" in steps["ready"]["detail"]
    assert "search its log for e-7" in todo[0]


def test_a_token_that_is_refused(examine):
    with LocalManager({}, tick=0, tokens=["right"]) as manager:
        code, steps, todo = examine("--uri", manager.uri, "--token-file", "-", stdin=b"wrong")
    assert (code, failed(steps)) == (4, ["authentication"])
    assert steps["round trip"]["status"] == "blocked"
    assert "--token-file" in todo[0]


def test_a_token_that_has_expired(examine, manager):
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() - 7200}).encode()).rstrip(b"=")
    code, steps, todo = examine("--token-file", "-", stdin=b"e30." + claims + b".c2ln")
    assert (code, warned(steps)) == (0, ["settings"])
    assert "expired 120 minutes ago" in steps["settings"]["detail"]
    assert todo == ["settings: get a fresh token"]


@pytest.mark.usefixtures("no_patience")
def test_a_manager_that_lets_in_and_says_no_more(examine):
    with ScriptedPeer(mute) as peer:
        code, steps, _ = examine("--uri", peer.uri)
    assert (code, failed(steps)) == (1, ["round trip"])


def test_a_manager_that_never_answers_the_authentication(examine, monkeypatch):
    authenticate = checks.Checks._authenticate

    def ask(self, deadline):
        return authenticate(self, deadline.at_most(0.1))

    def not_reading(connection):
        connection.accept()
        connection.wait_eof()

    monkeypatch.setattr(checks.Checks, "_authenticate", ask)
    with ScriptedPeer(not_reading) as peer:
        code, steps, todo = examine("--uri", peer.uri)
    assert (code, failed(steps)) == (3, ["authentication"])
    assert "does not answer" in todo[0]


def test_a_clock_that_is_wrong(examine, manager, monkeypatch):
    class Late(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() + 3600, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with web_server(Late) as uri:
        _, steps, todo = examine("--uri", uri)
    assert "clock" in warned(steps)
    assert "s behind the manager's" in steps["clock"]["detail"]
    assert any(line.startswith("clock: correct the clock") for line in todo)


@pytest.mark.parametrize(("granted", "status"), [(("json", "shm"), "warning"), (("json",), "ok")])
def test_shared_memory_that_cannot_be_written_to(examine, manager, monkeypatch, granted, status):
    monkeypatch.setattr(checks, "SHM_FOLDER", "/no/such/folder")
    monkeypatch.setattr(checks.Checks, "_authenticate", lambda *_: frozenset(granted))
    code, steps, todo = examine()
    assert (code, steps["shared memory"]["status"]) == (0, status)
    assert len(todo) == (status == "warning")
    assert "cannot be written to" in steps["shared memory"]["detail"]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
@pytest.mark.parametrize(
    ("granted", "local", "said"),
    [
        (("json", "shm"), True, "the manager is on this machine, and grants shm"),
        (("json", "shm"), False, "is not on this machine: tensors are sent as JSON"),
        (("json",), True, "does not grant shm"),
    ],
)
def test_shared_memory_reports_whether_the_manager_can_see_it(
    examine, manager, monkeypatch, granted, local, said
):
    monkeypatch.setattr(checks.Checks, "_authenticate", lambda *_: frozenset(granted))
    monkeypatch.setattr(checks, "is_local", lambda _: local)
    _, steps, todo = examine()
    assert "is writable" in steps["shared memory"]["detail"]
    assert said in steps["shared memory"]["detail"]
    assert todo == []


# --- proxies ---


def connect_proxy(listener, asked):
    """Answer one CONNECT after another with a connection, and note what was asked."""

    def relay(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(near):
        head = near.recv(65_536)
        asked.append(head)
        host, _, port = head.split()[1].decode().rpartition(":")
        with near, socket.create_connection((host, int(port))) as far:
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=relay, args=(far, near))
            back.start()
            relay(near, far)
            back.join()

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],)).start()


def test_every_step_goes_through_the_proxy_and_its_password_is_not_shown(examine, manager):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=connect_proxy, args=(listener, asked))
        thread.start()
        port = listener.getsockname()[1]
        code, steps, todo = examine("--proxy", f"http://user:never-shown@127.0.0.1:{port}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert (code, failed(steps), todo) == (0, [], [])
    assert f"through the proxy http://127.0.0.1:{port}" in steps["settings"]["detail"]
    assert f"through the proxy http://127.0.0.1:{port}" in steps["TCP"]["detail"]
    assert "not on this machine" in steps["shared memory"]["detail"]
    assert len(asked) >= 4
    assert "never-shown" not in json.dumps([steps, todo])


def test_a_proxy_that_is_not_there(examine, manager):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, steps, todo = examine("--proxy", f"http://user:never-shown@127.0.0.1:{port}")
    assert (code, failed(steps)) == (3, ["TCP"])
    assert f"the proxy http://127.0.0.1:{port} cannot be reached" in steps["TCP"]["detail"]
    assert todo == ["TCP: the proxy must accept this host and port: check --proxy"]
    assert "never-shown" not in json.dumps([steps, todo])
