"""Catalogue of a data set: the files of each case, and what its labels mean.

Two layouts are read: `images/` with `labels/`, and the `imagesTr/` with `labelsTr/` of the Medical Segmentation
Decathlon and nnU-Net. Several channels are `CASE_0000.ext`, `CASE_0001.ext`, … or one file with a channel axis.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from medunet.datasets.annotation import EVERYTHING, NOTHING_SAID, Annotation, AnnotationSettings
from medunet.datasets.declaration import read_declaration
from medunet.datasets.labels import LabelTable, table_from_values
from medunet.datasets.voxel_size import VoxelSize
from medunet.errors import DataError
from medunet.formats.dispatch import READABLE, case_stem, is_readable, label_axes, read_volume, stack_files

LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))
"""Folders of images and of labels."""
Channel: TypeAlias = int | str
"""An index, counted from 0 as in `CASE_0000`, or a name."""
_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Case:
    """The files of one case: one image file per channel (or one with a channel axis) and its label file, if any.

    Attributes:
        annotation: the annotated part of the label file; the rest is IGNORE.
        channels: the channels that are taken, in this order; empty takes all.
        frame: the time point that is read, counted from 1.
        size: the voxel size that its images have where they state none.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotation: Annotation = EVERYTHING
    channels: tuple[Channel, ...] = ()
    frame: int | None = None
    size: VoxelSize | None = None


@dataclass(frozen=True)
class DataSet:
    """A folder of cases.

    Attributes:
        channels: one name per channel; empty names mean that nothing was declared.
        labels: the label table, None where nothing was declared and nothing was looked at yet.
        annotation, size: as `dataset.json` declares them; the cases know them already.
    """

    folder: Path
    name: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: LabelTable | None
    annotation: AnnotationSettings = NOTHING_SAID
    size: VoxelSize | None = None

    @property
    def labelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.label is not None)


def read_data_set(folder: Path, channels: Sequence[Channel] = ()) -> DataSet:
    """Read a data set's folder and its `dataset.json`, without opening a scan.

    Args:
        channels: the channels that are taken, by index or by name, declared or the files' own; empty takes all.

    Raises:
        DataError: no known layout, no image, a label without an image, or a `dataset.json` that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a data set with images/ and labels/ (or imagesTr/, labelsTr/)")
    images, labels = _layout(folder)
    declared = read_declaration(folder / "dataset.json")
    cases = _cases(folder, images, labels, declared.stack)
    names, size = declared.channels, declared.size
    known = {name.casefold(): number for number, name in enumerate(names)}
    # By index where `dataset.json` declares their name.
    wanted = tuple(known.get(one.casefold(), one) if isinstance(one, str) else one for one in channels)
    found = DataSet(
        folder=folder,
        name=str(declared.content.get("name") or folder.resolve().name),
        cases=tuple(replace(case, channels=wanted, size=size) for case in cases),
        channels=chosen_names(wanted, names) if wanted else names,
        labels=declared.labels,
        annotation=declared.annotation,
        size=size,
    )
    return annotated(found, NOTHING_SAID)


def _cases(folder: Path, images: Path, labels: Path, stack: bool) -> list[Case]:
    """The cases of a data set.

    Raises:
        DataError: no image, or a label without an image.
    """
    if stack:
        cases, label_files = _stack_cases(folder, images, labels)
    else:
        label_files = by_stem(scan_files(labels)) if labels.is_dir() else {}
        cases = group_cases(scan_files(images), label_files)
    if not cases:
        raise DataError(
            f"{images}: holds no scan that medunet reads\nexpected files that end in {', '.join(READABLE)}, "
            "or one folder per DICOM series"
        )
    orphans = sorted(set(label_files) - {case.name for case in cases})
    if orphans:
        raise DataError(
            f"{labels}: {len(orphans)} label file(s) without an image of the same name, first: {orphans[0]}\n"
            f"images are named {', '.join(case.name for case in cases[:3])}, …; rename one or the other"
        )
    return cases


def channel_indices(wanted: Sequence[Channel], names: Sequence[str], count: int, where: str) -> tuple[int, ...]:
    """The indices of the wanted channels among `count`; names are compared without regard to case.

    Args:
        names: of the channels; empty if nothing says them.
        where: the file or case, for messages.

    Raises:
        DataError: an index that is too large, or a name that no channel has, or several.
    """
    indices, known = [], ", ".join(f"{number} {name!r}" for number, name in enumerate(names)) or "without names"
    for channel in wanted:
        if isinstance(channel, int):
            if channel >= count:
                raise DataError(f"{where}: has no channel {channel}: it has {count} ({known}), counted from 0")
            indices.append(channel)
            continue
        found = [number for number, name in enumerate(names) if name.casefold() == channel.casefold()]
        if len(found) != 1:
            raise DataError(
                f"{where}: {len(found) or 'no'} channel{'s are' if found else ' is'} called {channel!r}: it has "
                f"{count} ({known})\nchoose by index, counted from 0, or name the channels in dataset.json"
            )
        indices += found
    return tuple(indices)


def chosen_names(wanted: Sequence[Channel], declared: Sequence[str]) -> tuple[str, ...]:
    """The names of the wanted channels; empty if one of them is an index that no declaration names."""
    known = [channel if isinstance(channel, str) else "".join(declared[channel : channel + 1]) for channel in wanted]
    return tuple(known) if all(known) else ()


def annotated(data: DataSet, settings: AnnotationSettings) -> DataSet:
    """The data set with cases that know what of them was annotated, by `dataset.json` and by these settings.

    Raises:
        DataError: the name of a case that there is not.
    """
    said = settings.over(data.annotation)
    try:
        said.check_names([case.name for case in data.cases])
    except DataError as error:
        raise DataError(f"{data.folder}: {error}") from error
    return replace(data, cases=tuple(replace(case, annotation=said.of(case.name)) for case in data.cases))


def _layout(folder: Path) -> tuple[Path, Path]:
    for images, labels in LAYOUTS:
        if (folder / images).is_dir():
            return folder / images, folder / labels
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    raise DataError(
        f"{folder}: is no data set: expected images/ and labels/, or imagesTr/ and labelsTr/; found {found}"
    )


def _stack_cases(folder: Path, images: Path, labels: Path) -> tuple[list[Case], dict[str, Path]]:
    """Every folder of sections is a case; without such folders, the sections in images/ are the only one.

    A label is a folder of sections too, or a file of three dimensions.
    """
    found = stack_folders(images)
    if not found:
        name = folder.resolve().name
        label = labels if labels.is_dir() and stack_files(labels) else None
        return ([Case(name, (images,), label)] if stack_files(images) else []), {}
    label_files = by_stem([*stack_folders(labels), *scan_files(labels)]) if labels.is_dir() else {}
    return [Case(path.name, (path,), label_files.get(path.name)) for path in found], label_files


def stack_folders(folder: Path) -> list[Path]:
    """The folders of sections directly inside a folder, sorted."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[:1] != "." and stack_files(path)]


def scan_files(folder: Path) -> list[Path]:
    """The readable scans directly inside a folder, sorted; OME-Zarr and DICOM series are subfolders.

    What is hidden is skipped.
    """
    return [path for path in sorted(folder.iterdir()) if is_readable(path)]


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        stem = case_stem(path)
        if stem in stems:
            raise DataError(
                f"{path}: has the same name as {stems[stem].name}; a case needs one file, remove one of them"
            )
        stems[stem] = path
    return stems


def group_cases(images: Iterable[Path], labels: Mapping[str, Path]) -> list[Case]:
    """Group image files into cases.

    `NAME_0000`, `NAME_0001`, … are channels of NAME, unless a label carries the full name. Files named like this
    without any label are channels only if all files are.

    Raises:
        DataError: numbers with a gap, or two files of one name or for one channel.
    """
    stems = by_stem(images)
    matches = {stem: _CHANNEL_SUFFIX.match(stem) for stem in stems}
    numbered = bool(stems) and all(matches.values())
    grouped: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, path in stems.items():
        match = matches[stem]
        name, channel = stem, 0
        if match and stem not in labels and (match["case"] in labels or numbered):
            name, channel = match["case"], int(match["channel"])
        other = grouped[name].setdefault(channel, path)
        if other is not path:
            raise DataError(
                f"{other} and {path.name}: both are channel {channel} of the case {name}\n"
                "a case has one file, or files numbered _0000, _0001, …; take one of the two away, or rename it"
            )
    for name, channels in grouped.items():
        if sorted(channels) != list(range(len(channels))):
            raise DataError(
                f"{name}: channels must be numbered _0000, _0001, … without gaps, found "
                + ", ".join(channels[c].name for c in sorted(channels))
            )
    return [
        Case(name, tuple(files[c] for c in sorted(files)), labels.get(name)) for name, files in sorted(grouped.items())
    ]


def with_labels(data: DataSet, cases: Iterable[Case], axes: str | None = None) -> LabelTable:
    """The declared label table or, where nothing was declared, one made of all values in the label files.

    Raises:
        DataError: no declaration and more different values than a network can have classes.
    """
    if data.labels is not None:
        return data.labels
    values: set[int] = set()
    for case in cases:
        assert case.label is not None
        found = np.unique(read_volume(case.label, axes=label_axes(case.label, axes)).array)
        if not np.isfinite(found).all():
            raise DataError(f"{case.label}: a label map must not hold NaN or infinite values")
        if not np.array_equal(found, np.rint(found)):
            raise DataError(
                f"{case.label}: label values must be whole numbers, found {found[found != np.rint(found)][0]:g}"
            )
        values.update(int(v) for v in found)
        if len(values) >= 255:
            raise DataError(
                f"{case.label}: more than 254 different label values; if they are object ids, say "
                '"label_kind": "instances" in dataset.json'
            )
    if len(values) < 2:
        raise DataError(
            f"{data.folder}: all label files hold the single value {values or 'none'}; nothing can be learned"
        )
    return table_from_values(sorted(values))
