"""The checks of ``tcm-sync doctor``, for the client of a web application."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcm_sync.client import TcmClient


def run_checks(client: TcmClient, *, as_json: bool, timeout: float | None) -> int:
    """Check the connection of a client step by step, print the findings, and return the exit status.

    Parameters
    ----------
    client : TcmClient
        Its settings are used; the client itself stays as it is.
    as_json : bool
        Whether to print JSON.
    timeout : float, optional
        Seconds for each step.
    """
    from tcm_sync.cli.doctor import run_checks as run
    from tcm_sync.cli.options import Session

    settings = client._core.settings  # noqa: SLF001 - of this package
    session = Session()
    session.as_json = as_json
    session.fixed = {each.name: getattr(settings, each.name) for each in fields(settings)}
    if timeout is not None:
        session.variables["TCM_TIMEOUT"] = str(timeout)
    return run(session)
