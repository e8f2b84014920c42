"""Cases on the network's grid, ready to cut patches from: in memory while they fit, else mapped from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunet.data.catalogue import Case, load_image, load_label
from medunet.data.formats import read_grid
from medunet.data.labels import IGNORE, LabelTable
from medunet.data.patches import PreparedCase, find_foreground
from medunet.data.preprocess import PreprocessSettings, preprocess, preprocess_label
from medunet.data.splits import Fold
from medunet.errors import DataError


@dataclass(frozen=True)
class Preparation:
    """How cases are prepared.

    Attributes:
        folder: where arrays go that do not fit into `memory` bytes.
    """

    settings: PreprocessSettings
    labels: LabelTable
    axes: str | None
    folder: Path
    memory: int


def prepare_cases(
    cases: Sequence[Case], how: Preparation, step: Callable[[str], None] = lambda _: None
) -> list[PreparedCase]:
    """Read, check and preprocess cases; `step` is called with each case's name.

    Raises:
        DataError: naming the case that is wrong.
    """
    mapped = sum(_bytes(case, how) for case in cases) > how.memory
    prepared = []
    for case in cases:
        image = load_image(case, how.axes)
        label = load_label(case, how.labels, image, how.axes)
        array, undo = preprocess(image, how.settings)
        indices = preprocess_label(label, undo)
        if mapped:
            array = _mapped(how.folder / f"{case.name}.image.npy", array)
            indices = _mapped(how.folder / f"{case.name}.label.npy", indices)
        prepared.append(PreparedCase(case.name, array, indices, find_foreground(indices, how.labels.foreground)))
        step(case.name)
    return prepared


def teaching_notes(cases: Sequence[PreparedCase], labels: LabelTable) -> list[str]:
    """What training cases cannot teach, one line each; nothing where every label and region is in one of them.

    A label that a fold happens to lack must not end a training (Dice and cross-entropy teach it to be absent), but
    nobody should find that out from scores of 0.
    """
    seen = {index for case in cases for index, voxels in case.foreground.items() if len(voxels)}
    missing = [name for name, indices in labels.scored.items() if seen.isdisjoint(indices)]
    notes = []
    if missing:
        what = "region" if labels.regions else "label"
        notes.append(
            f"NOTE: no training case holds the {what}{'s' if len(missing) > 1 else ''} {_few(missing)}, so it cannot "
            "be learned and will not be found; train on cases that hold it, or take it out of dataset.json"
        )
    if labels.unlearned:
        notes.append(f"NOTE: no region holds {_few(labels.unlearned)}; its voxels are learned as background")
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:8], f"… ({len(names)} in all)"] if len(names) > 8 else names)


def _bytes(case: Case, how: Preparation) -> float:
    """Of a case in memory: float32 channels and one byte of label per voxel, after resampling."""
    grid = read_grid(case.images[0], axes=how.axes)
    voxels = float(np.prod(grid.shape))
    if how.settings.spacing is not None and grid.unit != "pixel":
        voxels *= float(np.prod(grid.spacing) / np.prod(how.settings.spacing))
    return voxels * (4 * max(grid.channels, len(case.images)) + 1)


def _mapped(path: Path, array: NDArray) -> NDArray:
    path.parent.mkdir(parents=True, exist_ok=True)
    target = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=array.shape)
    target[:] = array
    target.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def held_out_mask(shape: tuple[int, ...], fold: Fold) -> NDArray[np.bool_]:
    """Where a single scan of this shape is held out: one of as many parts along its longest axis as there are folds.

    Fold 0 is the last part, fold 1 the one before it; of five, each is a fifth.

    Raises:
        DataError: the scan is shorter than there are folds.
    """
    axis = int(np.argmax(shape))
    length = shape[axis]
    if length < fold.count:
        raise DataError(
            f"the only scan has {length} voxels along its longest axis, from which {fold.count} parts cannot be cut\n"
            "give a smaller data.folds"
        )
    mask = np.zeros(shape, dtype=bool)
    first, last = (length - round(length * (fold.number + n) / fold.count) for n in (1, 0))
    np.moveaxis(mask, axis, 0)[first:last] = True
    return mask


def split_inside(case: PreparedCase, labels: LabelTable, fold: Fold) -> tuple[PreparedCase, PreparedCase]:
    """One scan as a training and a validation case, which see all of the image but not each other's labels.

    The other's labels are IGNORE.
    """
    held = held_out_mask(case.label.shape[1:], fold)[None]
    learned, validated = np.where(held, IGNORE, case.label), np.where(held, case.label, IGNORE)
    return _relabelled(case, learned.astype(np.uint8), labels), _relabelled(case, validated.astype(np.uint8), labels)


def _relabelled(case: PreparedCase, label: NDArray[np.uint8], labels: LabelTable) -> PreparedCase:
    return PreparedCase(case.name, case.image, label, find_foreground(label, labels.foreground))
