"""The answer of ``/ready``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tcm_sync._secrets import hide_in
from tcm_sync._tables import html_table
from tcm_sync._wire.quote import quote


@dataclass(frozen=True)
class Readiness:
    """The answer of ``/ready`` (docs/wire.rst, "Endpoints").

    It is true in a condition if the manager is ready. A manager that is shutting down still answers that it
    is ready, until its port closes.

    Attributes
    ----------
    ok : bool
        Whether the manager answered 200.
    status : str
        ``"ready"``, ``"not_ready"``, or ``"unreachable"`` if no answer came.
    reason : str or None
        The manager's short name for why it is not ready.
    detail : str or None
        The manager's description of why it is not ready.
    error_id : str or None
        The id under which the manager's log has the details.
    raw : mapping
        The whole answer, if it was a JSON object, with ``***`` for secrets of the client.
    triton : mapping of str to int
        How many Triton servers are ``registered`` with the manager, and how many are ``healthy``. Empty if
        the answer does not say.
    """

    ok: bool
    status: str
    reason: str | None = None
    detail: str | None = None
    error_id: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what is above, once more
    triton: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, status: int, body: bytes) -> Readiness:
        """Read the HTTP status and the body of an answer.

        Parameters
        ----------
        status : int
            The HTTP status.
        body : bytes
            The body, which may be anything.
        """
        try:
            answer = hide_in(msgspec.json.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = None
        ok = status == 200
        if not isinstance(answer, dict):
            return cls(ok, "ready" if ok else "not_ready", detail=f"HTTP {status}: {quote(body)}")
        texts = {key: answer.get(key) for key in ("reason", "detail", "error_id")}
        known = {key: quote(value) for key, value in texts.items() if isinstance(value, str)}
        servers = answer.get("triton")
        counts = servers.items() if isinstance(servers, dict) else ()
        triton = {quote(name): count for name, count in counts if type(count) is int}
        return cls(ok, quote(str(answer.get("status", status))), **known, triton=triton, raw=answer)

    @property
    def explanation(self) -> str:
        """The answer in one line."""
        parts = [f"{self.status}"] + [str(text) for text in (self.reason, self.detail) if text]
        if self.triton:
            parts.append(
                "Triton servers: " + quote(", ".join(f"{n} {name}" for name, n in self.triton.items()))
            )
        return ", ".join(parts) + (f" (error_id {self.error_id})" if self.error_id else "")

    def _repr_html_(self) -> str:
        """Show it as a table in a notebook."""
        texts = {"reason": self.reason, "detail": self.detail, "error_id": self.error_id}
        rows = [(name, text) for name, text in texts.items() if text is not None]
        servers = [(f"Triton servers {name}", count) for name, count in self.triton.items()]
        return html_table(f"Readiness: {self.status}", (), [*rows, *servers])

    def __bool__(self) -> bool:
        return self.ok
