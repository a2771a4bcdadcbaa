"""The Django service of docs/deploying.rst without `tcm_sync.integrations.django`, in one file."""

import asyncio
import math
import time
from contextvars import ContextVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import JsonResponse
from django.urls import path

from tcm_sync import RETRIABLE, TcmClient, TcmError, errors
from tcm_sync.local.digits import load_samples

WRONG_INPUT = (
    errors.InputError,
    errors.ContractError,
    errors.ShapeMismatchError,
    errors.MessageTooLargeError,
    errors.PayloadTooLargeError,
)
SAMPLES = load_samples()
client = TcmClient.from_env()
until = ContextVar("until")


class Middleware:
    sync_capable = async_capable = True

    def __init__(self, get_response):
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request):
        until.set(time.monotonic() + 20)
        return self.get_response(request)

    def process_exception(self, request, error):
        if not isinstance(error, TcmError):
            return None
        body = {"error": {"type": type(error).__name__, "code": error.code, "retriable": error.retriable}}
        if isinstance(error, WRONG_INPUT):
            body["error"]["message"] = error.message
            return JsonResponse(body, status=400)
        if isinstance(error, RETRIABLE):
            headers = {"Retry-After": str(math.ceil(error.retry_after or 1))}
            return JsonResponse(body, status=503, headers=headers)
        return JsonResponse(body, status=504 if isinstance(error, TimeoutError) else 502)


def infer(number):
    image = SAMPLES[number % len(SAMPLES)].image.reshape(1, -1)
    left = max(0.001, until.get() - time.monotonic())
    return client.infer("digits", {"image": image}, timeout=left)


def digits(request):
    return JsonResponse(infer(int(request.GET["number"])).tolist())


async def both(request):
    call = sync_to_async(infer, thread_sensitive=False)
    number = int(request.GET["number"])
    results = await asyncio.gather(*(call(n) for n in (number, number + 1)))
    return JsonResponse([result.tolist() for result in results], safe=False)


def healthz(request):
    return JsonResponse({"status": "ok"})


def readyz(request):
    answer = client.ready(timeout=0.8)
    return JsonResponse({"status": answer.status}, status=200 if answer.ok else 503)


urlpatterns = [
    path("digits", digits),
    path("digits/both", both),
    path("healthz", healthz),
    path("readyz", readyz),
]
