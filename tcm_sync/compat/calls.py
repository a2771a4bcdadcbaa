"""The calls of tcm-client: each returns the manager's message as it is, also one that reports a failure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from tcm_sync._pool.call import Call
from tcm_sync._wire.quote import quote
from tcm_sync._wire.unreadable import out_of_memory
from tcm_sync.errors import ProtocolError, TcmError

if TYPE_CHECKING:
    from tcm_sync._transport.connection import Connection
    from tcm_sync._transport.replies import Future, PendingReplies, Refusal


class RawCall(Call):
    """A request whose answer is returned as it is, whatever it reports."""

    answered_by: ClassVar[str]  # the type of the message
    answer: dict[str, Any]
    refused: dict[str, Any] | None = None
    job_id: object = None

    def read(self, connection: Connection, message: bytes) -> TcmError | None:
        """Read the answer, which is never a failure."""
        try:
            answer = json.loads(message)
        except (ValueError, RecursionError):  # RecursionError: nested too deep
            answer = None
        except MemoryError:
            raise out_of_memory(len(message)) from None
        if not isinstance(answer, dict) or not isinstance(answer.get("payload"), dict):
            raise ProtocolError(f"the reply is no message: {quote(message)}")
        if answer.get("type") != self.answered_by or not self.is_answered(answer, connection.uuid):
            raise ProtocolError(f"the message is no reply to this request: {quote(message)}")
        self.answer = answer
        return None

    def is_answered(self, answer: dict[str, Any], uuid: str) -> bool:
        """Whether a message of the right type is the reply to this request."""
        return bool(answer.get("uuid") == uuid)

    def receive(self, connection: Connection, pending: PendingReplies, future: Future) -> Refusal | None:
        """Wait for the answer, and keep the payload of a refusal."""
        refusal = super().receive(connection, pending, future)
        if refusal is not None and refusal.error_reply is not None:
            said = refusal.error_reply
            fields = {"code": said.code, "message": said.message, "dropped_type": said.dropped_type}
            self.refused = {name: value for name, value in fields.items() if value is not None}
        return refusal


class InferenceCall(RawCall):
    """An inference."""

    kind: ClassVar[str] = "inference"
    answered_by = "inference"


class InfoCall(RawCall):
    """A question about the manager."""

    kind: ClassVar[str] = "info"
    answered_by = "info_response"

    def is_answered(self, answer: dict[str, Any], uuid: str) -> bool:  # noqa: ARG002
        """Whether the job is that of the request: the message has no uuid."""
        return bool(answer["payload"].get("job_id") == self.job_id)


class ManagementCall(RawCall):
    """A management job."""

    kind: ClassVar[str] = "management"
    answered_by = "management"
