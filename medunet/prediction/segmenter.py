"""Segmenter: from a scan to class indices, with models made ready once, and labels as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError, DataError
from medunet.geometry.boxes import Box
from medunet.geometry.grids import identity_orientation
from medunet.geometry.tiles import plan_tiles
from medunet.inference.ensemble import averaged, probabilities
from medunet.inference.execution import Execution, Image, ImageSlice, Progress, Slab
from medunet.inference.method import Method, choose_method
from medunet.inference.openvino import CompiledPass
from medunet.inference.overlap_tile import tile_rows
from medunet.inference.sliding_window import blended_rows
from medunet.inference.stitching import Order
from medunet.inference.streaming.streamer import Passage, Streamer
from medunet.inference.symmetries import Symmetry
from medunet.model import Model, ModelCard
from medunet.networks.unet import UNet
from medunet.prediction.planning import Planner, PredictSettings, ScanPlan, parts_of
from medunet.prediction.scan import Scan
from medunet.prediction.test_time import symmetries_of
from medunet.system.devices import autocast_type
from medunet.transforms.labelling import LabellingRule, labelling_rule_of
from medunet.transforms.preprocess import PreprocessSettings, ScanView, Undo
from medunet.transforms.restore import Part, restored
from medunet.volume import MILLIMETRES, Volume

Sink = Callable[[Box, NDArray[np.uint8], Sequence[NDArray[np.float32]]], None]
"""Takes a box of the kept part, its class indices, and all classes' (or regions') probabilities if asked for."""


class Segmenter:
    """Models made ready for any number of scans; their class probabilities are averaged.

    Args:
        models: at least one; with the same labels, channels and target grid.
        settings: how.

    Raises:
        ConfigError: no model, models that do not belong together, or a method that is impossible for them.
    """

    def __init__(self, models: Sequence[Model], settings: PredictSettings | None = None) -> None:
        _require_alike(models)
        self.models, self.settings = tuple(models), settings or PredictSettings()
        device = next(models[0].network.parameters()).device
        self.execution = Execution(str(device), autocast_type(self.settings.precision, device) or torch.float32)
        self._methods = [_method(model, self.settings.method) for model in models]
        self._symmetries = symmetries_of(models, self.settings)
        self._streamers: dict[tuple[int, int], Streamer] = {}
        self._compiled: dict[int, CompiledPass] = {}
        if self.settings.engine == "openvino":
            if self.method.way != "stream":
                raise ConfigError(f"OpenVINO makes whole passes, but {self.method.reason}; use --engine torch")
            self._compiled = {n: CompiledPass(model.network, self.execution) for n, model in enumerate(self.models)}

    @property
    def card(self) -> ModelCard:
        return self.models[0].card

    @property
    def written(self) -> LabelTable:
        """The labels of outputs: what was learned, but background and object where objects' rims or cores were."""
        labels, instances = self.card.labels, self.card.instances
        if instances is None or labels.kind == "instances":
            return labels
        name = labels.regions[0].name if labels.regions else labels.names[1]
        return LabelTable((labels.names[0], name), (0, 1), labels.ignore, "instances")

    @property
    def values(self) -> NDArray[Any]:
        """The value that outputs have for each class that was learned."""
        indices = np.arange(self.card.labels.classes)
        folded = indices if self.card.instances is None else self.card.instances.mask(indices)
        return self.written.to_values(folded)

    @property
    def decision(self) -> LabellingRule:
        """What scores come to: the largest class, or what regions make of it, see `transforms/labelling.py`."""
        return labelling_rule_of(self.card.labels)

    def decided(self, logits: torch.Tensor) -> torch.Tensor:
        """Class indices `(*spatial)` uint8 of one member's logits `(class, *spatial)`, on their device."""
        decision = self.decision
        return decision.decide(decision.activate(logits) if decision.needs_probabilities else logits)

    @property
    def method(self) -> Method:
        """The way for all models: exact only if all of them are."""
        return next((method for method in self._methods if not method.exact), self._methods[0])

    def open(self, volume: Volume, stored: bool = False) -> Scan:
        """See a scan as the models do.

        Args:
            stored: the volume lies on the models' own grid already; only its intensities are normalised.

        Raises:
            DataError: channels or dimensions that are not the models', NaN or infinite voxels.
        """
        network = self.card.network
        if volume.channels != network.in_channels:
            raise DataError(
                f"{volume.name}: has {volume.channels} channel(s), the model was trained on {network.in_channels}"
                + (f" ({', '.join(self.card.channels)})" if self.card.channels else "")
                + ("\n" + _channel_advice(volume, network.in_channels) if volume.channels > network.in_channels else "")
            )
        if volume.dimensions < network.dimensions:
            raise DataError(f"{volume.name}: is a picture, the model was trained on volumes")
        views: dict[Any, ScanView] = {}
        for model in self.models:
            how = _for_slices(model.card, volume)
            if how not in views:
                views[how] = ScanView(volume, replace(how, orientation="stored", spacing=None) if stored else how)
        found = [views[_for_slices(model.card, volume)] for model in self.models]
        if any(view.undo != found[0].undo for view in found):
            raise ConfigError(f"{volume.name}: the models see this scan on different grids; they cannot be averaged")
        return Scan(tuple(found), found[0].undo)

    def sized(self, volume: Volume) -> Volume:
        """The scan as it is or, where it states no voxel size, with that of the scans that the first model learned
        from, if that is known (`PreprocessSettings.fallback_spacing`); sections take its distance of sections."""
        size = self.card.preprocess.fallback
        if size is None or (volume.dimensions == 3 and self.card.network.dimensions == 3 and len(size.lengths) == 2):
            return volume
        if volume.unit == "pixel" and volume.dimensions == 3 and not size.deep:
            size = replace(size, lengths=(*size.lengths, size.lengths[1]))
        return size.given_to(volume)

    def opened(self, image: Image) -> Scan:
        """A scan `(channel, *spatial)` that is preprocessed already."""
        shape = tuple(int(n) for n in image.shape[1:])
        undo = Undo(identity_orientation(len(shape)), shape, Box.of_shape(shape).slices, shape)
        return Scan((image,) * len(self.models), undo)

    def plan(self, scan: Scan, slowest: int | None = None) -> ScanPlan:
        """How a scan is segmented within the memory, see `Planner.plan`."""
        return self.planner.plan(scan, slowest)

    @property
    def planner(self) -> Planner:
        itemsize = self.execution.dtype.itemsize
        settings = self.settings
        members = len(self.models) * len(self._symmetries)
        how = settings.memory, itemsize, members, settings.engine, settings.rotations
        return Planner(self.models, self.method, *how)

    def segment(
        self, scan: Scan, plan: ScanPlan, sink: Sink, scores: bool = False, report: Progress | None = None
    ) -> None:
        """Segment a scan; results are handed to `sink` piece by piece, each voxel of the kept part once.

        Scores are interpolated as probabilities, so that labels do not depend on what else is asked for.

        Args:
            scores: whether the sink wants the probabilities of all classes (or regions) as well.
        """
        decision = self.decision
        for number, part in enumerate(plan.parts):
            slabs = self._part_scores(scan, plan, part, _share(report, number, len(plan.parts)))
            if plan.members == 1 and (scores or scan.undo.resampled or decision.needs_probabilities):
                slabs = probabilities(slabs, decision.activate)
            if not scores and not scan.undo.resampled:
                _label_slabs(slabs, part, decision, sink)
                continue
            arrays = ((start, stop, logits.cpu().float().numpy()) for start, stop, logits in slabs)
            for piece in restored(arrays, scan.undo, part):
                given = [piece.scores(index) for index in range(piece.classes)] if scores else []
                sink(piece.box, piece.winners(decision), given)

    def _part_scores(self, scan: Scan, plan: ScanPlan, part: Part, report: Progress | None) -> Iterator[Slab]:
        """Logits of one member, or mean probabilities of several, along the plan's axis."""
        if not plan.slices:
            return self._mean(scan.views, plan, part, report)
        return self._slices(scan, plan, report)

    def _slices(self, scan: Scan, plan: ScanPlan, report: Progress | None) -> Iterator[Slab]:
        count = scan.shape[plan.axis]
        for index in range(count):
            flat = self.opened(ImageSlice(scan.views[0], plan.axis, index))
            views = tuple(ImageSlice(view, plan.axis, index) for view in scan.views)
            parts = parts_of(flat.undo, plan.stream) if plan.stream else (Part.of(flat.undo, 0),)
            result: torch.Tensor | None = None
            for part in parts:
                for start, stop, scores in self._mean(views, plan, part, None):
                    if result is None:
                        result = scores.new_empty((len(scores), *flat.shape))
                    place = [slice(a, b) for a, b in zip(part.scores.start, part.scores.stop, strict=True)]
                    place[part.axis] = slice(start, stop)
                    result[(slice(None), *place)] = scores
            assert result is not None, "a slice has at least one row"
            if report:
                report(index + 1, count)
            yield index, index + 1, result.unsqueeze(plan.axis + 1)

    def _mean(self, views: Sequence[Image], plan: ScanPlan, part: Part, report: Progress | None) -> Iterator[Slab]:
        members = [
            symmetry.back(self._member(number, symmetry.view(views[number]), plan, part, symmetry, progress))
            for number in range(len(self.models))
            for symmetry in self._symmetries
            for progress in [report if number == 0 and symmetry.plain else None]
        ]
        return members[0] if len(members) == 1 else averaged(members, part.axis, self.decision.activate)

    def _member(
        self,
        number: int,
        view: Image,
        plan: ScanPlan,
        part: Part,
        symmetry: Symmetry,
        report: Progress | None,
    ) -> Iterator[Slab]:
        """Logits of one model for a turned scan, of which `view` has the axes exchanged, along the part's axis."""
        model, axis = self.models[number], symmetry.axis(part.axis)
        if plan.stream:
            passage = Passage(symmetry.mirror, symmetry.box(part.scores))
            if plan.compiled:
                return _reported(self._compiled[number].run(view, plan.stream.slab, axis, passage), report)
            return self._streamer(number, axis).run(view, plan.stream.slab, report, passage)
        order = Order(axis, symmetry.mirror)
        if plan.windows:
            return blended_rows(model.network, view, plan.windows, self.execution, order, report)
        assert plan.tile is not None, "planned for tiles"
        tiles = plan_tiles(tuple(view.shape[1:]), symmetry.lengths(plan.tile), model.unet.shape)
        return tile_rows(model.network, view, tiles, self.execution, order, report)

    def _streamer(self, number: int, axis: int) -> Streamer:
        if (number, axis) not in self._streamers:
            self._streamers[number, axis] = Streamer(self.models[number].network, self.execution, axis)
        return self._streamers[number, axis]

    def indices(
        self, scan: Scan, plan: ScanPlan | None = None, report: Progress | None = None, also: Sink | None = None
    ) -> NDArray[np.uint8]:
        """Class indices `(1, *spatial)` on the scan's own grid, in memory; 0 for what was cut away.

        Args:
            also: is handed the pieces as well, with the probabilities of all classes (or regions).
        """
        whole = np.zeros((1, *scan.undo.oriented), dtype=np.uint8)
        whole = scan.undo.orientation.undo(whole)
        kept = scan.undo.kept_part(whole)

        def put(box: Box, winners: NDArray[np.uint8], scores: Sequence[NDArray[np.float32]]) -> None:
            kept[0][box.slices] = winners
            if also:
                also(box, winners, scores)

        self.segment(scan, plan or self.plan(scan), put, also is not None, report)
        return np.ascontiguousarray(whole)


def _label_slabs(slabs: Iterable[Slab], part: Part, decision: LabellingRule, sink: Sink) -> None:
    """Labels of scores that need no interpolation: decided on the device, and one byte a voxel leaves it."""
    for start, stop, scores in slabs:
        winners = decision.decide(scores).cpu().numpy()
        sink(part.kept.along(part.axis, start, stop), winners, [])


def _method(model: Model, request: Literal["auto", "exact", "blend"]) -> Method:
    network = model.card.network
    own = isinstance(model.network, UNet)
    return choose_method(network.shape if own else None, network.inexact_reason, request)


def _require_alike(models: Sequence[Model]) -> None:
    if not models:
        raise ConfigError("no model was given")
    first = models[0].card
    for model in models[1:]:
        card = model.card
        same = (
            (card.labels, first.labels, "labels"),
            (card.network.in_channels, first.network.in_channels, "channels"),
            (card.network.dimensions, first.network.dimensions, "dimensions"),
            (card.network.padded, first.network.padded, "padding"),
            (card.preprocess.spacing, first.preprocess.spacing, "target spacing"),
            (card.patch if not card.network.exact else (), first.patch if not card.network.exact else (), "patch"),
        )
        for mine, its, what in same:
            if mine != its:
                raise ConfigError(f"{model.path} and {models[0].path} differ in their {what}; they cannot be averaged")


def _reported(slabs: Iterator[Slab], report: Progress | None) -> Iterator[Slab]:
    """A pass that is done before its first slab comes."""
    for number, slab in enumerate(slabs):
        if report and number == 0:
            report(1, 1)
        yield slab


def _share(report: Progress | None, number: int, count: int) -> Progress | None:
    if report is None or count == 1:
        return report
    return lambda done, total: report(number * total + done, count * total)


def _for_slices(card: ModelCard, volume: Volume) -> PreprocessSettings:
    """How a scan is preprocessed: of volumes, which a model of pictures sees slice by slice, z stays as it is."""
    how = card.preprocess
    if how.spacing is None or len(how.spacing) != 2 or volume.dimensions != 3:
        return how
    if "pixel" in (volume.unit, how.unit) or (volume.unit == "mm" and how.orientation == "RAS"):
        return how  # refused: there is no common unit, or no saying which axis a patient's slices lie along
    scale = MILLIMETRES[volume.unit] / MILLIMETRES[how.unit]
    return replace(how, spacing=(*how.spacing, volume.spacing[2] * scale))


def _channel_advice(volume: Volume, wanted: int) -> str:
    """What to do about a scan with more channels than the model takes."""
    colour = volume.origin is not None and volume.origin.format == "picture"
    options = " ".join(f"--channel {number}" for number in range(wanted))
    grey = " (red is 0), or save it in grey" if colour or volume.channels == 3 else ""
    return f"say which {'one' if wanted == 1 else 'ones'} to take, such as {options}{grey}"
