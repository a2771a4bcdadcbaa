"""The page for those who come from other clients: the calls in its tables run."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import tcm_sync
from tcm_sync.local.digits import model_file
from tcm_sync.models import analyze

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.rst").read_text(encoding="utf-8")
CELL = re.compile(r"^   \* - ``(.+)``\n     - ``(.+)``$", re.M)
OF_TCM_CLIENT, OF_TRITONCLIENT, OF_PYTRITON = (
    CELL.findall(PAGE.split(f"From {name}\n---")[1].split("\n\nFrom ")[0])
    for name in ("tcm-client", "tritonclient", "pytriton")
)


def poet(inputs):
    yield from inputs["text"][0].split()
    yield None


@pytest.fixture
def namespace(serve, connect):
    """What the calls of the page name."""
    with model_file() as path:
        manager = serve(
            {"digits": str(path), "poet": poet},
            container_id="ctr-9",
            transient_container_id="ctr-10",
        )
        client = connect(manager)
        names = {
            **{name: getattr(tcm_sync, name) for name in tcm_sync.__all__},
            "analyze": analyze,
            "asyncio": asyncio,
            "client": client,
            "image": np.zeros((1, 64), np.float32),
            "model": client.model("digits"),
            "path": str(path),
            "uri": manager.uri,
        }
        yield names
        names.clear()  # shared memory among them


async def run(code, namespace):
    """Run a call as a coroutine may, and return its value, if it is an expression."""
    is_value = isinstance(ast.parse(code).body[0], ast.Expr)
    mode, flags = ("eval" if is_value else "exec"), ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    value = eval(compile(code, "migrating.rst", mode, flags), namespace)
    return await value if inspect.isawaitable(value) else value


@pytest.mark.parametrize("ours", [ours for _, ours in OF_TCM_CLIENT + OF_TRITONCLIENT + OF_PYTRITON])
def test_our_call_runs(ours, namespace):
    value = asyncio.run(run(ours, namespace))
    if ours.endswith('"probabilities"]') or "as_numpy" in ours:
        assert value.shape in ((1, 10), (10,)), value
    elif "stream" in ours:
        assert value == ["to", "be"]
    elif ours.startswith(("TcmClient", "model =", "inputs =", "shared =")):
        assert "=" in ours
    else:
        assert value, ours


@pytest.mark.parametrize("theirs", [theirs for theirs, _ in OF_TCM_CLIENT])
def test_the_call_of_tcm_client_runs(theirs, namespace):
    sdk = pytest.importorskip("tcm_client.sdk", reason="tcm-client (the extra bench) is not installed")
    from tcm_client.model_analyze import AnalyzeModelAction

    who = sdk.AuthContext("c-1")
    image = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [[0.0] * 64]}
    theirs_only = {
        **vars(sdk),
        "AnalyzeModelAction": AnalyzeModelAction,
        "inputs": [sdk.InferenceInput(**image)],
        "steps": [{"model_name": "digits", "inputs": [image]}],
        "theirs": sdk.TcmClient(namespace["uri"], who),
    }
    here = {**namespace, **theirs_only}

    async def ask():
        async with sdk.TcmWebSocketClient(namespace["uri"], who) as ws:
            await ws.auth()
            return await run(theirs, {**here, "ws": ws})

    value = (
        asyncio.run(ask() if " ws." in theirs else run(theirs, here))
        if "await" in theirs
        else (eval(theirs, here))
    )
    assert value
    if isinstance(value, dict):
        assert value["payload"]["status"] in (True, "success", "COMPLETED")


def test_the_tables_have_their_calls():
    assert [len(table) for table in (OF_TCM_CLIENT, OF_TRITONCLIENT, OF_PYTRITON)] == [9, 12, 9]
