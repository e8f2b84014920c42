"""`medunet convert`: other forms of data sets become medunet's, and label maps become colour masks again.

    folder -> which mask belongs to which image -> what the masks' pixels mean -> images/, labels/, dataset.json

Every mask is read and checked before anything is written; then the new folder is written aside and renamed as a whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.catalogue import Case, check_pairs
from medunet.data.colourfiles import KNOWN_NAMES, declared_colours, parse_json, read_colours
from medunet.data.colours import ColourTable, Decoded, code_of
from medunet.data.formats import WRITABLE, case_stem, default_suffix, files_of, suffix_of, write_volume
from medunet.data.labels import table_from_names
from medunet.data.layouts import FoundCase, Layout, count_by_suffix, find_layout
from medunet.data.maskrules import (
    MOST_OBJECTS,
    AsTheyAre,
    BlackAndWhite,
    Census,
    Coloured,
    ColouredObjects,
    Connected,
    OneMaskPerObject,
    Rule,
)  # fmt: skip
from medunet.data.masks import Mask, read_mask
from medunet.errors import ConfigError, DataError
from medunet.files import check_new_folder, folder_written_aside, write_text

Say = Callable[[str], None]
_SHOWN = 10


@dataclass(frozen=True)
class ObjectSettings:
    """That masks hold objects, not classes.

    Attributes:
        connected: whether every connected part is an object of its own.
        background: the code of the background's colour in masks with one colour per object.
    """

    connected: bool = False
    background: int = 0


@dataclass(frozen=True)
class ConvertRequest:
    """What `convert` is asked to do.

    Attributes:
        colours: a file with a colour table; None looks for one beside the masks.
        masks: which files are masks, see `find_layout`.
        tolerance: how far a colour may be away from its class's, see `ColourTable.decode`.
        ignore: the class whose pixels are not annotated.
        objects: None for classes.
        foreground: what is called that black-and-white masks or objects show.
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
class _Meaning:
    """What the masks are, in words, how label maps are made of them, and what `dataset.json` then says."""

    words: str
    rule: Rule
    declaration: dict[str, Any]
    notes: tuple[str, ...] = ()


def convert(request: ConvertRequest, say: Say) -> None:
    """Make a data set of `images/`, `labels/` and `dataset.json` from a folder in another form.

    Args:
        say: is told, line by line, what was found and what was done.

    Raises:
        DataError: nothing recognised, or masks whose meaning is not known; nothing is written then.
        OutputError: the output exists or cannot be written.
        ConfigError: options that exclude each other.
    """
    _check_options(request)
    check_new_folder(request.output)
    layout = find_layout(request.source, request.masks)
    _say_layout(layout, request, say)
    _check_cases(layout, request)
    meaning = _meaning(layout, request)
    say(f"masks: {meaning.words}")
    for note in meaning.notes:
        say(f"note: {note}")
    if layout.own and meaning.rule.unchanged:
        raise DataError(f"{request.source}: is a data set already, with label maps; medunet reads it as it is")
    totals = _Totals()
    for case in _bar(layout.cases):
        totals.add(case, meaning.rule.apply([read_mask(path, request.axes) for path in case.masks]))
    _refuse_unknown(totals, meaning.rule, request)
    declaration = _completed(meaning, totals, request)
    for line in totals.lines(declaration):
        say(line)
    if request.dry_run:
        say(f"dry run: nothing written; without --dry-run, {request.output} would hold {len(layout.cases)} cases")
        return
    with folder_written_aside(request.output) as aside:
        for case in _bar(layout.cases):
            _write_case(case, meaning.rule, request, aside)
        write_declaration(aside / "dataset.json", declaration)
    say(f"wrote {request.output}: {len(layout.cases)} cases, images/, labels/ and dataset.json")


def as_code(text: str | None) -> int:
    """The code of a colour written as `R G B`; black for None.

    Raises:
        ConfigError: no three numbers between 0 and 255.
    """
    parts = (text or "0 0 0").replace(",", " ").split()
    if len(parts) != 3 or not all(part.isdecimal() and int(part) <= 255 for part in parts):
        raise ConfigError(f"--background {text}: expected three numbers from 0 to 255, such as '255 255 255'")
    return code_of((int(parts[0]), int(parts[1]), int(parts[2])))


def _check_options(request: ConvertRequest) -> None:
    if request.colours is not None and request.objects is not None:
        raise ConfigError(
            "--colours says that colours are classes, --instances that they are objects; give one of both"
        )
    if request.ignore is not None and request.objects is not None:
        raise ConfigError("--ignore names a class, but --instances says that masks hold objects; give one of both")
    if not 0 <= request.tolerance <= 255:
        raise ConfigError(f"--tolerance {request.tolerance:g}: expected a distance between colours, 0 to 255")


def _bar(cases: Sequence[FoundCase]) -> Iterable[FoundCase]:
    from tqdm import tqdm

    return tqdm(cases, unit="case", disable=None, leave=False)


def _say_layout(layout: Layout, request: ConvertRequest, say: Say) -> None:
    say(f"{request.source}: {layout.form}, {len(layout.cases)} pair{'s' * (len(layout.cases) != 1)}")
    shown = layout.cases if request.dry_run else layout.cases[:_SHOWN]
    for case in shown:
        images = " + ".join(_relative(path, request.source) for path in case.images)
        masks = _relative(case.masks[0], request.source)
        masks += f" and {len(case.masks) - 1} more" if len(case.masks) > 1 else ""
        say(f"  {images}  <-  {masks}")
    if len(layout.cases) > len(shown):
        say(f"  … and {len(layout.cases) - len(shown)} more (all with --dry-run)")
    for what, paths in (("without a mask", layout.alone), ("without an image", layout.orphans)):
        if paths:
            names = ", ".join(_relative(path, request.source) for path in paths[:_SHOWN])
            say(f"left out, {what}: {len(paths)}: {names}{', …' if len(paths) > _SHOWN else ''}")
    if layout.others:
        say(f"left out, no scans: {count_by_suffix(layout.others)}")


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _check_cases(layout: Layout, request: ConvertRequest) -> None:
    """All that names and headers can tell, of every case."""
    if not layout.objects and request.objects is None:
        several = [case for case in layout.cases if len(case.masks) > 1]
        if several:
            names = ", ".join(path.name for path in several[0].masks[:3])
            raise DataError(
                f"{several[0].images[0].name}: has {len(several[0].masks)} masks ({names}), {len(several)} image(s) in "
                "all have more than one\nsay --instances if each is one object; or keep one mask per image"
            )
    twice = [name for name, count in Counter(case.name for case in layout.cases).items() if count > 1]
    if twice:
        raise DataError(f"{request.source}: two cases would be called {twice[0]}; rename one of the images")
    check_pairs((Case(case.name, case.images, case.masks[0]) for case in layout.cases), request.axes)


def _source_json(request: ConvertRequest) -> dict[str, Any]:
    path = request.source / "dataset.json"
    return parse_json(path.read_text(encoding="utf-8"), path) if path.is_file() else {}


def _meaning(layout: Layout, request: ConvertRequest) -> _Meaning:
    """Decide what masks hold: by what was said, by a table or `dataset.json` beside them, or by looking at them."""
    if any(len(case.masks) > 1 for case in layout.cases) or (layout.objects and "per object" in layout.form):
        return _object_meaning("one per object, black and white", OneMaskPerObject(request.tolerance), request)
    if request.colours is not None:
        return _coloured(read_colours(request.colours, request.ignore), request.colours, request)
    declared, path = _source_json(request), request.source / "dataset.json"
    table = declared_colours(declared, path, request.ignore)
    if table is not None and request.objects is None:
        return _coloured(table, path, request)
    census = Census()
    for case in _bar(layout.cases):
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


def _table_beside(source: Path) -> Path | None:
    found = [path for path in sorted(source.iterdir()) if path.is_file() and path.name.lower() in KNOWN_NAMES]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{source}: which colour table is meant, {names}? say --colours {source / found[0].name}")
    return found[0] if found else None


def _coloured(table: ColourTable, path: Path, request: ConvertRequest) -> _Meaning:
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
    words = f"colours of {len(table.names)} classes by {path.name}"
    return _Meaning(words, Coloured(table, request.tolerance), declaration, tuple(notes))


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


def _objects(census: Census, request: ConvertRequest) -> _Meaning:
    settings = request.objects or ObjectSettings()
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
        return _object_meaning("one colour per object" + _connected_words(settings), rule, request)
    if settings.connected:
        return _object_meaning("objects" + _connected_words(settings), Connected(), request)
    notes: tuple[str, ...] = ()
    if len(set(census.values) - {0}) == 1:
        notes = ("each mask is one object as there is one value only; --connected makes every connected part one",)
    return replace(_object_meaning("object ids", AsTheyAre(), request), notes=notes)


def _connected_words(settings: ObjectSettings) -> str:
    return ", every connected part one of its own" if settings.connected else ""


def _object_meaning(words: str, rule: Rule, request: ConvertRequest) -> _Meaning:
    labels = {"background": 0, request.foreground or "object": 1}
    return _Meaning(words, rule, {"labels": labels, "label_kind": "instances"})


def _grey(census: Census, declared: Mapping[str, Any], request: ConvertRequest) -> _Meaning:
    """Masks of one channel: as `dataset.json` says, black and white, or label values as they are."""
    black_and_white = {"labels": {"background": 0, request.foreground or "foreground": 1}}
    if isinstance(declared.get("labels"), dict) and not census.lossy:
        return _Meaning("label values, named in dataset.json", AsTheyAre(), {})
    white = 255 if census.black_palette else census.white
    if white is not None and not census.lossy:
        rule: Rule = AsTheyAre() if white == 1 and not census.black_palette else BlackAndWhite(white)
        return _Meaning(f"black and white (0 and {white})", rule, black_and_white)
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
    notes = [f"{len(values)} values are taken as classes; if they are object ids, say --instances"]
    labels = {"background" if value == 0 else f"label_{value}": value for value in values}
    declaration: dict[str, Any] = {"labels": labels}
    notes = notes if len(values) > 16 else []
    if request.ignore is not None:
        declaration = {
            "labels": {name: value for name, value in labels.items() if value != int(request.ignore)},
            "ignore": int(request.ignore),
        }
    elif values[-1] == 255 and (len(values) == 2 or values[-2] < 128):
        notes.append("255 is taken as a class; if it means not annotated, say --ignore 255")
    return _Meaning("label values", AsTheyAre(), declaration, tuple(notes))


def _smeared(census: Census, request: ConvertRequest, declaration: dict[str, Any]) -> _Meaning:
    if request.tolerance > 0:
        words = f"black and white (0 and 255), up to {request.tolerance:g} away"
        return _Meaning(words, BlackAndWhite(255, request.tolerance), declaration)
    total = sum(census.values.values())
    between = total - census.values[0] - census.values[255]
    raise DataError(
        f"{request.source}: {between / total:.2%} of the pixels of its masks have one of {len(census.values)} values "
        "between black and white: JPEG or smooth edges\nsay --tolerance 127 to take the nearer of both, --instances if "
        "values are object ids (not after JPEG), or make the masks again without smoothing"
    )


class _Totals:
    """What all masks together gave."""

    def __init__(self) -> None:
        self.pixels = self.changed = self.overlapping = self.hidden = self.objects = 0
        self.unknown: Counter[int] = Counter()
        self.odd: list[str] = []
        self.counts: Counter[int] = Counter()
        self.overlaps: list[str] = []

    def add(self, case: FoundCase, decoded: Decoded) -> None:
        self.pixels += decoded.labels.size
        self.changed += decoded.changed
        self.overlapping += decoded.overlapping
        self.hidden += decoded.hidden
        self.unknown.update(decoded.unknown)
        self.odd += [case.masks[0].name] if decoded.unknown else []
        self.overlaps += [case.name] if decoded.overlapping or decoded.hidden else []
        found, counts = np.unique(decoded.labels, return_counts=True)
        self.counts.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.objects += int((found > 0).sum())

    def lines(self, declaration: Mapping[str, Any]) -> Iterator[str]:
        """What a user wants to know before training."""
        if declaration.get("label_kind") == "instances":
            share = 1 - self.counts[0] / self.pixels
            yield f"objects: {self.objects:,} in all, {share:.1%} of the pixels"
            if self.overlapping or self.hidden:
                yield (
                    f"overlaps: {self.overlapping:,} pixels belong to several objects (the first keeps them), "
                    f"{self.hidden} objects are empty or hidden; in {', '.join(self.overlaps[:5])}"
                    f"{', …' if len(self.overlaps) > 5 else ''}"
                )
        else:
            labels = {value: name for name, value in declaration["labels"].items() if isinstance(value, int)}
            if isinstance(declaration.get("ignore"), int):
                labels[declaration["ignore"]] = "(ignored)"
            shares = [f"{labels.get(v, v)} {v}: {n / self.pixels:.2%}" for v, n in sorted(self.counts.items())]
            yield f"label values: {', '.join(shares[:20])}{', …' if len(shares) > 20 else ''}"
        if self.changed:
            yield f"changed to the nearest class: {self.changed:,} pixels, {self.changed / self.pixels:.3%}"


def _refuse_unknown(totals: _Totals, rule: Rule, request: ConvertRequest) -> None:
    if not totals.unknown:
        return
    count = sum(totals.unknown.values())
    within = f"within a tolerance of {request.tolerance:g} " if request.tolerance else ""
    raise DataError(
        f"{request.source}: {count:,} pixels ({count / totals.pixels:.3%}) in {len(totals.odd)} masks (first: "
        f"{totals.odd[0]}) have {len(totals.unknown):,} colours that {within}mean nothing; nothing was written\n"
        f"{rule.describe(totals.unknown)}\nadd them to the table, or take the nearest class with --tolerance "
        f"{np.ceil(rule.farthest(totals.unknown)):g} or less"
    )


def _completed(meaning: _Meaning, totals: _Totals, request: ConvertRequest) -> dict[str, Any]:
    """The new `dataset.json`: what the source's says of other things is kept."""
    given = _source_json(request)
    kept = {key: value for key, value in given.items() if key not in ("colour_coded", "colours", "n_cases")}
    if meaning.declaration:
        dropped = ("labels", "ignore", "label_kind", "regions", "regions_class_order", "instance_labels", "label_note")
        kept = {key: value for key, value in kept.items() if key not in dropped}
    declaration = {"name": request.output.name, **kept, **meaning.declaration}
    labels = declaration["labels"]
    if meaning.declaration:
        table_from_names(labels, declaration.get("ignore"), declaration.get("label_kind", "classes"))
    if declaration.get("label_kind") != "instances" and len(totals.counts) < 2:
        value = next(iter(totals.counts))
        raise DataError(f"{request.source}: all masks hold the single value {value}; nothing can be learned from them")
    return declaration


def _write_case(case: FoundCase, rule: Rule, request: ConvertRequest, folder: Path) -> None:
    for number, image in enumerate(case.images):
        ending = f"_{number:04d}" if len(case.images) > 1 else ""
        place_file(image, folder / "images", case.name + ending, request.link)
    masks = [read_mask(path, request.axes) for path in case.masks]
    if rule.unchanged and _usable(masks[0]):
        place_file(case.masks[0], folder / "labels", case.name, request.link)
        return
    labels = rule.apply(masks).labels
    volume = masks[0].volume.with_array(labels[np.newaxis])
    write_volume(volume, folder / "labels" / f"{case.name}{_label_suffix(masks[0])}")


def _usable(mask: Mask) -> bool:
    """Whether the file can be the label file as it is."""
    return mask.volume.channels == 1 and suffix_of(mask.path) in WRITABLE and len(files_of(mask.path)) == 1


def _label_suffix(mask: Mask) -> str:
    return ".png" if suffix_of(mask.path) in (".png", ".jpg", ".jpeg") else default_suffix(mask.volume)


def place_file(source: Path, folder: Path, stem: str, link: bool) -> None:
    """Copy or link a file, with those that belong to it, under another stem.

    Raises:
        DataError: a header that names another file would have to be renamed.
    """
    folder.mkdir(exist_ok=True)
    files = [file for file in files_of(source) if file.is_file()]
    if len(files) > 1 and stem != case_stem(source):
        raise DataError(
            f"{source}: consists of {len(files)} files that name each other, and would have to be called {stem}\n"
            "save it as one file first"
        )
    for file in files:
        target = folder / (
            f"{stem}{file.name[len(case_stem(source)) :]}" if file.name.startswith(case_stem(source)) else file.name
        )
        if not (link and _linked(file.resolve(), target)):
            shutil.copyfile(file, target)


def _linked(file: Path, target: Path) -> bool:
    """Make a hard link; false where the file system has none, or the target lies on another one."""
    try:
        os.link(file, target)
    except OSError:
        return False
    return True


def write_declaration(path: Path, declaration: Mapping[str, Any]) -> None:
    """Write a `dataset.json`."""
    write_text(path, json.dumps(declaration, indent=1, ensure_ascii=False) + "\n")
