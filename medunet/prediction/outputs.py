"""Inputs and outputs of a prediction: which scan goes into which file, and all that can be refused beforehand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medunet.datasets.catalogue import Case, Channel, group_cases, scan_files, stack_folders
from medunet.errors import ConfigError, DataError, OutputError
from medunet.formats.dispatch import WRITABLE, case_stem, check_target, is_folder_scan, stack_files, suffix_of
from medunet.formats.omezarr.nodes import SUFFIXES as ZARR_SUFFIXES
from medunet.formats.omezarr.nodes import enclosing, is_zarr
from medunet.instances.table import ObjectFiles
from medunet.instances.watershed import ObjectRule
from medunet.system.files import check_free


@dataclass(frozen=True)
class PredictRequest:
    """A request to `segment_files`: scans in, files out.

    Attributes:
        objects: which objects are numbered, and how; None for label maps.
        object_files: what is written beside their id maps.
        region_masks: whether a binary mask of each region is written beside a label map.
    """

    inputs: Sequence[Path]
    output: Path
    device: str = "auto"
    axes: str | None = None
    probabilities: bool = False
    overwrite: bool = False
    record: Path | None = None
    verify: bool = False
    objects: ObjectRule | None = None
    channels: tuple[Channel, ...] = ()
    frame: int | None = None
    stack: bool = False
    object_files: ObjectFiles = field(default_factory=ObjectFiles)
    region_masks: bool = False


def find_inputs(paths: Sequence[Path], stack: bool = False) -> list[Path]:
    """Scans from files, OME-Zarr and DICOM folders, and folders of scans.

    Args:
        stack: a folder of pictures is one volume, and a folder of such folders several.

    Raises:
        DataError: a path that does not exist, or a folder without scans.
        OutputError: two scans of one name, whose results would overwrite each other.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir() and not is_folder_scan(path) and not (stack and stack_files(path)):
            found = stack_folders(path) if stack else scan_files(path)
            if not found:
                raise DataError(f"{path}: holds no scan that medunet reads, and is no DICOM series")
            files += found
        else:
            files.append(path)
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(case_stem(file), file)
        if other is not file:
            raise OutputError(
                f"{other} and {file} would write the same output {case_stem(file)}; predict them into different folders"
            )
    return files


def as_cases(files: Sequence[Path], channels: int) -> list[Case]:
    """Group the channels `NAME_0000`, `NAME_0001`, … of one case where the model wants several.

    For a model of one channel every file is a case of its own; only where all names end in `_0000`, as nnU-Net has
    them, that ending is dropped, so that results are named like the labels.
    """
    if channels > 1:
        return group_cases(files, {})
    dropped = all(case_stem(file).endswith("_0000") for file in files)
    names = [case_stem(file).removesuffix("_0000") if dropped else case_stem(file) for file in files]
    return [Case(name, (file,)) for name, file in zip(names, files, strict=True)]


def plan_outputs(cases: Sequence[Case], request: PredictRequest, masks: Sequence[str] = ()) -> list[Path | None]:
    """The file of each result; None means a name in the output folder whose suffix the scan decides.

    Args:
        masks: of the regions whose masks are written beside each result, what their files are called after `CASE_`.

    Raises:
        OutputError: one file for several scans, a folder's name that is a file, two results of one name, or outputs
            that exist, are inputs or cannot be written.
        ConfigError: a file name whose suffix cannot be written.
    """
    output = request.output
    named = suffix_of(output) in WRITABLE or (len(cases) == 1 and output.suffix != "")
    as_file = named and (not output.is_dir() or suffix_of(output) in ZARR_SUFFIXES)
    if as_file and suffix_of(output) not in WRITABLE:
        raise ConfigError(
            f"-o {output}: cannot be written; expected a folder or a name ending in {', '.join(WRITABLE)}"
        )
    if as_file and len(cases) > 1:
        raise OutputError(f"-o {output}: is one file, but {len(cases)} scans are to be written; give a folder")
    if not as_file and output.exists() and not output.is_dir():
        raise OutputError(f"-o {output}: is a file; give a folder, or a name with a suffix for one scan")
    if request.record:
        check_free(request.record, request.overwrite)
    place = output.absolute().parent if as_file else output.absolute()
    if outer := enclosing(place):
        raise OutputError(
            f"-o {output}: lies inside the OME-Zarr {outer}, which is a scan; choose a place outside of it"
        )
    probe = existing_folder(place)
    if not probe.is_dir() or not os.access(probe, os.W_OK):
        raise OutputError(f"-o {output}: cannot be written ({probe} is no folder that may be written to)")
    wanted = {case_stem(output)} if as_file else {case.name for case in cases}
    for name in (beside for case in sorted(wanted) for beside in request.object_files.names(case)):
        check_free(place / name, request.overwrite)
    endings = [*(["probabilities"] if request.probabilities else []), *masks]
    beside = [f"{name}_{ending}" for name in sorted(wanted) for ending in endings]
    twice = sorted(wanted.intersection(beside)) or sorted({name for name in beside if beside.count(name) > 1})
    if twice:
        raise OutputError(
            f"-o {output}: two results would be called {twice[0]}, one of them what is written beside another scan's "
            "label map\npredict these scans into different folders"
        )
    wanted.update(beside)
    inputs = {path.resolve() for case in cases for path in case.images}
    for path in sorted(place.iterdir()) if place.is_dir() else []:
        if suffix_of(path) in WRITABLE and case_stem(path) in wanted:
            _refuse_existing(path, inputs, request.overwrite, only=suffix_of(output) if as_file else None)
    return [output] if as_file else [None] * len(cases)


def existing_folder(place: Path) -> Path:
    """The folder itself, or the nearest one above it that exists (which may be a file that is in the way).

    Of an output that is a scan already, the folder that it lies in.
    """
    place = place.absolute()
    found = next(p for p in (place, *place.parents) if p.exists())
    return found.parent if found == place and (found.is_file() or is_zarr(found)) else found


def _refuse_existing(path: Path, inputs: set[Path], overwrite: bool, only: str | None) -> None:
    if only is not None and suffix_of(path) != only:
        return
    if any(path.resolve() in (given, *given.parents) for given in inputs):
        raise OutputError(f"{path}: is one of the scans; a segmentation must not replace it, choose another folder")
    if not overwrite:
        raise OutputError(f"{path}: exists already; choose another folder, or say --overwrite")
    check_target(path, overwrite)
