"""Pipelines: several models of one server, one after another, in one request (docs/wire.rst, "Pipelines")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET as LEFT_OUT
from msgspec import Raw, Struct

from tcm_sync._arguments import check_text, is_iterable
from tcm_sync._calls.options import checked_policy, route_for, start_deadline
from tcm_sync._calls.request import InferenceCall, is_readable
from tcm_sync._calls.retrying import perform
from tcm_sync._numbers import shown
from tcm_sync._tensors import (
    check_inputs,
    check_output_dtypes,
    decode_outputs,
    encode_inputs,
    minimum_json_bytes,
)
from tcm_sync._tracebacks import shortened_errors
from tcm_sync._wire.decode import decode_steps
from tcm_sync._wire.encode import Pieces, check_size, encode_payload, size_of
from tcm_sync._wire.messages import InferencePayload, StepRequest
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InferenceError, InputError, ProtocolError, TcmError
from tcm_sync.results import InferResult
from tcm_sync.settings import UNSET, Unset

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import Defaults
    from tcm_sync._deadline import Deadline
    from tcm_sync.retry import RetryPolicy
    from tcm_sync.settings import Route

Result = TypeVar("Result")

_KEYS = ("model_name", "inputs", "name", "output_dtypes")


class PipelineStep(Struct, frozen=True, eq=False):
    """One model of a pipeline.

    Parameters
    ----------
    model_name : str
        The model.
    inputs : mapping, sequence or array-like
        As `infer` takes them. A step does not see what those before it returned.
    name : str, optional
        What its result is called; left out, the model's name.
    output_dtypes : dtype or mapping of str to dtype, optional
        As `infer` takes them.
    """

    model_name: str
    inputs: Any
    name: str | None = None
    output_dtypes: Any = None

    @property
    def key(self) -> str:
        """What its result is called."""
        return self.model_name if self.name is None else self.name


def pipeline(
    core: Core,
    defaults: Defaults,
    steps: Iterable[PipelineStep | Mapping[str, Any]],
    *,
    vm_ip: str | None,
    container_id: str | None,
    vm_id: str | None,
    timeout: float | Unset | None,
    retry: RetryPolicy | Unset | None,
) -> dict[str, InferResult]:
    """Run several models of one server, one after another, in one request."""
    deadline = start_deadline(timeout, defaults.timeout)
    route = route_for(defaults, vm_ip, container_id, vm_id)
    policy = defaults.policy if retry is UNSET else checked_policy(retry)
    checked = _checked_steps(steps)
    dtypes = [
        defaults.dtypes
        if step.output_dtypes is None
        else _of_step(step, check_output_dtypes, step.output_dtypes)
        for step in checked
    ]
    with shortened_errors:
        payload = _encode_pipeline(
            checked, route, core.message_limit(), core.messages.envelope_bytes("inference"), deadline
        )
    names = ", ".join(step.key for step in checked)
    target = (route, f"pipeline of {names}")
    call = InferenceCall(payload, deadline, waits_for_manager=policy is not None, target=target)
    call.reported_as = "pipeline"
    try:
        attempts = perform(core, call, policy)
    except InferenceError as error:
        _name_step(error, checked)
        raise
    texts: list[bytes] = []
    try:
        texts = _texts_of(checked, call.reply.data)
        results = {
            step.key: InferResult(
                step.model_name,
                _of_step(step, decode_outputs, text, wanted, deadline),
                text,
                attempts,
                deadline.elapsed(),
            )
            for step, text, wanted in zip(checked, texts, dtypes, strict=True)
        }
    except TcmError as error:
        core.failed(error, call)
        call.note_unreadable(
            error, readable=lambda: bool(texts) and all(is_readable(text, deadline) for text in texts)
        )
        raise
    return results


def _checked_steps(steps: object) -> list[PipelineStep]:
    """Check everything about the steps but their tensors."""
    if isinstance(steps, PipelineStep) or not is_iterable(steps):
        raise InputError(f"steps must be a sequence of PipelineStep or of dicts, not {type(steps).__name__}")
    checked = [_checked_step(step, place) for place, step in enumerate(steps)]
    if not checked:
        raise InputError("no steps: a pipeline has one at least")
    seen = set()
    for step in checked:
        if step.key in seen:
            raise InputError(f"step {step.key!r}: named twice; give one of them a name of its own")
        seen.add(step.key)
    return checked


def _checked_step(step: object, place: int) -> PipelineStep:
    if isinstance(step, Mapping):
        if step.get("protocol", "http") != "http":
            raise InputError(f"step {place}: a pipeline runs over http alone, not {shown(step['protocol'])}")
        fields = {key: value for key, value in step.items() if key != "protocol"}
        unknown = [f"has the unknown key {shown(key)}" for key in fields if key not in _KEYS]
        missing = [f"lacks {key!r}" for key in _KEYS[:2] if key not in fields]
        if unknown or missing:
            raise InputError(f"step {place}: {', '.join(missing + unknown)}; the keys are {', '.join(_KEYS)}")
        step = PipelineStep(**fields)
    if not isinstance(step, PipelineStep):
        raise InputError(f"step {place} must be a PipelineStep or a dict, not {type(step).__name__}")
    name = step.name
    return PipelineStep(
        check_text(f"step {place}: its model_name", step.model_name, InputError),
        step.inputs,
        None if name is None else check_text(f"step {place}: its name", name, InputError),
        step.output_dtypes,
    )


def _of_step(step: PipelineStep, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do something for a step, and name it in the error if that fails."""
    try:
        return work(*arguments)
    except (InputError, ProtocolError) as error:
        error.args = (f"step {quote(step.key)!r}: {error.message}",)
        raise


def _encode_pipeline(
    steps: list[PipelineStep], route: Route, limit: int, envelope_bytes: int, deadline: Deadline
) -> Pieces:
    tensors = [_of_step(step, check_inputs, step.inputs) for step in steps]
    check_size(sum(map(minimum_json_bytes, tensors)) + envelope_bytes, limit, at_least=True)
    requests = tuple(
        StepRequest(
            model_name=step.model_name,
            inputs=Raw(b"[%b]" % b"".join(encode_inputs(inputs, deadline))),
            name=LEFT_OUT if step.name is None else step.name,
        )
        for step, inputs in zip(steps, tensors, strict=True)
    )
    payload = encode_payload(
        InferencePayload(
            container_id=route.container_id,
            vm_ip=LEFT_OUT if route.vm_ip is None else route.vm_ip,
            vm_id=LEFT_OUT if route.vm_id is None else route.vm_id,
            pipeline=requests,
        )
    )
    check_size(size_of(payload) + envelope_bytes, limit)
    return payload


def _texts_of(steps: list[PipelineStep], data: bytes) -> list[bytes]:
    """Return the outputs of each step, unread."""
    texts = decode_steps(data)
    for step in steps:
        if step.key not in texts:
            there = ", ".join(f'"{quote(name)}"' for name in list(texts)[:20]) or "none"
            raise ProtocolError(f"the pipeline returned nothing for step {step.key!r}; it did for: {there}")
    return [bytes(texts[step.key]) for step in steps]


def _name_step(error: InferenceError, steps: list[PipelineStep]) -> None:
    """Name the step that failed, where exactly one is named in the manager's message."""
    named = [
        step for step in steps if f"'{step.key}'" in error.message or f"'{step.model_name}'" in error.message
    ]
    if len(named) == 1:
        error.model_name = named[0].model_name
        error.args = (f"step {named[0].key!r}: {error.message}",)
