"""Tables of a report: the same rows as HTML cells and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from math import isnan


@dataclass(frozen=True)
class Spread:
    """A mean with its standard deviation, shown as `mean ± deviation` and sorted by the mean."""

    mean: float
    deviation: float


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: the name in CSV files: lower case, with its unit.
        title: the heading in pages.
        digits: after the decimal point, in pages; CSV files keep six significant ones.
        share: the numbers lie between 0 and 1 and get a small bar behind them.
        hint: shown when the pointer rests on the heading.
    """

    key: str
    title: str
    digits: int = 3
    share: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns; NaN and None are shown as a dash and written as nothing."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells does not fit {len(self.columns)} columns: {row}")


def cell_text(cell: Cell, digits: int = 3) -> str:
    """The cell in a page: `0.873`, `0.873 ± 0.021`, an unchanged text, `–` without a value."""
    if isinstance(cell, Spread):
        mean = cell_text(cell.mean, digits)
        return mean if isnan(cell.deviation) else f"{mean} ± {cell.deviation:.{digits}f}"
    if cell is None or (isinstance(cell, float) and isnan(cell)):
        return "–"
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)


def cell_number(cell: Cell) -> float | None:
    """The number that a column is sorted by; None for texts and missing values."""
    number = cell.mean if isinstance(cell, Spread) else cell
    if number is None or isinstance(number, str) or isnan(number):
        return None
    return float(number)


def csv_text(table: Table) -> str:
    """Comma-separated values with one line of headings, numbers with a decimal point, missing values empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(column.key for column in table.columns)
    writer.writerows([_csv_cell(cell) for cell in row] for row in table.rows)
    return buffer.getvalue()


def _csv_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        # A spreadsheet would run a text that begins like this as a formula.
        return "'" + cell if cell[:1] in ("=", "+", "-", "@") else cell
    if isinstance(cell, int):
        return str(cell)
    number = cell_number(cell)
    return "" if number is None else f"{number:.6g}"
