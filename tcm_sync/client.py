"""`TcmClient`: what a user calls."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tcm_sync.config import (
    UNSET,
    AuthContext,
    Route,
    Settings,
    TlsSettings,
    Unset,
    check_seconds,
    settings_from_env,
)
from tcm_sync.deadline import Deadline
from tcm_sync.errors import ClientClosedError, ConfigError, InputError, TcmError
from tcm_sync.inference import InferenceCall, encode_inference
from tcm_sync.process import refuse_green_threads, watch
from tcm_sync.results import InferResult, Readiness
from tcm_sync.retry import Attempts, RetryPolicy
from tcm_sync.tensors import check_output_dtypes
from tcm_sync.transport.http import probe
from tcm_sync.transport.opening import Opener, fresh_uuid
from tcm_sync.transport.runtime import Runtime
from tcm_sync.transport.sockets import OpeningSockets
from tcm_sync.wire.encode import encode_message

if TYPE_CHECKING:
    from typing import Self

    import numpy.typing as npt


class TcmClient:
    """A blocking client of one manager, for any number of threads.

    It opens by itself on the first call; making one connects to nothing. One background thread reads all of
    its sockets. After a fork the child makes its own; a pickled client carries its settings, the token
    included, and opens anew where it is unpickled.

    Parameters
    ----------
    uri : str
        ``ws://HOST:PORT/ws`` or ``wss://…``.
    auth : AuthContext, optional
        Who is calling.
    route : Route, optional
        Where inferences run that name no container themselves.
    pool_size : int
        The most sockets at a time. The manager serves five a tenant; callers beyond wait here, in turn.
    pool_timeout : float, optional
        Seconds: the most that a call waits for a socket. The call's deadline bounds it anyway.
    max_requests : int
        Requests after which a socket is replaced by a new one, less up to a fifth.
    max_idle, max_lifetime : float
        Seconds after which an unused socket is closed, and any socket is replaced, less up to a fifth.
    messages_per_second : float, optional
        The manager's limit for one socket, if it is known; otherwise it is learned from a refusal.
    timeout : float or None
        Seconds that a call may take in all, unless it says otherwise; None is no limit. The manager's own
        limit is 30 s, and nothing cancels work, so less than that adds load when it is reached.
    connect_timeout : float
        Seconds for opening one socket; a manager that was never reached fails calls after it.
    ping_interval : float
        Seconds of quiet after which a socket is pinged; quiet for as long again, it is dead.
    retry : RetryPolicy or None
        When failed calls are repeated; None: never.
    max_message_bytes : int
        The manager's limit for one message: what is larger is refused here.
    max_reply_bytes : int
        The most bytes that a reply may have.
    tls : TlsSettings, optional
        For ``wss://``; left out, the system's authorities are trusted.
    headers : mapping of str to str, optional
        Sent with each handshake and probe, for whatever stands before the manager.

    Raises
    ------
    ConfigError
        A setting that cannot work, named.

    Examples
    --------
    >>> with TcmClient("ws://localhost:8000/ws", route=Route("my-container")) as client:  # doctest: +SKIP
    ...     client.infer("digits", {"image": image})["probabilities"]
    """

    def __init__(
        self,
        uri: str,
        auth: AuthContext | None = None,
        *,
        route: Route | None = None,
        pool_size: int = 4,
        pool_timeout: float | None = None,
        max_requests: int = 500,
        max_idle: float = 300.0,
        max_lifetime: float = 3600.0,
        messages_per_second: float | None = None,
        timeout: float | None = 35.0,
        connect_timeout: float = 5.0,
        ping_interval: float = 20.0,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008 - it is frozen
        max_message_bytes: int = 65_536,
        max_reply_bytes: int = 64 * 2**20,
        tls: TlsSettings | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._start_with(
            Settings(
                uri=uri,
                auth=auth,
                route=route,
                pool_size=pool_size,
                pool_timeout=pool_timeout,
                max_requests=max_requests,
                max_idle=max_idle,
                max_lifetime=max_lifetime,
                messages_per_second=messages_per_second,
                timeout=timeout,
                connect_timeout=connect_timeout,
                ping_interval=ping_interval,
                retry=retry,
                max_message_bytes=max_message_bytes,
                max_reply_bytes=max_reply_bytes,
                tls=tls,
                headers=headers,
            )
        )

    def _start_with(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # guards the two below
        self._runtime: Runtime | None = None
        self._closed = False
        prefix = (settings.auth or AuthContext()).uuid
        self._envelope_bytes = len(encode_message(fresh_uuid(prefix), "inference", b""))
        watch(self)

    @classmethod
    def from_env(cls) -> Self:
        """Make a client from the environment.

        ``TCM_WS_URI`` is needed. Read as well: ``TCM_CLIENT_UUID``, ``TCM_CLIENT_TOKEN``, ``TCM_CLIENT_SUB``,
        ``TCM_CLIENT_TENANT_ID``, ``TCM_CLIENT_ROLES`` (separated by commas), ``TCM_CONTAINER_ID``,
        ``TCM_VM_IP``, ``TCM_VM_ID``, ``TCM_CA_FILE``, ``TCM_TIMEOUT`` (seconds) and ``TCM_POOL_SIZE``.

        Raises
        ------
        ConfigError
            A variable is missing or cannot be read, named.
        """
        return cls(**settings_from_env())

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not open" if self._runtime is None else "open"
        return f"<TcmClient {self._settings.uri} {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _client_from_settings, (type(self), self._settings)

    # --- opening and closing ---

    def open(self, wait: bool = True, timeout: float | Unset | None = UNSET) -> Self:
        """Open a first socket now instead of on the first call.

        Parameters
        ----------
        wait : bool
            Whether to wait until it is authenticated: a wrong URI, token or certificate is then reported
            at once.
        timeout : float or None, optional
            Seconds to wait; left out, the client's. A manager that was never reached is given up after
            ``connect_timeout``.

        Returns
        -------
        TcmClient
            This one.

        Raises
        ------
        ConnectFailedError, AuthenticationError, ShuttingDownError, ProtocolError
            No socket could be opened.
        PoolTimeoutError
            All sockets are busy.
        """
        deadline = self._deadline(timeout)
        runtime = self._running()
        if wait:
            runtime.pool.lease(deadline).unused()
        else:
            runtime.pool.warm()
        return self

    def close(self, timeout: float = 0.0) -> None:
        """Close for good. Calls under way end with `ClientClosedError`.

        It may be called from any thread, again, and after an interruption; not inside a signal handler, which
        may have come while this very thread held a lock: raise from there, and close outside.

        Parameters
        ----------
        timeout : float
            Seconds to wait first for calls under way; new ones are refused meanwhile.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ConfigError(f"timeout must be a number of seconds, 0.0 or more, not {timeout!r}")
        with self._lock:
            self._closed = True
            runtime = self._runtime
        if runtime is not None:
            runtime.close(timeout)

    def __enter__(self) -> Self:
        self._running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        runtime = getattr(self, "_runtime", None)
        if runtime is None or self._closed:
            return
        runtime.reader.stop()  # it waits for nothing: this may run inside any lock
        if not sys.is_finalizing():
            warnings.warn(
                f"unclosed {self!r}: close() it, or use it as a context manager", ResourceWarning, 2, self
            )

    def _running(self) -> Runtime:
        runtime = self._runtime
        if runtime is not None and runtime.is_alive() and not self._closed:
            return runtime
        with self._lock:
            if self._closed:
                raise ClientClosedError(
                    "the client is closed, and a closed client stays closed: make another"
                )
            if self._runtime is not None and self._runtime.is_alive():
                return self._runtime
            refuse_green_threads()
            if self._runtime is not None:
                self._runtime.stop()
            self._runtime = Runtime(self._settings)
            return self._runtime

    def _deadline(self, timeout: float | Unset | None) -> Deadline:
        if isinstance(timeout, Unset):
            timeout = self._settings.timeout
        elif timeout is not None:
            try:
                check_seconds("timeout", timeout)
            except ConfigError as error:
                raise InputError(error.message) from None
        return Deadline(timeout)

    def after_fork(self) -> None:
        """Leave the parent's threads and sockets behind; a forked child does this by itself."""
        self._lock = threading.Lock()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.abandon()

    def at_exit(self) -> None:
        """Refuse calls from now on: the reader is about to be stopped with the interpreter."""
        self._closed = True

    # --- inference ---

    def infer(
        self,
        model_name: str,
        inputs: object,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferResult:
        """Run a model on some inputs and return its outputs.

        Parameters
        ----------
        model_name : str
            The model.
        inputs : mapping, sequence or array-like
            A mapping of names to array-likes; a sequence of `InferenceInput` or of dicts in either form of
            the wire (``name, shape, datatype, data`` or ``name, dims, type, value``); or one array-like
            alone, whose name is then ``INPUT__0``. Datatypes are the arrays' own unless they are stated.
        vm_ip, container_id, vm_id : str, optional
            The route, where it differs from the client's. Naming a container leaves the client's ``vm_ip``
            and ``vm_id`` out, since they belong to another one.
        allow_transient : bool
            Whether the manager may use a server that is not registered with it.
        output_dtypes : dtype or mapping of str to dtype, optional
            The dtypes of the outputs: one for all, or by name. The wire carries none, so that without it an
            output is float64, int64 (uint64 where a value needs it), bool, or an object array of str. FP16,
            FP32 and UINT64 outputs need it to be exact.
        timeout : float or None, optional
            Seconds for the whole call, repeats included; None is no limit. Left out, the client's.
        retry : RetryPolicy or None, optional
            In place of the client's; None is one attempt.

        Returns
        -------
        InferResult
            A mapping of output names to arrays.

        Raises
        ------
        InputError
            The arguments cannot be sent; nothing was.
        MessageTooLargeError
            The message is over ``max_message_bytes``; nothing was sent.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        deadline = self._deadline(timeout)
        route = self._route(vm_ip, container_id, vm_id)
        policy = self._settings.retry if isinstance(retry, Unset) else retry
        if not isinstance(model_name, str) or not model_name:
            raise InputError(f"model_name must be a text that is not empty, not {model_name!r}")
        if policy is not None and not isinstance(policy, RetryPolicy):
            raise InputError(f"retry must be a RetryPolicy or None, not {type(policy).__name__}")
        dtypes = check_output_dtypes(output_dtypes)
        payload = encode_inference(
            model_name,
            route,
            inputs,
            allow_transient=allow_transient,
            limit=self._settings.max_message_bytes,
            envelope_bytes=self._envelope_bytes,
        )
        runtime = self._running()
        call = InferenceCall(runtime, (route, model_name), payload, deadline, patient=policy is not None)
        attempts = Attempts(policy, deadline)
        try:
            reply = attempts.run(call.attempt, runtime.sleep)
            arrays = call.decode(reply, dtypes)
        except TcmError as error:
            error.model_name, error.route, error.elapsed = model_name, route, deadline.elapsed()
            raise
        return InferResult(
            reply.model_name or model_name, arrays, reply.data, attempts.counted + 1, deadline.elapsed()
        )

    def _route(self, vm_ip: str | None, container_id: str | None, vm_id: str | None) -> Route:
        route = self._settings.route
        if container_id is not None:
            return Route(container_id, vm_ip, vm_id)
        if route is None:
            raise InputError(
                "nothing says where to run: give the client a route=Route(container_id), or the call a "
                "container_id="
            )
        if vm_ip is None and vm_id is None:
            return route
        return Route(route.container_id, vm_ip or route.vm_ip, vm_id or route.vm_id)

    # --- probes ---

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

    def _probe(self, name: str, timeout: float) -> Readiness:
        deadline = self._deadline(timeout)
        runtime = self._runtime
        opener = runtime.opener if runtime is not None else Opener(self._settings, OpeningSockets())
        try:
            status, body = probe(opener, name, deadline, OpeningSockets())
        except TcmError as error:
            return Readiness(ok=False, status="unreachable", detail=error.message)
        return Readiness.read(status, body)


def _client_from_settings(kind: type[TcmClient], settings: Settings) -> TcmClient:
    client = kind.__new__(kind)
    client._start_with(settings)  # noqa: SLF001
    return client
