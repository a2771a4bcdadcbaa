"""What calls return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from tcm_sync.errors import ProtocolError


class InferResult(Mapping[str, "np.ndarray[Any, Any]"]):
    """The outputs of one inference: a read-only mapping of names to arrays.

    The arrays are the caller's own: writable, sharing no memory with anything else.

    Attributes
    ----------
    model_name : str
        The model that answered.
    raw : bytes
        The outputs as the manager sent them, JSON text.
    attempts : int
        How many attempts it took that count (see `RetryPolicy`), the successful one included.
    elapsed : float
        Seconds from the start of the call to its end.
    """

    __slots__ = ("_arrays", "_raw", "attempts", "elapsed", "model_name")

    def __init__(
        self,
        model_name: str,
        arrays: dict[str, np.ndarray[Any, Any]],
        raw: bytes,
        attempts: int,
        elapsed: float,
    ) -> None:
        self.model_name = model_name
        self.attempts = attempts
        self.elapsed = elapsed
        self._arrays = arrays
        self._raw = raw

    @property
    def raw(self) -> bytes:
        """The outputs as the manager sent them, JSON text."""
        return bytes(self._raw)

    def as_numpy(self, name: str) -> np.ndarray[Any, Any]:
        """Return the output called `name`.

        Raises
        ------
        KeyError
            There is no such output; the error lists those there are.
        """
        return self[name]

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        try:
            return self._arrays[name]
        except KeyError:
            there = ", ".join(map(repr, self._arrays)) or "none"
            raise KeyError(f"no output {name!r}; model {self.model_name!r} returned {there}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    # Two results are not compared: their arrays have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {a.dtype}{list(a.shape)}" for name, a in self._arrays.items())
        return f"<InferResult {self.model_name!r} {{{outputs}}} {self.elapsed * 1e3:.3g} ms>"

    def __reduce__(self) -> tuple[Any, ...]:
        return InferResult, (self.model_name, self._arrays, self.raw, self.attempts, self.elapsed)


@dataclass(frozen=True, repr=False)
class QueueStats:
    """How many users and jobs a manager has (docs/wire.rst, "Info").

    Users are uuids that sent such work and are not forgotten yet; queued jobs wait in their users' queues;
    pending ones are with the workers, those that run included, of whom so many more are available.

    Attributes
    ----------
    info_users : int
    management_users : int
    inference_users : int
    total_users : int
    total_queued : int
    info_total_queued : int
    management_total_queued : int
    inference_total_queued : int
    executor_info_pending : int
    executor_management_pending : int
    executor_inference_pending : int
    executor_info_available : int
    executor_management_available : int
    executor_inference_available : int
    extra : mapping
        What else the manager told.
    """

    info_users: int
    management_users: int
    inference_users: int
    total_users: int
    total_queued: int
    info_total_queued: int
    management_total_queued: int
    inference_total_queued: int
    executor_info_pending: int
    executor_management_pending: int
    executor_inference_pending: int
    executor_info_available: int
    executor_management_available: int
    executor_inference_available: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> QueueStats:
        """Read the data of the answer.

        Raises
        ------
        ProtocolError
            A count is missing, or is none.
        """
        names = [each.name for each in fields(cls) if each.name != "extra"]
        for name in names:
            count = data.get(name)
            if isinstance(count, bool) or not isinstance(count, int):
                found = f"is of type {type(count).__name__}" if name in data else "is missing"
                raise ProtocolError(f"queue_stats: {name} {found}; info('queue_stats') returns what there is")
        extra = {name: value for name, value in data.items() if name not in names}
        return cls(**{name: data[name] for name in names}, extra=extra)

    def __repr__(self) -> str:
        running = (
            self.executor_info_pending + self.executor_management_pending + self.executor_inference_pending
        )
        return (
            f"<QueueStats {self.total_users} users, {self.total_queued} queued, {running} with the workers>"
        )


@dataclass(frozen=True)
class ManagementResult:
    """What a management job returned.

    Attributes
    ----------
    action : str
        What was asked for.
    data : object
        The data of the answer, as JSON has it: for ``"creation"`` an object, for ``"create_vm"`` the list
        ``[vm_ip, vm_id]``, for ``"create_container"`` the list ``[container_id, docker_config]``.
    attempts : int
        How many attempts it took that count, the successful one included.
    elapsed : float
        Seconds from the start of the call to its end.
    """

    action: str
    data: Any
    attempts: int
    elapsed: float
