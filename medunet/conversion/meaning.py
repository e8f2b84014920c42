"""Mask interpretation: classes or objects, by the user's word, a colour table, `dataset.json`, or by the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medunet.conversion.colour_tables import KNOWN_NAMES, declared_colours, read_colours, read_json
from medunet.conversion.colours import ColourTable, code_of
from medunet.conversion.layouts import FoundCase, Layout
from medunet.conversion.masks import Mask, read_mask
from medunet.conversion.rules import (
    MOST_OBJECTS,
    BlackAndWhite,
    Census,
    Coloured,
    ColouredObjects,
    Connected,
    OneMaskPerObject,
    Rule,
    Unchanged,
)
from medunet.conversion.structures import JoinedStructures, StructureCensus, StructureMasks
from medunet.errors import ConfigError, DataError
from medunet.system.progress import progress


@dataclass(frozen=True)
class ObjectSettings:
    """Settings for masks that hold objects, not classes.

    Attributes:
        connected: true if every connected part is an object of its own.
        background: the code of the background's colour in masks with one colour per object.
    """

    connected: bool = False
    background: int = 0


@dataclass(frozen=True)
class ConvertRequest:
    """The arguments of a conversion.

    Attributes:
        colours: a file with a colour table; None looks for one beside the masks.
        masks: the files that are masks, see `find_layout`.
        tolerance: the distance that a colour may have from its class's, see `ColourTable.decode`.
        ignore: the class whose pixels are not annotated.
        objects: None for classes.
        foreground: the name of the class that black-and-white masks or objects show.
        link: hard links in place of copies.
        dry_run: read and check everything, write nothing.
        axes: states a TIFF's axes.
    """

    source: Path
    output: Path
    colours: Path | None = None
    masks: str | None = None
    tolerance: float = 0.0
    ignore: str | None = None
    objects: ObjectSettings | None = None
    foreground: str | None = None
    link: bool = False
    dry_run: bool = False
    axes: str | None = None


@dataclass(frozen=True)
class Meaning:
    """The meaning of masks.

    Attributes:
        description: for the user.
        rule: makes label maps of the masks.
        declaration: the labels for `dataset.json`; empty keeps those of the source.
    """

    description: str
    rule: Rule
    declaration: dict[str, Any]
    notes: tuple[str, ...] = ()


def as_code(text: str | None) -> int:
    """The code of a colour written as `R G B`; black for None.

    Raises:
        ConfigError: no three numbers between 0 and 255.
    """
    parts = (text or "0 0 0").replace(",", " ").split()
    if len(parts) != 3 or not all(part.isdecimal() and int(part) <= 255 for part in parts):
        raise ConfigError(f"--background {text}: expected three numbers from 0 to 255, such as '255 255 255'")
    return code_of((int(parts[0]), int(parts[1]), int(parts[2])))


def source_json(request: ConvertRequest) -> dict[str, Any]:
    """The content of the source's `dataset.json`; empty without one."""
    path = request.source / "dataset.json"
    return read_json(path) if path.is_file() else {}


def meaning_of(layout: Layout, request: ConvertRequest) -> Meaning:
    """The meaning of the masks: from the options, a table or `dataset.json` beside them, or the masks themselves."""
    if layout.structures:
        return _structures(layout, request)
    if any(len(case.masks) > 1 for case in layout.cases) or layout.one_each:
        return _object_meaning(
            "one per object, black and white", OneMaskPerObject(tolerance=request.tolerance), request
        )
    if request.colours is not None:
        return _coloured(read_colours(request.colours, request.ignore), request.colours, request)
    declared, path = source_json(request), request.source / "dataset.json"
    table = declared_colours(declared, path, request.ignore)
    if table is not None and request.objects is None:
        return _coloured(table, path, request)
    census = Census()
    for case in progress(layout.cases, "case"):
        census.add(read_mask(case.masks[0], request.axes))
    if layout.objects or request.objects is not None or declared.get("label_kind") == "instances":
        return _objects(census, request)
    found = _table_beside(request.source)
    if found is not None and (census.coloured or census.palettes) and not census.black_palette:
        return _coloured(read_colours(found, request.ignore), found, request)
    if census.coloured:
        raise _without_table(census, request)
    if request.ignore is not None and not request.ignore.isdecimal():
        raise ConfigError(
            f"--ignore {request.ignore}: there is no colour table that has such a class; say --colours TABLE, or the "
            "number that means not annotated in grey masks"
        )
    return _grey(census, declared, request)


def masks_of(case: FoundCase, layout: Layout, request: ConvertRequest) -> Sequence[Mask]:
    """The masks of a case; masks of structures are read one at a time, because there may be a hundred."""
    if layout.structures:
        return StructureMasks(case.masks, request.axes, case.structures)
    return [read_mask(path, request.axes) for path in case.masks]


def _structures(layout: Layout, request: ConvertRequest) -> Meaning:
    """A label value for each combination of structures."""
    said = {"--colours": request.colours, "--tolerance": request.tolerance, "--ignore": request.ignore,
            "--foreground": request.foreground}  # fmt: skip
    given = [option for option, value in said.items() if value]
    if given:
        raise ConfigError(
            f"{request.source}: {', '.join(given)}: not for masks of one structure each, which are named by their files"
            f"\nfound were {layout.form}; leave it out, or say which files are masks with --masks"
        )
    census = StructureCensus()
    for case in progress(layout.cases, "case"):
        census.add(masks_of(case, layout, request), request.source)
    if not census.voxels:
        raise DataError(
            f"{request.source}: all masks of its {len(census.named)} structures are empty; nothing to learn"
        )
    notes = []
    if census.empty:
        notes.append(f"left out, as all their masks are empty: {_few(census.empty)}")
    if census.incomplete:
        cases = max(census.incomplete.values())
        notes.append(
            f"without a mask in up to {cases} of {census.cases} cases, where they are taken for absent: "
            f"{_few(list(census.incomplete))}"
        )
    declaration = census.declaration()
    names = census.structures
    description = f"one for each of {len(names)} structure{'' if len(names) == 1 else 's'} ({_few(names)})"
    if census.shared:
        several = sum(len(combination) > 1 for combination in census.voxels)
        description += f", which overlap in {several} combination{'' if several == 1 else 's'}"
        notes.append(
            f"{census.shared:,} voxels are in several structures, so each structure becomes a region that is learned "
            "by itself; correct the masks if that is an accident"
        )
    return Meaning(description, JoinedStructures(census.values()), declaration, tuple(notes))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")


def _table_beside(source: Path) -> Path | None:
    found = [path for path in sorted(source.iterdir()) if path.is_file() and path.name.lower() in KNOWN_NAMES]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{source}: which colour table is meant, {names}? say --colours {source / found[0].name}")
    return found[0] if found else None


def _coloured(table: ColourTable, path: Path, request: ConvertRequest) -> Meaning:
    """Classes by colour; the declaration also keeps the colours, for the way back."""
    notes = []
    distance, first, second = table.closest
    if request.tolerance > distance / 2:
        notes.append(
            f"{first} and {second} are only {distance:.1f} apart: with a tolerance of {request.tolerance:g}, colours "
            "between them go to the nearer one"
        )
    unnamed = [name for name in table.names if name.lower() in ("unlabelled", "unlabeled", "void", "unknown")]
    if unnamed and table.ignore is None:
        notes.append(f"{unnamed[0]} becomes a class like others; if it means not annotated, say --ignore {unnamed[0]}")
    declaration: dict[str, Any] = {
        "labels": table.classes,
        "colours": {name: list(colour) for name, colour in zip(table.names, table.colours, strict=True)},
    }
    if table.ignored is not None:
        declaration["ignore"] = table.ignored
    description = f"colours of {len(table.names)} classes by {path.name}"
    return Meaning(description, Coloured(table, request.tolerance), declaration, tuple(notes))


def _without_table(census: Census, request: ConvertRequest) -> DataError:
    head = f"{request.source}: masks are in colours ({len(census.codes):,} different), and no table says what they mean"
    if census.like_objects and not census.with_smooth_edges:
        return DataError(
            f"{head}: {census.frequent(4)}\nmost colours are in one mask only, so they seem to be objects in random "
            "colours: say --instances; if they are classes, give --colours TABLE"
        )
    smooth = " (many colours on few pixels: smooth edges or JPEG, so --tolerance will be needed)"
    return DataError(
        f"{head}: {census.frequent()}\ngive --colours TABLE with a line `R G B name` for each class"
        f"{smooth if census.with_smooth_edges else ''}; say --instances if each colour is one object"
    )


def _objects(census: Census, request: ConvertRequest) -> Meaning:
    settings = request.objects or ObjectSettings()
    apart = ", every connected part one of its own" if settings.connected else ""
    if census.lossy:
        raise DataError(
            f"{request.source}: {census.lossy} of {census.masks} masks are JPEG, which changes ids and colours of "
            "objects\nobjects cannot be told apart any more; make the masks again as PNG or TIFF"
        )
    if census.coloured:
        if settings.background not in census.codes:
            raise DataError(
                f"{request.source}: the background's colour (0 0 0, or what --background says) is in no mask; most "
                f"frequent are {census.frequent(3)}\nsay which one is the background with --background 'R G B'"
            )
        rule: Rule = ColouredObjects(settings.background, settings.connected)
        return _object_meaning("one colour per object" + apart, rule, request)
    if settings.connected:
        return _object_meaning("objects" + apart, Connected(), request)
    notes: tuple[str, ...] = ()
    if len(set(census.values) - {0}) == 1:
        notes = ("each mask is one object as there is one value only; --connected makes every connected part one",)
    return replace(_object_meaning("object ids", Unchanged(), request), notes=notes)


def _object_meaning(description: str, rule: Rule, request: ConvertRequest) -> Meaning:
    declared = source_json(request).get("labels")
    names = [name for name in declared if name.lower() != "background"] if isinstance(declared, dict) else []
    labels = {"background": 0, request.foreground or (names[0] if len(names) == 1 else "object"): 1}
    return Meaning(description, rule, {"labels": labels, "label_kind": "instances"})


def _grey(census: Census, declared: Mapping[str, Any], request: ConvertRequest) -> Meaning:
    """Masks of one channel: label values with names from `dataset.json`, black and white, or plain label values."""
    black_and_white = {"labels": {"background": 0, request.foreground or "foreground": 1}}
    if isinstance(declared.get("labels"), dict) and not census.lossy:
        return Meaning("label values, named in dataset.json", Unchanged(), {})
    white = 255 if census.black_palette else census.white
    if white is not None and not census.lossy:
        rule: Rule = Unchanged() if white == 1 and not census.black_palette else BlackAndWhite(white)
        return Meaning(f"black and white (0 and {white})", rule, black_and_white)
    if census.lossy or census.smeared:
        return _smeared(census, request, black_and_white)
    values = sorted(census.values)
    if len(values) > 254 or max(values) > MOST_OBJECTS:
        raise DataError(
            f"{request.source}: {len(values)} different values from {values[0]} to {values[-1]}, too many for "
            "classes; if they are object ids, say --instances"
        )
    if request.tolerance > 0:
        raise ConfigError("--tolerance is for colours and for black and white, but these masks hold label values")
    labels = {"background" if value == 0 else f"label_{value}": value for value in values}
    declaration: dict[str, Any] = {"labels": labels}
    many = f"{len(values)} values are taken as classes; if they are object ids, say --instances"
    notes = [many] if len(values) > 16 else []
    if request.ignore is not None:
        declaration = {
            "labels": {name: value for name, value in labels.items() if value != int(request.ignore)},
            "ignore": int(request.ignore),
        }
    elif values[-1] == 255 and (len(values) == 2 or values[-2] < 128):
        notes.append("255 is taken as a class; if it means not annotated, say --ignore 255")
    return Meaning("label values", Unchanged(), declaration, tuple(notes))


def _smeared(census: Census, request: ConvertRequest, declaration: dict[str, Any]) -> Meaning:
    if request.tolerance > 0:
        description = f"black and white (0 and 255), up to {request.tolerance:g} away"
        return Meaning(description, BlackAndWhite(255, request.tolerance), declaration)
    total = sum(census.values.values())
    between = total - census.values[0] - census.values[255]
    raise DataError(
        f"{request.source}: {between / total:.2%} of the pixels of its masks have one of {len(census.values)} values "
        "between black and white: JPEG or smooth edges\nsay --tolerance 127 to take the nearer of both, --instances if "
        "values are object ids (not after JPEG), or make the masks again without smoothing"
    )
