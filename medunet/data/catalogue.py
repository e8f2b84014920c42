"""Data sets: which files belong to which case, what the labels mean, and how cases are split.

Two layouts are read: `images/` with `labels/`, and the `imagesTr/` with `labelsTr/` of the Medical Segmentation
Decathlon and nnU-Net. Several channels are `CASE_0000.ext`, `CASE_0001.ext`, … or one file with a channel axis.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medunet.data.annotation import (
    EVERYTHING,
    NOTHING_SAID,
    Annotation,
    AnnotationSettings,
    declared_annotation,
)
from medunet.data.blocks import copy_in_tiles
from medunet.data.channels import Channel, channel_indices, chosen_names
from medunet.data.declaration import channel_names, label_table, read_declaration, says_stack
from medunet.data.formats import READABLE, case_stem, is_readable, label_axes, read_grid, read_volume, stack_files
from medunet.data.labels import LabelTable, table_from_values
from medunet.data.samegrid import corners_apart, spacing_text, tolerance
from medunet.data.scratch import Scratch
from medunet.data.volume import Grid, Volume
from medunet.data.voxelsize import Scan, VoxelSize, declared_size
from medunet.errors import DataError

_LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))
_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Case:
    """The files of one case: one image file per channel (or one with a channel axis) and its label file, if any.

    Attributes:
        annotation: what of the label file was annotated; the rest is IGNORE.
        channels: which channels are taken, in this order; empty takes all.
        frame: which time point is read, counted from 1.
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
        annotation, size: what `dataset.json` declares of them; the cases know it already.
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
        channels: which channels are taken, by index or by name, declared or the files' own; empty takes all.

    Raises:
        DataError: no known layout, no image, a label without an image, or a `dataset.json` that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a data set with images/ and labels/ (or imagesTr/, labelsTr/)")
    images, labels = _layout(folder)
    declared = read_declaration(folder / "dataset.json")
    if says_stack(declared, folder / "dataset.json"):
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
    names = channel_names(declared)
    known = {name.casefold(): number for number, name in enumerate(names)}
    wanted = tuple(
        known.get(channel.casefold(), channel) if isinstance(channel, str) else channel for channel in channels
    )
    size = declared_size(declared, str(folder / "dataset.json"))
    found = DataSet(
        folder=folder,
        name=str(declared.get("name") or folder.resolve().name),
        cases=tuple(replace(case, channels=wanted, size=size) for case in cases),
        channels=chosen_names(wanted, names) if wanted else names,
        labels=label_table(declared, folder / "dataset.json"),
        annotation=declared_annotation(declared, str(folder / "dataset.json")),
        size=size,
    )
    return annotated(found, NOTHING_SAID)


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
    for images, labels in _LAYOUTS:
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


def load_image(case: Case, axes: str | None = None, scratch: Scratch | None = None) -> Volume:
    """The channels of a case that are taken as one volume `(channel, *spatial)`.

    Args:
        scratch: holds arrays that are large.

    Raises:
        DataError: the channel files do not share one grid, or a channel is not there.
        OutputError: `scratch` has no room.
    """
    paths = case.images
    if len(paths) > 1 and case.channels:
        paths = tuple(paths[n] for n in channel_indices(case.channels, (), len(paths), case.name))
    volumes = [read_volume(path, axes=axes, frame=case.frame, scratch=scratch) for path in paths]
    first = volumes[0] if case.size is None else case.size.given_to(volumes[0])
    for other in volumes[1:]:
        _require_same_grid(case, first, other, "channel")
    arrays = [volume.array for volume in volumes]
    if len(case.images) == 1:
        if not case.channels:
            return first
        names = read_grid(paths[0], axes=axes, frame=case.frame).channel_names
        chosen = channel_indices(case.channels, names, first.channels, case.name)
        arrays = [first.array[n : n + 1] for n in chosen]
    return first.with_array(np.concatenate(arrays) if scratch is None else _joined(arrays, scratch))


def image_grid(case: Case, axes: str | None = None) -> Grid:
    """What the header of a case's first image says, with the voxel size that `load_image` gives it.

    Raises:
        DataError: the header cannot be read, or what is declared of voxel sizes does not suffice.
    """
    grid = read_grid(case.images[0], axes=axes, frame=case.frame)
    return grid if case.size is None else case.size.given_to(grid, str(case.images[0]))


def size_notes(data: DataSet, axes: str | None = None) -> list[str]:
    """What there is to say of images that state another voxel size than `dataset.json`; theirs is taken.

    Raises:
        DataError: a header cannot be read.
    """
    if data.size is None:
        return []
    grids = {case.name: read_grid(case.images[0], axes=axes) for case in data.cases}
    other = [name for name, grid in grids.items() if data.size.contradicts(grid)]
    if not other:
        return []
    first = grids[other[0]]
    stated = "×".join(f"{length:.4g}" for length in first.spacing)
    return [
        f"NOTE: {len(other)} of {len(grids)} images state another voxel size than dataset.json ({data.size}): "
        f"{other[0]} has {stated} {first.unit}; what the files state is taken"
    ]


def channel_count(case: Case, found: int) -> int:
    """How many channels `load_image` gives, where the case's first file has `found`."""
    return len(case.channels) or max(found, len(case.images))


def by_model_channels(case: Case, names: Sequence[str], axes: str | None = None) -> Case:
    """The case with its channels chosen by a model's `names`, if its file names them all, whatever else it holds.

    As it is where channels were chosen already, come one per file, or cannot be told by name.

    Raises:
        DataError: the header cannot be read.
    """
    if case.channels or len(case.images) > 1 or not names:
        return case
    own = [name.casefold() for name in read_grid(case.images[0], axes=axes, frame=case.frame).channel_names]
    found = all(own.count(name.casefold()) == 1 for name in names)
    return replace(case, channels=tuple(names)) if found and own != [name.casefold() for name in names] else case


def _joined(arrays: Sequence[np.ndarray], scratch: Scratch) -> np.ndarray:
    """`np.concatenate`, part by part; in memory channels follow each other, and x runs, as in most files."""
    spatial = arrays[0].shape[1:]
    channels = sum(len(array) for array in arrays)
    joined = scratch((channels, *spatial[::-1]), np.result_type(*arrays)).transpose(0, *range(len(spatial), 0, -1))
    start = 0
    for array in arrays:
        copy_in_tiles(joined[start : start + len(array)], array)
        start += len(array)
    return joined


def load_label(case: Case, table: LabelTable, image: Volume, axes: str | None = None) -> np.ndarray:
    """The label map of a case as class indices `(1, *spatial)` uint8, checked against the image's grid.

    What was not annotated is IGNORE.
    """
    indices = table.to_indices(load_label_values(case, image, axes), str(case.label))
    return case.annotation.marked(indices, table, case.name)


def load_label_values(case: Case, image: Volume, axes: str | None = None) -> np.ndarray:
    """The label map of a case as its file has it, `(1, *spatial)`, checked against the image's grid."""
    assert case.label is not None
    label = read_volume(case.label, axes=label_axes(case.label, axes))
    if label.channels != 1:
        raise DataError(
            f"{case.label}: a label map needs one channel, found {label.channels}\n"
            "masks in colours, or with a channel for each structure, become label maps with: medunet convert "
            f"{case.label.parent.parent} -o NEW_FOLDER (--colours TABLE)"
        )
    _require_same_grid(case, image, label, "label")
    return label.array


def _require_same_grid(case: Case, image: Scan, other: Scan, what: str) -> None:
    """Compare a label or a further channel, as its file has it, with an image that has its voxel size already."""
    name = case.name
    other = other if case.size is None else case.size.completing(other)
    if image.shape != other.shape:
        raise DataError(
            f"{name}: {what} and image have different shapes: image {_times(image)}, {what} {_times(other)}\n"
            f"make the {what} on the image's own grid"
        )
    distance = corners_apart(image, other)
    if distance > tolerance(image):
        raise DataError(
            f"{name}: {what} and image lie on different grids: corners differ by up to {distance:.4g} {image.unit} "
            f"(allowed {tolerance(image):.3g})\n"
            f"image spacing {spacing_text(image)}, {what} spacing {spacing_text(other)}; "
            f"resample the {what} onto the image"
        )


def _times(scan: Volume | Grid) -> str:
    return "×".join(str(n) for n in scan.shape)


def check_pairs(cases: Iterable[Case], axes: str | None = None) -> None:
    """Compare the grids of images and labels, and all cases' channels, by headers alone, before any work starts.

    Raises:
        DataError: naming every case that is wrong (the first three in full).
    """
    problems = []
    first: tuple[str, int, int] | None = None
    for case in cases:
        try:
            image = image_grid(case, axes)
            found = (case.name, channel_count(case, image.channels), len(image.shape))
            first = first or found
            _require_alike(first, found)
            for path in case.images[1:]:
                _require_same_grid(case, image, read_grid(path, axes=axes), f"channel {path.name}")
            if case.label:
                stated = label_axes(case.label, axes)
                _require_same_grid(case, image, read_grid(case.label, axes=stated), "label")
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f"\n… and {len(problems) - 1} more cases like this" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _require_alike(first: tuple[str, int, int], other: tuple[str, int, int]) -> None:
    if other[1:] != first[1:]:
        raise DataError(
            f"{other[0]}: has {other[1]} channel(s) and {other[2]} dimensions, {first[0]} has {first[1]} and {first[2]}"
            "\nall cases of a data set need the same; take the odd ones out"
        )
