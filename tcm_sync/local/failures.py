"""The failures of inferences, and the replies that report them (docs/wire.rst, "Inference")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from tcm_sync.local.models import ModelFailure

if TYPE_CHECKING:
    from collections.abc import Mapping


class ContractFailure(Exception):
    """The request breaks the contract: the reply has this text alone, without a code or a model."""


class CodedFailure(ModelFailure):
    """A failure that names another model than the request does.

    Parameters
    ----------
    code, message : str
        As in `ModelFailure`.
    model_name : str
        What the reply names.
    """

    def __init__(self, code: str, message: str, model_name: str) -> None:
        super().__init__(code, message)
        self.model_name = model_name


class StepFailure(Exception):
    """A step of a pipeline failed: the reply names the step's model."""

    def __init__(self, model_name: str, why: Exception) -> None:
        super().__init__(model_name)
        self.model_name = model_name
        self.why = why


def missing(field: str) -> NoReturn:
    """Refuse a request without the field."""
    raise ContractFailure(f"Missing required field '{field}'")


def required(payload: Mapping[str, Any], field: str, where: str = "") -> Any:
    """Return a field that must be there and not null; `where` is the path before its name in the refusal."""
    value = payload.get(field)
    return missing(where + field) if value is None else value


def text_of(exc: BaseException) -> str:
    """Return the text of an exception, or the name of its class if its text cannot be made."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a user's class may raise anything
        return type(exc).__name__


def failed_reply(exc: BaseException, model_name: str) -> dict[str, Any]:
    """Make the payload of a reply that reports a failure.

    Parameters
    ----------
    exc : BaseException
        A `ContractFailure`, a `ModelFailure`, or anything that a model raised.
    model_name : str
        The model's name in the request.
    """
    if isinstance(exc, StepFailure):
        model_name, exc = exc.model_name, exc.why
    if isinstance(exc, ContractFailure):
        return {"data": str(exc), "status": "FAILED", "model_name": None}
    failure = exc if isinstance(exc, ModelFailure) else ModelFailure("TRITON_INFERENCE_FAILED", text_of(exc))
    if isinstance(failure, CodedFailure):
        model_name = failure.model_name
    data: dict[str, Any] = {
        "code": failure.code,
        "message": f"[TritonThread] {failure.code}: model={model_name!r} "
        f"retriable={failure.retriable} reason={failure}",
        "retriable": failure.retriable,
    }
    if failure.retry_after_seconds is not None:
        data["retry_after_seconds"] = failure.retry_after_seconds
    return {"data": data, "status": "FAILED", "model_name": model_name}
