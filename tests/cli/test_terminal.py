"""The command in a terminal: colours, a spinner, a bar, questions, and Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..helpers.waiting import wait_until
from .conftest import COMMAND

pexpect = pytest.importorskip("pexpect")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")

GUARD = 60
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*3\dm")


@pytest.fixture(scope="module")
def served():
    """The address of a manager in another process, so that no threads are here when a terminal is forked."""
    program = [sys.executable, str(Path(__file__).with_name("managed.py"))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.kill()


@pytest.fixture
def terminal(served):
    """Run the command in a terminal of 100 columns."""
    opened = []

    def run(*arguments, **variables):
        given = {"TCM_WS_URI": served, "TCM_CONTAINER_ID": "local", "TERM": "xterm-256color", **variables}
        child = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *map(str, arguments)],
            env={**os.environ, **given},
            dimensions=(40, 100),
            timeout=GUARD,
            encoding="utf-8",
        )
        child.logfile_read = io.StringIO()
        opened.append(child)
        return child

    yield run
    for child in opened:
        child.close(force=True)


def finished(child):
    """Wait for the end: the exit status, and all that was shown."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.logfile_read.getvalue()


def sleeps(child):
    """Whether the command waits for something; only Linux reports it."""
    stat = Path(f"/proc/{child.pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S"


def plain(text):
    return ESCAPE.sub("", text).replace("\r\n", "\n")


def test_colours_are_for_terminals(terminal):
    code, shown = finished(terminal("health"))
    assert code == 0
    assert COLOUR.search(shown)
    assert plain(shown).startswith("ok: ws://")


def test_no_color_is_kept(terminal):
    for command in ("health", "doctor"):
        code, shown = finished(terminal(command, NO_COLOR="1"))
        assert code == 0
        assert not COLOUR.search(shown)


def test_json_is_plain_in_a_terminal_too(terminal):
    _, shown = finished(terminal("health", "--json"))
    assert shown == '{"ok":true}\r\n'


def test_a_spinner_shows_the_elapsed_time(terminal):
    code, shown = finished(
        terminal("bench", "slow", "--input", "x=[1]", "--duration", "1.5", "--warm-up", "0")
    )
    assert code == 0
    assert re.search("0:00:0[1-9]", shown)
    assert "answered" in plain(shown)


def test_a_bar_shows_how_much_is_done(terminal, tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(40_000, dtype=np.int64).reshape(-1, 4))
    code, shown = finished(terminal("infer", "double", "--input", f"x={tmp_path / 'rows.npy'}", "--chunked"))
    assert code == 0
    assert "10000/10000" in shown
    assert "y: int64[10000, 4]" in plain(shown)


@pytest.mark.parametrize(("answer", "code", "said"), [("y", 0, ""), ("n", 1, "nothing was deleted")])
def test_delete_asks(terminal, answer, code, said):
    child = terminal("delete", "--vm-id", "vm-77", "--container-id", "c-1", "--missing-ok")
    child.expect_exact("Delete VM vm-77 and container c-1 at ws://")
    child.expect_exact("[y/N]")
    child.sendline(answer)
    ended, shown = finished(child)
    assert ended == code
    assert said in shown


def test_ctrl_c_at_a_question(terminal):
    child = terminal("delete", "--vm-id", "vm-77")
    child.expect_exact("[y/N]: ")
    wait_until(lambda: sleeps(child), "it reads the answer: a moment before, Python misses the signal")
    child.sendintr()
    code, shown = finished(child)
    assert code == 130
    assert plain(shown).endswith("tcm-sync: interrupted\n")


def test_ctrl_c_amid_a_bench(terminal):
    child = terminal("bench", "slow", "--input", "x=[1]", "--duration", "3600")
    child.expect_exact("0:00:0")
    child.sendintr()
    code, shown = finished(child)
    assert code == 130
    assert "answered" in plain(shown)
    assert "Traceback" not in shown


def test_chunks_show_nothing_that_a_terminal_obeys(terminal):
    text = "be \x1b]0;evil\x07 \x1b[31mred"
    child = terminal(
        "stream", "poet", "--text", text, "--allow-transient", "--container-id", "local-transient"
    )
    code, shown = finished(child)
    assert code == 0
    assert "\x1b" not in shown
    assert r"\x1b]0;evil\x07" in shown


def test_bytes_are_not_for_a_terminal(terminal):
    code, shown = finished(terminal("infer", "echo", "--input", "x=[1]", "--output", "-"))
    assert code == 2
    assert "writes binary data" in shown


def test_an_error_is_a_line(terminal):
    code, shown = finished(terminal("queue-stats", "--nonsense"))
    assert code == 2
    assert shown.count("\r\n") == 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("tcm-sync que", {"queue-stats"}),
        ("tcm-sync bench m --du", {"--duration"}),
        ("tcm-sync management create_", {"create_vm", "create_container", "create_server"}),
        ("tcm-sync model ", {"analyze", "config", "check"}),
        ("tcm-sync health --js", {"--json"}),
    ],
)
def test_the_shell_completes(words, wanted):
    *before, last = words.split(" ")
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(before)), "_TCM_SYNC_COMPLETE": "bash_complete"}
    done = subprocess.run(
        COMMAND, env={**os.environ, **variables}, capture_output=True, text=True, timeout=GUARD
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == wanted
    assert last in words


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_of_a_shell_is_given_out(shell):
    variables = {"_TCM_SYNC_COMPLETE": f"{shell}_source"}
    done = subprocess.run(
        COMMAND, env={**os.environ, **variables}, capture_output=True, text=True, timeout=GUARD
    )
    assert done.returncode == 0
    assert "_TCM_SYNC_COMPLETE" in done.stdout
