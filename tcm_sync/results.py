"""What calls return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from tcm_sync.wire.quote import quote


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
        try:
            return self._arrays[name]
        except KeyError:
            there = ", ".join(map(repr, self._arrays)) or "none"
            raise KeyError(f"no output {name!r}; model {self.model_name!r} returned {there}") from None

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.as_numpy(name)

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


@dataclass(frozen=True)
class Readiness:
    """What ``/ready`` said (docs/wire.rst, "Endpoints").

    It is true in a condition if the manager is ready. A draining manager says that it is, until its port
    closes, so this is a hint and no promise.

    Attributes
    ----------
    ok : bool
        Whether the manager answered 200.
    status : str
        ``"ready"``, ``"not_ready"``, or ``"unreachable"`` if no answer came.
    reason : str or None
        Why not, in a word.
    detail : str or None
        Why not, in more of them.
    error_id : str or None
        What an operator finds in the manager's log.
    raw : mapping
        The whole answer, where it was a JSON object.
    """

    ok: bool
    status: str
    reason: str | None = None
    detail: str | None = None
    error_id: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, status: int, body: bytes) -> Readiness:
        """Read the answer of a probe: its HTTP status and its body, whatever it is."""
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = None
        ok = status == 200
        if not isinstance(answer, dict):
            return cls(ok, "ready" if ok else "not_ready", detail=f"HTTP {status}: {quote(body)}")
        texts = {key: answer.get(key) for key in ("reason", "detail", "error_id")}
        known = {key: value for key, value in texts.items() if isinstance(value, str)}
        return cls(ok, str(answer.get("status", status)), **known, raw=answer)

    def __bool__(self) -> bool:
        return self.ok
