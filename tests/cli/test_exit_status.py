"""Exit statuses, the one line that an error is, and what is never shown."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest

from tcm_sync import errors
from tcm_sync.cli.failures import code_of, line_of
from tcm_sync.local import LocalManager

from ..helpers.served_models import Gated
from ..helpers.waiting import GUARD, wait_until
from .conftest import COMMAND
from .models import MODELS

TOKEN = "tok-5521-not-for-eyes"
INPUT = ("--input", "x=[1]")


@pytest.fixture
def strict(monkeypatch):
    """A manager that asks for a token, whose holder may run models and nothing else."""
    with LocalManager(MODELS, tick=0, tokens={TOKEN: ["inference"]}) as manager:
        monkeypatch.setenv("TCM_WS_URI", manager.uri)
        monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
        yield manager


@pytest.fixture
def refusing_uri():
    """Return the address of a port that is taken and does not listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{taken.getsockname()[1]}/ws"


def line(done):
    """Return the only line on the standard error."""
    assert done.out == ""
    assert done.err.startswith("tcm-sync: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1
    return done.err


def test_0_where_all_went_well(cli, manager):
    done = cli("infer", "echo", *INPUT)
    assert (done.code, done.err) == (0, "")


def test_1_where_the_call_failed(cli, manager):
    done = cli("infer", "nobody", *INPUT)
    assert done.code == 1
    assert "nobody" in line(done)


def test_2_where_the_variable_of_the_authorities_is_empty(cli, monkeypatch):
    monkeypatch.setenv("TCM_CA_FILE", "")
    done = cli("health", "--uri", "wss://localhost/ws")
    assert done.code == 2
    assert "TCM_CA_FILE is empty" in line(done)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("infer",), "'tcm-sync infer --help' shows how"),
        (("nonsense",), "'tcm-sync --help' shows how"),
        (("--nonsense",), "--nonsense"),
        (("infer", "echo", *INPUT, "--timeout", "soon"), "--timeout"),
        (("infer", "echo", *INPUT, "--timeout", "-1"), "--timeout"),
        (("infer", "echo", *INPUT, "--timeout", "nan"), "timeout"),
        (("health", "--uri", "http://localhost"), "must start with ws://"),
        (("health", "--uri", ""), "--uri is empty: leave it out"),
        (("health", "--token", ""), "--token is empty: leave it out"),
        (("health", "--proxy", ""), "--proxy is empty: leave it out"),
        (("health", "--uri", "wss://localhost/ws", "--ca-file", ""), "--ca-file is empty: leave it out"),
        (("--ca-file", " ", "health", "--uri", "wss://localhost/ws"), "--ca-file is empty: leave it out"),
        (("health", "--ca-file", "/no/such"), "not wss://"),
        (("health", "--token-file", "/no/such"), "cannot be read"),
        (("health", "--token-file", "-"), "holds no token"),
        (("infer", "echo", "--input", "x=-", "--token-file", "-"), "holds no token"),
    ],
)
def test_2_where_the_command_line_is_wrong(cli, manager, arguments, said):
    done = cli(*arguments)
    assert done.code == 2
    assert said in line(done)


def test_2_where_a_variable_is_wrong(cli, manager, monkeypatch):
    monkeypatch.setenv("TCM_POOL_SIZE", "many")
    done = cli("queue-stats")
    assert done.code == 2
    assert "TCM_POOL_SIZE must be a number" in line(done)


def test_2_without_a_container(cli, manager, monkeypatch):
    monkeypatch.delenv("TCM_CONTAINER_ID")
    done = cli("infer", "echo", *INPUT)
    assert done.code == 2
    assert "--container-id or TCM_CONTAINER_ID" in line(done)


def test_3_where_nobody_listens(cli):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = cli("--uri", f"ws://127.0.0.1:{port}/ws", "queue-stats", "--timeout", "0.2")
    assert done.code == 3
    assert "'tcm-sync doctor'" in line(done)


def test_4_where_the_token_is_refused(cli, strict):
    done = cli("queue-stats")
    assert done.code == 4
    assert "TCM_CLIENT_TOKEN or --token-file" in line(done)


def test_4_where_a_role_lacks(cli, strict, monkeypatch):
    monkeypatch.setenv("TCM_CLIENT_TOKEN", TOKEN)
    assert cli("infer", "echo", *INPUT).code == 0
    done = cli("management", "create_vm", "--set", "openstack.name=x")
    assert done.code == 4
    assert "management" in line(done)


@pytest.mark.parametrize(
    "arguments",
    [
        ("queue-stats",),
        ("info", "colour"),
        ("health",),
        ("ready",),
        ("infer", "echo", *INPUT),
        ("stream", "echo", *INPUT),
        ("bench", "echo", *INPUT),
        ("create",),
        ("delete", "--vm-id", "x", "--yes"),
        ("management", "create_vm"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_port_that_refuses_is_reported_at_once(cli, refusing_uri, monkeypatch, arguments):
    monkeypatch.setattr("tcm_sync._pool.pool_state._CONNECT_SLACK", 3 * GUARD)  # what a call would wait
    began = time.monotonic()
    done = cli("--uri", refusing_uri, "--container-id", "c", "--timeout", 10 * GUARD, *arguments)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert time.monotonic() - began < GUARD


def test_a_port_that_refuses_is_one_line_and_not_one_more_of_the_log(start, refusing_uri):
    out, err = start("--uri", refusing_uri, "queue-stats").communicate(timeout=GUARD)
    assert out == ""
    assert err.startswith("tcm-sync: no connection to ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["infer", "bench"])
def test_130_where_it_is_interrupted(start, command):
    gated = Gated()
    with LocalManager({"gated": gated}, tick=0) as manager:
        where = ("--uri", manager.uri, "--container-id", manager.route.container_id)
        process = start(*where, command, "gated", *INPUT)
        wait_until(lambda: manager.stats().running, "the model runs")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=GUARD)
        gated.open_all()
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "tcm-sync: interrupted"


@pytest.mark.parametrize(
    "kind", [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
)
def test_every_error_has_a_status_and_a_line(kind):
    error = kind("it\nfailed\n")
    assert code_of(error) in (1, 2, 3, 4)
    assert line_of(error).startswith("it failed")


@pytest.mark.parametrize("place", ["variable", "file", "stdin", "option"])
def test_a_token_is_taken_from_everywhere(cli, strict, monkeypatch, tmp_path, place):
    (tmp_path / "token").write_text(TOKEN + "\n")
    options = {
        "variable": (),
        "file": ("--token-file", tmp_path / "token"),
        "stdin": ("--token-file", "-"),
        "option": ("--token", TOKEN),
    }[place]
    if place == "variable":
        monkeypatch.setenv("TCM_CLIENT_TOKEN", TOKEN)
    assert cli("queue-stats", *options, stdin=TOKEN.encode()).code == 0
    assert cli(*options, "queue-stats", stdin=TOKEN.encode()).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("queue-stats",),
        ("doctor",),
        ("doctor", "--json"),
        ("infer", "echo", "--input", f"x={TOKEN}x"),
        ("infer", "echo", "--input", f"x=@{TOKEN}x"),
        ("management", "create_vm", "--file", f"{TOKEN}x"),
        ("health", "--ca-file", f"{TOKEN}x", "--uri", "wss://127.0.0.1/ws"),
    ],
)
@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_the_token_is_never_shown(cli, strict, arguments, debug, monkeypatch):
    monkeypatch.setenv("TCM_CLIENT_TOKEN", TOKEN + "x")  # which is refused
    done = cli(*arguments, *debug)
    assert done.code != 0
    assert TOKEN not in done.out + done.err


def test_debug_shows_where_it_failed(cli, manager):
    done = cli("infer", "nobody", *INPUT, "--debug")
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("tcm-sync: ")


def test_what_nobody_foresaw_is_a_line_too(cli, manager, monkeypatch):
    from tcm_sync import TcmClient

    monkeypatch.setattr(TcmClient, "queue_stats", lambda *_, **__: 1 / 0)
    done = cli("queue-stats")
    assert done.code == 1
    assert "unexpected ZeroDivisionError: division by zero; --debug" in line(done)


def test_a_reader_that_had_enough_is_no_failure(start, manager):
    read, write = os.pipe()
    os.close(read)
    process = start("queue-stats", stdout=write)
    os.close(write)
    assert process.communicate(timeout=GUARD)[1] == ""
    assert process.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_disk_is_a_failure(start, manager):
    with open("/dev/full", "w") as full:
        process = start("queue-stats", stdout=full)
        err = process.communicate(timeout=GUARD)[1]
    assert process.returncode == 1
    assert err.startswith("tcm-sync: reading or writing failed: ")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="it speaks of a shell")
@pytest.mark.parametrize(("address", "code"), [([], 0), (["--uri", "x"], 2)])
def test_closed_outputs_change_nothing(manager, address, code):
    command = f"{shlex.join([*COMMAND, 'queue-stats', *address])} >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], timeout=60).returncode == code


@pytest.mark.parametrize("module", ["click", "rich", "yaml", "hdrh"])
def test_without_the_extra_it_says_what_to_install(module):
    program = f"import sys; sys.modules[{module!r}] = None; from tcm_sync.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tcm-sync: {module} is not installed: pip install 'tcm-sync[cli]'\n"


def test_the_version_and_the_help(cli):
    assert cli("--version").out.startswith("tcm-sync ")
    done = cli()
    assert (done.code, done.out) == (0, cli("--help").out)
    for command in ("infer", "bench", "doctor", "serve"):
        assert f"  {command}" in done.out
    assert "inference-http" not in done.out
    assert "Before or after any command:" in cli("infer", "--help").out


def test_python_m_is_the_same():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("tcm-sync ")


def test_options_stand_before_or_after_the_command_and_the_last_one_counts(cli, manager):
    wrong = ("--uri", "ws://127.0.0.1:1/ws")
    right = ("--uri", manager.uri)
    assert cli(*wrong, "health", *right).code == 0
    assert cli(*right, "health", *wrong).code == 3
