"""The clients of a Django project: one of each, for all threads of a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.connection import ConnectionProxy

from tcm_sync.errors import ConfigError
from tcm_sync.integrations._deadline import bounded
from tcm_sync.integrations._settings import client_from_dict

if TYPE_CHECKING:
    from tcm_sync._deadline import Deadline
    from tcm_sync.client import TcmClient

DEFAULT = "default"

#: The deadline of the request that is answered in this context.
request_deadline: ContextVar[Deadline | None] = ContextVar("tcm_request_deadline", default=None)


class Clients(Mapping[str, "TcmClient"]):
    """The clients by their names in the setting ``TCM``, each made when it is first used.

    They connect on their first call, and may be made before a server forks its workers. While a request is
    answered under the middleware, their calls end with the request.
    """

    def __init__(self) -> None:
        # Without a lock, which another thread might hold at a fork: each step is one operation of the dict.
        self._made: dict[str, TcmClient] = {}

    def __getitem__(self, name: str) -> TcmClient:
        return bounded(self.without_deadline(name), request_deadline.get())

    def __iter__(self) -> Iterator[str]:
        return iter(tcm_setting())

    def __len__(self) -> int:
        return len(tcm_setting())

    def without_deadline(self, name: str) -> TcmClient:
        """Return a client itself, whose calls do not end with the request, such as for probes.

        Raises
        ------
        ConfigError
            ``TCM`` does not have it, or a setting of it cannot work.
        """
        client = self._made.get(name)
        if client is not None:
            return client
        given = tcm_setting()
        if name not in given:
            there = ", ".join(map(repr, given)) or "none"
            raise ConfigError(f"there is no client {name!r} in the setting TCM; there are {there}")
        client = client_from_dict(f"TCM[{name!r}]", given[name])
        client._core.may_be_dropped = True  # noqa: SLF001 - with the process, which does not close it
        return self._made.setdefault(name, client)

    def close(self) -> None:
        """Close all clients. The next use makes new ones, from the settings of that time."""
        while self._made:
            _, client = self._made.popitem()
            client.close()


def tcm_setting() -> Mapping[str, Any]:
    """Return the setting ``TCM``.

    Raises
    ------
    ConfigError
        It is missing, or is no dictionary.
    """
    given = getattr(settings, "TCM", None)
    if given is None:
        raise ConfigError('the setting TCM is missing: TCM = {"default": {"uri": "ws://…/ws", …}}')
    if not isinstance(given, Mapping):
        raise ConfigError(f"the setting TCM must be a dictionary of clients, not {type(given).__name__}")
    return given


def _close_if_changed(*, setting: str, **_: object) -> None:
    if setting == "TCM":
        tcms.close()


#: All clients of the setting ``TCM`` by name.
tcms = Clients()

#: The client ``"default"``.
tcm: TcmClient = cast("TcmClient", ConnectionProxy(cast("Any", tcms), DEFAULT))

setting_changed.connect(_close_if_changed)  # as tests do with override_settings
