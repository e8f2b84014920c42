"""Scans and label maps of a case, read and checked against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from medunet.datasets.catalogue import Case, DataSet, channel_indices
from medunet.datasets.labels import LabelTable
from medunet.datasets.voxel_size import Scan
from medunet.errors import DataError
from medunet.formats.dispatch import label_axes, read_grid, read_volume
from medunet.system.blocks import copy_in_tiles
from medunet.system.scratch import Scratch
from medunet.system.wording import times_text
from medunet.volume import Grid, Volume, corners_apart, spacing_text, tolerance


def load_image(case: Case, axes: str | None = None, scratch: Scratch | None = None) -> Volume:
    """The image of a case, with its chosen channels, as one volume `(channel, *spatial)`.

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
    """The grid of a case's first image from its header, with the voxel size that `load_image` gives it.

    Raises:
        DataError: the header cannot be read, or what is declared of voxel sizes does not suffice.
    """
    grid = read_grid(case.images[0], axes=axes, frame=case.frame)
    return grid if case.size is None else case.size.given_to(grid, str(case.images[0]))


def size_notes(data: DataSet, axes: str | None = None) -> list[str]:
    """A note on images that state another voxel size than `dataset.json`; theirs is taken.

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
    """The number of channels that `load_image` gives, for a first file with `found` channels."""
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
            f"{name}: {what} and image have different shapes: image {times_text(image.shape)}, "
            f"{what} {times_text(other.shape)}\n"
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
            if found[1:] != first[1:]:
                raise DataError(
                    f"{found[0]}: has {found[1]} channel(s) and {found[2]} dimensions, {first[0]} has {first[1]} and "
                    f"{first[2]}\nall cases of a data set need the same; take the odd ones out"
                )
            for path in case.images[1:]:
                _require_same_grid(case, image, read_grid(path, axes=axes), f"channel {path.name}")
            if case.label:
                stated = label_axes(case.label, axes)
                _require_same_grid(case, image, read_grid(case.label, axes=stated), "label")
        except DataError as error:
            problems.append(str(error))
    refuse(problems, "cases")


def refuse(problems: Sequence[str], what: str) -> None:
    """Refuse a data set because of the first problem, with the number of the others.

    Raises:
        DataError: there is a problem.
    """
    if problems:
        more = f"\n… and {len(problems) - 1} more {what} like this" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
