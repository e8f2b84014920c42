"""Outlines of truth and prediction as plain pixels: some milliseconds a picture, for every validation of a training.

`pictures.py` draws finer lines with matplotlib for the report, and takes a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunet.report.colours import tinted
from medunet.report.pictures import grey_window
from medunet.report.planes import Overlay, Plane, disagreeing_planes, legend_of

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

DARK, LIGHT = (16, 20, 24), (232, 236, 239)
GAP, LINE = 6, 20
"""Pixels between panels, and the height of a line of text."""

_MOST_NAMES = 24
_DASH = 4


def outlined(overlay: Overlay, title: str = "", width: int = 900, ignore: int | None = None) -> NDArray[np.uint8]:
    """A scan with the reference's outlines solid and the prediction's dashed and paler, where they disagree most.

    Three planes in 3-D, all to one scale and with their physical proportions; in 2-D the picture bare and outlined.

    Args:
        title: above the picture, in one line.
        width: in pixels.
        ignore: the value of unannotated voxels in the reference, which are shown darker.

    Returns:
        RGB `(row, column, 3)`.
    """
    planes = disagreeing_planes(overlay, ignore)
    bare_first = len(planes) == 1 and overlay.image is not None
    panels = (planes[0], planes[0]) if bare_first else planes
    scale = _scale(panels, width)
    window = grey_window(planes)
    drawn = [
        _panel(plane, overlay, (scale, window), ignore, bare_first and number == 0)
        for number, plane in enumerate(panels)
    ]
    return page_of(drawn, [plane.title for plane in panels], width, title, _first(legend_of(overlay, planes)))


def _scale(planes: Sequence[Plane], width: int) -> float:
    """Pixels per unit of length, so that the planes fill the width but never are higher than wide."""
    room = width - GAP * (len(planes) + 1)
    return min(room / sum(plane.extent[1] for plane in planes), width / max(plane.extent[0] for plane in planes))


def _panel(
    plane: Plane, overlay: Overlay, shown: tuple[float, tuple[float, float]], ignore: int | None, bare: bool
) -> NDArray[np.uint8]:
    scale, window = shown
    size = plane.pixels(scale)
    picture = grey_picture(plane, size, window)
    if bare:
        return picture
    if ignore is not None and plane.reference is not None:
        picture[nearest(plane.reference, size) == ignore] //= 2
    for labels, dashed in ((plane.reference, False), (plane.prediction, True)):
        if labels is not None:
            _draw_outlines(picture, nearest(labels, size), overlay, dashed)
    return picture


def grey_picture(plane: Plane, size: tuple[int, int], window: tuple[float, float]) -> NDArray[np.uint8]:
    """The image of a plane in `(rows, columns)` pixels as RGB; black without an image."""
    low, high = window
    image = np.zeros(plane.shape) if plane.image is None else np.nan_to_num(plane.image.astype(np.float32))
    levels = (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    smooth = np.array(Image.fromarray(levels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return np.repeat(smooth[..., None], 3, axis=2)


def nearest(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The array in `(rows, columns)` pixels by the nearest voxel, which keeps labels."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, array.shape, strict=True))
    return array[np.ix_(rows, columns)]


def _draw_outlines(picture: NDArray[np.uint8], labels: NDArray[Any], overlay: Overlay, dashed: bool) -> None:
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    dash = ((rows + columns) // _DASH) % 2 == 0
    present = np.unique(labels)
    for _, value, colour in overlay.coloured:
        if not np.isin(present, value).any():
            continue
        edge = _edge(np.isin(labels, value))
        picture[edge & dash if dashed else edge] = _rgb(tinted(colour, 0.6) if dashed else colour)


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask with a neighbour outside it; beyond the picture is outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _first(entries: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first entries of a legend where there are many."""
    more = len(entries) - _MOST_NAMES
    return [*entries[:_MOST_NAMES], (f"and {more} more", "#101418")] if more > 0 else entries


def page_of(
    panels: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    width: int,
    title: str = "",
    entries: Sequence[tuple[str, str]] = (),
) -> NDArray[np.uint8]:
    """Title, panels side by side with their names above, and the legend below, on a dark page."""
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    rows = _wrapped([name for name, _ in entries], font, width)
    top = LINE * (bool(title) + any(names))
    height = top + max(len(panel) for panel in panels) + GAP + LINE * (1 + max(rows, default=-1))
    page = Image.new("RGB", (width, height), DARK)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 2), title, fill=LIGHT, font=font)
    left = (width - sum(panel.shape[1] for panel in panels) - GAP * (len(panels) - 1)) // 2
    for panel, name in zip(panels, names, strict=True):
        draw.text((left, top - LINE + 2), name, fill=LIGHT, font=font)
        page.paste(Image.fromarray(panel), (left, top))
        left += panel.shape[1] + GAP
    _draw_legend(draw, entries, rows, font, height - LINE * (1 + max(rows, default=-1)))
    return np.array(page)


def _entry_width(name: str, font: Font) -> int:
    return round(font.getlength(name)) + 34


def _wrapped(names: Sequence[str], font: Font, width: int) -> list[int]:
    """The line that each name of the legend stands in."""
    lines, line, used = [], 0, 0
    for name in names:
        if used and used + _entry_width(name, font) > width:
            line, used = line + 1, 0
        lines.append(line)
        used += _entry_width(name, font)
    return lines


def _draw_legend(
    draw: ImageDraw, entries: Sequence[tuple[str, str]], rows: Sequence[int], font: Font, top: int
) -> None:
    left, before = GAP, 0
    for (name, colour), row in zip(entries, rows, strict=True):
        left, before = (left if row == before else GAP), row
        y = top + row * LINE
        draw.rectangle((left, y + 4, left + 12, y + 14), fill=_rgb(colour))
        draw.text((left + 18, y + 2), name, fill=LIGHT, font=font)
        left += _entry_width(name, font)
