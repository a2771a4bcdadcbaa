"""`TcmClient`: every public method with its docstring, and a line or two that call a file of ``_calls/``.

In this order: the settings; opening and closing; inference; shared memory; the manager; the client as an
object (its repr, its pickle). The file is long because of the docstrings, which are whole at each method, so
that ``help(client.map)`` needs no second page. `Model` has the calls of one model (``model.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from tcm_sync._arguments import check_flag
from tcm_sync._calls import (
    chunked,
    frames,
    inference,
    info,
    management,
    pipelines,
    probes,
    shared_arrays,
    stats,
    streams,
    submit_map,
)
from tcm_sync._calls.copies import close_client, core_of, new_core
from tcm_sync._calls.core import Core
from tcm_sync._calls.deployment import Deployment
from tcm_sync._calls.management import Action, Docker, Openstack
from tcm_sync._calls.options import (
    Defaults,
    Inputs,
    OnError,
    call_options,
    start_deadline,
)
from tcm_sync._calls.pipelines import PipelineStep
from tcm_sync._calls.streams import InferStream
from tcm_sync._environment import settings_from_env
from tcm_sync._shm.policy import Transport
from tcm_sync._tables import html_table
from tcm_sync._tensors import ModelSignature
from tcm_sync._wire.readiness import Readiness
from tcm_sync.errors import TcmError
from tcm_sync.events import Listener
from tcm_sync.events._listeners import checked_listeners
from tcm_sync.model import Model
from tcm_sync.results import InferResult, ManagementResult, QueueStats
from tcm_sync.retry import RetryPolicy
from tcm_sync.settings import (
    POOL_SIZE,
    POOL_SIZE_WITHOUT_TURNS,
    UNSET,
    AuthContext,
    BatchPolicy,
    Header,
    Route,
    Settings,
    TlsSettings,
    Turns,
    Unset,
)
from tcm_sync.stats import ClientStats

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    import numpy.typing as npt

    DTypes = Mapping[str, npt.DTypeLike] | npt.DTypeLike

FrameT = TypeVar("FrameT")


class TcmClient:
    """A blocking client of one manager, for any number of threads.

    It opens by itself on the first call; making one connects to nothing. One background thread reads all of
    its sockets. After a fork the child makes its own; a pickled client carries its settings, the token
    included, and opens again where it is unpickled.

    Parameters
    ----------
    uri : str
        ``ws://HOST:PORT/ws`` or ``wss://…``.
    auth : AuthContext, optional
        Who is calling.
    route : Route, optional
        Where inferences run that name no container themselves.
    pool_size : int, optional
        The most sockets at a time, each with one call. Left out, 16, or 4 with ``turns="off"``.
    pool_timeout : float, optional
        Seconds: the most that a call waits for a socket, and again for its turn to send. The call's deadline
        bounds both anyway.
    max_requests : int
        Requests after which a socket is replaced by a new one, less up to a fifth.
    max_idle, max_lifetime : float
        Seconds after which an unused socket is closed, and any socket is replaced, less up to a fifth.
    messages_per_second : float, optional
        The manager's limit for one socket, if you have it; otherwise it is learned from a refusal.
    management_sockets : int
        The most sockets for management jobs, which are apart from the pool's: opened when needed, closed
        when idle.
    timeout : float or None
        Seconds that a call may take in all, unless it says otherwise; None is no limit. The manager's own
        limit is 30 s, and nothing cancels work, so less than that adds load when it is reached.
    connect_timeout : float
        Seconds for opening one socket; a manager that was never reached fails calls after it.
    ping_interval : float
        Seconds of quiet after which a socket is pinged; without a pong for three times as long, it is dead.
    retry : RetryPolicy or None
        When failed calls are repeated; None: never. Calls still wait together after a refusal that asks for
        a pause: too much work, or an open circuit.
    shm : {"auto", "off"}
        Whether large tensors go through shared memory where that works (docs/sharedmemory.rst).
    shm_max_pinned : int, optional
        Bytes that servers may be made to keep mapped; left out, a quarter of /dev/shm.
    shm_group : str, optional
        A group that may use the files too, where manager and Triton run as another user.
    max_message_bytes : int
        The manager's limit for one message: what is larger is refused here.
    max_reply_bytes : int
        The most bytes that a reply may have.
    tls : TlsSettings, optional
        For ``wss://``; left out, the system's authorities are trusted.
    headers : mapping of str to str or callable, optional
        Sent with each handshake and probe, for whatever stands before the manager. A callable is asked for
        each of them, so that it can hand out an ``Authorization`` that expires. A value of 16 characters or
        more, or whose header is named as a secret (``SECURITY.md``), is shown in no message.
    proxy : str, optional
        What to connect through, probes included: ``http://[USER:PASSWORD@]HOST[:PORT]`` (HTTP CONNECT),
        ``https://`` (the same, with TLS to the proxy), ``socks5h://`` or ``socks5://`` (which resolves the
        manager's name here; both need the extra ``proxy``). ``"env"`` takes it from the environment's
        ``HTTPS_PROXY`` for ``wss://`` or ``HTTP_PROXY`` for ``ws://``, then ``ALL_PROXY``, unless
        ``NO_PROXY`` names the host. Left out, there is none, whatever the environment says.
    turns : {"auto", "off"} or int
        How many requests may wait at the manager's scheduler at the same time, over all clients in all
        processes of this user on this host; callers beyond that wait here, first come first served
        (docs/throughput.rst). "auto" is five, what the manager passes on in a tick. A number is for a host's
        share where several hosts use one manager, and for managers that pass on another number. "off" is no
        limit.
    listeners : sequence of Listener
        Receive events of the client: calls, attempts, connections, gates (docs/monitoring.rst). They are
        kept over a fork, and do not travel in a pickle.

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
        pool_size: int | None = None,
        pool_timeout: float | None = None,
        max_requests: int = 500,
        max_idle: float = 300.0,
        max_lifetime: float = 3600.0,
        messages_per_second: float | None = None,
        management_sockets: int = 2,
        timeout: float | None = 35.0,
        connect_timeout: float = 5.0,
        ping_interval: float = 20.0,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008 - it is frozen
        shm: Literal["auto", "off"] = "auto",
        shm_max_pinned: int | None = None,
        shm_group: str | None = None,
        max_message_bytes: int = 65_536,
        max_reply_bytes: int = 64 * 2**20,
        tls: TlsSettings | None = None,
        headers: Mapping[str, Header] | None = None,
        proxy: str | None = None,
        turns: Turns = "auto",
        listeners: Sequence[Listener] = (),
    ) -> None:
        if pool_size is None:
            pool_size = POOL_SIZE_WITHOUT_TURNS if isinstance(turns, str) and turns == "off" else POOL_SIZE
        settings = Settings(
            uri=uri,
            auth=auth,
            route=route,
            pool_size=pool_size,
            pool_timeout=pool_timeout,
            max_requests=max_requests,
            max_idle=max_idle,
            max_lifetime=max_lifetime,
            messages_per_second=messages_per_second,
            management_sockets=management_sockets,
            timeout=timeout,
            connect_timeout=connect_timeout,
            ping_interval=ping_interval,
            retry=retry,
            shm=shm,
            shm_max_pinned=shm_max_pinned,
            shm_group=shm_group,
            max_message_bytes=max_message_bytes,
            max_reply_bytes=max_reply_bytes,
            tls=tls,
            headers=headers,
            proxy=proxy,
            turns=turns,
        )
        self._attach(new_core(settings, checked_listeners(listeners)), {})

    @classmethod
    def from_env(cls) -> Self:
        """Make a client from the environment.

        ``TCM_WS_URI`` is needed. Read as well: ``TCM_CLIENT_UUID``, ``TCM_CLIENT_TOKEN``, ``TCM_CLIENT_SUB``,
        ``TCM_CLIENT_TENANT_ID``, ``TCM_CLIENT_ROLES`` (separated by commas), ``TCM_CONTAINER_ID``,
        ``TCM_VM_IP``, ``TCM_VM_ID``, ``TCM_CA_FILE``, ``TCM_PROXY``, ``TCM_TIMEOUT`` (seconds),
        ``TCM_POOL_SIZE`` and ``TCM_TURNS``.

        Raises
        ------
        ConfigError
            A variable is missing or cannot be read, named.
        """
        return cls(**settings_from_env())

    def with_options(
        self,
        *,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
        route: Route | Unset | None = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
    ) -> Self:
        """Return a view: the same client and sockets, with other values for what calls leave out.

        A view can do what the client can, costs nothing, and can have views itself. Closing it closes nothing
        but the view, unless the client it was made from is no longer there. Closing the client closes the
        sockets, and with them its views.

        Parameters
        ----------
        timeout : float or None, optional
            Seconds that a call may take; None is no limit. Streams and management jobs have their own.
        retry : RetryPolicy or None, optional
            When failed calls are repeated; None: never.
        route : Route or None, optional
            Where inferences run that name no container; None: each has to name one.
        output_dtypes : dtype or mapping of str to dtype, optional
            The dtypes of outputs, as `infer` takes them.
        transport : {"auto", "json", "shm"}, optional
            How inputs travel, as `infer` takes it.

        Returns
        -------
        TcmClient
            The view.

        Raises
        ------
        InputError
            An option cannot be, named.

        Examples
        --------
        >>> quick = client.with_options(timeout=0.5, retry=None)  # doctest: +SKIP
        >>> quick.infer("digits", {"image": image})  # doctest: +SKIP
        """
        view = type(self).__new__(type(self))
        vars(view).update(vars(self))  # what a subclass has set, too
        changes = {
            "timeout": timeout,
            "retry": retry,
            "route": route,
            "output_dtypes": output_dtypes,
            "transport": transport,
        }
        given = {name: value for name, value in changes.items() if value is not UNSET}
        view._attach(self._core, {**self._changes, **given}, is_view=True)  # noqa: SLF001
        return view

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
        self._core.open(start_deadline(timeout, self._defaults.timeout), wait=check_flag("wait", wait))
        return self

    def close(self, timeout: float = 0.0) -> None:
        """Close the client, which stays closed. Calls under way end with `ClientClosedError`.

        It may be called from any thread, again, after an interruption, and anywhere: where this thread is
        inside a call, as in a signal handler, that call is ended too, and the closing is not waited for.

        Where there are copies of the client in this process, by unpickling or the module `copy`, it closes
        this one: calls under way continue, and the last copy that is closed closes the sockets.

        Parameters
        ----------
        timeout : float
            Seconds to wait first for calls under way; new ones are refused meanwhile.
        """
        self._core = close_client(self._core, self, timeout)

    def __enter__(self) -> Self:
        self._core.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- inference ---

    def infer(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
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
            the wire (``name, shape, datatype, data`` or ``name, dims, type, value``), or of `SHMReference`
            alone; or one array-like, for a model whose only input is called ``INPUT__0``. Datatypes are the
            arrays' own unless they are stated. A data frame is refused: `infer_frame` takes it.
        vm_ip, container_id, vm_id : str, optional
            The route, where it differs from the client's. Naming a container leaves the client's ``vm_ip``
            and ``vm_id`` out, since they belong to another one.
        allow_transient : bool
            Whether the manager may use a server that is not registered with it.
        output_dtypes : dtype or mapping of str to dtype, optional
            The dtypes of the outputs: one for all, or by name. The wire carries none, so that without it an
            output is float64, int64 (uint64 where a value needs it), bool, or an object array of str. FP16,
            FP32 and UINT64 outputs need it to be exact.
        transport : {"auto", "json", "shm"}, optional
            How the inputs travel; left out, the client's, which is ``"auto"``. ``"shm"`` is shared memory,
            on whatever machine the manager is, or an error; ``"auto"`` uses it where it works and is faster
            than JSON. `explain` gives the reason.
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
            The message is over ``max_message_bytes``, and shared memory cannot be used either. Nothing was
            sent.
        SharedMemoryUnavailableError, SharedMemoryRegistrationError
            With ``transport="shm"``: the tensors cannot go that way.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        where = (vm_ip, container_id, vm_id)
        options = call_options(
            self._defaults, model_name, where, allow_transient, output_dtypes, timeout, retry, transport
        )
        return inference.infer(self._core, options, inputs)

    def infer_chunked(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        rows: int | None = None,
        concurrency: int | None = None,
        progress: bool = False,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferResult:
        """Run a model on a batch of any length: cut along the first axis, several messages at a time, joined.

        Parameters
        ----------
        model_name, inputs
            As `infer` takes them. All inputs have as many rows, and so must all outputs have.
        rows : int, optional
            How many a message carries; left out, as many as fit ``max_message_bytes``: as JSON, or as bytes
            in memory where they go through shared memory (at most an eighth of ``max_reply_bytes``). They are
            fewer where the manager or the model has refused so many, or the reply was over
            ``max_reply_bytes``: these are cut again, and the limit is remembered for this route and model.
        concurrency : int, optional
            How many messages are in flight at a time; left out, ``pool_size``.
        progress : bool
            Whether to show how many rows are done (with tqdm: the extra ``progress``).
        vm_ip, container_id, vm_id, allow_transient, output_dtypes, transport
            As `infer` takes them.
        timeout : float or None, optional
            Seconds for each message once its turn has come; None is no limit. Left out, the client's.
        retry
            As `infer` takes it.

        Returns
        -------
        InferResult
            The outputs of all rows, in order. ``attempts`` is the most that one message took, ``raw`` is
            empty.

        Raises
        ------
        InputError
            The arguments cannot be sent; nothing was.
        MessageTooLargeError
            A single row, or ``rows`` of them, are over ``max_message_bytes``, and shared memory cannot be
            used.
        SharedMemoryUnavailableError, SharedMemoryRegistrationError
            As `infer` raises them.
        ProtocolError
            An output has not as many rows as the input.
        TcmError
            A message failed: the error names its rows, and the rest is given up.
        """
        where = (vm_ip, container_id, vm_id)
        options = call_options(
            self._defaults, model_name, where, allow_transient, output_dtypes, timeout, retry, transport
        )
        return chunked.infer_chunked(
            self._core, options, inputs, rows=rows, concurrency=concurrency, progress=progress
        )

    def infer_frame(
        self,
        model_name: str,
        frame: FrameT,
        *,
        columns: Sequence[Any] | None = None,
        stack: str | Mapping[str, Sequence[Any]] | None = None,
        outputs: Sequence[str] | None = None,
        rows: int | None = None,
        concurrency: int | None = None,
        progress: bool = False,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> FrameT:
        """Run a model on the rows of a data frame, and return its outputs as a frame of the same library.

        By default each column is an input of its name, of shape [rows], with the datatype of its dtype. The
        frame is cut into messages as `infer_chunked` cuts a batch. Needs the extra ``frames``.

        Parameters
        ----------
        model_name : str
            The model.
        frame : data frame
            Of pandas, Polars (a DataFrame), pyarrow (a Table), or another library that narwhals reads.
        columns : sequence of str, optional
            The columns to use; left out, all.
        stack : str or mapping of str to sequence of str, optional
            The name of an input that takes all used columns as one matrix of shape [rows, columns]; or the
            names of such inputs, each with its columns, while the other used columns are inputs of their own.
            Integers beside floats become floats of the widest of their dtypes, unless a value would change.
        outputs : sequence of str, optional
            The outputs that become columns, in this order; left out, all.
        rows, concurrency, progress
            As `infer_chunked` takes them.
        vm_ip, container_id, vm_id, allow_transient, output_dtypes, transport, timeout, retry
            As `infer_chunked` takes them.

        Returns
        -------
        data frame
            One row for each of `frame`, with its index if it has one. An output of shape [rows] or [rows, 1]
            is a column of its name; one of [rows, n] is ``NAME_0`` to ``NAME_{n-1}``.

        Raises
        ------
        ConfigError
            narwhals is not installed.
        InputError
            A column cannot be sent; nothing was. The message names it: its dtype has no datatype, a value is
            missing that is not a float's, or would change. Or an output makes no columns, as the first reply
            shows.
        TcmError
            As `infer_chunked` raises it.
        """
        where = (vm_ip, container_id, vm_id)
        options = call_options(
            self._defaults, model_name, where, allow_transient, output_dtypes, timeout, retry, transport
        )
        made: FrameT = frames.infer_frame(
            self._core,
            options,
            frame,
            columns=columns,
            stack=stack,
            outputs=outputs,
            rows=rows,
            concurrency=concurrency,
            progress=progress,
        )
        return made

    def submit(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Future[InferResult]:
        """Run a model in the background and return the future of its result.

        The inputs are checked and encoded here and now, so that they may be changed afterwards. At most
        ``pool_size`` calls run at a time, the others wait their turn. One that waits can be cancelled, one
        that runs cannot. Callbacks run in the background, or in the thread that cancels.

        Parameters
        ----------
        model_name, inputs, vm_ip, container_id, vm_id, allow_transient, output_dtypes, transport
            As `infer` takes them.
        timeout : float or None, optional
            Seconds for the call once its turn has come; None is no limit. Left out, the client's.
        retry
            As `infer` takes it.

        Returns
        -------
        concurrent.futures.Future of InferResult
            Its exception is what `infer` would raise; `ClientClosedError` if the client is closed before
            its turn.

        Raises
        ------
        InputError, MessageTooLargeError
            The arguments cannot be sent.
        ClientClosedError
            The client is closed.
        """
        where = (vm_ip, container_id, vm_id)
        options = call_options(
            self._defaults, model_name, where, allow_transient, output_dtypes, timeout, retry, transport
        )
        return submit_map.submit(self._core, options, inputs)

    @overload
    def map(
        self,
        model_name: str,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[True] = True,
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[InferResult]: ...

    @overload
    def map(
        self,
        model_name: str,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[True] = True,
        progress: bool = False,
        on_error: OnError,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[InferResult | TcmError]: ...

    @overload
    def map(
        self,
        model_name: str,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[False],
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[tuple[int, InferResult]]: ...

    @overload
    def map(
        self,
        model_name: str,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[False],
        progress: bool = False,
        on_error: OnError,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[tuple[int, InferResult | TcmError]]: ...

    @overload
    def map(
        self,
        model_name: str,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        on_error: OnError = "raise",
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[Any]: ...

    def map(
        self,
        model_name: str,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        on_error: OnError = "raise",
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[Any]:
        """Run a model on one input after another, several at a time, and yield the results.

        It reads no more inputs than it needs to keep the sockets busy, so that they may be without end.
        Leaving the loop early cancels what has not begun.

        Parameters
        ----------
        model_name : str
            The model.
        many_inputs : iterable
            Of what `infer` takes as inputs.
        concurrency : int, optional
            How many calls run at a time; left out, ``pool_size``, more than which wait for sockets.
        ordered : bool
            Whether the results come in the order of the inputs. Otherwise they come as they are there,
            each as ``(index, result)``.
        progress : bool
            Whether to show how many are done (with tqdm: the extra ``progress``).
        on_error : {"raise", "return"}
            Whether a failure ends it, or is yielded in place of its result.
        vm_ip, container_id, vm_id, allow_transient, output_dtypes, transport
            As `infer` takes them.
        timeout : float or None, optional
            Seconds for each call once its turn has come; None is no limit. Left out, the client's.
        retry
            As `infer` takes it.

        Returns
        -------
        iterator of InferResult
            Also of TcmError where ``on_error="return"``; of pairs with its index where not ``ordered``.

        Raises
        ------
        InputError
            An argument is wrong. What is wrong with an input counts as the failure of its call.
        """
        where = (vm_ip, container_id, vm_id)
        options = call_options(
            self._defaults, model_name, where, allow_transient, output_dtypes, timeout, retry, transport
        )
        return submit_map.map_inputs(
            self._core,
            options,
            many_inputs,
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            on_error=on_error,
        )

    def stream(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_name: str = "output",
        idle_timeout: float | None = None,
        on_idle: Literal["raise", "end"] = "raise",
        timeout: float | None = 150.0,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferStream:
        """Run a model that answers in chunks of text, and return them as they come.

        It returns once the first chunk is there, or the stream has ended without one. Until then failures
        are repeated as the policy says, and never after.

        A stream holds a socket until it ends: at most ``pool_size - 1`` may, or one if there is only one,
        which then keeps every other call waiting. Leaving it early closes the socket; that does not stop
        the model, whose worker in the manager is held until it has ended.

        Parameters
        ----------
        model_name : str
            The model.
        inputs : mapping, sequence or array-like
            As `infer` takes them.
        vm_ip, container_id, vm_id : str, optional
            The route, as for `infer`.
        allow_transient : bool
            Whether the manager may use a server that is not registered with it. One that is registered runs
            one stream at a time: further ones wait here, without a socket, for their turn.
        output_name : str
            The output that holds the text.
        idle_timeout : float, optional
            Seconds without a chunk, counted from the model's start and from each chunk, after which the
            stream is over. Most models need it: the manager does not learn that a model has ended, and the
            stream of one that just ends fails only at the manager's limit (120 s from its start).
        on_idle : {"raise", "end"}
            What that silence is: a `CallTimeoutError`, or the end.
        timeout : float or None
            Seconds for the whole stream; None is no limit. The client's own does not apply.
        retry : RetryPolicy or None, optional
            In place of the client's; None is one attempt.

        Returns
        -------
        InferStream
            An iterator of str, and a context manager that closes it.

        Raises
        ------
        InputError, MessageTooLargeError
            The arguments cannot be sent; nothing was.
        PoolTimeoutError
            No socket came free in time: other streams may hold all that streams can have.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        where = (vm_ip, container_id, vm_id)
        options = call_options(self._defaults, model_name, where, allow_transient, None, timeout, retry)
        return streams.stream(
            self._core, options, inputs, output_name=output_name, idle_timeout=idle_timeout, on_idle=on_idle
        )

    def pipeline(
        self,
        steps: Iterable[PipelineStep | Mapping[str, Any]],
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> dict[str, InferResult]:
        """Run several models of one server, one after another, in one request.

        Parameters
        ----------
        steps : iterable of PipelineStep or of mapping
            What to run, in order; a mapping has the fields of `PipelineStep` as its keys.
        vm_ip, container_id, vm_id : str, optional
            The route, as for `infer`. The server must be registered with the manager.
        timeout : float or None, optional
            Seconds for the whole call, repeats included; None is no limit. Left out, the client's.
        retry : RetryPolicy or None, optional
            In place of the client's; None is one attempt. A repeat runs every step again.

        Returns
        -------
        dict of str to InferResult
            By the steps' names, in their order. ``elapsed`` is that of the whole call.

        Raises
        ------
        InputError, MessageTooLargeError
            A step cannot be sent, named; nothing was.
        InferenceError
            A step failed, named where the manager names it, and the results of the others are lost.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        return pipelines.pipeline(
            self._core,
            self._defaults,
            steps,
            vm_ip=vm_ip,
            container_id=container_id,
            vm_id=vm_id,
            timeout=timeout,
            retry=retry,
        )

    def model(
        self,
        model_name: str,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        signature: ModelSignature | None = None,
        batch: BatchPolicy | None = None,
    ) -> Model:
        """Return a model with its route, to be called again and again.

        Parameters
        ----------
        model_name, vm_ip, container_id, vm_id, allow_transient, output_dtypes
            As `infer` takes them. Every call of the model has them.
        signature : ModelSignature, optional
            What the model takes and returns: from `tcm_sync.models.analyze`, a deployment, or a server's
            metadata. The inputs of every call are checked against it before anything is sent, and one
            array-like alone will do where it names one input. ``output_dtypes``, left out, are those that
            it states.
        batch : BatchPolicy, optional
            Lets `Model.infer_sample` put the samples of several threads into one message. Left out, each goes
            out alone. It holds no more of them than the signature's ``max_batch_size``.

        Returns
        -------
        Model
            It has the calls of the client that run a model, and shares its connections.

        Raises
        ------
        InputError
            An argument is wrong.
        """
        return Model(
            self,
            model_name,
            vm_ip=vm_ip,
            container_id=container_id,
            vm_id=vm_id,
            allow_transient=allow_transient,
            output_dtypes=output_dtypes,
            signature=signature,
            batch=batch,
        )

    # --- shared memory ---

    def empty_shared(self, shape: int | Sequence[int], dtype: npt.DTypeLike) -> np.ndarray[Any, Any]:
        """Return an array that lives in shared memory: fill it, and pass it as an input without a copy.

        It is an ordinary array otherwise. The file behind it goes with the last view of it, or with the
        client; the array stays readable and writable in any case. It is copied like any other where it cannot
        be named: for a second call at the same time, on another route, after a call that failed or was given
        up (which may still be reading it), in part or out of order, in a forked child, and with
        ``allow_transient``. Pickled, it is a plain array.

        Do not write to it while a call that was given it is under way.

        Parameters
        ----------
        shape : int or sequence of int
            At least one element.
        dtype : dtype
            Of numbers or bool, in native byte order.

        Returns
        -------
        ndarray
            Its contents are zero.

        Raises
        ------
        InputError
            The shape or the dtype cannot be, or there is no shared memory, or no room in it.
        """
        return shared_arrays.empty_shared(self._core, shape, dtype)

    def explain(
        self,
        inputs: Inputs,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        transport: Transport | Unset = UNSET,
    ) -> str:
        """Describe how a call with these inputs would travel, and why. Nothing is sent.

        Parameters
        ----------
        inputs, vm_ip, container_id, vm_id, allow_transient, transport
            As `infer` takes them.

        Returns
        -------
        str
            A sentence or two, for people.

        Raises
        ------
        InputError
            The inputs cannot be sent at all.
        """
        where = (vm_ip, container_id, vm_id)
        options = call_options(self._defaults, "any", where, allow_transient, transport=transport)
        return shared_arrays.explain(self._core, options, inputs)

    # --- the manager ---

    def health(self, *, timeout: float = 5.0) -> bool:
        """Ask ``/health``: whether the manager's process answers.

        Parameters
        ----------
        timeout : float
            Seconds.

        Returns
        -------
        bool
            False where the manager answers that it is not healthy, or does not answer in time.
        """
        return probes.ask(self._core, "health", timeout).ok

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
        return probes.ask(self._core, "ready", timeout)

    def wait_until_ready(self, timeout: float) -> Readiness:
        """Ask ``/ready`` until it says yes, with pauses that grow to a second.

        Parameters
        ----------
        timeout : float
            Seconds to ask for, again and again.

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
        return probes.wait_until_ready(self._core, timeout)

    def info(
        self, action: str, *, timeout: float | Unset | None = UNSET, **payload: object
    ) -> dict[str, Any]:
        """Ask the manager about itself.

        Parameters
        ----------
        action : str
            ``"queue_stats"`` is the one that managers have so far; they answer others with a ``message``.
        timeout : float or None, optional
            Seconds; None is no limit. Left out, the client's.
        **payload
            More fields of the request. ``job_id`` is made here unless it is given.

        Returns
        -------
        dict
            The answer's data.

        Raises
        ------
        InputError
            The request has no form in JSON; nothing was sent.
        ContractError
            The manager answered with an error.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        return info.info(self._core, self._defaults, action, timeout, payload)

    def queue_stats(self, *, timeout: float | Unset | None = UNSET) -> QueueStats:
        """Ask how many users and jobs the manager has.

        Parameters
        ----------
        timeout : float or None, optional
            Seconds; None is no limit. Left out, the client's.

        Returns
        -------
        QueueStats
            The counts.
        """
        return QueueStats.read(self.info("queue_stats", timeout=timeout))

    def management(
        self,
        action: Action | str,
        *,
        openstack: Openstack | Mapping[str, object] | None = None,
        docker: Docker | Mapping[str, object] | None = None,
        minio: Mapping[str, object] | None = None,
        triton: Mapping[str, object] | None = None,
        timeout: float | Unset | None = UNSET,
        progress: bool = False,
        **body: Any,
    ) -> ManagementResult:
        """Have the manager do a job, and wait for it to be done.

        It goes out on a socket of its own (``management_sockets``), so that it takes none from inferences.
        It is never repeated when it may have run: only when it never reached the socket, or when the manager
        said that it dropped it, or that a limit was passed.

        Where a job looks for its ids is not the same for all: ``delete_server``, ``delete_container`` and
        ``delete_vm`` find them beside the blocks alone, ``management("delete_vm", vm_id=...)``.

        Parameters
        ----------
        action : str
            What to do: ``"creation"``, ``"deletion"``, ``"create_vm"``, ``"create_container"``,
            ``"create_server"``, ``"delete_server"``, ``"delete_container"`` or ``"delete_vm"``. Others go
            through, and the manager decides.
        openstack, docker, minio, triton : mapping, optional
            The blocks of the request, each free-form.
        timeout : float or None, optional
            Seconds for the whole call; None is no limit. Left out, 900, and 60 for ``"create_container"``,
            since manager 2.0.0 never answers one that succeeds.
        progress : bool
            Whether to show the elapsed time (with tqdm: the extra ``progress``).
        **body
            More fields of the request.

        Returns
        -------
        ManagementResult
            With the data of the answer.

        Raises
        ------
        InputError
            The request has no form in JSON; nothing was sent.
        ManagementError
            The job failed, or was refused.
        ShuttingDownError, ConnectionLostError, CallTimeoutError, ClientClosedError, ProtocolError
            With ``outcome_unknown``, the job may have run: find out before trying again.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        return management.management(
            self._core,
            self._defaults,
            action,
            openstack=openstack,
            docker=docker,
            minio=minio,
            triton=triton,
            timeout=timeout,
            progress=progress,
            body=body,
        )

    def create(
        self,
        *,
        openstack: Openstack | Mapping[str, object] | None = None,
        docker: Docker | Mapping[str, object] | None = None,
        minio: Mapping[str, object] | None = None,
        triton: Mapping[str, object] | None = None,
        timeout: float | Unset | None = UNSET,
        progress: bool = False,
        **body: Any,
    ) -> Deployment:
        """Create a VM with a container in which a Triton server runs a model.

        Parameters
        ----------
        openstack, docker, minio, triton, timeout, progress, **body
            As `management` takes them.

        Returns
        -------
        Deployment
            Where it runs and what it takes. Nothing but its `Deployment.delete` deletes it.

        Raises
        ------
        TcmError
            As `management` raises it. A creation whose outcome is unknown may have left a VM behind.
        """
        result = self.management(
            "creation",
            openstack=openstack,
            docker=docker,
            minio=minio,
            triton=triton,
            timeout=timeout,
            progress=progress,
            **body,
        )
        return management.deployment_of(result, openstack).bind(self)

    def delete(
        self,
        *,
        vm_id: str | None = None,
        container_id: str | None = None,
        vm_ip: str | None = None,
        openstack: Openstack | Mapping[str, object] | None = None,
        docker: Docker | Mapping[str, object] | None = None,
        missing_ok: bool = False,
        timeout: float | Unset | None = UNSET,
        progress: bool = False,
        **body: Any,
    ) -> ManagementResult:
        """Delete a VM with its container, and the manager's connection to the server in it.

        The manager tries the three parts one by one, and reports a failure if one of them is missing, though
        it has deleted the others. So a deletion that is repeated fails, and so does one with a wrong id:
        nothing in the answer distinguishes them. ``missing_ok`` is for ids that are certainly right.

        Parameters
        ----------
        vm_id, container_id : str, optional
            What to delete: put into the blocks ``openstack`` and ``docker``.
        vm_ip : str, optional
            The address of the VM, in place of its id: the manager takes the one VM that has it. It may have
            been given to another VM since.
        openstack, docker
            As `management` takes them.
        missing_ok : bool
            Whether a deletion ends well that found some or all parts missing and has deleted the others.
        timeout, progress, **body
            As `management` takes them.

        Returns
        -------
        ManagementResult
            Its ``parts`` say what was deleted and what was missing.

        Raises
        ------
        ManagementError
            A part could not be deleted, or was missing; the error's ``parts`` say which.
        TcmError
            As `management` raises it. A deletion whose outcome is unknown may be repeated with
            ``missing_ok``.
        """
        return management.delete(
            self._core,
            self._defaults,
            vm_id=vm_id,
            container_id=container_id,
            vm_ip=vm_ip,
            openstack=openstack,
            docker=docker,
            missing_ok=missing_ok,
            timeout=timeout,
            progress=progress,
            body=body,
        )

    def stats(self, *, reset: bool = False) -> ClientStats:
        """Return what the client has counted, and how it is.

        A forked child counts for itself, from nothing.

        Parameters
        ----------
        reset : bool
            Whether to count from nothing after this, for everybody who asks.

        Returns
        -------
        ClientStats
            A copy, which changes no more.
        """
        return stats.stats(self._core, reset=reset)

    # --- as an object ---

    _core: Core
    _defaults: Defaults
    _changes: dict[str, Any]  # of a view: its options

    def _attach(self, core: Core, changes: dict[str, Any], *, is_view: bool = False) -> None:
        """Make this a client of some connections, with other defaults than those it was made with."""
        self._defaults = Defaults.of(core.settings).changed(**changes)
        self._changes = changes
        self._core = core
        core.attach(self, is_view=is_view)

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value!r}" for name, value in self._changes.items())
        return f"{repr(self._core)[:-1]}{shown}>"

    def _repr_html_(self) -> str:
        """Show the state and the statistics of the client in a notebook."""
        state = html_table(repr(self), (), [])
        return state + self.stats()._repr_html_()

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (type(self), self._core.settings, self._core.key, self._changes)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self), self._core.settings, self._changes

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.detach(self)


def _copy(kind: type[TcmClient], settings: Settings, key: str, changes: dict[str, Any]) -> TcmClient:
    """Make a client of what a pickle holds, on the connections of its copies in this process."""
    client = kind.__new__(kind)
    client._attach(core_of(settings, key, client), changes)  # noqa: SLF001
    return client
