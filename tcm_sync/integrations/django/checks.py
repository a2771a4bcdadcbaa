"""System checks of the settings: ``manage.py check --tag tcm``."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004

from tcm_sync._endpoint import Endpoint
from tcm_sync.errors import ConfigError
from tcm_sync.integrations._settings import ready_timeout, request_timeout
from tcm_sync.integrations.django.clients import DEFAULT, tcm_setting, tcms


def check_settings(**_: Any) -> list[CheckMessage]:
    """Report a setting ``TCM``, ``TCM_REQUEST_TIMEOUT`` or ``TCM_READY_TIMEOUT`` that cannot work."""
    found: list[CheckMessage] = []
    try:
        names = list(tcm_setting())
    except ConfigError as error:
        return [Error(error.message, id="tcm.E001")]
    if DEFAULT not in names:
        found.append(Error('the setting TCM has no "default" client, which tcm is', id="tcm.E002"))
    for name in names:
        try:
            tcms.without_deadline(name)
        except ConfigError as error:
            found.append(Error(error.message, id="tcm.E003"))
    for name, check in (("TCM_REQUEST_TIMEOUT", request_timeout), ("TCM_READY_TIMEOUT", ready_timeout)):
        try:
            check(getattr(settings, name, None))
        except ConfigError as error:
            found.append(Error(error.message, id="tcm.E004"))
    return found


def check_deployment(**_: Any) -> list[CheckMessage]:
    """Warn of a token that is sent without TLS to another machine."""
    found: list[CheckMessage] = []
    try:
        clients = {name: tcms.without_deadline(name) for name in tcm_setting()}
    except ConfigError:
        return found  # which the other check reports
    for name, client in clients.items():
        used = client._core.settings  # noqa: SLF001 - of this package
        endpoint = Endpoint.parse(used.uri)
        is_this_machine = endpoint.host in ("localhost", "::1") or endpoint.host.startswith("127.")
        if used.auth is not None and used.auth.token and not endpoint.secure and not is_this_machine:
            found.append(
                Warning(
                    f"TCM[{name!r}] sends its token to {endpoint.host} without TLS",
                    hint="use a wss:// address",
                    id="tcm.W001",
                )
            )
    return found
