"""Every envelope of the protocol, both ways, as frozen msgspec structs (docs/wire.rst, "Envelope").

Unknown keys are ignored, and so are messages of unknown types (`Unknown`): newer managers add both.
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

# --- client to manager ---


class ClientIdentity(Struct, frozen=True, omit_defaults=True):
    """Who says that it is calling; a manager in strict mode goes by the token instead."""

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
    """What is asked of the model: all inputs by reference, or none.

    Ours are written without inputs, whose texts are put in later: so it must not omit what is empty.
    """

    inputs: tuple[InputTensor, ...] | tuple[SharedTensor, ...] = ()
    protocol: str = "http"
    allow_transient: bool | UnsetType = UNSET
    output_name: str | UnsetType = UNSET


class StepRequest(Struct, frozen=True):
    """One of several models run one after another."""

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
    """What every message from the manager has, its payload not yet looked into."""

    type: str
    uuid: str | None = None
    payload: Raw = Raw(b"null")


class AuthOk(Struct, frozen=True):
    """The answer to a good auth. A manager that was not asked for capabilities names none."""

    capability: tuple[str, ...] = ()


class InferenceReply(Struct, frozen=True):
    """The payload of an inference's answer.

    `status` is COMPLETED or FAILED, and in streams START and ONGOING too. `data` of a large message is an
    `Outline`, and like any other data it becomes its text by ``bytes``.
    """

    status: str
    model_name: str | None = None
    data: Raw = Raw(b"null")


class InferenceMessage(Struct, frozen=True):
    """An inference's answer with its envelope: what a waiting caller decodes, once."""

    type: str
    uuid: str
    payload: InferenceReply


class Failure(Struct, frozen=True):
    """The data of a FAILED inference, where the manager gives it a code."""

    code: str
    message: str = ""
    retriable: bool = False
    retry_after_seconds: float | None = None


class InfoReply(Struct, frozen=True):
    """The payload of an ``info_response``; it carries no uuid, `job_id` is the caller's own."""

    status: str
    request_type: str | None = None
    job_id: str | None = None
    data: Raw = Raw(b"null")
    error: str | None = None


class ManagementReply(Struct, frozen=True):
    """The payload of a management job's answer; `data` is a str when `status` is False."""

    status: bool
    data: Raw = Raw(b"null")


class ErrorReply(Struct, frozen=True):
    """The payload of an ``error``. `dropped_type` proves that the request was not run."""

    message: str = ""
    code: str | None = None
    dropped_type: str | None = None


class Alert(Struct, frozen=True):
    """Unasked-for news of the manager, sent to its first client only; answers nothing."""

    message: str = ""
    error_type: str | None = None
    timestamp: float | None = None


class Unknown(Struct, frozen=True):
    """A message of a type that this version does not know."""

    type: str


Payload = AuthOk | InferenceReply | InfoReply | ManagementReply | ErrorReply | Alert | Unknown
