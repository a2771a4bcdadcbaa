"""Random command lines and files end with a documented status, a line at most, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import click
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tcm_sync.cli import main
from tcm_sync.cli.app import root
from tcm_sync.local import LocalManager
from tcm_sync.local import __main__ as foreground

from .models import MODELS

COMMANDS = [
    *("queue-stats", "info", "health", "ready", "infer", "pipeline", "stream", "management", "create"),
    *("delete", "bench", "doctor", "serve", "model", "inference-http", "model-analyze", "nonsense"),
]
BEGINNINGS = [
    *((command,) for command in COMMANDS),
    ("info", "colour"),
    ("infer", "echo", "--input", "x=[[1, 2]]"),
    ("stream", "poet", "--text", "a b", "--allow-transient", "--container-id", "local-transient"),
    ("management", "create_vm", "--set", "openstack.name=x"),
    ("delete", "--yes", "--vm-id", "vm-1", "--container-id", "c-1"),
    ("bench", "echo", "--input", "x=[1]"),
    ("ready", "--wait", "0.1"),
    ("model", "check", "file", "--model", "echo"),
]
TELLING = [
    *(
        "echo",
        "double",
        "poet",
        "queue_stats",
        "creation",
        "analyze",
        "config",
        "check",
        "-",
        "",
        "0",
        "-1",
        "2",
    ),
    *(
        "nan",
        "inf",
        "1e400",
        "0.05",
        "x=1",
        "x=[1]",
        "x=[[1, 2], [3]]",
        'x=["a"]',
        "x=-",
        "x=@-",
        "x=null",
        "x={}",
    ),
    *(
        "=",
        "x",
        "x=FP32",
        "FP32",
        "x=FP31",
        "a.b=1",
        "a=[",
        "file",
        "x=@file",
        "file.npy",
        "x=file.npy",
        "/dev/null",
    ),
    *(
        "ws://127.0.0.1:1/ws",
        "wss://127.0.0.1:1/ws",
        "ws://[",
        "http://x",
        "local",
        "local-transient",
        "\udcff",
    ),
]
VALUES = st.one_of(st.sampled_from(TELLING), st.text(max_size=8))


def lines_beginning(beginning):
    """Make command lines of the options that the command has, and now and then of others."""
    command = root
    for word in beginning:
        command = command.get_command(None, word) if isinstance(command, click.Group) else command
    options = [each for each in (command or root).get_params(click.Context(root)) if each.opts[0][:2] == "--"]
    words = [
        st.just([each.opts[0]]) if each.is_flag else st.tuples(st.just(each.opts[0]), VALUES).map(list)
        for each in options
        if each.name != "debug"
    ]
    stray = VALUES.map(lambda value: [value])
    return st.lists(st.one_of(*words, stray), max_size=3).map(
        lambda lists: [*beginning, *(word for each in lists for word in each)]
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
FILES = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda tail: b"\x93NUMPY\x01\x00" + tail),
    st.text(max_size=40).map(lambda text: text.encode(errors="replace")),
    JSON.map(lambda value: json.dumps(value).encode()),
)
RANDOM = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to be in, and a manager that the variables lead to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreground, "serve", lambda *_, **__: None)
    with LocalManager(MODELS, tick=0, stream_timeout=0.2) as manager:
        monkeypatch.setenv("TCM_WS_URI", manager.uri)
        monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
        monkeypatch.setenv("TCM_TIMEOUT", "0.5")
        yield tmp_path


def run(arguments, stdin=b""):
    """Run the command, and look at how it ends."""
    if "bench" in arguments:
        arguments = [*arguments, "--duration", "0.05", "--warm-up", "0"]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    finally:
        sys.stdin = before
    said = err.buffer.getvalue().decode()
    assert code in (0, 1, 2, 3, 4), said
    assert "Traceback" not in said
    assert "--debug shows where" not in said
    assert said.count("\n") == (1 if said else 0)
    if code == 2 and "doctor" not in arguments:
        assert said.startswith("tcm-sync: ")
    return code


@RANDOM
@given(line=st.sampled_from(BEGINNINGS).flatmap(lines_beginning), stdin=FILES)
def test_a_command_line_ends_in_order(place, line, stdin):
    (place / "file").write_bytes(stdin)
    (place / "file.npy").write_bytes(stdin)
    run(line, stdin)


@RANDOM
@given(
    command=st.sampled_from(
        [
            ("infer", "echo", "--input", "x=@file"),
            ("infer", "echo", "--input", "x=file", "--dtype", "FP32"),
            ("bench", "echo", "--input", "x=@file", "--batch", "2"),
            ("stream", "poet", "--text", "-"),
            ("pipeline", "file"),
            ("management", "create_vm", "--file", "file"),
            ("create", "--file", "-"),
            ("delete", "--yes", "--file", "file"),
            ("model", "analyze", "file"),
            ("model", "config", "file"),
            ("model", "check", "file", "--model", "echo"),
            ("inference-http", "--model-name", "echo", "--payload", "file"),
            ("health", "--token-file", "file"),
            ("doctor", "--token-file", "-"),
            ("health", "--uri", "wss://127.0.0.1:1/ws", "--ca-file", "file"),
        ]
    ),
    content=FILES,
)
@example(command=("management", "create_vm", "--file", "file"), content=b"[" * 10_000)
@example(command=("pipeline", "file"), content=b"[" * 10_000)
@example(command=("infer", "echo", "--input", "x=@file"), content=b"[" * 10_000)
@example(command=("infer", "echo", "--input", "x=@file"), content=b"\x93NUMPY\x01\x00\xff\xff")
def test_a_file_ends_in_order(place, command, content):
    (place / "file").write_bytes(content)
    run(list(command), content)
