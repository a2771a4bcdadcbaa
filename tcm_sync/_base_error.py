"""`TcmError`, from which every error is derived, and `Route`.

They are in one file since each needs the other: an error has the route of its call as an attribute, and a
route whose fields are wrong raises an `InputError`. Users import them from `tcm_sync`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tcm_sync._secrets import hide
from tcm_sync._texts import text_fault
from tcm_sync._tracebacks import shown_by_ipython


class TcmError(Exception):
    """The base class of every error of this package.

    Parameters
    ----------
    message : str
        What failed, why, and what to do. Secrets in it are replaced by ``***``.
    **fields
        Any of the attributes below.

    Attributes
    ----------
    code : str or None
        The manager's error code, if it gave one.
    retriable : bool
        Whether the same request may succeed when it is sent again.
    retry_after : float or None
        Seconds to wait before the next attempt, as the manager asks, from 0 to 60.
    attempts : int
        How many attempts the call made, of those that `RetryPolicy` counts; 0 if nothing was sent.
    history : tuple of TcmError
        The failures of the attempts before this one, oldest first.
    outcome_unknown : bool
        Whether the request may have run although no result came back, in any of the attempts.
    model_name : str or None
        The model that was called.
    route : Route or None
        The route of the call.
    uuid : str or None
        The uuid of the socket that was used, by which the manager's log names the client.
    elapsed : float or None
        Seconds from the start of the call to this error.
    error_id : str or None
        The id from ``/ready`` under which the manager's log has the details, if the manager was not ready.
    chunks : tuple of str
        The chunks that a stream had received before it failed.
    """

    code: str | None = None
    retriable: bool = False
    retry_after: float | None = None
    attempts: int = 0
    history: tuple[TcmError, ...] = ()
    outcome_unknown: bool = False
    model_name: str | None = None
    route: Route | None = None
    uuid: str | None = None
    elapsed: float | None = None
    error_id: str | None = None
    chunks: tuple[str, ...] = ()

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(hide(message))
        for name, value in fields.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
            setattr(self, name, value)

    @property
    def message(self) -> str:
        """What failed, why, and what to do, without facts of the call: equal failures have equal texts."""
        return str(self.args[0])

    def __str__(self) -> str:
        facts = []
        if self.model_name is not None:
            facts.append(f"model {self.model_name!r}")
        if self.route is not None:
            facts.append(f"container {self.route.container_id!r}")
        if self.uuid is not None:
            facts.append(f"uuid {self.uuid}")
        if self.error_id is not None:
            facts.append(f"error_id {self.error_id}")
        if self.attempts > 1:
            facts.append(f"{self.attempts} attempts")
        if self.elapsed is not None:
            facts.append(f"{self.elapsed:.3g} s")
        return f"{self.message} ({', '.join(facts)})" if facts else self.message

    def _render_traceback_(self) -> list[str]:
        """Show the message and the lines of the user's code; IPython asks for it."""
        return shown_by_ipython(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, vars(self))


def _rebuild(kind: type[TcmError], message: str, fields: dict[str, Any]) -> TcmError:
    error = kind(message)
    vars(error).update(fields)  # notes and other attributes that users have set, too
    return error


class InputError(TcmError, ValueError):
    """The arguments of a call cannot be sent; nothing was sent."""


@dataclass(frozen=True)
class Route:
    """Where an inference runs.

    Parameters
    ----------
    container_id : str
        The container of the Triton server.
    vm_ip : str, optional
        The address of its VM. The manager fills it in for a registered container, and does not check it
        (docs/wire.rst, "Inference").
    vm_id : str, optional
        The VM's id.
    """

    container_id: str
    vm_ip: str | None = None
    vm_id: str | None = None

    def __post_init__(self) -> None:
        for name in ("container_id", "vm_ip", "vm_id"):
            value = getattr(self, name)
            if name == "container_id" or value is not None:
                if fault := text_fault(f"route.{name}", value):
                    raise InputError(fault)
                object.__setattr__(self, name, str.__str__(value))


# Tracebacks and pickles name the public modules.
TcmError.__module__ = InputError.__module__ = _rebuild.__module__ = "tcm_sync.errors"
Route.__module__ = "tcm_sync.settings"
