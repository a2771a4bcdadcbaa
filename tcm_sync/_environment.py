"""The ``TCM_*`` variables of the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from tcm_sync._secret_texts import AROUND_SECRETS
from tcm_sync.errors import ConfigError
from tcm_sync.settings import AuthContext, Route, TlsSettings


def settings_from_env(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Read the ``TCM_*`` variables into arguments of `TcmClient`.

    Raises
    ------
    ConfigError
        ``TCM_WS_URI`` is missing, ``TCM_CA_FILE`` is empty, or a number cannot be read.
    """
    if environ.get("TCM_CA_FILE") == "":  # by other authorities than those that were meant
        raise ConfigError("TCM_CA_FILE is empty; unset it to trust the system's authorities")
    values = {name: value for name, value in environ.items() if name.startswith("TCM_") and value}
    for name in values.keys() - {"TCM_CLIENT_TOKEN"}:  # whose own check refuses one of white space alone
        values[name] = values[name].strip(AROUND_SECRETS)  # files of variables may have line ends of Windows
    if "TCM_WS_URI" not in values:
        raise ConfigError(
            "TCM_WS_URI is not set; it is the manager's address, such as ws://localhost:8000/ws"
        )
    arguments: dict[str, Any] = {"uri": values["TCM_WS_URI"]}
    names = {"uuid": "UUID", "token": "TOKEN", "sub": "SUB", "tenant_id": "TENANT_ID"}
    auth: dict[str, Any] = {
        field_: values[f"TCM_CLIENT_{name}"]
        for field_, name in names.items()
        if f"TCM_CLIENT_{name}" in values
    }
    if "TCM_CLIENT_ROLES" in values:
        auth["roles"] = tuple(filter(None, (role.strip() for role in values["TCM_CLIENT_ROLES"].split(","))))
    if auth:
        arguments["auth"] = AuthContext(**auth)
    if "TCM_CONTAINER_ID" in values:
        arguments["route"] = Route(
            values["TCM_CONTAINER_ID"], values.get("TCM_VM_IP"), values.get("TCM_VM_ID")
        )
    elif "TCM_VM_IP" in values or "TCM_VM_ID" in values:
        raise ConfigError("TCM_VM_IP and TCM_VM_ID need TCM_CONTAINER_ID beside them")
    if "TCM_CA_FILE" in values:
        arguments["tls"] = TlsSettings(ca_file=values["TCM_CA_FILE"])
    if "TCM_PROXY" in values:
        arguments["proxy"] = values["TCM_PROXY"]
    numbers: dict[str, tuple[str, Callable[[str], float]]] = {
        "TCM_TIMEOUT": ("timeout", float),
        "TCM_POOL_SIZE": ("pool_size", int),
    }
    if "TCM_TURNS" in values:
        turns = values["TCM_TURNS"]
        arguments["turns"] = int(turns) if turns.isdecimal() else turns
    for variable, (argument, convert) in numbers.items():
        if variable in values:
            try:
                arguments[argument] = convert(values[variable])
            except ValueError:
                raise ConfigError(f"{variable} must be a number, not {values[variable]!r}") from None
    return arguments
