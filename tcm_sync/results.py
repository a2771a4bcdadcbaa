"""What calls return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from tcm_sync.errors import InputError, ProtocolError

#: How many jobs, waiting and running ones together, the executors of a manager accept as it is shipped.
_SHIPPED_SIZES = {"info": 100, "management": 50, "inference": 200}


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

        Parameters
        ----------
        name : str
            The output's name in the model.

        Returns
        -------
        ndarray
            The array; writable, and the caller's own.

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

    Users are uuids that sent such work and are not forgotten yet, closed connections included. A job that
    runs shows in one count alone: ``executor_*_available`` is lower by one while it waits for a worker and
    while it runs. An idle manager has 0 in ``*_total_queued`` and ``executor_*_pending``, and its full size
    in ``executor_*_available``; `unfinished` does that sum.

    Attributes
    ----------
    info_users : int
    management_users : int
    inference_users : int
    total_users : int
    total_queued, info_total_queued, management_total_queued, inference_total_queued : int
        Jobs that have not been passed on to the workers. They are within some 10 ms, so this is nearly
        always 0.
    executor_info_pending, executor_management_pending, executor_inference_pending : int
        Jobs that wait for a worker. **Those that run are not counted.**
    executor_info_available, executor_management_available, executor_inference_available : int
        How many more jobs are accepted. As shipped, an idle manager has 100, 50 and 200 (settings of the
        manager); each job that waits or runs takes one, and one that hangs does not give it back.
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

        Parameters
        ----------
        data : mapping
            The data of the answer.

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

    def unfinished(self, kind: Literal["info", "management", "inference"], *, size: int | None = None) -> int:
        """Count the jobs of one kind that are queued, wait for a worker, or run.

        The manager does not report how many jobs run. They follow from the size of its executor, which it
        does not report either.

        Parameters
        ----------
        kind : str
            ``"management"``, ``"inference"`` or ``"info"``.
        size : int, optional
            How many jobs of this kind the manager's executor accepts, waiting and running ones together.
            Left out, the size that managers are shipped with: 50, 200 or 100. **If the operator has changed
            it, pass the new size**, or the result is wrong: an idle manager shows it as
            ``executor_*_available``.

        Returns
        -------
        int
            Jobs of this kind that are not finished.

        Raises
        ------
        InputError
            The kind is not known, or more jobs are accepted than `size` allows: the size is wrong.
        """
        if kind not in _SHIPPED_SIZES:
            raise InputError(f"kind must be one of {', '.join(_SHIPPED_SIZES)}, not {kind!r:.80}")
        size = _SHIPPED_SIZES[kind] if size is None else size
        available: int = getattr(self, f"executor_{kind}_available")
        if available > size:
            raise InputError(
                f"the manager accepts {available} more {kind} jobs, so its executor is larger than {size}: "
                f"pass size=, the value of executor_{kind}_available on an idle manager"
            )
        queued: int = getattr(self, f"{kind}_total_queued")
        return queued + size - available

    def __repr__(self) -> str:
        kinds = ("info", "management", "inference")
        pending = sum(getattr(self, f"executor_{kind}_pending") for kind in kinds)
        available = "/".join(str(getattr(self, f"executor_{kind}_available")) for kind in kinds)
        return (
            f"<QueueStats {self.total_users} users, {self.total_queued} queued, {pending} wait for a worker, "
            f"{available} more accepted (info/management/inference)>"
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
        ``[vm_ip, vm_id]``, for ``"delete_vm"`` None.
    attempts : int
        How many attempts it took that count, the successful one included.
    elapsed : float
        Seconds from the start of the call to its end.
    parts : mapping of str to str
        Of a deletion, what became of its ``"server"``, ``"container"`` and ``"vm"``: each was ``"deleted"``,
        or was ``"missing"`` (see `TcmClient.delete`). Empty for other jobs.
    """

    action: str
    data: Any
    attempts: int
    elapsed: float
    parts: Mapping[str, str] = field(default_factory=dict)
