"""OME-NGFF: the image in a Zarr folder, its axes and its voxel size; versions 0.1 to 0.5."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError
from medunet.formats.omezarr.nodes import Node, below, is_zarr, open_node
from medunet.formats.pixel_size import MICROMETRES
from medunet.system.wording import listed
from medunet.volume import UNITS, Volume, spacing_of

VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5")
_KEPT = {
    "millimeter": "mm", "millimetre": "mm", "mm": "mm", "micrometer": "um", "micrometre": "um", "um": "um", "µm": "um",
    "micron": "um", "nanometer": "nm", "nanometre": "nm", "nm": "nm",
}  # fmt: skip
"""Units that volumes have, so that numbers stay as they are; others become micrometres."""

_LENGTHS = MICROMETRES | {"meter": 1e6, "metre": 1e6, "centimeter": 1e4, "centimetre": 1e4, "picometer": 1e-6}
_WRITTEN = {"mm": "millimeter", "um": "micrometer", "nm": "nanometer", "pixel": ""}
_DEEPEST = 4


@dataclass(frozen=True)
class Space:
    """The position of voxels, in the numbers and words of the file, so that they can be repeated exactly.

    Attributes:
        axes: the spatial axes in the order of the file, slowest first, such as ``ZYX``.
        units: of each of them as the file names it; empty where it does not.
        scale: of each of them; 1 where nothing is said.
        translation: of each of them, None where nothing is said.
        version: of OME-NGFF; empty for plain Zarr.
    """

    axes: str
    units: tuple[str, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...] | None = None
    version: str = ""

    @property
    def unit(self) -> str:
        """The unit of the volume: the file's, micrometres for rarer lengths, ``pixel`` if an axis has no known unit."""
        if any(unit.lower() not in _LENGTHS | _KEPT for unit in self.units):
            return "pixel"
        named = {_KEPT.get(unit.lower(), "um") for unit in self.units}
        return named.pop() if len(named) == 1 else "um"

    @property
    def affine(self) -> NDArray[np.float64]:
        """The affine of the volume in `unit`. Without a known unit a pixel is 1 wide, and only ratios are kept."""
        factors = self._factors()
        affine = np.eye(4)
        for number, axis in enumerate(self.axes):
            place = "XYZ".index(axis)
            affine[place, place] = self.scale[number] * factors[number]
            if self.translation is not None:
                affine[place, 3] = self.translation[number] * factors[number]
        return affine

    def _factors(self) -> list[float]:
        unit = self.unit
        if unit == "pixel":
            return [1 / self.scale[self.axes.index("X")]] * len(self.axes)
        if all(_KEPT.get(said.lower()) == unit for said in self.units):
            return [1.0] * len(self.axes)
        return [_LENGTHS[said.lower()] for said in self.units]

    @property
    def note(self) -> str:
        """An assumption that was made; empty without one."""
        if self.unit == "pixel" and any(n != 1 for n in self.scale):
            said = ", ".join(unit for unit in self.units if unit) or "none"
            numbers = "×".join(f"{n:g}" for n in self.scale)
            return f"unit not known (said: {said}); only the ratios of its numbers {numbers} are used"
        return ""

    @classmethod
    def of(cls, volume: Volume, axes: str, version: str) -> Space:
        """The space of a volume from another format; orientation is lost, and the position of a turned volume."""
        assert volume.unit in UNITS
        spacing = dict(zip("XYZ", spacing_of(volume.affine, 3), strict=True))
        offset = dict(zip("XYZ", volume.affine[:3, 3], strict=True))
        upright = (
            np.array_equal(volume.affine[:3, :3], np.diag(np.diag(volume.affine)[:3]))
            and (np.diag(volume.affine) > 0).all()
        )
        moved = upright and any(offset[axis] != 0 for axis in axes)
        return cls(
            axes,
            (_WRITTEN[volume.unit],) * len(axes),
            tuple(spacing[axis] for axis in axes),
            tuple(float(offset[axis]) for axis in axes) if moved else None,
            version,
        )

    def without(self, axis: str) -> Space:
        """The same with one axis left out."""
        return self.taken([number for number, letter in enumerate(self.axes) if letter != axis])

    def taken(self, places: Sequence[int]) -> Space:
        """The same with the axes at some places, in their order."""
        return Space(
            "".join(self.axes[n] for n in places),
            tuple(self.units[n] for n in places),
            tuple(self.scale[n] for n in places),
            None if self.translation is None else tuple(self.translation[n] for n in places),
            self.version,
        )


@dataclass(frozen=True)
class Image:
    """One image in a Zarr folder.

    Attributes:
        group: the node that describes it; the array itself for plain Zarr.
        level: the array of the full resolution.
        axes: one letter for each of its axes, ``?`` for what is none of T, C, Z, Y, X; empty if nothing is said.
        units, scale, translation: of each of its axes.
        channels: names, empty if they are not said.
        levels: number of resolutions.
    """

    group: Node
    level: Node
    axes: str = ""
    units: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    translation: tuple[float, ...] | None = None
    version: str = ""
    channels: tuple[str, ...] = ()
    levels: int = 1
    warning: str = ""

    def space(self, axes: str) -> Space:
        """The space of the spatial axes among `axes`, which name all axes of the array.

        Raises:
            DataError: the metadata name another number of axes, and of one of these no size, or several.
        """
        letters = "".join(axis for axis in axes if axis in "XYZ")
        if not self.scale:
            return Space(letters, ("",) * len(letters), (1.0,) * len(letters), None, self.version)
        stated = Space(self.axes, self.units, self.scale, self.translation, self.version)
        return replace(stated.taken(self._places(axes)), axes=letters)

    def _places(self, axes: str) -> list[int]:
        """The places of the spatial axes in the metadata; by name if these name another number of axes."""
        if len(axes) == len(self.axes):
            return [number for number, axis in enumerate(axes) if axis in "XYZ"]
        unclear = [axis for axis in axes if axis in "XYZ" and self.axes.count(axis) != 1]
        if unclear:
            raise DataError(
                f"{self.group.folder}: its metadata give sizes of the axes {self.axes}, of which --axes {axes} cannot "
                f"be told: {unclear[0]} is {'twice' if unclear[0] in self.axes else 'not'} among them\n"
                "correct the metadata, so that they name each axis of the array"
            )
        return [self.axes.index(axis) for axis in axes if axis in "XYZ"]


def find_image(path: Path) -> Image:
    """The image in a folder: its own, or the only one of a plate, of a series or of label images.

    Raises:
        DataError: none, several (naming the paths to give), or damaged metadata.
    """
    node = open_node(path)
    for _ in range(_DEEPEST):
        said = _ome(node)
        if "multiscales" in said:
            return _multiscale(node, said)
        if node.array is not None:
            return _plain(node)
        what, inside = _inside(node, said)
        if not inside:
            raise DataError(f"{node.folder}: a Zarr group without an image; give the folder of an OME-Zarr image")
        if len(inside) > 1:
            shown = listed([str(place) for place in inside], 3)
            raise DataError(
                f"{node.folder}: {what} of {len(inside)} images; expected one\n"
                f"give one or several by their own paths: {shown}"
            )
        node = open_node(inside[0])
    raise DataError(f"{path}: no image within {_DEEPEST} levels of groups; give the folder of an OME-Zarr image")


def label_images(node: Node) -> list[Path]:
    """The label images that belong to an image."""
    folder = node.folder / "labels"
    if not is_zarr(folder):
        return []
    inside = open_node(folder)
    return [below(folder, name, "a label image") for name in _list(_ome(inside).get("labels"))]


def _ome(node: Node) -> Mapping[str, Any]:
    inside = node.attributes.get("ome", node.attributes)
    return inside if isinstance(inside, Mapping) else {}


def _inside(node: Node, said: Mapping[str, Any]) -> tuple[str, list[Path]]:
    """The kind of collection that a group is, and the folders of its images."""
    folder = node.folder
    if "plate" in said:
        wells = [below(folder, well.get("path"), "a well") for well in _objects(_mapping(said["plate"]).get("wells"))]
        return "a plate", [field for well in wells for field in _fields(open_node(well))]
    if "well" in said:
        return "a well", _fields(node)
    if "labels" in said:
        return "a group of labels", [below(folder, name, "a label image") for name in _list(said["labels"])]
    if is_zarr(folder / "OME"):
        series = _ome(open_node(folder / "OME")).get("series")
        if series:
            return "a series", [below(folder, name, "an image of the series") for name in _list(series)]
    places = [place for place in folder.iterdir() if place.is_dir() and place.name != "OME" and is_zarr(place)]
    return "a group", sorted(places, key=lambda place: (not place.name.isdigit(), len(place.name), place.name))


def _fields(well: Node) -> list[Path]:
    images = _mapping(_ome(well).get("well")).get("images")
    return [below(well.folder, image.get("path"), "a field of view") for image in _objects(images)]


def _plain(node: Node) -> Image:
    """An array without OME metadata; its axes are known if the array names them itself."""
    outer = node.folder.parent
    if is_zarr(outer):
        multiscales = _objects(_ome(open_node(outer)).get("multiscales"))
        if any(level.get("path") == node.folder.name for one in multiscales for level in _objects(one.get("datasets"))):
            raise DataError(
                f"{node.folder}: is one resolution of {outer}, which says its axes and pixel size; give {outer}"
            )
    assert node.array is not None
    names = node.array.get("dimension_names") if node.zarr == 3 else node.attributes.get("_ARRAY_DIMENSIONS")
    axes = "".join(_letter(str(name), "") for name in _list(names))
    return Image(node, node, "" if "?" in axes else axes)


def _multiscale(node: Node, said: Mapping[str, Any]) -> Image:
    images = _objects(said["multiscales"])
    if not images or not _objects(images[0].get("datasets")):
        raise DataError(f"{node.folder}: damaged OME metadata: multiscales without datasets; make or copy it again")
    first, datasets = images[0], _objects(images[0]["datasets"])
    version = str(said.get("version") or first.get("version") or ("0.5" if node.zarr == 3 else "0.4"))
    if version not in VERSIONS:
        raise DataError(f"{node.folder}: OME-NGFF version {version} is not read; expected 0.4 or 0.5, convert it")
    place = below(node.folder, datasets[0].get("path"), "the full resolution")
    if not place.is_dir():
        raise DataError(f"{node.folder}: its full resolution {place.name!r} is missing; copy the whole folder again")
    level = open_node(place)
    if level.array is None:
        raise DataError(f"{place}: no array, as {node.folder.name} says it is: its .zarray is missing; copy it again")
    names = [(axis, "") if isinstance(axis, str) else (axis.get("name"), axis.get("type")) for axis in _axes(first)]
    axes = "".join(_letter(str(name), str(kind or "")) for name, kind in names)
    units = tuple(str(axis.get("unit") or "") if isinstance(axis, Mapping) else "" for axis in _axes(first))
    chains = [_list(said.get("coordinateTransformations")) for said in (datasets[0], first)]
    scale, translation = _transformed([*chains[0], *chains[1]], len(axes), node.folder)
    warning = f"{len(images)} multiscale images in this group; the first is read" if len(images) > 1 else ""
    return Image(
        node, level, axes, units if scale else (), scale, translation, version, _channels(said), len(datasets), warning
    )


def _axes(multiscale: Mapping[str, Any]) -> list[Any]:
    """The axes of a multiscale image; all five in versions 0.1 and 0.2, which do not name them."""
    axes = _list(multiscale.get("axes", ["t", "c", "z", "y", "x"]))
    return [axis for axis in axes if isinstance(axis, str | Mapping)]


def _letter(name: str, kind: str) -> str:
    letter = {"channel": "C", "time": "T"}.get(kind, name.upper())
    known = "XYZ" if kind == "space" else "TCXYZ"
    return letter if letter in tuple(known) or kind in ("channel", "time") else "?"


def _transformed(
    transformations: Sequence[Any], axes: int, folder: Path
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """The scale and the translation that all transformations, in their order, come to; no scale if none is said."""
    scale, translation, moved = np.ones(axes), np.zeros(axes), False
    scaled = False
    for transformation in transformations:
        kind = _mapping(transformation).get("type")
        if kind == "identity":
            continue
        numbers: Any = _mapping(transformation).get(str(kind)) if kind in ("scale", "translation") else None
        if not _are_numbers(numbers, axes) or (kind == "scale" and min(numbers) <= 0):
            raise DataError(
                f"{folder}: its coordinateTransformations cannot be used: {str(transformation)[:120]}\n"
                f"expected a scale of {axes} positive numbers, and possibly a translation"
            )
        if kind == "scale":
            scale, translation, scaled = scale * numbers, translation * numbers, True
        else:
            translation, moved = translation + numbers, True
    # a translation without any scale would be in units of an unknown length
    return (tuple(scale.tolist()), tuple(translation.tolist()) if moved else None) if scaled else ((), None)


def _are_numbers(numbers: Any, count: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == count
        and all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    )


def _channels(said: Mapping[str, Any]) -> tuple[str, ...]:
    found = _objects(_mapping(said.get("omero")).get("channels"))
    names = [" ".join(str(channel.get("label") or "").split()) for channel in found]
    return tuple(names) if all(names) and len(set(names)) == len(names) else ()


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _objects(found: Any) -> list[Mapping[str, Any]]:
    return [one for one in _list(found) if isinstance(one, Mapping)]


def described(name: str, space: Space, axes: str, levels: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Any]:
    """The attributes of a multiscale image's group, as its version has them.

    Args:
        space: of the full resolution.
        axes: all axes, ``C`` before the spatial ones or not at all.
        levels: each one's path and how many voxels of the full resolution one of its voxels stands for, along the
            spatial axes. It is the first of them, so that all levels have one translation.
    """
    lead = len(axes) - len(space.axes)
    moved = None if space.translation is None else [*[0.0] * lead, *space.translation]
    units = dict(zip(space.axes, space.units, strict=True))
    multiscale: dict[str, Any] = {
        "name": name,
        "axes": [
            {"name": axis.lower(), "type": "channel" if axis == "C" else "space"}
            | ({"unit": units[axis]} if units.get(axis) else {})
            for axis in axes
        ],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [*[1.0] * lead, *(s * n for s, n in zip(space.scale, steps, strict=True))],
                    },
                    *([] if moved is None else [{"type": "translation", "translation": moved}]),
                ],
            }
            for path, steps in levels
        ],
        "type": "nearest",
    }
    if space.version == "0.5":
        return {"ome": {"version": "0.5", "multiscales": [multiscale]}}
    return {"multiscales": [{"version": "0.4", **multiscale}]}


def marked_as_labels(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes with the mark of a label image."""
    if "ome" in attributes:
        return {"ome": attributes["ome"] | {"image-label": {}}}
    return attributes | {"image-label": {"version": "0.4"}}
