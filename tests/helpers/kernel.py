"""One Jupyter kernel, in which tests run cells as a notebook does."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from .waiting import GUARD

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Kernel:
    """A kernel and its outputs. Its connections are sockets in the file system, which no other user sees."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="tcm-kernel-")  # a short path: sockets need it
        self.loop = asyncio.new_event_loop()
        place = str(Path(self.folder.name) / "k")
        self.manager = AsyncKernelManager(transport="ipc", ip=place, connection_file=f"{place}.json")
        self.client = self._client_of(nbformat.v4.new_notebook())

    def _client_of(self, notebook):
        return NotebookClient(
            notebook, km=self.manager, timeout=GUARD * 4, allow_errors=True, shutdown_kernel="immediate"
        )

    def start(self):
        self._wait(self.client.async_start_new_kernel(env=self._environment()))
        self._wait(self.client.async_start_new_kernel_client())

    def _environment(self):
        return {**os.environ, "IPYTHONDIR": self.folder.name, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

    def stop(self):
        try:
            self._wait(self.client._async_cleanup_kernel())
        finally:
            self.loop.close()
            self.folder.cleanup()

    def _wait(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, GUARD * 4))

    def run(self, source, interrupt_when=None):
        """Run a cell and return its outputs. With `interrupt_when`, interrupt it once that is true."""
        cell = nbformat.v4.new_code_cell(source)
        self.client.nb.cells.append(cell)
        self._wait(self._run(cell, interrupt_when))
        return cell.outputs

    async def _run(self, cell, interrupt_when):
        index = len(self.client.nb.cells) - 1
        running = asyncio.ensure_future(self.client.async_execute_cell(cell, index))
        if interrupt_when is not None:
            while not (running.done() or interrupt_when()):
                await asyncio.sleep(0.01)
            await self.manager.interrupt_kernel()
        await running

    def run_notebook(self, path):
        """Run the cells of a notebook, and return them with their outputs."""
        notebook = self.client.nb = nbformat.read(path, as_version=4)
        try:
            for index, cell in enumerate(notebook.cells):
                self._wait(self.client.async_execute_cell(cell, index))
        finally:
            self.client.nb = nbformat.v4.new_notebook()
        return notebook


def shown(outputs):
    """Return what a cell has shown as text without colours, a failure included."""
    texts = []
    for output in outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append("\n".join(output.traceback))
        else:
            texts.append(output.data["text/plain"])
    return _COLOUR.sub("", "\n".join(texts))
