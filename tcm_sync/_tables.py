"""Tables for notebooks: escaped, without scripts, and in the colours of the page, be it light or dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from tcm_sync._secrets import hide


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a title above it.

    Parameters
    ----------
    title : str
    head : sequence of str
        The titles of the columns; none for a table without a head.
    rows : iterable of sequences
        The cells, which are shown as `str` shows them.
    """
    body = "".join(f"<tr>{''.join(f'<td>{_safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f"<th>{_safe(cell)}</th>" for cell in head)
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    table = f"<table>{top}<tbody>{body}</tbody></table>" if top or body else ""
    return f"<div><p><code>{_safe(title)}</code></p>{table}</div>"


def _safe(text: object) -> str:
    return html.escape(hide(str(text)))
