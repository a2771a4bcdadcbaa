"""What a call is made with beside its inputs: each option checked, or else the client's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from tcm_sync._arguments import check_choice, check_flag, check_seconds, check_text
from tcm_sync._deadline import Deadline
from tcm_sync._process import notice_fork
from tcm_sync._shm.policy import Transport
from tcm_sync._tensors import OutputDtypes, check_output_dtypes
from tcm_sync.errors import ConfigError, InputError
from tcm_sync.retry import RetryPolicy
from tcm_sync.settings import UNSET, Route, Settings, Unset

if TYPE_CHECKING:
    import numpy.typing as npt

_TRANSPORTS = ("auto", "json", "shm")


class SupportsArray(Protocol):
    """Anything that numpy can make an array of: an ndarray, another tensor, a column of a table."""

    def __array__(self) -> Any:
        """Return it as an ndarray."""


#: What `infer` takes as inputs: arrays by name, a sequence of `InferenceInput`, `SHMReference` or dicts, or
#: one array-like.
Inputs = Mapping[str, Any] | Sequence[Any] | SupportsArray
OnError = Literal["raise", "return"]
Where = tuple[str | None, str | None, str | None]  # vm_ip, container_id and vm_id, as a call names them


class Defaults(Struct, frozen=True):
    """What a client, or a view of it, uses for the options that a call leaves out."""

    timeout: float | None
    policy: RetryPolicy | None
    route: Route | None
    dtypes: OutputDtypes
    transport: Transport

    @classmethod
    def of(cls, settings: Settings) -> Defaults:
        """Take those that a client was made with."""
        return cls(settings.timeout, settings.retry, settings.route, check_output_dtypes(None), "auto")

    def changed(
        self,
        *,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
        route: Route | Unset | None = UNSET,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
    ) -> Defaults:
        """Return the same with some replaced.

        Raises
        ------
        InputError
            One of them cannot be, named.
        """
        if route is not UNSET and not isinstance(route, (Route, type(None))):
            raise InputError(f"route must be a Route or None, not {type(route).__name__}")
        return Defaults(
            self.timeout if timeout is UNSET else checked_timeout(timeout),
            self.policy if retry is UNSET else checked_policy(retry),
            self.route if route is UNSET else route,
            self.dtypes if output_dtypes is UNSET else check_output_dtypes(output_dtypes),
            self.transport if transport is UNSET else checked_transport(transport),
        )


class CallOptions(Struct, frozen=True, eq=False):
    """An inference without its inputs, checked."""

    model_name: str
    route: Route
    allow_transient: bool
    dtypes: OutputDtypes
    timeout: float | None
    policy: RetryPolicy | None
    transport: Transport = "json"


def call_options(
    defaults: Defaults,
    model_name: str,
    where: Where = (None, None, None),
    allow_transient: bool = False,
    output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | Unset | None = UNSET,
    timeout: float | Unset | None = UNSET,
    retry: RetryPolicy | Unset | None = UNSET,
    transport: Transport | Unset = UNSET,
) -> CallOptions:
    """Check the keywords that the kinds of inference share, and fill in what was left out.

    Raises
    ------
    InputError
        One of them cannot be, named, or there is no route.
    """
    if allow_transient is not False:
        allow_transient = check_flag("allow_transient", allow_transient)
    route = defaults.route
    vm_ip, container_id, vm_id = where
    if route is None or not (vm_ip is container_id is vm_id is None):
        route = route_for(defaults, vm_ip, container_id, vm_id)
    return CallOptions(
        checked_model_name(model_name),
        route,
        allow_transient,
        defaults.dtypes if output_dtypes is UNSET else check_output_dtypes(output_dtypes),
        defaults.timeout if timeout is UNSET else checked_timeout(timeout),
        defaults.policy if retry is UNSET else checked_policy(retry),
        defaults.transport if transport is UNSET else checked_transport(transport),
    )


def changed_options(
    options: CallOptions,
    allow_transient: bool | Unset = UNSET,
    output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | Unset | None = UNSET,
    timeout: float | Unset | None = UNSET,
    retry: RetryPolicy | Unset | None = UNSET,
    transport: Transport | Unset = UNSET,
) -> CallOptions:
    """Return the options of a bound model with those replaced that a call of it names.

    Raises
    ------
    InputError
        One of them cannot be, named.
    """
    if allow_transient is output_dtypes is timeout is retry is transport is UNSET:
        return options
    return CallOptions(
        options.model_name,
        options.route,
        options.allow_transient
        if allow_transient is UNSET
        else check_flag("allow_transient", allow_transient),
        options.dtypes if output_dtypes is UNSET else check_output_dtypes(output_dtypes),
        options.timeout if timeout is UNSET else checked_timeout(timeout),
        options.policy if retry is UNSET else checked_policy(retry),
        options.transport if transport is UNSET else checked_transport(transport),
    )


def route_for(defaults: Defaults, vm_ip: str | None, container_id: str | None, vm_id: str | None) -> Route:
    """Return the route that a call names, completed by the client's where they are of one container.

    Raises
    ------
    InputError
        There is none.
    """
    route = defaults.route
    if container_id is not None:
        return _route_of(container_id, vm_ip, vm_id)
    if route is None:
        raise InputError(
            "there is no route: pass route=Route(container_id) to the client, or container_id= to the call"
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
        return _checked_route(container_id, vm_ip, vm_id)
    except (TypeError, ValueError):  # not hashable: the error of a route names the argument
        return Route(container_id, vm_ip, vm_id)


#: Typed, since subclasses of str are equal to what they hold.
_checked_route = lru_cache(maxsize=256, typed=True)(Route)


def checked_model_name(model_name: object) -> str:
    """Return the name of a model, or raise an InputError."""
    if type(model_name) is str and model_name and model_name.isascii():
        return model_name
    return check_text("model_name", model_name, InputError)


def checked_timeout(timeout: float | None) -> float | None:
    """Return the seconds that a call may take, or raise an InputError; None is no limit."""
    if timeout is None:
        return None
    try:
        return check_seconds("timeout", timeout)
    except ConfigError as error:
        raise InputError(error.message) from None


def checked_policy(retry: object) -> RetryPolicy | None:
    """Return a retry policy, or raise an InputError; None is one attempt."""
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InputError(f"retry must be a RetryPolicy or None, not {type(retry).__name__}")
    return retry


def checked_transport(transport: Transport) -> Transport:
    """Return how tensors travel, or raise an InputError."""
    check_choice("transport", transport, _TRANSPORTS)
    return transport


def start_deadline(timeout: float | Unset | None, default: float | None) -> Deadline:
    """Begin a call that takes so many seconds at most.

    Raises
    ------
    InputError
        The timeout is no such number.
    """
    notice_fork()
    return Deadline(default if isinstance(timeout, Unset) else checked_timeout(timeout))
