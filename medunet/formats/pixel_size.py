"""Pixel sizes in TIFF: OME-XML, ImageJ's description, or the resolution tags."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

MICROMETRES = {
    "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "pm": 1e-6, "å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "in": 25400.0,
}  # fmt: skip
"""Lengths that OME, ImageJ and tifffile files name, in micrometres."""

SCREEN_AND_PRINT = frozenset({1, 72, 96, 100, 120, 150, 180, 200, 240, 300, 350, 360, 400, 600, 720, 1200, 2400})
"""Dots per inch that programs write when they know nothing; they say nothing about a microscope."""

_CUBIC = "distance of slices not said; taken as the pixel height"
_TAG_LENGTHS = {2: "inch", 3: "cm"}


@dataclass(frozen=True)
class PixelSize:
    """A pixel size together with the numbers that a TIFF says it with, so that they can be repeated exactly.

    Attributes:
        spacing: x, y, z in `unit`; 1 where nothing is known.
        unit: ``um`` or ``pixel``.
        resolution: XResolution and YResolution as stored: pixels per `length`, or per the length that `tag` means.
        tag: ResolutionUnit: 1 none, 2 inch, 3 centimetre.
        length: the name of the unit in ImageJ's description, empty if there is none.
        depth: ImageJ's ``spacing``: the distance of slices, in the same length.
        note: an assumption that was made, for people; empty without one.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    unit: str = "pixel"
    resolution: tuple[tuple[int, int], tuple[int, int]] | tuple[float, float] | None = None
    tag: int = 1
    length: str = ""
    depth: float | None = None
    note: str = ""

    @classmethod
    def of(cls, spacing: tuple[float, float, float], unit: str) -> PixelSize:
        """A size that comes from no TIFF; `unit` is ``um`` or ``pixel``."""
        x, y, z = spacing
        if unit == "pixel":
            return cls(spacing, unit, depth=z)
        return cls(spacing, unit, (1 / x, 1 / y), 1, "um", z)

    def description(self) -> dict[str, Any]:
        """ImageJ's (and our plain TIFF's) metadata."""
        pairs = {"unit": self.length or None, "spacing": self.depth}
        return {key: value for key, value in pairs.items() if value is not None}

    def ome(self) -> dict[str, Any]:
        """OME-XML's attributes, as tifffile takes them."""
        if self.unit == "pixel":
            return {}
        sizes = {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", self.spacing, strict=True)}
        return sizes | {f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"}


def from_ome(xml: str) -> PixelSize:
    """The first image's PhysicalSizeX, Y, Z. A missing Y is X's, a missing Z is Y's, and the note says so.

    Raises:
        ValueError: not well-formed, or with a document type, whose entities could be a bomb.
    """
    pixels = _ome_pixels(xml)
    attributes = {} if pixels is None else pixels.attrib
    x, y, z = (_ome_length(attributes, axis) for axis in "XYZ")
    if x is None:
        return PixelSize()
    y = x if y is None else y
    note = _CUBIC if z is None else ""
    return replace(PixelSize.of((x, y, y if z is None else z), "um"), note=note)


def ome_channels(xml: str) -> list[str]:
    """Names of the first image's channels, empty where one has none; the errors are those of `from_ome`."""
    pixels = _ome_pixels(xml)
    found = [] if pixels is None else [element for element in pixels if element.tag.rpartition("}")[2] == "Channel"]
    return [element.attrib.get("Name", "") for element in found]


def _ome_pixels(xml: str) -> ElementTree.Element | None:
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ValueError("OME-XML with a document type is refused")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"OME-XML is damaged: {error}") from error
    return next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)


def _ome_length(attributes: dict[str, str], axis: str) -> float | None:
    """In micrometres; None where the file does not say a positive length."""
    unit = MICROMETRES.get(attributes.get(f"PhysicalSize{axis}Unit", "µm").strip().lower())
    size = _positive(attributes.get(f"PhysicalSize{axis}"))
    return size * unit if size and unit else None


def from_tags(page: Any, described: dict[str, Any], imagej: bool) -> PixelSize:
    """ImageJ's or tifffile's description with the resolution tags.

    A unit in the description is what XResolution counts in; without one, ResolutionUnit is (inch, centimetre), unless
    the number is one of the screen and print resolutions. The distance of slices is `spacing`; where that is missing,
    ImageJ means 1 unit, and any other file is taken to have cubic voxels, with a note.
    """
    tags = page.tags
    tag = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2  # 2 is TIFF's default
    raw = tuple(tags[name].value if name in tags else None for name in ("XResolution", "YResolution"))
    pixels = tuple(_quotient(value) for value in raw)
    named = str(described.get("unit") or "").strip().lower().replace("\\u00b5", "µ")  # ImageJ escapes the micro sign
    depth = _positive(described.get("spacing"))
    length = MICROMETRES.get(named) or _tag_length(tag, pixels[0])
    if length is None or None in pixels:
        return PixelSize((1.0, 1.0, depth or 1.0), depth=depth)
    x, y = (length / count for count in pixels if count)
    note = "" if depth or imagej else _CUBIC
    z = length * depth if depth else length if imagej else y
    spelled = "um" if MICROMETRES.get(named) == 1.0 else named
    return PixelSize((x, y, z), "um", raw, tag, spelled if named in MICROMETRES else "", depth or z / length, note)  # type: ignore[arg-type]


def _tag_length(tag: int, count: float | None) -> float | None:
    """The micrometres that ResolutionUnit means, None where it means nothing."""
    length = MICROMETRES.get(_TAG_LENGTHS.get(tag, ""))
    if length is None or count is None:
        return None
    per_inch = count * MICROMETRES["inch"] / length
    default = abs(per_inch - round(per_inch)) < 0.05 and round(per_inch) in SCREEN_AND_PRINT
    return None if default or count == 1 else length


def _quotient(value: Any) -> float | None:
    numerator, denominator = value if isinstance(value, tuple) else (value, 1)
    return _positive(numerator / denominator) if numerator and denominator else None


def _positive(value: Any) -> float | None:
    """A usable length; ImageJ writes some depths with a negative sign."""
    try:
        number = abs(float(value))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
