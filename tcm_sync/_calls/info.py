"""Questions about the manager itself (docs/wire.rst, "Info")."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, ClassVar

from tcm_sync._arguments import check_text
from tcm_sync._calls.options import start_deadline
from tcm_sync._calls.retrying import perform
from tcm_sync._numbers import shown
from tcm_sync._pool.call import Call
from tcm_sync._wire.decode import decode_info, decode_value
from tcm_sync._wire.encode import Pieces, check_size
from tcm_sync._wire.plain import plain_json
from tcm_sync._wire.quote import quote
from tcm_sync.errors import ContractError, InputError, ProtocolError, TcmError

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import Defaults
    from tcm_sync._deadline import Deadline
    from tcm_sync._transport.connection import Connection
    from tcm_sync.settings import Unset


def info(
    core: Core, defaults: Defaults, action: str, timeout: float | Unset | None, payload: dict[str, object]
) -> dict[str, Any]:
    """Ask the manager about itself."""
    action = check_text("action", action, InputError)
    job_id = payload.setdefault("job_id", secrets.token_hex(8))
    if not isinstance(job_id, str):
        raise InputError(f"job_id must be a text, not {shown(job_id)}")
    text = plain_json({"action": action, **payload})
    check_size(len(text) + core.messages.envelope_bytes("info"), core.message_limit())
    deadline, policy = start_deadline(timeout, defaults.timeout), defaults.policy
    call = InfoCall((text,), deadline, waits_for_manager=policy is not None, job_id=job_id)
    perform(core, call, policy)
    return call.data


class InfoCall(Call):
    """One question in flight, with the data of its answer once it has come."""

    kind: ClassVar[str] = "info"
    reported_as = "info"
    data: dict[str, Any]

    def __init__(self, payload: Pieces, deadline: Deadline, *, waits_for_manager: bool, job_id: str) -> None:
        super().__init__(payload, deadline, waits_for_manager=waits_for_manager)
        self._job_id = job_id

    def read(self, connection: Connection, message: bytes) -> TcmError | None:  # noqa: ARG002
        """Read the answer, after checking that it is to this question: by its ``job_id`` alone."""
        reply = decode_info(message)
        if reply.job_id != self._job_id:
            raise ProtocolError(
                f"the manager answered job {quote(str(reply.job_id))} in place of {self._job_id}"
            )
        if reply.status == "error":
            return ContractError(f"the manager refused the question: {quote(reply.error or 'no reason')}")
        data = decode_value(reply.data)
        if reply.status != "success" or not isinstance(data, dict):
            raise ProtocolError(f"an info_response must succeed with an object: {quote(message)}")
        self.data = data
        return None
