"""A folder per case with a file per channel, as BraTS and other sets of MRI and PET/CT have them.

Names alone decide; no file is opened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medunet.conversion.layouts import FoundCase, Layout, is_mask_name
from medunet.datasets.loading import refuse
from medunet.errors import DataError
from medunet.formats.dispatch import case_stem
from medunet.system.wording import listed

CHANNEL_NAMES = (
    "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t1post", "t2", "t2w", "t2f", "t2s", "t2star", "flair", "mprage", "stir",
    "pd", "pdw", "dp", "gado", "dwi", "adc", "hbv", "swi", "asl", "dce", "tof", "mr", "mri", "mra",
    "ct", "ctres", "cta", "cbf", "cbv", "mtt", "ttp", "tmax", "pet", "pt", "suv", "fdg",
)  # fmt: skip
"""Names of channels. Contrasts and modalities only: two files called scan and image say nothing."""

PLAIN_NAMES = ("image", "img", "scan", "volume", "raw")
"""Names of images that are alone in their case."""


@dataclass(frozen=True)
class CaseFolder:
    """A folder that may be a case.

    Attributes:
        scans: that lie in it.
        masks: those in its folder of masks; None where it has no such folder.
    """

    path: Path
    scans: tuple[Path, ...]
    masks: tuple[Path, ...] | None = None


@dataclass(frozen=True)
class _Parted:
    """The scans of a case by their names without the case's name.

    Attributes:
        channels: in lower case.
        others: the files that may be masks.
        apart: true if these lie in a folder of their own, and all of them are masks.
    """

    folder: Path
    channels: Mapping[str, Sequence[Path]]
    others: Mapping[Path, str]
    apart: bool

    @property
    def called_masks(self) -> list[Path]:
        """The files beside the images that are called seg, label, mask or the like."""
        return [] if self.apart else [path for path, name in self.others.items() if is_mask_name(name)]

    @property
    def unknown(self) -> frozenset[str]:
        """The names of other files beside the images, in lower case."""
        return frozenset(name.lower() for path, name in self.others.items() if path not in self.called_masks)


def has_channels(folders: Iterable[CaseFolder]) -> bool:
    """True if a folder holds several files with names of channels, and something that may be a mask."""
    parted = map(_parted, folders)
    return any(one.others and len(set(one.channels) & set(CHANNEL_NAMES)) > 1 for one in parted)


def channel_layout(folders: Iterable[CaseFolder]) -> Layout:
    """The cases of folders that `has_channels`; channels are in the order of their names.

    What is left beside the channels is the mask if it is one file, or if one file is called seg, label, mask or the
    like; several files without such a name are a structure's mask each.

    Raises:
        DataError: cases with different channels, a file more than in other cases, or two that could be the same.
    """
    parted = [_parted(folder) for folder in folders]
    cases = [one for one in parted if one.channels and one.others]
    twice = [
        f"{case.folder}: holds {len(paths)} files of the channel {name} ({names_of(paths)}); expected one\n"
        "move the others away"
        for case in cases
        for name, paths in case.channels.items()
        if len(paths) > 1
    ]
    refuse(twice, "folders")
    channels = _channels_of(cases)
    masks = _masks_of(cases)
    found = tuple(
        FoundCase(
            case.folder.name,
            tuple(case.channels[name][0] for name in channels),
            tuple(masks[case.folder]),
            tuple(case.others[path] for path in masks[case.folder]),
        )
        for case in cases
    )
    said = all(len(case.masks) == 1 for case in found) and any(is_mask_name(case.structures[0]) for case in found)
    return Layout(
        "one folder per case, one file per channel",
        found,
        alone=tuple(path for one in parted if not one.others for paths in one.channels.values() for path in paths),
        orphans=tuple(one.folder for one in parted if one.others and not one.channels),
        structures=not said,
        channels=channels,
        unused=tuple(path for case in cases for path in case.others if path not in masks[case.folder]),
    )


def _parted(folder: CaseFolder) -> _Parted:
    channels: dict[str, list[Path]] = defaultdict(list)
    others = {path: _own_name(path, folder.path.name) for path in folder.masks or ()}
    for path in folder.scans:
        name = _own_name(path, folder.path.name)
        # Beside a folder of masks there are images alone, whatever they are called.
        if folder.masks is not None or name.lower() in (*CHANNEL_NAMES, *PLAIN_NAMES):
            channels[name.lower()].append(path)
        else:
            others[path] = name
    return _Parted(folder.path, channels, others, folder.masks is not None)


def _own_name(path: Path, case: str) -> str:
    """The stem without the case's name before or after it: `flair` of `BraTS20_Training_001_flair`."""
    stem = case_stem(path)
    if stem.lower().startswith(case.lower()):
        rest = stem[len(case) :]
        cut = rest.lstrip("_-. ")
    elif stem.lower().endswith(case.lower()):
        rest = stem[: -len(case)]
        cut = rest.rstrip("_-. ")
    else:
        return stem
    return cut if cut and cut != rest else stem


def _channels_of(cases: Sequence[_Parted]) -> tuple[str, ...]:
    """The channels that all cases have, by name.

    Raises:
        DataError: a case has others than most, or a name does not say which channel a file is.
    """
    counts = Counter(frozenset(case.channels) for case in cases)
    expected = max(counts, key=lambda names: (counts[names], len(names), sorted(names)))
    model = next(case.folder.name for case in cases if set(case.channels) == expected)
    wanted = f"{', '.join(sorted(expected))} as in {model} ({counts[expected]} of {len(cases)} cases)"
    odd = [case for case in cases if set(case.channels) != expected]
    refuse([_other_channels(case, expected, wanted) for case in odd], "folders")
    strange = sorted(expected - set(CHANNEL_NAMES))
    if strange:
        names = names_of([path for name in strange for path in cases[0].channels[name]])
        raise DataError(
            f"{cases[0].folder}: holds {len(expected)} images, and {names} does not say which channel it is; expected "
            "names such as t1, t2, flair, ct or pet\n"
            "rename it in all cases, keep one image, or make images/ (CASE_0000, CASE_0001, …) with labels/CASE/"
        )
    return tuple(sorted(expected))


def _other_channels(case: _Parted, expected: frozenset[str], wanted: str) -> str:
    missing, more = sorted(expected - set(case.channels)), sorted(set(case.channels) - expected)
    if missing:
        found = [path for paths in case.channels.values() for path in paths]
        words = f"lacks {', '.join(missing)}, it holds {names_of([*found, *case.others])}"
    else:
        words = f"holds {names_of([path for name in more for path in case.channels[name]])} besides"
    return (
        f"{case.folder}: {words}; expected {wanted}\n"
        f"{'add what is missing' if missing else 'take that away'}, or take the folder away to leave the case out"
    )


def _masks_of(cases: Sequence[_Parted]) -> dict[Path, list[Path]]:
    """The masks of each case: the only file that is left, the file that is called a mask, or all files.

    Raises:
        DataError: it cannot be told which file of a case is its mask, or what another one is.
    """
    called = [case for case in cases if case.called_masks]
    if not called or all(len(case.others) == 1 for case in cases):
        return {case.folder: list(case.others) for case in cases}
    counts = Counter(case.unknown for case in called)
    usual = max(counts, key=lambda names: (counts[names], -len(names), sorted(names)))
    refuse([problem for case in cases if (problem := _other_masks(case, usual)) is not None], "folders")
    return {case.folder: case.called_masks or list(case.others) for case in cases}


def _other_masks(case: _Parted, usual: frozenset[str]) -> str | None:
    """The problem with the files beside the channels, if other cases have a file that is called a mask."""
    own = case.called_masks
    if len(own) > 1:
        return (
            f"{case.folder}: holds {len(own)} files that are called masks ({names_of(own)}); expected one\n"
            "keep one, or move masks of one structure each into a folder of theirs, CASE/masks/liver.nii.gz"
        )
    if not own and len(case.others) > 1:
        return (
            f"{case.folder}: which is the mask, {names_of(case.others)}? expected one called seg, label or mask, "
            "as in other cases\nrename it, or move the others away"
        )
    more = [path for path, name in case.others.items() if path not in own and name.lower() not in usual]
    if own and more:
        return (
            f"{case.folder}: holds {names_of(more)} besides; expected the channels and {own[0].name}, as in most "
            "cases\ntake that away, or take the folder away to leave the case out"
        )
    return None


def names_of(paths: Iterable[Path], most: int = 5) -> str:
    """The first of their names, for messages."""
    return listed([path.name for path in paths], most)
