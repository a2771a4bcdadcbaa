"""The options that commands share, before or after the command's name, and the client that they make."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcm_sync._environment import settings_from_env
from tcm_sync._secret_texts import AROUND_SECRETS
from tcm_sync._secrets import Secret, secrets_of_query, shown_uri
from tcm_sync.client import TcmClient

if TYPE_CHECKING:
    from tcm_sync.cli.output import Output

DEFAULT_URI = "ws://127.0.0.1:8000/ws"


class Session:
    """The values of the shared options, for one run of the command."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}  # options by the TCM_* variable that they override
        self.fixed: dict[str, Any] | None = None  # arguments of a client, in place of options and variables
        self.as_json = False
        self.debug = False
        self._stdin_is: str | None = None

    @property
    def timeout(self) -> float | None:
        """The value of ``--timeout``, for calls that ``TCM_TIMEOUT`` is not meant for."""
        text = self.variables.get("TCM_TIMEOUT")
        return None if text is None else float(text)

    @property
    def token(self) -> str | None:
        """The token, which must not be printed. One that a callable returns is not asked for."""
        if self.fixed is not None:
            auth = self.fixed.get("auth")
            return auth.token if auth is not None and isinstance(auth.token, str) else None
        token = self.variables.get("TCM_CLIENT_TOKEN") or os.environ.get("TCM_CLIENT_TOKEN") or ""
        return token.strip(AROUND_SECRETS) or None

    def secrets(self) -> tuple[Secret, ...]:
        """Return what must not be printed, which `hide` replaces as long as the secrets are kept."""
        uri = self.variables.get("TCM_WS_URI") or os.environ.get("TCM_WS_URI") or ""
        token = () if self.token is None else (Secret(self.token),)
        return (*token, *secrets_of_query(uri.partition("?")[2]))

    @property
    def output(self) -> Output:
        """Where results go."""
        from tcm_sync.cli.output import Output

        return Output(as_json=self.as_json)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `TcmClient` that options and variables make together."""
        if self.fixed is not None:
            return dict(self.fixed)
        return settings_from_env({"TCM_WS_URI": DEFAULT_URI, **_variables(), **self.variables})

    @property
    def shown_uri(self) -> str:
        """The manager's address without the values of its query."""
        return shown_uri(self.arguments()["uri"])

    def shown_arguments(self) -> dict[str, object]:
        """Return the arguments of `TcmClient` that can be shown, by name."""
        arguments = self.arguments()
        return {
            name: shown_uri(value) if isinstance(value, str) else value for name, value in arguments.items()
        }

    def client(self, *, routed: bool = False, opened: bool = True) -> TcmClient:
        """Make a client.

        Parameters
        ----------
        routed : bool
            Whether the command needs a container.
        opened : bool
            Whether to open it, so that an unreachable manager is reported at once.
        """
        arguments = self.arguments()
        if routed and "route" not in arguments:
            raise click.UsageError(
                "no container is named: give --container-id or TCM_CONTAINER_ID", click.get_current_context()
            )
        client = TcmClient(**arguments)
        try:
            if opened:
                _open(client)
        except BaseException:
            client.close()
            raise
        return client

    def read(self, name: str, what: str) -> bytes:
        """Read a file that the user names; ``-`` is the standard input, which can be read once.

        Parameters
        ----------
        name : str
            The file.
        what : str
            The option that names it, for error messages.
        """
        try:
            if name != "-":
                return Path(name).read_bytes()
            if self._stdin_is is not None:
                raise click.UsageError(f"{what}: the standard input (-) is already read for {self._stdin_is}")
            self._stdin_is = what
            return sys.stdin.buffer.read() if sys.stdin is not None else b""
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise click.UsageError(f"{what}: {name!r} cannot be read: {reason}") from error


def _open(client: TcmClient) -> None:
    """Open a client without log lines, since a failure is reported as the command's own error line."""
    log = logging.getLogger("tcm_sync.pool")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        client.open()
    finally:
        log.setLevel(level)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if value or name == "TCM_CA_FILE"}


# An empty value, as of a shell's variable that is not set, must not leave these out without an error.
_NEVER_EMPTY = frozenset({"TCM_WS_URI", "TCM_CLIENT_TOKEN", "TCM_CA_FILE", "TCM_PROXY"})


def _stores(variable: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, parameter: click.Parameter, value: object) -> None:
        if value is None or context.resilient_parsing:
            return
        if variable in _NEVER_EMPTY and not str(value).strip(AROUND_SECRETS):
            raise click.UsageError(f"{parameter.opts[0]} is empty: leave it out if it is not needed", context)
        context.ensure_object(Session).variables[variable] = str(value)

    return store


def _store_token(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is None or context.resilient_parsing:
        return
    session = context.ensure_object(Session)
    try:
        token = session.read(value, "--token-file").decode().strip(AROUND_SECRETS)
    except UnicodeDecodeError:
        raise click.UsageError("--token-file: the token is not UTF-8", context) from None
    if not token:
        raise click.UsageError(f"--token-file: {value!r} holds no token", context)
    session.variables["TCM_CLIENT_TOKEN"] = token


def _store_flag(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        setattr(context.ensure_object(Session), str(parameter.name), True)


def _option(name: str, variable: str, metavar: str, text: str, kind: Any = None) -> click.Option:
    described = f"{text}  [{variable}]"
    return click.Option(
        [name], metavar=metavar, type=kind, help=described, expose_value=False, callback=_stores(variable)
    )


_SECONDS = click.FloatRange(0, min_open=True)

#: The options of every command that connects to a manager.
CONNECTING = (
    _option("--uri", "TCM_WS_URI", "URI", f"The manager's address; left out, {DEFAULT_URI}."),
    click.Option(
        ["--token-file"],
        metavar="FILE",
        expose_value=False,
        callback=_store_token,
        help="The file with the token; - is the standard input.  [TCM_CLIENT_TOKEN holds the token itself]",
    ),
    _option("--token", "TCM_CLIENT_TOKEN", "TOKEN", "The token; the list of processes shows it."),
    _option("--uuid", "TCM_CLIENT_UUID", "NAME", "The name of the sockets in the manager's log."),
    _option("--sub", "TCM_CLIENT_SUB", "NAME", "The subject."),
    _option("--tenant-id", "TCM_CLIENT_TENANT_ID", "NAME", "The tenant."),
    _option("--roles", "TCM_CLIENT_ROLES", "ROLE,...", "The roles."),
    _option("--container-id", "TCM_CONTAINER_ID", "ID", "The container where models run."),
    _option("--vm-ip", "TCM_VM_IP", "ADDRESS", "The address of its VM."),
    _option("--vm-id", "TCM_VM_ID", "ID", "The id of its VM."),
    _option("--ca-file", "TCM_CA_FILE", "FILE", "The authorities to trust, for wss://."),
    _option("--proxy", "TCM_PROXY", "URL", "The proxy; env: that of HTTPS_PROXY etc."),
    _option("--timeout", "TCM_TIMEOUT", "SECONDS", "For the whole call.", _SECONDS),
    _option("--turns", "TCM_TURNS", "auto|off|N", "Requests that may wait at the scheduler."),
    _option("--pool-size", "TCM_POOL_SIZE", "N", "Sockets at most.", click.IntRange(1)),
)

#: The options of every command.
GENERAL = (
    click.Option(
        ["--json", "as_json"],
        is_flag=True,
        expose_value=False,
        callback=_store_flag,
        help="Print JSON: one line, keys that stay.",
    ),
    click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_store_flag,
        help="Show the traceback of a failure.",
    ),
)


class _WithSharedOptions(click.Command):
    """A command with the shared options beside its own, in a section of their own in its help."""

    shared: tuple[click.Option, ...] = (*CONNECTING, *GENERAL)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters; a command's own option replaces a shared one of the same name."""
        *own, help_option = super().get_params(ctx)
        taken = {name for parameter in own for name in parameter.opts}
        return [*own, *(each for each in self.shared if not taken.intersection(each.opts)), help_option]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the shared options below the command's own."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Before or after any command": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                shared = any(parameter is each for each in self.shared)
                sections["Before or after any command" if shared else "Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class Command(_WithSharedOptions):
    """A command that connects to a manager."""


class LocalCommand(_WithSharedOptions):
    """A command that needs no manager."""

    shared = GENERAL


class Group(_WithSharedOptions, click.Group):
    """Several commands under one name."""

    command_class = Command
    group_class = type
