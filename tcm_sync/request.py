"""One inference as a request: what it is without its inputs, its JSON text, and its reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET as LEFT_OUT
from msgspec import Struct

from tcm_sync.errors import ProtocolError, TcmError
from tcm_sync.tensors import check_finite, decode_outputs, encode_inputs, minimum_json_bytes
from tcm_sync.transport.call import Call
from tcm_sync.wire.decode import decode_failure, decode_inference
from tcm_sync.wire.encode import check_size, encode_payload
from tcm_sync.wire.failures import failure_of_reply
from tcm_sync.wire.messages import (
    InferencePayload,
    InferenceReply,
    InferenceRequest,
    InputTensor,
    SharedTensor,
)

if TYPE_CHECKING:
    from tcm_sync.config import Route, Unset
    from tcm_sync.retry import RetryPolicy
    from tcm_sync.sharing import Transport
    from tcm_sync.tensors import OutputDtypes, Tensor
    from tcm_sync.transport.connection import Connection


class Plan(Struct, frozen=True, eq=False):
    """An inference but for its inputs, checked."""

    model_name: str
    route: Route
    allow_transient: bool
    dtypes: OutputDtypes
    timeout: float | Unset | None
    policy: RetryPolicy | None
    transport: Transport = "json"


def encode_tensors(
    plan: Plan,
    tensors: tuple[Tensor, ...],
    *,
    limit: int,
    envelope_bytes: int,
    stream_of: str | None = None,
) -> bytes:
    """Write a request with its tensors as JSON: the same text for every attempt, on whatever socket.

    Parameters
    ----------
    plan : Plan
        The rest of it.
    tensors : tuple of Tensor
        Checked, but for infinities.
    limit : int
        The most bytes that the message may have.
    envelope_bytes : int
        What of them its envelope takes.
    stream_of : str, optional
        The output to be streamed, if it is to be.

    Raises
    ------
    InputError
        A tensor holds an infinity.
    MessageTooLargeError
        The text would be too long.
    """
    check_size(minimum_json_bytes(tensors) + envelope_bytes, limit, at_least=True)
    check_finite(tensors)
    payload = encode_request(plan, encode_inputs(tensors), stream_of=stream_of)
    check_size(len(payload) + envelope_bytes, limit)
    return payload


def encode_request(
    plan: Plan,
    inputs: tuple[InputTensor, ...] | tuple[SharedTensor, ...],
    *,
    stream_of: str | None = None,
) -> bytes:
    """Write a request whose inputs are in the form of the wire, however long it gets."""
    route = plan.route
    return encode_payload(
        InferencePayload(
            container_id=route.container_id,
            vm_ip=LEFT_OUT if route.vm_ip is None else route.vm_ip,
            vm_id=LEFT_OUT if route.vm_id is None else route.vm_id,
            model_name=plan.model_name,
            request=InferenceRequest(
                inputs=inputs,
                protocol="http" if stream_of is None else "grpc",
                allow_transient=True if plan.allow_transient else LEFT_OUT,
                output_name=LEFT_OUT if stream_of is None else stream_of,
            ),
        )
    )


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
