"""What all calls of a client have in common."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

from tcm_sync._arguments import check_text
from tcm_sync._calls.lifecycle import Lifecycle
from tcm_sync._reentry import entrance
from tcm_sync._wire.encode import size_of
from tcm_sync.errors import InputError, MessageTooLargeError, TcmError
from tcm_sync.retry import RetryPolicy
from tcm_sync.settings import Route, Unset

if TYPE_CHECKING:
    from tcm_sync._pool.call import Call


class Caller(Lifecycle):
    """Resolves what a call left out, and performs it."""

    @entrance
    def _perform(self, call: Call, policy: RetryPolicy | None, *, once: bool = False) -> int:
        """Send a call as `_perform_inside` does, unless this thread is in one already."""
        return self._perform_inside(call, policy, once=once)

    def _perform_inside(self, call: Call, policy: RetryPolicy | None, *, once: bool = False) -> int:
        """Send a call until it is answered or its failure is final; return how many attempts counted.

        Parameters
        ----------
        call : Call
            The answer is in it afterwards.
        policy : RetryPolicy or None
            When to repeat it.
        once : bool
            Whether it is never repeated when it may have run.
        """
        runtime = self._running()
        counts = self._counts
        if policy is not None and policy.attempt_timeout is not None and not once:
            call.attempt_timeout = policy.attempt_timeout
        try:
            try:
                call.attempt(runtime)
            except TcmError as error:
                first = error
            else:
                return 1
            from tcm_sync._calls.retrying import Attempts  # here: `import tcm_sync` goes without tenacity

            attempts = Attempts(policy, call.deadline, once=once, tell=counts.repeated)
            attempts.go_on(first, partial(call.attempt, runtime), runtime.sleep)
            return attempts.counted + 1
        except TcmError as error:
            self._failed(error, call)
            raise
        except BaseException as error:
            counts.failed(error)
            raise
        finally:
            counts.called()

    def _failed(self, error: TcmError, call: Call) -> None:
        """Put the facts of the call into its error, and count it."""
        self._counts.failed(error)
        if call.target is not None:
            error.route, error.model_name = call.target
        error.elapsed = call.deadline.elapsed()
        error.outcome_unknown = error.outcome_unknown or call.may_have_run
        if isinstance(error, MessageTooLargeError) and error.size is None and call.payload:  # 1009
            self._learn_message_limit(error.limit, size_of(call.payload) + self._envelope_bytes(call.kind))

    def _policy(self, retry: RetryPolicy | Unset | None) -> RetryPolicy | None:
        policy = self._settings.retry if isinstance(retry, Unset) else retry
        if policy is not None and not isinstance(policy, RetryPolicy):
            raise InputError(f"retry must be a RetryPolicy or None, not {type(policy).__name__}")
        return policy

    def _route(self, vm_ip: str | None, container_id: str | None, vm_id: str | None) -> Route:
        route = self._settings.route
        if container_id is not None:
            return _route_of(container_id, vm_ip, vm_id)
        if route is None:
            raise InputError(
                "nothing says where to run: give the client a route=Route(container_id), or the call a "
                "container_id="
            )
        if vm_ip is None and vm_id is None:
            return route
        return _route_of(
            route.container_id,
            route.vm_ip if vm_ip is None else vm_ip,
            route.vm_id if vm_id is None else vm_id,
        )


def _route_of(container_id: str, vm_ip: str | None, vm_id: str | None) -> Route:
    """Return a route, which is checked when it is named for the first time."""
    try:
        return _known_route(container_id, vm_ip, vm_id)
    except (TypeError, ValueError):  # no text: the error of a route names the argument
        return Route(container_id, vm_ip, vm_id)


#: Typed, since subclasses of str are equal to what they hold.
_known_route = lru_cache(maxsize=256, typed=True)(Route)


def checked_model_name(model_name: object) -> str:
    """Return the name of a model, unless it is none."""
    if type(model_name) is str and model_name and model_name.isascii():
        return model_name
    return check_text("model_name", model_name, InputError)
