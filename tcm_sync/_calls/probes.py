"""Asking over plain HTTP whether the manager is up (docs/wire.rst, "Endpoints")."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial

from tcm_sync._calls.lifecycle import Lifecycle
from tcm_sync._deadline import Deadline
from tcm_sync._handlers import is_of_handler
from tcm_sync._transport.authentication import Opener
from tcm_sync._transport.http import probe
from tcm_sync._transport.sockets import OpeningSockets
from tcm_sync._wire.readiness import Readiness
from tcm_sync.errors import CallTimeoutError, TcmError

_SLACK = 0.1  # seconds: the failure of the look itself says more than that it took too long
_ONE_LOOK = 5.0  # seconds that one look may take
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two looks, doubled each time


class Probes(Lifecycle):
    """What a client asks without a WebSocket."""

    def health(self, *, timeout: float = 5.0) -> bool:
        """Ask ``/health``: whether the manager's process answers.

        Parameters
        ----------
        timeout : float
            Seconds.
        """
        return self._probe("health", timeout).ok

    def ready(self, *, timeout: float = 5.0) -> Readiness:
        """Ask ``/ready``: whether the manager says that it can serve. A draining one says so too.

        Parameters
        ----------
        timeout : float
            Seconds.

        Returns
        -------
        Readiness
            True in a condition if the manager is ready.
        """
        return self._probe("ready", timeout)

    def wait_until_ready(self, timeout: float) -> Readiness:
        """Ask ``/ready`` until it says yes, with pauses that grow to a second.

        Parameters
        ----------
        timeout : float
            Seconds to go on for.

        Returns
        -------
        Readiness
            That says so.

        Raises
        ------
        CallTimeoutError
            It was not ready in time; the message has its last answer, and ``error_id`` what to look for in
            its log.
        ClientClosedError
            The client was closed meanwhile.
        """
        deadline = self._deadline(timeout)
        pause, answer = _FIRST_PAUSE, None
        while True:
            runtime = self._begin()
            readiness = self._ask("ready", deadline.at_most(_ONE_LOOK), runtime.opener.opening)
            if readiness.ok:
                return readiness
            if answer is None or not (readiness.status == "unreachable" and deadline.expired()):
                answer = readiness  # the last look may have had no time
            self._begin()  # it was not ready because the client was closed
            left = deadline.remaining()
            if left == 0.0:
                raise CallTimeoutError(
                    f"the manager was not ready within {deadline.timeout:.3g} s: {answer.explanation}",
                    error_id=answer.error_id,
                    elapsed=deadline.elapsed(),
                )
            runtime.sleep(pause if left is None else min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _probe(self, name: str, timeout: float) -> Readiness:
        return self._ask(name, self._deadline(timeout), OpeningSockets())

    def _ask(self, name: str, deadline: Deadline, opening: OpeningSockets) -> Readiness:
        runtime = self._runtime
        if runtime is not None:
            opener = runtime.opener
        else:
            opener = Opener(self._settings, OpeningSockets(), self._counts)
        # On a thread of its own: the resolution of a name knows no deadline.
        answer: Future[tuple[int, bytes]] = Future()
        try:
            self._prober.submit(partial(_look, answer, partial(probe, opener, name, deadline, opening)))
            left = deadline.remaining()
            wait([answer], None if left is None else min(left + _SLACK, threading.TIMEOUT_MAX))
            if not answer.done():
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
        finally:
            answer.cancel()  # a look that still waits for its turn


def _look(answer: Future[tuple[int, bytes]], look: Callable[[], tuple[int, bytes]]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(look())
    except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
        answer.set_exception(error)
