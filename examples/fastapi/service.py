"""A FastAPI service that recognises digits: concurrent requests share batches, and the loop is never blocked.

::

    tcm-sync serve --digits  # in a terminal of its own
    export TCM_WS_URI=ws://localhost:8000/ws TCM_CONTAINER_ID=local
    uvicorn service:app --workers 2 --port 8080
    curl localhost:8080/readyz
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from tcm_sync import RETRIABLE, BatchPolicy, TcmClient, TcmError

# One client per process, made when the module is imported. It connects with its first call.
client = TcmClient.from_env()
model = client.model("digits", batch=BatchPolicy(max_size=32, max_wait=0.004))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the client when the service stops."""
    yield
    await asyncio.to_thread(client.close)


app = FastAPI(lifespan=lifespan)


class Image(BaseModel):
    """An image of 8 x 8 pixels, row by row."""

    image: Annotated[list[float], Field(min_length=64, max_length=64)]


@app.post("/digits")
async def digits(body: Image) -> dict[str, Any]:
    """Return the probabilities of the ten digits."""
    result = await asyncio.wrap_future(model.submit_sample({"image": np.float32(body.image)}, timeout=20))
    return result.tolist()


@app.exception_handler(TcmError)
async def failed(_: Request, error: TcmError) -> Response:
    """Answer 503 for what passes with time, 504 for what took too long, and 502 for all else."""
    kind = {"error": type(error).__name__}
    if isinstance(error, RETRIABLE):
        return JSONResponse(kind, 503, {"Retry-After": str(math.ceil(error.retry_after or 1))})
    return JSONResponse(kind, 504 if isinstance(error, TimeoutError) else 502)


@app.get("/readyz")
async def readyz() -> Response:
    """Report whether the manager is ready, within a second."""
    readiness = await asyncio.to_thread(client.ready, timeout=0.8)
    return JSONResponse({"status": readiness.status}, 200 if readiness.ok else 503)
