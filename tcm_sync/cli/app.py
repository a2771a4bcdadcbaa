"""The command's root, and how every run of it ends."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import traceback
from importlib.metadata import version

import click

from tcm_sync._secrets import hide
from tcm_sync.cli.failures import code_of, line_of
from tcm_sync.cli.options import Group, Session

#: The module of each command, so that a run imports only the one that it needs.
_COMMANDS = {
    "queue-stats": "info",
    "info": "info",
    "health": "info",
    "ready": "info",
    "infer": "infer",
    "pipeline": "infer",
    "stream": "stream",
    "management": "jobs",
    "create": "jobs",
    "delete": "jobs",
    "model": "model",
    "bench": "bench",
    "doctor": "doctor",
    "serve": "serve",
    "inference-http": "aliases",
    "model-analyze": "aliases",
}


class _LazyGroup(Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"tcm_sync.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.command(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0, 1 failure, 2 usage, 3 unreachable or not ready, 4 denied, 130 interrupted.",
)
@click.version_option(version("tcm-sync"), message="tcm-sync %(version)s")
@click.pass_context
def root(context: click.Context) -> None:
    """Talk to a Triton Client Manager."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run(arguments: list[str]) -> int:
    """Run the command line, and return its exit status."""
    session = Session()
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()  # they may be closed
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = root.main(arguments, prog_name="tcm-sync", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the reader has closed the pipe, which click turns into an exit
        _drop_output()
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - a command ends in a line, whatever happens
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _drop_output()
        return _fail(error, session)
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Discard what could not be written: the interpreter would try again at its end, and exit with 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: BaseException, session: Session) -> int:
    trace = "".join(traceback.format_exception(error)) if session.debug else ""
    line = line_of(error)
    secrets = session.secrets()  # which live until the text is written
    text = hide(f"{trace}tcm-sync: {line}\n")
    del secrets
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
    return code_of(error)
