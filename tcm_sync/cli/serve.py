"""Run a local manager: ``serve``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tcm_sync.cli.options import LocalCommand, Session


@click.command("serve", cls=LocalCommand)
@click.argument("models", metavar="[NAME=]MODEL.onnx...", nargs=-1)
@click.option("--digits", is_flag=True, help="Also serve the included classifier of digits, as 'digits'.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="The port; 0 is any free one.",
)
@click.option(
    "--container-id", default="local", show_default=True, help="The id of the container where the models run."
)
@click.option(
    "--token", "tokens", multiple=True, help="A token that clients may use; without it no token is needed."
)
@click.option(
    "--tick", metavar="SECONDS", type=float, default=0.010, show_default=True, help="Between two wakes."
)
@click.option("--workers", type=int, default=5, show_default=True, help="Inferences at a time.")
@click.option(
    "--stream-timeout",
    metavar="SECONDS",
    type=float,
    default=120.0,
    show_default=True,
    help="What a stream may take.",
)
@click.option(
    "--step-seconds",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="What each step of a management job takes.",
)
@click.option(
    "--fail",
    metavar="FAULT",
    multiple=True,
    help="What happens to the next inferences, in order: an error code such as TRITON_OVERLOADED, drop, "
    "delay=SECONDS, garble, stale, or ok (answered as usual); with *N behind it, N times.",
)
@click.option("--no-shm", is_flag=True, help="Grant no shared memory.")
@click.pass_obj
def serve(
    session: Session,
    models: tuple[str, ...],
    digits: bool,
    host: str,
    port: int,
    container_id: str,
    tokens: tuple[str, ...],
    tick: float,
    workers: int,
    stream_timeout: float,
    step_seconds: float,
    fail: tuple[str, ...],
    no_shm: bool,
) -> None:
    """Serve ONNX models as a manager does, until SIGINT or SIGTERM. For laptops and tests only."""
    from tcm_sync.local.__main__ import serve as serve_in_foreground

    named = {}
    for text in models:
        name, equals, file = text.partition("=")
        if not equals:
            name, file = Path(text).stem, text
        if not name or not file or name in named:
            raise click.UsageError(f"{text!r} is not [NAME=]FILE, or its name is taken")
        named[name] = file
    serve_in_foreground(
        named,
        sys.stdout,
        as_json=session.as_json,
        digits=digits,
        host=host,
        port=port,
        container_id=container_id,
        tokens=tokens or None,
        tick=tick,
        workers=workers,
        stream_timeout=stream_timeout,
        step_seconds=step_seconds,
        fail=fail,
        shm=not no_shm,
    )
