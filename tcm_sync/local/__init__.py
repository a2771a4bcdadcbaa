"""A manager in this process, for laptops and tests: see `LocalManager`."""

from tcm_sync.local.cloud import Cloud
from tcm_sync.local.cloud_objects import CloudJob, CloudStep, Container, RegisteredServer, VirtualMachine
from tcm_sync.local.manager import LocalManager
from tcm_sync.local.models import Model, ModelFailure
from tcm_sync.local.shared_memory import MappedMemory
from tcm_sync.local.stats import LocalStats

__all__ = [
    "Cloud",
    "CloudJob",
    "CloudStep",
    "Container",
    "LocalManager",
    "LocalStats",
    "MappedMemory",
    "Model",
    "ModelFailure",
    "RegisteredServer",
    "VirtualMachine",
]
