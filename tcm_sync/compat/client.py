"""The synchronous client of tcm-client, on the connections of `tcm_sync.TcmClient`."""

from __future__ import annotations

import asyncio
import json
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync._calls.retrying import perform
from tcm_sync._deadline import Deadline
from tcm_sync._tracebacks import shortened
from tcm_sync.client import TcmClient as SyncClient
from tcm_sync.compat.calls import InferenceCall, InfoCall, ManagementCall, RawCall
from tcm_sync.compat.messages import InferenceInput, InferenceResponse
from tcm_sync.compat.requests import as_list, identity_of, inference_request
from tcm_sync.errors import (
    AuthenticationError,
    BackpressureError,
    InputError,
    MessageTooLargeError,
    PermissionDeniedError,
    RateLimitedError,
    ShuttingDownError,
    TcmError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

    from tcm_sync.compat.messages import AuthContext

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
        self._client = SyncClient(
            uri,
            identity_of(auth_ctx),
            timeout=message_timeout_seconds,
            connect_timeout=connect_timeout_seconds,
            retry=None,
            shm="off",
        )
        self._client._core.may_be_dropped = True  # noqa: SLF001 - programs made for tcm-client close nothing

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
        """Close the connections. A closed client stays closed."""
        self._client.close()

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
        request = inference_request(vm_id, container_id, model_name, inputs, vm_ip, allow_transient)
        message = self._ask(InferenceCall, request)
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
        request = inference_request(vm_id, container_id, model_name, inputs, vm_ip, allow_transient)
        message = await asyncio.to_thread(self._ask, InferenceCall, request)
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
            raise shortened(TypeError(f"data must be a list or an ndarray, not {type(data).__name__}"))
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
        message = self._ask(InfoCall, {"action": "queue_stats", "job_id": secrets.token_hex(8)})
        if message.get("type") != "info_response":
            raise shortened(RuntimeError(f"Unexpected info response: {message}"))
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
            As of `infer`. A job that takes longer than `message_timeout_seconds` continues.
        """
        _refuse_event_loop("management_creation()", "asyncio.to_thread(client.management_creation, ...)")
        return self._ask(ManagementCall, {"action": action, **kwargs})

    def _ask(self, kind: type[RawCall], payload: dict[str, Any]) -> dict[str, Any]:
        """Send a request once, and return the message that answers it."""
        try:
            text = json.dumps(payload, default=as_list).encode()
        except TypeError as error:
            raise InputError(f"the request has no form in JSON: {error}") from None
        call = kind((text,), Deadline(self._message_timeout), waits_for_manager=False)
        call.job_id = payload.get("job_id")
        try:
            perform(self._client._core, call, None, at_most_once=True)  # noqa: SLF001
        except AuthenticationError as error:
            raise shortened(RuntimeError(f"Auth failed: {error}")) from error
        except TcmError as error:
            if call.refused is None and not _is_refusal(error):
                raise
            return {"type": "error", "payload": call.refused or _described(error)}
        return call.answer


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


def _refuse_event_loop(method: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise shortened(RuntimeError(f"{method} would block the event loop of this thread: await {instead}"))
