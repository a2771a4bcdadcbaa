"""What ``/ready`` answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tcm_sync._wire.quote import quote


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
    triton : mapping of str to int
        How many Triton servers are ``registered`` with the manager, and how many are ``healthy``. Empty if it
        did not say.
    """

    ok: bool
    status: str
    reason: str | None = None
    detail: str | None = None
    error_id: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    triton: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, status: int, body: bytes) -> Readiness:
        """Read the answer of a probe: its HTTP status and its body, whatever it is.

        Parameters
        ----------
        status : int
            The HTTP status.
        body : bytes
            The body, whatever it is.
        """
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = None
        ok = status == 200
        if not isinstance(answer, dict):
            return cls(ok, "ready" if ok else "not_ready", detail=f"HTTP {status}: {quote(body)}")
        texts = {key: answer.get(key) for key in ("reason", "detail", "error_id")}
        known = {key: quote(value) for key, value in texts.items() if isinstance(value, str)}
        told = answer.get("triton")
        counts = told.items() if isinstance(told, dict) else ()
        triton = {quote(name): count for name, count in counts if type(count) is int}
        return cls(ok, str(answer.get("status", status)), **known, triton=triton, raw=answer)

    @property
    def explanation(self) -> str:
        """What it said, in a line."""
        said = [f"{self.status}"] + [str(text) for text in (self.reason, self.detail) if text]
        if self.triton:
            said.append("Triton servers: " + ", ".join(f"{n} {name}" for name, n in self.triton.items()))
        return ", ".join(said) + (f" (error_id {self.error_id})" if self.error_id else "")

    def __bool__(self) -> bool:
        return self.ok
