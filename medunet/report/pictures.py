"""Outlines of truth and prediction on a scan, drawn with matplotlib's Agg canvas and no global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunet.report.colours import tinted
from medunet.report.planes import Overlay, Plane, legend_of, shown_planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DARK = "#101418"
_LIGHT = "#e8ecef"
_DASHES = (0, (2.2, 1.6))
_WIDTH = 9.0
"""Of a picture in inches, at 160 dots per inch."""


def overlay_picture(overlay: Overlay, legend: bool = True) -> bytes:
    """A PNG of a scan with the reference's outlines solid and the prediction's dashed.

    Three planes in 3-D, each with its physical proportions and all to one scale; in 2-D the picture alone and, beside
    it, the picture with the outlines.

    Args:
        legend: name the labels that are shown and the line styles below the picture.
    """
    return figure_png(_overlay_figure(overlay, legend), dpi=160)


def figure_png(figure: Figure, dpi: int) -> bytes:
    """A figure as the bytes of a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return png_bytes(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3].copy()))


def png_bytes(picture: Image.Image) -> bytes:
    """A PNG of 256 colours: a third of the size in a page, and no difference to the eye."""
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _overlay_figure(overlay: Overlay, legend: bool) -> Figure:
    planes = shown_planes(overlay)
    # A single picture is shown bare as well: outlines hide what they follow.
    bare_first = len(planes) == 1 and overlay.image is not None
    panels = (planes[0], planes[0]) if bare_first else planes
    entries = _legend_entries(overlay, planes) if legend else []
    figure, axes = _panels(panels, room=0.08 + 0.24 * -(-len(entries) // 5))
    window, wide = grey_window(planes), _line_width(planes)
    for index, (ax, plane) in enumerate(zip(axes, panels, strict=True)):
        _draw_image(ax, plane, window)
        if not (bare_first and index == 0):
            _draw_outlines(ax, plane, overlay, wide)
    _draw_scale(axes[0], planes[0], overlay.unit)
    if entries:
        box = figure.legend(handles=entries, loc="outside lower center", ncols=min(5, len(entries)), fontsize=8)
        box.get_frame().set(facecolor=_DARK, edgecolor="none")
        for text in box.get_texts():
            text.set_color(_LIGHT)
    return figure


def _panels(planes: Sequence[Plane], room: float) -> tuple[Figure, list[Axes]]:
    """A figure with one axes per plane, all to one scale; `room` is the height in inches of what is not picture."""
    from matplotlib.figure import Figure

    widest = max(plane.extent[1] for plane in planes)
    shares = [max(plane.extent[1], 0.2 * widest) for plane in planes]
    tallest = max(plane.extent[0] * share / plane.extent[1] for plane, share in zip(planes, shares, strict=True))
    # A tall and narrow picture is made smaller, not longer than a page.
    height = min(max(_WIDTH * tallest / sum(shares), 0.5), _WIDTH)
    titles = 0.22 if planes[0].title else 0.0
    figure = Figure(figsize=(_WIDTH, height + titles + room), facecolor=_DARK)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01)
    return figure, list(figure.subplots(1, len(planes), width_ratios=shares, squeeze=False)[0])


def grey_window(planes: Sequence[Plane]) -> tuple[float, float]:
    """Grey values from black to white: the middle 99 % of what is shown, without the padding around the scan."""
    if planes[0].image is None:
        return 0.0, 1.0
    values = np.concatenate([np.asarray(p.image, dtype=np.float32).ravel() for p in planes])
    values = values[np.isfinite(values)]
    inside = values[values > values.min()] if values.size else values
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _draw_image(ax: Axes, plane: Plane, window: tuple[float, float]) -> None:
    height, width = plane.extent
    image = np.zeros(plane.shape) if plane.image is None else np.nan_to_num(plane.image.astype(np.float32))
    # Interpolating a few large voxels reads better than blocks; small ones are shown as they are.
    smooth = "bicubic" if max(plane.shape) < 200 else "antialiased"
    ax.imshow(
        image, cmap="gray", vmin=window[0], vmax=window[1], extent=(0, width, height, 0), interpolation=smooth,
        aspect="equal",
    )  # fmt: skip
    ax.set_anchor("N")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if plane.title:
        ax.set_title(plane.title, color=_LIGHT, fontsize=8, pad=3)
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"))
    for letter, (x, y, across, along) in zip(plane.edges[:3], places, strict=False):
        written = ax.text(x, y, letter, transform=ax.transAxes, color=_LIGHT, fontsize=8, ha=across, va=along)
        written.set_path_effects(_halo())


def _draw_outlines(ax: Axes, plane: Plane, overlay: Overlay, wide: float) -> None:
    from matplotlib import patheffects

    _tint(ax, plane, overlay)
    for _, value, colour in overlay.coloured:
        for labels, dashed in ((plane.reference, False), (plane.prediction, True)):
            if labels is None or not (mask := np.isin(labels, value)).any():
                continue
            lines = _contour(ax, mask, plane.steps)
            lines.set(edgecolor=tinted(colour, 0.7) if dashed else colour, linewidth=0.65 * wide if dashed else wide)
            if dashed:
                lines.set_linestyle(_DASHES)
                lines.set_path_effects([patheffects.withStroke(linewidth=1.2 * wide, foreground="#000000a0")])


def _line_width(planes: Sequence[Plane]) -> float:
    """Thin lines where a row of the picture crosses many outlines: thick ones would hide it."""
    crossings = 0.0
    for plane in planes:
        labels = plane.reference if plane.reference is not None else plane.prediction
        if labels is not None:
            crossings = max(crossings, float(np.mean(np.sum(labels[:, 1:] != labels[:, :-1], axis=1))))
    return 1.0 if crossings > 8 else 1.7


def _tint(ax: Axes, plane: Plane, overlay: Overlay) -> None:
    """Colour the reference faintly, so that one sees on which side of an outline the structure lies."""
    from matplotlib.colors import to_rgba

    if plane.reference is None:
        return
    height, width = plane.extent
    layer = np.zeros((*plane.shape, 4), dtype=np.float32)
    for _, value, colour in overlay.coloured:
        layer[np.isin(plane.reference, value)] = to_rgba(colour, 0.2)
    ax.imshow(layer, extent=(0, width, height, 0), interpolation="nearest", aspect="equal")


def _contour(ax: Axes, mask: NDArray[np.bool_], steps: tuple[float, float]) -> Any:
    """The outline half a voxel around the mask's voxel centres, closed at the border of the picture."""
    padded = np.pad(mask, 1).astype(np.float32)
    rows = (np.arange(padded.shape[0]) - 0.5) * steps[0]
    columns = (np.arange(padded.shape[1]) - 0.5) * steps[1]
    limits = ax.get_xlim(), ax.get_ylim()
    lines = ax.contour(columns, rows, padded, levels=[0.5])
    ax.set(xlim=limits[0], ylim=limits[1])
    return lines


def _draw_scale(ax: Axes, plane: Plane, unit: str) -> None:
    """A bar of 1, 2 or 5 times a power of ten, about a quarter of the picture wide."""
    height, width = plane.extent
    power = 10.0 ** np.floor(np.log10(0.3 * width))
    length = max(step * power for step in (1, 2, 5) if step * power <= 0.3 * width)
    left, bottom = 0.04 * width, 0.955 * height
    (bar,) = ax.plot([left, left + length], [bottom, bottom], color=_LIGHT, linewidth=2.2, solid_capstyle="butt")
    bar.set_path_effects(_halo())
    shown = "µm" if unit == "um" else unit
    above = bottom - 0.02 * height
    written = ax.text(left, above, f"{length:g} {shown}", color=_LIGHT, fontsize=8, ha="left", va="bottom")
    written.set_path_effects(_halo())


def _halo() -> list[Any]:
    """A dark rim that keeps light letters readable on a bright scan."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=2.5, foreground=_DARK)]


def _legend_entries(overlay: Overlay, planes: Sequence[Plane]) -> list[Any]:
    from matplotlib.lines import Line2D

    seen = legend_of(overlay, planes)
    entries = [Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in seen]
    if overlay.reference is not None:
        entries.append(Line2D([], [], color=_LIGHT, linewidth=1.7, label="reference"))
    if overlay.prediction is not None:
        entries.append(Line2D([], [], color=_LIGHT, linewidth=1.2, linestyle=_DASHES, label="prediction"))
    return entries
