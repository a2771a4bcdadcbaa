"""A client from its making to its closing: what opens, closes, forks and pickles it."""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tcm_sync._arguments import check_flag
from tcm_sync._calls.learned_limits import Limits
from tcm_sync._calls.worker_threads import Workers
from tcm_sync._deadline import Deadline
from tcm_sync._handlers import is_of_handler
from tcm_sync._numbers import as_number, shown
from tcm_sync._pool.connector import Connector
from tcm_sync._pool.runtime import Runtime
from tcm_sync._process import notice_fork, refuse_green_threads, watch
from tcm_sync._reentry import Callers, entrance
from tcm_sync._shm.policy import Sharing
from tcm_sync._transport.authentication import fresh_uuid
from tcm_sync._transport.counters import Counts
from tcm_sync._wire.encode import StatedLimit, encode_message, size_of
from tcm_sync.errors import ClientClosedError, ConfigError, InputError
from tcm_sync.settings import UNSET, AuthContext, Settings, Unset, check_seconds

if TYPE_CHECKING:
    from typing import Self

    from tcm_sync._calls.stats import ClientStats


# What calls, failures and probes need: when they come there may be no descriptor left to load it with, and a
# fork in the middle of an import leaves its lock to the child. Resolving a name takes the codec.
_NEEDED_LATER = ["email.utils", "encodings.idna", "http.client", "tcm_sync._calls.retrying"]
if sys.platform != "win32":
    _NEEDED_LATER += ["fcntl", "grp"]


class Lifecycle:
    """What holds the runtime of a client, and makes it when it is needed."""

    def _start_with(self, settings: Settings) -> None:
        refuse_green_threads()
        try:
            for name in _NEEDED_LATER:
                importlib.import_module(name)
        except (OSError, ImportError) as error:
            if is_of_handler(error):
                raise
            raise ConfigError(f"a module that clients need cannot be loaded: {error}") from error
        self._settings = settings
        self._counts = Counts()
        self._sharing = Sharing(settings)
        self._callers = Callers()
        self._prober = Connector(self._callers)  # of /health and /ready: two threads, whatever hangs there
        self._lock = threading.RLock()  # guards the five below
        self._counted_from: ClientStats | None = None  # when the counters were last reset
        self._runtime: Runtime | None = None
        self._closed = False
        self._workers: Workers | None = None  # of `submit`
        self._crews: weakref.WeakSet[Workers] = weakref.WeakSet()  # these and those of each `map`
        uuid = fresh_uuid((settings.auth or AuthContext()).uuid)  # as long as all will be
        self._bare_envelope_bytes = size_of(encode_message(uuid, "", ()))
        self._limits = Limits()
        # How much a message may have, as stated by a manager that refused a larger one.
        self._stated_limit: StatedLimit | None = None
        self._stated_by = 0  # which manager that was, as `Standing.managers` counts them
        self._inference_room = settings.max_message_bytes - self._envelope_bytes("inference")
        watch(self)

    def __repr__(self) -> str:
        """One line. It takes no lock, so that it may be shown anywhere, and may be a little off."""
        runtime = self._runtime
        if self._closed or runtime is None:
            return f"<TcmClient {self._settings.uri} {'closed' if self._closed else 'not open'}>"
        sockets, busy, waiting = runtime.pool.glance()
        told = f"{sockets} of {self._settings.pool_size} sockets, {busy} calls in flight"
        if waiting:
            told += f", {waiting} waiting"
        shut = ", ".join(runtime.gates())
        return f"<TcmClient {self._settings.uri} open, {told}{f', shut: {shut}' if shut else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _client_from_settings, (type(self), self._settings)

    # --- opening and closing ---

    def open(self, wait: bool = True, timeout: float | Unset | None = UNSET) -> Self:
        """Open a first socket now instead of on the first call.

        Parameters
        ----------
        wait : bool
            Whether to wait until it is authenticated: a wrong URI, token or certificate is then reported
            at once, and so is a port that refuses. A manager that drains is waited for, and so is one that
            this client had reached before; `wait_until_ready` waits for one that has yet to start.
        timeout : float or None, optional
            Seconds to wait; left out, the client's. No answer within ``connect_timeout`` is a failure too.

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
        self._open(self._deadline(timeout), wait=check_flag("wait", wait))
        return self

    @entrance
    def _open(self, deadline: Deadline, *, wait: bool) -> None:
        runtime = self._running()
        if wait:
            lease = runtime.pool.lease(deadline, eager=True)
            try:
                lease.unused()
            except BaseException:
                lease.discard("open() was interrupted")
                raise
        else:
            runtime.pool.warm()

    def close(self, timeout: float = 0.0) -> None:
        """Close for good. Calls under way end with `ClientClosedError`.

        It may be called from any thread, again, after an interruption, and anywhere: where this thread is
        inside a call, as in a signal handler, that call is ended too, and the closing is not waited for.

        Parameters
        ----------
        timeout : float
            Seconds to wait first for calls under way; new ones are refused meanwhile.
        """
        seconds = as_number(timeout)
        if seconds is None or not seconds >= 0:
            raise ConfigError(f"timeout must be a number of seconds, 0.0 or more, not {shown(timeout)}")
        notice_fork()
        self._closed = True  # whatever this thread is in the middle of
        if not self._callers.have():
            self._close(seconds)
        elif (runtime := self._runtime) is not None:
            runtime.reader.do(self._end)  # which waits for the locks that this thread may hold

    @entrance
    def _close(self, timeout: float) -> None:
        with self._lock:
            runtime = self._runtime
            crews = list(self._crews)
        for crew in crews:
            crew.close()
        if runtime is not None:
            runtime.close(min(timeout, threading.TIMEOUT_MAX))
        for crew in crews:
            crew.join(1.0)
        self._sharing.close()

    def _end(self) -> None:
        """Have everything end, without waiting for it."""
        with self._lock:
            runtime = self._runtime
            crews = list(self._crews)
        for crew in crews:
            crew.close()
        if runtime is not None:
            runtime.stop()
        self._sharing.close()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        runtime = getattr(self, "_runtime", None)
        if runtime is None or self._closed:
            return
        if runtime.reader.is_inherited():
            runtime.abandon()
            return
        runtime.reader.stop()  # it waits for nothing: this may run inside any lock
        if not sys.is_finalizing():
            warnings.warn(
                f"unclosed {self!r}: close() it, or use it as a context manager", ResourceWarning, 2, self
            )

    @entrance
    def _begin(self) -> Runtime:
        """Return what calls run on, started if need be."""
        return self._running()

    def _running(self) -> Runtime:
        """Do what `_begin` does, inside an entrance."""
        notice_fork()
        runtime = self._runtime
        if runtime is not None and not runtime.reader.stopping and not self._closed:
            return runtime
        with self._lock:
            self._check_open()
            if self._runtime is not None and not self._runtime.reader.stopping:
                return self._runtime
            refuse_green_threads()
            if self._runtime is not None:
                self._runtime.stop()
            runtime = self._runtime = Runtime(self._settings, self._counts, self._callers)
            try:
                self._check_open()
            except ClientClosedError:  # by a signal handler
                runtime.stop()
                raise
            return runtime

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("the client is closed, and a closed client stays closed: make another")

    @entrance
    def _crew(self, most: int) -> Workers:
        """Make threads for calls, which end when the client is closed."""
        return self._new_crew(most)

    def _new_crew(self, most: int) -> Workers:
        notice_fork()
        crew = Workers(most, self._callers)
        with self._lock:
            if self._closed:
                crew.close()
            self._crews.add(crew)
        return crew

    def _deadline(self, timeout: float | Unset | None) -> Deadline:
        """Begin a call."""
        notice_fork()
        if isinstance(timeout, Unset):
            timeout = self._settings.timeout
        elif timeout is not None:
            try:
                timeout = check_seconds("timeout", timeout)
            except ConfigError as error:
                raise InputError(error.message) from None
        return Deadline(timeout)

    def _message_limit(self) -> int:
        """Return the most bytes of a message: as set, or fewer if this manager said so."""
        stated = self._stated_limit
        if stated is None:
            return self._settings.max_message_bytes
        runtime = self._runtime
        if runtime is None or runtime.standing.managers == self._stated_by:
            return stated
        self._stated_limit = None  # another manager may be there by now, with another limit
        self._inference_room = self._settings.max_message_bytes - self._envelope_bytes("inference")
        return self._settings.max_message_bytes

    def _learn_message_limit(self, stated: int | None, refused: int) -> None:
        """Keep the limit that the manager stated, or not, when it refused a message of so many bytes."""
        limit = refused - 1 if stated is None else stated
        runtime = self._runtime
        if 0 < limit < self._message_limit() and runtime is not None:
            self._stated_by = runtime.standing.managers
            self._stated_limit = StatedLimit(limit)
            self._inference_room = limit - self._envelope_bytes("inference")

    def _envelope_bytes(self, kind: str) -> int:
        """Count the bytes that the envelope adds to a payload."""
        return self._bare_envelope_bytes + len(kind)

    def after_fork(self) -> None:
        """Leave the parent's threads and sockets behind; a forked child does this by itself."""
        self._lock = threading.RLock()
        self._callers.clear()
        self._counts.lock = threading.RLock()  # the parent's streams go on counting with them
        self._prober = Connector(self._callers)
        self._counts, self._counted_from = Counts(), None
        self._sharing = Sharing(self._settings)  # the segments are the parent's
        self._workers, self._crews = None, weakref.WeakSet()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.abandon()

    def at_exit(self) -> None:
        """Refuse calls from now on: the reader is about to be stopped with the interpreter."""
        self._closed = True
        self._sharing.close()


def _client_from_settings(kind: type[Lifecycle], settings: Settings) -> Lifecycle:
    client = kind.__new__(kind)
    client._start_with(settings)  # noqa: SLF001
    return client
