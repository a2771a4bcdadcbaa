"""Tables for notebooks: escaped, without scripts, and in the colours of the page, be it light or dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tcm_sync._secrets import hide


class Picture(NamedTuple):
    """A picture in a cell."""

    uri: str  # with all of it in it: ``data:``
    description: str


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a title above it.

    Parameters
    ----------
    title : str
    head : sequence of str
        The titles of the columns; none for a table without a head.
    rows : iterable of sequences
        The cells: pictures, and all else as `str` shows it.
    """
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f"<th>{_safe(cell)}</th>" for cell in head)
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    table = f"<table>{top}<tbody>{body}</tbody></table>" if top or body else ""
    return f"<div><p><code>{_safe(title)}</code></p>{table}</div>"


def _cell(content: object) -> str:
    if isinstance(content, Picture):
        return f'<img src="{content.uri}" alt="{_safe(content.description)}">'
    return _safe(content)


def _safe(text: object) -> str:
    return html.escape(hide(str(text)))
