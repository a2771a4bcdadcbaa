"""Make chosen requests to a `LocalManager` fail, as requests to a real manager fail now and then."""

from __future__ import annotations

import difflib
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tcm_sync._arguments import check_choice, check_text, check_whole
from tcm_sync._numbers import as_number, shown
from tcm_sync._wire.failures import ADVISORY, TENANT_LIMIT
from tcm_sync.errors import ERROR_CODES, ConfigError
from tcm_sync.local.models import ModelFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Kind = Literal["inference", "management"]

#: The codes of the manager's own refusals, which come in place of a reply.
REFUSALS = tuple(code for code in ERROR_CODES if not code.startswith("TRITON_"))
#: The codes of inferences that failed behind the manager.
FAILURES = tuple(code for code in ERROR_CODES if code.startswith("TRITON_"))

SHUTDOWN, TENANT_LIMIT_REACHED = "SYSTEM_SHUTDOWN", TENANT_LIMIT

_CIRCUIT_OPEN = "TRITON_CIRCUIT_OPEN"
_CIRCUIT_PAUSE = 5  # seconds, which the recorded manager asks for
_REASON = "injected by fail_next"
_MAX_SECONDS = 1e9  # seconds, which every kind of wait supports


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes
    ----------
    call : str
        The method that was called, for messages.
    kind : str
        The kind of request that it waits for.
    model_name : str or None
        The model that it waits for; None is any.
    failure : callable or None
        Makes what the inference fails with, in place of running.
    refusal : str or None
        The code of the error that the request is refused with.
    seconds : float
        How long a worker waits before it runs the request.
    drops, garbles, repeats : bool
        Whether the connection is ended without a reply, half of the reply is sent, or it is sent twice.
    """

    call: str = ""
    kind: Kind = "inference"
    model_name: str | None = None
    failure: Callable[[], ModelFailure] | None = None
    refusal: str | None = None
    seconds: float = 0.0
    drops: bool = False
    garbles: bool = False
    repeats: bool = False

    def texts(self, reply: str, *, is_first: bool = True, is_last: bool = True) -> tuple[str, ...]:
        """Return what is sent for a message of the reply, of which a stream has several."""
        if self.garbles and is_first:
            return (reply[: len(reply) // 2],)
        return (reply, reply) if self.repeats and is_last else (reply,)


#: A request that is answered as usual.
NO_FAULT = Fault()


class PlannedFaults:
    """The faults of requests that are still to come, in order; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _planned
        self._planned: list[Fault] = []

    def add(self, fault: Fault, times: int) -> None:
        """Plan a fault for so many requests, after those that are planned."""
        with self._lock:
            self._planned += [fault] * times

    def take(self, kind: str, payload: Mapping[str, Any]) -> Fault:
        """Take out the first fault that fits a request; `NO_FAULT` if none does."""
        if not self._planned:
            return NO_FAULT
        with self._lock:
            for place, fault in enumerate(self._planned):
                if fault.kind == kind and fault.model_name in (None, payload.get("model_name")):
                    return self._planned.pop(place)
        return NO_FAULT

    def clear(self) -> None:
        """Drop what is planned."""
        with self._lock:
            self._planned.clear()

    def calls(self) -> tuple[str, ...]:
        """Return what is planned, as the calls that planned it."""
        with self._lock:
            return tuple(fault.call for fault in self._planned)


class FaultInjection:
    """The faults that can be planned for the next requests, each for one request that arrives.

    Requests take them in the order in which they were planned. A fault waits for an inference, or for a
    management job where ``kind="management"`` is passed; info requests are always answered. With `model_name`
    it waits for an inference of that model. All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._planned = PlannedFaults()

    @property
    def faults_left(self) -> tuple[str, ...]:
        """The faults that no request has taken yet, as the calls that planned them."""
        return self._planned.calls()

    def clear_faults(self) -> None:
        """Drop the faults that no request has taken yet."""
        self._planned.clear()

    def fail_next(
        self,
        code: str,
        *,
        times: int = 1,
        message: str | None = None,
        retry_after_seconds: float | None = None,
        model_name: str | None = None,
    ) -> None:
        """Have the next inferences fail with a code, without running the model.

        Parameters
        ----------
        code : str
            A code that begins with ``TRITON_`` (docs/wire.rst, "Error codes"). The table there has also what
            the reply says about repeating the request.
        times : int
            How many inferences fail.
        message : str, optional
            The reason, which becomes the end of the reply's message.
        retry_after_seconds : float, optional
            Seconds to wait before a retry, as the reply says. The default of ``TRITON_CIRCUIT_OPEN`` is 5, as
            with a real manager; other codes have none.
        model_name : str, optional
            Wait for an inference of this model.

        Raises
        ------
        ConfigError
            There is no such code, or it is one of `refuse_next`.
        """
        code = _checked_code(code, FAILURES, "fail_next", REFUSALS, "refuse_next")
        if code == _CIRCUIT_OPEN and retry_after_seconds is None:
            retry_after_seconds = _CIRCUIT_PAUSE
        if message is None:
            is_open = code == _CIRCUIT_OPEN
            message = f"CIRCUIT_OPEN: retry_after={retry_after_seconds:g}s" if is_open else _REASON
        message = check_text("message", message)
        failure = partial(ModelFailure, code, message, retry_after_seconds=retry_after_seconds)
        failure()  # which checks the seconds
        self._plan(f"fail_next({code!r})", times, model_name=model_name, failure=failure)

    def refuse_next(
        self, code: str, *, times: int = 1, kind: Kind = "inference", model_name: str | None = None
    ) -> None:
        """Have the manager refuse the next requests with an error in place of a reply. They do not run.

        After ``BACKPRESSURE_TENANT_LIMIT_REACHED`` and ``SYSTEM_SHUTDOWN`` it closes the connection.
        `LocalManager.shut_down` refuses everything from then on.

        Parameters
        ----------
        code : str
            ``BACKPRESSURE_QUEUE_FULL``, ``BACKPRESSURE_EXECUTOR_FULL``, ``BACKPRESSURE_TENANT_LIMIT_REACHED``
            or ``SYSTEM_SHUTDOWN`` (docs/wire.rst, "Error codes").
        times : int
            How many requests are refused.
        kind : {"inference", "management"}
            The requests that are refused.
        model_name : str, optional
            Wait for an inference of this model.

        Raises
        ------
        ConfigError
            There is no such code, or it is one of `fail_next`.
        """
        code = _checked_code(code, REFUSALS, "refuse_next", FAILURES, "fail_next")
        self._plan(f"refuse_next({code!r})", times, kind=kind, model_name=model_name, refusal=code)

    def drop_next(self, *, times: int = 1, kind: Kind = "inference", model_name: str | None = None) -> None:
        """End the connection of the next requests, without a close frame, when they arrive. They still run.

        Parameters
        ----------
        times : int
            How many requests lose their connection.
        kind : {"inference", "management"}
            The requests that lose it.
        model_name : str, optional
            Wait for an inference of this model.
        """
        self._plan("drop_next()", times, kind=kind, model_name=model_name, drops=True)

    def delay_next(
        self, seconds: float, *, times: int = 1, kind: Kind = "inference", model_name: str | None = None
    ) -> None:
        """Run the next requests so much later. Each holds a worker meanwhile, as a slow model does.

        Parameters
        ----------
        seconds : float
            How long they wait. `LocalManager.kill` ends the wait, `LocalManager.stop` does not.
        times : int
            How many requests wait.
        kind : {"inference", "management"}
            The requests that wait.
        model_name : str, optional
            Wait for an inference of this model.
        """
        number = as_number(seconds)
        if number is None or not 0 <= number <= _MAX_SECONDS:
            raise ConfigError(f"seconds must be a number of at least 0, at most 1e9, not {shown(seconds)}")
        self._plan(f"delay_next({number:g})", times, kind=kind, model_name=model_name, seconds=number)

    def garble_next(self, *, times: int = 1, kind: Kind = "inference", model_name: str | None = None) -> None:
        """Send only the first half of the next replies, which is not JSON; of a stream, of its first message.

        No manager does this; a broken proxy before it may.

        Parameters
        ----------
        times : int
            How many replies are cut.
        kind : {"inference", "management"}
            The requests whose replies are cut.
        model_name : str, optional
            Wait for an inference of this model.
        """
        self._plan("garble_next()", times, kind=kind, model_name=model_name, garbles=True)

    def stale_next(self, *, times: int = 1, kind: Kind = "inference", model_name: str | None = None) -> None:
        """Send the next replies twice, so that there is one that no request waits for.

        A client that does not notice it takes it for the reply to its next request: a wrong answer. With a
        real manager this happens when a uuid is used again (docs/wire.rst, "Envelope").

        Parameters
        ----------
        times : int
            How many replies are repeated.
        kind : {"inference", "management"}
            The requests whose replies are repeated.
        model_name : str, optional
            Wait for an inference of this model.
        """
        self._plan("stale_next()", times, kind=kind, model_name=model_name, repeats=True)

    def pass_next(self, times: int = 1, *, kind: Kind = "inference", model_name: str | None = None) -> None:
        """Answer the next requests as usual, so that the faults planned later wait for those after them.

        Parameters
        ----------
        times : int
            How many requests are answered as usual.
        kind : {"inference", "management"}
            The requests that are.
        model_name : str, optional
            Wait for an inference of this model.
        """
        self._plan("pass_next()", times, kind=kind, model_name=model_name)

    def _plan(
        self, call: str, times: int, *, kind: Kind = "inference", model_name: str | None = None, **what: Any
    ) -> None:
        times = check_whole("times", times)
        check_choice("kind", kind, ("inference", "management"), ConfigError)
        if model_name is not None:
            model_name = check_text("model_name", model_name)
            if kind != "inference":
                raise ConfigError("model_name is for inferences: a management job names its model in a block")
        self._planned.add(Fault(call, kind, model_name, **what), times)


def _checked_code(
    code: object, codes: tuple[str, ...], method: str, others: tuple[str, ...], other_method: str
) -> str:
    if isinstance(code, str) and code in codes:
        return code
    if isinstance(code, str) and code in others:
        raise ConfigError(f"{code} is a code of {other_method}, not of {method}")
    if code == ADVISORY:
        raise ConfigError(
            f"{ADVISORY} is a notice that a request is delayed, whose reply still comes: "
            "LocalManager(advise_after=1) sends it under load"
        )
    near = difflib.get_close_matches(str(code).upper(), ERROR_CODES, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"there is no code {shown(code)}: {meant}{method} takes {', '.join(codes)}")
