"""Turn the manager's error messages into exceptions, by the table of codes (docs/errors.rst)."""

from __future__ import annotations

import re

from tcm_sync._numbers import asked_pause
from tcm_sync._wire.messages import ErrorReply, Failure
from tcm_sync._wire.quote import quote
from tcm_sync.errors import (
    ERROR_CODES,
    KNOWN_FAULTS,
    AuthenticationError,
    BackpressureError,
    CodeRule,
    ConnectFailedError,
    ContractError,
    InferenceError,
    InferenceFailedError,
    ManagementError,
    MessageTooLargeError,
    PayloadTooLargeError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitedError,
    ShuttingDownError,
    StreamTimeoutError,
    TcmError,
)

#: A notice that a request is delayed. It is not a reply: the reply still comes.
ADVISORY = "BACKPRESSURE_INSUFFICIENT_BUDGET"

#: A message over the manager's limit for the tenant; its socket is closed.
TENANT_LIMIT = "BACKPRESSURE_TENANT_LIMIT_REACHED"

_PAYLOAD_TOO_LARGE = re.compile(
    r"413 Payload Too Large(?:.*?estimated_bytes=(\d{1,18})\b)?(?:.*?limit_bytes=(\d{1,18})\b)?", re.S
)
_TOO_LARGE = re.compile(r"Message too large \(>(\d{1,18}) bytes\)")
_BATCH_OVER_MAX = re.compile(r"inference request batch-size must be <= (\d{1,9}) ")
_MISSING_INPUTS = re.compile(r"missing required input\(s\) \['([^\]]{1,500})'\]")
_STREAM_TIMEOUT = "Stream timed out after"
# Parts of failures of the manager's client for a registered server, and what users can do.
_ADVICE = {
    "has no attribute 'start_stream'": (
        "the manager has an HTTP client for this registered server, which does not stream: streams need a "
        "decoupled model, or a container without a registered server and allow_transient=True"
    ),
    "Expected a message object, but got": (
        "the manager has a gRPC client for this registered server, which can only stream: use stream()"
    ),
}

# The manager refuses a token with these texts when its key server cannot be reached, or answers with an
# error, with invalid JSON or without keys (docs/wire.rst, "Authentication"). The token may be good.
_KEY_SERVER = (
    "Fail to fetch data from the url",
    "The JWK Set did not contain any keys",
    "Expecting value: line ",
)

# Beginnings of refusals that show that the manager did not run the request (docs/wire.rst, "Errors").
_NOT_RUN = ("Invalid JSON", "Invalid type", "Missing required field", "Field ", "UUID ", "First message")
# The manager's name of each part of a deletion, ours, and its text for a part that does not exist.
_DELETION_PARTS = {
    "triton_delete_server": ("server", "Server instance not found: "),
    "delete_container": ("container", "Container not found: "),
    "delete_vm": ("vm", "VM not found during deletion: "),
}
_DELETION_FAILED = "Deletion failed: "
_PART = re.compile(rf"(?:^|; )({'|'.join(_DELETION_PARTS)}): ")
_MISSING_ARGUMENT = "Missing required argument: "

# Answers that come of Triton's silence: it may have got the request, and run it still, unless it refused the
# connection.
_MAY_HAVE_RUN = ("TRITON_TIMEOUT", "TRITON_NETWORK")
_REFUSED = "Connection refused"

_UNKNOWN = CodeRule(InferenceError, retriable=False)


def failure_of_reply(failure: Failure | str) -> TcmError:
    """Turn the data of a FAILED inference into the error to raise.

    A text alone is a contract error: the manager refused the request before it asked Triton. For a code that
    is not in the table the reply's own ``retriable`` decides.
    """
    if isinstance(failure, str):
        return ContractError(f"the manager refused the request: {quote(failure)}")
    code, text = quote(failure.code), quote(failure.message)
    if found := _PAYLOAD_TOO_LARGE.search(failure.message):
        estimated, limit = (int(number) if number else None for number in found.groups())
        return PayloadTooLargeError(
            f"{text}: send fewer rows a call",
            code=code,
            estimated_bytes=estimated,
            limit_bytes=limit,
        )
    if _STREAM_TIMEOUT in failure.message:
        return StreamTimeoutError(
            f"{text}: the manager does not see when a model has ended, and waits for its time limit; "
            "idle_timeout= ends a stream that has been silent for so long",
            code=code,
        )
    for fault in KNOWN_FAULTS:
        if fault.text in failure.message:
            return fault.error(f"{text}: {fault.meaning}", code=code)
    for part, advice in _ADVICE.items():
        if part in failure.message:
            text += f": {advice}"
    if found := _MISSING_INPUTS.search(text):
        names = ", ".join(f'"{name}": array' for name in found[1].split("','"))
        text += f" Pass each input by its name: {{{names}}}"
    if found := _BATCH_OVER_MAX.search(failure.message):
        return InferenceFailedError(
            f"{text}: send at most {found[1]} rows a call (infer_chunked cuts a batch)",
            code=code,
            max_batch_size=max(1, int(found[1])),
        )
    rule = ERROR_CODES.get(failure.code, _UNKNOWN._replace(retriable=failure.retriable))
    return rule.error(
        text or code,
        code=code,
        retriable=rule.retriable,
        retry_after=asked_pause(failure.retry_after_seconds),
        outcome_unknown=failure.code in _MAY_HAVE_RUN and _REFUSED not in failure.message,
    )


def failure_of_error(error: ErrorReply) -> TcmError:
    """Turn an ``error`` message into the error to raise for the request it answers."""
    text = quote(error.message)
    if error.code is None:
        return _failure_without_code(error.message, text)
    rule = ERROR_CODES.get(error.code, CodeRule(ProtocolError, retriable=False))
    code = quote(error.code)
    if rule.error is ShuttingDownError:
        return ShuttingDownError(
            f"the manager is shutting down: {text}", code=code, outcome_unknown=error.dropped_type is None
        )
    if rule.error is BackpressureError or error.dropped_type is not None:
        return BackpressureError(f"the manager dropped the request; it did not run: {text}", code=code)
    return rule.error(
        f"{code}: {text}",
        code=code,
        retriable=rule.retriable,
        outcome_unknown=error.code not in ERROR_CODES,
    )


def _failure_without_code(message: str, text: str) -> TcmError:
    """Read a refusal that has a text and no code (docs/wire.rst, "Errors")."""
    if message.startswith("Forbidden"):
        return PermissionDeniedError(
            f"{text}: add the role to AuthContext(roles=...) or to the token's claims"
        )
    if message.startswith("Rate limit exceeded"):
        return RateLimitedError(f"{text}; messages_per_second= keeps a client below the manager's limit")
    if found := _TOO_LARGE.match(message):
        limit = int(found[1])
        return MessageTooLargeError(
            f"the manager's limit is {limit:,} bytes a message: send fewer rows a call, and set "
            f"max_message_bytes={limit}",
            limit=limit,
        )
    if message.startswith("Invalid token") and any(part in message for part in _KEY_SERVER):
        return ConnectFailedError(
            f"the manager could not check the token, since its key server failed: {text}; if it lasts, ask "
            "the manager's operator",
        )
    if message.startswith(("Invalid token", "Too many failed auth attempts")):
        return AuthenticationError(f"the manager refused the authentication: {text}")
    return ProtocolError(
        f"the manager refused the message: {text}", outcome_unknown=not message.startswith(_NOT_RUN)
    )


def failure_of_job(action: str, text: str) -> ManagementError:
    """Turn the text with which a management job failed into the error to raise."""
    quoted = quote(text)
    if action == "deletion" and (parts := _deletion_parts(text)):
        outcome = "; ".join(
            f"{state}: {', '.join(part for part, its in parts.items() if its == state)}"
            for state in ("deleted", "missing", "failed")
            if state in parts.values()
        )
        return ManagementError(
            f"the deletion did not find or delete all parts ({outcome}): {quoted}", parts=parts
        )
    if action.startswith("delete_") and _MISSING_ARGUMENT in text:
        quoted += f'; pass the ids of {action} outside the blocks: management("{action}", vm_id=..., ...)'
    return ManagementError(f"the job failed: {quoted}")


def _deletion_parts(text: str) -> dict[str, str]:
    """Read the outcome for each part of a deletion that failed; empty if the text has another form.

    The manager tries each part; a part that the text does not name was deleted (docs/wire.rst, "Management").
    """
    before, *named = _PART.split(text.removeprefix(_DELETION_FAILED))
    if not text.startswith(_DELETION_FAILED) or before or not named:
        return {}
    parts = {part: "deleted" for part, _ in _DELETION_PARTS.values()}
    for name, why in zip(named[::2], named[1::2], strict=True):
        part, missing = _DELETION_PARTS[name]
        parts[part] = "missing" if missing in why else "failed"
    return parts
