"""A model with its route: the calls of the client without them, and samples that go out in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tcm_sync._calls.batching import Batcher, BatchPolicy
from tcm_sync._calls.chunked import Chunked
from tcm_sync._calls.streams import Streams
from tcm_sync._tensors import Held, HeldAll, HeldEach, InferenceInput, ModelSignature, fit_inputs
from tcm_sync.errors import InputError
from tcm_sync.settings import UNSET, Unset

if TYPE_CHECKING:
    import numpy.typing as npt

    from tcm_sync._calls.streams import InferStream
    from tcm_sync.results import InferResult


class Models(Chunked, Streams):
    """The client's `model`."""

    def model(
        self,
        model_name: str,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None = None,
        signature: ModelSignature | None = None,
        batch: BatchPolicy | None = None,
    ) -> Model:
        """Return a model with its route, to be called again and again.

        Parameters
        ----------
        model_name, vm_ip, container_id, vm_id, allow_transient, output_dtypes
            As `infer` takes them; every call of the model has them.
        signature : ModelSignature, optional
            What the model takes and returns: from `tcm_sync.models.analyze`, a deployment, or a server's
            metadata. The inputs of every call are held to it before anything is sent, and one array-like
            alone will do where it names one input. ``output_dtypes``, left out, are those that it states.
        batch : BatchPolicy, optional
            Lets `Model.infer_sample` put the samples of several threads into one message. Left out, each goes
            out alone. It holds no more of them than the signature's ``max_batch_size``.

        Raises
        ------
        InputError
            An argument is wrong.
        """
        if batch is not None and not isinstance(batch, BatchPolicy):
            raise InputError(f"batch must be a BatchPolicy, not {type(batch).__name__}")
        if signature is not None and not isinstance(signature, ModelSignature):
            raise InputError(
                f"signature must be a ModelSignature, not {type(signature).__name__}; an analysis has one"
            )
        route = self._route(vm_ip, container_id, vm_id)
        options = {
            "vm_ip": route.vm_ip,
            "container_id": route.container_id,
            "vm_id": route.vm_id,
            "allow_transient": allow_transient,
        }
        return Model(self, model_name, options, output_dtypes, batch, signature)


class Model:
    """What `TcmClient.model` returns: one model of one route, for any number of threads.

    Attributes
    ----------
    model_name : str
    signature : ModelSignature or None
        What the inputs of every call are held to, if it is known.
    """

    def __init__(
        self,
        client: Models,
        model_name: str,
        options: dict[str, Any],
        output_dtypes: Mapping[str, npt.DTypeLike] | npt.DTypeLike | None,
        batch: BatchPolicy | None,
        signature: ModelSignature | None = None,
    ) -> None:
        self._made_with = (client, model_name, options, output_dtypes, batch, signature)
        self._client = client
        self._options = options
        self.model_name = model_name
        self.signature = signature
        if signature is not None:
            output_dtypes = signature.output_dtypes if output_dtypes is None else output_dtypes
            batch = _bounded(batch, signature)
        self._dtypes: dict[str, Any] = {"output_dtypes": output_dtypes}
        plan = client._plan(model_name, output_dtypes=output_dtypes, **options)  # noqa: SLF001
        self._batcher = Batcher(client, plan, batch or BatchPolicy(max_size=1, max_wait=0.0))

    def infer_sample(self, inputs: object, *, timeout: float | Unset | None = UNSET) -> InferResult:
        """Run the model on one sample, in a batch with those of other threads.

        Samples that have the same names, datatypes and shapes are stacked along a new first axis, so far as
        they fit ``max_message_bytes``, and each caller gets its slice of the outputs. When a batch leaves is
        told by its `BatchPolicy`. If it fails, all of its callers get the same error.

        Parameters
        ----------
        inputs : mapping, sequence or array-like
            As `TcmClient.infer` takes them, without a batch axis; a 0-d array or a bare number will do. Texts
            lose their shape on the wire: one a sample comes back 0-d, and more cannot be told apart.
        timeout : float or None, optional
            Seconds for this sample; None is no limit. Left out, the client's. The others of its batch are
            not disturbed when it has passed.

        Returns
        -------
        InferResult
            The slice of this sample; its ``raw`` is empty.

        Raises
        ------
        InputError, MessageTooLargeError
            The sample cannot be sent. It is refused alone.
        ProtocolError
            The first axis of an output is not that of the batch.
        TcmError
            Any other of its subclasses: `tcm_sync.errors` draws the tree.
        """
        client = self._client
        deadline = client._deadline(timeout)  # noqa: SLF001
        client._begin()  # noqa: SLF001
        return self._batcher.run(self._held(inputs), deadline)

    def infer(self, inputs: object, **options: Any) -> InferResult:
        """Run the model: `TcmClient.infer` without its model and route."""
        return self._client.infer(self.model_name, self._held(inputs), **self._with(options))

    def submit(self, inputs: object, **options: Any) -> Future[InferResult]:
        """Run the model in the background: `TcmClient.submit` without its model and route."""
        return self._client.submit(self.model_name, self._held(inputs), **self._with(options))

    def map(self, many_inputs: Iterable[object], **options: Any) -> Iterator[Any]:
        """Run the model on one input after another: `TcmClient.map` without its model and route."""
        is_many = isinstance(many_inputs, Iterable) and not isinstance(many_inputs, (str, bytes, Mapping))
        if self.signature is not None and is_many:  # anything else is refused by the client
            held = HeldAll if isinstance(many_inputs, Sized) else HeldEach
            many_inputs = held(self.signature, many_inputs)
        return self._client.map(self.model_name, many_inputs, **self._with(options))

    def infer_chunked(self, inputs: object, **options: Any) -> InferResult:
        """Run the model on a long batch: `TcmClient.infer_chunked` without its model and route.

        No message has more rows than the signature's ``max_batch_size``.
        """
        most = None
        if self.signature is not None:
            tensors = fit_inputs(self.signature, inputs, uncut=True)
            inputs = [InferenceInput(each.name, each.shape, each.datatype, each.array) for each in tensors]
            most = self.signature.max_batch_size
        return self._client._chunked(self.model_name, inputs, most=most, **self._with(options))  # noqa: SLF001

    def stream(self, inputs: object, **options: Any) -> InferStream:
        """Run the model as a stream: `TcmClient.stream` without its model and route."""
        return self._client.stream(self.model_name, self._held(inputs), **{**self._options, **options})

    def _held(self, inputs: object) -> object:
        return inputs if self.signature is None else Held(self.signature, inputs)

    def _with(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**self._options, **self._dtypes, **options}

    def __repr__(self) -> str:
        return (
            f"<Model {self.model_name!r} in container {self._options['container_id']!r} of {self._client!r}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, self._made_with


def _bounded(batch: BatchPolicy | None, signature: ModelSignature) -> BatchPolicy | None:
    """Hold a policy to the batches that the model takes."""
    if batch is None or batch.max_size == 1:
        return batch
    from tcm_sync.models.batch import has_first_size_again  # here: most programs have no model files

    for spec in signature.inputs:
        if signature.batch_axis is False and spec.dims is not None and spec.dims[:1] != (-1,):
            raise InputError(
                "batch: samples cannot be stacked: the signature has no open first dimension for the input "
                f"{spec.name!r}, {spec}"
            )
        if signature.batch_axis is False and has_first_size_again(spec):
            raise InputError(
                f"batch: samples cannot be stacked: two dimensions of the input {spec.name!r}, {spec}, have "
                "one size"
            )
    most = signature.max_batch_size
    return batch if most is None else replace(batch, max_size=min(batch.max_size, most))
