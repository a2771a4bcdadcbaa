"""`infer`: from its arguments to a request, and from the reply to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from tcm_sync._arguments import check_choice, check_flag
from tcm_sync._calls.caller import Caller, checked_model_name
from tcm_sync._calls.request import (
    InferenceCall,
    Plan,
    encode_references,
    encode_request,
    encode_tensors,
    is_readable,
)
from tcm_sync._calls.shm_inference import Shareable, SharedCall, also, copied
from tcm_sync._shm.policy import Transport, is_worth_sharing
from tcm_sync._shm.references import as_references
from tcm_sync._tensors import check_call, check_output_dtypes, decode_outputs, encode_small
from tcm_sync._wire.encode import Pieces, check_size, size_of
from tcm_sync.errors import InputError, MessageTooLargeError, TcmError
from tcm_sync.results import InferResult
from tcm_sync.settings import UNSET, Unset

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._deadline import Deadline
    from tcm_sync._tensors import Tensor
    from tcm_sync._wire.messages import SharedTensor
    from tcm_sync.retry import RetryPolicy


_TRANSPORTS = ("auto", "json", "shm")


class Inference(Caller):
    """The client's `infer`."""

    def infer(
        self,
        model_name: str,
        inputs: object,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        transport: Transport = "auto",
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferResult:
        """Run a model on some inputs and return its outputs.

        Parameters
        ----------
        model_name : str
            The model.
        inputs : mapping, sequence or array-like
            A mapping of names to array-likes; a sequence of `InferenceInput` or of dicts in either form of
            the wire (``name, shape, datatype, data`` or ``name, dims, type, value``), or of `SHMReference`
            alone; or one array-like, whose name is then ``INPUT__0``. Datatypes are the arrays' own unless
            they are stated.
        vm_ip, container_id, vm_id : str, optional
            The route, where it differs from the client's. Naming a container leaves the client's ``vm_ip``
            and ``vm_id`` out, since they belong to another one.
        allow_transient : bool
            Whether the manager may use a server that is not registered with it.
        output_dtypes : dtype or mapping of str to dtype, optional
            The dtypes of the outputs: one for all, or by name. The wire carries none, so that without it an
            output is float64, int64 (uint64 where a value needs it), bool, or an object array of str. FP16,
            FP32 and UINT64 outputs need it to be exact.
        transport : {"auto", "json", "shm"}
            How the inputs travel. ``"shm"`` is shared memory, on whatever machine the manager is, or an
            error; ``"auto"`` takes it where it is known to work and worth it. `explain` says why.
        timeout : float or None, optional
            Seconds for the whole call, repeats included; None is no limit. Left out, the client's.
        retry : RetryPolicy or None, optional
            In place of the client's; None is one attempt.

        Returns
        -------
        InferResult
            A mapping of output names to arrays.

        Raises
        ------
        InputError
            The arguments cannot be sent; nothing was.
        MessageTooLargeError
            The message is over ``max_message_bytes``, and shared memory is no way either; nothing was sent.
        SharedMemoryUnavailableError, SharedMemoryRegistrationError
            With ``transport="shm"``: the tensors cannot go that way.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        deadline = self._deadline(timeout)
        plan = self._plan(
            model_name, vm_ip, container_id, vm_id, allow_transient, output_dtypes, timeout, retry, transport
        )
        return self._infer(plan, self._encode(plan, inputs, deadline=deadline), deadline)

    def _plan(
        self,
        model_name: str,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
        transport: Transport = "json",
    ) -> Plan:
        """Check what `infer` takes, but for the inputs."""
        check_choice("transport", transport, _TRANSPORTS)
        if allow_transient is not False:
            allow_transient = check_flag("allow_transient", allow_transient)
        route = self._settings.route
        if route is None or not (vm_ip is container_id is vm_id is None):
            route = self._route(vm_ip, container_id, vm_id)
        return Plan(
            checked_model_name(model_name),
            route,
            allow_transient,
            check_output_dtypes(output_dtypes),
            timeout,
            self._settings.retry if retry is UNSET else self._policy(retry),
            transport,
        )

    def _encode(
        self, plan: Plan, inputs: object, *, later: bool = False, deadline: Deadline | None = None
    ) -> Pieces | Shareable:
        """Check the inputs, and write their text unless shared memory is to have them.

        Parameters
        ----------
        later : bool
            Whether the caller goes on, and may change his arrays, before they are sent.
        deadline : Deadline, optional
            The call's, if its time has begun.
        """
        if type(inputs) is not dict and (references := as_references(inputs)) is not None:
            return self._refer(plan, references)
        if plan.transport != "shm" and (small := encode_small(inputs)) is not None:
            payload = encode_request(plan, small)
            if size_of(payload) <= self._inference_room:
                return payload
        tensors = check_call(inputs, infinities=True)
        why: str | None = None
        if plan.transport == "shm" or (plan.transport == "auto" and is_worth_sharing(tensors)):
            why = self._sharing.obstacle(
                tensors, plan.route, plan.transport, allow_transient=plan.allow_transient
            )
            if why is None:
                return Shareable(copied(tensors) if later else tensors)
            if plan.transport == "shm":
                raise InputError(f"transport='shm' cannot be: {why}")
            self._counts.declined(why)
        try:
            return self._as_json(plan, tensors, deadline)
        except (MessageTooLargeError, InputError) as error:
            if plan.transport == "json":
                raise
            why = why or self._sharing.obstacle(
                tensors, plan.route, plan.transport, allow_transient=plan.allow_transient
            )
            if why is None:
                return Shareable(copied(tensors) if later else tensors)
            raise also(error, why) from None

    def _as_json(self, plan: Plan, tensors: tuple[Tensor, ...], deadline: Deadline | None = None) -> Pieces:
        return encode_tensors(
            plan,
            tensors,
            limit=self._message_limit(),
            envelope_bytes=self._envelope_bytes("inference"),
            deadline=deadline,
        )

    def _refer(self, plan: Plan, references: tuple[SharedTensor, ...]) -> Pieces:
        payload = encode_references(plan, references)
        if (size := size_of(payload)) > self._inference_room:
            check_size(size + self._envelope_bytes("inference"), self._message_limit())
        return payload

    def _infer(self, plan: Plan, prepared: Pieces | Shareable, deadline: Deadline) -> InferResult:
        """Send what was prepared, and make arrays of the reply."""
        if not isinstance(prepared, Shareable):
            target = (plan.route, plan.model_name)
            call = InferenceCall(prepared, deadline, patient=plan.policy is not None, target=target)
            attempts = self._perform(call, plan.policy)
        else:
            tensors = prepared.tensors
            call = shared = SharedCall(
                plan,
                tensors,
                deadline,
                self._sharing,
                self._counts,
                by_reference=partial(self._refer, plan),
                by_value=partial(self._as_json, plan, tensors, deadline),
            )
            try:
                attempts = self._perform(call, plan.policy)
            finally:
                shared.over()
        reply = call.reply
        try:
            arrays = decode_outputs(reply.data, plan.dtypes)
        except TcmError as error:
            self._failed(error, call)
            call.blame(error, sound=is_readable(reply.data))
            raise
        return InferResult(
            reply.model_name or plan.model_name, arrays, reply.data, attempts, deadline.elapsed()
        )
