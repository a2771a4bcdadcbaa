"""Management jobs: VMs, containers and Triton servers, made and deleted (docs/wire.rst, "Management")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from tcm_sync._arguments import check_flag, check_text
from tcm_sync._calls.deployment import Deployment
from tcm_sync._calls.options import start_deadline
from tcm_sync._calls.progress import Progress
from tcm_sync._calls.retrying import perform
from tcm_sync._numbers import shown
from tcm_sync._pool.call import Call
from tcm_sync._wire.decode import decode_management, decode_value
from tcm_sync._wire.encode import check_size
from tcm_sync._wire.failures import failure_of_job
from tcm_sync._wire.plain import plain_json
from tcm_sync._wire.quote import quote
from tcm_sync.errors import (
    BackpressureError,
    CallTimeoutError,
    ClientClosedError,
    ConnectionLostError,
    InputError,
    ManagementError,
    MessageTooLargeError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)
from tcm_sync.results import ManagementResult

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import Defaults
    from tcm_sync._transport.connection import Connection
    from tcm_sync._transport.replies import ReplyFuture
    from tcm_sync.settings import Unset

_TIMEOUT = 900.0  # seconds: jobs take minutes
#: Of a job that is answered only if it fails (docs/wire.rst, "Management").
_TIMEOUT_OF_CONTAINERS = 60.0
_PROGRESS_INTERVAL = 1.0  # seconds between two updates of the progress

_UNDER_WAY = (
    'queue_stats().unfinished("management") is not 0 while a job waits or runs (of 50 places; pass size= '
    "if the manager has others)"
)
_ADVICE = (
    "the job may have run, or may still run. Before you try again, look whether jobs are under way: "
    f"{_UNDER_WAY}. Then look in the cloud for what the job would have made or deleted"
)
_ADVICE_ON = {
    "deletion": (
        "the deletion may have run, or may still run. Before you try again, find out the VM's id, since its "
        "address may belong to another VM by then. delete(vm_id=..., container_id=..., missing_ok=True) ends "
        f"well if nothing is left. Whether jobs are under way: {_UNDER_WAY}"
    ),
    "create_container": (
        "manager 2.0.0 never answers a create_container that succeeds, and answers those that fail: the "
        "container has most likely been made, unless the job still runs. Before you try again, look for it "
        f"on the VM, under the name that docker had. Whether jobs are under way: {_UNDER_WAY}"
    ),
}

# After these a job has not run, or has run and failed; whether it may have, the others say themselves.
_NOT_RUN = (ManagementError, PermissionDeniedError, BackpressureError, RateLimitedError)
_STATES_OUTCOME = (ShuttingDownError, ConnectionLostError, ClientClosedError, CallTimeoutError)

_ALL_DELETED = {"server": "deleted", "container": "deleted", "vm": "deleted"}
_NO_VM_ID = "Deletion missing required field: 'vm_id'"

#: The actions of managers so far.
Action = Literal[
    "creation",
    "deletion",
    "create_vm",
    "create_container",
    "create_server",
    "delete_server",
    "delete_container",
    "delete_vm",
]


class Openstack(TypedDict, total=False):
    """Fields of the block ``openstack``; there may be more, as the manager is configured."""

    name: str
    vm_id: str


class Docker(TypedDict, total=False):
    """Fields of the block ``docker``; there may be more, as the manager is configured."""

    image: str
    container_id: str


def management(
    core: Core,
    defaults: Defaults,
    action: str,
    *,
    openstack: Mapping[str, object] | None = None,
    docker: Mapping[str, object] | None = None,
    minio: Mapping[str, object] | None = None,
    triton: Mapping[str, object] | None = None,
    timeout: float | Unset | None,
    progress: bool,
    body: dict[str, Any],
) -> ManagementResult:
    """Have the manager do a job, and wait for it to be done."""
    if "action" in body:
        raise InputError("action is no field of the body: management(action) takes others")
    action = check_text("action", action, InputError)
    blocks = {"openstack": openstack, "docker": docker, "minio": minio, "triton": triton}
    for name, block in blocks.items():
        if block is not None and not isinstance(block, Mapping):
            raise InputError(f"{name} must be a mapping, not {type(block).__name__}")
    given = {name: block for name, block in blocks.items() if block is not None}
    payload = plain_json({"action": action, **given, **body})
    check_size(len(payload) + core.messages.envelope_bytes("management"), core.message_limit())
    deadline = start_deadline(timeout, _TIMEOUT_OF_CONTAINERS if action == "create_container" else _TIMEOUT)
    policy = defaults.policy
    with Progress(action, shown=progress) as shown:
        call = ManagementCall((payload,), deadline, waits_for_manager=policy is not None)
        call.action, call.progress = action, shown
        try:
            attempts = perform(core, call, policy, at_most_once=True)
        except TcmError as error:
            if error.uuid is not None and not _states_outcome(error):
                error.outcome_unknown = True
            if error.outcome_unknown:
                error.args = (f"{error.message}; {_ADVICE_ON.get(action, _ADVICE)}",)
            raise
    parts = _ALL_DELETED if action == "deletion" else {}
    return ManagementResult(action, call.data, attempts, deadline.elapsed(), dict(parts))


def deployment_of(result: ManagementResult, openstack: Mapping[str, object] | None) -> Deployment:
    """Read what a creation has made, of which the request may have named the VM."""
    vm_id = openstack.get("vm_id") if openstack is not None else None
    return Deployment.read(result.data, vm_id=vm_id if isinstance(vm_id, str) else None)


def delete(
    core: Core,
    defaults: Defaults,
    *,
    vm_id: str | None,
    container_id: str | None,
    vm_ip: str | None,
    openstack: Mapping[str, object] | None,
    docker: Mapping[str, object] | None,
    missing_ok: bool,
    timeout: float | Unset | None,
    progress: bool,
    body: dict[str, Any],
) -> ManagementResult:
    """Delete a VM with its container, and the manager's connection to the server in it."""
    missing_ok = check_flag("missing_ok", missing_ok)
    openstack = _with(openstack, "openstack", "vm_id", vm_id)
    docker = _with(docker, "docker", "container_id", container_id)
    if vm_ip is not None:
        body["vm_ip"] = check_text("vm_ip", vm_ip, InputError)
    blocks = {name: body.pop(name, None) for name in ("minio", "triton")}
    try:
        return management(
            core,
            defaults,
            "deletion",
            openstack=openstack,
            docker=docker,
            timeout=timeout,
            progress=progress,
            body=body,
            **blocks,
        )
    except ManagementError as error:
        if missing_ok and error.parts and "failed" not in error.parts.values():
            return ManagementResult("deletion", None, error.attempts, error.elapsed or 0.0, dict(error.parts))
        if vm_ip is not None and _NO_VM_ID in error.message:
            error.args = (f"{error.message}; no VM has the address {vm_ip}, or several have: pass vm_id=",)
        raise


def _states_outcome(error: TcmError) -> bool:
    """Whether a failure says itself whether the job may have run."""
    if isinstance(error, MessageTooLargeError):
        return error.size is None  # the manager's own refusal, not a reply that is too large for us
    return isinstance(error, (*_NOT_RUN, *_STATES_OUTCOME))


def _with(
    block: Mapping[str, object] | None, where: str, name: str, value: str | None
) -> Mapping[str, object] | None:
    """Put a field into a block, unless it is not given."""
    if value is None:
        return block
    value = check_text(name, value, InputError)
    if block is not None and block.get(name, value) != value:
        raise InputError(
            f"{name} is {value!r}, and {where}[{name!r}] is {shown(block[name])}: which is meant?"
        )
    return {**(block or {}), name: value}


class ManagementCall(Call):
    """One job in flight, with the data of its answer once it has come."""

    kind: ClassVar[str] = "management"
    reported_as = "management"
    action: str
    data: Any
    progress: Progress

    def wait(self, future: ReplyFuture) -> bool:
        """Wait for the answer until the deadline, showing that time passes."""
        if not self.progress.shown:
            return super().wait(future)
        while not future.wait(_bounded(self.deadline.remaining())):
            self.progress.update()
            if self.deadline.expired():
                return False
        return True

    def read(self, connection: Connection, message: bytes) -> TcmError | None:
        """Read the answer: the failure that it reports, or None."""
        reply = decode_management(message, connection.uuid)
        data = decode_value(reply.data)
        if reply.status:
            self.data = data
            return None
        if not isinstance(data, str):
            raise ProtocolError(f"a failed job must say why: {quote(message)}")
        return failure_of_job(self.action, data)


def _bounded(seconds: float | None) -> float:
    return _PROGRESS_INTERVAL if seconds is None else min(seconds, _PROGRESS_INTERVAL)
