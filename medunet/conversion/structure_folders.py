"""Folders with one mask file per structure, as TotalSegmentator and many annotation tools write them.

Names alone decide; no file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medunet.conversion.channel_folders import PLAIN_NAMES, CaseFolder, channel_layout, has_channels, names_of
from medunet.conversion.layouts import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    FoundCase,
    Layout,
    pairs_at_top,
    recognised,
    subfolders,
)
from medunet.datasets.catalogue import group_cases, scan_files
from medunet.datasets.loading import refuse
from medunet.errors import DataError
from medunet.formats.dispatch import case_stem, is_readable

_IMAGE_NAMES = (*PLAIN_NAMES, "ct", "mr", "mri", "pet", "t1", "t2", "flair")


def find_structures(source: Path, masks: str | None = None) -> Layout | None:
    """Recognise a folder in which each structure of an image has a mask file.

    In this order: an image folder beside a mask folder that holds a folder per image (`images/CASE.nii.gz` with
    `labels/CASE/liver.nii.gz`); a folder per image with a folder of masks in it (`CASE/ct.nii.gz` with
    `CASE/segmentations/liver.nii.gz`); a folder per image that holds all (`CASE/image.nii.gz`, `CASE/liver.nii.gz`).
    In the last two a case may have a file per channel, see `channel_layout`; its mask is one label map then, perhaps.
    Images and masks that lie at the top come before a folder per image, of which one may be there by accident.

    Args:
        masks: the mask folder's name, where that was said.

    Returns:
        None where nothing of the kind is found. Masks are in the order of their names.

    Raises:
        DataError: a mask folder that is empty, or several images, mask folders or kinds of masks where one was
            expected; or cases with different channels.
    """
    if not source.is_dir():
        return None
    beside = _beside(source, masks)
    if beside is not None or _masks_at_top(source, masks):
        return beside
    return _in_case_folders(source, masks)


def case_folders(source: Path) -> tuple[Path, ...]:
    """Folders that hold an image and masks of their own; for a source whose images and masks lie elsewhere."""
    found = _looked_into(source, None)
    found.take_single_images()
    several = {folder.path for folder in found.folders if has_channels([folder])}
    return tuple(sorted(several | {source / case.name for case in found.cases}))


def _beside(source: Path, masks: str | None) -> Layout | None:
    wanted = {masks.strip("/").lower()} if masks else {*MASK_FOLDERS, "labelstr"}
    images = [path for path in subfolders(source) if path.name.lower() in (*IMAGE_FOLDERS, "imagestr")]
    places = [path for path in subfolders(source) if path.name.lower() in wanted]
    found = [layout for one in images for place in places if (layout := _folder_per_image(one, place)) is not None]
    if len(found) > 1:
        raise DataError(
            f"{source}: which folders belong together? found {'; '.join(layout.form for layout in found)}\n"
            "move the others away, or say which holds the masks with --masks FOLDER"
        )
    return found[0] if found else None


def _folder_per_image(images: Path, place: Path) -> Layout | None:
    own = {path.name: path for path in subfolders(place) if not is_readable(path)} if images != place else {}
    grouped = group_cases(scan_files(images), own) if own else []
    if not any(case.label for case in grouped):
        return None
    files = scan_files(place)
    if files:
        raise DataError(
            f"{place}: holds folders of masks ({names_of(own.values(), 3)}) and files ({names_of(files, 3)}); expected "
            f"one kind\nmove one kind away, or say --masks '{place.name}/*' if the files are the masks"
        )
    cases = tuple(FoundCase(case.name, case.images, _masks(case.label)) for case in grouped if case.label)
    alone = tuple(path for case in grouped if case.label is None for path in case.images)
    lost = tuple(path for name, path in own.items() if name not in {case.name for case in cases})
    form = f"{images.name}/ with a folder per image in {place.name}/"
    return Layout(form, cases, alone=alone, orphans=lost, structures=True)


def _masks_at_top(source: Path, masks: str | None) -> bool:
    if masks is None:
        return pairs_at_top(source)
    return "*" in masks or (source / masks).is_dir()


@dataclass
class _LookedInto:
    """The contents of folders that may be cases, and the files left over; it changes while folders are looked into."""

    folders: list[CaseFolder] = field(default_factory=list)
    cases: list[FoundCase] = field(default_factory=list)
    alone: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, folder: Path, masks: str | None) -> None:
        """Look into a folder."""
        wanted = {masks.strip("/").lower()} if masks else set(MASK_FOLDERS)
        inner = [path for path in subfolders(folder) if path.name.lower() in wanted]
        scans = scan_files(folder) or ([folder] if is_readable(folder) else [])
        if inner and scans:
            self._add_with_masks(folder, scans, inner)
        elif inner:
            self.orphans += inner
        elif masks is None and scans != [folder]:
            self.folders.append(CaseFolder(folder, tuple(scans)))
        else:
            self.alone += scans

    def _add_with_masks(self, folder: Path, scans: Sequence[Path], inner: Sequence[Path]) -> None:
        masks = scan_files(inner[0])
        if len(inner) > 1:
            self.problems.append(
                f"{folder}: holds {len(inner)} folders of masks ({names_of(inner, 3)}); expected one\n"
                f"move the others away, or say which one with --masks {inner[0].name}"
            )
        elif not masks:
            self.problems.append(_no_mask(inner[0]))
        else:
            self.folders.append(CaseFolder(folder, tuple(scans), tuple(masks)))

    def take_single_images(self) -> None:
        """Make cases of the folders that hold one image and masks."""
        for folder in self.folders:
            images, masks = folder.scans, folder.masks
            if masks is None:
                images = tuple(path for path in folder.scans if case_stem(path).lower() in _IMAGE_NAMES)
                masks = tuple(path for path in folder.scans if path not in images)
            if len(images) == 1 and masks:
                self.cases.append(FoundCase(folder.path.name, images, masks))
            elif images and masks:
                self.problems.append(
                    f"{folder.path}: holds {len(images)} scans ({names_of(images, 3)}) beside its masks; expected one "
                    "image per folder\nkeep one, or make images/ (CASE_0000, CASE_0001, …) with labels/CASE/"
                )
            else:
                self.alone += images
                self.orphans += [folder.path] if masks else []


def _looked_into(source: Path, masks: str | None) -> _LookedInto:
    found = _LookedInto()
    folders = subfolders(source)
    found.alone += [path for path in scan_files(source) if path not in folders]
    for folder in folders:
        if folder.name.lower() in IMAGE_FOLDERS:
            found.alone += scan_files(folder)
        elif folder.name.lower() in MASK_FOLDERS:
            found.orphans += scan_files(folder)
        else:
            found.add(folder, masks)
    return found


def _in_case_folders(source: Path, masks: str | None) -> Layout | None:
    found = _looked_into(source, masks)
    if has_channels(found.folders) and (masks is not None or recognised(source) is None):
        refuse(found.problems, "folders")
        layout = channel_layout(found.folders)
        alone, orphans = (*found.alone, *layout.alone), (*found.orphans, *layout.orphans)
        return replace(layout, alone=alone, orphans=orphans)
    found.take_single_images()
    # Without any case, what looks odd here may be as it should be in another layout.
    if found.problems and (found.cases or masks is not None or recognised(source) is None):
        refuse(found.problems, "folders")
    if not found.cases:
        return None
    alone, orphans = tuple(found.alone), tuple(found.orphans)
    return Layout("one folder per image", tuple(found.cases), alone=alone, orphans=orphans, structures=True)


def _no_mask(folder: Path) -> str:
    return (
        f"{folder}: holds no mask; expected a file per structure, such as liver.nii.gz\n"
        "add its masks, empty ones if nothing is there, or take the folder away to leave the image out"
    )


def _masks(folder: Path) -> tuple[Path, ...]:
    found = scan_files(folder)
    if not found:
        raise DataError(_no_mask(folder))
    return tuple(found)
