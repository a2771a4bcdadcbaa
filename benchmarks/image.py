"""An FP32 image over JSON: the whole call against tcm-client's."""

from __future__ import annotations

from collections.abc import Iterator

import bare
import numpy as np
from bare import MODEL, Infer
from runner import Plan, Row, Work, again, alternate, each_took, instant_server, ratios

SHAPE = (1, 3, 224, 224)
MAX_BYTES = 16 * 2**20  # our client would refuse the image under the manager's default limit of 64 KiB


def image(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Make pixels from 0 to 1."""
    return np.random.default_rng(7).random(shape, np.float32)


def our_json_infer(client: bare.TcmClient) -> Infer:
    """Call `TcmClient.infer` without shared memory."""

    def infer(array: np.ndarray) -> np.ndarray:
        return client.infer(MODEL, {"x": array}, output_dtypes=np.float32, transport="json")["y"]

    return infer


def rows(plan: Plan) -> Iterator[Row]:
    """Have both clients send the image in turns."""
    import peer

    pixels = image((1, 3, plan.size(224, 8), plan.size(224, 8)))
    with instant_server(plan) as port:
        uri = bare.address(port)
        with bare.our_client(uri, max_message_bytes=MAX_BYTES) as client:
            works: dict[str, Work] = {}
            for name, infer in {"ours": our_json_infer(client), "tcm-client": peer.connecting(uri)}.items():
                bare.check(infer)
                works[name] = again(lambda infer=infer: infer(pixels), batch=1)  # type: ignore[misc]
            rates = list(alternate(works, plan))
    yield Row(
        "the image over JSON: tcm-client's time / ours",
        ratios(rates, "ours", "tcm-client"),
        18,
        detail=each_took(rates),
    )
