"""Scan as the models see it: one view for each model, on one grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from medunet.geometry.boxes import Box
from medunet.geometry.grids import identity_orientation
from medunet.inference.execution import Image, ImageSlice
from medunet.model import ModelCard
from medunet.transforms.preprocess import PreprocessSettings, Undo
from medunet.volume import MILLIMETRES, Volume


@dataclass(frozen=True)
class Scan:
    """A scan as each of several models sees it.

    Attributes:
        views: `(channel, *spatial)`, one for each model, on one grid.
        undo: the way back from that grid.
    """

    views: tuple[Image, ...]
    undo: Undo

    @property
    def shape(self) -> tuple[int, ...]:
        return self.undo.shape

    @property
    def growth(self) -> float:
        """Voxels of the network's grid for each voxel of the scan's kept part."""
        return math.prod(self.undo.shape) / math.prod(self.undo.kept)

    def slice(self, axis: int, index: int) -> Scan:
        """One slice of the scan, which a network of pictures sees."""
        views = tuple(ImageSlice(view, axis, index) for view in self.views)
        return Scan(views, prepared_scan(views[0], 1).undo)


def prepared_scan(image: Image, models: int) -> Scan:
    """A scan `(channel, *spatial)` that lies on the network's grid already."""
    shape = tuple(int(n) for n in image.shape[1:])
    undo = Undo(identity_orientation(len(shape)), shape, Box.of_shape(shape).slices, shape)
    return Scan((image,) * models, undo)


def sized(volume: Volume, card: ModelCard) -> Volume:
    """The scan with a voxel size: its own or, where its file states none, that of the scans in the training.

    The size is `PreprocessSettings.fallback_spacing`; sections take its distance of sections. Without one the volume
    itself is returned.
    """
    size = card.preprocess.fallback
    if size is None or (volume.dimensions == 3 and card.network.dimensions == 3 and len(size.lengths) == 2):
        return volume
    if volume.unit == "pixel" and volume.dimensions == 3 and not size.deep:
        size = replace(size, lengths=(*size.lengths, size.lengths[1]))
    return size.given_to(volume)


def preprocessing_of(card: ModelCard, volume: Volume) -> PreprocessSettings:
    """The preprocessing of a scan; a model of pictures sees volumes slice by slice and leaves z alone."""
    how = card.preprocess
    if how.spacing is None or len(how.spacing) != 2 or volume.dimensions != 3:
        return how
    if "pixel" in (volume.unit, how.unit) or (volume.unit == "mm" and how.orientation == "RAS"):
        return how  # refused: there is no common unit, or no saying which axis a patient's slices lie along
    scale = MILLIMETRES[volume.unit] / MILLIMETRES[how.unit]
    return replace(how, spacing=(*how.spacing, volume.spacing[2] * scale))


def channel_advice(volume: Volume, wanted: int) -> str:
    """Advice on a scan with more channels than the model takes."""
    colour = volume.origin is not None and volume.origin.format == "picture"
    options = " ".join(f"--channel {number}" for number in range(wanted))
    grey = " (red is 0), or save it in grey" if colour or volume.channels == 3 else ""
    return f"say which {'one' if wanted == 1 else 'ones'} to take, such as {options}{grey}"
