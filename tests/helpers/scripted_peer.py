"""A listening socket that sends and reads byte by byte what a test says."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING

from .peer_connection import TIMEOUT, ClientLeft, PeerConnection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    Script = Callable[[PeerConnection], object]


class ScriptedPeer:
    """Runs a script for each connection that a client opens, in a thread of its own.

    A script is a function of a `PeerConnection`. It may end in any way: when it returns, or the client
    leaves, the connection is closed; any other exception is raised again at the end of the ``with``
    block. ``GET /health`` and ``GET /ready`` on the same port are answered from `http`, and are no
    connections in the sense of the attributes below.

    Parameters
    ----------
    *scripts : callable
        The first is for the first connection, and so on; the last for all that follow.
    tls : ssl.SSLContext, optional
        Speak TLS with this context.
    host : str
        The address to listen on.

    Attributes
    ----------
    uri : str
        Where clients find it.
    http : dict
        Path to ``(status, JSON object)``, or to a script that answers by itself.
    raw : bool
        Whether what the client sends first is no line of HTTP, so that scripts take every connection.
    connections : list of PeerConnection
        In the order in which their first line came.
    probes : list of PeerConnection
        The HTTP requests that were answered.
    uuids : list of str
        Of every ``auth`` that was read; a uuid seen twice fails the script that sees it.
    requests : int
        Inference requests read, over all connections.
    refused : list of BaseException
        TLS handshakes that failed.
    """

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.scripts = scripts
        self.host = host
        self.tls = tls
        self.lock = threading.Lock()
        self.raw = False
        self.http: dict[str, Any] = {"/health": (200, {"status": "ok"}), "/ready": (200, {"status": "ready"})}
        self.connections: list[PeerConnection] = []
        self.probes: list[PeerConnection] = []
        self.uuids: list[str] = []
        self.requests = 0
        self.refused: list[BaseException] = []
        self._faults: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._open: set[PeerConnection] = set()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self.port = 0
        self.listen()

    @property
    def uri(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://{self.host}:{self.port}/ws"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stop_listening()
        with self.lock:
            open_now = list(self._open)
        for connection in open_now:
            connection.interrupt()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a script does not end"
        for fault in self._faults[0 if error else 1 :]:
            traceback.print_exception(type(fault), fault, fault.__traceback__)
        if self._faults and error is None:
            raise self._faults[0]

    def listen(self) -> None:
        """Accept connections, again on the same port if it was stopped."""
        self._listener = socket.create_server((self.host, self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="peer-accept")
        self._acceptor.start()

    def stop_listening(self) -> None:
        """Refuse new connections. The existing ones continue."""
        listener, self._listener = self._listener, None
        if listener is None or self._acceptor is None:
            return
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1.0):
            pass  # wakes the thread that accepts, which then finds that it is not wanted
        self._acceptor.join(TIMEOUT)
        listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            sock, _ = listener.accept()
            if self._listener is not listener:
                sock.close()
                return
            thread = threading.Thread(target=self._run, args=(sock,), name=f"peer-{len(self._threads)}")
            self._threads.append(thread)
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        try:
            if self.tls is not None:
                sock.settimeout(TIMEOUT)
                sock = self.tls.wrap_socket(sock, server_side=True)
        except OSError as error:
            self.refused.append(error)
            sock.close()
            return
        connection = PeerConnection(self, sock)
        with self.lock:
            self._open.add(connection)
        try:
            self._script_for(connection)(connection)
        except ClientLeft:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the test
            # A client that distrusts the certificate may say so only after the handshake (TLS 1.3).
            untrusted = isinstance(error, ssl.SSLError) and connection.number < 0
            (self.refused if untrusted else self._faults).append(error)
        finally:
            with self.lock:
                self._open.discard(connection)
            sock.close()
            connection.over.set()

    def _script_for(self, connection: PeerConnection) -> Script:
        """Look at the request line, and put it back for the script to read."""
        path = None
        if not self.raw:
            line = connection.recv_until(b"\r\n")
            connection.unread(line)
            path = line.split()[1].decode("latin-1")
        with self.lock:
            if path in self.http:
                self.probes.append(connection)
                answer = self.http[path]
                return answer if callable(answer) else partial(_answer_probe, answer)
            connection.number = len(self.connections)
            self.connections.append(connection)
            return self.scripts[min(connection.number, len(self.scripts) - 1)]


def _answer_probe(answer: tuple[int, Any], connection: PeerConnection) -> None:
    status, body = answer
    connection.read_handshake()
    connection.answer_http(status, json.dumps(body).encode())
