"""Verification on a scan: streamed results against one plain pass, and against blended windows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medunet.errors import ConfigError, MedunetError
from medunet.geometry.boxes import Box
from medunet.inference.execution import Execution, Image, ImageSlice, Passage, Runner
from medunet.inference.sliding_window import Windows, blended_windows
from medunet.inference.stitching import PatchReader
from medunet.inference.streaming.graph import Graph
from medunet.inference.streaming.plan import Budget, StreamPlan, plan_stream
from medunet.inference.streaming.streamer import Streamer
from medunet.model import Model
from medunet.prediction.planning import ScanPlan, pass_bytes
from medunet.prediction.scan import Scan
from medunet.prediction.segmenter import Segmenter
from medunet.system.wording import bytes_text, times_text

LARGEST_DIFFERENCE = 1e-4
"""Relative to the largest logit; rounding gave 1e-7 to 1e-6, a seam or a shift gives 1e-2 and more."""
BLENDED_VOXELS = 2**17
"""Blended windows go over no more than about this many: over a whole CT they took minutes."""


@dataclass(frozen=True)
class Verification:
    """The results of three ways for the same voxels, on the network's grid, without test-time augmentation.

    Attributes:
        shape: the voxels compared, in the middle of the scan; all of it where one pass fits the memory.
        whole: whether they are the whole scan.
        difference: of float32 logits, streamed against one plain pass: the largest, divided by the largest logit.
        precision: share of labels that the precision in use changes against one plain pass in float32.
        blended: share of labels that blended windows in float32 change against it, in the middle of those voxels;
            None for unpadded networks.
        times: how many times as long blended windows take as the stream; None likewise.
        seconds: of the plain pass, of the stream in the precision in use, and of the blended windows.
    """

    shape: tuple[int, ...]
    whole: bool
    difference: float
    precision: float
    blended: float | None
    times: float | None
    seconds: dict[str, float]

    @property
    def holds(self) -> bool:
        return self.difference <= LARGEST_DIFFERENCE

    def describe(self) -> str:
        """One line for people."""
        where = "the whole scan" if self.whole else f"its {times_text(self.shape)} voxels in the middle"
        words = [
            f"verified on {where}: streamed is one plain pass to {self.difference:.1e} of the largest logit",
            f"labels changed by the precision in use: {_percent(self.precision)}",
        ]
        if self.blended is not None:
            words.append(f"by blended windows: {_percent(self.blended)}, in {self.times:.1f} times the time")
        return "; ".join(words)

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {
            "shape": list(self.shape),
            "whole_scan": self.whole,
            "largest_relative_difference": self.difference,
            "labels_changed_by_precision": self.precision,
            "labels_changed_by_blending": self.blended,
            "times_the_time_of_blending": self.times,
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }


def require_verifiable(segmenter: Segmenter) -> None:
    """Refuse models without an exact result by a ConfigError."""
    if not segmenter.method.exact:
        raise ConfigError(
            f"{segmenter.models[0].path}: --verify compares with one pass over the whole scan, which is not what this "
            f"network is meant to give: {segmenter.method.reason}\nleave --verify out"
        )


def verify(segmenter: Segmenter, scan: Scan, plan: ScanPlan) -> Verification:
    """Compare the ways on as much of a scan as one plain pass can take in the memory allowed.

    Several models give the worst numbers. A volume that is segmented slice by slice is compared in its middle slice.

    Raises:
        MedunetError: a streamed result that is not that of the plain pass.
        ConfigError: not even a small part fits the memory.
    """
    found = [
        _verify(model, runner, _flat(view, plan), segmenter)
        for model, runner, view in zip(segmenter.models, segmenter.runners, scan.views, strict=True)
    ]
    worst = replace(
        max(found, key=lambda one: one.difference),
        precision=max(one.precision for one in found),
        blended=max((one.blended for one in found if one.blended is not None), default=None),
    )
    if not worst.holds:
        raise MedunetError(
            f"streamed and plain results differ by {worst.difference:.1e} of the largest logit, expected "
            f"{LARGEST_DIFFERENCE:.0e} or less\nuse --method blend, and tell the developers of medunet"
        )
    return worst


def _flat(view: Image, plan: ScanPlan) -> Image:
    return ImageSlice(view, plan.axis, view.shape[plan.axis + 1] // 2) if plan.slices else view


def _verify(model: Model, runner: Runner, view: Image, segmenter: Segmenter) -> Verification:
    assert isinstance(runner, Streamer), "only what is streamed is verified"
    graph, shape = runner.graph, tuple(int(n) for n in view.shape[1:])
    budget = Budget(segmenter.settings.memory, segmenter.execution.dtype.itemsize, beside=4 * graph.classes)
    stream = plan_stream(graph, shape, budget, tuple(range(len(shape))))
    region = _region(model, graph, shape, stream, segmenter.settings.memory)
    plain, used = Streamer(model.network, Execution(segmenter.execution.device), graph), runner
    seconds: dict[str, float] = {}
    truth = _timed(seconds, "plain", lambda: _plain(plain, view, region))
    labels = _labels(segmenter, truth)
    streamed = _timed(seconds, "streamed", lambda: _streamed(plain, view, region, stream))
    difference = float((streamed - truth).abs().max() / truth.abs().max().clamp(min=1e-30))
    if used.execution != plain.execution:
        streamed = _timed(seconds, "streamed", lambda: _streamed(used, view, region, stream))
    precision = _changed(_labels(segmenter, streamed), labels)
    blended = times = None
    if graph.padded:
        part = _middle(region, BLENDED_VOXELS)
        found = _timed(seconds, "blended", lambda: _blended(model, view, part, plain.execution))
        blended = _changed(_labels(segmenter, found), labels[part.relative_to(region.start).slices])
        times = seconds["blended"] / _around(model, view, part).voxels / (seconds["streamed"] / region.voxels)
    return Verification(region.shape, region.shape == shape, difference, precision, blended, times, seconds)


def _labels(segmenter: Segmenter, logits: Tensor) -> Tensor:
    """Class indices `(*spatial)` uint8 of one model's logits `(class, *spatial)`, on their device."""
    rule = segmenter.rule
    return rule.decide(rule.activate(logits) if rule.needs_probabilities else logits)


def _changed(found: Tensor, labels: Tensor) -> float:
    return float((found != labels).double().mean())


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Tensor]) -> Tensor:
    started = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - started
    return result


def _region(model: Model, graph: Graph, shape: tuple[int, ...], stream: StreamPlan, memory: int) -> Box:
    """The middle of the scan, complete along the streamed axis, its longest other side halved until a pass fits."""
    region = Box.of_shape(shape)
    while True:
        size = _read(graph, region, shape).shape
        needed = pass_bytes(model, size) + 12 * graph.classes * region.voxels
        if needed <= memory:
            return region
        sides = [0 if axis == stream.axis else n for axis, n in enumerate(region.shape)]
        if max(sides) <= 1:
            raise ConfigError(
                f"--verify needs about {bytes_text(needed)} for one plain pass over a single row of this scan, but "
                f"--memory allows {bytes_text(memory)}; give it more, or leave --verify out"
            )
        region = _halved(region, sides.index(max(sides)))


def _middle(region: Box, voxels: int) -> Box:
    """The middle of a box, its longest side halved until so few voxels are left."""
    while region.voxels > voxels:
        region = _halved(region, region.shape.index(max(region.shape)))
    return region


def _halved(region: Box, axis: int) -> Box:
    length = region.shape[axis]
    start = region.start[axis] + (length - length // 2) // 2
    return region.along(axis, start, start + length // 2)


def _read(graph: Graph, region: Box, shape: tuple[int, ...]) -> Box:
    """The input that gives the region the same answer as one pass over the whole scan."""
    context = graph.context(region, shape)
    start = tuple(a - m for a, m in zip(context.start, graph.margin, strict=True))
    return Box.of_shape(graph.smallest_for(context.shape), start)


def _plain(runner: Streamer, view: Image, region: Box) -> Tensor:
    graph = runner.graph
    read = _read(graph, region, tuple(view.shape[1:]))
    reader = PatchReader(runner.network, view, "constant" if graph.padded else "reflect", runner.execution)
    logits = reader.answer([read])[0]
    first = tuple(a + m for a, m in zip(read.start, graph.margin, strict=True))
    return logits[(slice(None), *region.relative_to(first).slices)]


def _streamed(runner: Streamer, view: Image, region: Box, stream: StreamPlan) -> Tensor:
    rows = runner.run(view, stream.slab, passage=Passage(stream.axis, region=region))
    return torch.cat([logits.cpu().float() for _, _, logits in rows], dim=stream.axis + 1)


def _blended(model: Model, view: Image, region: Box, execution: Execution) -> Tensor:
    """Windows over the region and a window's length around it, as a scan of its own."""
    around = _around(model, view, region)
    part = torch.from_numpy(view[(slice(None), *around.slices)])
    logits = blended_windows(model.network, part, Windows(model.card.patch), execution)
    return logits[(slice(None), *region.relative_to(around.start).slices)]


def _around(model: Model, view: Image, region: Box) -> Box:
    scan = Box.of_shape(tuple(int(n) for n in view.shape[1:]))
    return region.grown(model.card.patch).intersection(scan)


def _percent(share: float) -> str:
    return f"{100 * share:.3f} %"
