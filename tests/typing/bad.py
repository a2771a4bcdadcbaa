"""Mistakes of users: a type checker is to report each line with a mark, and no other."""

from __future__ import annotations

import numpy as np

from tcm_sync import AuthContext, InferenceInput, RetryPolicy, Route, TcmClient
from tcm_sync.local import LocalManager

SAMPLES = {"x": np.zeros((2, 3), np.float32)}


def mistakes(client: TcmClient) -> None:
    client.infer("m", 42)  # mistake
    client.infer("m", None)  # mistake
    client.infer(SAMPLES, "m")  # mistake
    client.infer("m")  # mistake
    client.infer("m", SAMPLES, 5.0)  # mistake
    client.infer("m", SAMPLES, timeout="5")  # mistake
    client.infer("m", SAMPLES, transport="grpc")  # mistake
    client.infer("m", SAMPLES, time_out=5.0)  # mistake
    client.infer("m", SAMPLES, retry=3)  # mistake
    client.infer("m", SAMPLES).missing()  # mistake
    client.infer_chunked("m", SAMPLES, rows="1")  # mistake
    client.submit("m", 42)  # mistake
    client.map("m", SAMPLES, on_error="ignore")  # mistake
    client.map("m", 42)  # mistake
    client.stream("m", SAMPLES, on_idle="stop")  # mistake
    client.pipeline([42])  # mistake
    client.management(openstack={"name": "vm"})  # mistake
    client.create(docker="image")  # mistake
    client.with_options(pool_size=3)  # mistake
    client.delete("container")  # mistake
    client.after_fork()  # mistake
    len(client.map("m", [SAMPLES]))  # mistake


def settings() -> None:
    TcmClient()  # mistake
    TcmClient("ws://manager/ws", "token")  # mistake
    TcmClient("ws://manager/ws", shm="on")  # mistake
    TcmClient("ws://manager/ws", route="container")  # mistake
    AuthContext(token=42)  # mistake
    RetryPolicy(attempts="3")  # mistake
    Route(vm_ip="10.0.0.1")  # mistake
    InferenceInput("x", [1])  # mistake
    LocalManager({"m": 42})  # mistake
