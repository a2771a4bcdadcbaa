"""Management jobs: ``management``, ``create`` and ``delete``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from tcm_sync.cli.bodies import read_body
from tcm_sync.cli.failures import CommandError
from tcm_sync.cli.options import Command, Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from tcm_sync import Deployment
    from tcm_sync.results import ManagementResult

_RESERVED = ("self", "action", "timeout", "progress")

_BODY = click.option(
    "--file", metavar="FILE", help="The body of the request, YAML or JSON; - is the standard input."
)
_SET = click.option(
    "--set",
    "fields",
    metavar="KEY.KEY=VALUE",
    multiple=True,
    help="A field of the body: JSON, or else a text. docker.image=triton:24.01",
)


def _actions(_context: click.Context, _parameter: click.Parameter, beginning: str) -> list[CompletionItem]:
    from typing import get_args

    from click.shell_completion import CompletionItem

    from tcm_sync._calls.management import Action

    return [CompletionItem(action) for action in get_args(Action) if action.startswith(beginning)]


@click.command("management", cls=Command)
@click.argument("action", required=False, shell_complete=_actions)
@_BODY
@_SET
@click.option("--action", "older_action", hidden=True)
@click.option("--payload", "older_file", hidden=True)
@click.pass_obj
def management(
    session: Session,
    action: str | None,
    file: str | None,
    fields: tuple[str, ...],
    older_action: str | None,
    older_file: str | None,
) -> None:
    """Run a management job, such as create_vm, and wait until it is done."""
    action = action or older_action or ("creation" if older_file is not None else None)
    if action is None:
        from typing import get_args

        from tcm_sync._calls.management import Action

        raise click.UsageError(f"no ACTION: it is one of {', '.join(get_args(Action))}")
    body = read_body(session, file or older_file, fields, reserved=_RESERVED)
    _show(session, _job(session, "management", action, action, **body))


@click.command("create", cls=Command)
@_BODY
@_SET
@click.pass_obj
def create(session: Session, file: str | None, fields: tuple[str, ...]) -> None:
    """Create a VM with a container in which a Triton server runs a model."""
    body = read_body(session, file, fields, reserved=_RESERVED)
    made: Deployment = _job(session, "create", "creation", **body)
    names = ("vm_ip", "vm_id", "container_id", "model_name")
    facts: dict[str, Any] = {name: getattr(made, name) for name in names}
    if session.as_json:
        from tcm_sync.cli.output import spec

        for side in ("inputs", "outputs"):
            facts[side] = [spec(each) for each in getattr(made.signature, side)]
        session.output.json(facts)
        return
    sides = {side: ", ".join(map(str, getattr(made.signature, side))) for side in ("inputs", "outputs")}
    session.output.pairs(facts | sides)


@click.command("delete", cls=Command)
@click.option("--vm-id", metavar="ID", help="The VM to delete.")
@click.option("--vm-ip", metavar="ADDRESS", help="The VM's address, in place of its id.")
@click.option("--container-id", metavar="ID", help="The container to delete.")
@click.option("--missing-ok", is_flag=True, help="Do not fail if a part does not exist any more.")
@_BODY
@_SET
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(
    session: Session,
    vm_id: str | None,
    vm_ip: str | None,
    container_id: str | None,
    missing_ok: bool,
    file: str | None,
    fields: tuple[str, ...],
    yes: bool,
) -> None:
    """Delete a VM with its container. A part that does not exist is a failure without --missing-ok."""
    body = read_body(session, file, fields, reserved=(*_RESERVED, "missing_ok"))
    named = {"vm_id": vm_id, "vm_ip": vm_ip, "container_id": container_id}
    if not any(named.values()) and not body:
        raise click.UsageError("nothing to delete is named: give --vm-id, --container-id or --file")
    if not yes:
        _confirm(session, vm_id or (vm_ip and f"at {vm_ip}"), container_id, body)
    given = {name: value for name, value in named.items() if value is not None}
    if twice := given.keys() & body.keys():
        raise click.UsageError(f"{', '.join(sorted(twice))}: given as an option and in the body")
    result = _job(session, "delete", "deletion", **given, missing_ok=missing_ok, **body)
    if session.as_json:
        _show(session, result)
    else:
        session.output.pairs(result.parts)


def _confirm(session: Session, vm_id: str | None, container_id: str | None, body: dict[str, Any]) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError("there is no terminal to confirm it: --yes deletes without asking")
    from tcm_sync.cli.output import printable

    named = [("VM", vm_id), ("container", container_id), ("what the body names:", body or None)]
    what = " and ".join(f"{kind} {each}" for kind, each in named if each is not None)
    uri = session.shown_uri
    if not click.confirm(printable(f"Delete {what} at {uri}?"), err=True):
        raise CommandError("nothing was deleted")


def _job(session: Session, call: str, title: str, /, *arguments: Any, **body: Any) -> Any:
    """Call a method of the client that may take minutes, with a spinner."""
    from tcm_sync.cli.output import working
    from tcm_sync.settings import UNSET

    with session.client() as client, working(title):
        timeout = UNSET if session.timeout is None else session.timeout  # TCM_TIMEOUT is for shorter calls
        return getattr(client, call)(*arguments, timeout=timeout, **body)


def _show(session: Session, result: ManagementResult) -> None:
    if session.as_json:
        facts = {"action": result.action, "data": result.data}
        if result.parts:
            facts["parts"] = result.parts
        session.output.json(facts | {"attempts": result.attempts, "elapsed": result.elapsed})
    elif isinstance(result.data, dict):
        session.output.pairs(result.data)
    else:
        session.output.line(str(result.data))
