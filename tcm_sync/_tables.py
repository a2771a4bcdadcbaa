"""Tables for notebooks: escaped, without scripts, and in the colours of the page, be it light or dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tcm_sync._secrets import hide

_LEFT = ' style="text-align:left"'  # notebooks align every cell on the right, which is for numbers


class Picture(NamedTuple):
    """A picture in a cell."""

    uri: str  # with all of it in it: ``data:``
    description: str


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a title above it.

    Parameters
    ----------
    title : str
        Empty for a table without one.
    head : sequence of str
        The titles of the columns; none for a table without a head.
    rows : iterable of sequences
        The cells: pictures, and all else as `str` shows it. Below a head whole numbers are aligned on the
        right.
    """
    cells = list(rows)
    below = cells[0] if cells else head
    titles = "".join(
        f"<th{_alignment(cell)}>{_safe(name)}</th>" for name, cell in zip(head, below, strict=False)
    )
    body = "".join(f"<tr>{''.join(_cell(cell, in_column=bool(head)) for cell in row)}</tr>" for row in cells)
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    table = f"<table>{top}<tbody>{body}</tbody></table>" if top or body else ""
    above = f"<p><code>{_safe(title)}</code></p>" if title else ""
    return f"<div>{above}{table}</div>"


def _alignment(content: object) -> str:
    return "" if isinstance(content, int) else _LEFT


def _cell(content: object, *, in_column: bool) -> str:
    if isinstance(content, Picture):
        # The border, in the colour of text, shows where a white or black picture ends.
        picture = f'<img src="{content.uri}" alt="{_safe(content.description)}" style="border:1px solid">'
        return f"<td{_LEFT}>{picture}</td>"
    return f"<td{_alignment(content) if in_column else _LEFT}>{_safe(content)}</td>"


def _safe(text: object) -> str:
    """Escape a text, and what a browser would obey or not show: names and messages come from anywhere."""
    shown = hide(str(text))
    if not shown.isprintable():
        shown = "".join(
            c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode()
            for c in shown
        )
    return html.escape(shown)
