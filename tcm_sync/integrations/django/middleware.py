"""Middleware that answers errors of calls, and gives the calls of a request its deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase, JsonResponse

from tcm_sync._deadline import Deadline
from tcm_sync.errors import TcmError
from tcm_sync.integrations._http import response_to
from tcm_sync.integrations._settings import request_timeout
from tcm_sync.integrations.django.clients import request_deadline


class TcmMiddleware:
    """Turns errors of calls into JSON responses (400, 502, 503 with Retry-After, 504).

    With the setting ``TCM_REQUEST_TIMEOUT``, calls of `tcm` and `tcms` end so many seconds after the start of
    the request that they are made in.

    Parameters
    ----------
    get_response : callable
        The next middleware, or the view.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Answer a request.

        Parameters
        ----------
        request : HttpRequest
            The request.

        Returns
        -------
        HttpResponseBase or coroutine
            The response.
        """
        if self._is_async:
            return self._answer(request)
        token = request_deadline.set(_deadline())
        try:
            return self._get_response(request)
        finally:
            request_deadline.reset(token)

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        token = request_deadline.set(_deadline())
        try:
            response: HttpResponseBase = await self._get_response(request)
            return response
        finally:
            request_deadline.reset(token)

    def process_exception(self, request: HttpRequest, error: Exception) -> JsonResponse | None:  # noqa: ARG002
        """Answer an error of a view.

        Parameters
        ----------
        request : HttpRequest
            The request.
        error : Exception
            What the view raised.

        Returns
        -------
        JsonResponse or None
            None if it is no error of a call, or a mistake of the service itself.
        """
        response = response_to(error) if isinstance(error, TcmError) else None
        if response is None:
            return None
        return JsonResponse(response.body, status=response.status, headers=response.headers)


def _deadline() -> Deadline | None:
    seconds = request_timeout(getattr(settings, "TCM_REQUEST_TIMEOUT", None))
    return None if seconds is None else Deadline(seconds)
