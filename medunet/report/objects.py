"""Maps of object ids in colours, reference and prediction side by side, with the wrong objects marked."""

from __future__ import annotations

import colorsys
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunet.report.pictures import grey_window, png_bytes
from medunet.report.planes import Overlay, disagreeing_planes
from medunet.report.raster import GAP, grey_picture, nearest, page_of

_WRONG, _MISTAKEN = (255, 72, 48), (255, 214, 0)
_GOLDEN_RATIO = 0.618034
_FILLED = 0.35

OBJECT_LEGEND = (
    ("missed (left of the two) or invented (right)", "#ff4830"),
    ("split (left) or merged (right)", "#ffd600"),
    ("found: partners have one colour, from green to violet", "#30b0c0"),
)
"""What the colours of `object_picture` mean, for a page's legend."""

OBJECT_PICTURES = (
    "The image, the objects of the reference, and those of the prediction in the colours of their partners. Of a "
    "volume, the plane across its last axis where they disagree most. Ignored voxels are darker."
)


@dataclass(frozen=True)
class MarkedObjects:
    """The ids that are marked, on each side."""

    missed: Collection[int] = ()
    split: Collection[int] = ()
    invented: Collection[int] = ()
    merged: Collection[int] = ()


def object_picture(
    overlay: Overlay, marked: MarkedObjects, ignore: NDArray[np.bool_] | None = None, width: int = 1500
) -> bytes:
    """A PNG of an image (if there is one), the reference's and the prediction's objects.

    Args:
        overlay: with both maps of ids; equal ids get equal colours, so give partners one id. `names` hold all ids of
            the reference, and choose the plane of a volume.
        ignore: unannotated voxels, of the overlay's shape.
        width: of the whole picture, in pixels.
    """
    plane = disagreeing_planes(overlay)[0]
    assert plane.reference is not None and plane.prediction is not None
    count = 2 if plane.image is None else 3
    room = (width - GAP * (count + 1)) / count
    size = plane.pixels(min(room / plane.extent[1], room / plane.extent[0]))  # never higher than wide
    grey = grey_picture(plane, size, grey_window((plane,)))
    if ignore is not None:
        grey[nearest(_plane_of_mask(overlay, ignore), size)] //= 2
    panels = [] if plane.image is None else [("image", grey)]
    panels.append(("reference", _drawn(grey, nearest(plane.reference, size), marked.missed, marked.split)))
    panels.append(("prediction", _drawn(grey, nearest(plane.prediction, size), marked.invented, marked.merged)))
    names = [f"{name}   {plane.title}" if plane.title else name for name, _ in panels]
    page = page_of([panel for _, panel in panels], names, GAP + (size[1] + GAP) * count)
    return png_bytes(Image.fromarray(page))


def _plane_of_mask(overlay: Overlay, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The plane of a mask that `disagreeing_planes` chooses for the overlay."""
    shown = disagreeing_planes(replace(overlay, image=mask))[0].image
    assert shown is not None
    return shown


def _drawn(
    grey: NDArray[np.uint8], ids: NDArray[Any], wrong: Collection[int], mistaken: Collection[int]
) -> NDArray[np.uint8]:
    """The picture with each object tinted and outlined; wrong and mistaken ones more strongly."""
    found, position = np.unique(ids, return_inverse=True)
    position = position.reshape(ids.shape)
    colours = np.array([_colour(int(value)) for value in found], np.float32)
    is_wrong, is_mistaken = np.isin(found, list(wrong)), np.isin(found, list(mistaken))
    colours[is_mistaken], colours[is_wrong] = _MISTAKEN, _WRONG
    marked = (is_wrong | is_mistaken)[position]
    inside = ids != 0
    edge = inside & (_edge(position, 1) | (_edge(position, 3) & marked))
    share = np.where(edge, 1.0, np.where(inside, _FILLED, 0.0))[..., None]
    drawn: NDArray[np.uint8] = (grey * (1 - share) + colours[position] * share).astype(np.uint8)
    return drawn


def _colour(number: int) -> tuple[float, ...]:
    """Green to violet by the golden ratio; yellow and red are for marks."""
    hue = 0.28 + 0.5 * (number * _GOLDEN_RATIO % 1)
    lightness = (0.5, 0.64, 0.74)[number % 3]
    return tuple(255 * part for part in colorsys.hls_to_rgb(hue, lightness, 0.8))


def _edge(ids: NDArray[Any], wide: int) -> NDArray[np.bool_]:
    """Pixels with another id within so many pixels along an axis."""
    edge = np.zeros(ids.shape, dtype=bool)
    for step in range(1, wide + 1):
        for axis in (0, 1):
            if ids.shape[axis] <= step:
                continue
            first = (slice(None),) * axis + (slice(None, -step),)
            second = (slice(None),) * axis + (slice(step, None),)
            other = ids[first] != ids[second]
            edge[first] |= other
            edge[second] |= other
    return edge
