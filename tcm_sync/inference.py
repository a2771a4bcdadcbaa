"""One inference: from its arguments to a message, and from the reply to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import UNSET as LEFT_OUT
from msgspec import Struct

from tcm_sync.caller import Caller, checked_model_name
from tcm_sync.config import UNSET, Unset
from tcm_sync.errors import ProtocolError, TcmError
from tcm_sync.results import InferResult
from tcm_sync.tensors import (
    check_inputs,
    check_output_dtypes,
    decode_outputs,
    encode_inputs,
    minimum_json_bytes,
)
from tcm_sync.transport.call import Call
from tcm_sync.wire.decode import decode_failure, decode_inference
from tcm_sync.wire.encode import check_size, encode_payload
from tcm_sync.wire.failures import failure_of_reply
from tcm_sync.wire.messages import InferencePayload, InferenceReply, InferenceRequest

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync.config import Route
    from tcm_sync.deadline import Deadline
    from tcm_sync.retry import RetryPolicy
    from tcm_sync.tensors import OutputDtypes
    from tcm_sync.transport.connection import Connection


class Inference(Caller):
    """The client's `infer`."""

    def infer(
        self,
        model_name: str,
        inputs: object,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferResult:
        """Run a model on some inputs and return its outputs.

        Parameters
        ----------
        model_name : str
            The model.
        inputs : mapping, sequence or array-like
            A mapping of names to array-likes; a sequence of `InferenceInput` or of dicts in either form of
            the wire (``name, shape, datatype, data`` or ``name, dims, type, value``); or one array-like
            alone, whose name is then ``INPUT__0``. Datatypes are the arrays' own unless they are stated.
        vm_ip, container_id, vm_id : str, optional
            The route, where it differs from the client's. Naming a container leaves the client's ``vm_ip``
            and ``vm_id`` out, since they belong to another one.
        allow_transient : bool
            Whether the manager may use a server that is not registered with it.
        output_dtypes : dtype or mapping of str to dtype, optional
            The dtypes of the outputs: one for all, or by name. The wire carries none, so that without it an
            output is float64, int64 (uint64 where a value needs it), bool, or an object array of str. FP16,
            FP32 and UINT64 outputs need it to be exact.
        timeout : float or None, optional
            Seconds for the whole call, repeats included; None is no limit. Left out, the client's.
        retry : RetryPolicy or None, optional
            In place of the client's; None is one attempt.

        Returns
        -------
        InferResult
            A mapping of output names to arrays.

        Raises
        ------
        InputError
            The arguments cannot be sent; nothing was.
        MessageTooLargeError
            The message is over ``max_message_bytes``; nothing was sent.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        deadline = self._deadline(timeout)
        plan = self._plan(
            model_name, vm_ip, container_id, vm_id, allow_transient, output_dtypes, timeout, retry
        )
        return self._infer(plan, self._encode(plan, inputs), deadline)

    def _plan(
        self,
        model_name: str,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Plan:
        """Check what `infer` takes, but for the inputs."""
        return Plan(
            checked_model_name(model_name),
            self._route(vm_ip, container_id, vm_id),
            allow_transient,
            check_output_dtypes(output_dtypes),
            timeout,
            self._policy(retry),
        )

    def _encode(self, plan: Plan, inputs: object) -> bytes:
        return encode_inference(
            plan.model_name,
            plan.route,
            inputs,
            allow_transient=plan.allow_transient,
            limit=self._settings.max_message_bytes,
            envelope_bytes=self._envelope_bytes("inference"),
        )

    def _infer(self, plan: Plan, payload: bytes, deadline: Deadline) -> InferResult:
        """Send what was encoded, and make arrays of the reply."""
        model_name, policy = plan.model_name, plan.policy
        call = InferenceCall(payload, deadline, patient=policy is not None, target=(plan.route, model_name))
        attempts = self._perform(call, policy)
        reply = call.reply
        try:
            arrays = decode_outputs(reply.data, plan.dtypes)
        except TcmError as error:
            self._failed(error, call)
            call.blame(error, sound=is_readable(reply.data))
            raise
        return InferResult(reply.model_name or model_name, arrays, reply.data, attempts, deadline.elapsed())


class Plan(Struct, frozen=True, eq=False):
    """An inference but for its inputs, checked."""

    model_name: str
    route: Route
    allow_transient: bool
    dtypes: OutputDtypes
    timeout: float | Unset | None
    policy: RetryPolicy | None


def encode_inference(
    model_name: str,
    route: Route,
    inputs: object,
    *,
    allow_transient: bool,
    limit: int,
    envelope_bytes: int,
    stream_of: str | None = None,
) -> bytes:
    """Check and encode a request: the same text for every attempt, on whatever socket.

    Parameters
    ----------
    model_name : str
        The model.
    route : Route
        Where it runs.
    inputs : object
        What `check_inputs` takes.
    allow_transient : bool
        Whether the manager may use a server that is not registered with it.
    limit : int
        The most bytes that the message may have.
    envelope_bytes : int
        What of them its envelope takes.
    stream_of : str, optional
        The output to be streamed, if it is to be.

    Raises
    ------
    InputError
        An input cannot be sent.
    MessageTooLargeError
        The text would be too long.
    """
    tensors = check_inputs(inputs)
    check_size(minimum_json_bytes(tensors) + envelope_bytes, limit, at_least=True)
    request = InferenceRequest(
        inputs=encode_inputs(tensors),
        protocol="http" if stream_of is None else "grpc",
        allow_transient=True if allow_transient else LEFT_OUT,
        output_name=LEFT_OUT if stream_of is None else stream_of,
    )
    payload = encode_payload(
        InferencePayload(
            container_id=route.container_id,
            vm_ip=LEFT_OUT if route.vm_ip is None else route.vm_ip,
            vm_id=LEFT_OUT if route.vm_id is None else route.vm_id,
            model_name=model_name,
            request=request,
        )
    )
    check_size(len(payload) + envelope_bytes, limit)
    return payload


class InferenceCall(Call):
    """One inference on its way, with the reply once it has come."""

    reply: InferenceReply
    _connection: Connection

    def read(self, connection: Connection, message: bytes) -> TcmError | None:
        """Take the reply while its connection is still held: the failure that it is, or None."""
        reply = decode_inference(message, connection.uuid, connection.secret)
        if reply.status == "FAILED":
            return failure_of_reply(decode_failure(reply.data, connection.secret), connection.secret)
        self._connection, self.reply = connection, reply
        return None

    def blame(self, error: TcmError, *, sound: bool) -> None:
        """Note where unreadable outputs came from, and give that socket up unless the manager is sound."""
        if isinstance(error, ProtocolError):
            error.uuid = self._connection.uuid
            if self._connection.pool is not None and not sound:
                self._connection.pool.retire(self._connection, "it sent outputs that cannot be read")


def is_readable(data: bytes) -> bool:
    """Whether outputs make arrays of some dtype, if not of the ones asked for."""
    try:
        decode_outputs(data)
    except ProtocolError:
        return False
    return True
