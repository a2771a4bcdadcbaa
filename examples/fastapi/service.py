"""A FastAPI service that recognises handwritten digits: ``GET /digits?number=3`` takes the third sample."""

import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response

from tcm_sync import Route, TcmClient
from tcm_sync.local.digits import load_samples

SAMPLES = load_samples()
client = TcmClient(
    os.environ["TCM_WS_URI"], route=Route(os.environ.get("TCM_CONTAINER_ID", "local")), timeout=20
)


@asynccontextmanager
async def lifespan(_):
    """Close the client with the service."""
    yield
    await asyncio.to_thread(client.close)


app = FastAPI(lifespan=lifespan)


@app.get("/digits")
async def digits(number: int):
    """Recognise an image. Requests wait for a connection without a thread of their own."""
    image = SAMPLES[number % len(SAMPLES)].image.reshape(1, -1)
    result = await asyncio.wrap_future(client.submit("digits", {"image": image}))
    return result.tolist()


@app.get("/readyz")
async def readyz(response: Response):
    """Answer whether the manager is ready."""
    answer = await asyncio.to_thread(client.ready, timeout=0.8)
    response.status_code = 200 if answer.ok else 503
    return {"status": answer.status}
