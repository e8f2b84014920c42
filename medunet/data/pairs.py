"""Which prediction belongs to which reference, whether they share a grid, and what the labels are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medunet.data.annotation import EVERYTHING, Annotation, AnnotationSettings
from medunet.data.catalogue import (
    GRID_TOLERANCE,
    by_stem,
    declared_annotations,
    declared_labels,
    group_cases,
    scan_files,
)
from medunet.data.formats import case_stem, is_zarr, read_volume, suffix_of
from medunet.data.labels import LabelTable
from medunet.data.volume import MILLIMETRES, Volume
from medunet.errors import DataError
from medunet.geometry.grids import grid_distance

Source = Path | str | Volume

_LABEL_FOLDERS = {"labels": "images", "labelsTr": "imagesTr", "labelsTs": "imagesTs"}


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference, as files or volumes; the image is only for pictures.

    Attributes:
        annotation: what of the reference was annotated; the rest is not scored.
    """

    case: str
    prediction: Source
    reference: Source
    image: Source | None = None
    axes: str | None = None
    annotation: Annotation = EVERYTHING


def label_folder(references: Path) -> Path:
    """The folder (or file) that holds the label maps themselves."""
    if not references.exists():
        raise DataError(f"{references}: no such file or folder; give the reference labels or a data set")
    if is_zarr(references):  # its own label images lie in a folder of that name, too
        return references
    return next((references / name for name in _LABEL_FOLDERS if (references / name).is_dir()), references)


def labels_beside(folder: Path) -> LabelTable | None:
    """The label table of the nearest `dataset.json`: in the folder of the label maps or in the one above."""
    declaration = _beside(folder)
    return None if declaration is None else declared_labels(declaration)


def annotation_beside(folder: Path) -> AnnotationSettings:
    """What the same `dataset.json` says of how much was annotated."""
    declaration = _beside(folder)
    return AnnotationSettings() if declaration is None else declared_annotations(declaration)


def _beside(folder: Path) -> Path | None:
    places = (place / "dataset.json" for place in (folder, folder.resolve().parent))
    return next((path for path in places if path.is_file()), None)


def pair_by_stem(predictions: Path, references: Path) -> tuple[list[Pair], list[str], tuple[str, ...]]:
    """Pairs by stem, references without a prediction, and notes."""
    if not predictions.exists():
        raise DataError(f"{predictions}: no such file or folder; give the predicted label maps")
    predicted, true = _files(predictions), _files(references)
    images = _images(references, true)
    if _is_one(predictions) and _is_one(references):
        case = case_stem(references)
        return [Pair(case, predictions, references, images.get(case))], [], ()
    both = sorted(set(predicted) & set(true))
    if not both:
        raise DataError(
            f"{predictions} and {references} have no file name in common\n"
            f"predictions: {_few(predicted)}; references: {_few(true)}\ngive both the same names up to the ending"
        )
    pairs = [Pair(case, predicted[case], true[case], images.get(case)) for case in both]
    missing = [] if _is_one(predictions) else sorted(set(true) - set(predicted))
    extra = [] if _is_one(references) else sorted(set(predicted) - set(true))
    notes = (f"Not scored, for want of a reference: {', '.join(extra)}.",) if extra else ()
    return pairs, missing, notes


def _files(place: Path) -> dict[str, Path]:
    return by_stem([place] if _is_one(place) else scan_files(place))


def _is_one(place: Path) -> bool:
    """Whether this is one label map and no folder of them."""
    return place.is_file() or is_zarr(place)


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (", …" if len(listed) > 4 else "") if listed else "none"


def _images(references: Path, labels: Mapping[str, Path]) -> dict[str, Path]:
    """The first channel's file of each case, where the label maps belong to a data set with images."""
    folder = references.parent if _is_one(references) else references
    images = folder.resolve().parent / _LABEL_FOLDERS.get(folder.resolve().name, "images")
    if images == folder.resolve() or not images.is_dir():
        return {}
    try:
        return {case.name: case.images[0] for case in group_cases(scan_files(images), labels)}
    except DataError:
        # Scores need no image: a data set with odd images is not this command's business.
        return {}


def volume_of(source: Source, axes: str | None = None) -> Volume:
    """The volume that a side of a pair is, or is read as."""
    return source if isinstance(source, Volume) else read_volume(source, axes=axes)


def with_voxel_size(reference: Volume, prediction: Volume) -> Volume:
    """The side whose voxel size is known; the reference where both are, or neither."""
    return prediction if reference.unit == "pixel" else reference


def require_same_grid(case: str, prediction: Volume, reference: Volume) -> None:
    """Raises:
    DataError: the two cannot be compared voxel by voxel.
    """
    if prediction.shape != reference.shape:
        raise DataError(
            f"{case}: prediction {prediction.name} has shape {prediction.shape}, "
            f"but reference {reference.name} has {reference.shape}\nwrite the prediction on the reference's grid"
        )
    # A file without voxel size (a PNG) says nothing about its grid but the shape.
    if "pixel" in (prediction.unit, reference.unit):
        return
    affine = prediction.affine.copy()
    affine[:3] *= MILLIMETRES[prediction.unit] / MILLIMETRES[reference.unit]
    distance = grid_distance(reference.shape, reference.affine, affine)
    if distance > GRID_TOLERANCE:
        raise DataError(
            f"{case}: prediction {prediction.name} and reference {reference.name} lie on different grids: "
            f"corners are up to {distance:.4g} {reference.unit} apart (allowed {GRID_TOLERANCE:g})\n"
            f"spacing {_rounded(prediction)} {prediction.unit} and {_rounded(reference)} {reference.unit}; "
            "write the prediction on the reference's grid"
        )


def _rounded(volume: Volume) -> tuple[float, ...]:
    return tuple(round(length, 4) for length in volume.spacing)


def probabilities_path(target: Path) -> Path:
    """`CASE_probabilities` beside the label map; PNG cannot hold them, so they become TIFF."""
    suffix = suffix_of(target)
    return target.with_name(f"{case_stem(target)}_probabilities{'.tif' if suffix == '.png' else suffix}")
