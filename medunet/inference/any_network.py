"""Any network of local operators over a whole image, exactly, in bounded memory: `medunet.stream`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.inference.execution import Execution, Image, Passage, Progress
from medunet.inference.streaming.plan import Budget, StreamPlan, plan_stream, split
from medunet.inference.streaming.streamer import Streamer
from medunet.inference.streaming.trace import graph_for
from medunet.system.devices import autocast_type
from medunet.system.wording import bytes_text, parse_bytes, times_text

Place = tuple[slice, ...]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def stream(
    network: nn.Module,
    image: Image,
    memory: int | str = "4G",
    precision: Precision = "fp32",
    axis: int | None = None,
    mirror: Sequence[int] = (),
    progress: Progress | None = None,
) -> Iterator[tuple[Place, Tensor]]:
    """The logits of a whole image, slab by slab: what `network(image[None])[0]` gives, each activation computed once.

    Any network whose layers are local can be streamed: convolutions, pooling, interpolation, batch norm in evaluation
    mode, activations, sums, skip connections. Its operators are written down while a small image passes through it;
    memory depends on the image's cross-section, not on its length.

    A size that the network does not take is zero-padded behind its last voxels to the next one that it takes. A network
    whose answer is smaller than its image, as an unpadded U-Net's, is given the image mirrored at its borders, so that
    it answers for every voxel. Of several answers (deep supervision) the first is taken. For example::

        labels = torch.empty(image.shape[1:], dtype=torch.uint8)
        for place, logits in medunet.stream(network, image):
            labels[place] = logits.argmax(0)

    Args:
        network: in evaluation mode, on the device where it shall run; it is not changed.
        image: ``(channel, *spatial)`` on the host: a tensor, an array, or anything that gives boxes of itself.
        memory: bytes that may be used, a number or a text such as ``4G``; a wide image is cut into overlapping parts.
        precision: ``fp32`` computes in the network's own precision, ``bf16`` in bfloat16, ``fp16`` in float16,
            ``auto`` in the faster one of the first two.
        axis: the spatial axis to go along; by default the one that needs least memory.
        mirror: spatial axes along which the network sees the image mirrored; what comes out is turned back.
        progress: called after each slab with the number done and the number of all.

    Returns:
        Pairs of a place, slices of the spatial axes, and its logits ``(class, *spatial)`` in float32 (float64 for a
        network in float64), on the network's device. Each voxel comes once.

    Raises:
        NotLocal: a layer needs the whole image at once, by name; blended windows are the way for such a network.
        ConfigError: the image does not fit the network, the memory is too small, or there is no such precision; while
            the rows come: a value was too large for float16.
    """
    scan = tuple(int(n) for n in image.shape[1:])
    graph = graph_for(network, int(image.shape[0]), scan)
    device = next(network.parameters(), torch.empty(0)).device
    execution = Execution(str(device), _type_of(precision, device))
    runner = Streamer(network, execution, graph)
    budget = Budget(parse_bytes(memory), execution.dtype.itemsize, beside=16 * graph.in_channels)
    plan = plan_stream(graph, scan, budget, range(len(scan)) if axis is None else (axis,))
    if plan.bytes > budget.memory:
        raise ConfigError(
            f"streaming an image of {times_text(scan)} needs about {bytes_text(plan.bytes)}, found memory="
            f"{bytes_text(budget.memory)}; give it more"
        )
    return _places(runner, image, plan, tuple(mirror), progress)


def _type_of(precision: Precision, device: torch.device) -> torch.dtype:
    known = get_args(Precision)
    if precision not in known:
        raise ConfigError(f"precision: found {precision!r}, expected one of {', '.join(known)}")
    if precision == "fp16":
        return torch.float16
    return autocast_type(precision, device) or torch.float32


def _places(
    runner: Streamer, image: Image, plan: StreamPlan, mirror: tuple[int, ...], progress: Progress | None
) -> Iterator[tuple[Place, Tensor]]:
    spans = [split(int(n), count) for n, count in zip(image.shape[1:], plan.parts, strict=True)]
    count = math.prod(plan.parts)
    for number, part in enumerate(itertools.product(*spans)):
        region = Box(tuple(a for a, _ in part), tuple(b for _, b in part))
        passage = Passage(plan.axis, mirror, region if count > 1 else None)
        report = _share(progress, number, count)
        for start, stop, logits in runner.run(image, plan.slab, report, passage):
            place = region.along(plan.axis, start, stop).slices
            if runner.execution.dtype == torch.float16 and not logits.isfinite().all():
                raise ConfigError(
                    f"precision: a value of rows {place[plan.axis].start} to {place[plan.axis].stop - 1} of axis "
                    f"{plan.axis} is too large for float16, which ends at 65504\n"
                    "take precision='bf16' or 'fp32'"
                )
            yield place, logits


def _share(progress: Progress | None, number: int, count: int) -> Any:
    return progress and (lambda done, total: progress(number * total + done, count * total))
