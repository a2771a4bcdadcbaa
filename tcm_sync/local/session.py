"""Serve one connection: read, check and answer its messages (docs/wire.rst)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from websockets.exceptions import ConnectionClosed

from tcm_sync._wire.quote import quote
from tcm_sync.local.auth import UNKNOWN_TENANT, AuthRefused, Identity, granted_capabilities
from tcm_sync.local.core import DROPPED_BY_SHUTDOWN, EXECUTOR_FULL, QUEUE_FULL, error_message
from tcm_sync.local.failures import text_of
from tcm_sync.local.injection import SHUTDOWN, TENANT_LIMIT_REACHED
from tcm_sync.local.limits import SlidingWindow
from tcm_sync.local.outbox import Outbox
from tcm_sync.local.scheduler import Job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from websockets.asyncio.server import ServerConnection

    from tcm_sync.local.core import Core

logger = logging.getLogger("tcm_sync.local")

TYPES = ("auth", "inference", "info", "management")
#: Seconds that a client may take to authenticate.
AUTH_TIMEOUT = 30.0
#: Bytes of messages that may wait behind the one that is being sent: a client that needs more does not read.
MAX_UNREAD = 16 * 2**20
_MESSAGE_BYTES = 100  # of memory, beside its text

NORMAL, POLICY, TOO_BIG, RESTART = 1000, 1008, 1009, 1012

_TENANT_LIMIT = ("BACKPRESSURE_TENANT_LIMIT_REACHED", "Tenant quota exceeded (messages per second).")
_SHUTTING_DOWN = ("SYSTEM_SHUTDOWN", "Server is shutting down; request rejected.")


class _Envelope(NamedTuple):
    uuid: str
    kind: str
    payload: dict[str, Any]


class _MalformedMessage(Exception):
    """A message that is not a valid envelope; the text is sent to the client."""


def _read_envelope(text: str) -> _Envelope:
    try:
        message = orjson.loads(text)  # it refuses NaN, Infinity and 1e400
    except orjson.JSONDecodeError:
        raise _MalformedMessage("Invalid JSON format") from None
    if not isinstance(message, dict):
        raise _MalformedMessage("Message must be a dictionary")
    for field in ("uuid", "type", "payload"):
        if field not in message:
            raise _MalformedMessage(f"Missing required field: '{field}'")
    uuid, kind, payload = message["uuid"], message["type"], message["payload"]
    if not isinstance(uuid, str) or not uuid:
        raise _MalformedMessage("Field 'uuid' must be a non-empty string")
    if kind not in TYPES:
        raise _MalformedMessage(f"Invalid type {kind!r}. Must be one of: {list(TYPES)}")
    if not isinstance(payload, dict):
        raise _MalformedMessage("Field 'payload' must be a dictionary")
    return _Envelope(uuid, kind, payload)


def _bytes_of(texts: tuple[str, ...]) -> int:
    """Count about how much memory messages take."""
    return sum(map(len, texts)) + _MESSAGE_BYTES * len(texts)


def _info_action(payload: Mapping[str, Any]) -> Any:
    """Return the action of an info request, for which there are two keys."""
    return payload["action"] if "action" in payload else payload.get("request_type", "unknown")


class Session:
    """One connection, from its auth message to its close.

    Parameters
    ----------
    connection : websockets.asyncio.server.ServerConnection
    core : Core
    """

    def __init__(self, connection: ServerConnection, core: Core) -> None:
        self._connection = connection
        self._core = core
        self._uuid = ""
        self._identity = Identity(UNKNOWN_TENANT, ())
        self._messages = SlidingWindow(core.settings.messages_per_second, 1.0)
        # texts that are sent in one piece, or outboxes that have some; then a close code or None
        self._outgoing: asyncio.Queue[tuple[str, ...] | Outbox | int | None] = asyncio.Queue()
        self.outbox = Outbox(
            asyncio.get_running_loop(), self._outgoing.put_nowait, is_draining=lambda: core.draining
        )
        self._closing = False
        self._unread = 0  # bytes of the texts in _outgoing

    async def run(self) -> None:
        """Serve the connection until it is closed."""
        writer = asyncio.create_task(self._write())
        try:
            with contextlib.suppress(ConnectionClosed):
                await self._read()
        finally:
            self._core.leave(self._uuid)  # even if the connection is not closed yet
            self.outbox.close()
            self._outgoing.put_nowait(None)
            await writer
            logger.debug("%s has disconnected", quote(self._uuid or "a client without a uuid"))

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, after those before it."""
        if message["type"] == "error":
            payload = message["payload"]
            self._core.counters.count_nack(payload.get("code", payload["message"]))
        self.send_texts(json.dumps(message))

    def send_texts(self, *texts: str) -> None:
        """Send messages that are written already, in one piece."""
        if self._closing:
            return
        if self._unread > MAX_UNREAD:
            logger.warning("%s does not read its messages: its connection is dropped", quote(self._uuid))
            self._closing = True
            self._connection.transport.abort()
            return
        self._unread += _bytes_of(texts)
        self._outgoing.put_nowait(texts)

    def close(self, code: int) -> None:
        """Close the connection after the messages before are sent; nothing else is sent or handled."""
        if not self._closing:
            self._closing = True
            self._outgoing.put_nowait(code)

    def _refuse(self, message: str, close_code: int, code: str | None = None, **more: str) -> None:
        self.send(error_message(message, code, **more))
        self.close(close_code)

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while isinstance(item := await self._outgoing.get(), tuple | Outbox):
                if isinstance(item, tuple):
                    self._unread -= _bytes_of(item)
                await self._send_all(item if isinstance(item, tuple) else item.take())
            if item is not None:
                await self._connection.close(item)

    async def _send_all(self, texts: Sequence[str]) -> None:
        """Send messages in one write, which makes streams fast; waits while the socket's buffer is full."""
        connection = self._connection
        async with connection.send_context():
            for text in texts:
                connection.protocol.send_text(text.encode())
            connection.transport.write(b"".join(connection.protocol.data_to_send()))

    async def _read(self) -> None:
        try:
            text = await asyncio.wait_for(self._receive(), AUTH_TIMEOUT)
        except asyncio.TimeoutError:
            self.close(POLICY)
            return
        if text is not None:
            self._authenticate(text)
        while not self._closing and (text := await self._receive()) is not None:
            self._core.counters.count("messages")
            self._handle(text)
            if self._core.draining:  # the message was handled, and is still refused
                self._shut_down()

    async def _receive(self) -> str | None:
        """Receive a message; None if the connection is closed or will be."""
        message = await self._connection.recv()
        if not isinstance(message, str):
            self._connection.transport.abort()
            return None
        limit = self._core.settings.max_message_bytes
        if len(message) > limit or (not message.isascii() and len(message.encode()) > limit):
            self._refuse(f"Message too large (>{limit} bytes)", TOO_BIG)
            return None
        return message

    def _shut_down(self) -> None:
        code, message = _SHUTTING_DOWN
        if not self._closing:
            self._refuse(message, RESTART, code)

    def _authenticate(self, text: str) -> None:
        try:
            uuid, kind, payload = _read_envelope(text)
            if kind != "auth":
                raise _MalformedMessage("First message must be type 'auth'")
            self._identity = self._core.authenticator.identify(uuid, payload)
        except (_MalformedMessage, AuthRefused) as exc:
            self._refuse(str(exc), POLICY)
            return
        if not self._core.join(uuid, self):
            self._refuse(f"UUID '{uuid}' is already connected", POLICY)
            return
        self._uuid = uuid
        self._core.counters.count_uuid(uuid)
        logger.debug("%s is connected", quote(uuid))
        capability = granted_capabilities(payload.get("capability"), self._core.capabilities)
        reply = {"type": "auth.ok"}
        self.send(reply if capability is None else {**reply, "payload": {"capability": capability}})
        if self._core.draining:
            self._shut_down()

    def _handle(self, text: str) -> None:
        if not self._messages.admit():
            self._refuse("Rate limit exceeded for this client (messages per second)", POLICY)
            return
        try:
            uuid, kind, payload = _read_envelope(text)
            if uuid != self._uuid:
                self._refuse(f"UUID mismatch. Expected '{self._uuid}', got '{uuid}'", POLICY)
                return
            if kind == "auth":
                raise _MalformedMessage("Already authenticated")
        except _MalformedMessage as exc:
            self.send(error_message(str(exc)))
            return
        if kind == "info" and _info_action(payload) in ("queue_stats", "queue"):
            self._send_info(payload, data=self._core.scheduler.queue_stats())
        elif not self._core.admit_tenant(self._identity.tenant):
            code, message = _TENANT_LIMIT
            self._refuse(message, POLICY, code)
        elif kind == "info":
            self._core.scheduler.note(uuid, "info")
            self._answer_info(payload)
        elif not self._identity.has_role(kind):
            self.send(error_message(f"Forbidden: missing '{kind}' role"))
        else:
            identity, fault = self._identity, self._core.planned.take(kind, payload)
            job = Job(uuid, identity.tenant, payload, kind, identity.claims, fault)
            if fault.refusal is not None:
                self._refuse_as_planned(job, fault.refusal)
                return
            self._core.enqueue(job)
            if fault.drops:
                self._connection.transport.abort()

    def _refuse_as_planned(self, job: Job, code: str) -> None:
        if code == TENANT_LIMIT_REACHED:
            self._refuse(_TENANT_LIMIT[1], POLICY, code)
        elif code == SHUTDOWN:
            self._refuse(DROPPED_BY_SHUTDOWN[1], NORMAL, code, dropped_type=job.kind)
        else:
            _, message = QUEUE_FULL if code == QUEUE_FULL[0] else EXECUTOR_FULL
            self.send(error_message(message, code, dropped_type=job.kind))

    def _answer_info(self, payload: Mapping[str, Any]) -> None:
        action = _info_action(payload)
        known = self._core.settings.info
        if not isinstance(action, str) or action not in known:
            self._send_info(payload, data={"message": f"Info type '{action}' not implemented yet"})
            return
        try:
            self._send_info(payload, data=known[action]())
        except BaseException as exc:  # noqa: BLE001 - the user's function may raise anything
            self._send_info(payload, "error", error=text_of(exc))

    def _send_info(self, payload: Mapping[str, Any], status: str = "success", **more: object) -> None:
        answer = {"job_id": payload.get("job_id"), "request_type": _info_action(payload), "status": status}
        self.send({"type": "info_response", "payload": {**answer, **more}})
