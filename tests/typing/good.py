"""What users write, and what type checkers are to make of it. It is checked, and never run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
from typing_extensions import assert_type

from tcm_sync import (
    AuthContext,
    BatchPolicy,
    ClientStats,
    Deployment,
    InferenceInput,
    InferResult,
    InferStream,
    ManagementResult,
    Model,
    ModelSignature,
    PipelineStep,
    QueueStats,
    Readiness,
    RetryPolicy,
    Route,
    SHMReference,
    TcmClient,
    TcmError,
    TlsSettings,
)
from tcm_sync.local import LocalManager, LocalStats
from tcm_sync.models import ModelAnalysis, analyze, sample_inputs

SAMPLES = np.zeros((2, 3), np.float32)


class Frame:
    """Stands for the data frame of a library."""


def make_clients() -> None:
    client = TcmClient(
        "wss://manager:8443/ws",
        AuthContext(token=lambda: "secret", roles=["inference"]),
        route=Route("container", "10.0.0.1"),
        tls=TlsSettings(ca_file="ca.pem"),
        retry=RetryPolicy(attempts=2),
        timeout=None,
    )
    assert_type(client.open(), TcmClient)
    with TcmClient.from_env() as opened:
        assert_type(opened, TcmClient)
        assert_type(opened.with_options(timeout=1.0, retry=None), TcmClient)


def infer(client: TcmClient, spec: InferenceInput, reference: SHMReference) -> None:
    result = client.infer("m", {"x": SAMPLES}, output_dtypes={"y": np.float32}, timeout=1)
    assert_type(result, InferResult)
    assert_type(result["y"], np.ndarray[Any, Any])
    assert_type(result.attempts, int)
    assert_type(dict(result), dict[str, np.ndarray[Any, Any]])
    frame = Frame()
    assert_type(client.infer_frame("m", frame, columns=["a"], stack={"x": ("a",)}, rows=8), Frame)
    assert_type(client.model("m").infer_frame(frame, stack="x"), Frame)
    client.infer("m", {"x": [[1.0, 2.0]], "text": ["a", b"b"]}, transport="json", retry=None)
    client.infer("m", [spec])
    client.infer("m", [reference], container_id="c", vm_ip="10.0.0.1")
    client.infer("m", [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}])
    client.infer("m", SAMPLES)
    assert_type(client.infer_chunked("m", {"x": SAMPLES}, rows=1), InferResult)


def submit_and_map(client: TcmClient, many: Iterator[dict[str, np.ndarray[Any, Any]]]) -> None:
    assert_type(client.submit("m", {"x": SAMPLES}), Future[InferResult])
    for result in client.map("m", many):
        assert_type(result, InferResult)
    for index, found in client.map("m", many, ordered=False):
        assert_type(index, int)
        assert_type(found, InferResult)
    for either in client.map("m", many, on_error="return"):
        assert_type(either, InferResult | TcmError)
    for pair in client.map("m", many, ordered=False, on_error="return"):
        assert_type(pair, tuple[int, InferResult | TcmError])


def stream(client: TcmClient) -> str | None:
    with client.stream("llm", {"text": ["hello"]}, allow_transient=True, idle_timeout=5.0) as chunks:
        assert_type(chunks, InferStream)
        for chunk in chunks:
            assert_type(chunk, str)
    return chunks.ended_by


def bound_model(client: TcmClient, signature: ModelSignature) -> None:
    model = client.model("m", signature=signature, batch=BatchPolicy(max_size=8))
    assert_type(model, Model)
    assert_type(model.infer({"x": SAMPLES}), InferResult)
    assert_type(model.infer_sample({"x": 1.0}), InferResult)
    assert_type(model.submit_sample({"x": 1.0}), Future[InferResult])
    assert_type(model.submit({"x": SAMPLES}), Future[InferResult])
    assert_type(model.signature, ModelSignature | None)


def pipeline(client: TcmClient) -> None:
    results = client.pipeline([PipelineStep("m", {"x": SAMPLES}), {"model_name": "n", "inputs": {}}])
    assert_type(results, dict[str, InferResult])


def manage(client: TcmClient) -> None:
    deployment = client.create(docker={"image": "triton"}, minio={"bucket": "models"}, progress=True)
    assert_type(deployment, Deployment)
    assert_type(deployment.infer({"x": SAMPLES}), InferResult)
    assert_type(deployment.delete(), ManagementResult)
    assert_type(client.delete(container_id="c", vm_ip="10.0.0.1", missing_ok=True), ManagementResult)
    assert_type(client.management("create_vm", openstack={"name": "vm"}), ManagementResult)


def questions(client: TcmClient) -> None:
    assert_type(client.health(), bool)
    assert_type(client.ready(), Readiness)
    assert_type(client.queue_stats(), QueueStats)
    assert_type(client.info("queue_stats"), dict[str, Any])
    assert_type(client.stats(reset=True), ClientStats)
    assert_type(client.explain({"x": SAMPLES}), str)


def failures(client: TcmClient) -> None:
    try:
        client.infer("m", {"x": SAMPLES})
    except TcmError as error:
        assert_type(error.code, str | None)
        assert_type(error.retriable, bool)
        assert_type(error.history, tuple[TcmError, ...])


def local() -> None:
    def double(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return {"y": 2 * arrays["x"]}

    with LocalManager({"double": double, "file": "model.onnx"}) as manager:
        assert_type(manager.route, Route)
        assert_type(manager.stats(), LocalStats)
        TcmClient(manager.uri, route=manager.route).close()


def models() -> None:
    analysis = analyze("model.onnx")
    assert_type(analysis, ModelAnalysis)
    assert_type(analysis.signature, ModelSignature)
    sample_inputs(analysis.signature, batch=2)
