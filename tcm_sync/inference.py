"""One inference: from its arguments to a message, and from the reply to arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from tcm_sync.errors import ProtocolError, TcmError
from tcm_sync.tensors import (
    OutputDtypes,
    check_inputs,
    decode_outputs,
    encode_inputs,
    minimum_json_bytes,
)
from tcm_sync.wire.decode import decode_failure, decode_inference
from tcm_sync.wire.encode import check_size, encode_payload
from tcm_sync.wire.failures import failure_of_reply
from tcm_sync.wire.messages import InferencePayload, InferenceReply, InferenceRequest

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    from tcm_sync.config import Route
    from tcm_sync.deadline import Deadline
    from tcm_sync.transport.connection import Connection
    from tcm_sync.transport.runtime import Runtime


def encode_inference(
    model_name: str, route: Route, inputs: object, *, allow_transient: bool, limit: int, envelope_bytes: int
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
        inputs=encode_inputs(tensors), allow_transient=True if allow_transient else UNSET
    )
    payload = encode_payload(
        InferencePayload(
            container_id=route.container_id,
            vm_ip=UNSET if route.vm_ip is None else route.vm_ip,
            vm_id=UNSET if route.vm_id is None else route.vm_id,
            model_name=model_name,
            request=request,
        )
    )
    check_size(len(payload) + envelope_bytes, limit)
    return payload


class InferenceCall:
    """One inference on its way, with the reply once it has come.

    Parameters
    ----------
    runtime : Runtime
        What it runs on.
    target : (Route, str)
        Where, and which model.
    payload : bytes
        What `encode_inference` made.
    deadline : Deadline
        Of the whole call.
    patient : bool
        Whether to wait for a manager that cannot be reached.
    """

    def __init__(
        self,
        runtime: Runtime,
        target: tuple[Route, str],
        payload: bytes,
        deadline: Deadline,
        *,
        patient: bool,
    ) -> None:
        self._runtime = runtime
        self._target = target
        self._payload = payload
        self._deadline = deadline
        self._patient = patient
        self._connection: Connection | None = None
        self._reply: InferenceReply | None = None

    def attempt(self) -> InferenceReply:
        """Send the request once; return its reply or raise what came instead."""
        self._runtime.attempt(self._target, self._payload, self._deadline, self._read, patient=self._patient)
        assert self._reply is not None
        return self._reply

    def decode(self, reply: InferenceReply, dtypes: OutputDtypes) -> dict[str, np.ndarray[Any, Any]]:
        """Make arrays of a reply, its socket being in use again already."""
        try:
            return decode_outputs(reply.data, dtypes)
        except ProtocolError as error:
            assert self._connection is not None
            error.uuid = self._connection.uuid
            if not _is_readable(reply):
                self._runtime.pool.retire(self._connection, "it sent outputs that cannot be read")
            raise

    def _read(self, connection: Connection, message: bytes) -> TcmError | None:
        """Take the whole reply while its socket is still held: the failure that it is, or None."""
        reply = decode_inference(message, connection.uuid, connection.secret)
        if reply.status == "FAILED":
            return failure_of_reply(decode_failure(reply.data, connection.secret), connection.secret)
        self._connection, self._reply = connection, reply
        return None


def _is_readable(reply: InferenceReply) -> bool:
    """Whether the outputs make arrays of some dtype, if not of the ones asked for: the manager is sound."""
    try:
        decode_outputs(reply.data)
    except ProtocolError:
        return False
    return True
