"""A reply of a million values: our whole call against parsing the same text in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator

import bare
import numpy as np
from runner import Plan, Row, again, alternate, each_took, instant_server, ratios
from server import OUTPUTS, reply_message

#: The formats of the values: the name in the server, and a description.
FORMS = {"decimals": "seven decimals each, 11 MB", "singles": "FP32 in all digits of a double, 20 MB"}


def rows(plan: Plan) -> Iterator[Row]:
    """Measure both forms of text, one after the other."""
    count = plan.size(1_000_000, 10_000)
    with instant_server(plan) as port:
        for kind, form in FORMS.items():
            yield one_form(plan, bare.address(port), kind, count, form)


def one_form(plan: Plan, uri: str, kind: str, count: int, form: str) -> Row:
    """Have the call and the parsing of the same text take turns."""
    text = reply_message("uuid", OUTPUTS[kind](count)).decode()

    def read() -> np.ndarray:
        return np.asarray(json.loads(text)["payload"]["data"]["y"], np.float32)

    with bare.our_client(uri, f"{kind}.{count}") as client:
        infer = bare.our_infer(client)
        if not np.array_equal(infer(bare.ARRAY), read()):
            raise RuntimeError("a wrong answer")
        works = {
            "ours": again(lambda: infer(bare.ARRAY), batch=1),
            "json.loads and asarray": again(read, batch=1),
        }
        rates = list(alternate(works, plan))
    return Row(
        f"reply of a million values ({form}): json.loads and asarray / our whole call",
        ratios(rates, "ours", "json.loads and asarray"),
        1.35,
        detail=each_took(rates),
    )
