"""The settings of a `LocalManager`, and their checks."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tcm_sync._arguments import check_flag, check_text, check_texts, check_whole
from tcm_sync._numbers import as_number, shown
from tcm_sync.errors import ConfigError

if TYPE_CHECKING:
    from tcm_sync.local.cloud_objects import OnStep

Claims = Mapping[str, object]
Tokens = Mapping[str, Collection[str] | Claims] | Collection[str] | Callable[[str], Claims] | None

_MAX_THREADS = 10_000
_MAX_SECONDS = 1e9  # seconds, which every kind of wait supports

#: The least and the most of each whole number.
_WHOLE: dict[str, tuple[int, int]] = {
    "port": (0, 65_535),
    "quantum": (1, sys.maxsize),
    "workers": (1, _MAX_THREADS),
    "queue_size": (1, sys.maxsize),
    "executor_queue_size": (1, sys.maxsize),
    "management_workers": (1, _MAX_THREADS),
    "management_queue_size": (1, sys.maxsize),
    "management_executor_queue_size": (1, sys.maxsize),
    "max_message_bytes": (1, sys.maxsize),
    "max_payload_bytes": (1, sys.maxsize),
    "messages_per_second": (1, sys.maxsize),
    "tenant_messages_per_second": (1, sys.maxsize),
    "auth_failures_per_minute": (1, sys.maxsize),
    "advise_after": (1, sys.maxsize),
}
_MAY_BE_NONE = frozenset(
    {
        "max_payload_bytes",
        "messages_per_second",
        "tenant_messages_per_second",
        "auth_failures_per_minute",
        "advise_after",
    }
)
_SECONDS = ("tick", "stream_timeout", "linger", "forget_after")
_TEXTS = ("host", "container_id", "transient_container_id", "vm_ip")
_FLAGS = ("shm", "triton_shm", "known_faults")


@dataclass(frozen=True)
class Settings:
    """The settings of a `LocalManager`, whose docstring describes them."""

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
        for name in _TEXTS:
            self._set(name, check_text(name, getattr(self, name)))
        for name in _FLAGS:
            self._set(name, check_flag(name, getattr(self, name), ConfigError))
        for name, (least, most) in _WHOLE.items():
            if getattr(self, name) is not None or name not in _MAY_BE_NONE:
                self._set(name, _whole(name, getattr(self, name), least, most))
        for name in _SECONDS:
            self._set(name, _seconds(name, getattr(self, name)))
        for name in ("readiness", "on_cloud_step"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(f"{name} must be callable, not {shown(getattr(self, name))}")
        if not isinstance(self.info, Mapping) or not all(map(callable, self.info.values())):
            raise ConfigError("info must map the names of actions to callables")
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            raise ConfigError(f"ssl_context must be an ssl.SSLContext, not {type(self.ssl_context).__name__}")
        _check_tokens(self.tokens)
        if self.container_id == self.transient_container_id:
            raise ConfigError(
                f"container_id and transient_container_id must differ; both are {self.container_id!r}"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # it is frozen


def _whole(name: str, value: object, least: int, most: int) -> int:
    number = check_whole(name, value, least)
    if number > most:
        raise ConfigError(f"{name} must be at most {most:,}, not {shown(value)}")
    return number


def _seconds(name: str, value: object) -> float:
    number = as_number(value)
    if number is None or not 0 <= number <= _MAX_SECONDS:
        raise ConfigError(f"{name} must be a number of at least 0 seconds, at most 1e9, not {shown(value)}")
    return number


def _check_tokens(tokens: object) -> None:
    if isinstance(tokens, str):
        raise ConfigError(f"tokens must be a collection of tokens, not one str; did you mean [{'...'!r}]?")
    if tokens is None or callable(tokens):
        return
    if not isinstance(tokens, Mapping):
        check_texts("tokens", tokens, "['...']")
        return
    for token, roles in tokens.items():
        check_text("tokens", token)
        if not isinstance(roles, Mapping):  # these are claims
            check_texts("the roles of a token", roles, "['inference']")
