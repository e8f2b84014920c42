"""Cases written into a data set: copied, linked or made, never onto another file."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunet.conversion.layouts import FoundCase
from medunet.conversion.masks import Mask
from medunet.conversion.meaning import ConvertRequest
from medunet.conversion.rules import Rule
from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import WRITABLE, case_stem, default_suffix, files_of, suffix_of, write_volume
from medunet.formats.omezarr.nodes import is_zarr
from medunet.system.files import write_text

_PORTION = 2**20
"""Bytes that are copied at a time."""


_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Why a hard link cannot be made where a copy can: another disk, or a file system without links or with no more."""


def write_case(case: FoundCase, masks: Sequence[Mask], rule: Rule, request: ConvertRequest, folder: Path) -> None:
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
    """True if the file can be copied as the label file."""
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
