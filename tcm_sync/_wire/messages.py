"""The messages of the protocol, in both directions, as frozen msgspec structs (docs/wire.rst, "Envelope").

Unknown keys and messages of unknown types (`Unknown`) are ignored, since newer managers may add them.
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

# --- client to manager ---


class ClientIdentity(Struct, frozen=True, omit_defaults=True):
    """The identity that the client states; a manager in strict mode takes it from the token instead."""

    sub: str | None = None
    tenant_id: str | None = None
    roles: tuple[str, ...] = ()


class AuthRequest(Struct, frozen=True, omit_defaults=True):
    """The payload of the first message on every socket. Empty fields are not sent."""

    token: str | None = None
    client: ClientIdentity | None = None
    capability: tuple[str, ...] = ()


class InputTensor(Struct, frozen=True):
    """One input of an inference; `data` is JSON text nested as `shape` says."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: Raw


class SharedTensor(Struct, frozen=True):
    """One input of an inference that lies in shared memory (docs/wire.rst, "Shared memory")."""

    name: str
    shm_key: str
    offset: int
    byte_size: int
    shape: tuple[int, ...]
    dtype: str


class InferenceRequest(Struct, frozen=True):
    """The request to the model: either all inputs are references, or none.

    The client encodes it without inputs and adds their texts later, so empty fields must not be omitted.
    """

    inputs: tuple[InputTensor, ...] | tuple[SharedTensor, ...] = ()
    protocol: str = "http"
    allow_transient: bool | UnsetType = UNSET
    output_name: str | UnsetType = UNSET


class StepRequest(Struct, frozen=True):
    """One step of a pipeline."""

    model_name: str
    inputs: Raw
    name: str | UnsetType = UNSET
    protocol: str | UnsetType = UNSET


class InferencePayload(Struct, frozen=True):
    """The payload of an inference: a model and its request, or a pipeline in their place."""

    container_id: str
    model_name: str | UnsetType = UNSET
    request: InferenceRequest | UnsetType = UNSET
    pipeline: tuple[StepRequest, ...] | UnsetType = UNSET
    vm_ip: str | UnsetType = UNSET
    vm_id: str | UnsetType = UNSET


# --- manager to client ---


class Envelope(Struct, frozen=True):
    """A message from the manager, with its payload as raw JSON."""

    type: str
    uuid: str | None = None
    payload: Raw = Raw(b"null")


class AuthOk(Struct, frozen=True):
    """The reply to an accepted auth. Without capabilities in the request there are none in the reply."""

    capability: tuple[str, ...] = ()


class InferenceReply(Struct, frozen=True):
    """The payload of the reply to an inference.

    `status` is COMPLETED or FAILED, and in streams START and ONGOING too. In a large message `data` is an
    `SplitJson`; ``bytes(data)`` is the JSON text of either.
    """

    status: str
    model_name: str | None = None
    data: Raw = Raw(b"null")


class InferenceMessage(Struct, frozen=True):
    """The reply to an inference with its envelope, which the waiting caller decodes once."""

    type: str
    uuid: str
    payload: InferenceReply


class Failure(Struct, frozen=True):
    """The data of a FAILED inference that has a code."""

    code: str
    message: str = ""
    retriable: bool = False
    retry_after_seconds: object = None  # a number; another value is as none, and must not hide the failure


class InfoReply(Struct, frozen=True):
    """The payload of an ``info_response``, which has no uuid; `job_id` is that of the request."""

    status: str
    request_type: str | None = None
    job_id: str | None = None
    data: Raw = Raw(b"null")
    error: str | None = None


class ManagementReply(Struct, frozen=True):
    """The payload of the reply to a management job; `data` is a str when `status` is False."""

    status: bool
    data: Raw = Raw(b"null")


class ErrorReply(Struct, frozen=True):
    """The payload of an ``error``. With `dropped_type` the request did not run."""

    message: str = ""
    code: str | None = None
    dropped_type: str | None = None


class Alert(Struct, frozen=True):
    """A notification of the manager, sent to its first client only. It is not a reply."""

    message: str = ""
    error_type: str | None = None
    timestamp: object = None  # it is not used


class Unknown(Struct, frozen=True):
    """A message of a type that this version does not support."""

    type: str


Payload = AuthOk | InferenceReply | InfoReply | ManagementReply | ErrorReply | Alert | Unknown
