"""Masks as other tools save them: grey, palette, RGB, with an alpha channel, one bit; brought into one form.

`formats` reads scans and label maps and refuses what has no single meaning for them; here it is a mask that is read, so
a palette stands for colours and an alpha channel may be the mask itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.conversion.colours import Codes, packed
from medunet.errors import DataError
from medunet.formats.dispatch import read_volume, suffix_of
from medunet.volume import Origin, Volume

_PICTURES = (".png", ".jpg", ".jpeg")
TIFFS = (".tif", ".tiff", ".ome.tif", ".ome.tiff")


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask file.

    Attributes:
        volume: its grid, with what was read.
        values: ``(*spatial)`` grey values, palette indices or label values; None for a mask in colours.
        colours: ``(*spatial)`` codes of its colours, for RGB and palettes; None for grey and label values.
        name: of the structure; None where the file's name says it.
    """

    path: Path
    volume: Volume
    values: NDArray[Any] | None
    colours: Codes | None
    name: str | None = None

    @property
    def lossy(self) -> bool:
        """True if the format changes values."""
        return suffix_of(self.path) in (".jpg", ".jpeg")

    @property
    def as_colours(self) -> Codes:
        """Codes of its colours; grey values are colours of three equal parts.

        Raises:
            DataError: values that are no grey of 8 bits.
        """
        if self.colours is not None:
            return self.colours
        assert self.values is not None
        values = self.values
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 255:
            raise DataError(
                f"{self.path}: {values.dtype} values up to {values.max()}; a colour table needs 8-bit colours"
            )
        return values.astype(np.uint32) * 0x010101


def read_mask(path: Path, axes: str | None = None) -> Mask:
    """Read a mask.

    RGB whose three parts are equal everywhere is grey, and one bit is 0 and 255. Where pixels of a picture or TIFF are
    transparent, the alpha channel is the mask if the colours say nothing else: one for what is visible, and the same or
    black for the rest.

    Raises:
        DataError: as `read_volume`; 16-bit colours, half-transparent pixels, or an alpha channel that contradicts the
            colours.
    """
    volume = _with_alpha(path) if suffix_of(path) in _PICTURES else read_volume(path, axes=axes)
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    if _one_bit(path, volume):
        array = array * np.uint8(255)  # white like that of others, so that masks of one set may be of both kinds
    if array.shape[0] == 1:
        palette = _palette(path)
        colours = None if palette is None else _looked_up(array[0], palette, path)
        return Mask(path, volume, array[0], colours)
    if array.shape[0] in (2, 4) and suffix_of(path) in (*_PICTURES, *TIFFS):  # others have no alpha channels
        array = _alpha_resolved(array, path)
    if array.shape[0] == 3 and not (array == array[:1]).all():
        if array.dtype != np.uint8:
            raise DataError(f"{path}: colours of type {array.dtype}; a colour-coded mask has 8 bits, save it so")
        return Mask(path, volume, None, packed(array))
    if array.shape[0] not in (1, 3):
        raise DataError(
            f"{path}: has {array.shape[0]} channels; a mask has one, or red, green and blue\n"
            "save each channel as a file of its own; if each is a structure, let this be the only mask of its image"
        )
    return Mask(path, volume, array[0], None)


def _one_bit(path: Path, volume: Volume) -> bool:
    if volume.array.dtype == bool:
        return True
    if suffix_of(path) not in _PICTURES:
        return False
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG")) as picture:
        return picture.mode == "1"


def _with_alpha(path: Path) -> Volume:
    """A picture as `read_volume` has it, but with the alpha channel where pixels are transparent."""
    from PIL import Image

    try:
        return read_volume(path)
    except DataError:
        with path.open("rb") as handle:
            try:
                picture = Image.open(handle, formats=("PNG",))
                pixels = np.array(picture) if picture.mode in ("LA", "RGBA") else None
            except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
                pixels = None  # what `read_volume` said of it is the message
        if pixels is None:
            raise
    return Volume(pixels.transpose(2, 1, 0), np.eye(4), "pixel", Origin(path, "picture"))


def _alpha_resolved(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Colours without alpha ``(c, *spatial)``, or the alpha channel ``(1, *spatial)`` where that is the mask."""
    colours, alpha = array[:-1], array[-1]
    full = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    clear = alpha == 0
    if (alpha == full).all():
        return colours
    partly = ~clear & (alpha != full)
    if partly.any():
        raise DataError(
            f"{path}: {partly.mean():.1%} of its pixels are half transparent; a mask has no smooth edges, save it "
            "without alpha channel"
        )
    visible, hidden = colours[:, ~clear], colours[:, clear]
    uniform = visible.size == 0 or (visible == visible[:, :1]).all()
    agrees = (hidden == 0).all() or (visible.size > 0 and (hidden == visible[:, :1]).all())
    if not uniform or not agrees:
        raise DataError(
            f"{path}: {clear.mean():.1%} of its pixels are transparent, and the others have several colours\n"
            "it is not clear what transparent pixels mean; save it without alpha channel"
        )
    found: NDArray[Any] = alpha[np.newaxis]
    return found


def _palette(path: Path) -> NDArray[np.uint8] | None:
    """Colours ``(n, 3)`` of a palette picture or TIFF; None where there is no palette."""
    if suffix_of(path) in _PICTURES:
        from PIL import Image

        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            entries = picture.getpalette("RGB") if picture.mode == "P" else None
        return None if entries is None else np.array(entries, np.uint8).reshape(-1, 3)
    if suffix_of(path) not in TIFFS:
        return None
    import tifffile

    with path.open("rb") as handle:
        page = tifffile.TiffFile(handle, name=path.name).pages[0].keyframe
        entries = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
    return None if entries is None else (np.asarray(entries).T >> 8).astype(np.uint8)


def _looked_up(indices: NDArray[Any], palette: NDArray[np.uint8], path: Path) -> Codes:
    if int(indices.max()) >= len(palette):
        raise DataError(f"{path}: holds palette index {int(indices.max())}, but its palette has {len(palette)} colours")
    found: Codes = packed(palette.T)[indices]
    return found
