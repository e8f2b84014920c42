"""Axes of a TIFF: the meaning of each axis, the names of channels, and whether the file is one image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from medunet.errors import DataError
from medunet.formats import pixel_size
from medunet.system.wording import times_text

_BARE = frozenset({"generic", "uniform", "shaped", "imagej"})
"""Kinds of series whose file is meant to be one stack; a scanner's formats hold overviews and labels besides."""


def known_axes(axes: str, shape: tuple[int, ...], path: Path, frame: int | None = None) -> str:
    """The file's own axes, if they say what every one of them is.

    Raises:
        DataError: they do not, or there are several time points and no `frame` was chosen.
    """
    lengths = dict(zip(axes, shape, strict=True))
    allowed = "CSZYX" if frame is None else "TCSZYX"
    unknown = {axis: n for axis, n in lengths.items() if axis not in allowed and n > 1}
    if unknown.get("T"):
        free = next((letter for letter in "ZC" if letter not in axes), None)
        hint = f"; or say --axes {axes.replace('T', free)} if that is what the axis means" if free else ""
        raise DataError(
            f"{path}: {unknown['T']} time points (axes {axes}, shape {shape}); expected one volume\n"
            f"split it by time; inspect and predict also take one of them, --frame 1 to --frame {unknown['T']}{hint}"
        )
    if unknown or "X" not in axes or "Y" not in axes:
        raise DataError(
            f"{path}: its pages of shape {shape} do not say what their axes are (tifffile: {axes})\n"
            f"say it with --axes, for example --axes {'ZYX' if len(shape) == 3 else 'ZCYX'} "
            f"{'for slices, CYX for channels' if len(shape) == 3 else 'for slices with channels'}"
        )
    return axes


def stated_axes(axes: str, shape: tuple[int, ...], path: Path, frame: int | None = None) -> str:
    """The axes that the user states, if they can be this file's.

    Raises:
        DataError: they cannot.
    """
    axes = axes.upper()
    if len(set(axes)) != len(axes) or not set("XY") <= set(axes) <= set("TCSZYX"):
        raise DataError(
            f"{path}: --axes {axes}: expected Y, X and some of Z, C, S, each once, slowest first, such as ZYX"
        )
    if len(axes) != len(shape):
        raise DataError(f"{path}: --axes {axes} names {len(axes)} axes, but the file has {len(shape)}: shape {shape}")
    if frame is None and "T" in axes and shape[axes.index("T")] > 1:
        raise DataError(
            f"{path}: --axes {axes}: {shape[axes.index('T')]} time points; expected one volume, split it by time "
            "(inspect and predict also take one, --frame 1 and so on)"
        )
    return axes


def chosen_frame(axes: str, shape: tuple[int, ...], path: Path, frame: int | None) -> int | None:
    """The index of the frame that is read, None where the file has no time axis and none was asked for.

    Raises:
        DataError: a frame that the file does not have; they are counted from 1.
    """
    if frame is None:
        return None
    times = shape[axes.index("T")] if "T" in axes else 0
    if not times:
        raise DataError(f"{path}: --frame {frame}: has no time axis (axes {axes}); leave --frame out")
    if not 1 <= frame <= times:
        raise DataError(f"{path}: --frame {frame}: has the frames 1 to {times}")
    return frame - 1


def check_one_image(file: Any, path: Path, stated: bool) -> None:
    """Refuse files whose pages are not one image, so that nobody gets the first part of them unawares.

    Raises:
        DataError: pages of different size or type, several OME images of one shape (positions), or OME metadata that
            lies in another file, unless the axes of this one are `stated`.
    """
    first = file.series[0]
    others = [series for series in file.series[1:] if not series.keyframe.is_reduced]
    if others and first.kind in _BARE:
        found = Counter((tuple(page.shape), str(page.dtype)) for page in file.pages if not page.is_reduced)
        parts = [f"{n} of {times_text(shape)} {dtype}" for (shape, dtype), n in found.most_common(4)]
        raise DataError(
            f"{path}: its pages are not one stack: {', '.join(parts)} (height × width)\n"
            "expected pages of one size and type; save each image in a file of its own"
        )
    alike = [series for series in others if series.shape == first.shape]
    if alike and first.kind == "ome":
        names = ", ".join(repr(series.name) for series in (first, *alike[:3]))
        raise DataError(
            f"{path}: {len(alike) + 1} OME images of one shape {first.shape} ({names}); expected one volume\n"
            "they are positions of a stage, or wells: save each in a file of its own"
        )
    if file.is_ome and first.kind != "ome" and not stated:
        raise DataError(
            f"{path}: its OME metadata are for a set of files, or lie in a companion file, so this one does not say "
            "what its pages are\nsave the set as one OME-TIFF (Fiji: Bio-Formats Exporter), or state the axes of this "
            "file alone with --axes"
        )


def channel_names(file: Any, kind: str, count: int) -> tuple[str, ...]:
    """The names of the channels in OME-XML or ImageJ's labels; empty unless every channel has a name."""
    names: list[str] = []
    if kind == "ome":
        names = pixel_size.ome_channels(file.ome_metadata or "")
    elif kind == "imagej" and count > 1:
        labels = [str(label) for label in (file.imagej_metadata or {}).get("Labels") or ()]
        # ImageJ labels planes, channels first: names of channels are those that every slice repeats
        repeated = len(labels) % count == 0 and labels == labels[:count] * (len(labels) // count)
        names = labels[:count] if repeated else []
    names = [" ".join(name.split()) for name in names]
    return tuple(names) if len(names) == count and all(names) and len(set(names)) == count else ()
