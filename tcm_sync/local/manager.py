"""`LocalManager`, the manager that runs on a laptop."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tcm_sync._tracebacks import shortened_errors
from tcm_sync.errors import ConfigError
from tcm_sync.local.cloud import Cloud
from tcm_sync.local.cloud_objects import Container
from tcm_sync.local.injection import FaultInjection
from tcm_sync.local.models import Model, load_models
from tcm_sync.local.regions import Regions
from tcm_sync.local.settings import Settings, Tokens
from tcm_sync.local.shared_memory import MappedMemory
from tcm_sync.local.stats import Counters, LocalStats
from tcm_sync.settings import Route

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from tcm_sync.local.cloud_objects import CloudStep
    from tcm_sync.local.server import Server


class LocalManager(FaultInjection):
    """A manager for laptops and tests, in this process, without Triton and virtual machines.

    It follows the rules that were recorded from a real manager (docs/wire.rst), pacing included, and runs the
    models itself. It is not meant for production: it is one process, stores nothing, and its error messages
    are those of the real manager. Management jobs change a simulated `cloud`, in which the models run.

    ::

        with LocalManager(models={"digits": "digits.onnx"}) as manager:
            client = TcmClient(manager.uri, route=manager.route)

    Two containers exist from the start. To the one of `route` the manager keeps an HTTP connection: it serves
    pipelines, but no streams. The one of `transient_route` needs ``allow_transient``: it serves any number of
    streams at a time, but no pipelines. To a container in which a job creates a server the manager keeps an
    HTTP connection too, or a gRPC one if the model is a generator function; a gRPC connection serves only
    streams, one at a time.

    For tests, `fail_next`, `refuse_next`, `drop_next`, `delay_next`, `garble_next` and `stale_next` plan
    faults of requests that are still to come, and `shut_down` begins a shutdown.

    Where there is a ``/dev/shm`` it grants ``shm`` and does what Triton does with it, by the rules of
    docs/wire.rst, "Shared memory". Most important: the files that it has read are unlinked when it ends, if
    necessary by a small process of its own. A model gets read-only arrays that share the client's memory; the
    client may write to it again when the reply has arrived.

    Parameters
    ----------
    models : mapping of str to model
        The models, by name. A str or path is an ONNX file, bytes are the contents of one; a callable takes a
        dict of arrays by input name and returns a mapping of array-likes by output name. Callables are called
        from several threads, and may raise `ModelFailure`. A callable that returns an iterator, such as a
        generator function, is a model that streams: each str is a chunk. It ends its stream by yielding
        something that is not text (None, ``b""``, bytes that are not UTF-8); otherwise the stream ends after
        `stream_timeout`. A mapping among the chunks is a whole response, by output name.
    max_batch_sizes : mapping of str to int, optional
        The maximum number of rows of a request, by model; larger requests are refused with Triton's message.
        It has the meaning of ``max_batch_size`` in Triton's configuration: the first dimension of every input
        is the batch, and 0 is a model without a batch dimension. A model that is not named has no limit,
        unless its file is in a Triton model repository (``NAME/VERSION/FILE``) with a ``NAME/config.pbtxt``.
    host : str
        The address to listen on.
    port : int
        The port; 0 chooses a free one, and later starts use the same.
    container_id, transient_container_id, vm_ip : str
        The ids of the two containers that exist from the start, and the address of their machine.
    tokens : mapping of str to claims or roles, collection of str, or callable, optional
        The tokens that are accepted. If it is left out, every client may connect. A mapping has the claims of
        each token, such as ``{"sub": "svc", "tenant_id": "acme", "roles": ["inference"]}``, or its roles
        alone; the client block of the auth message is then ignored. A callable takes a token and returns its
        claims; if it raises, the token is refused with that reason. While it runs the manager does nothing
        else, as a real one with a ``jwks_url`` while it asks the key server. With a collection the roles are
        those of the client block.
    tick : float
        Seconds between two runs of the scheduler. 0 gives requests to the workers as they arrive.
    quantum : int
        The most inferences of one tenant that one run takes: one of each uuid, the oldest uuids first.
    workers : int
        How many inferences run at a time.
    queue_size : int
        The most inferences of one uuid that wait; more are refused (``BACKPRESSURE_QUEUE_FULL``).
    executor_queue_size : int
        The most inferences that workers run or that wait for a worker.
    management_workers, management_queue_size, management_executor_queue_size : int
        The same three limits for management jobs.
    stream_timeout : float
        Seconds within which a model must end its stream. A model that runs longer is not interrupted: its
        stream fails when the model returns.
    max_message_bytes : int
        The most bytes of a message, in UTF-8.
    max_payload_bytes : int, optional
        The most bytes of a request's tensors, judged from shapes and datatypes (413).
    messages_per_second : int, optional
        The most messages a second on one connection, auth not counted.
    tenant_messages_per_second : int, optional
        The most messages of all connections of a tenant at once, and on average in a second;
        ``queue_stats`` does not count. All clients are one tenant, unless their claims name others.
    auth_failures_per_minute : int, optional
        After so many failures within a minute a uuid is refused without a check of its token.
    advise_after : int, optional
        A request that so many runs of the scheduler have passed over gets a
        ``BACKPRESSURE_INSUFFICIENT_BUDGET`` message when its turn comes. None sends no such messages.
    linger : float
        The least number of seconds that `stop` drains. A real manager takes half a second even when idle.
    shm : bool
        Whether it grants ``shm``, on a machine that has a ``/dev/shm``.
    triton_shm : bool
        Whether its Triton uses the same ``/dev/shm``. With False every registration is refused, as by a
        Triton in a container with a ``/dev/shm`` of its own.
    info : mapping of str to callable, optional
        Info actions besides ``queue_stats``: what each returns is the data of the answer. If one raises, the
        answer has the status ``error``. While one runs the manager does nothing else.
    readiness : callable, optional
        Called for every ``GET /ready``; when it raises, the answer is a 503 for the reason
        ``readiness_probe_failed``.
    forget_after : float
        Seconds after which a registered server that does not answer (`Cloud.lose_server`) is no longer
        registered. Until then ``/ready`` is a 503 if no other registered server answers.
    known_faults : bool
        Whether faults of manager 2.0.0 are imitated that make many calls impossible. With registered HTTP
        servers: after inferences have overlapped, every other request on `route` fails with
        ``Cannot switch to a different thread``, and of those that overlap the first two hang, with their
        workers, until `kill`; `stop` waits for them without a limit. In management jobs: ``creation`` and
        ``create_server`` fail for models that do not stream, and a ``create_container`` that succeeds is
        never answered. All other rules and failures of a manager's jobs are always imitated.
    on_cloud_step : callable, optional
        Called with each `CloudStep` of a management job before the step runs, in the thread that runs it. It
        may block; if it raises, the job fails with that error.
    ssl_context : ssl.SSLContext, optional
        If it is given, the manager serves ``wss://`` and ``https://``.

    Raises
    ------
    ConfigError
        If a setting cannot work, or if the package websockets is not installed.
    ModelFileError
        If an ONNX model cannot be read.
    """

    def __init__(
        self,
        models: Mapping[str, Model] | None = None,
        *,
        max_batch_sizes: Mapping[str, int] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        container_id: str = "local",
        transient_container_id: str = "local-transient",
        vm_ip: str = "127.0.0.1",
        tokens: Tokens = None,
        tick: float = 0.010,
        quantum: int = 5,
        workers: int = 5,
        queue_size: int = 10,
        executor_queue_size: int = 200,
        management_workers: int = 5,
        management_queue_size: int = 5,
        management_executor_queue_size: int = 50,
        stream_timeout: float = 120.0,
        max_message_bytes: int = 65_536,
        max_payload_bytes: int | None = None,
        messages_per_second: int | None = None,
        tenant_messages_per_second: int | None = None,
        auth_failures_per_minute: int | None = None,
        advise_after: int | None = 10,
        linger: float = 0.0,
        shm: bool = True,
        triton_shm: bool = True,
        info: Mapping[str, Callable[[], object]] | None = None,
        readiness: Callable[[], object] | None = None,
        forget_after: float = 60.0,
        known_faults: bool = False,
        on_cloud_step: Callable[[CloudStep], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        try:
            import websockets.asyncio.server  # noqa: F401 - to fail here and not in another thread
        except ImportError as exc:
            raise ConfigError(
                f'LocalManager needs websockets 14 or newer ({exc}): pip install "tcm-sync[local]"'
            ) from exc
        self._settings = Settings(
            host=host,
            port=port,
            container_id=container_id,
            transient_container_id=transient_container_id,
            vm_ip=vm_ip,
            tokens=tokens,
            tick=tick,
            quantum=quantum,
            workers=workers,
            queue_size=queue_size,
            executor_queue_size=executor_queue_size,
            management_workers=management_workers,
            management_queue_size=management_queue_size,
            management_executor_queue_size=management_executor_queue_size,
            stream_timeout=stream_timeout,
            max_message_bytes=max_message_bytes,
            max_payload_bytes=max_payload_bytes,
            messages_per_second=messages_per_second,
            tenant_messages_per_second=tenant_messages_per_second,
            auth_failures_per_minute=auth_failures_per_minute,
            advise_after=advise_after,
            linger=linger,
            shm=shm,
            triton_shm=triton_shm,
            info={} if info is None else info,
            readiness=readiness,
            forget_after=forget_after,
            known_faults=known_faults,
            on_cloud_step=on_cloud_step,
            ssl_context=ssl_context,
        )
        super().__init__()
        self._models = load_models(models, max_batch_sizes)
        self._cloud = Cloud(
            [
                Container(container_id, vm_ip, registered=True),
                Container(transient_container_id, vm_ip),
            ],
            forget_after=forget_after,
        )
        self._regions = Regions(other_directory=not triton_shm)
        self._counters = Counters()
        self._port = self._settings.port
        self._lock = threading.Lock()  # guards _server; held during a start, so that two do not overlap
        self._server: Server | None = None
        self._killed: list[Server] = []

    def __repr__(self) -> str:
        state = "stopped" if self._server is None else f"at {self.uri}"
        return f"<LocalManager {state}, models {sorted(self._models)}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port, after the first start."""
        if not self._port:
            raise ConfigError("the manager has no port before it is started")
        return self._port

    @property
    def uri(self) -> str:
        """The address that clients connect to."""
        scheme = "ws" if self._settings.ssl_context is None else "wss"
        host = self._settings.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/ws"

    @property
    def route(self) -> Route:
        """The route to its models over the connection that the manager keeps."""
        return Route(self._settings.container_id, self._settings.vm_ip)

    @property
    def transient_route(self) -> Route:
        """The route to its models, streams included, for requests with ``allow_transient``."""
        return Route(self._settings.transient_container_id, self._settings.vm_ip)

    @property
    def cloud(self) -> Cloud:
        """What management jobs have created in the simulated cloud, and the jobs themselves."""
        return self._cloud

    @property
    def shared_memory(self) -> MappedMemory:
        """What it has mapped of clients' shared memory, for tests; empty while it is stopped."""
        server = self._server
        found = None if server is None else server.shared_memory
        return MappedMemory() if found is None else found.mapped()

    def start(self) -> Self:
        """Listen and serve, in threads of its own.

        A stopped manager keeps only its port, its cloud, and the registrations of shared memory in its
        Triton, which refuses to register the same memory again after the next start.

        Returns
        -------
        LocalManager
            This one.

        Raises
        ------
        RuntimeError
            If it runs already.
        ConfigError
            If it cannot listen: the port is in use, or `host` is not an address of this machine.
        """
        from tcm_sync.local.server import Server

        with shortened_errors, self._lock:
            if self._server is not None:
                raise RuntimeError("the manager runs already: stop it before starting it again")
            self._counters = Counters()
            try:
                server = Server(
                    self._settings,
                    self._port,
                    self._models,
                    self._cloud,
                    self._regions,
                    self._counters,
                    self._planned,
                )
                self._port = server.start()
            except OSError as error:  # no descriptors, no shared memory
                raise ConfigError(f"the manager cannot start: {error}") from error
            self._server = server
        return self

    def stop(self) -> None:
        """Drain and stop: running requests are finished and answered, waiting ones are dropped.

        Until then new messages are handled and refused, as by a manager that got SIGTERM (docs/wire.rst,
        "Draining"). It waits for every model to return, and for streams until their `stream_timeout`. If the
        manager is stopped already, this does nothing.
        """
        with self._lock:
            server = self._server
        with shortened_errors:
            if server is not None:
                server.stop()
                with self._lock:
                    if self._server is server:
                        self._server = None
            while self._killed:
                self._killed.pop().join_workers()

    def shut_down(self) -> None:
        """Begin to drain, as a manager that got SIGTERM, without waiting for the end.

        Running requests are finished and answered, waiting ones are dropped. From then on every message is
        handled and still refused with ``SYSTEM_SHUTDOWN``, on new connections too, and the connection is
        closed, until `stop` ends it; `start` starts it again then. If the manager is stopped, this does
        nothing.
        """
        server = self._server
        if server is not None:
            server.shut_down()

    def kill(self) -> None:
        """Close every connection at once, as SIGKILL does; also while `stop` drains.

        Running models and jobs continue in their threads, streams until their next chunk; their results are
        dropped, and `stop` waits for them. The manager can be started again at once.
        """
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.kill()
            self._killed = [one for one in self._killed if one.is_working]  # else it grows with each kill
            self._killed.append(server)

    def alert(self, message: str, error_type: str = "TritonServerStateChanged") -> None:
        """Send an alert to the client that connected first, as a manager does without a request.

        Parameters
        ----------
        message : str
            The text of the alert.
        error_type : str
            Its type, by which `ClientStats.alerts` counts it.
        """
        server = self._server
        if server is not None:
            server.alert(message, error_type)

    def stats(self) -> LocalStats:
        """Return the counters since the last start.

        Returns
        -------
        LocalStats
            A snapshot.
        """
        server = self._server
        return self._counters.snapshot() if server is None else server.core.stats()
