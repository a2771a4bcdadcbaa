"""What a `tcm_sync.compat.TcmClient` takes and returns, by the names of tcm-client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tcm_sync._numbers import as_whole, shown
from tcm_sync.errors import InputError


@dataclass
class AuthContext:
    """Who the client is to the manager.

    If any field but `uuid` is given, the manager gets `uuid` for a `sub` that is left out, and ``dev-tenant``
    for a `tenant_id`.

    Parameters
    ----------
    uuid : str
        The beginning of each connection's own uuid.
    token, sub, tenant_id : str, optional
        As in `tcm_sync.AuthContext`.
    roles : list of str, optional
        As in `tcm_sync.AuthContext`.
    """

    uuid: str
    token: str | None = field(default=None, repr=False)
    sub: str | None = None
    tenant_id: str | None = None
    roles: list[str] | None = None


@dataclass
class InferenceInput:
    """One input, sent as it is: the manager checks it.

    Parameters
    ----------
    name : str
        The tensor's name in the model.
    shape : list of int
        The size of each dimension.
    datatype : str
        ``"FP32"``, ``"INT64"``, ``"BYTES"`` ...
    data : list or ndarray
        The values, nested as `shape` says.

    Raises
    ------
    InputError
        A field has another type. It is a ValueError, as pydantic's ValidationError is.
    """

    name: str
    shape: list[int]
    datatype: str
    data: Any

    def __post_init__(self) -> None:
        check_str(self.name, "name")
        check_str(self.datatype, "datatype")
        sizes = list(self.shape) if _is_list(self.shape) else [None]
        shape = [as_whole(size) for size in sizes]
        if None in shape:
            raise InputError(f"shape must be a list of int, not {shown(self.shape)}")
        self.shape = [size for size in shape if size is not None]

    def model_dump(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return {"name": self.name, "shape": self.shape, "datatype": self.datatype, "data": self.data}


@dataclass
class InferenceResponse:
    """A message of the manager.

    Attributes
    ----------
    type : str
        ``"inference"``, or ``"error"`` for a refusal.
    payload : dict
        Of an inference ``status`` (``"COMPLETED"`` or ``"FAILED"``), ``model_name`` and ``data``: the outputs
        as nested lists, or what failed. Of an error ``message`` and mostly ``code``.
    """

    type: str
    payload: dict[str, Any]

    def model_dump(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def check_str(value: object, name: str) -> None:
    """Refuse a value that is not a str, with an InputError."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a str, not {shown(value)}")


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))
