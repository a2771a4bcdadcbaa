"""`Model`: the calls of a client that run one model, without its name and route.

Each method says what differs from the method of `TcmClient` of the same name, and has a line or two that hand
its arguments to the same file of ``_calls/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from tcm_sync._calls import bound_model, chunked, frames, inference, streams, submit_map
from tcm_sync._calls.core import Core
from tcm_sync._calls.options import (
    Defaults,
    Inputs,
    OnError,
    call_options,
    changed_options,
    start_deadline,
)
from tcm_sync._calls.streams import InferStream
from tcm_sync._calls.submitted_samples import BackgroundBatcher
from tcm_sync._shm.policy import Transport
from tcm_sync._tables import html_table
from tcm_sync._tensors import ModelSignature
from tcm_sync.errors import TcmError
from tcm_sync.results import InferResult
from tcm_sync.retry import RetryPolicy
from tcm_sync.settings import UNSET, BatchPolicy, Unset

if TYPE_CHECKING:
    import numpy.typing as npt

    DTypes = Mapping[str, npt.DTypeLike] | npt.DTypeLike

FrameT = TypeVar("FrameT")


class ModelClient(Protocol):
    """The client that a model belongs to."""

    _core: Core
    _defaults: Defaults


class Model:
    """What `TcmClient.model` returns: one model of one route, for any number of threads.

    Attributes
    ----------
    model_name : str
    signature : ModelSignature or None
        What the inputs of every call are checked against, if there is one.
    """

    def __init__(
        self,
        client: ModelClient,
        model_name: str,
        *,
        vm_ip: str | None = None,
        container_id: str | None = None,
        vm_id: str | None = None,
        allow_transient: bool = False,
        output_dtypes: DTypes | Unset | None = UNSET,
        signature: ModelSignature | None = None,
        batch: BatchPolicy | None = None,
    ) -> None:
        output_dtypes, policy = bound_model.of_signature(signature, output_dtypes, batch)
        self._client = client
        where, defaults = (vm_ip, container_id, vm_id), client._defaults  # noqa: SLF001
        self._options = call_options(defaults, model_name, where, allow_transient, output_dtypes)
        self._batch = batch
        self._output_dtypes = output_dtypes
        self._batcher = BackgroundBatcher(self._core, self._options, policy)
        self.model_name = model_name
        self.signature = signature

    @property
    def _core(self) -> Core:
        return self._client._core  # noqa: SLF001 - which is another one once the client is closed

    def infer_sample(
        self, inputs: Inputs | complex | str, *, timeout: float | Unset | None = UNSET
    ) -> InferResult:
        """Run the model on one sample, in a batch with those of other threads.

        Samples that have the same names, datatypes and shapes are stacked along a new first axis, so far as
        they fit ``max_message_bytes``, and each caller gets its slice of the outputs. Its `BatchPolicy`
        says when a batch leaves. If it fails, all of its callers get the same error.

        Parameters
        ----------
        inputs : mapping, sequence or array-like
            As `TcmClient.infer` takes them, without a batch axis; a 0-d array or a bare number will do. Texts
            lose their shape on the wire: one a sample comes back 0-d, and more cannot be separated.
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
        deadline = start_deadline(timeout, self._options.timeout)
        self._core.begin()
        return self._batcher.run(bound_model.with_signature(self.signature, inputs), deadline)

    def submit_sample(
        self, inputs: Inputs | complex | str, *, timeout: float | Unset | None = UNSET
    ) -> Future[InferResult]:
        """Run the model on one sample in the background, in a batch with others, and return the future.

        For callers that continue meanwhile, such as an event loop: a batch takes one thread, however many
        samples it has. Samples that have the same names, datatypes, shapes and timeout go out together. A
        batch leaves when a socket is free and it is full or its ``max_wait`` has passed; samples that
        `infer_sample` waits for go in other batches. At most ``pool_size`` batches and calls of `submit` run
        at a time, and the others wait their turn.

        The inputs are checked and encoded here and now, so that they may be changed afterwards. A sample can
        be cancelled until its batch is sent or it has become the one that leads; its batch goes out without
        it. Callbacks run in the background, or in the thread that cancels.

        Parameters
        ----------
        inputs : mapping, sequence or array-like
            As `infer_sample` takes them.
        timeout : float or None, optional
            Seconds for the sample once the turn of its batch has come; None is no limit. Left out, the
            client's.

        Returns
        -------
        concurrent.futures.Future of InferResult
            Its exception is what `infer_sample` would raise; `ClientClosedError` if the client is closed
            before its turn.

        Raises
        ------
        InputError, MessageTooLargeError
            The sample cannot be sent.
        ClientClosedError
            The client is closed.
        """
        deadline = start_deadline(timeout, self._options.timeout)
        self._core.begin()
        return self._batcher.submit(bound_model.with_signature(self.signature, inputs), deadline)

    def infer(
        self,
        inputs: Inputs,
        *,
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferResult:
        """Run the model: `TcmClient.infer` without its model and route.

        Parameters
        ----------
        inputs, allow_transient, output_dtypes, transport, timeout, retry
            As `TcmClient.infer` takes them. Left out, they are the model's or else the client's. With a
            signature a data frame is accepted too, and used as `infer_frame` uses it.

        Returns
        -------
        InferResult
            A mapping of output names to arrays.
        """
        options = changed_options(self._options, allow_transient, output_dtypes, timeout, retry, transport)
        return inference.infer(self._core, options, bound_model.with_signature(self.signature, inputs))

    def infer_chunked(
        self,
        inputs: Inputs,
        *,
        rows: int | None = None,
        concurrency: int | None = None,
        progress: bool = False,
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferResult:
        """Run the model on a long batch: `TcmClient.infer_chunked` without its model and route.

        No message has more rows than the signature's ``max_batch_size``; if the inputs have a fixed first
        dimension, and no batch axis before it, each message has exactly so many rows.

        Parameters
        ----------
        inputs, rows, concurrency, progress, allow_transient, output_dtypes, transport, timeout, retry
            As `TcmClient.infer_chunked` takes them.

        Returns
        -------
        InferResult
            The outputs of all rows, in order.
        """
        options = changed_options(self._options, allow_transient, output_dtypes, timeout, retry, transport)
        return chunked.infer_chunked(
            self._core,
            options,
            inputs,
            self.signature,
            rows=rows,
            concurrency=concurrency,
            progress=progress,
        )

    def infer_frame(
        self,
        frame: FrameT,
        *,
        columns: Sequence[Any] | None = None,
        stack: str | Mapping[str, Sequence[Any]] | None = None,
        outputs: Sequence[str] | None = None,
        rows: int | None = None,
        concurrency: int | None = None,
        progress: bool = False,
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> FrameT:
        """Run the model on the rows of a data frame: `TcmClient.infer_frame` without its model and route.

        With a signature and without `stack`, the signature decides: an input takes the column of its name, of
        shape [rows] or [rows, 1]; a model whose only input is a matrix takes all used columns, in order. No
        message has more rows than the signature's ``max_batch_size``; if the inputs have a fixed first
        dimension, and no batch axis before it, each message has exactly so many rows.

        Parameters
        ----------
        frame, columns, stack, outputs, rows, concurrency, progress
            As `TcmClient.infer_frame` takes them.
        allow_transient, output_dtypes, transport, timeout, retry
            As `TcmClient.infer_frame` takes them.

        Returns
        -------
        data frame
            Of the same library, with one row for each of `frame`.
        """
        options = changed_options(self._options, allow_transient, output_dtypes, timeout, retry, transport)
        made: FrameT = frames.infer_frame(
            self._core,
            options,
            frame,
            self.signature,
            columns=columns,
            stack=stack,
            outputs=outputs,
            rows=rows,
            concurrency=concurrency,
            progress=progress,
        )
        return made

    def submit(
        self,
        inputs: Inputs,
        *,
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Future[InferResult]:
        """Run the model in the background: `TcmClient.submit` without its model and route.

        Parameters
        ----------
        inputs, allow_transient, output_dtypes, transport, timeout, retry
            As `TcmClient.submit` takes them.

        Returns
        -------
        concurrent.futures.Future of InferResult
            Its exception is what `infer` would raise.
        """
        options = changed_options(self._options, allow_transient, output_dtypes, timeout, retry, transport)
        return submit_map.submit(self._core, options, bound_model.with_signature(self.signature, inputs))

    @overload
    def map(
        self,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[True] = True,
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[InferResult]: ...

    @overload
    def map(
        self,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[True] = True,
        progress: bool = False,
        on_error: OnError,
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[InferResult | TcmError]: ...

    @overload
    def map(
        self,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[False],
        progress: bool = False,
        on_error: Literal["raise"] = "raise",
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[tuple[int, InferResult]]: ...

    @overload
    def map(
        self,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: Literal[False],
        progress: bool = False,
        on_error: OnError,
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[tuple[int, InferResult | TcmError]]: ...

    @overload
    def map(
        self,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        on_error: OnError = "raise",
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[Any]: ...

    def map(
        self,
        many_inputs: Iterable[Inputs],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        on_error: OnError = "raise",
        allow_transient: bool | Unset = UNSET,
        output_dtypes: DTypes | Unset | None = UNSET,
        transport: Transport | Unset = UNSET,
        timeout: float | Unset | None = UNSET,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> Iterator[Any]:
        """Run the model on one input after another: `TcmClient.map` without its model and route.

        Parameters
        ----------
        many_inputs, concurrency, ordered, progress, on_error
            As `TcmClient.map` takes them.
        allow_transient, output_dtypes, transport, timeout, retry
            As `TcmClient.map` takes them.

        Returns
        -------
        iterator of InferResult
            Also of TcmError where ``on_error="return"``; of pairs with its index where not ``ordered``.
        """
        options = changed_options(self._options, allow_transient, output_dtypes, timeout, retry, transport)
        return submit_map.map_inputs(
            self._core,
            options,
            bound_model.each_with_signature(self.signature, many_inputs),
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            on_error=on_error,
        )

    def stream(
        self,
        inputs: Inputs,
        *,
        allow_transient: bool | Unset = UNSET,
        output_name: str = "output",
        idle_timeout: float | None = None,
        on_idle: Literal["raise", "end"] = "raise",
        timeout: float | None = 150.0,
        retry: RetryPolicy | Unset | None = UNSET,
    ) -> InferStream:
        """Run the model as a stream: `TcmClient.stream` without its model and route.

        Parameters
        ----------
        inputs, allow_transient, output_name, idle_timeout, on_idle, timeout, retry
            As `TcmClient.stream` takes them.

        Returns
        -------
        InferStream
            An iterator of str, and a context manager that closes it.
        """
        options = changed_options(self._options, allow_transient, UNSET, timeout, retry)
        held = bound_model.with_signature(self.signature, inputs)
        return streams.stream(
            self._core, options, held, output_name=output_name, idle_timeout=idle_timeout, on_idle=on_idle
        )

    def __repr__(self) -> str:
        where = self._options.route.container_id
        return f"<Model {self.model_name!r} in container {where!r} of {self._client!r}>"

    def _repr_html_(self) -> str:
        """Show the model, and its signature if it has one, in a notebook."""
        rows = [("container", self._options.route.container_id), ("client", repr(self._client))]
        shown = html_table(f"Model {self.model_name!r}", (), rows)
        return shown if self.signature is None else shown + self.signature._repr_html_()

    def __reduce__(self) -> tuple[Any, ...]:
        route = self._options.route
        options = {
            "vm_ip": route.vm_ip,
            "container_id": route.container_id,
            "vm_id": route.vm_id,
            "allow_transient": self._options.allow_transient,
            "output_dtypes": self._output_dtypes,
            "signature": self.signature,
            "batch": self._batch,
        }
        return _unpickled, (self._client, self.model_name, options)


def _unpickled(client: ModelClient, model_name: str, options: dict[str, Any]) -> Model:
    return Model(client, model_name, **options)
