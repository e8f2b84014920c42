"""Colour tables in files: text, CSV with or without a header, JSON, and what a `dataset.json` says about colours."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.conversion.colours import Colour, ColourTable, numbered
from medunet.errors import DataError

KNOWN_NAMES = tuple(
    f"{stem}{suffix}"
    for stem in ("labels", "label_colors", "label_colours", "colors", "colours", "class_dict", "labelmap", "palette")
    for suffix in (".txt", ".csv", ".tsv", ".json")
)
"""Names, in lower case, under which a table beside the masks is found."""

_SEPARATOR = r"[\s,;:=|]+"
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_COLOUR_FIRST = re.compile(rf"^{_NUMBER}{_SEPARATOR}{_NUMBER}{_SEPARATOR}{_NUMBER}{_SEPARATOR}(.*[^\s,;:=|])[\s,;:]*$")
_NAME_FIRST = re.compile(rf"^(.*?[^\s,;:=|]){_SEPARATOR}{_NUMBER}{_SEPARATOR}{_NUMBER}{_SEPARATOR}{_NUMBER}[\s,;:]*$")
_COLUMNS = {
    "r": "red", "red": "red", "g": "green", "green": "green", "b": "blue", "blue": "blue", "name": "name",
    "class": "name", "label": "name", "class_name": "name", "value": "value", "id": "value", "index": "value",
}  # fmt: skip
_EXPECTED = "expected `R G B name` or `name R G B`, separated by spaces, tabs or commas"


@dataclass(frozen=True)
class _Entry:
    """One class as a file has it.

    Attributes:
        place: in the file, such as `line 3`.
    """

    place: str
    name: str
    colour: Colour
    value: int | None = None


def read_colours(path: Path, ignore: str | None = None) -> ColourTable:
    """Read a colour table.

    Text has one class per line, `R G B name` or `name R G B`, separated by spaces, tabs, commas, semicolons or colons;
    lines that begin with # or // are comments. A CSV may have a header with red, green, blue (or r, g, b), name (class,
    label) and perhaps value (id, index). JSON is ``{"name": [R, G, B], …}``, or a `dataset.json` with such an object
    under "colours" (beside "labels") or under "labels". Where no values are said, classes are numbered in their order
    from 0 on, a class called background being 0.

    Args:
        ignore: the name of the class whose pixels are not annotated; its value is 255 where none is said. A class
            called ignore always is.

    Raises:
        DataError: no table, a line that cannot be read, numbers out of 0…255, the same colour, name or value twice
            (with the lines' numbers), or no class called `ignore`.
    """
    text = _read_text(path)
    if path.suffix.lower() == ".json":
        declared = parse_json(text, path)
        if isinstance(declared.get("labels"), dict):
            table = declared_colours(declared, path, ignore)
            if table is None:
                raise DataError(f'{path}: says nothing about colours; expected "colours": {{"name": [R, G, B], …}}')
            return table
        return _table(_from_mapping(declared, text, path), path, ignore)
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith(("#", "//"))]
    if not lines:
        raise DataError(f"{path}: holds no class; {_EXPECTED}")
    header = _header(lines[0][1])
    return _table(_from_columns(lines, header, path) if header else _from_lines(lines, path), path, ignore)


def declared_colours(declared: Mapping[str, Any], path: Path, ignore: str | None = None) -> ColourTable | None:
    """The colour table of a `dataset.json`, None where it has no colours.

    Raises:
        DataError: see `read_colours`; or a class with a colour and no value.
    """
    labels, colours = declared.get("labels"), declared.get("colours")
    said = declared.get("ignore")
    if isinstance(colours, dict) and colours and isinstance(labels, dict):
        entries = _from_mapping(colours, "", path)
        values = {str(name): value for name, value in labels.items()}
        unnamed = [entry.name for entry in entries if entry.name not in values]
        if ignore is None and isinstance(said, int) and len(unnamed) == 1:
            ignore, values[unnamed[0]] = unnamed[0], said
        wrong = [name for name in colours if type(values.get(name)) is not int]
        if wrong:
            raise DataError(f'{path}: "{wrong[0]}" has a colour, but no integer value under "labels"')
        return _table([_Entry(e.place, e.name, e.colour, values[e.name]) for e in entries], path, ignore)
    if isinstance(labels, dict) and labels and all(_is_colour(value) for value in labels.values()):
        return _table(_from_mapping(labels, "", path), path, ignore or (said if isinstance(said, str) else None))
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; see `parse_json`.

    Raises:
        DataError: also where it is no text in UTF-8.
    """
    return parse_json(_read_text(path), path)


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """A JSON object without a key twice in it.

    Raises:
        DataError: no JSON, no object, or a key twice.
    """
    try:
        declared = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, text, path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(declared, dict):
        raise DataError(f'{path}: expected an object like {{"sky": [128, 128, 128], …}}')
    return declared


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a colour table: text, CSV or JSON")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start}); save it so") from error


def _unique(pairs: list[tuple[str, Any]], text: str, path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f'{path}: "{twice}" stands there twice, {_lines_of(twice, text)}; keep one')
    return found


def _lines_of(name: str, text: str) -> str:
    numbers = [str(n) for n, line in enumerate(text.splitlines(), 1) if json.dumps(name) in line or f'"{name}"' in line]
    return f"line{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}"


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)


def _from_mapping(colours: Mapping[str, Any], text: str, path: Path) -> list[_Entry]:
    entries = []
    for name, value in colours.items():
        place = f'{_lines_of(name, text)}, "{name}"' if text else f'"{name}"'
        if not isinstance(value, list) or len(value) != 3:
            raise DataError(f"{path}: {place}: expected a colour like [128, 64, 0], found {value!r}")
        entries.append(_Entry(place, name, _colour(value, f"{path}: {place}")))
    return entries


def _from_lines(lines: Iterable[tuple[int, str]], path: Path) -> list[_Entry]:
    """Both orders match a line like `1 2 3 4`; then the other lines decide."""
    matches = [(n, _COLOUR_FIRST.match(line), _NAME_FIRST.match(line), line) for n, line in lines]
    for n, first, last, line in matches:
        if first is None and last is None:
            raise DataError(f"{path}, line {n}: cannot be read: {line[:60]!r}\n{_EXPECTED}")
    colour_first = all(first for _, first, _, _ in matches)
    name_first = all(last for _, _, last, _ in matches)
    if colour_first and name_first:
        raise DataError(
            f"{path}, line {matches[0][0]}: this line and all others fit both `R G B name` and `name R G B`\n"
            "give the classes names that are more than a number"
        )
    if not colour_first and not name_first:
        odd = next(n for n, first, _, _ in matches if bool(first) != bool(matches[0][1]))
        raise DataError(f"{path}, line {odd}: has another order than line {matches[0][0]}\n{_EXPECTED}, throughout")
    entries = []
    for n, first, last, _ in matches:
        parts = first.groups() if colour_first and first else last.groups() if last else ()
        name, numbers = (parts[3], parts[:3]) if colour_first else (parts[0], parts[1:])
        entries.append(_Entry(f"line {n}", _bare(name), _colour(numbers, f"{path}, line {n}")))
    return entries


def _header(line: str) -> tuple[str, list[str]] | None:
    """The delimiter and the columns' meanings, if this line names red, green, blue and name."""
    for delimiter in ("\t", ";", ","):
        cells = [_COLUMNS.get(cell.strip().strip('"').lower(), "") for cell in line.split(delimiter)]
        if all(cells.count(wanted) == 1 for wanted in ("red", "green", "blue", "name")) and cells.count("value") < 2:
            return delimiter, cells
    words = [_COLUMNS.get(word.lower(), "") for word in line.split()]
    if sorted(words) == ["blue", "green", "name", "red"]:
        return " ", words
    return None


def _from_columns(lines: list[tuple[int, str]], header: tuple[str, list[str]], path: Path) -> list[_Entry]:
    delimiter, columns = header
    entries = []
    for n, line in lines[1:]:
        cells = line.split() if delimiter == " " else next(csv.reader([line], delimiter=delimiter))
        if len(cells) != len(columns):
            raise DataError(f"{path}, line {n}: has {len(cells)} columns, the header {len(columns)}")
        row = {meaning: cell.strip() for meaning, cell in zip(columns, cells, strict=True) if meaning}
        if not row["name"]:
            raise DataError(f"{path}, line {n}: has no name")
        value = _whole(row["value"], f"{path}, line {n}") if "value" in row else None
        colour = _colour([row["red"], row["green"], row["blue"]], f"{path}, line {n}")
        entries.append(_Entry(f"line {n}", row["name"], colour, value))
    if not entries:
        raise DataError(f"{path}: holds a header and no class")
    return entries


def _bare(name: str) -> str:
    return name[1:-1].strip() if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name


def _colour(parts: Iterable[Any], where: str) -> Colour:
    red, green, blue = (_whole(part, where) for part in parts)
    for part in (red, green, blue):
        if not 0 <= part <= 255:
            raise DataError(f"{where}: red, green and blue lie between 0 and 255, found {part}")
    return red, green, blue


def _whole(part: Any, where: str) -> int:
    if isinstance(part, bool) or not re.fullmatch(r"-?\d+", str(part).strip()):
        raise DataError(f"{where}: expected whole numbers, found {part!r}")
    return int(part)


def _table(entries: list[_Entry], path: Path, ignore: str | None) -> ColourTable:
    """Refuse what is there twice, with both places, and number classes that have no value."""
    for what in ("name", "colour", "value"):
        seen: dict[Any, _Entry] = {}
        for entry in entries:
            found = getattr(entry, what)
            if found is not None and found in seen:
                shown = " ".join(map(str, found)) if what == "colour" else found
                raise DataError(
                    f"{path}, {entry.place}: the {what} {shown} stands there already, {seen[found].place} "
                    f"({seen[found].name}); every class needs its own"
                )
            seen[found] = entry
    names = tuple(entry.name for entry in entries)
    if ignore is None:
        ignore = next((name for name in names if name.lower() == "ignore"), None)
    if not entries:
        raise DataError(f"{path}: holds no class")
    if ignore is not None and ignore not in names:
        raise DataError(f'{path}: has no class called "{ignore}" to ignore; it has {", ".join(names)}')
    given = [entry.value for entry in entries if entry.value is not None]
    values = tuple(given) if len(given) == len(entries) else numbered(names, ignore)
    return ColourTable(names, tuple(entry.colour for entry in entries), values, ignore)
