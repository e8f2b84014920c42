"""Pairs of prediction and reference: found by name, checked for one grid, with the names of their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medunet.datasets.annotation import EVERYTHING, Annotation
from medunet.datasets.catalogue import by_stem, group_cases, scan_files, stack_folders
from medunet.datasets.declaration import Declaration, read_declaration
from medunet.datasets.voxel_size import VoxelSize, is_stack
from medunet.errors import DataError
from medunet.formats.dispatch import case_stem, label_axes, read_grid, read_volume, stack_files
from medunet.formats.omezarr.nodes import is_zarr
from medunet.formats.results import PROBABILITIES
from medunet.system.wording import listed
from medunet.volume import Volume, corners_apart, spacing_text, tolerance

Source = Path | str | Volume

_LABEL_FOLDERS = {"labels": "images", "labelsTr": "imagesTr", "labelsTs": "imagesTs"}


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference, as files or volumes; the image is only for pictures.

    Attributes:
        axes: of files that do not state them.
        annotation: the annotated part of the reference; the rest is not scored.
        size: the voxel size where neither file states one.
        own: the prediction is a result of medunet, which states its axes and may have lost some: one slice of a scan
            is two-dimensional. `axes` are then those of reference and image alone.
    """

    case: str
    prediction: Source
    reference: Source
    image: Source | None = None
    axes: str | None = None
    annotation: Annotation = EVERYTHING
    size: VoxelSize | None = None
    own: bool = False

    @property
    def predicted_axes(self) -> str | None:
        """The axes that are stated of the prediction."""
        return None if self.own else self.axes


def named_pairs(pairs: Iterable[Pair | tuple[Source, Source]]) -> list[Pair]:
    """The pairs with a name each: plain tuples are named after the reference's file.

    Raises:
        DataError: no pair, or two of one name.
    """
    named = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, Pair):
            prediction, reference = pair
            name = f"case {number}" if isinstance(reference, Volume) else case_stem(Path(reference))
            pair = Pair(name, prediction, reference)
        named.append(pair)
    if not named:
        raise DataError("nothing to evaluate: no pair of a prediction and a reference was given")
    names = [pair.case for pair in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: two pairs have this name; each case needs its own, give Pair(case, …) records")
    return named


def label_folder(references: Path) -> Path:
    """The folder (or file) that holds the label maps themselves."""
    if not references.exists():
        raise DataError(f"{references}: no such file or folder; give the reference labels or a data set")
    if is_zarr(references):  # its own label images lie in a folder of that name, too
        return references
    return next((references / name for name in _LABEL_FOLDERS if (references / name).is_dir()), references)


def declaration_beside(folder: Path) -> Declaration:
    """The nearest `dataset.json`: in the folder of the label maps or in the one above; empty without one."""
    above = folder.resolve().parent
    # The folder may be one stack of a data set's labels.
    places = (folder, above, *([above.parent] if above.name in _LABEL_FOLDERS else []))
    found = next((path for path in (place / "dataset.json" for place in places) if path.is_file()), None)
    return Declaration(folder / "dataset.json") if found is None else read_declaration(found)


@dataclass(frozen=True)
class _Side:
    """The label maps of one side by case; `single` where the one that was given is a scan, and no folder of scans."""

    place: Path
    scans: Mapping[str, Path]
    single: bool


def pair_by_stem(
    predictions: Path, references: Path, stack: bool = False, axes: str | None = None
) -> tuple[list[Pair], list[str], tuple[str, ...]]:
    """Pairs by stem, references without a prediction, and notes.

    Args:
        stack: a folder of sections is one scan, and a folder of such folders several, beside files of volumes.
        axes: of TIFF files that do not state them: a folder of volumes is no folder of sections.

    Raises:
        DataError: nothing there, or no name in common. One scan and one scan are a pair whatever they are called.
    """
    if not predictions.exists():
        raise DataError(f"{predictions}: no such file or folder; give the predicted label maps")
    predicted, true = (_side(place, stack, axes) for place in (predictions, references))
    images = _images(references, true.scans, stack)
    if predicted.single and true.single:
        (case,) = true.scans
        return [Pair(case, predictions, references, images.get(case))], [], ()
    both = sorted(set(predicted.scans) & set(true.scans))
    if not both:
        raise DataError(_nothing_in_common(predicted, true, stack))
    pairs = [Pair(case, predicted.scans[case], true.scans[case], images.get(case)) for case in both]
    missing = [] if predicted.single else sorted(set(true.scans) - set(predicted.scans))
    unpaired = set() if true.single else set(predicted.scans) - set(true.scans)
    # Probabilities that belong to the label map of another case are no case themselves.
    beside = {f"{case}{PROBABILITIES}" for case in predicted.scans}
    extra = sorted(unpaired - beside)
    notes = (f"Not scored, for want of a reference: {_few(extra)} ({len(extra)}).",) if extra else ()
    return pairs, missing, notes


def _side(place: Path, stack: bool, axes: str | None) -> _Side:
    if _is_one(place):
        return _Side(place, by_stem([place]), True)
    if stack and _is_sections(place, axes):
        folder = place.resolve()
        # The labels of a data set whose only case are the sections in it.
        return _Side(place, {folder.parent.name if folder.name in _LABEL_FOLDERS else folder.name: place}, True)
    return _Side(place, by_stem([*(stack_folders(place) if stack else ()), *scan_files(place)]), False)


def _is_sections(folder: Path, axes: str | None) -> bool:
    """True if the files in a folder are the sections of one stack, and not volumes."""
    files = stack_files(folder)
    if not files:
        return False
    try:
        return read_grid(files[0], axes=axes).dimensions == 2
    except DataError:
        return True  # what is wrong with it is said where the stack is read


def _nothing_in_common(predicted: _Side, true: _Side, stack: bool) -> str:
    folders = not stack and any(
        side.place.is_dir() and not side.scans and stack_folders(side.place) for side in (predicted, true)
    )
    hint = "folders of sections are compared with --stack" if folders else "give both the same names up to the ending"
    return (
        f"{predicted.place} and {true.place} have no file name in common\n"
        f"predictions: {_few(predicted.scans)}; references: {_few(true.scans)}\n{hint}"
    )


def _is_one(place: Path) -> bool:
    """True for one label map, false for a folder of them."""
    return place.is_file() or is_zarr(place)


def _few(names: Iterable[str]) -> str:
    return listed(sorted(names), 4) or "none"


def _images(references: Path, labels: Mapping[str, Path], stack: bool) -> dict[str, Path]:
    """The first channel's file of each case, where the label maps belong to a data set with images."""
    folder = references.parent if _is_one(references) else references
    images = folder.resolve().parent / _LABEL_FOLDERS.get(folder.resolve().name, "images")
    if images == folder.resolve() or not images.is_dir():
        return {}
    try:
        if stack and stack_files(images):
            return dict.fromkeys(labels, images) if len(labels) == 1 else {}
        stacks = {path.name: path for path in stack_folders(images)} if stack else {}
        return stacks | {case.name: case.images[0] for case in group_cases(scan_files(images), labels)}
    except DataError:
        # Scores need no image: a data set with odd images is not this command's business.
        return {}


def read_pair(pair: Pair) -> tuple[Volume, Volume]:
    """Prediction and reference.

    Raises:
        DataError: one of them cannot be read.
    """
    return volume_of(pair.prediction, pair.predicted_axes), reference_of(pair)


def reference_of(pair: Pair) -> Volume:
    """The true label map.

    Raises:
        DataError: it cannot be read.
    """
    stated = pair.axes if isinstance(pair.reference, Volume) else label_axes(pair.reference, pair.axes)
    return volume_of(pair.reference, stated)


def volume_of(source: Source, axes: str | None = None) -> Volume:
    """The volume of one side of a pair, read if it is a file."""
    return source if isinstance(source, Volume) else read_volume(source, axes=axes)


def with_voxel_size(pair: Pair, reference: Volume, prediction: Volume) -> Volume:
    """The side whose voxel size is known, the reference if both are; with the declared size if neither is.

    Sections have the distance that is declared or that the other side states.
    """
    known = prediction if reference.unit == "pixel" else reference
    size = _size_of_sections(pair.size, prediction, reference)
    return known if size is None else size.given_to(known)


def _size_of_sections(size: VoxelSize | None, *sides: Volume) -> VoxelSize | None:
    """The declared size, if it has a z, or that of the side that states one, as sections never do."""
    if size is not None and size.deep:
        return size
    stated = (side for side in sides if side.dimensions == 3 and side.unit != "pixel" and not is_stack(side))
    return next((VoxelSize(side.spacing, side.unit) for side in stated), size)


def require_same_grid(case: str, prediction: Volume, reference: Volume, size: VoxelSize | None = None) -> None:
    """Compare the grids of a pair, as their files state them or with the distance of sections that none can state.

    The former is for volumes that were written like sections whose distance was not known.

    Args:
        size: the declared voxel size.

    Raises:
        DataError: the two cannot be compared voxel by voxel.
    """
    _require_same_sections(case, prediction, reference)
    if prediction.shape != reference.shape:
        raise DataError(
            f"{case}: prediction {prediction.name} has shape {prediction.shape}, "
            f"but reference {reference.name} has {reference.shape}\nwrite the prediction on the reference's grid"
        )
    if corners_apart(reference, prediction) <= tolerance(reference):
        return
    if found := _size_of_sections(size, prediction, reference):
        prediction, reference = found.completing(prediction), found.completing(reference)
    distance = corners_apart(reference, prediction)
    if distance > tolerance(reference):
        raise DataError(
            f"{case}: prediction {prediction.name} and reference {reference.name} lie on different grids: "
            f"corners are up to {distance:.4g} {reference.unit} apart (allowed {tolerance(reference):.3g})\n"
            f"spacing {spacing_text(prediction)} and {spacing_text(reference)}; "
            "write the prediction on the reference's grid"
        )


def _require_same_sections(case: str, prediction: Volume, reference: Volume) -> None:
    """Refuse stacks with different numbers of sections, or with names that show a shift against each other."""
    folders = [
        volume.origin.path for volume in (prediction, reference) if volume.origin and volume.origin.path.is_dir()
    ]
    named = {folder: stems for folder in folders if (stems := [path.stem for path in stack_files(folder)])}
    if not named or prediction.dimensions != 3 or reference.dimensions != 3:
        return
    counts = prediction.shape[2], reference.shape[2]
    if counts[0] != counts[1]:
        where = [volume.origin.path if volume.origin else volume.name for volume in (prediction, reference)]
        raise DataError(
            f"{case}: prediction {where[0]} has {counts[0]} sections, but reference {where[1]} has {counts[1]}\n"
            "give all sections of both, and no others"
        )
    if len(named) < 2:
        return
    predicted, true = named.values()
    if set(predicted) & set(true) and predicted != true:
        first = next((one, other) for one, other in zip(predicted, true, strict=True) if one != other)
        raise DataError(
            f"{case}: sections of {' and '.join(map(str, named))} have names in common, but not in the same places: "
            f"{first[0]} would be compared with {first[1]}\n"
            "give the same sections of both, under the same names or all under others"
        )
