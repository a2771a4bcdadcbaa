"""The recorded exchanges: what a real manager was sent, and what it answered."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

CASES = [
    json.loads(line)
    for line in Path(__file__).with_name("transcripts.jsonl").read_text(encoding="utf-8").splitlines()
]
_SIDES = ("client", "server")
_DROPS = "(drops the socket, connects again)"


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


class Turn(NamedTuple):
    """What the client said on a socket, and all that came before it spoke again."""

    request: Recorded
    answers: list[Recorded]
    end: int | str | None = None  # the code that the server closed with, or how the client left


def sockets(name: str) -> list[list[Turn]]:
    """List the turns of each socket of a case, the authentication first; what came again, comes again."""
    (case,) = (case for case in CASES if case["case"] == name)
    said = {side: iter([frame for frame in recorded(side) if frame.case == name]) for side in _SIDES}
    found: dict[str, list[Turn]] = {}
    usual = "A"
    for step in case["exchange"]:
        turns = found.setdefault(step.get("socket", usual), [])
        if turns and kind_of(step.get("client")) == "auth":  # which begins another socket
            usual = f"{usual}+"
            turns = found.setdefault(usual, [])
        for kind, what in step.items():
            if kind in said:
                _continue(turns, kind, next(said[kind]))
            elif kind == "exchange_repeated":
                turns += turns[-1:] * _times(what)
            elif turns and kind in ("server_close", "client_does"):
                turns[-1] = turns[-1]._replace(end=what)
        if step.get("client") == _DROPS:
            usual = "B"
    return [turns for turns in found.values() if turns]


def kind_of(message: Any) -> str | None:
    """Return the type of a message; None of what is no message."""
    return message.get("type") if isinstance(message, dict) else None


def _continue(turns: list[Turn], side: str, frame: Recorded) -> None:
    if frame.message == _DROPS:
        turns[-1] = turns[-1]._replace(end=_DROPS)
    elif side == "client":
        turns.append(Turn(frame, []))
    elif not is_remark(frame.message):
        turns[-1].answers.append(frame)
    elif " more of them" in frame.message:
        turns[-1].answers.extend(turns[-1].answers[-1:] * _times(frame.message))


def _times(remark: str) -> int:
    (number,) = re.findall(r"(\d+) (?:times )?more", remark)
    return int(number)


def is_remark(message: Any) -> bool:
    """Whether the recorder only notes what happened."""
    return isinstance(message, str) and message.startswith("(") and not message.startswith("(verbatim)")


def text(message: Any) -> bytes:
    """Write a recorded message as the manager does: all ASCII, a space after each separator."""
    return json.dumps(message).encode()
