"""Management jobs: what a request asks of the cloud, and what it is answered (docs/wire.rst, "Management").

The fields and failures of ``creation``, ``deletion`` and ``create_vm`` are the recorded manager's. Those of
the other five follow them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tcm_sync.local.cloud import CloudStep
from tcm_sync.local.failures import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcm_sync.local.cloud import Cloud, Container, OnStep, VirtualMachine
    from tcm_sync.local.models import LoadedModel, TensorSpec


class _Refused(Exception):
    """The job cannot be done; the text is the whole of what the client is told."""


class Management:
    """Does management jobs; safe from any thread.

    Parameters
    ----------
    cloud : Cloud
    models : mapping of str to LoadedModel
        What can be deployed.
    on_step : callable or None
        Called before each step of a job, in the thread that does it; what it raises is the job's failure.
    """

    def __init__(self, cloud: Cloud, models: Mapping[str, LoadedModel], on_step: OnStep | None) -> None:
        self.cloud = cloud
        self.models = models
        self.on_step = on_step

    def answer(self, uuid: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job.

        Returns
        -------
        dict
            The payload of the reply; failures are answers too.
        """
        action = payload.get("action")
        if not isinstance(action, str) or action not in _ACTIONS:
            return {"status": False, "data": f"Job action not found: {action!r}"}
        number = self.cloud.begin(uuid, action)
        done, data = False, None
        try:
            data = _ACTIONS[action](_Job(self, uuid, action, payload))
            done = True
        except _Refused as exc:
            data = str(exc)
        except BaseException as exc:  # noqa: BLE001 - the user's function may raise anything
            data = f"Unexpected error: {text_of(exc)}"
        self.cloud.end(number, "done" if done else "failed", data)
        return {"status": done, "data": data}


class _Job:
    """One job: a method an action, which returns the data of the reply."""

    def __init__(self, management: Management, uuid: str, action: str, payload: Mapping[str, Any]) -> None:
        self._cloud = management.cloud
        self._models = management.models
        self._on_step = management.on_step
        self._uuid = uuid
        self._action = action
        self._payload = payload

    def creation(self) -> Any:
        name, model = self._named_vm(), self._model()
        vm = self._make_vm(name)
        return self._deploy(self._make_container(vm), model)

    def create_vm(self) -> Any:
        vm = self._make_vm(self._named_vm())
        return [vm.vm_ip, vm.vm_id]

    def create_container(self) -> Any:
        wanted = self._field("openstack", "vm_ip") or self._known("openstack", "vm_id")
        vm = next((vm for vm in self._cloud.vms if wanted in (vm.vm_id, vm.vm_ip)), None)
        if vm is None:
            raise ValueError(f"VM {wanted!r} not found")
        return [self._make_container(vm).container_id, self._block("docker")]

    def create_server(self) -> Any:
        container_id, model = self._known("docker", "container_id"), self._model()
        container = self._cloud.find(container_id)
        if container is None:
            raise ValueError(f"Container {container_id!r} not found in known containers")
        return self._deploy(container, model)

    def deletion(self) -> Any:
        ids = {
            "vm_id": self._field("openstack", "vm_id"),
            "container_id": self._field("docker", "container_id"),
        }
        for field, value in ids.items():
            if value is None:
                raise _Refused(f"Deletion missing required field: '{field}'")
        self._drop_server(ids["container_id"])
        self._drop_container(ids["container_id"])
        self._drop_vm(ids["vm_id"])
        return ids

    def delete_server(self) -> Any:
        container_id = self._known("docker", "container_id")
        self._drop_server(container_id)
        return {"container_id": container_id}

    def delete_container(self) -> Any:
        container_id = self._known("docker", "container_id")
        self._drop_container(container_id)
        return {"container_id": container_id}

    def delete_vm(self) -> Any:
        vm_id = self._known("openstack", "vm_id")
        self._drop_vm(vm_id)
        return {"vm_id": vm_id}

    # The steps

    def _make_vm(self, name: str) -> VirtualMachine:
        self._step("create_vm", name)
        return self._cloud.create_vm(name)

    def _make_container(self, vm: VirtualMachine) -> Container:
        self._step("create_container", vm.vm_id)
        return self._cloud.create_container(vm.vm_ip)

    def _deploy(self, container: Container, model: LoadedModel) -> dict[str, Any]:
        self._step("create_server", container.container_id)
        self._cloud.create_server(container.container_id, model.name, grpc=model.decoupled)
        return {
            "vm_ip": container.vm_ip,
            "container_id": container.container_id,
            "model_name": model.name,
            "inputs": [_declared(spec) for spec in model.inputs or ()],
            "outputs": [_declared(spec) for spec in model.outputs],
        }

    def _drop_server(self, container_id: str) -> None:
        self._step("delete_server", container_id)
        self._cloud.delete_server(container_id)

    def _drop_container(self, container_id: str) -> None:
        self._step("delete_container", container_id)
        self._cloud.delete_container(container_id)

    def _drop_vm(self, vm_id: str) -> None:
        self._step("delete_vm", vm_id)
        self._cloud.delete_vm(vm_id)

    def _step(self, name: str, subject: str) -> None:
        if self._on_step is not None:
            self._on_step(CloudStep(name, subject, self._action, self._uuid))

    # What the request says

    def _block(self, name: str) -> dict[str, Any]:
        block = self._payload.get(name)
        return block if isinstance(block, dict) else {}

    def _field(self, block: str, field: str) -> Any:
        """Look for a field in its block, and then beside the blocks."""
        value = self._block(block).get(field)
        return self._payload.get(field) if value is None else value

    def _known(self, block: str, field: str) -> Any:
        value = self._field(block, field)
        if value is None:
            raise ValueError(f"Missing key '{field}'")
        return value

    def _named_vm(self) -> str:
        name = self._block("openstack").get("name")
        if name is None:
            raise ValueError("Missing key 'name'")
        return str(name)

    def _model(self) -> LoadedModel:
        """Find what is to be deployed: the model that is named, else the first that there is."""
        name = self._field("triton", "model_name") or self._block("minio").get("model_name")
        if name is None:
            name = next(iter(self._models), None)
        model = self._models.get(str(name))
        if model is None:
            raise ValueError(f"Model {name!r} not found: this local manager has {sorted(self._models)}")
        return model


_ACTIONS = {
    action.__name__: action
    for action in (
        _Job.creation,
        _Job.deletion,
        _Job.create_vm,
        _Job.create_container,
        _Job.create_server,
        _Job.delete_server,
        _Job.delete_container,
        _Job.delete_vm,
    )
}


def _declared(spec: TensorSpec) -> dict[str, Any]:
    """Describe an input or output as a model's configuration does, where the batch is no dimension."""
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = spec.dims or (-1,)
    if len(dims) > 1 and dims[0] == -1:
        dims = dims[1:]
    return {"name": spec.name, "type": f"TYPE_{datatype}", "dims": list(dims)}
