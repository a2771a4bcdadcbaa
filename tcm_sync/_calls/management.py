"""Management jobs: VMs, containers and Triton servers, made and deleted (docs/wire.rst, "Management")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast

from tcm_sync._arguments import check_flag, check_text
from tcm_sync._calls.caller import Caller
from tcm_sync._calls.deployment import BoundClient, Deployment
from tcm_sync._calls.progress import Progress
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
from tcm_sync.settings import UNSET, Unset

if TYPE_CHECKING:
    from tcm_sync._transport.connection import Connection
    from tcm_sync._transport.replies import ReplyFuture

_TIMEOUT = 900.0  # seconds: jobs take minutes
#: Of a job that is answered only if it fails (docs/wire.rst, "Management").
_TIMEOUT_OF_CONTAINERS = 60.0
_LOOK = 1.0  # seconds between two updates of the progress

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
_KNOWS_ITSELF = (ShuttingDownError, ConnectionLostError, ClientClosedError, CallTimeoutError)

_ALL_DELETED = {"server": "deleted", "container": "deleted", "vm": "deleted"}
_NO_VM_ID = "Deletion missing required field: 'vm_id'"

#: What the manager is known to do.
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
    """What is known of the block ``openstack``; it may hold more, as the manager is configured."""

    name: str
    vm_id: str


class Docker(TypedDict, total=False):
    """What is known of the block ``docker``; it may hold more, as the manager is configured."""

    image: str
    container_id: str


class Management(Caller):
    """The client's `management`, `create` and `delete`."""

    def management(
        self,
        action: Action | str,
        *,
        openstack: Openstack | Mapping[str, object] | None = None,
        docker: Docker | Mapping[str, object] | None = None,
        minio: Mapping[str, object] | None = None,
        triton: Mapping[str, object] | None = None,
        timeout: float | Unset | None = UNSET,
        progress: bool = False,
        **body: Any,
    ) -> ManagementResult:
        """Have the manager do a job, and wait for it to be done.

        It goes out on a socket of its own (``management_sockets``), so that it takes none from inferences.
        It is never repeated when it may have run: only when it never reached the socket, or when the manager
        said that it dropped it, or that a limit was passed.

        Where a job looks for its ids is not the same for all: ``delete_server``, ``delete_container`` and
        ``delete_vm`` find them beside the blocks alone, ``management("delete_vm", vm_id=...)``.

        Parameters
        ----------
        action : str
            What to do: ``"creation"``, ``"deletion"``, ``"create_vm"``, ``"create_container"``,
            ``"create_server"``, ``"delete_server"``, ``"delete_container"`` or ``"delete_vm"``. Others go
            through, and the manager decides.
        openstack, docker, minio, triton : mapping, optional
            The blocks of the request, each free-form.
        timeout : float or None, optional
            Seconds for the whole call; None is no limit. Left out, 900, and 60 for ``"create_container"``,
            since manager 2.0.0 never answers one that succeeds.
        progress : bool
            Whether to show the elapsed time (with tqdm: the extra ``progress``).
        **body
            More fields of the request.

        Returns
        -------
        ManagementResult
            With the data of the answer.

        Raises
        ------
        InputError
            The request has no form in JSON; nothing was sent.
        ManagementError
            The job failed, or was refused.
        ShuttingDownError, ConnectionLostError, CallTimeoutError, ClientClosedError, ProtocolError
            With ``outcome_unknown``, the job may have run: see to it before trying again.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        action = check_text("action", action, InputError)
        blocks = {"openstack": openstack, "docker": docker, "minio": minio, "triton": triton}
        for name, block in blocks.items():
            if block is not None and not isinstance(block, Mapping):
                raise InputError(f"{name} must be a mapping, not {type(block).__name__}")
        given = {name: block for name, block in blocks.items() if block is not None}
        payload = plain_json({"action": action, **given, **body})
        if isinstance(timeout, Unset):
            timeout = _TIMEOUT_OF_CONTAINERS if action == "create_container" else _TIMEOUT
        check_size(len(payload) + self._envelope_bytes("management"), self._message_limit())
        deadline = self._deadline(timeout)
        policy = self._settings.retry
        with Progress(action, shown=progress) as shown:
            call = ManagementCall((payload,), deadline, patient=policy is not None)
            call.action, call.progress = action, shown
            try:
                attempts = self._perform(call, policy, once=True)
            except TcmError as error:
                if error.uuid is not None and not _is_known(error):
                    error.outcome_unknown = True
                if error.outcome_unknown:
                    error.args = (f"{error.message}; {_ADVICE_ON.get(action, _ADVICE)}",)
                raise
        parts = _ALL_DELETED if action == "deletion" else {}
        return ManagementResult(action, call.data, attempts, deadline.elapsed(), dict(parts))

    def create(
        self,
        *,
        openstack: Openstack | Mapping[str, object] | None = None,
        docker: Docker | Mapping[str, object] | None = None,
        minio: Mapping[str, object] | None = None,
        triton: Mapping[str, object] | None = None,
        timeout: float | Unset | None = UNSET,
        progress: bool = False,
        **body: Any,
    ) -> Deployment:
        """Create a VM with a container in which a Triton server runs a model.

        Parameters
        ----------
        openstack, docker, minio, triton, timeout, progress, **body
            As `management` takes them.

        Returns
        -------
        Deployment
            Where it runs and what it takes. Nothing but its `Deployment.delete` deletes it.

        Raises
        ------
        TcmError
            As `management` raises it. A creation whose outcome is unknown may have left a VM behind.
        """
        result = self.management(
            "creation",
            openstack=openstack,
            docker=docker,
            minio=minio,
            triton=triton,
            timeout=timeout,
            progress=progress,
            **body,
        )
        vm_id = openstack.get("vm_id") if openstack is not None else None
        token = self._settings.auth.token if self._settings.auth is not None else None
        deployment = Deployment.read(
            result.data,
            vm_id=vm_id if isinstance(vm_id, str) else None,
            secret=token if isinstance(token, str) else None,
        )
        return deployment.bind(cast("BoundClient", self))  # a client has all of its calls

    def delete(
        self,
        *,
        vm_id: str | None = None,
        container_id: str | None = None,
        vm_ip: str | None = None,
        openstack: Openstack | Mapping[str, object] | None = None,
        docker: Docker | Mapping[str, object] | None = None,
        missing_ok: bool = False,
        timeout: float | Unset | None = UNSET,
        progress: bool = False,
        **body: Any,
    ) -> ManagementResult:
        """Delete a VM with its container, and the manager's connection to the server in it.

        The manager tries the three parts one by one, and reports a failure if one of them is missing, though
        it has deleted the others. So a deletion that is repeated fails, and so does one with a wrong id:
        nothing in the answer distinguishes them. ``missing_ok`` is for those who know that the ids are right.

        Parameters
        ----------
        vm_id, container_id : str, optional
            What to delete: put into the blocks ``openstack`` and ``docker``.
        vm_ip : str, optional
            The address of the VM, in place of its id: the manager takes the one VM that has it. It may have
            been given to another VM since.
        openstack, docker, timeout, progress, **body
            As `management` takes them.
        missing_ok : bool
            Whether a deletion ends well that found some or all parts missing and has deleted the others.

        Returns
        -------
        ManagementResult
            Its ``parts`` say what was deleted and what was missing.

        Raises
        ------
        ManagementError
            A part could not be deleted, or was missing; the error's ``parts`` say which.
        TcmError
            As `management` raises it. A deletion whose outcome is unknown may be repeated with
            ``missing_ok``.
        """
        missing_ok = check_flag("missing_ok", missing_ok)
        openstack = _with(openstack, "openstack", "vm_id", vm_id)
        docker = _with(docker, "docker", "container_id", container_id)
        if vm_ip is not None:
            body["vm_ip"] = check_text("vm_ip", vm_ip, InputError)
        try:
            return self.management(
                "deletion", openstack=openstack, docker=docker, timeout=timeout, progress=progress, **body
            )
        except ManagementError as error:
            if missing_ok and error.parts and "failed" not in error.parts.values():
                return ManagementResult(
                    "deletion", None, error.attempts, error.elapsed or 0.0, dict(error.parts)
                )
            if vm_ip is not None and _NO_VM_ID in error.message:
                error.args = (
                    f"{error.message}; no VM has the address {vm_ip}, or several have: pass vm_id=",
                )
            raise


def _is_known(error: TcmError) -> bool:
    """Whether a failure says by itself whether the job may have run."""
    if isinstance(error, MessageTooLargeError):
        return error.size is None  # the manager's own refusal, not a reply that is too large for us
    return isinstance(error, (*_NOT_RUN, *_KNOWS_ITSELF))


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
    """One job on its way, with the data of its answer once it has come."""

    kind: ClassVar[str] = "management"
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
        """Take the answer: the failure that it tells of, or None."""
        reply = decode_management(message, connection.uuid, connection.secret)
        data = decode_value(reply.data, connection.secret)
        if reply.status:
            self.data = data
            return None
        if not isinstance(data, str):
            raise ProtocolError(f"a failed job must say why: {quote(message, connection.secret)}")
        return failure_of_job(self.action, data, connection.secret)


def _bounded(seconds: float | None) -> float:
    return _LOOK if seconds is None else min(seconds, _LOOK)
