"""Faults of a `LocalManager` as texts, for command lines."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from tcm_sync.errors import ConfigError
from tcm_sync.local.injection import FAILURES, REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcm_sync.local.injection import FaultInjection

#: What `plan_text` takes, for the help of commands.
PLAN_HELP = (
    "what happens to the next inferences, in order: an error code such as TRITON_OVERLOADED, drop, "
    "delay=SECONDS, garble, stale, or ok (answered as usual); with *N behind it, N times"
)


def plan_text(faults: FaultInjection, text: str) -> None:
    """Plan a fault that a text describes: ``CODE``, ``drop``, ``delay=0.5``, ``garble``, ``stale`` or ``ok``.

    Parameters
    ----------
    faults : FaultInjection
        The manager.
    text : str
        One of these, with ``*N`` behind it for N requests.

    Raises
    ------
    ConfigError
        The text is something else.
    """
    what, star, count = text.partition("*")
    name, equals, value = what.partition("=")
    if star and not (count.isascii() and count.isdecimal()):
        raise ConfigError(f"fault {text!r}: behind the * there must be a number of requests")
    times = int(count) if star else 1
    plain: dict[str, Callable[..., None]] = {
        "drop": faults.drop_next,
        "garble": faults.garble_next,
        "stale": faults.stale_next,
        "ok": faults.pass_next,
    }
    try:
        if name == "delay" and equals:
            faults.delay_next(float(value), times=times)
        elif name in plain and not equals:
            plain[name](times=times)
        elif name in REFUSALS and not equals:
            faults.refuse_next(name, times=times)
        elif name in FAILURES and not equals:
            faults.fail_next(name, times=times)
        else:
            near = difflib.get_close_matches(what, [*plain, "delay=SECONDS", *REFUSALS, *FAILURES], n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            codes = ", ".join(REFUSALS + FAILURES)
            raise ConfigError(f"{meant}it must be delay=SECONDS, {', '.join(plain)} or one of {codes}")
    except ValueError as error:  # ConfigError is one
        raise ConfigError(f"fault {text!r}: {error}") from None
