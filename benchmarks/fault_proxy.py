"""A TCP proxy on loopback that treats connections as bad networks do; `faults` runs it as a process.

Each connection gets its treatment from a seed and its number: how long bytes are delayed, how they are cut,
how many pass in a second, and how and when it ends. The commands on standard input, one a line, are
``damage`` (from now on bits are flipped, and pieces of the stream are sent twice), ``calm`` (no more faults;
connections that are silent or damaged are reset) and ``status``; each is answered with a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

CHUNK = 2**14
ENDS = {"none": 40, "reset": 25, "fin": 20, "silence, then reset": 12, "permanent silence": 3}
FEWEST, MOST = 100, 1_000_000  # bytes after which a connection ends: from within the handshake to late
MAX_SILENCE = 15.0
FOR_GOOD = 120.0  # seconds of silence, longer than any client keeps a connection
DAMAGE = 0.01  # of the pieces


@dataclass
class Treatment:
    """What is done to one connection."""

    delay: float  # seconds, one way
    slices: bool  # whether pieces are 1 to 7 bytes long
    rate: float  # bytes in a second, or 0
    end: str  # one of ENDS
    after: int  # bytes
    silence: float  # seconds

    @classmethod
    def draw(cls, draw: random.Random) -> Treatment:
        """Draw one; about a third are those of a good network."""
        dice = draw.random()
        return cls(
            delay=draw.uniform(0, 0.05) if 0.4 < dice < 0.7 else 0.0,
            slices=dice > 0.85,
            rate=10 ** draw.uniform(4.5, 6) if 0.7 < dice < 0.85 else 0.0,
            end=draw.choices(list(ENDS), list(ENDS.values()))[0],
            after=round(FEWEST * (MOST / FEWEST) ** draw.random()),
            silence=draw.uniform(1.0, MAX_SILENCE),
        )


class Link:
    """A client's connection, and the one to the manager that belongs to it."""

    def __init__(self, proxy: Proxy, number: int) -> None:
        self._proxy = proxy
        self._draw = random.Random(f"{proxy.seed}/{number}")
        self._treatment = Treatment.draw(self._draw)
        self._passed = 0
        self._ends: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._over = asyncio.Event()
        self.silent = self.damaged = False

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes in both directions until one end is over."""
        self._ends.append(writer)
        try:
            others = await asyncio.open_connection("127.0.0.1", self._proxy.upstream)
        except OSError:
            self.reset()
            return
        self._ends.append(others[1])
        for end in self._ends:
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pumps = [
            asyncio.create_task(self._pump(reader, others[1])),
            asyncio.create_task(self._pump(others[0], writer)),
        ]
        await asyncio.wait(self._pumps)
        for end in self._ends:
            end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK):
                room = self._treatment.after - self._passed
                self._passed += len(data)
                if self._proxy.calm or self._treatment.end == "none" or len(data) < room:
                    await self._write(data, writer)
                    continue
                await self._write(data[: max(room, 0)], writer)
                await self._end()
                return
            if writer.can_write_eof():
                writer.write_eof()
        except (OSError, RuntimeError):  # reset, or the other pump has ended what this one writes to
            self.reset()

    async def _end(self) -> None:
        end = self._treatment.end
        self._treatment.end = "none"
        self._proxy.ended[end] += 1
        if end == "fin":
            client, manager = self._ends
            client.write_eof()
            manager.close()
        elif end == "reset":
            self.reset()
        else:  # half-open: the kernel acknowledges what nobody reads any more
            self.silent = True
            for pump in self._pumps:
                if pump is not asyncio.current_task():
                    pump.cancel()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._over.wait(), self._treatment.silence if "then" in end else FOR_GOOD
                )
            self.reset()

    async def _write(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        treatment = self._treatment
        if self._proxy.calm:
            treatment = Treatment(0.0, False, 0.0, "none", 0, 0.0)
        if treatment.delay:
            await asyncio.sleep(treatment.delay)
        if not treatment.slices:
            writer.write(self._damage(data))
        for at in self._cuts(len(data)) if treatment.slices else ():
            if writer.transport.is_closing():
                raise ConnectionResetError("the other end is over")
            writer.write(self._damage(data[at]))
            await asyncio.sleep(0)  # so that the kernel gets each by itself
        await writer.drain()
        if treatment.rate:
            await asyncio.sleep(len(data) / treatment.rate)

    def _cuts(self, size: int) -> list[slice]:
        cuts, at = [], 0
        while at < size:
            step = self._draw.randint(1, 7)
            cuts.append(slice(at, at + step))
            at += step
        return cuts

    def _damage(self, data: bytes) -> bytes:
        if not self._proxy.damage or self._proxy.calm or not data or self._draw.random() > DAMAGE:
            return data
        self.damaged = True
        self._proxy.damages += 1
        at = self._draw.randrange(len(data))
        if self._draw.random() < 0.5:
            return data[:at] + bytes([data[at] ^ 1 << self._draw.randrange(8)]) + data[at + 1 :]
        return data[:at] + data[at:] * 2

    def reset(self) -> None:
        """End both connections with an RST (SO_LINGER of 0 s)."""
        self._over.set()
        for end in self._ends:
            with contextlib.suppress(OSError):  # it is closed
                end.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            end.transport.abort()


class Proxy:
    """Accepts connections, and has a `Link` for each."""

    def __init__(self, upstream: int, seed: str) -> None:
        self.upstream = upstream
        self.seed = seed
        self.damage = self.calm = False
        self.damages = 0
        self.ended: Counter[str] = Counter()
        self._connections = 0
        self._links: set[Link] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Treat a new connection as its number says."""
        link = Link(self, self._connections)
        self._connections += 1
        self._links.add(link)
        try:
            await link.run(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            self._links.discard(link)

    def command(self, name: str) -> dict[str, Any]:
        """Carry out a command, and return what happened so far."""
        if name == "damage":
            self.damage = True
        elif name == "calm":
            self.calm = True
            for link in list(self._links):
                if link.silent or link.damaged:
                    link.reset()
        figures = {"connections": self._connections, "open": len(self._links), "damaged": self.damages}
        return {**figures, "ended": dict(self.ended)}


async def serve(upstream: int, seed: str) -> None:
    """Run the proxy until standard input ends."""
    proxy = Proxy(upstream, seed)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0, backlog=128)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        print(json.dumps(proxy.command(line.decode().strip())), flush=True)
    server.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("upstream", type=int, help="the port of the manager")
    parser.add_argument("seed")
    options = parser.parse_args()
    asyncio.run(serve(options.upstream, options.seed))


if __name__ == "__main__":
    main()
