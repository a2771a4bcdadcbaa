"""The page on the command line: every output in it is what the command writes, every key is in its table."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import numpy as np
import pytest

from tcm_sync.cli.app import root
from tcm_sync.cli.options import CONNECTING
from tcm_sync.local import LocalManager
from tcm_sync.local.digits import load_samples, model_file

from .conftest import COMMAND
from .models import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "cli.rst"
ADDRESS = "ws://127.0.0.1:8000/ws"  # as the page has it

STEPS = [
    {"model_name": "double", "inputs": {"x": [[1, 2]]}},
    {"model_name": "echo", "name": "again", "inputs": {"x": [["a", "b"]]}},
]

#: What differs from run to run, and from machine to machine.
_VARYING = (
    (r"\d[\d,]*(?:\.\d+)+(?:e-?\d+)?", "#"),  # 0.0123, 1,234.5, and versions
    (r"\d[\d,]*(?= (?:MiB|days|sent|received|shared|in|threads|minutes))", "#"),
    (r'("(?:answered|unsent|bytes_\w+)":)\d+', r"\1#"),
    (r"(?<=tcm-sync-)[0-9a-f]{32}", "#"),
    (r"\d{4}-\d\d-\d\d.*", "#"),
    (r"(?:Open|Libre)SSL \S+", "OpenSSL #"),
    (r"[ \t]+", " "),
)


def blocks():
    """Find the consoles of the page: each a list of (command, output)."""
    found = re.findall(r"^\.\. code-block:: console\n\n((?: {3}.*\n|\n)+)", PAGE.read_text("utf-8"), re.M)
    return [
        [tuple(part.split("\n", 1)) for part in re.split(r"^\$ ", textwrap.dedent(text), flags=re.M)[1:]]
        for text in found
    ]


def settled(text):
    for pattern, replacement in _VARYING:
        text = re.sub(pattern, replacement, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder, the manager and the variables that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    image = next(digit.image for digit in load_samples() if digit.label == 0).reshape(1, 64)
    np.save("image.npy", image)
    np.save("rows.npy", np.arange(20_000, dtype=np.int64).reshape(-1, 2))
    (tmp_path / "steps.json").write_text(json.dumps(STEPS))
    (tmp_path / "vm.yaml").write_text("openstack: {name: red}\ndocker: {image: triton}\n")
    (tmp_path / "tcm-sync").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "tcm-sync").chmod(0o755)
    with model_file() as path:
        shutil.copy(path, "digits.onnx")
        with LocalManager({"digits": "digits.onnx", **MODELS}) as manager:
            monkeypatch.setenv("TCM_WS_URI", manager.uri)
            monkeypatch.setenv("TCM_CONTAINER_ID", manager.route.container_id)
            monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
            yield manager


def typed(command, manager):
    """Type a command into a shell, and return all that it writes."""
    if command.startswith("tcm-sync serve"):
        words = [*COMMAND, *shlex.split(command)[1:], "--port", "0"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
        return re.sub(r"ws://127\.0\.0\.1:\d+/ws", ADDRESS, line)
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return done.stdout.replace(manager.uri, ADDRESS).replace(f"127.0.0.1:{manager.port}", "127.0.0.1:8000")


@pytest.mark.skipif(sys.platform != "linux", reason="it speaks of Linux")
@pytest.mark.parametrize("block", blocks(), ids=lambda block: block[0][0][:40])
def test_a_console_of_the_page_shows_what_is_written(place, block):
    for command, output in block:
        assert settled(typed(command, place)) == settled(output), command


def rows(title):
    """Return the cells of the table below a title."""
    parts = re.split(r"^([^\n]+)\n([-=~])\2{2,}\n", PAGE.read_text("utf-8"), flags=re.M)
    text = dict(zip(parts[1::3], parts[3::3], strict=True))[title]
    found = re.findall(r"^   \* - (.*(?:\n     .*)*)", text, re.M)
    return [[" ".join(cell.split()) for cell in re.split(r"\n     - ", row)] for row in found][1:]


def every_command(group=root, before=()):
    context = click.Context(root)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*before, name))
        elif not command.hidden:
            yield " ".join((*before, name)), command


def test_the_page_names_every_command_and_option():
    text = PAGE.read_text("utf-8")
    for name, command in every_command():
        assert f"tcm-sync {name}" in text, name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert f"``{parameter.opts[0]}" in text, (name, parameter.opts)


def test_the_page_names_every_option_with_its_variable():
    documented = {row[0]: row[1] for row in rows("Options of every command")}
    for option in CONNECTING:
        variable = re.search(r"\[(TCM_\w+)", option.help)[1]
        assert variable in documented[f"``{option.opts[0]}``"]


EXAMPLES = {
    "queue-stats": "queue-stats",
    "queue-stats --repeat": "queue-stats --repeat 3",
    "health": "health",
    "ready": "ready",
    "infer": "infer double --input x=[1]",
    "pipeline": "pipeline steps.json",
    "stream": "stream poet --text a --allow-transient --container-id local-transient",
    "management": "management create_vm --set openstack.name=x",
    "create": "create --file vm.yaml",
    "delete": "delete --vm-id vm-1 --container-id c-1 --missing-ok --yes",
    "model analyze": "model analyze digits.onnx",
    "model config": "model config digits.onnx",
    "model check": "model check digits.onnx --model digits",
    "bench": "bench double --input x=[1] --duration 1 --warm-up 0",
    "doctor": "doctor",
}


def test_the_page_reports_the_keys_of_every_command(place, cli):
    documented = {
        row[0].strip("`"): re.findall(r"``([\w.]+)``", row[1]) for row in rows("The keys of --json")
    }
    assert set(documented) == {*EXAMPLES, "info", "serve"}
    assert {name.removesuffix(" --repeat") for name in documented} == {name for name, _ in every_command()}
    for name, arguments in EXAMPLES.items():
        done = cli(*shlex.split(arguments), "--json")
        assert done.code == 0, (name, done.err)
        found = {key for line in done.out.splitlines() for key in json.loads(line)}
        assert found == set(documented[name]), name
    serving = typed("tcm-sync serve --json", place)
    assert set(json.loads(serving)) == set(documented["serve"])
