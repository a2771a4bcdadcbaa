"""The exceptions that this package raises, and the table of the manager's error codes.

::

    TcmError
    ├── ConnectionLostError (ConnectionError)     the connection ended while a reply was awaited
    ├── ConnectFailedError (ConnectionError)      no socket could be opened
    ├── AuthenticationError                       the manager refused the token or the identity
    ├── PermissionDeniedError                     the identity lacks a role
    ├── CallTimeoutError (TimeoutError)           sent, and not answered within the deadline
    ├── PoolTimeoutError (TimeoutError)           no socket became free within the deadline
    ├── ShuttingDownError                         the manager is draining
    ├── BackpressureError                         the manager dropped the request: too much work
    ├── RateLimitedError                          over the manager's limit of messages a second
    ├── ProtocolError                             a message that breaks the protocol
    ├── MessageTooLargeError                      a message over its limit, in either direction
    ├── ContractError (ValueError)                the manager refused the request's form
    ├── InputError (ValueError)                   refused by the client; nothing was sent
    ├── ConfigError (ValueError)                  a setting that cannot work
    ├── ModelFileError (ValueError)               a model file that cannot be read
    ├── ManagementError                           a management job failed
    ├── ClientClosedError                         the client was closed
    ├── ReentrantCallError (RuntimeError)         a call inside another one of the same thread
    └── InferenceError                            the inference failed behind the manager
        ├── TritonTimeoutError, TritonNetworkError, TritonOverloadedError, CircuitOpenError,
        │   ServerNotReadyError, ModelNotReadyError, ConfigDownloadError         (retriable)
        ├── ShapeMismatchError, ModelMissingError, TritonAuthError,
        │   ModelLoadError, SharedMemoryUnavailableError, SharedMemoryRegistrationError,
        │   ServerCreationError, MissingArgumentError, MissingInstanceError, TritonError   (fatal)
        ├── InferenceFailedError
        │   └── KnownFaultError                   a temporary fault of the manager: sent again
        │       └── StreamBusyError               the server runs one stream at a time
        ├── PayloadTooLargeError                  413: over the manager's payload budget
        └── StreamTimeoutError                    a stream reached the manager's time limit

Every class survives ``pickle`` with all its fields, so that it can cross a process boundary.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from tcm_sync._base_error import InputError as InputError
from tcm_sync._base_error import TcmError as TcmError
from tcm_sync._base_error import _rebuild as _rebuild  # under this name it is in pickles

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConnectionLostError(TcmError, ConnectionError):
    """The connection ended before the reply came. Whether the request ran is unknown."""

    retriable = True


class ConnectFailedError(TcmError, ConnectionError):
    """No socket to the manager could be opened; nothing was sent."""

    retriable = True


class AuthenticationError(TcmError):
    """The manager refused the token or the identity. The same one is refused again."""


class PermissionDeniedError(TcmError):
    """The identity lacks the role that the request needs: see ``roles=`` of `AuthContext`."""


class CallTimeoutError(TcmError, TimeoutError):
    """The request was sent and no reply came within the deadline. It may still be running.

    Attributes
    ----------
    advisories : int
        How many notices of delay (``BACKPRESSURE_INSUFFICIENT_BUDGET``) the manager sent before the deadline.
    """

    advisories: int = 0


class PoolTimeoutError(TcmError, TimeoutError):
    """Every socket was busy for as long as the call could wait; nothing was sent."""


class ShuttingDownError(TcmError):
    """The manager is shutting down. `outcome_unknown` says whether the request may have run."""

    code = "SYSTEM_SHUTDOWN"
    retriable = True


class BackpressureError(TcmError):
    """The manager dropped the request, since a queue was full or a quota used up. It did not run."""

    retriable = True


class RateLimitedError(TcmError):
    """The client sent more messages a second than the manager allows. The request did not run."""

    retriable = True


class ProtocolError(TcmError):
    """A message that the protocol does not allow. Its socket was closed."""


class MessageTooLargeError(TcmError):
    """A message is over a size limit: the client's, found before sending, or the manager's (close code 1009).

    Attributes
    ----------
    size : int or None
        Bytes of the message, if known.
    limit : int or None
        The most bytes that a message may have, if known.
    """

    size: int | None = None
    limit: int | None = None


class ContractError(TcmError, ValueError):
    """The manager refused the form of the request. Correct the request; the same one is refused again."""


class ConfigError(TcmError, ValueError):
    """A setting of the client that cannot work."""


class ModelFileError(TcmError, ValueError):
    """A model file that cannot be read or run."""


class ManagementError(TcmError):
    """A management job ran and failed.

    Attributes
    ----------
    parts : mapping of str to str
        For a deletion, the outcome for its ``"server"``, ``"container"`` and ``"vm"``: ``"deleted"``,
        ``"missing"`` or ``"failed"``. Empty for other jobs, and if the manager does not report it.
    """

    parts: Mapping[str, str] = MappingProxyType({})


class ClientClosedError(TcmError):
    """The client was closed before the call or during it."""


class ReentrantCallError(TcmError, RuntimeError):
    """The thread is already inside a call of this client, such as in a signal handler; nothing was sent."""


class InferenceError(TcmError):
    """The inference failed behind the manager. Codes that are not in `ERROR_CODES` have this class."""


class TritonTimeoutError(InferenceError):
    """Triton did not answer the manager in time."""

    code = "TRITON_TIMEOUT"
    retriable = True


class TritonNetworkError(InferenceError):
    """The manager could not reach Triton."""

    code = "TRITON_NETWORK"
    retriable = True


class TritonOverloadedError(InferenceError):
    """Triton refused the request because it has too much work."""

    code = "TRITON_OVERLOADED"
    retriable = True


class CircuitOpenError(InferenceError):
    """The manager does not send requests to this Triton for a while, after repeated failures."""

    code = "TRITON_CIRCUIT_OPEN"
    retriable = True


class ServerNotReadyError(InferenceError):
    """The Triton server is not ready yet."""

    code = "TRITON_SERVER_NOT_READY"
    retriable = True


class ModelNotReadyError(InferenceError):
    """The model is not ready yet."""

    code = "TRITON_MODEL_NOT_READY"
    retriable = True


class ConfigDownloadError(InferenceError):
    """The manager could not fetch the model's configuration."""

    code = "TRITON_CONFIG_DOWNLOAD_FAILED"
    retriable = True


class InferenceFailedError(InferenceError):
    """Triton refused or failed the inference.

    Attributes
    ----------
    max_batch_size : int or None
        The most rows that the model takes, if it refused more.
    """

    code = "TRITON_INFERENCE_FAILED"
    max_batch_size: int | None = None


class KnownFaultError(InferenceFailedError):
    """A temporary fault of the manager that it reports as permanent: see `KNOWN_FAULTS`."""

    retriable = True


class StreamBusyError(KnownFaultError):
    """The server of the container runs one stream at a time, and another one is running."""


class ShapeMismatchError(InferenceError):
    """A tensor's data does not have its stated shape, or the shape is not the model's."""

    code = "TRITON_SHAPE_MISMATCH"


class ModelMissingError(InferenceError):
    """There is no such model on the server."""

    code = "TRITON_MODEL_MISSING"


class TritonAuthError(InferenceError):
    """Triton refused the manager's credentials."""

    code = "TRITON_AUTH_FAILED"


class ModelLoadError(InferenceError):
    """Triton could not load the model."""

    code = "TRITON_MODEL_LOAD_FAILED"


class SharedMemoryUnavailableError(InferenceError):
    """The manager found no shared memory under the key."""

    code = "TRITON_SHM_UNAVAILABLE"


class SharedMemoryRegistrationError(InferenceError):
    """Triton could not register the shared memory."""

    code = "TRITON_SHM_REGISTRATION_FAILED"


class ServerCreationError(InferenceError):
    """The Triton server could not be created."""

    code = "TRITON_SERVER_CREATION_FAILED"


class MissingArgumentError(InferenceError):
    """The request lacks an argument."""

    code = "TRITON_MISSING_ARGUMENT"


class MissingInstanceError(InferenceError):
    """The manager has no such instance."""

    code = "TRITON_MISSING_INSTANCE"


class TritonError(InferenceError):
    """A failure that Triton does not explain further."""

    code = "TRITON_ERROR"


class PayloadTooLargeError(InferenceError):
    """The tensors are over the manager's payload budget (413). Never repeated.

    Attributes
    ----------
    estimated_bytes : int or None
        The size that the manager estimates from shapes and datatypes.
    limit_bytes : int or None
        Its budget for one request.
    """

    code = "TRITON_INFERENCE_FAILED"
    estimated_bytes: int | None = None
    limit_bytes: int | None = None


class StreamTimeoutError(InferenceError):
    """A stream reached the manager's limit on the duration of a stream."""

    code = "TRITON_INFERENCE_FAILED"


class CodeRule(NamedTuple):
    """What the client does for a code of the manager: the class to raise, and whether to retry."""

    error: type[TcmError]
    retriable: bool


#: Every error code of the manager (docs/wire.rst, "Error codes").
ERROR_CODES: Mapping[str, CodeRule] = MappingProxyType(
    {
        "SYSTEM_SHUTDOWN": CodeRule(ShuttingDownError, retriable=True),
        "BACKPRESSURE_QUEUE_FULL": CodeRule(BackpressureError, retriable=True),
        "BACKPRESSURE_EXECUTOR_FULL": CodeRule(BackpressureError, retriable=True),
        "BACKPRESSURE_TENANT_LIMIT_REACHED": CodeRule(BackpressureError, retriable=True),
        "TRITON_TIMEOUT": CodeRule(TritonTimeoutError, retriable=True),
        "TRITON_NETWORK": CodeRule(TritonNetworkError, retriable=True),
        "TRITON_OVERLOADED": CodeRule(TritonOverloadedError, retriable=True),
        "TRITON_CIRCUIT_OPEN": CodeRule(CircuitOpenError, retriable=True),
        "TRITON_SERVER_NOT_READY": CodeRule(ServerNotReadyError, retriable=True),
        "TRITON_MODEL_NOT_READY": CodeRule(ModelNotReadyError, retriable=True),
        "TRITON_CONFIG_DOWNLOAD_FAILED": CodeRule(ConfigDownloadError, retriable=True),
        "TRITON_INFERENCE_FAILED": CodeRule(InferenceFailedError, retriable=False),
        "TRITON_SHAPE_MISMATCH": CodeRule(ShapeMismatchError, retriable=False),
        "TRITON_MODEL_MISSING": CodeRule(ModelMissingError, retriable=False),
        "TRITON_AUTH_FAILED": CodeRule(TritonAuthError, retriable=False),
        "TRITON_MODEL_LOAD_FAILED": CodeRule(ModelLoadError, retriable=False),
        "TRITON_SHM_UNAVAILABLE": CodeRule(SharedMemoryUnavailableError, retriable=False),
        "TRITON_SHM_REGISTRATION_FAILED": CodeRule(SharedMemoryRegistrationError, retriable=False),
        "TRITON_SERVER_CREATION_FAILED": CodeRule(ServerCreationError, retriable=False),
        "TRITON_MISSING_ARGUMENT": CodeRule(MissingArgumentError, retriable=False),
        "TRITON_MISSING_INSTANCE": CodeRule(MissingInstanceError, retriable=False),
        "TRITON_ERROR": CodeRule(TritonError, retriable=False),
    }
)


#: The classes of errors that pass with time: the same inference may succeed later. They are those whose
#: `retriable` is true, and `PoolTimeoutError`, after which nothing was sent. Task queues take the tuple as it
#: is: ``@app.task(autoretry_for=tcm_sync.RETRIABLE)``. `CallTimeoutError` and `StreamTimeoutError` are not in
#: it, since the request may still run and take as long again. A management job that failed with one of these
#: may have run: check `outcome_unknown` before it is repeated.
RETRIABLE: tuple[type[TcmError], ...] = (
    BackpressureError,
    CircuitOpenError,
    ConfigDownloadError,
    ConnectFailedError,
    ConnectionLostError,
    KnownFaultError,
    ModelNotReadyError,
    PoolTimeoutError,
    RateLimitedError,
    ServerNotReadyError,
    ShuttingDownError,
    TritonNetworkError,
    TritonOverloadedError,
    TritonTimeoutError,
)


class KnownFault(NamedTuple):
    """A temporary failure that the manager reports as permanent, recognised by its text.

    Attributes
    ----------
    text : str
        A part of the manager's message.
    error : type of KnownFaultError
        The class to raise.
    recording : str
        The recording of a real manager that shows it (tests/wire/transcripts.jsonl).
    meaning : str
        The cause, for the message of the error.
    """

    text: str
    error: type[KnownFaultError]
    recording: str
    meaning: str


#: Faults of manager 2.0.0 after which the same request is sent again (docs/manager.rst).
KNOWN_FAULTS: tuple[KnownFault, ...] = (
    KnownFault(
        "Cannot switch to a different thread",
        KnownFaultError,
        "inference.registered_http_workers",
        "the manager's one HTTP client of the server was used by another worker the last time",
    ),
    KnownFault(
        "cannot start another stream with one already running",
        StreamBusyError,
        "stream.registered_two_at_once",
        "the manager's one gRPC client of the server runs one stream at a time",
    ),
)
