"""`medunet convert`: other forms of data sets become medunet's, and label maps become colour masks again.

    folder -> which mask belongs to which image -> what the masks' pixels mean -> images/, labels/, dataset.json

Every mask is read and checked before anything is written; then the new folder is written aside and renamed as a whole.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medunet.data.catalogue import Case, check_pairs
from medunet.data.colours import Decoded
from medunet.data.formats import (
    WRITABLE,
    case_stem,
    default_suffix,
    files_of,
    is_zarr,
    read_grid,
    suffix_of,
    write_volume,
)
from medunet.data.labels import table_from_names
from medunet.data.layouts import FoundCase, Layout, count_by_suffix, find_layout
from medunet.data.maskrules import MatchingRule, Rule
from medunet.data.masks import Mask
from medunet.data.structurefolders import case_folders, find_structures
from medunet.data.structures import are_label_maps, check_masks, has_structure_channels
from medunet.errors import ConfigError, DataError, OutputError
from medunet.files import check_new_folder, folder_written_aside, write_text
from medunet.maskmeaning import ConvertRequest, Meaning, masks_of, meaning_of, progress, source_json

Say = Callable[[str], None]
_SHOWN = 10
_PORTION = 2**20
"""Bytes that are copied at a time."""

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Why a hard link cannot be made where a copy can: another disk, or a file system without links or with no more."""


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
    layout = _layout_of(request)
    _say_layout(layout, request, say)
    _check_cases(layout, request)
    meaning = meaning_of(layout, request)
    say(f"masks: {meaning.words}")
    for note in meaning.notes:
        say(f"note: {note}")
    asked = request.objects or request.ignore or request.foreground
    if layout.own and meaning.rule.unchanged and not asked:
        raise DataError(f"{request.source}: is a data set already, with label maps; medunet reads it as it is")
    totals = _Totals()
    for case in progress(layout.cases):
        totals.add(case, meaning.rule.apply(masks_of(case, layout, request)))
    _refuse_unknown(totals, meaning.rule, request)
    declaration = _completed(meaning, totals, layout, request)
    for line in totals.lines(declaration):
        say(line)
    if request.dry_run:
        say(f"dry run: nothing written; without --dry-run, {request.output} would hold {len(layout.cases)} cases")
        return
    with folder_written_aside(request.output) as aside:
        for case in progress(layout.cases):
            _write_case(case, masks_of(case, layout, request), meaning.rule, request, aside)
        write_declaration(aside / "dataset.json", declaration)
    say(f"wrote {request.output}: {len(layout.cases)} cases, images/, labels/ and dataset.json")


def _layout_of(request: ConvertRequest) -> Layout:
    """The layout; of masks that hold objects only what `find_layout` knows, as files are no structures then."""
    if request.objects is not None:
        return find_layout(request.source, request.masks)
    found = find_structures(request.source, request.masks)
    if found is not None:
        return _of_folders(found, request)
    layout = find_layout(request.source, request.masks)
    layout = replace(layout, passed_over=_passed_over(layout, request))
    plain = request.colours is None and all(len(case.masks) == 1 for case in layout.cases)
    if plain and not layout.objects and _structure_channels(layout, request):
        return replace(layout, form=f"{layout.form}, one channel per structure", structures=True)
    return layout


def _passed_over(layout: Layout, request: ConvertRequest) -> tuple[Path, ...]:
    """Folders that look like cases and of which the layout uses no file; none where it was said which files count."""
    if request.masks is not None:
        return ()
    used = {path for case in layout.cases for file in (*case.images, *case.masks) for path in file.parents}
    return tuple(folder for folder in case_folders(request.source) if folder not in used)


def _of_folders(found: Layout, request: ConvertRequest) -> Layout:
    """Masks in a folder per image: a label map in each, a file with a channel per structure, or a mask for each."""
    if _structure_channels(found, request):
        return replace(found, form=f"{found.form}, one channel per structure", structures=True)
    if not found.structures or are_label_maps(found.cases, request.axes):
        return replace(found, form=f"{found.form}, one label map each", structures=False)
    return replace(found, form=f"{found.form}, one mask per structure")


def _structure_channels(layout: Layout, request: ConvertRequest) -> bool:
    """Whether masks have a channel for each structure.

    Raises:
        DataError: some have, others have not; or a header cannot be read.
    """
    masks = [case.masks[0] for case in layout.cases]
    found = [len(case.masks) == 1 and has_structure_channels(case.masks[0], request.axes) for case in layout.cases]
    if any(found) and not all(found):
        several, one = masks[found.index(True)], masks[found.index(False)]
        raise DataError(
            f"{request.source}: in {sum(found)} of {len(masks)} cases the mask has a channel for each structure "
            f"({_relative(several, request.source)}), in others not ({_relative(one, request.source)})\n"
            "make all of one kind, or move one kind away"
        )
    return all(found)


def _check_options(request: ConvertRequest) -> None:
    if request.colours is not None and request.objects is not None:
        raise ConfigError(
            "--colours says that colours are classes, --instances that they are objects; give one of both"
        )
    if request.ignore is not None and request.objects is not None:
        raise ConfigError("--ignore names a class, but --instances says that masks hold objects; give one of both")
    if not 0 <= request.tolerance <= 255:
        raise ConfigError(f"--tolerance {request.tolerance:g}: expected a distance between colours, 0 to 255")


def _say_layout(layout: Layout, request: ConvertRequest, say: Say) -> None:
    say(f"{request.source}: {layout.form}, {len(layout.cases)} pair{'s' * (len(layout.cases) != 1)}")
    if layout.channels:
        say(
            f"channels, in the order of their names: {', '.join(f'{n} {one}' for n, one in enumerate(layout.channels))}"
        )
    shown = layout.cases if request.dry_run else layout.cases[:_SHOWN]
    for case in shown:
        images = _relative(case.images[0], request.source) + "".join(f" + {path.name}" for path in case.images[1:])
        masks = _relative(case.masks[0], request.source)
        masks += f" and {len(case.masks) - 1} more" if len(case.masks) > 1 else ""
        say(f"  {images}  <-  {masks}")
    if len(layout.cases) > len(shown):
        say(f"  … and {len(layout.cases) - len(shown)} more (all with --dry-run)")
    for what, paths in (
        ("without a mask", layout.alone),
        ("without an image", layout.orphans),
        ("neither a known scan nor the mask", layout.unused),
    ):
        if paths:
            names = ", ".join(_relative(path, request.source) for path in paths[:_SHOWN])
            say(f"left out, {what}: {len(paths)}: {names}{', …' if len(paths) > _SHOWN else ''}")
    if layout.passed_over:
        names = ", ".join(path.name for path in layout.passed_over[:_SHOWN])
        more = ", …" if len(layout.passed_over) > _SHOWN else ""
        say(f"left out, folders with an image and masks of their own: {len(layout.passed_over)}: {names}{more}")
    if layout.others:
        say(f"left out, no scans: {count_by_suffix(layout.others)}")


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _check_cases(layout: Layout, request: ConvertRequest) -> None:
    """All that names and headers can tell, of every case."""
    if not layout.objects and not layout.structures and request.objects is None:
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
    if layout.channels:
        _check_channels(layout, request)
    # Named after the mask where there may be a hundred. The others need no image, whose header may be slow to read.
    named = ((_relative(case.masks[0], request.source) if layout.structures else case.name) for case in layout.cases)
    check_pairs(
        (Case(name, case.images, case.masks[0]) for name, case in zip(named, layout.cases, strict=True)), request.axes
    )
    if layout.structures:
        check_masks([case.masks for case in layout.cases], request.axes)


def _check_channels(layout: Layout, request: ConvertRequest) -> None:
    """Files that are a channel each have one; a data set would count those of all files otherwise."""
    for case in layout.cases:
        for path, name in zip(case.images, layout.channels, strict=True):
            found = read_grid(path, axes=request.axes).channels
            if found != 1:
                raise DataError(
                    f"{path}: has {found} channels (or time points); expected one, {name}\n"
                    "save the one that is meant as a file of its own in its place"
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
    assert isinstance(rule, MatchingRule), "others have a label value for whatever they find"
    count = sum(totals.unknown.values())
    within = f"within a tolerance of {request.tolerance:g} " if request.tolerance else ""
    raise DataError(
        f"{request.source}: {count:,} pixels ({count / totals.pixels:.3%}) in {len(totals.odd)} masks (first: "
        f"{totals.odd[0]}) have {len(totals.unknown):,} colours that {within}mean nothing; nothing was written\n"
        f"{rule.describe(totals.unknown)}\nadd them to the table, or take the nearest class with --tolerance "
        f"{np.ceil(rule.farthest(totals.unknown)):g} or less"
    )


def _completed(meaning: Meaning, totals: _Totals, layout: Layout, request: ConvertRequest) -> dict[str, Any]:
    """The new `dataset.json`: what the source's says of other things is kept."""
    given = source_json(request)
    kept = {key: value for key, value in given.items() if key not in ("colour_coded", "colours", "n_cases")}
    if meaning.declaration:
        dropped = ("labels", "ignore", "label_kind", "regions", "regions_class_order", "instance_labels", "label_note")
        kept = {key: value for key, value in kept.items() if key not in dropped}
    if layout.channels:
        kept = {key: value for key, value in kept.items() if key not in ("channel_names", "modality")}
        kept["channels"] = list(layout.channels)
    declaration = {"name": request.output.name, **kept, **meaning.declaration}
    labels = declaration["labels"]
    if meaning.declaration:
        table_from_names(labels, declaration.get("ignore"), declaration.get("label_kind", "classes"))
    plain = isinstance(labels, dict) and all(type(value) is int for value in labels.values())
    unnamed = set(totals.counts) - {*labels.values(), declaration.get("ignore")} if plain else set()
    if unnamed and declaration.get("label_kind") != "instances":
        listed = ", ".join(f"{value} ({totals.counts[value]:,} px)" for value in sorted(unnamed)[:8])
        raise DataError(
            f"{request.source}: masks hold values that dataset.json does not name: {listed}\n"
            "add them to its labels, or correct the masks"
        )
    if declaration.get("label_kind") != "instances" and len(totals.counts) < 2:
        value = next(iter(totals.counts))
        raise DataError(f"{request.source}: all masks hold the single value {value}; nothing can be learned from them")
    return declaration


def _write_case(case: FoundCase, masks: Sequence[Mask], rule: Rule, request: ConvertRequest, folder: Path) -> None:
    for number, image in enumerate(case.images):
        ending = f"_{number:04d}" if len(case.images) > 1 else ""
        place_file(image, folder / "images", case.name + ending, request.link)
    if rule.unchanged and _usable(masks[0]):
        place_file(case.masks[0], folder / "labels", case.name, request.link)
        return
    labels = rule.apply(masks).labels
    volume = masks[0].volume.with_array(labels[np.newaxis])
    write_volume(volume, folder / "labels" / f"{case.name}{_label_suffix(masks[0])}", labels=True)


def _usable(mask: Mask) -> bool:
    """Whether the file can be the label file as it is."""
    return mask.volume.channels == 1 and suffix_of(mask.path) in WRITABLE and len(files_of(mask.path)) == 1


def _label_suffix(mask: Mask) -> str:
    return ".png" if suffix_of(mask.path) in (".png", ".jpg", ".jpeg") else default_suffix(mask.volume)


def place_file(source: Path, folder: Path, stem: str, link: bool) -> None:
    """Copy or link a scan, with the files that belong to it, under another stem.

    A scan that is a folder stays one, `folder/stem/`: slices of several DICOM series in one folder would be one series.

    Raises:
        DataError: a header that names another file would have to be renamed.
        OutputError: the target exists.
    """
    folder.mkdir(exist_ok=True)
    if source.is_dir():
        _place_folder(source, folder / f"{stem}{_folder_suffix(source)}", link)
        return
    files = [file for file in files_of(source) if file.is_file()]
    if len(files) == 1:
        _place(source, folder / f"{stem}{source.name[len(case_stem(source)) :]}", link)
        return
    if stem != case_stem(source) or any(file.parent != source.parent for file in files):
        raise DataError(
            f"{source}: consists of {len(files)} files that name each other, and would have to be called {stem}\n"
            "save it as one file first"
        )
    for file in files:
        _place(file, folder / file.name, link)


def _place_folder(source: Path, target: Path, link: bool) -> None:
    """All of a Zarr, of which `files_of` names only what is read; of a DICOM series its slices."""
    files = _files_under(source) if is_zarr(source) else files_of(source)
    _free(target).mkdir()
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        _place(file, place, link)


def _folder_suffix(source: Path) -> str:
    return (suffix_of(source) or ".zarr") if is_zarr(source) else ""


def _files_under(folder: Path) -> list[Path]:
    return [Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names]


def _place(file: Path, target: Path, link: bool) -> None:
    """Link a file where that is wanted and possible, or copy it; never onto a file that is there.

    That matters most for links: writing to a target that is linked would change the user's own file.
    """
    if link and _linked(file.resolve(), _free(target)):
        return
    with file.open("rb") as stream, _free(target).open("xb") as copy:  # x: fails where a file is
        shutil.copyfileobj(stream, copy, _PORTION)


def _free(target: Path) -> Path:
    if target.exists() or target.is_symlink():
        raise OutputError(
            f"{target.parent.name}/{target.name}: two files would be written there; nothing was written\n"
            "give them different names"
        )
    return target


def _linked(file: Path, target: Path) -> bool:
    """Make a hard link; false where the file system has none, or the target lies on another one.

    Raises:
        OSError: for any other reason.
    """
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def write_declaration(path: Path, declaration: Mapping[str, Any]) -> None:
    """Write a `dataset.json`."""
    write_text(path, json.dumps(declaration, indent=1, ensure_ascii=False) + "\n")
