"""What surrounded some recordings: tokens and their claims, a key server, which requests overlapped."""

from __future__ import annotations

import re
import threading

import numpy as np

from ..helpers.waiting import GUARD, wait_until

UNREACHABLE = 'Invalid token: Fail to fetch data from the url, err: "{}"'
KEY_SERVER_SAYS = {
    "not there": UNREACHABLE.format("<urlopen error [Errno 111] Connection refused>"),
    "answers 500": UNREACHABLE.format("HTTP Error 500: Internal Server Error"),
    "answers 500; one uuid three times": UNREACHABLE.format("HTTP Error 500: Internal Server Error"),
    "answers HTML": "Invalid token: Expecting value: line 1 column 1 (char 0)",
    "answers an empty list of keys": "Invalid token: The JWK Set did not contain any keys",
}
NO_SUCH_KEY = 'Invalid token: Unable to find a signing key that matches: "{}"'


def claims_of(token):
    """Read a token as a recording describes it: ``<jwt sub=one tenant_id=acme roles=[inference]>``."""
    text = re.sub(r" \(.*\)", "", token).removeprefix("<jwt ").removesuffix(">")
    pairs = re.findall(r"(\w+)=(\[[^]]*\]|\S+)", text)
    return {
        name: [each for each in value[1:-1].split(",") if each] if value.startswith("[") else value
        for name, value in pairs
    }


class KeyServer:
    """Verifies described tokens; the test says how the key server is, and may have it hang."""

    def __init__(self) -> None:
        self.refusal: str | None = None
        self.asked = 0
        self._go_on = threading.Event()
        self._go_on.set()

    def __call__(self, token):
        self.asked += 1
        if not self._go_on.wait(GUARD):
            raise AssertionError("nobody let the key server answer")
        if self.refusal is not None:
            raise ValueError(self.refusal)
        key = re.search(r"kid=(\w+)", token)
        if key is None or key[1] != "k1":
            raise ValueError(NO_SUCH_KEY.format(key and key[1]))
        return {"sub": "svc", "roles": ["inference", "management"]}

    def becomes(self, state: str) -> None:
        """Be as a recording says."""
        if times := re.match(r"was asked (\d+) times", state):
            assert self.asked == int(times[1])
        elif state == "now takes 3 s":
            self._go_on.clear()
        else:
            self.refusal = KEY_SERVER_SAYS.get(state)

    def answer(self) -> None:
        self._go_on.set()


class HeldOnce:
    """``add_sub``, whose first run continues when the manager has requests that hang."""

    def __init__(self) -> None:
        self.manager = None
        self._runs = 0

    def __call__(self, arrays):
        self._runs += 1
        if self._runs == 1:
            wait_until(lambda: self.manager.stats().hung, "another request overlaps with it")
        first, second = arrays["INPUT0"], arrays["INPUT1"]
        return {"SUM": np.add(first, second), "DIFF": np.subtract(first, second)}


def two_hang_first(player, number) -> None:
    """Before each request, wait until those before it are where they were when it was recorded."""
    manager = player.manager
    if number == 2:
        wait_until(lambda: "add_sub" in manager.stats().executions, "A's request runs")
    elif number == 3:
        wait_until(lambda: manager.stats().hung == 2, "A's and B's requests hang")
    elif number == 4:
        player.sockets["C"].wait_for_reply()


def slow_runs_meanwhile(player, number) -> None:
    """B's request, the fourth, runs when A sends the fifth."""
    if number == 5:
        wait_until(lambda: "slow" in player.manager.stats().executions, "B's request runs")


def the_model_has_ended(player, number) -> None:
    """A's stream runs to its end before B asks for the last time, though no client reads it."""
    if number == 5:
        player.talker.go_on()
        wait_until(lambda: not player.manager.stats().running, "A's stream has ended")
