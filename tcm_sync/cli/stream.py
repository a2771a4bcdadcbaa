"""Run models that answer in chunks of text: ``stream``."""

from __future__ import annotations

import time
from typing import Any

import click

from tcm_sync import InferStream
from tcm_sync.cli.bodies import read_inputs
from tcm_sync.cli.infer import DTYPE, INPUT, TRANSIENT
from tcm_sync.cli.options import Command, Session

_TIMEOUT = 150.0  # seconds: the manager's own limit is 120 s


@click.command("stream", cls=Command)
@click.argument("model_name", metavar="MODEL")
@click.option("--text", help="The text that the model continues; - is the standard input.")
@click.option("--text-name", default="text", show_default=True, help="The input that takes --text.")
@INPUT
@DTYPE
@click.option("--output-name", default="output", show_default=True, help="The output that holds the text.")
@click.option(
    "--idle-end",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="End after so long a silence: the manager does not report the end of every model's output.",
)
@TRANSIENT
@click.pass_obj
def stream(
    session: Session,
    model_name: str,
    text: str | None,
    text_name: str,
    inputs: tuple[str, ...],
    datatypes: tuple[str, ...],
    output_name: str,
    idle_end: float | None,
    allow_transient: bool,
) -> None:
    """Run a model that answers in chunks of text, and write them as they come."""
    arrays: dict[str, Any] = dict(read_inputs(session, inputs, datatypes))
    if text is not None:
        if text_name in arrays:
            raise click.UsageError(f"the input {text_name!r} is given by --text and by --input")
        arrays[text_name] = [_text(session) if text == "-" else text]
    if not arrays:
        raise click.UsageError("no input: give --text or --input")
    started = time.monotonic()
    with (
        session.client(routed=True) as client,
        client.stream(
            model_name,
            arrays,
            output_name=output_name,
            idle_timeout=idle_end,
            on_idle="raise" if idle_end is None else "end",
            allow_transient=allow_transient,
            timeout=session.timeout or _TIMEOUT,
        ) as chunks,
    ):
        count = _write(session, chunks)
    if session.as_json:
        elapsed = time.monotonic() - started
        session.output.json({"ended_by": chunks.ended_by, "chunks": count, "elapsed": elapsed})


def _text(session: Session) -> str:
    try:
        return session.read("-", "--text").decode()
    except UnicodeDecodeError as error:
        raise click.UsageError("--text: the standard input is not UTF-8") from error


def _write(session: Session, chunks: InferStream) -> int:
    """Write each chunk at once, and a final newline even after a failure."""
    output = session.output
    count, ends_line = 0, True
    try:
        for chunk in chunks:
            count += 1
            if session.as_json:
                output.json({"chunk": chunk})
                continue
            output.text(chunk)
            ends_line = chunk.endswith("\n") if chunk else ends_line
    finally:
        if not ends_line:
            output.text("\n")
    return count
