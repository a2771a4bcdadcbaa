"""A simulated cloud: virtual machines, the containers on them, and the Triton servers in the containers.

Management jobs change it, and inferences look up their container in it. It outlives the manager, as a cloud
does: when a stopped `LocalManager` is started again, everything that it has created is still there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tcm_sync.local.cloud_objects import CloudJob, Container, RegisteredServer, VirtualMachine

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_JOBS = 10_000  # whose records are kept


class Cloud:
    """The state of the simulated cloud, and a record of the jobs; safe from any thread.

    Parameters
    ----------
    given : iterable of Container
        Containers that exist from the start. Jobs may delete them.
    forget_after : float
        Seconds after which the manager closes its connection to a server that does not answer.
    clock : callable
        Returns seconds; it never goes back.
    """

    def __init__(
        self,
        given: Iterable[Container] = (),
        *,
        forget_after: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forget_after = forget_after
        self._clock = clock
        self._lost: dict[str, float] = {}  # when each server that does not answer has stopped answering
        self._lock = threading.Lock()  # guards every attribute but _forget_after and _clock
        self._given = {container.container_id: container for container in given}
        self._servers = {
            key: RegisteredServer(key, None, container.grpc)
            for key, container in self._given.items()
            if container.registered
        }
        self._vms: dict[str, VirtualMachine] = {}
        self._containers: dict[str, Container] = {}
        self._jobs: dict[int, CloudJob] = {}  # by number
        self._begun = 0
        self._created = 0

    @property
    def vms(self) -> tuple[VirtualMachine, ...]:
        """The virtual machines that jobs have created and not deleted, the oldest first."""
        with self._lock:
            return tuple(self._vms.values())

    @property
    def containers(self) -> tuple[Container, ...]:
        """The containers that jobs have created and not deleted, the oldest first."""
        with self._lock:
            return tuple(self._containers.values())

    @property
    def servers(self) -> tuple[RegisteredServer, ...]:
        """The Triton servers that the manager keeps connections to, the oldest first."""
        with self._lock:
            self._forget()
            return tuple(self._servers.values())

    @property
    def jobs(self) -> tuple[CloudJob, ...]:
        """The last 10,000 jobs that have begun, in that order; waiting ones are not among them."""
        with self._lock:
            return tuple(self._jobs.values())

    def find(self, container_id: object) -> Container | None:
        """Find a container by its id.

        Parameters
        ----------
        container_id : object
            Its id. A value that is not a str finds no container.

        Returns
        -------
        Container or None
            The container; None if no container has this id.
        """
        with self._lock:
            self._forget()
            known = {**self._given, **self._containers}
            return known.get(container_id) if isinstance(container_id, str) else None

    def begin(self, uuid: str, action: str) -> int:
        """Record that a job begins.

        Parameters
        ----------
        uuid : str
            The uuid of the client that requested it.
        action : str
            Such as ``"creation"``.

        Returns
        -------
        int
            The number of the job, for `end`.
        """
        with self._lock:
            number = self._begun
            self._begun += 1
            self._jobs[number] = CloudJob(uuid, action)
            self._jobs.pop(number - MAX_JOBS, None)
            return number

    def end(self, number: int, state: str, data: object) -> None:
        """Record how a job has ended.

        Parameters
        ----------
        number : int
            What `begin` returned.
        state : str
            ``"done"`` or ``"failed"``.
        data : object
            The data of the reply.
        """
        with self._lock:
            if number in self._jobs:
                self._jobs[number] = replace(self._jobs[number], state=state, data=data)

    def create_vm(self, name: str) -> VirtualMachine:
        """Create a virtual machine.

        Parameters
        ----------
        name : str
            Its name; several machines may have the same.

        Returns
        -------
        VirtualMachine
            The new machine, with an id and an address of its own.
        """
        with self._lock:
            number = self._count()
            vm = VirtualMachine(f"vm-{number}", _address(number), name)
            self._vms[vm.vm_id] = vm
            return vm

    def create_container(self, vm_ip: str, name: str | None = None) -> Container:
        """Create a container without a server. Its name is its id.

        Parameters
        ----------
        vm_ip : str
            The address of the machine that it runs on.
        name : str, optional
            Its name and id; a new one is generated if it is left out.

        Returns
        -------
        Container
            The new container.

        Raises
        ------
        ValueError
            If a container of that name exists.
        """
        with self._lock:
            container_id = f"container-{self._count()}" if name is None else name
            if container_id in self._given or container_id in self._containers:
                raise ValueError(f"the container name {container_id!r} is already in use")
            container = Container(container_id, vm_ip)
            self._containers[container_id] = container
            return container

    def create_server(
        self, container_id: str, model_name: str, *, vm_id: str | None = None, grpc: bool = False
    ) -> None:
        """Start Triton with the model, and connect the manager to it over gRPC or HTTP.

        Parameters
        ----------
        container_id : str
            The container that Triton runs in.
        model_name : str
            The model that it serves.
        vm_id : str, optional
            The machine of that container; any machine if it is left out.
        grpc : bool
            Whether the connection is a gRPC one, as for a model that streams.
        """
        with self._lock:
            self._lost.pop(container_id, None)
            self._servers[container_id] = RegisteredServer(container_id, vm_id, grpc)
            self._update(container_id, registered=True, model_name=model_name, grpc=grpc, answers=True)

    def lose_server(self, container_id: str) -> None:
        """Make the Triton server in a container stop answering, until a job creates one there.

        Parameters
        ----------
        container_id : str
            The container's id.
        """
        with self._lock:
            self._lost.setdefault(container_id, self._clock())
            self._update(container_id, answers=False)
            if container_id in self._servers:
                self._servers[container_id] = replace(self._servers[container_id], answers=False)

    def delete_server(self, container_id: str) -> None:
        """Close the manager's connection to the server in a container, if there is one.

        Parameters
        ----------
        container_id : str
            The container's id.
        """
        with self._lock:
            self._servers.pop(container_id, None)
            self._update(container_id, registered=False)

    def delete_container(self, container_id: str) -> None:
        """Delete a container, if it exists. The manager keeps the server in it registered.

        Parameters
        ----------
        container_id : str
            The container's id.
        """
        with self._lock:
            self._given.pop(container_id, None)
            self._containers.pop(container_id, None)

    def delete_vm(self, vm_id: str) -> None:
        """Delete a virtual machine, if it exists, and the containers on it.

        Parameters
        ----------
        vm_id : str
            The machine's id.
        """
        with self._lock:
            vm = self._vms.pop(vm_id, None)
            if vm is not None:
                self._containers = {
                    key: container
                    for key, container in self._containers.items()
                    if container.vm_ip != vm.vm_ip
                }

    def _update(self, container_id: str, **changes: Any) -> None:
        for containers in (self._given, self._containers):
            if container_id in containers:
                containers[container_id] = replace(containers[container_id], **changes)

    def _forget(self) -> None:
        """Close connections to servers that did not answer for `forget_after`; the caller holds the lock."""
        for container_id, since in list(self._lost.items()):
            if self._clock() - since >= self._forget_after:
                del self._lost[container_id]
                self._servers.pop(container_id, None)
                self._update(container_id, registered=False)

    def _count(self) -> int:
        self._created += 1
        return self._created


def _address(number: int) -> str:
    return f"10.0.{number >> 8}.{number & 255}"
