"""Every text that LocalManager sends was recorded from a real manager, or is listed here with its source."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import tcm_sync.local

FOLDER = Path(tcm_sync.local.__file__).parent
RECORDINGS = Path(__file__).parent.parent / "wire" / "transcripts.jsonl"
#: Whose texts are sent: what these modules raise, and the constants that they answer with.
MODULES = (
    *("auth", "core", "failures", "faults", "inference", "loaded_model", "management", "models", "probes"),
    *("regions", "requests", "session", "shared_memory", "streams", "tensors", "triton"),
)
#: Raised to the user of `LocalManager`, and not sent to clients.
FOR_ITS_USER = {"ConfigError", "ModelFileError", "RuntimeError"}
SHORTEST = 8  # characters: what is shorter stands between values

#: By where they come from, one a line. Of what is no text, the readiness probe's 503 was not recorded either.
SOURCES = {
    "Triton's own, from its sources": """
        400] [request id: <id_unknown>] input
        400] [request id: <id_unknown>] unexpected inference input
        400] [request id: <id_unknown>] input byte size mismatch for input
        400] Invalid offset + byte size for shared memory region
        500] Unable to open shared memory region
        batch size does not match other inputs for
    """,
    "what no client of ours provokes, in words of the same kind": """
        Already authenticated
        BACKPRESSURE_EXECUTOR_FULL
        Field 'pipeline' must be a list of steps
        Field 'uuid' must be a non-empty string
        Invalid token: Token is not known
        Message must be a dictionary
        Missing key 'container_id
        Request dropped due to backpressure (executor full
        Unsupported datatype
        must be a number of bytes
        of input
        setting an array element with a sequence: the lists are not of equal length
        shape' must be a list of sizes
    """,
    "addresses, which differ each time": """
        0x7f0000000100
        0x7f0000000200
        0x7f0000000300
        0x7f0000000400
        <greenlet.greenlet object at {} (otid={}) {} active started main>
    """,
    "what only a LocalManager meets: its models, its limits, its end": """
        an output of dtype
        an output that holds a
        has no JSON form
        not a mapping of tensors by name
        the function of the model reads an input that the request does not have. Got input(s
        not a str
        not an iterator of chunks or a mapping of tensors by name
        not found: this local manager has
        the manager has ended
        the manager was killed
        the model returned a
        the model returned an output whose name is a
        this local manager has no shared memory
        this local manager reads no BYTES from shared memory (input
    """,
}
UNRECORDED = {line.strip() for lines in SOURCES.values() for line in lines.splitlines() if line.strip()}


class Texts(ast.NodeVisitor):
    """Collects the texts that are raised, and those of constants whose names are in capitals."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Raise(self, node: ast.Raise) -> None:
        raised = node.exc
        if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") not in FOR_ITS_USER:
            self.collect(*raised.args)

    def visit_Call(self, node: ast.Call) -> None:
        if getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "error_message",
            "_refuse",
            "_refused",
            "missing",
        ):
            self.collect(*node.args)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, ast.Name) and target.id.isupper() for target in node.targets):
            self.collect(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        return

    def collect(self, *nodes: ast.AST) -> None:
        for node in nodes:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    self.found.add(part.value.strip(" '\"`.,;:()[]\n\t"))


def texts_of(module: str) -> set[str]:
    texts = Texts()
    texts.visit(ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8")))
    return {text for text in texts.found if len(text) >= SHORTEST}


def recorded_texts() -> str:
    """All that was recorded, with the escapes of JSON undone."""
    lines = RECORDINGS.read_text(encoding="utf-8").replace("\n", " ")
    text: str = json.loads('"' + lines.replace('\\"', "'").replace('"', "'") + '"')
    return text


@pytest.mark.parametrize("module", MODULES)
def test_a_text_was_recorded_or_is_listed(module):
    recorded = recorded_texts()
    unknown = {text for text in texts_of(module) if text not in recorded and text not in UNRECORDED}
    assert not unknown


def test_what_is_listed_is_sent_and_was_not_recorded():
    recorded, sent = recorded_texts(), set().union(*map(texts_of, MODULES))
    assert sent >= UNRECORDED
    assert not [text for text in UNRECORDED if text in recorded]
