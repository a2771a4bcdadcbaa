"""The views of the service. ``GET /digits?number=3`` recognises the third of the sample images."""

import asyncio

from asgiref.sync import sync_to_async
from django.http import JsonResponse

from tcm_sync.integrations.django import tcm
from tcm_sync.local.digits import load_samples

SAMPLES = load_samples()


def image(number):
    """Return a sample, as a batch of one."""
    return SAMPLES[number % len(SAMPLES)].image.reshape(1, -1)


def digits(request):
    """Recognise an image."""
    result = tcm.infer("digits", {"image": image(int(request.GET["number"]))})
    return JsonResponse(result.tolist())


async def both(request):
    """Recognise two images at the same time."""
    infer = sync_to_async(tcm.infer, thread_sensitive=False)
    number = int(request.GET["number"])
    results = await asyncio.gather(*(infer("digits", {"image": image(n)}) for n in (number, number + 1)))
    return JsonResponse([result.tolist() for result in results], safe=False)
