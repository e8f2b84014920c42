"""Planes of a scan in a picture: their choice, and their orientation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.geometry.grids import Affine, closest_ras

_LARGEST_SIDE = 1024


@dataclass(frozen=True)
class Overlay:
    """A scan and the label maps to draw on it.

    Attributes:
        names: name of each structure to outline, and its value or the values whose union it is; leave the background
            out.
        spacing: per axis, in `unit`.
        image: `(x, y)` or `(x, y, z)`, any number type; None shows the outlines alone.
        reference: label map of the same shape, or None.
        prediction: label map of the same shape, or None. One of the three must be given.
        unit: for the scale bar.
        radiological: the axes are right, anterior, superior (`reoriented` makes them so), and planes are shown as
            radiologists do: the patient's right on the left, anterior up or on the left. Otherwise x runs to the
            right, y and z run down.
    """

    names: Mapping[str, int | tuple[int, ...]]
    spacing: tuple[float, ...]
    image: NDArray[Any] | None = None
    reference: NDArray[Any] | None = None
    prediction: NDArray[Any] | None = None
    unit: str = "mm"
    radiological: bool = False

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.image, self.reference, self.prediction) if a is not None}
        if len(shapes) != 1 or len(self.shape) not in (2, 3) or len(self.spacing) != len(self.shape):
            raise ValueError(f"an overlay needs arrays of one 2-D or 3-D shape, found {shapes}, spacing {self.spacing}")

    @property
    def shape(self) -> tuple[int, ...]:
        given = next((a for a in (self.image, self.reference, self.prediction) if a is not None), None)
        return () if given is None else tuple(int(n) for n in given.shape)


@dataclass(frozen=True)
class Plane:
    """One picture: arrays `(row, column)`, the first row on top.

    Attributes:
        steps: distance between rows and between columns, in the overlay's unit.
        edges: the directions left, right, above and below, as R, L, A, P, S, I; empty unless the scan is medical.
    """

    title: str
    image: NDArray[Any] | None
    reference: NDArray[Any] | None
    prediction: NDArray[Any] | None
    steps: tuple[float, float]
    edges: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        given = next(a for a in (self.image, self.reference, self.prediction) if a is not None)
        return int(given.shape[0]), int(given.shape[1])

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in the overlay's unit."""
        return self.shape[0] * self.steps[0], self.shape[1] * self.steps[1]


def reoriented(overlay: Overlay, affine: Affine) -> Overlay:
    """A 3-D overlay of a medical scan with its axes nearest to right, anterior, superior; 2-D comes back as it is.

    Args:
        affine: `(4, 4)`, voxel index to RAS+ position, of the overlay's grid.
    """
    if len(overlay.shape) == 2:
        return overlay
    turn = closest_ras(affine)

    def turned(array: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if array is None else turn.apply(array[None])[0]

    return replace(
        overlay,
        image=turned(overlay.image),
        reference=turned(overlay.reference),
        prediction=turned(overlay.prediction),
        spacing=tuple(overlay.spacing[axis] for axis in turn.axes),
        radiological=True,
    )


def shown_planes(overlay: Overlay) -> tuple[Plane, ...]:
    """The whole picture in 2-D; in 3-D one plane across each axis, where the reference has its largest area.

    Without a reference, or with an empty one, the prediction chooses; without either the middle.
    """
    return _planes_at(overlay, _largest_areas)


def disagreeing_planes(overlay: Overlay, ignore: int | None = None) -> tuple[Plane, ...]:
    """Planes as in `shown_planes`, but through most voxels on which reference and prediction disagree, if any.

    Args:
        ignore: the value of unannotated voxels in the reference, with which nothing disagrees.
    """

    def places(overlay: Overlay) -> tuple[int, ...]:
        if overlay.reference is None or overlay.prediction is None:
            return _largest_areas(overlay)
        wrong = (overlay.reference != overlay.prediction) & (overlay.reference != ignore)
        return _fullest(wrong) if wrong.any() else _largest_areas(overlay)

    return _planes_at(overlay, places)


def _planes_at(overlay: Overlay, choose: Callable[[Overlay], tuple[int, ...]]) -> tuple[Plane, ...]:
    if len(overlay.shape) == 2:
        return (_plane(overlay, (slice(None), slice(None)), ""),)
    places = choose(overlay)
    planes = []
    for axis in (2, 1, 0):
        cut: list[Any] = [slice(None)] * 3
        cut[axis] = places[axis]
        planes.append(
            _plane(overlay, tuple(cut), f"{_name(overlay, axis)} {places[axis] + 1} of {overlay.shape[axis]}")
        )
    return tuple(planes)


def _name(overlay: Overlay, axis: int) -> str:
    names = ("sagittal", "coronal", "axial") if overlay.radiological else ("YZ plane", "XZ plane", "XY plane")
    return names[axis]


def _largest_areas(overlay: Overlay) -> tuple[int, ...]:
    for labels in (overlay.reference, overlay.prediction):
        if labels is not None:
            mask = np.isin(labels, [v for value in overlay.names.values() for v in np.atleast_1d(value)])
            if mask.any():
                return _fullest(mask)
    return tuple(n // 2 for n in overlay.shape)


def _fullest(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Per axis, the slice across it that holds most of a mask."""
    others = [tuple(a for a in range(mask.ndim) if a != axis) for axis in range(mask.ndim)]
    return tuple(int(np.argmax(np.count_nonzero(mask, axis=rest))) for rest in others)


def _plane(overlay: Overlay, cut: tuple[Any, ...], title: str) -> Plane:
    across = [axis for axis, index in enumerate(cut) if isinstance(index, slice)]
    # Larger pictures than a screen only make the page heavy; every n-th voxel keeps label values as they are.
    stride = max(1, -(-max(overlay.shape[a] for a in across) // _LARGEST_SIDE))

    def shown(array: NDArray[Any] | None) -> NDArray[Any] | None:
        if array is None:
            return None
        flat = array[cut].T
        found: NDArray[Any] | None = (flat[::-1, ::-1] if overlay.radiological else flat)[::stride, ::stride]
        return found

    column, row = across
    letters = {(0, 1): "RLAP", (0, 2): "RLSI", (1, 2): "APSI"}
    return Plane(
        title=title,
        image=shown(overlay.image),
        reference=shown(overlay.reference),
        prediction=shown(overlay.prediction),
        steps=(overlay.spacing[row] * stride, overlay.spacing[column] * stride),
        edges=letters[column, row] if overlay.radiological else "",
    )
