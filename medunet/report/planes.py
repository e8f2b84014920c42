"""Planes of a scan in a picture: their choice, and their orientation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.geometry.grids import Affine, closest_ras
from medunet.report.colours import label_colours

_LARGEST_SIDE = 1024
_LAYERS = ("image", "reference", "prediction")


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
        shapes = {layer.shape for layer in _layers(self).values()}
        if len(shapes) != 1 or len(self.shape) not in (2, 3) or len(self.spacing) != len(self.shape):
            raise ValueError(f"an overlay needs arrays of one 2-D or 3-D shape, found {shapes}, spacing {self.spacing}")

    @property
    def shape(self) -> tuple[int, ...]:
        return next((tuple(int(n) for n in layer.shape) for layer in _layers(self).values()), ())

    @property
    def coloured(self) -> list[tuple[str, int | tuple[int, ...], str]]:
        """Name, value and colour of each structure."""
        colours = label_colours(len(self.names))
        return [(name, value, colour) for (name, value), colour in zip(self.names.items(), colours, strict=True)]


@dataclass(frozen=True)
class Plane:
    """One picture: arrays `(row, column)`, the first row on top.

    Attributes:
        steps: distance between rows and between columns, in the overlay's unit.
        edges: the directions left, right, above and below, as R, L, A, P, S, I; empty unless the scan is medical.
    """

    title: str
    steps: tuple[float, float]
    edges: str = ""
    image: NDArray[Any] | None = None
    reference: NDArray[Any] | None = None
    prediction: NDArray[Any] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = next(iter(_layers(self).values())).shape
        return int(rows), int(columns)

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in the overlay's unit."""
        return self.shape[0] * self.steps[0], self.shape[1] * self.steps[1]

    def pixels(self, scale: float) -> tuple[int, int]:
        """Rows and columns at so many pixels per unit, at least one."""
        return max(1, round(self.extent[0] * scale)), max(1, round(self.extent[1] * scale))


def _layers(shown: Overlay | Plane) -> dict[str, NDArray[Any]]:
    """The image and the label maps by name, those that are there."""
    return {name: layer for name in _LAYERS if (layer := getattr(shown, name)) is not None}


def legend_of(overlay: Overlay, planes: Sequence[Plane]) -> list[tuple[str, str]]:
    """Name and colour of each structure that is seen in reference or prediction."""
    layers = [labels for plane in planes for labels in (plane.reference, plane.prediction) if labels is not None]
    present = np.unique(np.concatenate([np.unique(labels) for labels in layers])) if layers else np.array([])
    return [(name, colour) for name, value, colour in overlay.coloured if np.isin(present, value).any()]


def reoriented(overlay: Overlay, affine: Affine) -> Overlay:
    """A 3-D overlay of a medical scan with its axes nearest to right, anterior, superior; 2-D comes back as it is.

    Args:
        affine: `(4, 4)`, voxel index to RAS+ position, of the overlay's grid.
    """
    if len(overlay.shape) == 2:
        return overlay
    turn = closest_ras(affine)
    spacing = tuple(overlay.spacing[axis] for axis in turn.axes)
    turned = {name: turn.apply(layer[None])[0] for name, layer in _layers(overlay).items()}
    return replace(overlay, spacing=spacing, radiological=True, **turned)


def shown_planes(overlay: Overlay) -> tuple[Plane, ...]:
    """The whole picture in 2-D; in 3-D one plane across each axis, where the reference has its largest area.

    Without a reference, or with an empty one, the prediction chooses; without either the middle.
    """
    return _planes_at(overlay, _largest_areas(overlay))


def disagreeing_planes(overlay: Overlay, ignore: int | None = None) -> tuple[Plane, ...]:
    """Planes as in `shown_planes`, but through most voxels on which reference and prediction disagree, if any.

    Args:
        ignore: the value of unannotated voxels in the reference, with which nothing disagrees.
    """
    if overlay.reference is not None and overlay.prediction is not None:
        wrong = (overlay.reference != overlay.prediction) & (overlay.reference != ignore)
        if wrong.any():
            return _planes_at(overlay, _fullest(wrong))
    return shown_planes(overlay)


def _planes_at(overlay: Overlay, places: tuple[int, ...]) -> tuple[Plane, ...]:
    """The whole picture in 2-D; in 3-D the planes across each axis at these places."""
    if len(overlay.shape) == 2:
        return (_plane(overlay, (slice(None), slice(None)), ""),)
    names = ("sagittal", "coronal", "axial") if overlay.radiological else ("YZ plane", "XZ plane", "XY plane")
    planes = []
    for axis in (2, 1, 0):
        cut: list[Any] = [slice(None)] * 3
        cut[axis] = places[axis]
        planes.append(_plane(overlay, tuple(cut), f"{names[axis]} {places[axis] + 1} of {overlay.shape[axis]}"))
    return tuple(planes)


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
    flat = {name: layer[cut].T for name, layer in _layers(overlay).items()}
    shown = {name: layer[::-1, ::-1] if overlay.radiological else layer for name, layer in flat.items()}
    column, row = across
    letters = {(0, 1): "RLAP", (0, 2): "RLSI", (1, 2): "APSI"}
    return Plane(
        title=title,
        steps=(overlay.spacing[row] * stride, overlay.spacing[column] * stride),
        edges=letters[column, row] if overlay.radiological else "",
        **{name: layer[::stride, ::stride] for name, layer in shown.items()},
    )
