"""Running models: ``infer`` and ``pipeline``."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tcm_sync.cli.bodies import output_dtypes, read_inputs
from tcm_sync.cli.failures import CommandError
from tcm_sync.cli.files import write_whole
from tcm_sync.cli.options import Command, Session

if TYPE_CHECKING:
    from tcm_sync.results import InferResult

INPUT = click.option(
    "--input",
    "inputs",
    metavar="NAME=VALUE",
    multiple=True,
    help="NAME=FILE.npy, NAME=@FILE.json, NAME=- (either, from the standard input) or NAME='[[1, 2]]'.",
)
DTYPE = click.option(
    "--dtype",
    "datatypes",
    metavar="[NAME=]DATATYPE",
    multiple=True,
    help="What an input is sent as, such as FP32; without a name, all of them.",
)
TRANSIENT = click.option(
    "--allow-transient", is_flag=True, help="Use a server that is not registered with the manager, too."
)


@click.command("infer", cls=Command)
@click.argument("model_name", metavar="MODEL")
@INPUT
@DTYPE
@click.option(
    "--output-dtype",
    "wanted",
    metavar="[NAME=]DATATYPE",
    multiple=True,
    help="What an output is read as, since the wire has no dtypes.",
)
@click.option(
    "--output",
    "target",
    metavar="DIR|-",
    help="Write .npy files into a folder, or to the standard output (.npz if there are several).",
)
@click.option(
    "--chunked", is_flag=True, help="Cut a long batch into messages that fit, and join the outputs."
)
@click.option("--rows", type=click.IntRange(1), help="Rows a message, with --chunked.")
@TRANSIENT
@click.pass_obj
def infer(
    session: Session,
    model_name: str,
    inputs: tuple[str, ...],
    datatypes: tuple[str, ...],
    wanted: tuple[str, ...],
    target: str | None,
    chunked: bool,
    rows: int | None,
    allow_transient: bool,
) -> None:
    """Run a model and show its outputs."""
    if not inputs:
        raise click.UsageError("no --input: a model needs at least one")
    if rows is not None and not chunked:
        raise click.UsageError("--rows needs --chunked beside it")
    save = _target(target, session)
    options: dict[str, Any] = {"output_dtypes": output_dtypes(wanted), "allow_transient": allow_transient}
    with session.client(routed=True) as client:
        arrays = read_inputs(session, inputs, datatypes)
        if chunked:
            shown = sys.stderr.isatty()
            result = client.infer_chunked(model_name, arrays, rows=rows, progress=shown, **options)
        else:
            result = client.infer(model_name, arrays, **options)
    files = save(result)
    if target != "-":
        show_result(session, result, files)


def show_result(session: Session, result: InferResult, files: Mapping[str, Path] | None = None) -> None:
    """Print a model's outputs, or the files to which they were written."""
    if session.as_json:
        session.output.json(result_json(result, files))
    elif files:
        rows = [(name, str(array.dtype), list(array.shape), files[name]) for name, array in result.items()]
        session.output.table(("output", "dtype", "shape", "file"), rows)
    else:
        session.output.outputs(result)


def result_json(result: InferResult, files: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Return a model's outputs in their JSON form."""
    from tcm_sync.cli.output import tensor

    outputs = {name: tensor(array) for name, array in result.items()}
    for name, path in (files or {}).items():
        del outputs[name]["data"]
        outputs[name]["file"] = str(path)
    return {
        "model_name": result.model_name,
        "attempts": result.attempts,
        "elapsed": result.elapsed,
        "outputs": outputs,
    }


def _target(target: str | None, session: Session) -> Callable[[InferResult], dict[str, Path]]:
    """Return the function that saves the outputs, after checking that the target can be written."""
    if target is None:
        return lambda _: {}
    if target == "-":
        if session.as_json:
            raise click.UsageError("--output - and --json both need the standard output: use one of them")
        if sys.stdout.isatty():
            raise click.UsageError("--output - writes binary data: redirect it to a file or a pipe")
        return _write
    folder = Path(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--output: {target!r} is not a writable folder: {error.strerror}") from error
    return lambda result: _save(result, folder)


def _write(result: InferResult) -> dict[str, Path]:
    file = io.BytesIO()
    arrays = {name: _storable(name, array) for name, array in result.items()}
    if len(arrays) == 1:
        (array,) = arrays.values()
        np.save(file, array, allow_pickle=False)
    else:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    sys.stdout.buffer.write(file.getvalue())
    sys.stdout.buffer.flush()
    return {}


def _save(result: InferResult, folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    arrays = {name: _storable(name, array) for name, array in result.items()}  # all of them, or no file
    for name in result:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".")[:100] or "output"
        path = folder / f"{stem}.npy"
        while path in files.values():
            path = path.with_name(f"_{path.name}")
        write_whole(path, partial(np.save, arr=arrays[name], allow_pickle=False))
        files[name] = path
    return files


def _storable(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array that .npy holds; it pads texts with NULs, and drops those that were there."""
    if array.dtype != object:
        return array
    if any(str(text).endswith("\0") for text in array.flat):
        raise CommandError(
            f"output {name!r} has a text that ends in NUL, which a .npy file does not keep: use --json"
        )
    return array.astype(str)


@click.command("pipeline", cls=Command)
@click.argument("file", metavar="FILE.json")
@click.pass_obj
def pipeline(session: Session, file: str) -> None:
    """Run several models of one server in one message.

    FILE.json holds the steps, in order: a list of {"model_name": ..., "inputs": {...}, "name": ...}; - is the
    standard input.
    """
    import msgspec

    try:
        steps = msgspec.json.decode(session.read(file, "FILE.json"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.UsageError(f"{file!r} is not JSON: {error}") from error
    if isinstance(steps, dict) and set(steps) == {"pipeline"}:  # the manager's own form
        steps = steps["pipeline"]
    with session.client(routed=True) as client:
        results = client.pipeline(steps)
    if session.as_json:
        session.output.json({"steps": {name: result_json(result) for name, result in results.items()}})
        return
    output = session.output
    for name, result in results.items():
        output.line(f"step {name}", "bold")
        output.outputs(result)
