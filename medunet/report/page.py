"""The report page: one HTML file without any reference to another, so it can be mailed, archived and printed."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from medunet.report.table import Table, cell_number, cell_text


@dataclass(frozen=True)
class Headline:
    """A number to be seen first. `alarm` marks one that must not be overlooked."""

    title: str
    value: str
    note: str = ""
    alarm: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows."""

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading with what belongs under it: text, legend, pictures, then tables.

    Attributes:
        legend: label names with their colours `#rrggbb`.
        folded: closed until it is clicked.
    """

    title: str
    text: tuple[str, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """All that a page shows, as plain records.

    Attributes:
        warnings: the reader must know them before believing a number.
    """

    title: str
    subtitle: str
    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()
    footer: str = ""


def render_page(report: Report) -> str:
    """The page as HTML text. Every name is escaped: a label called `<script>` is shown, not run."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medunet.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["png"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    environment.filters["percent"] = lambda share: f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return environment.get_template("page.html.j2").render(report=report, text=cell_text, number=cell_number)
