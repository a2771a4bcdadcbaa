"""Probes: ``/healthz`` and ``/readyz``. They are asynchronous: under ASGI no slow view delays them."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, JsonResponse

from tcm_sync.integrations._http import readiness_of
from tcm_sync.integrations._settings import ready_timeout
from tcm_sync.integrations.django.clients import tcms


async def healthz(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """Answer that this process answers."""
    return JsonResponse({"status": "ok"})


async def readyz(request: HttpRequest) -> JsonResponse:  # noqa: ARG001
    """Answer whether the managers of all clients are ready, within ``TCM_READY_TIMEOUT`` seconds."""
    timeout = ready_timeout(getattr(settings, "TCM_READY_TIMEOUT", None))
    clients = {name: tcms.without_deadline(name) for name in tcms}
    response = await sync_to_async(readiness_of, thread_sensitive=False)(clients, timeout)
    return JsonResponse(response.body, status=response.status)
