"""The lookup table that makes a label map readable in ImageJ and Fiji: background black, neighbours set apart."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

COLOUR_MAP = 320
"""TIFF's tag ColorMap. ImageJ keeps the lookup table of grey images in it; readers that do not know that ignore it."""

_GOLDEN_RATIO = 0.618034
_MOST_SEEN = 511
"""The largest end of ImageJ's display range for 16 bits at which value 1 is not yet drawn in the background's black."""


def lookup_table() -> NDArray[np.uint8]:
    """``(3, 256)`` red, green and blue: index 0 is black, all others are light and strong."""
    colours = [(0.0, 0.0, 0.0)]
    for index in range(255):
        # hues by the golden ratio never repeat; steps of lightness set neighbours apart without hue as well
        lightness, saturation = ((0.62, 0.85), (0.78, 0.75), (0.52, 0.60))[index % 3]
        colours.append(colorsys.hls_to_rgb((0.1 + index * _GOLDEN_RATIO) % 1, lightness, saturation))
    found: NDArray[np.uint8] = np.rint(np.array(colours).T * 255).astype(np.uint8)
    return found


def colour_map_tag() -> tuple[int, str, int, tuple[int, ...], bool]:
    """The tag as tifffile takes it, of all 16 bits, as ImageJ's own files have it.

    It goes into every page: ImageJ takes 8-bit pages with and without it for different kinds, and opens the first only.
    """
    values = (lookup_table().astype(np.uint16) * 257).ravel()
    return COLOUR_MAP, "H", values.size, tuple(values.tolist()), False


def display_range(top: float, bits: int) -> tuple[float, float]:
    """ImageJ's `min` and `max`, so that no object is black.

    With 8 bits, and labels up to 255, the index of the colour is the label. Larger labels share colours, and those
    above 511 all have the last one: a wider range would hide the first ones in the background.
    """
    return 0.0, 255.0 if bits == 8 or top <= 255 else float(_MOST_SEEN)
