"""Colours of labels, the same one in every picture, plot and legend of a report."""

from __future__ import annotations

import colorsys

# Okabe and Ito's palette for colour-blind readers, without black and grey; its dark blue is lightened for dark scans.
_COLOUR_BLIND_SAFE = ("#e69f00", "#56b4e9", "#00b888", "#f0e442", "#e0602a", "#d98cbb", "#4f8df5")
_GOLDEN_RATIO = 0.618034


def label_colours(count: int) -> tuple[str, ...]:
    """One `#rrggbb` per label: safe for colour-blind readers up to seven, as different as can be beyond."""
    if count <= len(_COLOUR_BLIND_SAFE):
        return _COLOUR_BLIND_SAFE[:count]
    more = [_spread(index) for index in range(count - len(_COLOUR_BLIND_SAFE))]
    return (*_COLOUR_BLIND_SAFE, *more)


def _spread(index: int) -> str:
    """Hues by the golden ratio never repeat; two steps of lightness set neighbours apart without hue as well."""
    hue = (0.96 + index * _GOLDEN_RATIO) % 1
    lightness, saturation = ((0.62, 0.85), (0.78, 0.75), (0.52, 0.60))[index % 3]
    return hexadecimal(colorsys.hls_to_rgb(hue, lightness, saturation))


def tinted(colour: str, share: float = 0.6) -> str:
    """The colour mixed with white; `share` is the white part, 0 to 1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return hexadecimal(tuple(part + (1 - part) * share for part in parts))


def hexadecimal(rgb: tuple[float, ...]) -> str:
    """`#rrggbb` of three parts between 0 and 1."""
    return "#" + "".join(f"{round(part * 255):02x}" for part in rgb)
