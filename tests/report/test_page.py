"""The page: self-contained, escaped, well-formed; tables as CSV."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from math import nan

import pytest

from medunet.report.page import Headline, Picture, Report, Section, render_page
from medunet.report.table import Column, Spread, Table, cell_text, csv_text

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>alert(1)</script>"


class WellFormed(HTMLParser):
    """Collects tags with their attributes and checks that every opened element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> WellFormed:
    reader = WellFormed()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def page() -> str:
    columns = (Column("label", "Label"), Column("dice", "Dice", share=True), Column("n", "N"))
    table = Table(columns, ((EVIL, Spread(0.875, 0.0214), 3), ("b", nan, 0)))
    section = Section(EVIL, (EVIL,), ((EVIL, "#e69f00"),), (Picture(EVIL, '" onload="x', b"png"),), (table,))
    folded = Section("Definitions", ("text",), folded=True)
    headlines = (Headline("Dice", "0.875"), Headline("Missed", "1", alarm=True))
    return render_page(Report(EVIL, EVIL, headlines, (section, folded), (EVIL,), EVIL))


def test_names_are_shown_and_never_run(page: str) -> None:
    reader = parsed(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert EVIL not in page
    assert not any("onload" in attributes for _, attributes in reader.tags)
    # Names with angle brackets: title twice, subtitle, warning, section, text, legend, caption, cell, footer.
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert "http:" not in page and "https:" not in page and "//" not in re.sub(r"(?m)^\s*//.*$", "", page)
    for tag, attributes in parsed(page).tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href"):
            assert str(attributes.get(name, "data:")).startswith("data:image/png;base64,") or name not in attributes


def test_cells_carry_the_numbers_they_are_sorted_by(page: str) -> None:
    cells = [attributes for tag, attributes in parsed(page).tags if tag == "td"]
    assert [cell.get("data-value") for cell in cells] == [None, "0.875", "3.0", None, None, "0.0"]
    assert "0.875 ± 0.021" in page and "width:87.5%" in page


def test_cell_texts() -> None:
    assert [cell_text(cell, 2) for cell in (0.876, 3, None, nan, "a", Spread(1.0, nan))] == [
        "0.88", "3", "–", "–", "a", "1.00"
    ]  # fmt: skip


def test_csv_reads_back_and_runs_no_formula() -> None:
    table = Table(
        (Column("case", "Case"), Column("x", "X"), Column("n", "N")), (('a,"b"', 1 / 3, 2), ("=1+1", nan, -3))
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert rows[0] == {"case": 'a,"b"', "x": "0.333333", "n": "2"}
    assert rows[1] == {"case": "'=1+1", "x": "", "n": "-3"}


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Table((Column("a", "A"),), ((1, 2),))
