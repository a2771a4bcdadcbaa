"""The requests of tcm-client: who asks, and what is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tcm_sync import settings
from tcm_sync._arguments import check_flag
from tcm_sync._numbers import shown
from tcm_sync.compat.messages import check_str
from tcm_sync.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

_TENANT = "dev-tenant"  # what tcm-client sends in place of a tenant that is left out


def identity_of(auth_ctx: Any) -> settings.AuthContext:
    """Return who the client is, with what tcm-client sends for fields that are left out."""
    identity = settings.as_auth_context(auth_ctx)
    if identity is None:
        raise InputError("auth_ctx must be an AuthContext, not None")
    if not (identity.token or identity.sub or identity.tenant_id or identity.roles):
        return identity
    return settings.AuthContext(
        uuid=identity.uuid,
        token=identity.token,
        sub=identity.sub or identity.uuid,
        tenant_id=identity.tenant_id or _TENANT,
        roles=identity.roles,
    )


def inference_request(
    vm_id: str,
    container_id: str,
    model_name: str,
    inputs: Iterable[Any],
    vm_ip: str | None,
    allow_transient: bool,
) -> dict[str, Any]:
    """Return an inference as tcm-client sends it."""
    texts = {"vm_id": vm_id, "container_id": container_id, "model_name": model_name}
    for name, value in texts.items():
        check_str(value, name)
    if vm_ip is not None:
        check_str(vm_ip, "vm_ip")
    return {
        "vm_id": vm_id,
        "vm_ip": vm_ip,
        "container_id": container_id,
        "model_name": model_name,
        "inputs": None,
        "pipeline": None,
        "request": {
            "protocol": "http",
            "inputs": [_dumped(each) for each in _listed(inputs)],
            "allow_transient": check_flag("allow_transient", allow_transient),
        },
    }


def _listed(inputs: Any) -> Iterable[Any]:
    if hasattr(inputs, "model_dump") or hasattr(inputs, "set_data_from_numpy"):
        raise InputError(
            f"inputs must be a list of InferenceInput: put the {type(inputs).__name__} in a list"
        )
    listed: Iterable[Any] = inputs
    return listed


def _dumped(given: Any) -> dict[str, Any]:
    if hasattr(given, "set_data_from_numpy"):
        raise InputError(
            f"{type(given).__name__} is an input of tritonclient: pass an InferenceInput (docs/migrating.rst)"
        )
    if not callable(getattr(given, "model_dump", None)):
        raise InputError(f"each input must be an InferenceInput, not {shown(given)}")
    dumped: dict[str, Any] = given.model_dump()
    return dumped


def as_list(value: object) -> object:
    """Return an array as a list, for json: data of an input that were not converted."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"data of type {type(value).__name__}")
