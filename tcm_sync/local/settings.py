"""What a `LocalManager` is made with, checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tcm_sync.errors import ConfigError
from tcm_sync.numeric import as_number, as_whole, shown

if TYPE_CHECKING:
    import ssl

    from tcm_sync.local.cloud import OnStep

Claims = Mapping[str, object]
Tokens = Mapping[str, Collection[str] | Claims] | Collection[str] | Callable[[str], Claims] | None

_AT_LEAST = {
    "port": 0,
    "tick": 0,
    "quantum": 1,
    "workers": 1,
    "queue_size": 1,
    "executor_queue_size": 1,
    "management_workers": 1,
    "management_queue_size": 1,
    "management_executor_queue_size": 1,
    "stream_timeout": 0,
    "max_message_bytes": 1,
    "max_payload_bytes": 1,
    "messages_per_second": 1,
    "tenant_messages_per_second": 1,
    "auth_failures_per_minute": 1,
    "advise_after": 1,
    "linger": 0,
    "forget_after": 0,
}
_SECONDS = ("tick", "stream_timeout", "linger", "forget_after")
_MAY_BE_NONE = (
    "max_payload_bytes",
    "messages_per_second",
    "tenant_messages_per_second",
    "auth_failures_per_minute",
    "advise_after",
)
_HIGHEST_PORT = 65_535


@dataclass(frozen=True)
class Settings:
    """The settings of a `LocalManager`, whose docstring tells what each means."""

    host: str
    port: int
    container_id: str
    transient_container_id: str
    vm_ip: str
    tokens: Tokens = field(repr=False)
    tick: float
    quantum: int
    workers: int
    queue_size: int
    executor_queue_size: int
    management_workers: int
    management_queue_size: int
    management_executor_queue_size: int
    stream_timeout: float
    max_message_bytes: int
    max_payload_bytes: int | None
    messages_per_second: int | None
    tenant_messages_per_second: int | None
    auth_failures_per_minute: int | None
    advise_after: int | None
    linger: float
    shm: bool
    triton_shm: bool
    info: Mapping[str, Callable[[], object]]
    readiness: Callable[[], object] | None
    on_cloud_step: OnStep | None
    forget_after: float
    known_faults: bool
    ssl_context: ssl.SSLContext | None

    def __post_init__(self) -> None:
        if isinstance(self.tokens, str):
            raise ConfigError(
                f"tokens must be a collection of tokens, not one str; did you mean [{'...'!r}]?"
            )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            number = as_number(value) if name in _SECONDS else as_whole(value)
            if number is None or not number >= least:
                what = "number" if name in _SECONDS else "whole number"
                raise ConfigError(f"{name} must be a {what} of at least {least}, not {shown(value)}")
            object.__setattr__(self, name, number)
        if self.port > _HIGHEST_PORT:
            raise ConfigError(f"port must be {_HIGHEST_PORT} at most, not {self.port}")
        if self.container_id == self.transient_container_id:
            raise ConfigError(
                f"container_id and transient_container_id must differ; both are {self.container_id!r}"
            )
