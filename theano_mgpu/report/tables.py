"""HTML tables; every text is escaped here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

__all__ = ["Markup", "bar", "table"]


class Markup(str):
    """Text that is HTML already."""


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> str:
    """A table whose first column names its rows. ``numbers`` are the columns that are aligned to the right."""
    kind = ["" if place not in numbers else ' class="number"' for place in range(len(headers))]
    head = "".join(f'<th scope="col"{kind[place]}>{escape(header)}</th>' for place, header in enumerate(headers))
    body = []
    for row in rows:
        cells = [cell if isinstance(cell, Markup) else escape(cell) for cell in row]
        first, *others = cells
        body.append(
            f'<tr><th scope="row">{first}</th>'
            + "".join(f"<td{kind[place]}>{cell}</td>" for place, cell in enumerate(others, start=1))
            + "</tr>"
        )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def bar(share: float) -> Markup:
    """A share from 0 to 1 as a bar with its percentage."""
    return Markup(
        f'<span class="bar" aria-hidden="true"><span style="width:{100 * share:.1f}%"></span></span> '
        f"{100 * share:.0f} %"
    )
