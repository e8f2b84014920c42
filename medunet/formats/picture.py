"""PNG and JPEG: two-dimensional, without a physical size.

Pillow, opened for these two formats only, so that no other decoder is ever guessed from a file's content.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunet.errors import DataError, OutputError
from medunet.formats.voxels import stored_type
from medunet.system.blocks import Empty
from medunet.system.files import written_aside
from medunet.system.scratch import release
from medunet.volume import Grid, Origin, Volume

TYPES = ("uint8", "uint16")
_CHANNELS = {"1": 1, "L": 1, "P": 1, "I;16": 1, "I;16B": 1, "I": 1, "RGB": 3, "LA": 1, "RGBA": 3}
_NAMES = {
    "1": "1 bit",
    "P": "palette (read as its indices)",
    "LA": "grey and alpha",
    "L": "grey",
    "I;16": "16-bit grey",
}


def read(path: Path, empty: Empty = np.empty) -> Volume:
    """Read a picture as ``(channel, x, y)``, x along the width; unit ``pixel``, spacing 1.

    Grey with 8 or 16 bits, 1 bit (0 and 1), RGB with 8 or 16 bits. A palette PNG is read as its indices, which is
    what label maps use palettes for. An alpha channel is dropped where it is opaque everywhere. EXIF rotation is
    ignored: pixels stay where the file has them.

    Raises:
        DataError: damaged, larger than Pillow's limit against decompression bombs, animated, CMYK, or partly
            transparent.
    """
    with _opened(path) as picture:
        _channels(picture, path)
        deep = _deep_colour(path)
        try:
            pixels = _decode_deep(path) if deep else np.array(picture)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise DataError(f"{path}: damaged or truncated picture ({error}); make or copy it again") from error
        mode = picture.mode
    if mode in ("LA", "RGBA"):
        pixels = _without_alpha(pixels, path)
    if mode == "1":
        pixels = pixels.astype(np.uint8)
    if mode in ("I", "I;16B"):
        pixels = pixels.astype(np.uint16)
    array = pixels.T[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 1, 0)
    kept = empty(array.shape, array.dtype)  # Pillow decodes pictures as a whole, so that much memory was needed
    kept[...] = array
    release(kept)
    return Volume(kept, np.eye(4), "pixel", Origin(path, "picture"))


def look(path: Path) -> Grid:
    """The grid from the header.

    Raises:
        DataError: not PNG or JPEG, or a kind that `read` refuses by its header.
    """
    with _opened(path) as picture:
        channels = _channels(picture, path)
        sixteen = picture.mode.startswith("I") or _deep_colour(path)
        details = {"picture": f"{picture.format}, {_NAMES.get(picture.mode, picture.mode)}"}
        size = (int(picture.size[0]), int(picture.size[1]))
    return Grid(size, channels, np.eye(4), "pixel", "uint16" if sixteen else "uint8", "picture", details)


def write(volume: Volume, path: Path, overwrite: bool = False) -> None:
    """Write a PNG: one channel of 8 or 16 bits, or RGB with 8.

    A PNG holds no physical size that anybody trusts, so spacing and unit are lost.

    Raises:
        OutputError: JPEG (it is lossy, labels would change), three-dimensional, fractions, or values beyond 16 bits.
    """
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: JPEG changes values, so nothing is written as JPEG; write .png instead")
    if volume.dimensions != 2 or volume.channels not in (1, 3):
        raise OutputError(
            f"{path}: a PNG holds one or three channels in two dimensions, found {volume.channels} channels of shape "
            f"{volume.shape}; write .tif or .nii.gz instead"
        )
    array, dtype = volume.array, stored_type(volume.array, TYPES, path)
    if array.shape[0] == 3 and dtype != np.uint8:
        raise OutputError(f"{path}: RGB PNG holds 8 bits, found {dtype}; write .tif instead")
    pixels = array[0].T if array.shape[0] == 1 else array.transpose(2, 1, 0)
    with written_aside(path, overwrite) as aside:
        Image.fromarray(np.ascontiguousarray(pixels, dtype)).save(aside, format="PNG")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, its header read and (PNG) every checksum verified."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow on odd metadata that medunet does not use
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                picture.verify()
            picture = Image.open(path, formats=("PNG", "JPEG"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which is refused in PNG and JPEG as a possible "
            "decompression bomb\nconvert it to TIFF"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a PNG or JPEG, or damaged ({error}); make or copy it again") from error
    with picture:
        yield picture


def _channels(picture: Image.Image, path: Path) -> int:
    if picture.mode not in _CHANNELS:
        raise DataError(f"{path}: colour mode {picture.mode}; expected grey, palette, RGB or opaque RGBA, convert it")
    if getattr(picture, "n_frames", 1) > 1:
        raise DataError(f"{path}: animated, with several frames; expected one picture, convert it to a TIFF stack")
    return _CHANNELS[picture.mode]


def _deep_colour(path: Path) -> bool:
    """True for a PNG with colour or alpha of 16 bits, which Pillow silently cuts down to 8."""
    with path.open("rb") as handle:
        head = handle.read(26)
    return head.startswith(b"\x89PNG") and head[24] == 16 and head[25] in (2, 4, 6)


def _decode_deep(path: Path) -> NDArray[Any]:
    import imagecodecs

    try:
        return np.array(imagecodecs.png_decode(path.read_bytes()))
    except imagecodecs.PngError as error:
        raise ValueError(str(error)) from error


def _without_alpha(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    alpha = pixels[..., -1]
    if (alpha != np.iinfo(pixels.dtype).max).any():
        raise DataError(
            f"{path}: {np.mean(alpha != np.iinfo(pixels.dtype).max):.0%} of its pixels are transparent, which has no "
            "meaning for a segmentation; save it without alpha channel"
        )
    return pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :-1]
