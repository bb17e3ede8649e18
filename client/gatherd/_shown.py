"""What a notebook shows of clients, tables and results: small HTML tables, escaped and bounded."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final

import numpy as np

ROWS_SHOWN_MAX: Final = 50
CELL_CHARS_MAX: Final = 200
ELEMENTS_SHOWN_MAX: Final = 12


class Shown:
    """A dataclass that a notebook shows as a table of its fields."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """The HTML that IPython displays."""
        own: Any = self
        rows = [(one.name, getattr(own, one.name)) for one in fields(own)]
        return html_table(type(self).__name__, ("", ""), rows)


def html_table(caption: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table whose first column names the rows; of many rows the first ones."""
    from html import escape  # rarely needed, as is all of this

    listed = [list(row) for row in rows]
    parts = [f"<table><caption>{escape(caption)}</caption>"]
    names = list(head)
    if any(names):
        parts.append(_row(map(escape, names), "th"))
    for first, *others in listed[:ROWS_SHOWN_MAX]:
        cells = "".join(f"<td>{escape(_text(cell))}</td>" for cell in others)
        parts.append(f"<tr><th>{escape(_text(first))}</th>{cells}</tr>")
    if len(listed) > ROWS_SHOWN_MAX:
        more = f"… {len(listed) - ROWS_SHOWN_MAX} more"
        parts.append(f'<tr><td colspan="{len(names)}">{more}</td></tr>')
    return "".join([*parts, "</table>"])


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _text(value: object) -> str:
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = CELL_CHARS_MAX
    short.maxdict = short.maxlist = short.maxtuple = ELEMENTS_SHOWN_MAX
    if isinstance(value, np.ndarray):
        with np.printoptions(threshold=ELEMENTS_SHOWN_MAX, edgeitems=3):
            text = f"{value.dtype}, shape {value.shape}: {value}"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    else:
        text = short.repr(value)
    return text if len(text) <= CELL_CHARS_MAX else text[:CELL_CHARS_MAX] + "…"
