"""The page on models shows what its code prints."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from pathlib import Path

from tcm_sync.local import LocalManager
from tcm_sync.local.digits import model_file

PAGE = Path(__file__).parents[2] / "docs" / "models.rst"


def blocks(language: str) -> list[str]:
    found = re.findall(
        rf"^\.\. code-block:: {language}\n\n((?: {{3}}.*\n|\n)+)", PAGE.read_text("utf-8"), re.M
    )
    return [textwrap.dedent(block).strip() + "\n" for block in found]


def test_what_the_page_shows_is_what_is_printed() -> None:
    printed = io.StringIO()
    with model_file() as path, LocalManager({"digits": path}, tick=0, container_id="ctr-9") as manager:
        namespace: dict[str, object] = {}
        for code in blocks("python"):
            with contextlib.redirect_stdout(printed):
                exec(code.replace("ws://localhost:8000/ws", manager.uri), namespace)
    shown = blocks("text")
    assert len(shown) == 3
    for block in shown:
        assert block in printed.getvalue()
