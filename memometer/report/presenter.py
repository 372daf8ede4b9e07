"""Tables and notices as text for terminals, as Markdown and as LaTeX. The only module that lays out tables."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

SCREEN_WIDTH = 100
"""Columns of the output at most."""

MIN_CELL = 12
"""Cells of the left columns are not cut shorter than this."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of formatted cells.

    Attributes:
        title: One line above the table; may be empty.
        headers: Column names.
        rows: Cells, as many in each row as there are headers.
        left: Number of leading columns that are aligned left; the others are aligned right.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def text(parts: Iterable[Table | str]) -> str:
    """Lay out tables and notices as plain text with an empty line between them; empty notices are skipped."""
    shown = [_text_table(part) if isinstance(part, Table) else part for part in parts]
    return "\n\n".join(part for part in shown if part)


def _text_table(table: Table, limit: int | None = None) -> str:
    """Lay out a table. Columns that do not fit into `limit` characters continue below, after the left columns again."""
    widths = [max(map(len, column)) for column in zip(table.headers, *table.rows, strict=True)]
    blocks = [list(range(table.left))]
    for at in range(table.left, len(widths)):
        if limit and len(blocks[-1]) > table.left and sum(widths[i] + 2 for i in [*blocks[-1], at]) - 2 > limit:
            blocks.append(list(range(table.left)))
        blocks[-1].append(at)

    def line(cells: Sequence[str], block: Sequence[int]) -> str:
        aligned = (cells[at].ljust(widths[at]) if at < table.left else cells[at].rjust(widths[at]) for at in block)
        return "  ".join(aligned).rstrip()

    shown = [
        "\n".join(line(cells, block) for cells in (table.headers, ["-" * width for width in widths], *table.rows))
        for block in blocks
    ]
    text = "\n\n".join(shown)
    return f"{table.title}\n{text}" if table.title else text


def screen_width() -> int:
    """The columns of the terminal, at most `SCREEN_WIDTH`, which is also the width without a terminal."""
    columns = shutil.get_terminal_size((SCREEN_WIDTH, 24)).columns
    return max(40, min(SCREEN_WIDTH, columns))


def screen(parts: Iterable[Table | str], *, prefix: str = "") -> str:
    """Lay out tables and notices as plain text in which no line is wider than the screen.

    Long notices are wrapped. In a table that is too wide, cells of the left columns are cut, then columns continue
    below.

    Args:
        parts: Tables and notices.
        prefix: The text that the caller puts before each line.
    """
    width = screen_width() - len(prefix)
    return text(_fitted(part, width) if isinstance(part, Table) else _wrapped(part, width) for part in parts)


def _wrapped(notice: str, width: int) -> str:
    lines = notice.split("\n")
    return "\n".join(
        part for line in lines for part in wrap(line, width, break_on_hyphens=False, break_long_words=False) or [""]
    )


def _fitted(table: Table, width: int) -> str:
    table = replace(table, title=_wrapped(table.title, width))
    most = max((len(cell) for row in table.rows for cell in row[: table.left]), default=0)
    while _width(table) > width and most > MIN_CELL:
        most -= 1
        table = replace(
            table,
            rows=[[_cut(cell, most) for cell in row[: table.left]] + list(row[table.left :]) for row in table.rows],
        )
    return _text_table(table, width)


def _cut(cell: str, most: int) -> str:
    return cell if len(cell) <= most else f"{cell[: most - 2]}.."


def _width(table: Table) -> int:
    return max(map(len, _text_table(replace(table, title="")).splitlines()))


def markdown(parts: Iterable[Table | str], *, heading: str = "") -> str:
    """Lay out tables and notices as Markdown; notices become quotes. All text is escaped."""
    shown = [f"# {escape(heading)}"] if heading else []
    for part in parts:
        if isinstance(part, Table):
            shown.append(_markdown_table(part))
        elif part:
            shown.append("\n".join(f"> {escape(line)}  " for line in part.split("\n")))
    return "\n\n".join(shown) + "\n"


def _markdown_table(table: Table) -> str:
    cells = [[escape(cell) for cell in row] for row in (table.headers, *table.rows)]
    rows = ["| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(cells[0]), *cells[1:])]
    title = f"## {escape(table.title)}\n\n" if table.title else ""
    return title + "\n".join(rows)


def escape(plain: str) -> str:
    """Escape a text so that Markdown shows it literally, on one line."""
    for special in ("\\", "`", "*", "_", "<", ">", "|", "#", "]("):
        plain = plain.replace(special, f"\\{special}")
    return " ".join(plain.split())


def latex(table: Table, comments: Iterable[str] = ()) -> str:
    r"""Lay out a table as a LaTeX `tabular` for `\input`; needs booktabs. The title is not part of it.

    Args:
        table: The table. A cell such as `63.2 [60.1, 66.3]` shows its interval in small type.
        comments: Lines for the top of the file.
    """
    lines = [
        *(f"% {' '.join(comment.split())}" for comment in comments),
        r"\begin{tabular}{" + "l" * table.left + "r" * (len(table.headers) - table.left) + "}",
        r"\toprule",
        " & ".join(map(_tex, table.headers)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_tex_cell, row)) + r" \\" for row in table.rows),
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _tex(plain: str) -> str:
    return "".join(_TEX.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in plain)


def _tex_cell(cell: str) -> str:
    value, bracket, interval = cell.partition(" [")
    return _tex(value) + (rf" {{\scriptsize [{_tex(interval)}}}" if bracket else "")
