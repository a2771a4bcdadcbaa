"""Serve the sockets of a `LocalManager`, WebSocket and HTTP on one port, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, serve

from tcm_sync.errors import ConfigError
from tcm_sync.local import probes
from tcm_sync.local.core import Core
from tcm_sync.local.mapping import is_usable
from tcm_sync.local.session import NORMAL, Session
from tcm_sync.local.shared_memory import SharedMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from websockets.asyncio.server import Server as WebSocketServer
    from websockets.http11 import Request, Response

    from tcm_sync.local.cloud import Cloud
    from tcm_sync.local.injection import PlannedFaults
    from tcm_sync.local.loaded_model import LoadedModel
    from tcm_sync.local.regions import Regions
    from tcm_sync.local.settings import Settings
    from tcm_sync.local.stats import Counters

logger = logging.getLogger("tcm_sync.local")

#: The WebSocket library's limit in bytes, far above the manager's own, whose refusal has a better message.
_LIBRARY_LIMIT = 16 * 2**20
#: Seconds that a client may take to answer a close frame.
CLOSE_TIMEOUT = 2.0
_POLL = 0.1  # seconds between two looks whether the thread has ended
_ROUNDS = 5  # of the loop, in which it registers a connection that it has accepted


def _is_above_debug(record: logging.LogRecord) -> bool:
    """Leave out the WebSocket library's lines for debugging: requests, headers and frames show secrets."""
    return record.levelno > logging.DEBUG


def _library_logger() -> logging.Logger:
    library = logging.getLogger("tcm_sync.local.websockets")
    library.addFilter(_is_above_debug)  # the same one is added once
    return library


class Server:
    """One run of a manager, from binding its port to the end of its thread.

    Parameters
    ----------
    settings : Settings
    port : int
        0 is any free one.
    models : mapping of str to LoadedModel
    cloud : Cloud
    regions : Regions
    counters : Counters
    planned : PlannedFaults
    """

    def __init__(
        self,
        settings: Settings,
        port: int,
        models: Mapping[str, LoadedModel],
        cloud: Cloud,
        regions: Regions,
        counters: Counters,
        planned: PlannedFaults,
    ) -> None:
        self._settings = settings
        self._wanted_port = port
        self._models = models
        self._cloud = cloud
        self._counters = counters
        self._planned = planned
        self.shared_memory = SharedMemory(regions) if settings.shm and is_usable() else None
        self._bound: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="tcm-local", daemon=True)

    def start(self) -> int:
        """Bind the port and start serving.

        Returns
        -------
        int
            The port.

        Raises
        ------
        ConfigError
            It cannot listen there: the port is taken, or the host is not of this machine.
        """
        self._thread.start()
        try:
            return self._bound.result()
        except BaseException:
            self._thread.join()
            raise

    def shut_down(self) -> None:
        """Begin to drain, and return when it has begun; `stop` ends it."""
        begun = threading.Event()

        def begin() -> None:
            self.core.begin_draining()
            begun.set()

        self._post(begin)
        while not begun.wait(_POLL) and self._thread.is_alive():
            pass

    def stop(self) -> None:
        """Drain, close everything, and wait for the end."""
        self._post(lambda: self._stop.set())
        self._thread.join()
        self.join_workers()
        self._close_shared_memory()

    def kill(self) -> None:
        """Drop every connection at once, without waiting for running models."""
        self.core.discard_work()
        self._post(lambda: self._kill.set())
        self._thread.join()
        self._close_shared_memory()

    def alert(self, message: str, error_type: str) -> None:
        """Have an alert sent to the client that connected first."""
        self._post(lambda: self.core.alert(message, error_type))

    @property
    def is_working(self) -> bool:
        """Whether models or jobs still run."""
        return self.core.is_working

    def join_workers(self) -> None:
        """Wait for running models and jobs."""
        self.core.join_workers()

    def _close_shared_memory(self) -> None:
        if self.shared_memory is not None:
            self.shared_memory.close()

    def _post(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has ended already
            return

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:
            if self._bound.done():
                raise
            self._bound.set_exception(exc)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._transports: set[asyncio.Transport] = set()
        self._sessions: dict[Session, asyncio.Task[Any]] = {}
        server = await self._listen()
        self.core = Core(
            self._settings,
            self._models,
            self._cloud,
            self.shared_memory,
            self._counters,
            self._planned,
            self._loop,
        )
        scheduling = asyncio.create_task(self.core.schedule())
        ending = asyncio.create_task(self._end(server))
        killed = asyncio.create_task(self._kill.wait())
        self._bound.set_result(server.sockets[0].getsockname()[1])
        try:
            ended, _ = await asyncio.wait({ending, killed}, return_when=asyncio.FIRST_COMPLETED)
            if ending in ended:
                await ending
        finally:
            for task in (scheduling, ending, killed):
                task.cancel()
            await self._stop_listening(server)
            await self._drop_connections()
            await server.wait_closed()
            self.core.finish_workers()

    async def _listen(self) -> WebSocketServer:
        transports = self._transports

        class Connection(ServerConnection):
            """A connection that is registered from its first byte, so that it can be dropped at any time."""

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                transports.add(self.transport)

            def connection_lost(self, exc: Exception | None) -> None:
                transports.discard(self.transport)
                super().connection_lost(exc)

        try:
            return await serve(
                self._serve_connection,
                self._settings.host,
                self._wanted_port,
                ssl=self._settings.ssl_context,
                process_request=self._answer_http,
                create_connection=Connection,
                compression=None,
                max_size=max(_LIBRARY_LIMIT, 4 * self._settings.max_message_bytes),
                close_timeout=CLOSE_TIMEOUT,
                logger=_library_logger(),
            )
        except (OSError, ValueError) as error:  # a name that IDNA cannot write is a ValueError
            where = f"host {self._settings.host!r:.80}, port {self._wanted_port}"
            raise ConfigError(f"the manager cannot listen on {where}: {error}") from error

    def _answer_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP requests, and let ``/ws`` through to its handshake."""
        path = request.path.partition("?")[0]
        if path == "/ws":
            return None
        if path == "/health":
            return _json_response(connection, 200, {"status": "ok"})
        if path == "/ready":
            return _json_response(connection, *probes.readiness(self._cloud, self._settings.readiness))
        if path == "/metrics":
            return self._answer_metrics(connection, request)
        return _json_response(connection, 404, {"detail": "Not Found"})

    def _answer_metrics(self, connection: ServerConnection, request: Request) -> Response:
        if not probes.may_read_metrics(connection.remote_address[0], request.headers.get("X-Forwarded-For")):
            return _json_response(connection, 403, {"detail": "Forbidden"})
        response = connection.respond(200, probes.metrics(self.core.stats()))
        _set_content_type(response, "text/plain; version=1.0.0; charset=utf-8")
        return response

    async def _serve_connection(self, connection: ServerConnection) -> None:
        self._counters.count("connections")
        session = Session(connection, self.core)
        task = asyncio.current_task()
        assert task is not None
        self._sessions[session] = task
        try:
            await session.run()
        finally:
            del self._sessions[session]

    async def _end(self, server: WebSocketServer) -> None:
        """Wait for `stop`, drain, and close every session in order."""
        await self._stop.wait()
        logger.info("draining")
        await self.core.drain(self._settings.linger)
        await self._stop_listening(server)
        for session in self._sessions:
            session.close(NORMAL)
        if self._sessions:
            await asyncio.wait(self._sessions.values(), timeout=CLOSE_TIMEOUT)

    async def _stop_listening(self, server: WebSocketServer) -> None:
        """Accept no more, and close the port once the connections that were accepted are registered."""
        for sock in server.sockets:
            with contextlib.suppress(NotImplementedError):  # the loop of Windows has no readers
                self._loop.remove_reader(sock.fileno())
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        server.close(close_connections=False)

    async def _drop_connections(self) -> None:
        while self._transports:
            for transport in tuple(self._transports):
                transport.abort()
            await asyncio.sleep(0)  # the loop calls connection_lost, which removes them from the set


def _json_response(connection: ServerConnection, status: int, body: Mapping[str, Any]) -> Response:
    response = connection.respond(status, json.dumps(body))
    _set_content_type(response, "application/json")
    return response


def _set_content_type(response: Response, content_type: str) -> None:
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
