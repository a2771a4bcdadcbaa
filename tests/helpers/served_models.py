"""The models that managers of the tests serve, and ONNX files of a few nodes."""

from __future__ import annotations

import threading

from onnx import TensorProto, helper

from .waiting import GUARD


class Gated:
    """A model whose runs take until the test lets them go; its output is its input."""

    def __init__(self) -> None:
        self._gates: dict[float, threading.Event] = {}
        self._all = threading.Event()
        self._lock = threading.Lock()

    def _gate(self, value: float) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(value, threading.Event())

    def __call__(self, arrays):
        value = arrays["x"]
        gate = self._gate(round(float(value.flat[0]), 6))
        if not self._all.is_set() and not gate.wait(GUARD):
            raise AssertionError("nobody opened the gate")
        return {"y": value}

    def open(self, value: float) -> None:
        self._gate(round(float(value), 6)).set()

    def open_all(self) -> None:
        self._all.set()
        with self._lock:
            for gate in self._gates.values():
                gate.set()


class Talker:
    """A model that says the words of its input, one a chunk, and waits before word number `hold_before`.

    Some words mean something: NONE, EMPTY and BAD are chunks that are no text, ERROR is a failure.
    """

    def __init__(self) -> None:
        self.hold_before: int | None = None
        self._go_on = threading.Event()
        self.said = 0

    def __call__(self, arrays):
        for number, word in enumerate(str(arrays["text"][0]).split()):
            if number == self.hold_before and not self._go_on.wait(GUARD):
                raise AssertionError("nothing let it continue")
            if word == "ERROR":
                raise RuntimeError("model says no")
            yield {"NONE": None, "EMPTY": b"", "BAD": b"\xff"}.get(word, word)
            self.said += 1

    def go_on(self) -> None:
        self._go_on.set()


class Steps:
    """Records the steps of management jobs, and holds them while the test says so."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._changed = threading.Condition()  # guards the two below
        self._free = True
        self._passes = 0

    def __call__(self, step) -> None:
        self.seen.append((step.name, step.subject))
        with self._changed:
            if not self._changed.wait_for(lambda: self._free or self._passes, GUARD):
                raise AssertionError("nobody released the step")
            self._passes = max(0, self._passes - 1)

    def hold(self) -> None:
        with self._changed:
            self._free = False

    def release_one(self) -> None:
        """Let one step continue, and hold the next."""
        with self._changed:
            self._passes += 1
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._free = True
            self._passes = 0
            self._changed.notify_all()


def identity(arrays):
    return {"OUTPUT__0": arrays["INPUT__0"]}


def echo(arrays):
    return arrays


def onnx_bytes(nodes, inputs, outputs, initializers=()) -> bytes:
    """Serialise a small graph; inputs and outputs are (name, element type, dims)."""

    def info(name, element, dims):
        return helper.make_tensor_value_info(name, element, dims)

    graph = helper.make_graph(
        nodes, "test", [info(*i) for i in inputs], [info(*o) for o in outputs], list(initializers)
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def add_sub_onnx() -> bytes:
    """INPUT0 and INPUT1, FP32 [-1, -1], to SUM and DIFF."""
    dims = ["batch", "n"]
    return onnx_bytes(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["SUM"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["DIFF"]),
        ],
        [("INPUT0", TensorProto.FLOAT, dims), ("INPUT1", TensorProto.FLOAT, dims)],
        [("SUM", TensorProto.FLOAT, dims), ("DIFF", TensorProto.FLOAT, dims)],
    )


def identity_onnx(element: int = TensorProto.FLOAT, dims=("a", "b", "c")) -> bytes:
    return onnx_bytes(
        [helper.make_node("Identity", ["INPUT__0"], ["OUTPUT__0"])],
        [("INPUT__0", element, list(dims))],
        [("OUTPUT__0", element, list(dims))],
    )
