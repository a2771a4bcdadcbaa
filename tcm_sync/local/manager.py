"""`LocalManager`, the manager that runs on a laptop."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tcm_sync._arguments import check_text, check_whole
from tcm_sync._numbers import shown
from tcm_sync.errors import ConfigError
from tcm_sync.local.cloud import Cloud, Container
from tcm_sync.local.models import Model, load_model
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

    from tcm_sync.local.cloud import CloudStep
    from tcm_sync.local.server import Server


class LocalManager:
    """A manager for laptops and tests, in this process: no Triton, no virtual machines.

    It keeps the rules that the recorded manager keeps (docs/wire.rst), pacing included, and runs its models
    itself. It is not meant for production: one process, no persistence, and its errors are as helpful as
    those it imitates. Management jobs change a pretend `cloud`, in whose containers its models then run.

    ::

        with LocalManager(models={"digits": "digits.onnx"}) as manager:
            client = TcmClient(manager.uri, route=manager.route)

    There are two containers from the beginning. To the one of `route` the manager keeps an HTTP connection:
    it serves pipelines, and no streams. The one of `transient_route` needs ``allow_transient``: it serves
    streams, any number at a time, and no pipelines. To a container in which a job creates a server it keeps
    an HTTP connection too, or, if the model is known to stream (a generator function), a gRPC one, which
    serves streams alone, one at a time.

    Where there is a ``/dev/shm`` it grants ``shm`` and plays Triton's part in it, with the rules of
    docs/wire.rst, "Shared memory": above all, the files that it has read are unlinked when it ends, by a
    small process of its own if need be. A model gets read-only arrays over the very memory of the client,
    who may write to it again once the reply is there.

    Parameters
    ----------
    models : mapping of str to model
        What it can run, by name. A str or path is an ONNX file, bytes are the contents of one; a callable
        takes a dict of arrays by input name and returns a mapping of array-likes by output name. Callables
        are called from several threads, and may raise `ModelFailure`. One that returns an iterator, such as
        a generator function, is a model that streams: each str is a chunk. What is no text (None, ``b""``,
        bytes that are not UTF-8) is how a model tells that it is done; without it the stream ends with
        `stream_timeout`. A mapping among the chunks is a whole response, by output name.
    max_batch_sizes : mapping of str to int, optional
        The most rows of a request, by model; larger ones are refused, in the words of Triton. It means what
        ``max_batch_size`` means in Triton's configuration: the first dimension of every input is the batch,
        and 0 is a model without one. A model that is not named takes what comes, unless its file is in a
        model repository of Triton's (``NAME/VERSION/FILE``) with a ``NAME/config.pbtxt``.
    host : str
        The address to listen on.
    port : int
        The port; 0 is any free one, kept for later starts.
    container_id, transient_container_id, vm_ip : str
        The two containers that it knows from the beginning, and where they run.
    tokens : mapping of str to claims or roles, collection of str, or callable, optional
        Left out, everybody may connect. A mapping has the claims of each token, such as
        ``{"sub": "svc", "tenant_id": "acme", "roles": ["inference"]}``, or its roles alone; the client block
        of the auth message is ignored. A callable returns the claims of a token, and what it raises is why
        the token is refused; everything waits for it, as for the key server of a manager with a
        ``jwks_url``. With a collection the client block tells the roles.
    tick : float
        Seconds between the scheduler's wakes. 0 gives requests to the workers as they come.
    quantum : int
        The most inferences of one tenant that one wake takes, one from each uuid, the oldest uuids first.
    workers : int
        How many inferences run at a time.
    queue_size : int
        The most inferences of one uuid that wait; more are refused (``BACKPRESSURE_QUEUE_FULL``).
    executor_queue_size : int
        The most inferences that are with the workers, those that run included.
    management_workers, management_queue_size, management_executor_queue_size : int
        The same three for management jobs.
    stream_timeout : float
        Seconds that a stream may take; one whose model is still talking fails as soon as it is silent.
    max_message_bytes : int
        The most bytes of a message, in UTF-8.
    max_payload_bytes : int, optional
        The most bytes of a request's tensors, judged from shapes and datatypes (413).
    messages_per_second : int, optional
        The most messages a second on one connection, auth not counted.
    tenant_messages_per_second : int, optional
        The most messages of all connections of a tenant at once, and a second for long;
        ``queue_stats`` does not count. Without claims that name another, all clients are one tenant.
    auth_failures_per_minute : int, optional
        After so many a uuid is refused unheard.
    advise_after : int, optional
        A request that was passed over at so many wakes is announced by a
        ``BACKPRESSURE_INSUFFICIENT_BUDGET`` when its turn comes. None announces none.
    linger : float
        Seconds that `stop` drains at least. A real manager takes half a second even when it is idle.
    shm : bool
        Whether it grants ``shm``, on a machine that has it.
    triton_shm : bool
        Whether its Triton sees the same ``/dev/shm``. False refuses every registration, as is the lot of a
        Triton in a container that has one of its own.
    info : mapping of str to callable, optional
        Info actions beside ``queue_stats``: what each returns is the answer's data. One that raises is
        answered with the status ``error``. They are called where everything waits for them.
    readiness : callable, optional
        Called for every ``GET /ready``; when it raises, the answer is a 503 for the reason
        ``readiness_probe_failed``.
    forget_after : float
        Seconds after which a registered server that does not answer (`Cloud.lose_server`) is forgotten.
        Until then ``/ready`` is a 503 if no other registered server answers.
    known_faults : bool
        Whether the known faults of manager 2.0.0 are imitated that leave little to try on a laptop. Of
        registered HTTP servers: after inferences have overlapped, every other request on `route` fails with
        ``Cannot switch to a different thread``, and of those that overlap the first two hang, with their
        workers, until `kill`; `stop` waits for them for ever. Of management jobs: ``creation`` and
        ``create_server`` fail for models that do not stream, and a ``create_container`` that succeeds is
        never answered. Every other rule and failure of a manager's jobs is always kept.
    on_cloud_step : callable, optional
        Told of each `CloudStep` of a management job before it is done, in the thread that does it. It may
        take its time, and what it raises is the job's failure.
    ssl_context : ssl.SSLContext, optional
        Serves ``wss://`` and ``https://``.

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
        models = _checked_models({} if models is None else models)
        most = _checked_batch_sizes({} if max_batch_sizes is None else max_batch_sizes, models)
        self._models = {name: load_model(name, model, most.get(name)) for name, model in models.items()}
        self._cloud = Cloud(
            [
                Container(container_id, vm_ip, registered=True),
                Container(transient_container_id, vm_ip),
            ],
            forget_after=forget_after,
        )
        self._regions = Regions(blind=not triton_shm)
        self._counters = Counters()
        self._port = self._settings.port
        self._lock = threading.Lock()  # held while starting, and while looking which run there is
        self._server: Server | None = None
        self._killed: list[Server] = []

    def __repr__(self) -> str:
        state = "stopped" if self._server is None else f"at {self.uri}"
        return f"<LocalManager {state}, models {sorted(self._models)}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port, once it was started."""
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
        """Where its models run, over the connection that the manager keeps."""
        return Route(self._settings.container_id, self._settings.vm_ip)

    @property
    def transient_route(self) -> Route:
        """Where its models run too, streams included, for requests with ``allow_transient``."""
        return Route(self._settings.transient_container_id, self._settings.vm_ip)

    @property
    def cloud(self) -> Cloud:
        """What management jobs have created, and which there were."""
        return self._cloud

    @property
    def shared_memory(self) -> MappedMemory:
        """What it has mapped of clients' shared memory, for their tests; nothing while it is stopped."""
        server = self._server
        found = None if server is None else server.shared_memory
        return MappedMemory() if found is None else found.mapped()

    def start(self) -> None:
        """Listen and serve, in threads of its own.

        A manager that was stopped forgets all but its port, its cloud, and which shared memory its Triton
        knows, which refuses that to the manager that is started again.

        Raises
        ------
        RuntimeError
            If it runs already.
        ConfigError
            It cannot listen there: the port is taken, or the host is not of this machine.
        """
        from tcm_sync.local.server import Server

        with self._lock:
            if self._server is not None:
                raise RuntimeError("the manager runs already: stop it before starting it again")
            self._counters = Counters()
            try:
                server = Server(
                    self._settings, self._port, self._models, self._cloud, self._regions, self._counters
                )
                self._port = server.start()
            except OSError as error:  # no descriptors, no shared memory
                raise ConfigError(f"the manager cannot start: {error}") from error
            self._server = server

    def stop(self) -> None:
        """Drain and stop: what runs is waited for and answered, what waits is dropped.

        Until then new messages are handled and refused, as by a manager that got SIGTERM (docs/wire.rst,
        "Draining"). A model that does not return holds this up, and a stream that does not end does so until
        its `stream_timeout`. Stopping twice does no harm.
        """
        with self._lock:
            server = self._server
        if server is not None:
            server.stop()
            with self._lock:
                if self._server is server:
                    self._server = None
        while self._killed:
            self._killed.pop().join_workers()

    def kill(self) -> None:
        """Drop every connection at once, as SIGKILL does; also while `stop` drains.

        Models and jobs that run go on in their threads, streams up to their next chunk, and nobody hears of
        it; `stop` waits for them. It can be started again at once.
        """
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.kill()
            self._killed.append(server)

    def alert(self, message: str, error_type: str = "TritonServerStateChanged") -> None:
        """Send an alert to the client that connected first, as a manager does unasked.

        Parameters
        ----------
        message : str
            The text of the alert.
        error_type : str
            Its kind, by which `ClientStats.alerts` counts it.
        """
        server = self._server
        if server is not None:
            server.alert(message, error_type)

    def stats(self) -> LocalStats:
        """Count what was seen since the last start.

        Returns
        -------
        LocalStats
            The figures of this moment.
        """
        server = self._server
        return self._counters.snapshot() if server is None else server.core.stats()


def _checked_models(models: object) -> dict[str, Model]:
    if not isinstance(models, Mapping):
        raise ConfigError(f"models must map names to models, not {type(models).__name__}")
    return {check_text("models: a name", name): model for name, model in models.items()}


def _checked_batch_sizes(most: object, models: Mapping[str, Model]) -> dict[str, int]:
    if not isinstance(most, Mapping):
        raise ConfigError(f"max_batch_sizes must map names of models to sizes, not {type(most).__name__}")
    for name in most:
        if name not in models:
            raise ConfigError(
                f"max_batch_sizes names {shown(name)}, which is none of the models {sorted(models)}"
            )
    return {name: check_whole(f"max_batch_sizes: that of {name!r}", size, 0) for name, size in most.items()}
