"""Test for a minute or for hours that calls over a bad network are right, end in time, and leave nothing.

    python -m benchmarks faults [--seconds 60] [--seed SEED] [--processes 3] [--room MB]

Some processes of four threads each call a `LocalManager` through a proxy that delays, cuts, throttles,
resets, silences and ends connections; all kinds of calls, also from forked children, also interrupted. The
manager is stopped or killed and started again. In the last part the proxy also damages bytes, and sends some
twice: then a reply may be wrong, but no call may hang. ``--room`` runs all of it on a /dev/shm of so many MB
(which needs the right to mount).

The status is 1 if, without damage, a reply was wrong or less than 99.9% of the calls with 30 s were good; if
any call ended more than 0.25 s after its deadline; if anything is left over, a process died or hung, or
memory has grown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fault_callers import ATTEMPT, FULL_TIMEOUT, KINDS, LATE, OUTCOMES, ROWS, Ledger, has_attempt_timeout
from fault_manager import Served
from held import files_of, grown, sample, table

HERE = Path(__file__).parent
SAMPLES = 40
NAP = 0.05  # seconds
CLEAN, DAMAGED = 0.75, 0.93  # of the time: until when bytes are whole, and until when there are faults at all
GOOD, FEW = 0.999, 5  # of the calls with 30 s; so many may fail in a short run, which has too few for a share
END = 60.0  # seconds until a process that does not end counts as hung
FULL_TIMEOUT_KINDS = ("infer", "shared", "own", "map", "sample", "submit", "stream")


class Rig:
    """All processes of a run."""

    def __init__(self, options: argparse.Namespace, ledger: str) -> None:
        self.options = options
        rows = options.processes * ROWS
        self.ledger = Ledger(ledger, rows)
        self.manager = Served(HERE / "fault_manager.py")
        about = self.manager.about
        self.proxy = Served(HERE / "fault_proxy.py", str(about["port"]), options.seed)
        common = {"--port": self.proxy.about["port"], "--rows": rows, "--seed": options.seed}
        common |= {"--ledger": ledger, "--route": about["route"], "--transient": about["transient"]}
        common |= {"--vm-ip": about["vm_ip"], "--pause": options.pause}
        self.callers = [
            subprocess.Popen(
                [sys.executable, str(HERE / "fault_callers.py"), "--number", str(number)]
                + [str(word) for pair in common.items() for word in pair],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(options.processes)
        ]
        self.samples: list[dict[str, float]] = []
        self.restarts = 0
        self.delays: list[tuple[float, str]] = []  # of this process, by whatever else the machine does

    def run(self) -> None:
        """Restart the manager, and sample the processes, until the time is over."""
        draw = random.Random(self.options.seed)
        began = time.monotonic()
        seconds = self.options.seconds
        pause = min(30.0, max(5.0, seconds / 10))
        restart = pause
        while (now := time.monotonic() - began) < seconds * DAMAGED:
            self._nap()
            if now > seconds * CLEAN and not self.ledger.damaging:
                self.ledger.set(damaging=True)  # first, since a call looks at it before it begins
                self.proxy.command("damage")
            if now > restart:
                self.manager.command(draw.choice(["stop", "kill"]))
                self.restarts += 1
                restart = now + draw.uniform(0.5, 1.5) * pause
            if now * SAMPLES > len(self.samples) * seconds:
                with contextlib.suppress(OSError, IndexError):  # a process has died
                    pids = [process.pid for process in self.callers]
                    self.samples.append(sample(pids, self.manager.pid, self.proxy.pid))
        self.ledger.set(over=True)

    def _nap(self) -> None:
        """Sleep a little, and note if it took much longer."""
        began = time.monotonic()
        time.sleep(NAP)
        delay = time.monotonic() - began - NAP
        if delay > NAP:
            self.delays = sorted([*self.delays, (delay, time.strftime("%H:%M:%S"))])[-5:]

    def end(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Wait for all processes; return what the callers report, and what went wrong at the end."""
        reports, wrong = [], []
        network = self.proxy.command("calm")
        for number, process in enumerate(self.callers):
            try:
                said, _ = process.communicate(timeout=END)
                reports.append(json.loads(said or "{}"))
            except subprocess.TimeoutExpired:
                wrong.append(f"process {number} hangs: its threads are above")
                process.send_signal(signal.SIGUSR1)
                time.sleep(1.0)
                process.kill()
                process.communicate()
            if process.returncode:
                wrong.append(f"process {number} ended with {process.returncode}")
        for number, one in enumerate(reports):
            wrong += [f"process {number}: {what}" for what in one.get("left", ())]
        figures = self._settled()
        if figures["connected"]:
            wrong.append(f"the manager still has {figures['connected']} connections")
        if figures["spoilt"]:
            wrong.append(f"{figures['spoilt']} inputs changed while a model looked at them")
        network = self.proxy.command("status") | {"damaged": network["damaged"]}
        for name, process in (("manager", self.manager), ("proxy", self.proxy)):
            wrong += [f"the {name} ended with {status}" for status in [process.end()] if status]
        wrong += [f"/dev/shm/{name}" for name in self._files()]
        return [*reports, network], wrong

    def _files(self) -> list[str]:
        """List the callers' files in /dev/shm; in one of the run's own, those of all children too."""
        if self.options.in_room:
            return [name for name in os.listdir("/dev/shm") if not name.startswith("tcm_turns")]
        return files_of([process.pid for process in self.callers])

    def _settled(self) -> dict[str, Any]:
        """Return the manager's figures once it has noticed that its clients are gone."""
        ends = time.monotonic() + 10.0
        while (figures := self.manager.command("status"))["connected"] and time.monotonic() < ends:
            time.sleep(0.05)
        return figures


def judged(rig: Rig) -> tuple[list[str], list[str]]:
    """Return the figures, one a line, and those that are not as they must be."""
    clean, damaged = rig.ledger.totals(False), rig.ledger.totals(True)
    lines, wrong = [], []
    for name, counts in (("without damage", clean), ("with damage", damaged)):
        lines.append(f"{name}: {sum(counts.values()) - late(counts):,} calls")
        for kind in KINDS:
            found = {outcome: counts[f"{kind} {outcome}"] for outcome in OUTCOMES}
            said = ", ".join(f"{number:,} {outcome}" for outcome, number in found.items() if number)
            lines.append(f"    {kind:8} {said}")
    good = sum(clean[f"{kind} good"] for kind in FULL_TIMEOUT_KINDS)
    failed = sum(clean[f"{kind} failed"] for kind in FULL_TIMEOUT_KINDS)
    share = good / max(1, good + failed)
    lines.append(f"good of those with {FULL_TIMEOUT:.0f} s: {good:,} of {good + failed:,}, {share:.4%}")
    for policy, with_timeout in ((f"attempt_timeout={ATTEMPT:g}", True), ("the default policy", False)):
        numbers = [n for n in range(rig.options.processes) if has_attempt_timeout(n) == with_timeout]
        found = rig.ledger.totals(False, numbers)
        kinds = {
            end: sum(found[f"{kind} {end}"] for kind in FULL_TIMEOUT_KINDS) for end in ("good", "failed")
        }
        lines.append(f"    with {policy}: {kinds['good']:,} good, {kinds['failed']:,} failed")
    lines.append(f"longest time after a deadline: {rig.ledger.latest:.3f} s")
    wrong += [f"less than {GOOD:.1%} of the calls were good"] * (share < GOOD and failed > FEW)
    number = sum(clean[f"{kind} wrong"] for kind in KINDS)
    wrong += [f"{number} replies are wrong"] * (number > 0)
    over = late(clean) + late(damaged)
    wrong += [f"{over} calls ended more than {LATE} s after their deadline"] * (over > 0)
    return lines, wrong


def late(counts: dict[str, int]) -> int:
    """Sum up the calls that ended too late."""
    return sum(counts[f"{kind} late"] for kind in KINDS)


def test(options: argparse.Namespace) -> int:
    """Run the test, print its report, and return the exit status."""
    print(f"seed {options.seed}, {options.seconds:g} s, {options.processes} processes", flush=True)
    with tempfile.NamedTemporaryFile(prefix="tcm-faults-") as ledger:
        rig = Rig(options, ledger.name)
        rig.run()
        (*reports, network), left = rig.end()
        figures, wrong = judged(rig)
    print(*table(rig.samples), *figures, sep="\n")
    names = ("forks", "interrupts", "repeats", "sockets", "shm", "turns")
    sums = {name: sum(one.get(name, 0) for one in reports) for name in names}
    print(f"{sums['forks']:,} forks, {sums['interrupts']:,} interrupts, {rig.restarts} restarts")
    print(
        f"of the parents: {sums['repeats']:,} requests sent again, {sums['shm']:,} in shared memory,", end=" "
    )
    print(f"{sums['turns']:,} waited for a turn of the process, {sums['sockets']:,} connections")
    ended = ", ".join(f"{number:,} by {end}" for end, number in sorted(network["ended"].items()))
    print(f"the proxy: {network['connections']:,} connections, ended {ended};", end=" ")
    print(f"{network['damaged']:,} pieces damaged")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor time: {(used.ru_utime + used.ru_stime) / options.seconds:.2f} of one core")
    delays = ", ".join(f"{delay:.3f} s at {when}" for delay, when in rig.delays)
    print(f"this process alone was held up by the machine: {delays or 'never'}")
    wrong += left + grown(rig.samples)
    print("\n".join(wrong) or "0 wrong, 0 late, 0 left over, nothing has grown")
    return 1 if wrong else 0


def in_a_room(size: int) -> None:
    """Replace this process by one with a /dev/shm of so many MB."""
    mount = f'mount -t tmpfs -o size={size}m tmpfs /dev/shm && exec "$0" "$@"'
    os.environ["MALLOC_ARENA_MAX"] = "2"  # not to count the memory that malloc keeps for many threads
    arguments = [word for word in sys.argv[1:] if word != "--room" and word != str(size)] + ["--in-room"]
    os.execvp("unshare", ["unshare", "-m", "sh", "-c", mount, sys.executable, __file__, *arguments])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long all of it takes (60)")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of faults and calls (random)")
    parser.add_argument("--processes", type=int, default=3, help="that call, of four threads each (3)")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between calls of a thread (0.05)")
    parser.add_argument("--room", type=int, help="MB of a /dev/shm of its own")
    parser.add_argument("--in-room", action="store_true", help=argparse.SUPPRESS)  # which --room runs
    options = parser.parse_args()
    if options.room is not None:
        in_a_room(options.room)
    return test(options)


if __name__ == "__main__":
    sys.exit(main())
