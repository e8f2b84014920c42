"""Plan of a prediction: the way, the axis, slabs and parts that fit the memory allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.geometry.tiles import fitting_tile
from medunet.inference.execution import Runner
from medunet.inference.method import Method
from medunet.inference.overlap_tile import Tiles
from medunet.inference.sliding_window import Windows
from medunet.inference.streaming.plan import Budget, StreamPlan, plan_stream, split
from medunet.inference.streaming.streamer import Stream, Streamer
from medunet.model import Model
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.memory import estimate_bytes
from medunet.networks.unet import UNet
from medunet.prediction.scan import Scan
from medunet.system.wording import bytes_text, times_text
from medunet.transforms.preprocess import Undo
from medunet.transforms.restore import Part

INTERPOLATING = 12 * 2**20
"""Memory for bringing scores back to the scan's grid, see `transforms/restore.py`."""
MUCH = 2**30
"""Memory that a person wants to know of."""


@dataclass(frozen=True)
class PredictSettings:
    """Settings of a prediction.

    Attributes:
        method: `exact` gives what one pass over the whole scan gives, `blend` averages overlapping windows,
            `auto` takes the first where it can be had.
        memory: bytes that computing may use, above the loaded models.
        precision: `fp32`, `bf16`, or `auto`: bf16 where it is faster here.
        tta: average over mirrored versions of the scan, along the axes that were mirrored in training.
        rotations: average over the scan turned by right angles in its slices' plane, and over their mirror images
            where training mirrored along an axis of that plane: 8 versions, or 4.
        postprocess: whether finished label maps get the post-processing that the models' cross-validation chose.
    """

    method: Literal["auto", "exact", "blend"] = "auto"
    memory: int = 4 * 2**30
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tta: bool = False
    postprocess: bool = True
    rotations: bool = False


@dataclass(frozen=True)
class ScanPlan:
    """The plan for one scan.

    Attributes:
        method: the way and why.
        axis: the spatial axis along which results come.
        parts: of the scan, one after the other.
        bytes: peak memory that is expected, above the loaded models.
        members: how many results are averaged: models times flips and rotations.
        slices: a two-dimensional network goes through the volume along `axis`.
        way: streamed, by blended windows or by overlapping tiles; of a slice where `slices` is true.
    """

    method: Method
    way: Stream | Windows | Tiles
    axis: int
    parts: tuple[Part, ...]
    bytes: int
    members: int
    slices: bool = False

    @property
    def stream(self) -> StreamPlan | None:
        """The plan of the stream, where the scan is streamed."""
        return self.way.plan if isinstance(self.way, Stream) else None

    @property
    def work(self) -> float:
        """Computations of each voxel by each member, on average."""
        return self.stream.work if self.stream else 1.0

    @property
    def kind(self) -> tuple[str, bool, bool, bool]:
        """The same for scans that go the same way, though slabs, parts and bytes depend on their sizes."""
        much = self.bytes > MUCH
        return self.method.reason, self.slices, len(self.parts) > 1, much

    def describe(self) -> str:
        """One line for people."""
        words = [self.method.reason]
        if self.stream:
            words.append(f"slabs of {self.stream.slab} along axis {self.stream.axis}")
            if math.prod(self.stream.parts) > 1:
                words.append(f"{times_text(self.stream.parts)} parts, {self.stream.work:.2f} times the work")
        if isinstance(self.way, Windows):
            words.append(f"windows of {times_text(self.way.size)}, overlap {self.way.overlap:g}")
        if self.slices:
            words.append(f"slice by slice along axis {self.axis}")
        if self.members > 1:
            words.append(f"mean of {self.members}")
        return "; ".join([*words, f"about {bytes_text(self.bytes)}"])

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {
            "way": self.method.way,
            "exact": self.method.exact,
            "reason": self.method.reason,
            "axis": self.axis,
            "slab": self.stream.slab if self.stream else None,
            "parts": list(self.stream.parts) if self.stream else [1] * len(self.parts[0].kept.shape),
            "work": round(self.work, 4),
            "windows": list(self.way.size) if isinstance(self.way, Windows) else None,
            "opinions": self.members,
            "expected_bytes": self.bytes,
        }


@dataclass(frozen=True)
class Planner:
    """The planner for scans of some models: all that plans depend on besides the scan.

    Attributes:
        models: at least one, alike.
        runners: of the models; streamers where the way is a stream.
        method: the way for all of them.
        memory: bytes that may be used above the loaded models.
        itemsize: bytes of a number in the precision that is used.
        members: models times flips and rotations.
        exchanged: whether some members see two axes exchanged.
    """

    models: tuple[Model, ...]
    runners: Sequence[Runner]
    method: Method
    memory: int
    itemsize: int
    members: int
    exchanged: bool = False

    def plan(self, scan: Scan, slowest: int | None = None) -> ScanPlan:
        """Decide how a scan is segmented within the memory.

        Args:
            slowest: the axis along which the scan lies in its file, if it does; it is streamed where that fits.

        Raises:
            ConfigError: nothing fits; the message says how much would.
        """
        card = self.models[0].card
        axis = card.slice_axis if len(scan.shape) > card.network.dimensions else None
        shape = tuple(n for a, n in enumerate(scan.shape) if a != axis)
        if self.method.way == "stream":
            return self._streamed(scan, shape, axis, slowest if axis is None else None)
        return self._by_patches(scan, shape, axis)

    def _streamed(self, scan: Scan, shape: tuple[int, ...], axis: int | None, slowest: int | None) -> ScanPlan:
        graphs = [runner.graph for runner in self.runners if isinstance(runner, Streamer)]
        network = max(graphs, key=lambda graph: graph.weights)
        resampled = scan.undo.resampled
        scores = network.classes * (4 * resampled + (self.members + 1) * (self.members > 1))
        beside = 4 * (scores + 4 * network.in_channels)
        interpolating = INTERPOLATING if resampled else 0
        # a network that sees the scan mirrored along the streamed axis has mirrored kernels
        # (and one that sees two axes exchanged may be streamed along the other one, too)
        networks = len(self.models) * (2 if self.members > len(self.models) else 1) * (2 if self.exchanged else 1)
        budget = Budget(self.memory - interpolating, self.itemsize, self.members, networks, beside)
        axes = tuple(range(len(shape)))
        stream = plan_stream(network, shape, budget, axes if slowest is None else (slowest,))
        if slowest is not None and (stream.bytes > budget.memory or math.prod(stream.parts) > 1):
            stream = plan_stream(network, shape, budget, axes)
        needed = stream.bytes + interpolating
        if needed > self.memory:
            what = f"even in the thinnest slabs of the smallest parts worth it, a scan of {times_text(shape)} voxels"
            raise _too_little(what, needed, self.memory)
        parts = (Part.of(scan.undo, axis),) if axis is not None else parts_of(scan.undo, stream)
        along = axis if axis is not None else stream.axis
        return ScanPlan(self.method, Stream(stream), along, parts, needed, self.members, axis is not None)

    def _by_patches(self, scan: Scan, shape: tuple[int, ...], axis: int | None) -> ScanPlan:
        """Blended windows of the size in training, or the largest tiles that fit."""
        windows = Windows(self.models[0].card.patch) if self.method.way == "blend" else None
        sizes = tuple(map(min, windows.size, shape)) if windows else shape
        along = min(range(len(shape)), key=lambda a: sizes[a] / shape[a])
        # of each member: the rows that patches still write to, their weights, a weighted patch, and what is handed on
        classes = self.models[0].card.network.classes
        beside = 16 * self.members * (classes + 1) * math.prod(shape) // shape[along] * sizes[along]
        beside += INTERPOLATING if scan.undo.resampled else 0
        way: Windows | Tiles
        if windows:
            way, each = windows, max(pass_bytes(model, windows.size) for model in self.models)
        else:
            way, each = self._tiles(shape, beside)
        needed = beside + each
        if windows and needed > self.memory:
            what = f"blended windows of {times_text(windows.size)} over {times_text(shape)} voxels"
            raise _too_little(what, needed, self.memory)
        where = axis if axis is not None else along
        parts = (Part.of(scan.undo, where),)
        return ScanPlan(self.method, way, where, parts, needed, self.members, axis is not None)

    def _tiles(self, shape: tuple[int, ...], beside: int) -> tuple[Tiles, int]:
        """The largest tiles that fit beside what else is held, and the memory of one."""
        unet, room = self.models[0].unet, self.memory - beside
        size = fitting_tile(shape, unet.shape, lambda size: estimate_bytes(unet, size) <= room)
        return Tiles(size, unet.shape), estimate_bytes(unet, size)


def pass_bytes(model: Model, size: tuple[int, ...]) -> int:
    """Memory of a pass over an image: counted for medunet's own network, estimated on meta tensors for others."""
    network = model.network
    if isinstance(network, UNet):
        return estimate_bytes(network.settings, size)
    return network.pass_bytes(size) if isinstance(network, AdaptedNetwork) else 0


def _too_little(what: str, needed: int, memory: int) -> ConfigError:
    needs = "need" if what.startswith("blended") else "needs"
    return ConfigError(
        f"{what} {needs} about {bytes_text(needed)}, but --memory allows {bytes_text(memory)}; "
        f"give --memory {math.ceil(needed / 2**20)}M or more"
    )


def parts_of(undo: Undo, stream: StreamPlan) -> tuple[Part, ...]:
    """The parts of a scan, on the grid that results are wanted on."""
    if math.prod(stream.parts) == 1:
        return (Part.of(undo, stream.axis),)
    boxes = [Box((), ())]
    for length, count in zip(undo.kept, stream.parts, strict=True):
        spans = split(length, min(count, length))
        boxes = [Box((*box.start, a), (*box.stop, b)) for box in boxes for a, b in spans]
    return tuple(Part.of(undo, stream.axis, box) for box in boxes)
