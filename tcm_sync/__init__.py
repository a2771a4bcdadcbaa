"""Blocking, thread-safe client of the Triton Client Manager."""

import typing as _typing

from tcm_sync._calls.deployment import Deployment
from tcm_sync._calls.options import Inputs
from tcm_sync._calls.pipelines import PipelineStep
from tcm_sync._calls.streams import InferStream
from tcm_sync._shm.references import SHMReference
from tcm_sync._tensors import InferenceInput, ModelSignature, TensorSpec
from tcm_sync._wire.readiness import Readiness
from tcm_sync.client import TcmClient
from tcm_sync.errors import (
    ERROR_CODES,
    KNOWN_FAULTS,
    RETRIABLE,
    AuthenticationError,
    BackpressureError,
    CallTimeoutError,
    CircuitOpenError,
    ClientClosedError,
    ConfigDownloadError,
    ConfigError,
    ConnectFailedError,
    ConnectionLostError,
    ContractError,
    InferenceError,
    InferenceFailedError,
    InputError,
    KnownFaultError,
    ManagementError,
    MessageTooLargeError,
    MissingArgumentError,
    MissingInstanceError,
    ModelFileError,
    ModelLoadError,
    ModelMissingError,
    ModelNotReadyError,
    PayloadTooLargeError,
    PermissionDeniedError,
    PoolTimeoutError,
    ProtocolError,
    RateLimitedError,
    ReentrantCallError,
    ServerCreationError,
    ServerNotReadyError,
    ShapeMismatchError,
    SharedMemoryRegistrationError,
    SharedMemoryUnavailableError,
    ShuttingDownError,
    StreamBusyError,
    StreamTimeoutError,
    TcmError,
    TritonAuthError,
    TritonError,
    TritonNetworkError,
    TritonOverloadedError,
    TritonTimeoutError,
)
from tcm_sync.model import Model
from tcm_sync.results import InferResult, ManagementResult, QueueStats
from tcm_sync.retry import RetryPolicy
from tcm_sync.settings import UNSET, AuthContext, BatchPolicy, Route, TlsSettings
from tcm_sync.stats import ClientStats

__version__: str  # looked up when it is asked for

__all__ = [
    "ERROR_CODES",
    "KNOWN_FAULTS",
    "RETRIABLE",
    "UNSET",
    "AuthContext",
    "AuthenticationError",
    "BackpressureError",
    "BatchPolicy",
    "CallTimeoutError",
    "CircuitOpenError",
    "ClientClosedError",
    "ClientStats",
    "ConfigDownloadError",
    "ConfigError",
    "ConnectFailedError",
    "ConnectionLostError",
    "ContractError",
    "Deployment",
    "InferResult",
    "InferStream",
    "InferenceError",
    "InferenceFailedError",
    "InferenceInput",
    "InputError",
    "Inputs",
    "KnownFaultError",
    "ManagementError",
    "ManagementResult",
    "MessageTooLargeError",
    "MissingArgumentError",
    "MissingInstanceError",
    "Model",
    "ModelFileError",
    "ModelLoadError",
    "ModelMissingError",
    "ModelNotReadyError",
    "ModelSignature",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PipelineStep",
    "PoolTimeoutError",
    "ProtocolError",
    "QueueStats",
    "RateLimitedError",
    "Readiness",
    "ReentrantCallError",
    "RetryPolicy",
    "Route",
    "SHMReference",
    "ServerCreationError",
    "ServerNotReadyError",
    "ShapeMismatchError",
    "SharedMemoryRegistrationError",
    "SharedMemoryUnavailableError",
    "ShuttingDownError",
    "StreamBusyError",
    "StreamTimeoutError",
    "TcmClient",
    "TcmError",
    "TensorSpec",
    "TlsSettings",
    "TritonAuthError",
    "TritonError",
    "TritonNetworkError",
    "TritonOverloadedError",
    "TritonTimeoutError",
]


def _name_by_this_package() -> None:
    """Have what users meet named by where it is imported from, in pickles and messages too."""
    for name in __all__:
        public = globals()[name]
        if getattr(public, "__module__", "").startswith("tcm_sync._"):
            if hasattr(public, "__struct_fields__"):  # whose annotations are read in the module that it names
                public.__annotations__ = _typing.get_type_hints(public)
            public.__module__ = __name__


_name_by_this_package()

if not _typing.TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """Look up the version, which reads the metadata of the installed package."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("tcm-sync")
