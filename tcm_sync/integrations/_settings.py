"""Reads the settings of clients from the configuration of a web framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tcm_sync._arguments import check_seconds
from tcm_sync._environment import settings_from_env
from tcm_sync._numbers import shown
from tcm_sync.client import TcmClient
from tcm_sync.errors import ConfigError
from tcm_sync.integrations._http import READY_TIMEOUT
from tcm_sync.settings import AuthContext, Route, Settings, TlsSettings

#: Keys of a client's dictionary that are fields of a settings object, by the argument that takes the object.
_PARTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "auth": (AuthContext, ("uuid", "token", "sub", "tenant_id", "roles")),
    "route": (Route, ("container_id", "vm_ip", "vm_id")),
    "tls": (TlsSettings, ("ca_file",)),
}
_PLACEHOLDER = "x"
_ARGUMENTS = frozenset(field.name for field in fields(Settings))


def client_from_dict(name: str, given: object) -> TcmClient:
    """Make the client that a dictionary describes.

    Parameters
    ----------
    name : str
        Where the dictionary is in the configuration, for messages.
    given : mapping of str to object
        The arguments of `TcmClient`, or in their place fields of `AuthContext`, `Route` and `TlsSettings`:
        ``uuid``, ``token``, ``sub``, ``tenant_id``, ``roles``, ``container_id``, ``vm_ip``, ``vm_id``,
        ``ca_file``. A value of None is as if the key was left out, except for ``timeout`` and ``retry``.

    Raises
    ------
    ConfigError
        A key is unknown, or a setting cannot work.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name} must be a dictionary of settings, not {type(given).__name__}")
    left = {key: value for key, value in given.items() if value is not None or key in ("timeout", "retry")}
    arguments: dict[str, Any] = {}
    try:
        for argument, (kind, names) in _PARTS.items():
            parts = {key: left.pop(key) for key in list(left) if key in names}
            if parts and argument in left:
                raise ConfigError(f"{argument} is given, so {', '.join(map(repr, parts))} must be left out")
            if argument == "route" and parts and "container_id" not in parts:
                raise ConfigError(f"{', '.join(map(repr, parts))} needs 'container_id' beside it")
            if parts:
                arguments[argument] = kind(**parts)
        if unknown := [key for key in left if key not in _ARGUMENTS]:
            allowed = sorted(_ARGUMENTS.union(*(names for _, names in _PARTS.values())))
            raise ConfigError(
                f"the setting {shown(unknown[0])} is unknown; the settings are {', '.join(allowed)}"
            )
        if "uri" not in left:
            raise ConfigError("'uri' is missing: the manager's address, such as ws://localhost:8000/ws")
        return TcmClient(**arguments, **left)
    except (ConfigError, ValueError) as error:
        message = error.message if isinstance(error, ConfigError) else error
        raise ConfigError(f"{name}: {message}") from error


def client_from_variables(config: Mapping[str, Any], options: Mapping[str, Any]) -> TcmClient:
    """Make a client from keys that are named like the ``TCM_*`` variables.

    Parameters
    ----------
    config : mapping of str to object
        The configuration. A key that it lacks, or whose value is None, is read from the environment.
    options : mapping of str to object
        Further arguments of `TcmClient`.

    Raises
    ------
    ConfigError
        A setting is missing or cannot work.
    """
    given = {key: value for key, value in config.items() if key.startswith("TCM_") and value is not None}
    token = given.get("TCM_CLIENT_TOKEN")
    if callable(token):
        given["TCM_CLIENT_TOKEN"] = _PLACEHOLDER  # in its place until it is set below
    arguments = settings_from_env({**os.environ, **{key: _as_variable(given[key]) for key in given}})
    if callable(token):
        auth = arguments["auth"]
        arguments["auth"] = AuthContext(auth.uuid, token, auth.sub, auth.tenant_id, auth.roles)
    if unknown := [key for key in options if key not in _ARGUMENTS]:
        raise ConfigError(f"TCM_OPTIONS: TcmClient has no argument {shown(unknown[0])}")
    return TcmClient(**{**arguments, **options})


def _as_variable(value: object) -> str:
    """Return a value of a configuration as an environment variable would have it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple, set, frozenset)) else str(value)


def request_timeout(value: object) -> float | None:
    """Return the seconds that a request may take, or None if there is no limit.

    Raises
    ------
    ConfigError
        It is no such number.
    """
    return None if value is None else check_seconds("TCM_REQUEST_TIMEOUT", value)


def ready_timeout(value: object) -> float:
    """Return the seconds that a probe of readiness may take; None is the default.

    Raises
    ------
    ConfigError
        It is no such number.
    """
    return READY_TIMEOUT if value is None else check_seconds("TCM_READY_TIMEOUT", value)
