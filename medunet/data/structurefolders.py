"""Folders with one mask file per structure, as TotalSegmentator and many annotation tools write them.

Names alone decide; no file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medunet.data.catalogue import group_cases, scan_files
from medunet.data.formats import case_stem, is_readable, is_zarr
from medunet.data.layouts import IMAGE_FOLDERS, MASK_FOLDERS, FoundCase, Layout
from medunet.errors import DataError

_IMAGE_NAMES = ("image", "img", "scan", "volume", "raw", "ct", "mr", "mri", "pet", "t1", "t2", "flair")


def find_structures(source: Path, masks: str | None = None) -> Layout | None:
    """Recognise a folder in which each structure of an image has a mask file.

    In this order: an image folder beside a mask folder that holds a folder per image (`images/CASE.nii.gz` with
    `labels/CASE/liver.nii.gz`); a folder per image with a folder of masks in it (`CASE/ct.nii.gz` with
    `CASE/segmentations/liver.nii.gz`); a folder per image that holds all (`CASE/image.nii.gz`, `CASE/liver.nii.gz`).

    Args:
        masks: the mask folder's name, where that was said.

    Returns:
        None where nothing of the kind is found. Masks are in the order of their names.

    Raises:
        DataError: a mask folder that is empty, or several images where one was expected.
    """
    if not source.is_dir():
        return None
    folders = _folders(source)
    return _beside(folders, masks) or _in_case_folders(folders, masks)


def _folders(place: Path) -> list[Path]:
    """Visible ones that are no scans of their own."""
    return [path for path in sorted(place.iterdir()) if path.is_dir() and path.name[0] != "." and not is_zarr(path)]


def _beside(folders: Sequence[Path], masks: str | None) -> Layout | None:
    wanted = {masks.strip("/").lower()} if masks else {*MASK_FOLDERS, "labelstr"}
    for images in (path for path in folders if path.name.lower() in (*IMAGE_FOLDERS, "imagestr")):
        for place in (path for path in folders if path.name.lower() in wanted and path != images):
            own = {path.name: path for path in _folders(place) if not is_readable(path)}  # no DICOM series
            if not own:
                continue
            cases = group_cases(scan_files(images), own)
            found = [FoundCase(case.name, case.images, _masks(case.label)) for case in cases if case.label]
            if found:
                alone = tuple(path for case in cases if case.label is None for path in case.images)
                lost = [path for name, path in own.items() if name not in {case.name for case in found}]
                form = f"{images.name}/ with a folder of masks per image in {place.name}/"
                orphans = (*lost, *scan_files(place))
                return Layout(form, tuple(found), alone=alone, orphans=orphans, structures=True)
    return None


def _in_case_folders(folders: Sequence[Path], masks: str | None) -> Layout | None:
    wanted = {masks.strip("/").lower()} if masks else set(MASK_FOLDERS)
    cases: list[FoundCase] = []
    for folder in folders:
        if folder.name.lower() in (*IMAGE_FOLDERS, *MASK_FOLDERS):
            continue
        inner = [path for path in _folders(folder) if path.name.lower() in wanted]
        scans = scan_files(folder)
        if len(inner) == 1 and scans:
            cases.append(FoundCase(folder.name, (_only(scans, folder),), _masks(inner[0])))
        elif not inner and masks is None:
            cases += _all_in_one(folder, scans)
    if not cases:
        return None
    return Layout("one folder per image, one mask per structure", tuple(cases), structures=True)


def _all_in_one(folder: Path, scans: Sequence[Path]) -> list[FoundCase]:
    images = [path for path in scans if case_stem(path).lower() in _IMAGE_NAMES]
    others = tuple(path for path in scans if path not in images)
    return [FoundCase(folder.name, (images[0],), others)] if len(images) == 1 and others else []


def _only(scans: Sequence[Path], folder: Path) -> Path:
    if len(scans) > 1:
        raise DataError(
            f"{folder}: holds {len(scans)} scans ({', '.join(path.name for path in scans[:3])}) beside its masks; "
            "expected one image per folder\nkeep one, or make images/ (CASE_0000, CASE_0001, …) with labels/CASE/"
        )
    return scans[0]


def _masks(folder: Path) -> tuple[Path, ...]:
    found = scan_files(folder)
    if not found:
        raise DataError(
            f"{folder}: holds no mask; expected a file per structure, such as liver.nii.gz\n"
            "add its masks, empty ones if nothing is there, or take the folder away to leave the image out"
        )
    return tuple(found)
