"""The recorded exchanges: what a real manager was sent, and what it answered."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

CASES = [
    json.loads(line)
    for line in Path(__file__).with_name("transcripts.jsonl").read_text(encoding="utf-8").splitlines()
]


class Recorded(NamedTuple):
    """One recorded message.

    `message` is what was parsed from JSON. A str is text as it was sent, or, in parentheses, what the
    recorder has to say in place of a message.
    """

    case: str
    place: int  # among the messages of this side of the case, from 1
    message: Any
    answers: Any  # the message of the other side before it

    @property
    def key(self) -> str:
        """The case, and which of its messages it is."""
        return f"{self.case}#{self.place}"


def recorded(side: str) -> list[Recorded]:
    """List all messages of one side, ``"client"`` or ``"server"``."""
    other = "server" if side == "client" else "client"
    found = []
    places: Counter[str] = Counter()
    for case in CASES:
        before = None
        for step in case.get("exchange", ()):
            before = step.get(other, before)
            if side in step:
                places[case["case"]] += 1
                found.append(Recorded(case["case"], places[case["case"]], step[side], before))
    return found


def is_remark(message: Any) -> bool:
    """Whether the recorder only tells what happened."""
    return isinstance(message, str) and message.startswith("(") and not message.startswith("(verbatim)")


def text(message: Any) -> bytes:
    """Write a recorded message as the manager does: all ASCII, a space after each separator."""
    return json.dumps(message).encode()
