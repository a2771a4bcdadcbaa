"""Run management jobs on the simulated cloud, and answer them (docs/wire.rst, "Management").

Where each action reads its ids, its replies and its failures are those of the recorded manager.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tcm_sync.local.cloud_objects import CloudStep
from tcm_sync.local.failures import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcm_sync.local.cloud import Cloud
    from tcm_sync.local.cloud_objects import Container, OnStep, VirtualMachine
    from tcm_sync.local.loaded_model import LoadedModel, TensorSpec


_NO_VM = (
    "Container creation failed: Refusing to use client-supplied vm_ip/worker_ip. "
    "Provide a valid vm_id for a managed VM."
)
_TRITON_ARGUMENT = "[TritonThread] TRITON_MISSING_ARGUMENT: model='manager' retriable=False reason="


class _Refused(Exception):
    """The job cannot be done; the text is sent to the client as it is."""


class Management:
    """Run management jobs; safe from any thread.

    Parameters
    ----------
    cloud : Cloud
    models : mapping of str to LoadedModel
        The models that can be deployed.
    on_step : callable or None
        Called before each step of a job, in the job's thread; what it raises fails the job.
    known_faults : bool
        Whether jobs fail as those of manager 2.0.0 do.
    """

    def __init__(
        self,
        cloud: Cloud,
        models: Mapping[str, LoadedModel],
        on_step: OnStep | None,
        *,
        known_faults: bool = False,
    ) -> None:
        self.cloud = cloud
        self.models = models
        self.on_step = on_step
        self.known_faults = known_faults

    def answer(self, uuid: str, payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """Run a job.

        Returns
        -------
        dict or None
            The payload of the reply, which may report a failure; None for a job that is never answered.
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
        if done and self.known_faults and action == "create_container":
            return None
        return {"status": done, "data": data}


class _Job:
    """One job, with a method for each action that returns the data of the reply."""

    def __init__(self, management: Management, uuid: str, action: str, payload: Mapping[str, Any]) -> None:
        self._cloud = management.cloud
        self._models = management.models
        self._on_step = management.on_step
        self._known_faults = management.known_faults
        self._uuid = uuid
        self._action = action
        self._payload = payload

    def creation(self) -> Any:
        name, model = self._named_vm(), self._model()
        vm = self._make_vm(name)
        container = self._make_container(vm)
        try:
            declared = self._deploy(container.container_id, vm.vm_id, model)
        except Exception:
            self._drop_container(container.container_id)
            self._drop_vm(vm.vm_id)
            raise
        return {"vm_ip": vm.vm_ip, "container_id": container.container_id, **declared}

    def create_vm(self) -> Any:
        vm = self._make_vm(self._named_vm())
        return [vm.vm_ip, vm.vm_id]

    def create_container(self) -> Any:
        wanted = self._field("openstack", "vm_id")
        vm = next((vm for vm in self._cloud.vms if vm.vm_id == wanted), None)
        if vm is None:
            raise _Refused(_NO_VM)
        return [self._make_container(vm).container_id, self._block("docker")]

    def create_server(self) -> Any:
        model, container_id = self._model(), self._field("docker", "container_id")
        self._imitate_readiness_fault(model)
        if container_id is None:
            raise ValueError("Missing key 'container_id'")
        if self._cloud.find(container_id) is None:
            raise ValueError(f"Container {container_id!r} not found in known containers")
        return self._deploy(container_id, self._field("openstack", "vm_id"), model)

    def deletion(self) -> Any:
        """Try to delete all three parts, whether the others fail or not."""
        vm_id, container_id = self._vm_id_to_delete(), self._field("docker", "container_id")
        for field, value in (("vm_id", vm_id), ("container_id", container_id)):
            if value is None:
                raise _Refused(f"Deletion missing required field: '{field}'")
        failed = []
        for name, drop, ids in (
            ("triton_delete_server", self._drop_server, (vm_id, container_id)),
            ("delete_container", self._drop_container, (container_id,)),
            ("delete_vm", self._drop_vm, (vm_id,)),
        ):
            try:
                drop(*ids)
            except Exception as exc:  # noqa: BLE001 - the user's function may raise anything
                failed.append(f"{name}: {exc}")
        if failed:
            raise _Refused(f"Deletion failed: {'; '.join(failed)}")
        return {"vm_id": vm_id, "container_id": container_id}

    def delete_server(self) -> Any:
        self._drop_server(*(self._argument(name, _TRITON_ARGUMENT) for name in ("vm_id", "container_id")))
        return self._payload

    def delete_container(self) -> Any:
        """Delete it, whatever its ``vm_id`` is, but not without one."""
        _, container_id = (self._argument(name, "[DockerThread] ") for name in ("vm_id", "container_id"))
        self._drop_container(container_id)
        return self._payload

    def delete_vm(self) -> Any:
        self._drop_vm(self._argument("vm_id", "[OpenstackThread] "))

    # The steps

    def _make_vm(self, name: str) -> VirtualMachine:
        self._step("create_vm", name)
        return self._cloud.create_vm(name)

    def _make_container(self, vm: VirtualMachine) -> Container:
        self._step("create_container", vm.vm_id)
        name = self._block("docker").get("name")
        return self._cloud.create_container(vm.vm_ip, None if name is None else str(name))

    def _deploy(self, container_id: str, vm_id: str | None, model: LoadedModel) -> dict[str, Any]:
        self._step("create_server", container_id)
        self._imitate_readiness_fault(model)
        self._cloud.create_server(container_id, model.name, vm_id=vm_id, grpc=model.decoupled)
        return {
            "model_name": model.name,
            "inputs": [_declared(spec) for spec in model.inputs or ()],
            "outputs": [_declared(spec) for spec in model.outputs],
        }

    def _imitate_readiness_fault(self, model: LoadedModel) -> None:
        """Fail as manager 2.0.0 does when it asks an HTTP server whether it is ready."""
        if self._known_faults and not model.decoupled:
            raise TypeError(
                "InferenceServerClient.is_server_ready() got an unexpected keyword argument 'client_timeout'"
            )

    def _drop_server(self, vm_id: str, container_id: str) -> None:
        if not any(
            server.container_id == container_id and server.vm_id in (None, vm_id)
            for server in self._cloud.servers
        ):
            raise LookupError(
                "[TritonThread] TRITON_MISSING_INSTANCE: model='server' retriable=False "
                f"reason=Server instance not found: vm_id={vm_id!r}, container_id={container_id!r}"
            )
        self._step("delete_server", container_id)
        self._cloud.delete_server(container_id)

    def _drop_container(self, container_id: str) -> None:
        if self._cloud.find(container_id) is None:
            raise LookupError(f"[DockerThread] Container not found: {container_id!r}")
        self._step("delete_container", container_id)
        self._cloud.delete_container(container_id)

    def _drop_vm(self, vm_id: str) -> None:
        if vm_id not in {vm.vm_id for vm in self._cloud.vms}:
            raise LookupError(f"[OpenstackThread] VM not found during deletion: {vm_id!r}")
        self._step("delete_vm", vm_id)
        self._cloud.delete_vm(vm_id)

    def _step(self, name: str, subject: str) -> None:
        if self._on_step is not None:
            self._on_step(CloudStep(name, subject, self._action, self._uuid))

    # The fields of the request

    def _block(self, name: str) -> dict[str, Any]:
        block = self._payload.get(name)
        return block if isinstance(block, dict) else {}

    def _field(self, block: str, field: str) -> Any:
        """Look for a field in its block, and then beside the blocks."""
        value = self._block(block).get(field)
        return self._payload.get(field) if value is None else value

    def _argument(self, name: str, prefix: str) -> Any:
        """Look for a field beside the blocks only."""
        value = self._payload.get(name)
        if value is None:
            raise ValueError(f"{prefix}Missing required argument: '{name}'")
        return value

    def _vm_id_to_delete(self) -> Any:
        """Look for the id, or for the one machine that has the address."""
        vm_id, vm_ip = self._field("openstack", "vm_id"), self._field("openstack", "vm_ip")
        if vm_id is None and vm_ip is not None:
            found = [vm.vm_id for vm in self._cloud.vms if vm.vm_ip == vm_ip]
            return found[0] if len(found) == 1 else None
        return vm_id

    def _named_vm(self) -> str:
        name = self._block("openstack").get("name")
        if name is None and "openstack" not in self._payload:
            raise _Refused("[OpenstackThread] : name Missing !")
        if name is None:
            raise ValueError("Missing key 'name'")
        return str(name)

    def _model(self) -> LoadedModel:
        """Return the model to deploy: the one that is named, else the first."""
        minio = self._block("minio")
        name = self._field("triton", "model_name") or minio.get("model_name") or minio.get("folder")
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
