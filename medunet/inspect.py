"""The story of `medunet inspect`: the content of a scan or a data set, and its problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medunet.datasets.catalogue import Case, DataSet, read_data_set, with_labels
from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.loading import load_image, load_label, size_notes
from medunet.errors import DataError
from medunet.formats.dispatch import default_suffix, is_folder_scan, read_grid, read_volume, stack_files
from medunet.volume import Grid, Volume

Finding = dict[str, Any]


def inspect_path(path: Path, axes: str | None = None, frame: int | None = None, stack: bool = False) -> Finding:
    """Describe a scan (a file, an OME-Zarr, a DICOM folder) or a data set as a plain record with its `problems`.

    Args:
        frame: the time point of a TIFF or an OME-Zarr that is looked at, counted from 1.
        stack: a folder of pictures is one scan.
    """
    try:
        if path.is_dir() and not is_folder_scan(path) and not (stack and stack_files(path)):
            return _inspect_data_set(read_data_set(path), axes)
        return _inspect_scan(path, axes, frame)
    except DataError as error:
        return {"path": str(path), "problems": [str(error)]}


def _inspect_scan(path: Path, axes: str | None, frame: int | None) -> Finding:
    grid = read_grid(path, axes=axes, frame=frame)
    volume = read_volume(path, axes=axes, frame=frame)
    finite = volume.array[np.isfinite(volume.array)] if volume.array.dtype.kind == "f" else volume.array
    orientation, problems = None, []
    if volume.dimensions == 3 and grid.unit == "mm":
        from nibabel.orientations import aff2axcodes

        orientation = "".join(str(letter) for letter in aff2axcodes(volume.affine))
    if finite.size < volume.array.size:
        problems.append(f"{volume.array.size - finite.size} voxels are NaN or infinite")
    if finite.size and finite.min() == finite.max():
        problems.append(f"all voxels have the value {finite.flat[0]:g}")
    return {
        "path": str(path),
        "format": grid.format,
        "shape": list(grid.shape),
        "channels": grid.channels,
        "channel names": list(grid.channel_names),
        "type": grid.dtype,
        "spacing": [round(s, 6) for s in volume.spacing],
        "unit": grid.unit,
        "orientation": orientation,
        "minimum": float(finite.min()) if finite.size else None,
        "maximum": float(finite.max()) if finite.size else None,
        **grid.details,
        "becomes": _what_becomes(grid, volume),
        "problems": problems,
    }


def _what_becomes(grid: Grid, volume: Volume) -> list[str]:
    """The use of a scan: its axes, what a network sees of it, and the format of its label map."""
    letters, unit = "xyz"[: grid.dimensions], "" if grid.unit == "pixel" else f" {grid.unit}"
    axes = [
        f"{letter}: {length} {'voxels' if grid.dimensions == 3 else 'pixels'}"
        + (f" of {size:.4g}{unit}" if unit else ", size unknown")
        for letter, length, size in zip(letters, grid.shape, grid.spacing, strict=True)
    ]
    names = [f"{n} {name}" for n, name in enumerate(grid.channel_names)] or [str(n) for n in range(grid.channels)]
    is_colour = grid.channels == 3 and ("S" in grid.details.get("TIFF axes", "") or grid.format == "picture")
    colour = " (an RGB picture's red, green, blue)" if is_colour else ""
    network = f"a network of {grid.channels} input channel{'s' if grid.channels > 1 else ''}"
    choice = "; fewer with --set data.channels=[0] or predict --channel 0" if grid.channels > 1 else ""
    slices = ", or its slices by a 2-D one" if grid.dimensions == 3 else ""
    return [
        *axes,
        *([f"channels: {', '.join(names)}{colour}"] if grid.channels > 1 else []),
        f"seen by {network} as {grid.dimensions}-D{slices}{choice}",
        f"labels are written as {default_suffix(volume.with_array(volume.array[:1].astype(np.uint8)))} on this grid",
    ]


def _inspect_data_set(data: DataSet, axes: str | None) -> Finding:
    problems: list[str] = []
    labels = None
    try:
        labels = with_labels(data, data.labelled, axes) if data.labelled else data.labels
    except DataError as error:
        problems.append(str(error))
    cases = [_inspect_case(case, labels, axes, problems) for case in data.cases]
    if not data.labelled:
        problems.append(f"{data.folder}: no case has a label file; it can be predicted, but not learned from")
    readable = [case for case in cases if case]
    return {
        "path": str(data.folder),
        "name": data.name,
        "cases": len(data.cases),
        "labelled": len(data.labelled),
        "channels": list(data.channels),
        "labels": labels.describe() if labels else None,
        "label_kind": labels.kind if labels else None,
        "shapes": _counted(case["shape"] for case in readable),
        "spacings": _counted(case["spacing"] for case in readable),
        "declared spacing": f"{data.size}, of files that state none" if data.size else None,
        "voxels per label": _totals(readable, labels),
        "annotated": _annotated(data, readable),
        "notes": [*_size_notes(data, axes), *(case["note"] for case in readable if "note" in case)],
        "problems": problems,
    }


def _size_notes(data: DataSet, axes: str | None) -> list[str]:
    try:
        return [note.removeprefix("NOTE: ") for note in size_notes(data, axes)]
    except DataError:
        return []  # the case that cannot be read is a problem already


def _inspect_case(case: Case, labels: LabelTable | None, axes: str | None, problems: list[str]) -> Finding:
    try:
        image = load_image(case, axes)
        finding: Finding = {
            "shape": "×".join(str(n) for n in image.shape),
            "spacing": "×".join(f"{s:.4g}" for s in image.spacing) + f" {image.unit}",
        }
        if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
            problems.append(f"{case.name}: the image has NaN or infinite voxels")
        if labels is not None and case.label is not None:
            label = load_label(case, labels, image, axes)
            finding["voxels"] = np.bincount(label.ravel(), minlength=IGNORE + 1)
            if not np.isin(label, labels.foreground).any():
                # No structure is no fault: a network learns from it where there is none. `plan` says the same.
                finding["note"] = f"{case.name}: the label map is empty"
    except DataError as error:
        problems.append(str(error))
        return {}
    return finding


def _counted(values: Any) -> list[str]:
    """`35×51×35 (4 cases)`, the most frequent first, at most five."""
    counts = Counter(values).most_common()
    shown = [f"{value} ({n} case{'s' if n > 1 else ''})" for value, n in counts[:5]]
    return shown if len(counts) <= 5 else [*shown, f"and {len(counts) - 5} others"]


def _voxels(cases: list[Finding]) -> np.ndarray | None:
    """The voxels of each class index over all cases; None if no case has a label map."""
    counted = [case["voxels"] for case in cases if "voxels" in case]
    return np.sum(counted, axis=0) if counted else None


def _totals(cases: list[Finding], labels: LabelTable | None) -> dict[str, int]:
    total = _voxels(cases)
    if labels is None or total is None:
        return {}
    names = dict(enumerate(labels.names))
    if total[IGNORE]:
        names[IGNORE] = "(ignored)"
    return {name: int(total[index]) for index, name in names.items()}


def _annotated(data: DataSet, cases: list[Finding]) -> str | None:
    """The share of annotated voxels, if not all are: by ignore value, partial cases, annotated slices."""
    total = _voxels(cases)
    if total is None or not total[IGNORE]:
        return None
    share = f"{100 * (1 - total[IGNORE] / total.sum()):.3g} % of the voxels"
    partial = ", ".join([f"partial: {case.name}" for case in data.labelled if case.annotation.partial][:4])
    slices = ", ".join([f"some slices: {case.name}" for case in data.labelled if case.annotation.slices][:4])
    return "; ".join(filter(None, (share, partial, slices)))


def as_text(finding: Mapping[str, Any]) -> str:
    """A finding as lines for people."""
    lines = [str(finding["path"])]
    for key, value in finding.items():
        if key in ("path", "notes", "problems") or value in (None, [], {}):
            continue
        if key == "becomes":
            lines += [f"  {key if number == 0 else '':<18} {line}" for number, line in enumerate(value)]
            continue
        lines.append(f"  {key:<18} {_shown(value)}")
    lines += [f"  NOTE     {note}" for note in finding.get("notes", ())]
    problems = [problem.replace("\n", "\n           ") for problem in finding["problems"]]
    lines += [f"  PROBLEM  {problem}" for problem in problems] or ["  no problem found"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    if isinstance(value, list):
        joiner = " × " if all(isinstance(v, (int, float)) for v in value) else ", "
        return joiner.join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
