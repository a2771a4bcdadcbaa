"""What there is in the simulated cloud, and the jobs that change it: one frozen class for each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VirtualMachine:
    """A virtual machine that a job has created.

    Attributes
    ----------
    vm_id : str
        Its id, by which jobs name it.
    vm_ip : str
        Its address, which requests may name.
    name : str
        The name that the job gave it.
    """

    vm_id: str
    vm_ip: str
    name: str


@dataclass(frozen=True)
class Container:
    """A container that the manager can find.

    Attributes
    ----------
    container_id : str
    vm_ip : str
        Where it runs.
    registered : bool
        Whether the manager keeps a connection to the Triton server in it.
    grpc : bool
        Whether that connection is a gRPC one, as for a model that streams, and not an HTTP one.
    answers : bool
        Whether the Triton server in it answers.
    model_name : str or None
        The model deployed in it; None means that every model is deployed in it.
    """

    container_id: str
    vm_ip: str
    registered: bool = False
    model_name: str | None = None
    grpc: bool = False
    answers: bool = True

    def serves(self, model_name: str) -> bool:
        """Return whether the model is deployed here.

        Parameters
        ----------
        model_name : str
            The name of the model.

        Returns
        -------
        bool
            False if another model is deployed in this container.
        """
        return self.model_name in (None, model_name)


@dataclass(frozen=True)
class RegisteredServer:
    """A Triton server to which the manager keeps a connection, even after its container is deleted.

    Attributes
    ----------
    container_id : str
    vm_id : str or None
        The machine; None (any machine) for a container that no job has created.
    grpc : bool
        Whether the connection is a gRPC one, and not an HTTP one.
    answers : bool
        Whether the server answered the manager the last time.
    """

    container_id: str
    vm_id: str | None
    grpc: bool = False
    answers: bool = True


@dataclass(frozen=True)
class CloudJob:
    """A management job that has begun.

    Attributes
    ----------
    uuid : str
        The uuid of the client that requested it.
    action : str
        Such as ``"creation"``.
    state : str
        ``"running"``, ``"done"`` or ``"failed"``.
    data : object
        The data of the reply, once there is one.
    """

    uuid: str
    action: str
    state: str = "running"
    data: Any = None


@dataclass(frozen=True)
class CloudStep:
    """A step of a job that is about to run.

    Attributes
    ----------
    name : str
        ``"create_vm"``, ``"create_container"``, ``"create_server"``, or the same with ``delete``.
    subject : str
        The name of the virtual machine to be created, or the id of the object of the step.
    action, uuid : str
        The action of the job, and the uuid of the client that requested it.
    """

    name: str
    subject: str
    action: str
    uuid: str


OnStep = Callable[[CloudStep], None]
