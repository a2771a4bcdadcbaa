"""Asking over plain HTTP whether the manager is up (docs/wire.rst, "Endpoints")."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tcm_sync._calls.options import start_deadline
from tcm_sync._futures import Future
from tcm_sync._handlers import is_of_handler
from tcm_sync._tracebacks import shortened, shortened_errors
from tcm_sync._transport.http import probe
from tcm_sync._transport.opener import Opener
from tcm_sync._transport.sockets import OpeningSockets
from tcm_sync._wire.readiness import Readiness
from tcm_sync.errors import CallTimeoutError, TcmError

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._deadline import Deadline

_SLACK = 0.1  # seconds: the failure of the probe itself says more than that it took too long
_PROBE_TIMEOUT = 5.0  # seconds that one probe may take
_FIRST_PAUSE, _MAX_PAUSE = 0.05, 1.0  # seconds between two probes, doubled each time


def ask(core: Core, name: str, timeout: float) -> Readiness:
    """Ask ``/health`` or ``/ready`` once."""
    return _ask(core, name, start_deadline(timeout, None), core.prober.opening)


def wait_until_ready(core: Core, timeout: float) -> Readiness:
    """Ask ``/ready`` until the manager is ready, with pauses that grow to a second."""
    deadline = start_deadline(timeout, None)
    pause, answer = _FIRST_PAUSE, None
    while True:
        runtime = core.begin()
        readiness = _ask(core, "ready", deadline.at_most(_PROBE_TIMEOUT), runtime.opener.opening)
        if readiness.ok:
            return readiness
        if answer is None or not (readiness.status == "unreachable" and deadline.expired()):
            answer = readiness  # the last probe may have had no time
        core.begin()  # raises if it was not ready because the client was closed
        left = deadline.remaining()
        if left == 0.0:
            raise CallTimeoutError(
                f"the manager was not ready within {deadline.timeout:.3g} s: {answer.explanation}",
                error_id=answer.error_id,
                elapsed=deadline.elapsed(),
            )
        with shortened_errors:
            runtime.sleep(pause if left is None else min(pause, left))
        pause = min(2 * pause, _MAX_PAUSE)


def _ask(core: Core, name: str, deadline: Deadline, opening: OpeningSockets) -> Readiness:
    runtime = core.runtime
    if runtime is not None:
        opener = runtime.opener
    else:
        opener = Opener(core.settings, OpeningSockets(), core.counts, core.addresses)
    # On a thread of its own: the resolution of a name has no deadline.
    answer: Future[tuple[int, bytes]] = Future()
    try:
        core.prober.submit(partial(_run_probe, answer, partial(probe, opener, name, deadline, opening)))
        left = deadline.remaining()
        if not answer.wait(None if left is None else left + _SLACK):
            detail = f"no answer of {opener.endpoint.authority} within {deadline.elapsed():.3g} s"
            detail += opener.credentials.running()
            return Readiness(ok=False, status="unreachable", detail=detail)
        return Readiness.read(*answer.result())
    except TcmError as error:
        if is_of_handler(error):
            raise
        return Readiness(ok=False, status="unreachable", detail=error.message)
    except RuntimeError as error:
        if is_of_handler(error):
            raise
        return Readiness(ok=False, status="unreachable", detail=f"no thread to ask with: {error}")
    except BaseException as error:
        shortened(error)
        raise
    finally:
        answer.cancel()  # a probe that still waits for its turn


def _run_probe(answer: Future[tuple[int, bytes]], ask: Callable[[], tuple[int, bytes]]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - the waiting caller raises it
        answer.set_exception(error)
