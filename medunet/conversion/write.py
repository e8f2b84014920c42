"""Cases and `dataset.json` written into a data set; files are copied, linked or made, never onto another file."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunet.conversion.layouts import FoundCase, Layout
from medunet.conversion.masks import Mask
from medunet.conversion.meaning import ConvertRequest, Meaning, source_json
from medunet.conversion.rules import Rule
from medunet.datasets.labels import table_from_names
from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import WRITABLE, case_stem, default_suffix, files_of, suffix_of, write_volume
from medunet.formats.omezarr.nodes import is_zarr
from medunet.system.files import write_text

_PORTION = 2**20
"""Bytes that are copied at a time."""
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Why a hard link cannot be made where a copy can: another disk, or a file system without links or with no more."""
_OF_COLOURS = {"colour_coded", "colours", "n_cases"}
_OF_LABELS = {"labels", "ignore", "label_kind", "regions", "regions_class_order", "instance_labels", "label_note"}
_OF_CHANNELS = {"channel_names", "modality"}


def write_case(case: FoundCase, masks: Sequence[Mask], rule: Rule, request: ConvertRequest, folder: Path) -> None:
    for number, image in enumerate(case.images):
        ending = f"_{number:04d}" if len(case.images) > 1 else ""
        place_file(image, folder / "images", case.name + ending, request.link)
    if rule.unchanged and _usable(masks[0]):
        place_file(case.masks[0], folder / "labels", case.name, request.link)
        return
    volume = masks[0].volume.with_array(rule.apply(masks).labels[np.newaxis])
    suffix = ".png" if suffix_of(masks[0].path) in (".png", ".jpg", ".jpeg") else default_suffix(masks[0].volume)
    write_volume(volume, folder / "labels" / f"{case.name}{suffix}", labels=True)


def _usable(mask: Mask) -> bool:
    """True if the file can be copied as the label file."""
    return mask.volume.channels == 1 and suffix_of(mask.path) in WRITABLE and len(files_of(mask.path)) == 1


def place_file(source: Path, folder: Path, stem: str, link: bool) -> None:
    """Copy or link a scan, with the files that belong to it, under another stem.

    A scan that is a folder stays one, `folder/stem/`: slices of several DICOM series in one folder would be one series.

    Raises:
        DataError: a header that names another file would have to be renamed.
        OutputError: the target exists.
    """
    folder.mkdir(exist_ok=True)
    if source.is_dir():
        ending = (suffix_of(source) or ".zarr") if is_zarr(source) else ""
        _place_folder(source, folder / f"{stem}{ending}", link)
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
    under = (Path(place) / name for place, _, names in os.walk(source, followlinks=True) for name in names)
    files = list(under) if is_zarr(source) else files_of(source)
    _free(target).mkdir()
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        _place(file, place, link)


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


def completed(meaning: Meaning, pixels: Mapping[int, int], layout: Layout, request: ConvertRequest) -> dict[str, Any]:
    """The meaning's declaration with the source's entries on other things.

    Args:
        pixels: number of pixels of each label value.

    Raises:
        DataError: values that are not declared, or a single value.
    """
    dropped = _OF_COLOURS | (_OF_LABELS if meaning.declaration else set())
    dropped |= _OF_CHANNELS if layout.channels else set()
    kept = {key: value for key, value in source_json(request).items() if key not in dropped}
    if layout.channels:
        kept["channels"] = list(layout.channels)
    declaration = {"name": request.output.name, **kept, **meaning.declaration}
    if meaning.declaration:
        table_from_names(declaration["labels"], declaration.get("ignore"), declaration.get("label_kind", "classes"))
    if declaration.get("label_kind") != "instances":
        _check_values(declaration, pixels, request)
    return declaration


def _check_values(declaration: Mapping[str, Any], pixels: Mapping[int, int], request: ConvertRequest) -> None:
    labels = declaration["labels"]
    plain = isinstance(labels, dict) and all(type(value) is int for value in labels.values())
    unnamed = sorted(set(pixels) - {*labels.values(), declaration.get("ignore")}) if plain else []
    if unnamed:
        raise DataError(
            f"{request.source}: masks hold values that dataset.json does not name: "
            f"{', '.join(f'{value} ({pixels[value]:,} px)' for value in unnamed[:8])}\n"
            "add them to its labels, or correct the masks"
        )
    if len(pixels) < 2:
        value = next(iter(pixels))
        raise DataError(f"{request.source}: all masks hold the single value {value}; nothing can be learned from them")
