"""The exit status and the error line of a command that fails."""

from __future__ import annotations

import click

from tcm_sync.errors import (
    AuthenticationError,
    CallTimeoutError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    InputError,
    MessageTooLargeError,
    ModelNotReadyError,
    PermissionDeniedError,
    PoolTimeoutError,
    ServerNotReadyError,
    ShuttingDownError,
    TcmError,
)

FAILED, USAGE, UNREACHABLE, DENIED, INTERRUPTED = 1, 2, 3, 4, 130

_CODES: tuple[tuple[int, tuple[type[TcmError], ...]], ...] = (
    (USAGE, (InputError, ConfigError)),
    (
        UNREACHABLE,
        (ConnectFailedError, ConnectionLostError, ShuttingDownError, ServerNotReadyError, ModelNotReadyError),
    ),
    (DENIED, (AuthenticationError, PermissionDeniedError)),
)

_ADVICE: tuple[tuple[type[TcmError], str], ...] = (
    (AuthenticationError, "the token is that of TCM_CLIENT_TOKEN or --token-file"),
    (PermissionDeniedError, "--roles or the token must grant the role"),
    (ConnectFailedError, "'tcm-sync doctor' looks for the reason step by step"),
    (MessageTooLargeError, "'tcm-sync infer --chunked' cuts a batch"),
    (CallTimeoutError, "--timeout allows more time"),
    (PoolTimeoutError, "--timeout allows more time"),
)


class CommandError(Exception):
    """A command failed for a reason of its own.

    Parameters
    ----------
    message : str
        What failed, why, and what to do.
    code : int
        The exit status.
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: BaseException) -> int:
    """Return the exit status for a failure."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, click.UsageError):
        return USAGE
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    return next((code for code, kinds in _CODES if isinstance(error, kinds)), FAILED)


def line_of(error: BaseException) -> str:
    """Return the message of a failure in one line."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted"
    if isinstance(error, click.ClickException):
        text = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx is not None:
            text = f"{text.rstrip('.')}; '{error.ctx.command_path} --help' shows how"
    elif isinstance(error, TcmError):
        text = "; ".join([str(error), *(advice for kind, advice in _ADVICE if isinstance(error, kind))])
    elif isinstance(error, CommandError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"reading or writing failed: {error}"
    else:
        text = f"unexpected {type(error).__name__}: {error}; --debug shows where"
    return " ".join(text.split())
