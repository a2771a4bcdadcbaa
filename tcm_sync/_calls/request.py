"""One inference as a request: what it is without its inputs, its JSON text, and its reply."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import UNSET as LEFT_OUT

from tcm_sync._pool.call import Call
from tcm_sync._tensors import decode_outputs, encode_inputs, minimum_json_bytes
from tcm_sync._wire.decode import decode_failure, decode_inference
from tcm_sync._wire.encode import Pieces, check_size, encode_part, size_of
from tcm_sync._wire.failures import failure_of_reply
from tcm_sync._wire.messages import (
    InferencePayload,
    InferenceReply,
    InferenceRequest,
    SharedTensor,
)
from tcm_sync.errors import ProtocolError, TcmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcm_sync._calls.options import CallOptions
    from tcm_sync._deadline import Deadline
    from tcm_sync._tensors import Tensor
    from tcm_sync._transport.connection import Connection
    from tcm_sync._wire.decode import Data


_NO_INPUTS = b'"inputs":[]'


def encode_tensors(
    options: CallOptions,
    tensors: tuple[Tensor, ...],
    *,
    limit: int,
    envelope_bytes: int,
    stream_of: str | None = None,
    deadline: Deadline | None = None,
) -> Pieces:
    """Write a request with its tensors as JSON: the same text for every attempt, on whatever socket.

    Parameters
    ----------
    options : CallOptions
        The rest of it.
    tensors : tuple of Tensor
        Checked; infinities are not.
    limit : int
        The most bytes that the message may have.
    envelope_bytes : int
        What of them its envelope takes.
    stream_of : str, optional
        The output to stream, if the call is a stream.
    deadline : Deadline, optional
        The call's, if its time has begun.

    Raises
    ------
    InputError
        A tensor holds an infinity.
    CallTimeoutError
        The deadline passed meanwhile.
    MessageTooLargeError
        The text would be too long.
    """
    if (bound := minimum_json_bytes(tensors) + envelope_bytes) > limit:
        check_size(bound, limit, at_least=True)
    payload = encode_request(options, encode_inputs(tensors, deadline), stream_of)
    if (size := size_of(payload) + envelope_bytes) > limit:
        check_size(size, limit)
    return payload


def encode_references(options: CallOptions, references: tuple[SharedTensor, ...]) -> Pieces:
    """Write a request whose tensors lie in shared memory."""
    return encode_request(options, (encode_part(references)[1:-1],))


def encode_request(options: CallOptions, inputs: Iterable[bytes], stream_of: str | None = None) -> Pieces:
    """Write a request whose inputs are written already, one after the other, however long it gets."""
    route = options.route
    prefix, suffix = _text_around_inputs(
        route.container_id, route.vm_ip, route.vm_id, options.model_name, options.allow_transient, stream_of
    )
    return (prefix, *inputs, suffix)


@lru_cache(maxsize=256)
def _text_around_inputs(
    container_id: str,
    vm_ip: str | None,
    vm_id: str | None,
    model_name: str,
    allow_transient: bool,
    stream_of: str | None,
) -> tuple[bytes, bytes]:
    """Write a request without its inputs: what is before them, and what is behind."""
    text = encode_part(
        InferencePayload(
            container_id=container_id,
            vm_ip=LEFT_OUT if vm_ip is None else vm_ip,
            vm_id=LEFT_OUT if vm_id is None else vm_id,
            model_name=model_name,
            request=InferenceRequest(
                protocol="http" if stream_of is None else "grpc",
                allow_transient=True if allow_transient else LEFT_OUT,
                output_name=LEFT_OUT if stream_of is None else stream_of,
            ),
        )
    )
    prefix, suffix = text.split(_NO_INPUTS)  # once: within a text its quotes would be escaped
    return prefix + b'"inputs":[', b"]" + suffix


class InferenceCall(Call):
    """One inference in flight, with the reply once it has come."""

    reply: InferenceReply
    _connection: Connection

    def read(self, connection: Connection, message: bytes) -> TcmError | None:
        """Take the reply while its connection is still held: the failure that it is, or None."""
        reply = decode_inference(message, connection.uuid)
        if reply.status == "FAILED":
            return failure_of_reply(decode_failure(reply.data))
        self._connection, self.reply = connection, reply
        return None

    def note_unreadable(self, error: TcmError, *, readable: Callable[[], bool]) -> None:
        """Note which socket unreadable outputs came from; close it unless other dtypes can read them."""
        error.outcome_unknown = True
        if isinstance(error, ProtocolError):
            error.uuid = self._connection.uuid
            if self._connection.pool is not None and not readable():
                self._connection.pool.expire(self._connection, "it sent outputs that cannot be read")


def is_readable(data: Data, deadline: Deadline | None = None) -> bool:
    """Whether outputs make arrays of some dtype, if not of the ones asked for, and before the deadline."""
    try:
        decode_outputs(data, deadline=deadline)
    except TcmError:
        return False
    return True
