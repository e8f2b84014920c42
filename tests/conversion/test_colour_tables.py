"""Colour tables in files: every form gives the same table, and what is ambiguous is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.conversion.colour_tables import read_colours
from medunet.errors import DataError

Entry = tuple[str, tuple[int, int, int]]

FORMS = {
    "R G B name": lambda name, rgb: f"{rgb[0]} {rgb[1]} {rgb[2]} {name}",
    "name R G B": lambda name, rgb: f"{name} {rgb[0]}\t{rgb[1]}   {rgb[2]}",
    "R,G,B,name": lambda name, rgb: f"{rgb[0]}, {rgb[1]}, {rgb[2]}, {name}",
    "name;R;G;B": lambda name, rgb: f'"{name}";{rgb[0]};{rgb[1]};{rgb[2]}',
    "name:R,G,B::": lambda name, rgb: f"{name}:{rgb[0]},{rgb[1]},{rgb[2]}::",
}


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    names=st.lists(st.from_regex(r"[A-Za-z]{1,6}( [a-z]{1,4})?", fullmatch=True), min_size=1, max_size=6, unique=True),
    data=st.data(),
)
def test_all_forms_of_a_table_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    part = st.integers(0, 255)
    colours = data.draw(
        st.lists(st.tuples(part, part, part), min_size=len(names), max_size=len(names), unique=True), label="colours"
    )
    folder = tmp_path_factory.mktemp("tables")
    for number, form in enumerate(FORMS.values()):
        path = folder / f"{number}.txt"
        lines = [form(name, colour) for name, colour in zip(names, colours, strict=True)]
        path.write_text("# a comment\n\n" + "\n".join(lines) + "\n")
        _check(path, names, colours)
    header = folder / "header.csv"
    rows = [f"{rgb[2]},{name},{rgb[0]},{rgb[1]}" for name, rgb in zip(names, colours, strict=True)]
    header.write_text("\n".join(["B,name,R,G", *rows]))
    _check(header, names, colours)
    plain = folder / "plain.json"
    plain.write_text(json.dumps(dict(zip(names, colours, strict=True))))
    _check(plain, names, colours)


def _check(path: Path, names: list[str], colours: list[tuple[int, int, int]]) -> None:
    table = read_colours(path)
    assert table.names == tuple(names) and table.colours == tuple(colours), path.read_text()


def table_of(folder: Path, text: str, name: str = "t.txt") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_values_may_stand_in_a_csv(tmp_path: Path) -> None:
    table = read_colours(table_of(tmp_path, "id\tclass\tred\tgreen\tblue\n7\tcar\t1\t2\t3\n3\tsky\t0\t0\t9\n"))
    assert dict(zip(table.names, table.values, strict=True)) == {"car": 7, "sky": 3}


def test_a_data_set_has_colours_as_labels_or_beside_their_values(tmp_path: Path) -> None:
    labels = {"sky": [0, 0, 255], "void": [0, 0, 0]}
    table = read_colours(table_of(tmp_path, json.dumps({"labels": labels}), "dataset.json"), "void")
    assert table.values == (0, 255) and table.classes == {"sky": 0} and table.ignored == 255
    beside = {"labels": {"sky": 7}, "colours": labels, "ignore": 9}
    table = read_colours(table_of(tmp_path, json.dumps(beside), "dataset.json"))
    assert table.values == (7, 9) and table.ignore == "void"


def test_a_class_called_ignore_is_ignored(tmp_path: Path) -> None:
    assert read_colours(table_of(tmp_path, "0 0 0 Ignore\n1 1 1 a\n2 2 2 b")).values == (255, 0, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 2 3 car\n# x\n1 2 3 sky\n", "line 3: the colour 1 2 3 stands there already, line 1 \\(car\\)"),
        ("1 2 3 car\n\n1 2 4 car\n", "line 3: the name car stands there already, line 1"),
        ("1 2 3 car\n1 2 256 sky\n", "line 2: red, green and blue lie between 0 and 255, found 256"),
        ("1 2 3 car\n1 -2 6 sky\n", "line 2: red, green and blue lie between 0 and 255, found -2"),
        ("1 2 3.5 car\n", "line 1: expected whole numbers, found '3.5'"),
        ("1 2 3 car\nwhat is this\n", "line 2: cannot be read: 'what is this'"),
        ("1 2 3 car\nsky 1 2 4\n", "line 2: has another order than line 1"),
        ("1 2 3 4\n5 6 7 8\n", "line 1: this line and all others fit both"),
        ("name,r,g,b\ncar,1,2\n", "line 2: has 3 columns, the header 4"),
        ("name,r,g,b\n", "a header and no class"),
        ("# nothing\n", "holds no class"),
    ],
)
def test_what_cannot_be_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_colours(table_of(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"car": [0, 0, 0],\n "sky": [0, 0, 0]}', 'line 2, "sky": the colour 0 0 0 stands there already, line 1'),
        ('{"car": [0, 0, 0],\n "car": [1, 0, 0]}', '"car" stands there twice, lines 1 and 2'),
        ('{"car": [0, 0, 300]}', "between 0 and 255, found 300"),
        ('{"car": [0, 0]}', "expected a colour like"),
        ('{"car": [0, 0, true]}', "whole numbers"),
        ("[1, 2]", "expected an object"),
        ("{", "not valid JSON"),
        ('{"labels": {"car": 1}}', "says nothing about colours"),
        ('{"labels": {"car": 1}, "colours": {"bus": [0, 0, 0]}}', '"bus" has a colour, but no integer value'),
    ],
)
def test_what_cannot_be_in_json_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_colours(table_of(tmp_path, text, "t.json"))


def test_no_text_no_file_and_no_such_class_are_errors(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"1 2 3 caf\xe9")
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_colours(tmp_path / "t.txt")
    with pytest.raises(DataError, match="no such file"):
        read_colours(tmp_path / "none.txt")
    with pytest.raises(DataError, match='no class called "void" to ignore; it has car'):
        read_colours(table_of(tmp_path, "1 2 3 car"), "void")
