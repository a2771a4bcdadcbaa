"""The synchronous client of tcm-client, on the connections of `tcm_sync.TcmClient`."""

from __future__ import annotations

import asyncio
import json
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tcm_sync import settings
from tcm_sync._arguments import check_flag
from tcm_sync._calls.retrying import perform
from tcm_sync._deadline import Deadline
from tcm_sync._numbers import shown
from tcm_sync._pool.call import Call
from tcm_sync._wire.quote import quote
from tcm_sync._wire.unreadable import out_of_memory
from tcm_sync.client import TcmClient as _Engine
from tcm_sync.compat.messages import InferenceInput, InferenceResponse, check_str
from tcm_sync.errors import (
    AuthenticationError,
    BackpressureError,
    InputError,
    MessageTooLargeError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

    from tcm_sync._transport.connection import Connection
    from tcm_sync._transport.replies import Future, PendingReplies, Refusal
    from tcm_sync.compat.messages import AuthContext

_TENANT = "dev-tenant"  # what tcm-client sends in place of a tenant that is left out

# Refusals of the manager, which tcm-client returns as messages of type "error".
_REFUSALS = (
    BackpressureError,
    PermissionDeniedError,
    RateLimitedError,
    ShuttingDownError,
)


class TcmClient:
    """The synchronous client of tcm-client, for any number of threads.

    It opens connections when it is called and keeps them. They are closed by `close`, at the end of a
    ``with`` block, or when the client is no longer used.

    Parameters
    ----------
    uri : str
        ``ws://HOST:PORT/ws`` or ``wss://…``.
    auth_ctx : AuthContext
        Who is calling; that of tcm-client will do.
    connect_timeout_seconds : float
        Seconds for opening a connection.
    message_timeout_seconds : float
        Seconds for a call.

    Raises
    ------
    ConfigError
        A setting that cannot work, named.
    """

    def __init__(
        self,
        uri: str,
        auth_ctx: AuthContext,
        *,
        connect_timeout_seconds: float = 10.0,
        message_timeout_seconds: float = 30.0,
    ) -> None:
        self._uri = uri
        self._auth_ctx = auth_ctx
        self._connect_timeout = connect_timeout_seconds
        self._message_timeout = message_timeout_seconds
        self._engine = _Engine(
            uri,
            _identity(auth_ctx),
            timeout=message_timeout_seconds,
            connect_timeout=connect_timeout_seconds,
            retry=None,
            shm="off",
        )
        self._engine._core.may_be_dropped = True  # noqa: SLF001 - programs made for tcm-client close nothing

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(
            type(self),
            connect_timeout_seconds=self._connect_timeout,
            message_timeout_seconds=self._message_timeout,
        )
        return make, (self._uri, self._auth_ctx)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections for good."""
        self._engine.close()

    def infer(
        self,
        vm_id: str,
        container_id: str,
        model_name: str,
        inputs: Sequence[InferenceInput],
        *,
        vm_ip: str | None = None,
        allow_transient: bool = False,
    ) -> InferenceResponse:
        """Run a model on some inputs.

        Parameters
        ----------
        vm_id, container_id, model_name : str
            Where it runs, and which.
        inputs : sequence of InferenceInput
            Those of tcm-client will do.
        vm_ip : str, optional
            The address of the VM; left out, the manager derives it from the container.
        allow_transient : bool
            Whether the manager may make a connection for this request alone.

        Returns
        -------
        InferenceResponse
            Also of an inference that failed, or was refused.

        Raises
        ------
        RuntimeError
            The manager refused the authentication; or an event loop runs in this thread: use `infer_async`.
        ConnectionError
            The manager cannot be reached, or the connection was lost.
        TimeoutError
            No reply came in time.
        MessageTooLargeError
            The reply is too large, or memory is too short to read it.
        ProtocolError
            The reply is not that to this request.
        InputError
            An argument cannot be sent.
        """
        _refuse_event_loop("infer()", "infer_async(...)")
        message = self._ask(
            _Inference, _request(vm_id, container_id, model_name, inputs, vm_ip, allow_transient)
        )
        return InferenceResponse(message.get("type", ""), message.get("payload", {}))

    async def infer_async(
        self,
        vm_id: str,
        container_id: str,
        model_name: str,
        inputs: Sequence[InferenceInput],
        *,
        vm_ip: str | None = None,
        allow_transient: bool = False,
    ) -> InferenceResponse:
        """Do what `infer` does, in a thread of the event loop's executor."""
        request = _request(vm_id, container_id, model_name, inputs, vm_ip, allow_transient)
        message = await asyncio.to_thread(self._ask, _Inference, request)
        return InferenceResponse(message.get("type", ""), message.get("payload", {}))

    def run_inference(
        self,
        vm_id: str,
        container_id: str,
        model_name: str,
        data: npt.NDArray[Any] | list[float],
        *,
        vm_ip: str | None = None,
        input_name: str = "INPUT__0",
        datatype: str = "FP32",
    ) -> InferenceResponse:
        """Run a model that has one input of numbers.

        Parameters
        ----------
        vm_id, container_id, model_name, vm_ip
            As in `infer`.
        data : ndarray or list of float
            The input, converted to float32. Unlike tcm-client's it may have more than one dimension.
        input_name : str
            Its name.
        datatype : str
            Its datatype.

        Returns
        -------
        InferenceResponse
            As of `infer`, which has the errors too.

        Raises
        ------
        TypeError
            `data` is something else.
        """
        if not isinstance(data, (list, np.ndarray)):
            raise TypeError(f"data must be a list or an ndarray, not {type(data).__name__}")
        array = np.atleast_1d(np.asarray(data, dtype=np.float32))
        given = InferenceInput(input_name, list(array.shape), datatype, array)
        return self.infer(vm_id, container_id, model_name, [given], vm_ip=vm_ip)

    def info_queue_stats(self) -> dict[str, Any]:
        """Return the manager's message about its queues.

        Raises
        ------
        RuntimeError
            The manager refused the question, or the authentication; or an event loop runs in this thread.
        ConnectionError, TimeoutError, MessageTooLargeError, ProtocolError
            As of `infer`.
        """
        _refuse_event_loop("info_queue_stats()", "asyncio.to_thread(client.info_queue_stats)")
        message = self._ask(_Info, {"action": "queue_stats", "job_id": secrets.token_hex(8)})
        if message.get("type") != "info_response":
            raise RuntimeError(f"Unexpected info response: {message}")
        return message

    def management_creation(self, action: str = "creation", **kwargs: Any) -> dict[str, Any]:
        """Have the manager do a job, and return its message.

        Parameters
        ----------
        action : str
            ``"creation"``, ``"deletion"``, ``"create_vm"`` ...
        **kwargs
            The fields of the job, such as ``openstack={"name": "worker-1"}``.

        Raises
        ------
        RuntimeError, ConnectionError, TimeoutError, MessageTooLargeError, ProtocolError, InputError
            As of `infer`. A job that takes longer than `message_timeout_seconds` goes on.
        """
        _refuse_event_loop("management_creation()", "asyncio.to_thread(client.management_creation, ...)")
        return self._ask(_Management, {"action": action, **kwargs})

    def _ask(self, kind: type[_Raw], payload: dict[str, Any]) -> dict[str, Any]:
        """Send a request once, and return the message that answers it."""
        try:
            text = json.dumps(payload, default=_as_list).encode()
        except TypeError as error:
            raise InputError(f"the request has no form in JSON: {error}") from None
        call = kind((text,), Deadline(self._message_timeout), waits_for_manager=False)
        call.job_id = payload.get("job_id")
        try:
            perform(self._engine._core, call, None, once=True)  # noqa: SLF001
        except AuthenticationError as error:
            raise RuntimeError(f"Auth failed: {error}") from error
        except TcmError as error:
            if call.refused is None and not _is_refusal(error):
                raise
            return {"type": "error", "payload": call.refused or _described(error)}
        return call.answer


class _Raw(Call):
    """A request whose answer is returned as it is, whatever it reports."""

    answered_by: ClassVar[str]  # the type of the message
    answer: dict[str, Any]
    refused: dict[str, Any] | None = None
    job_id: object = None

    def read(self, connection: Connection, message: bytes) -> TcmError | None:
        """Read the answer, which is never a failure."""
        try:
            answer = json.loads(message)
        except (ValueError, RecursionError):  # RecursionError: nested too deep
            answer = None
        except MemoryError:
            raise out_of_memory(len(message)) from None
        if not isinstance(answer, dict) or not isinstance(answer.get("payload"), dict):
            raise ProtocolError(f"the reply is no message: {quote(message)}")
        if answer.get("type") != self.answered_by or not self.is_answered(answer, connection.uuid):
            raise ProtocolError(f"the message is no reply to this request: {quote(message)}")
        self.answer = answer
        return None

    def is_answered(self, answer: dict[str, Any], uuid: str) -> bool:
        """Whether a message of the right type is the reply to this request."""
        return bool(answer.get("uuid") == uuid)

    def receive(self, connection: Connection, pending: PendingReplies, future: Future) -> Refusal | None:
        """Wait for the answer, and keep the payload of a refusal."""
        refusal = super().receive(connection, pending, future)
        if refusal is not None and refusal.said is not None:
            said = refusal.said
            fields = {"code": said.code, "message": said.message, "dropped_type": said.dropped_type}
            self.refused = {name: value for name, value in fields.items() if value is not None}
        return refusal


class _Inference(_Raw):
    kind: ClassVar[str] = "inference"
    answered_by = "inference"


class _Info(_Raw):
    kind: ClassVar[str] = "info"
    answered_by = "info_response"

    def is_answered(self, answer: dict[str, Any], uuid: str) -> bool:  # noqa: ARG002
        """Whether the job is that of the request: the message has no uuid."""
        return bool(answer["payload"].get("job_id") == self.job_id)


class _Management(_Raw):
    kind: ClassVar[str] = "management"
    answered_by = "management"


def _is_refusal(error: TcmError) -> bool:
    """Whether the manager refused the request; a reply that is too large for this process is none."""
    if isinstance(error, MessageTooLargeError):
        return error.size is None
    return isinstance(error, _REFUSALS)


def _described(error: TcmError) -> dict[str, Any]:
    """Return the payload of a refusal of which only the error is left, since it came while sending."""
    return (
        {"message": error.message} if error.code is None else {"code": error.code, "message": error.message}
    )


def _identity(auth_ctx: Any) -> settings.AuthContext:
    """Return who the client is, with what tcm-client sends for fields that are left out."""
    identity = settings.as_auth_context(auth_ctx)
    if identity is None:
        raise InputError("auth_ctx must be an AuthContext, not None")
    if not (identity.token or identity.sub or identity.tenant_id or identity.roles):
        return identity
    return settings.AuthContext(
        uuid=identity.uuid,
        token=identity.token,
        sub=identity.sub or identity.uuid,
        tenant_id=identity.tenant_id or _TENANT,
        roles=identity.roles,
    )


def _request(
    vm_id: str,
    container_id: str,
    model_name: str,
    inputs: Iterable[Any],
    vm_ip: str | None,
    allow_transient: bool,
) -> dict[str, Any]:
    """Return an inference as tcm-client sends it."""
    texts = {"vm_id": vm_id, "container_id": container_id, "model_name": model_name}
    for name, value in texts.items():
        check_str(value, name)
    if vm_ip is not None:
        check_str(vm_ip, "vm_ip")
    return {
        "vm_id": vm_id,
        "vm_ip": vm_ip,
        "container_id": container_id,
        "model_name": model_name,
        "inputs": None,
        "pipeline": None,
        "request": {
            "protocol": "http",
            "inputs": [_dumped(each) for each in inputs],
            "allow_transient": check_flag("allow_transient", allow_transient),
        },
    }


def _dumped(given: Any) -> dict[str, Any]:
    if not callable(getattr(given, "model_dump", None)):
        raise InputError(f"each input must be an InferenceInput, not {shown(given)}")
    dumped: dict[str, Any] = given.model_dump()
    return dumped


def _as_list(value: object) -> object:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"data of type {type(value).__name__}")


def _refuse_event_loop(method: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{method} would block the event loop of this thread: await {instead}")
