"""Segmenter: from a scan to pieces of its segmentation, with models made ready once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError, DataError
from medunet.inference.ensemble import averaged, probabilities
from medunet.inference.execution import Execution, Image, Progress, Runner, Slab
from medunet.inference.method import Method, Request, choose_method
from medunet.inference.streaming.graph import NotLocal
from medunet.inference.streaming.streamer import Streamer
from medunet.inference.symmetries import Symmetry
from medunet.model import Model, ModelCard
from medunet.prediction.members import require_alike, symmetries_of
from medunet.prediction.planning import Planner, PredictSettings, ScanPlan, parts_of
from medunet.prediction.scan import Scan, channel_advice, preprocessing_of
from medunet.system.devices import autocast_type
from medunet.transforms.labelling import LabellingRule, labelling_rule_of
from medunet.transforms.preprocess import ScanView
from medunet.transforms.restore import Part, Piece, pieces_of
from medunet.volume import Volume


class Segmenter:
    """Models made ready for any number of scans; their class probabilities are averaged.

    Args:
        models: at least one; with the same labels, channels and target grid.
        settings: how.

    Raises:
        ConfigError: no model, models that do not belong together, or a method that is impossible for them.
    """

    def __init__(self, models: Sequence[Model], settings: PredictSettings | None = None) -> None:
        require_alike(models)
        self.models, self.settings = tuple(models), settings or PredictSettings()
        device = next(models[0].network.parameters()).device
        self.execution = Execution(str(device), autocast_type(self.settings.precision, device) or torch.float32)
        ways = [_method(model, self.settings.method, self.execution) for model in models]
        # The way for all models: exact only if all of them are.
        self.method = next((method for method, _ in ways if not method.exact), ways[0][0])
        self.runners = [runner for _, runner in ways]
        self._symmetries = symmetries_of(models, self.settings)

    @property
    def card(self) -> ModelCard:
        return self.models[0].card

    @property
    def written(self) -> LabelTable:
        """The labels of outputs, see `ModelCard.written`."""
        return self.card.written

    @property
    def rule(self) -> LabellingRule:
        """From scores to class indices, see `transforms/labelling.py`."""
        return labelling_rule_of(self.card.labels)

    def open(self, volume: Volume, stored: bool = False) -> Scan:
        """See a scan as the models do; its voxels are read when the network asks for them.

        Args:
            stored: the volume lies on the models' own grid already; only its intensities are normalised.

        Raises:
            DataError: channels or dimensions that are not the models', NaN or infinite voxels.
        """
        self._require_fitting(volume)
        settings = [preprocessing_of(model.card, volume) for model in self.models]
        if stored:
            settings = [replace(how, orientation="stored", spacing=None) for how in settings]
        views = {how: ScanView(volume, how) for how in dict.fromkeys(settings)}
        first = views[settings[0]]
        if any(view.undo != first.undo for view in views.values()):
            raise ConfigError(f"{volume.name}: the models see this scan on different grids; they cannot be averaged")
        return Scan(tuple(views[how] for how in settings), first.undo)

    def _require_fitting(self, volume: Volume) -> None:
        network = self.card.network
        if volume.channels != network.in_channels:
            raise DataError(
                f"{volume.name}: has {volume.channels} channel(s), the model was trained on {network.in_channels}"
                + (f" ({', '.join(self.card.channels)})" if self.card.channels else "")
                + ("\n" + channel_advice(volume, network.in_channels) if volume.channels > network.in_channels else "")
            )
        if volume.dimensions < network.dimensions:
            raise DataError(f"{volume.name}: is a picture, the model was trained on volumes")

    def plan(self, scan: Scan, slowest: int | None = None) -> ScanPlan:
        """The plan for a scan within the memory, see `Planner.plan`."""
        members = len(self.models) * len(self._symmetries)
        planner = Planner(
            self.models, self.runners, self.method, self.settings.memory, self.execution.dtype.itemsize, members,
            self.settings.rotations,
        )  # fmt: skip
        return planner.plan(scan, slowest)

    def pieces(
        self, scan: Scan, plan: ScanPlan, scores: bool = False, report: Progress | None = None
    ) -> Iterator[Piece]:
        """The segmentation of a scan, piece by piece; each voxel of the kept part comes once.

        Scores are interpolated as probabilities, so labels do not depend on what else is asked for.

        Args:
            scores: whether pieces have the probabilities of all classes (or regions) as well.
        """
        rule = self.rule
        for number, part in enumerate(plan.parts):
            slabs = self._scores(scan, plan, part, _share(report, number, len(plan.parts)))
            if plan.members == 1 and (scores or scan.undo.resampled or rule.needs_probabilities):
                slabs = probabilities(slabs, rule.activate)
            yield from pieces_of(slabs, scan.undo, part, rule, scores)

    def _scores(self, scan: Scan, plan: ScanPlan, part: Part, report: Progress | None) -> Iterator[Slab]:
        """Logits of one member, or mean probabilities of several, along the plan's axis."""
        return self._of_slices(scan, plan, report) if plan.slices else self._mean(scan, plan, part, report)

    def _of_slices(self, scan: Scan, plan: ScanPlan, report: Progress | None) -> Iterator[Slab]:
        """The scores of a volume that a network of pictures sees slice by slice."""
        count = scan.shape[plan.axis]
        for index in range(count):
            flat = scan.slice(plan.axis, index)
            parts = parts_of(flat.undo, plan.stream) if plan.stream else (Part.of(flat.undo, 0),)
            slabs = ((part, *slab) for part in parts for slab in self._mean(flat, plan, part, None))
            first = next(slabs)
            result = first[3].new_empty((len(first[3]), *flat.shape))
            for part, start, stop, scores in itertools.chain([first], slabs):
                result[(slice(None), *part.scores.along(part.axis, start, stop).slices)] = scores
            if report:
                report(index + 1, count)
            yield index, index + 1, result.unsqueeze(plan.axis + 1)

    def _mean(self, scan: Scan, plan: ScanPlan, part: Part, report: Progress | None) -> Iterator[Slab]:
        """The mean over all models and symmetries; the first one reports its progress."""
        members = [
            _member(runner, view, symmetry, plan, part, report if number == 0 and symmetry.plain else None)
            for number, (runner, view) in enumerate(zip(self.runners, scan.views, strict=True))
            for symmetry in self._symmetries
        ]
        return members[0] if len(members) == 1 else averaged(members, part.axis, self.rule.activate)

    def indices(self, scan: Scan, plan: ScanPlan | None = None) -> NDArray[np.uint8]:
        """Class indices `(1, *spatial)` on the scan's own grid, in memory; 0 for what was cut away."""
        collected = IndexBuffer(scan)
        for piece in self.pieces(scan, plan or self.plan(scan)):
            collected.put(piece)
        return collected.indices


class IndexBuffer:
    """Class indices of a scan, collected piece by piece in memory.

    Attributes:
        indices: `(1, *spatial)` uint8 on the scan's own grid; 0 for what was cut away.
    """

    def __init__(self, scan: Scan) -> None:
        blank = np.zeros((1, *scan.undo.oriented), dtype=np.uint8)
        self.indices = np.ascontiguousarray(scan.undo.orientation.undo(blank))
        self._kept = scan.undo.kept_part(self.indices)[0]

    def put(self, piece: Piece) -> None:
        self._kept[piece.box.slices] = piece.indices


def _member(
    runner: Runner, view: Image, symmetry: Symmetry, plan: ScanPlan, part: Part, report: Progress | None
) -> Iterator[Slab]:
    """Logits of one model for one symmetry of the scan, along the part's axis, with the scan's own axes."""
    region = part.scores if plan.stream else None
    passage = symmetry.passage(part.axis, region)
    return symmetry.back(plan.way.rows(runner, symmetry.view(view), passage, report))


def _method(model: Model, request: Request, execution: Execution) -> tuple[Method, Runner]:
    """The way of one model, and the runner for it."""
    network = model.card.network
    reason = network.inexact_reason
    runner = Runner(model.network, execution)
    if reason is None and request != "blend":
        try:
            runner = Streamer(model.network, execution)
        except NotLocal as error:
            reason = str(error)
    return choose_method(network.padded, reason, request), runner


def _share(report: Progress | None, number: int, count: int) -> Progress | None:
    if report is None or count == 1:
        return report
    return lambda done, total: report(number * total + done, count * total)
