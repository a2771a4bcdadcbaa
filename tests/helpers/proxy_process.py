"""Real proxies in a process of their own: HTTP CONNECT, the same over TLS, and SOCKS5 (tiny-proxy).

``python proxy_process.py LOG [CERTIFICATE]`` prints the ports as JSON and ends with its standard input. The
file LOG has a line for each connection that was asked for: the listener, and what was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = "proxy-user", "pr0xy-p@ss:word/4711"
QUOTED = "proxy-user:pr0xy-p%40ss%3Aword%2F4711"


class Proxies:
    """The running process.

    Parameters
    ----------
    ports : dict of str to int
        By the name of the listener: ``http``, ``http_auth``, ``https``, ``socks``, ``socks_auth``.
    log : Path
        The file that it writes.
    """

    def __init__(self, ports: dict[str, int], log: Path) -> None:
        self.ports = ports
        self._log = log

    def url(self, name: str, scheme: str, credentials: str = "", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{credentials}{'@' if credentials else ''}{host}:{self.ports[name]}"

    def asked(self) -> list[str]:
        """Return what was asked for since the last time."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        self._log.write_text("", encoding="utf-8")
        return lines


@contextlib.contextmanager
def running_proxies(folder: Path, certificate: Path | None = None) -> Iterator[Proxies]:
    """Start the process, and end it."""
    log = folder / "proxies.log"
    log.touch()
    arguments = [str(log), *([] if certificate is None else [str(certificate)])]
    command = [sys.executable, str(Path(__file__)), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Proxies(json.loads(process.stdout.readline()), log)
        finally:
            process.stdin.close()
            process.wait(30.0)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _connect_proxy(name: str, log: Path, credentials: str | None):
    wanted = None if credentials is None else b"Basic " + b64encode(credentials.encode())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        request, *lines = head.split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines if line)
        target = request.split()[1].decode()
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{name} {target}\n")
        if wanted is not None and headers.get(b"Proxy-Authorization") != wanted:
            writer.write(b"HTTP/1.1 407 X\r\nProxy-Authenticate: Basic\r\n\r\n")
            writer.close()
            return
        host, _, port = target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_relay(reader, far_writer), _relay(far_reader, writer))

    return serve


def _socks_proxy(**credentials: str):
    from tiny_proxy import Socks5ProxyHandler

    return Socks5ProxyHandler(**credentials).handle


async def _main(log: Path, certificate: str | None) -> None:
    import anyio

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO:  # what was asked for, and not how a connection ended
                with log.open("a", encoding="utf-8") as file:
                    file.write(f"socks {record.getMessage()}\n")

    logging.getLogger("tiny_proxy").addHandler(Lines())
    logging.getLogger("tiny_proxy").setLevel(logging.INFO)
    ports = {}
    async with anyio.create_task_group() as tasks:
        for name, credentials in (("http", None), ("http_auth", f"{USER}:{PASSWORD}"), ("https", None)):
            context = None
            if name == "https":
                if certificate is None:
                    continue
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
            server = await asyncio.start_server(
                _connect_proxy(name, log, credentials), "127.0.0.1", 0, ssl=context
            )
            ports[name] = server.sockets[0].getsockname()[1]
        for name, given in (("socks", {}), ("socks_auth", {"username": USER, "password": PASSWORD})):
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            ports[name] = listener.extra(anyio.abc.SocketAttribute.local_port)
            tasks.start_soon(listener.serve, _socks_proxy(**given))
        sys.stdout.write(f"{json.dumps(ports)}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
