"""`infer`: from its arguments to a request, and from the reply to arrays."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tcm_sync._calls.request import (
    InferenceCall,
    encode_references,
    encode_request,
    encode_tensors,
    is_readable,
)
from tcm_sync._calls.retrying import perform
from tcm_sync._calls.shm_inference import Shareable, SharedCall, copied, with_obstacle
from tcm_sync._deadline import Deadline
from tcm_sync._process import notice_fork
from tcm_sync._shm.policy import is_worth_sharing
from tcm_sync._shm.references import as_references
from tcm_sync._tensors import check_call, decode_outputs, encode_small
from tcm_sync._tracebacks import shortened
from tcm_sync._wire.encode import Pieces, check_size, size_of
from tcm_sync.errors import InputError, MessageTooLargeError, TcmError
from tcm_sync.events._watch import Watch
from tcm_sync.results import InferResult

if TYPE_CHECKING:
    from tcm_sync._calls.core import Core
    from tcm_sync._calls.options import CallOptions
    from tcm_sync._tensors import Tensor
    from tcm_sync._wire.messages import SharedTensor


def infer(core: Core, options: CallOptions, inputs: object) -> InferResult:
    """Run a model on some inputs."""
    deadline = Deadline(options.timeout)
    try:
        if core.listeners.registered:
            return _watched(core, options, inputs, deadline)
        return send(core, options, encode(core, options, inputs, deadline=deadline), deadline)
    except BaseException as error:  # not shortened_errors: that takes time where nothing fails
        shortened(error)
        raise


def _watched(core: Core, options: CallOptions, inputs: object, deadline: Deadline) -> InferResult:
    """Do the same while somebody listens."""
    watch = watch_of(core, options, inputs)
    return send_watched(core, options, encode(core, options, inputs, deadline=deadline), deadline, watch)


def watch_of(core: Core, options: CallOptions, inputs: object = None) -> Watch | None:
    """Return what measures an inference from now on; None if there are no listeners."""
    if not core.listeners.registered:
        return None
    watch = Watch(core.listeners, "infer", (options.route, options.model_name))
    watch.is_shared = type(inputs) is not dict and as_references(inputs) is not None
    return watch


def encode(
    core: Core,
    options: CallOptions,
    inputs: object,
    *,
    later: bool = False,
    deadline: Deadline | None = None,
) -> Pieces | Shareable:
    """Check the inputs, and write their text unless they are to go through shared memory.

    Parameters
    ----------
    later : bool
        Whether the caller continues before the arrays are sent, and may change them.
    deadline : Deadline, optional
        The call's, if its time has begun.
    """
    if type(inputs) is not dict and (references := as_references(inputs)) is not None:
        return _encode_references(core, options, references)
    if options.transport != "shm" and (small := encode_small(inputs)) is not None:
        payload = encode_request(options, small)
        if size_of(payload) <= core.messages.inference_room:
            return payload
    notice_fork()  # what follows may take locks; until here there are none
    tensors = check_call(inputs, infinities=True)
    why: str | None = None
    if options.transport == "shm" or (options.transport == "auto" and is_worth_sharing(tensors)):
        why = obstacle(core, options, tensors)
        if why is None:
            return Shareable(copied(tensors) if later else tensors)
        if options.transport == "shm":
            raise InputError(f"transport='shm' cannot be: {why}")
        core.counts.declined(why)
    try:
        return encode_as_json(core, options, tensors, deadline)
    except (MessageTooLargeError, InputError) as error:
        if options.transport == "json":
            raise
        why = why or obstacle(core, options, tensors)
        if why is None:
            return Shareable(copied(tensors) if later else tensors)
        raise with_obstacle(error, why) from None


def obstacle(core: Core, options: CallOptions, tensors: tuple[Tensor, ...]) -> str | None:
    """Return why some tensors cannot go through shared memory on any socket, or None."""
    return core.shm.obstacle(
        tensors, options.route, options.transport, allow_transient=options.allow_transient
    )


def encode_as_json(
    core: Core, options: CallOptions, tensors: tuple[Tensor, ...], deadline: Deadline | None = None
) -> Pieces:
    """Write a request with its tensors as JSON."""
    return encode_tensors(
        options,
        tensors,
        limit=core.message_limit(),
        envelope_bytes=core.messages.envelope_bytes("inference"),
        deadline=deadline,
    )


def _encode_references(core: Core, options: CallOptions, references: tuple[SharedTensor, ...]) -> Pieces:
    payload = encode_references(options, references)
    if (size := size_of(payload)) > core.messages.inference_room:
        check_size(size + core.messages.envelope_bytes("inference"), core.message_limit())
    return payload


def send_watched(
    core: Core,
    options: CallOptions,
    prepared: Pieces | Shareable,
    deadline: Deadline,
    watch: Watch | None,
) -> InferResult:
    """Do what `send` does, and report it as a call if somebody listens."""
    if watch is None:
        return send(core, options, prepared, deadline)
    with watch:
        return send(core, options, prepared, deadline, watch)


def send(
    core: Core,
    options: CallOptions,
    prepared: Pieces | Shareable,
    deadline: Deadline,
    watch: Watch | None = None,
) -> InferResult:
    """Send what was encoded, and make arrays of the reply."""
    if not isinstance(prepared, Shareable):
        target = (options.route, options.model_name)
        call = InferenceCall(prepared, deadline, waits_for_manager=options.policy is not None, target=target)
        if watch is not None:
            call.watch = watch
        attempts = perform(core, call, options.policy)
    else:
        tensors = prepared.tensors
        call = shared = SharedCall(
            options,
            tensors,
            deadline,
            core.shm,
            core.counts,
            by_reference=partial(_encode_references, core, options),
            by_value=partial(encode_as_json, core, options, tensors, deadline),
        )
        if watch is not None:
            call.watch = watch
        try:
            attempts = perform(core, call, options.policy)
        finally:
            shared.finish()
    if watch is not None:
        watch.enter("decoding")
    reply = call.reply
    try:
        arrays = decode_outputs(reply.data, options.dtypes, deadline)
    except TcmError as error:
        core.failed(error, call)
        call.note_unreadable(
            error, readable=lambda: options.dtypes.are_stated and is_readable(reply.data, deadline)
        )
        raise
    return InferResult(
        reply.model_name or options.model_name, arrays, reply.data, attempts, deadline.elapsed()
    )
