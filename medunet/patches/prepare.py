"""Preparation of cases: on the network's grid, in memory while they fit, else mapped from files.

They come from a cache, where there is one, or are read and preprocessed; either way they are the same to the last bit.
Also what is asked of prepared cases before a training: class frequencies, missing labels, a part to hold out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.catalogue import Case
from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.loading import channel_count, image_grid
from medunet.datasets.splits import Fold
from medunet.errors import DataError, OutputError
from medunet.instances.settings import InstanceSettings
from medunet.instances.weightmap import WeightMapSettings
from medunet.patches.cache import Cache, case_key, entry_size, write_array
from medunet.patches.dataset import PreparedCase, find_foreground
from medunet.patches.steps import preparation_steps
from medunet.transforms.preprocess import PreprocessSettings, target_shape

Say = Callable[[str], None]

_ENOUGH = 2**20
"""Voxels of a case that shares are taken from; more would make the start of a training on large scans slow."""


@dataclass(frozen=True)
class Preparation:
    """Settings of the preparation of cases.

    Attributes:
        labels: the data set's own table, of what its label files hold.
        folder: where arrays go that do not fit into `memory` bytes and are not in a cache.
        cache: where prepared cases are looked for and kept; None prepares all anew.
        instances: what is made of object ids; None where label files hold classes.
        weight_map: how voxels between objects are weighed; None where they are not.
    """

    settings: PreprocessSettings
    labels: LabelTable
    axes: str | None
    folder: Path
    memory: int
    cache: Cache | None = None
    instances: InstanceSettings | None = None
    weight_map: WeightMapSettings | None = None

    @property
    def learned(self) -> LabelTable:
        """The table of the prepared label maps."""
        return self.labels if self.instances is None else self.instances.learned(self.labels)


@dataclass(frozen=True)
class _Job:
    """A case to prepare: the most bytes it takes, whether they stay on the disk, and its key in the cache."""

    case: Case
    size: int
    mapped: bool
    key: str = ""


def prepare_cases(
    cases: Sequence[Case], how: Preparation, step: Say = lambda _: None, say: Say = lambda _: None
) -> list[PreparedCase]:
    """Read, check and preprocess cases, or take them from the cache.

    Cases are held in memory, in their order, until `how.memory` is used up; the others are mapped from files.

    Args:
        step: called with each case's name when it is ready.
        say: shows a line: what came from the cache, or why it could not be used.

    Raises:
        DataError: naming the case that is wrong.
        OutputError: arrays fit neither into memory nor onto the disk, or a cache that was asked for cannot be used.
    """
    sizes = [_size(case, how) for case in cases]
    mapped = [total > how.memory for total in accumulate(sizes)]
    keys = [_key(how, case) if how.cache else "" for case in cases]
    jobs = [_Job(*job) for job in zip(cases, sizes, mapped, keys, strict=True)]
    if how.cache is not None:
        try:
            how.cache.make_room({job.key: job.size for job in jobs})
        except OutputError as error:
            how = _without_cache(how, error, say)
    if how.cache is None:
        _require_room(jobs, how.folder)
    ready, hits = [], 0
    for job in jobs:
        found = how.cache.find(job.key, job.case.name, job.mapped) if how.cache else None
        hits += found is not None
        if found is None:
            found, how = _made(job, how, say)
        ready.append(found)
        step(job.case.name)
    if how.cache is not None:
        say(f"prepared cases: {hits} of {len(jobs)} from the cache, {how.cache.describe()}")
    return ready


def training_case_notes(cases: Sequence[PreparedCase], labels: LabelTable) -> list[str]:
    """Notes on training cases: labels and regions that none of them holds, one line each.

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


def annotated_cases(cases: Sequence[PreparedCase], say: Say = lambda _: None) -> list[PreparedCase]:
    """The training cases that have an annotated voxel; the others are named, and left out.

    Raises:
        DataError: there is none.
    """
    kept = [case for case in cases if case.annotated is None or len(case.annotated)]
    names = [case.name for case in cases if case not in kept]
    if not kept:
        raise DataError(
            f"no voxel of the {len(cases)} training case(s) is annotated: {_few(names)}\n"
            "look at the ignore value, data.partial and data.annotated_slices"
        )
    if names:
        say(f"NOTE: nothing is annotated in {_few(names)}: left out of the training")
    return kept


def class_voxels(cases: Iterable[PreparedCase], classes: int) -> list[int]:
    """The annotated voxels of each class, in all cases."""
    found: list[int] = _count((case.label[0] for case in cases), classes).tolist()
    return found


def class_frequencies(cases: Iterable[PreparedCase], classes: int) -> list[float]:
    """The share of the annotated voxels that each class has, over all cases; all 0 where nothing is annotated.

    Of large cases, which may be mapped from files, every n-th slice along the first axis counts.
    """
    labels = (case.label[0] for case in cases)
    counts = _count((label[:: max(1, label.size // _ENOUGH)] for label in labels), classes)
    found: list[float] = (counts / max(1, counts.sum())).tolist()
    return found


def _count(labels: Iterable[NDArray[np.integer]], classes: int) -> NDArray[np.int64]:
    """Slice by slice, because counting takes eight bytes a voxel."""
    counts = np.zeros(classes, np.int64)
    for label in labels:
        for piece in label:
            known = piece[(piece >= 0) & (piece < classes)]
            counts += np.bincount(known.ravel(), minlength=classes)
    return counts


def held_out_mask(shape: tuple[int, ...], fold: Fold) -> NDArray[np.bool_]:
    """The held-out part of a single scan: the scan is cut along its longest axis into one part for each fold.

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

    Args:
        labels: the table of the prepared label maps.
    """
    held = held_out_mask(case.label.shape[1:], fold)[None]
    learned, validated = (
        replace(case, label=label, foreground=find_foreground(label, labels.foreground))
        for label in (np.where(known, case.label, IGNORE).astype(np.uint8) for known in (~held, held))
    )
    return learned, validated


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:8], f"… ({len(names)} in all)"] if len(names) > 8 else names)


def _key(how: Preparation, case: Case) -> str:
    return case_key(case, how.settings, how.labels, how.axes, (how.instances, how.weight_map))


def _without_cache(how: Preparation, error: OutputError, say: Say) -> Preparation:
    assert how.cache is not None
    if how.cache.asked:
        raise error
    say(f"NOTE: preparing without the cache. {error}")
    return replace(how, cache=None)


def _made(job: _Job, how: Preparation, say: Say) -> tuple[PreparedCase, Preparation]:
    """A case made anew, where it belongs, and how to go on: without a cache that turned out to be full."""
    made = _prepared(job.case, how)
    if how.cache is not None:
        if _key(how, job.case) != job.key:
            raise DataError(f"{job.case.name}: its files changed while they were read; start again once they are whole")
        try:
            return how.cache.keep(job.key, made, job.mapped), how
        except OutputError as error:
            # A quota or another program's files, which nobody could know of before.
            how = _without_cache(how, error, say)
    return _placed(made, job, how.folder), how


def _prepared(case: Case, how: Preparation) -> PreparedCase:
    data: dict[str, Any] = {"case": case}
    for step in preparation_steps(how.settings, how.labels, how.axes, how.instances, how.weight_map):
        data = step(data)
    foreground = find_foreground(data["label"], how.learned.foreground)
    return PreparedCase(case.name, data["image"], data["label"], foreground, data.get("weight"))


def _placed(case: PreparedCase, job: _Job, folder: Path) -> PreparedCase:
    """The case itself, or mapped from files in `folder`."""
    if not job.mapped:
        return case
    image = _saved(folder / f"{case.name}.image.npy", case.image)
    weight = None if case.weight is None else _saved(folder / f"{case.name}.weight.npy", case.weight)
    return replace(case, image=image, label=_saved(folder / f"{case.name}.label.npy", case.label), weight=weight)


def _saved(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not written through a mapping, which kills the process where the disk ends.
        write_array(path, array)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error})\nfree disk space there, or choose another -o"
        ) from error
    found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _require_room(jobs: Sequence[_Job], folder: Path) -> None:
    """Refuse, by an OutputError, cases that fit neither into memory nor onto the disk of `folder`."""
    needed = sum(job.size for job in jobs if job.mapped)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OutputError(
            f"{folder}: prepared cases that do not fit into memory need up to {needed:,} bytes, {free:,} are free "
            "there\nfree disk space, choose another -o, or set data.cache to a folder on another disk"
        )


def _size(case: Case, how: Preparation) -> int:
    """Most bytes of a prepared case, by its header: crops are not known yet."""
    grid = image_grid(case, how.axes)
    shape = target_shape(case.images[0].name, grid, how.settings)
    channels = channel_count(case, grid.channels)
    return entry_size(shape, channels, len(how.learned.foreground), how.weight_map is not None)
