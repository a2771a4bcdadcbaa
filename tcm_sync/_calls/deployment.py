"""What a creation has made: where it runs, what it takes, and how to call and delete it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tcm_sync._secrets import hide
from tcm_sync._tables import html_table
from tcm_sync._tensors.signature import ModelSignature
from tcm_sync._wire.quote import quote
from tcm_sync.errors import InputError, ProtocolError
from tcm_sync.settings import Route

if TYPE_CHECKING:
    from tcm_sync._calls.streams import InferStream
    from tcm_sync.results import InferResult, ManagementResult


class BoundClient(Protocol):
    """What a deployment needs of the client that it is bound to."""

    @property
    def infer(self) -> Callable[..., InferResult]:
        """Run a model."""

    @property
    def stream(self) -> Callable[..., InferStream]:
        """Run a model that answers in chunks."""

    @property
    def delete(self) -> Callable[..., ManagementResult]:
        """Delete a VM with its container."""


class Deployment:
    """A model that `TcmClient.create` has put into service.

    It is no context manager, since an exception should not delete a VM. It can be pickled, without its
    client: `bind` gives it another.

    Attributes
    ----------
    vm_ip : str
        Where its VM is.
    vm_id : str or None
        The VM's id, if the manager's answer or the request named it.
    container_id : str
        The container.
    model_name : str
        The model.
    signature : ModelSignature
        What the model takes and returns.
    """

    def __init__(
        self,
        vm_ip: str,
        container_id: str,
        model_name: str,
        signature: ModelSignature,
        *,
        vm_id: str | None = None,
        client: BoundClient | None = None,
    ) -> None:
        self.vm_ip = vm_ip
        self.vm_id = vm_id
        self.container_id = container_id
        self.model_name = model_name
        self.signature = signature
        self._client = client

    @classmethod
    def read(cls, data: object, *, vm_id: str | None = None) -> Deployment:
        """Read the data of a creation's answer.

        Parameters
        ----------
        data : object
            ``{vm_ip, container_id, model_name, inputs, outputs}``, maybe with ``vm_id``.
        vm_id : str, optional
            What the request said, for an answer that says nothing.

        Raises
        ------
        ProtocolError
            It has another form. The message quotes it: what was created exists.
        """
        try:
            if not isinstance(data, Mapping):
                raise ProtocolError("it is no object")
            texts = {name: data.get(name) for name in ("vm_ip", "container_id", "model_name")}
            for name, text in texts.items():
                if not isinstance(text, str):
                    raise ProtocolError(f"its {name} is no text")
            answered = data.get("vm_id")
            return cls(
                **texts,  # type: ignore[arg-type]
                signature=ModelSignature.from_management(data),
                vm_id=answered if isinstance(answered, str) else vm_id,
            )
        except ProtocolError as error:
            raise ProtocolError(
                f"the creation succeeded, and its answer cannot be read: {error.message}: {quote(str(data))}"
            ) from None

    @property
    def route(self) -> Route:
        """Where it runs, for calls on a client of their own."""
        return Route(self.container_id, self.vm_ip, self.vm_id)

    def bind(self, client: BoundClient) -> Deployment:
        """Return the same deployment with another client.

        Parameters
        ----------
        client : TcmClient
            The client that is to make its calls.

        Returns
        -------
        Deployment
            A copy; this one stays as it is.
        """
        return Deployment(
            self.vm_ip, self.container_id, self.model_name, self.signature, vm_id=self.vm_id, client=client
        )

    def infer(self, inputs: object, **options: Any) -> InferResult:
        """Run the model: `TcmClient.infer` without its model and route.

        Parameters
        ----------
        inputs : mapping, sequence or array-like
            As `TcmClient.infer` takes them.
        **options
            What else it takes. Left out, ``output_dtypes`` are those of the signature, so that the outputs
            are exact.

        Returns
        -------
        InferResult
            A mapping of output names to arrays.
        """
        if options.get("output_dtypes") is None:
            options["output_dtypes"] = self.signature.output_dtypes or None
        return self._bound().infer(self.model_name, inputs, **self._routed(options))

    def stream(self, inputs: object, **options: Any) -> InferStream:
        """Run the model as a stream: `TcmClient.stream` without its model and route.

        Parameters
        ----------
        inputs : mapping, sequence or array-like
            As `TcmClient.stream` takes them.
        **options
            What else it takes.

        Returns
        -------
        InferStream
            An iterator of str, and a context manager that closes it.
        """
        return self._bound().stream(self.model_name, inputs, **self._routed(options))

    def delete(self, *, vm_id: str | None = None, **options: Any) -> ManagementResult:
        """Delete the VM and the container: `TcmClient.delete` with their ids.

        If the deployment has no id of the VM, its address is sent, and the manager takes the one VM that has
        it. Do that once only, and soon: the address may be given to another VM after a deletion.

        Parameters
        ----------
        vm_id : str, optional
            The VM's id, if the deployment has none.
        **options
            What else `TcmClient.delete` takes.

        Returns
        -------
        ManagementResult
            Its ``parts`` say what was deleted and what was missing.
        """
        vm_id = vm_id or self.vm_id
        vm = {"vm_ip": self.vm_ip} if vm_id is None else {"vm_id": vm_id}
        return self._bound().delete(**{**vm, "container_id": self.container_id, **options})

    def _bound(self) -> BoundClient:
        if self._client is None:
            raise InputError("the deployment has no client, as after unpickling: bind(client) gives it one")
        return self._client

    def _routed(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"vm_ip": self.vm_ip, "container_id": self.container_id, "vm_id": self.vm_id, **options}

    def __repr__(self) -> str:
        where = f"container {self.container_id!r} at {self.vm_ip}"
        return hide(f"<Deployment {self.model_name!r} in {where} {self.signature}>")

    def _repr_html_(self) -> str:
        """Show where it runs, what it takes and what it returns, in a notebook."""
        where = [("VM", self.vm_ip), ("VM id", self.vm_id), ("container", self.container_id)]
        rows = [(what, value) for what, value in where if value is not None]
        return html_table(f"Deployment {self.model_name!r}", (), rows) + self.signature._repr_html_()

    def __eq__(self, other: object) -> bool:
        return self._facts() == other._facts() if isinstance(other, Deployment) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._facts())

    def _facts(self) -> tuple[Any, ...]:
        return self.vm_ip, self.container_id, self.model_name, self.signature, self.vm_id

    def __reduce__(self) -> tuple[Any, ...]:
        return Deployment, self._facts()[:4], {"vm_id": self.vm_id}
