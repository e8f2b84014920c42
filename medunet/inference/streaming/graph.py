"""Graph of a network: its operators in order, each with its rules of rows, and the sizes that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.inference.streaming.rules import Edged, Reach, Resized, Rule, Same, Sliding, Transposed

Kept = TypeVar("Kept")
MOST_KEPT = 1000


class NotLocal(ConfigError):
    """A network that cannot be streamed; the message names the layer."""


@dataclass(frozen=True)
class Scaling:
    """A factor and a summand for each channel, in float64: a batch norm in evaluation mode."""

    factor: Tensor
    summand: Tensor


@dataclass(frozen=True)
class Convolution:
    """A convolution, also a transposed one; weights as in torch.

    Attributes:
        more: rows added at the end of a transposed one's output.
        scaling: a batch norm that follows.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    more: tuple[int, ...]
    groups: int
    scaling: Scaling | None = None

    def rules(self) -> tuple[Rule, ...]:
        kernels = self.weight.shape[2:]
        each = zip(kernels, self.stride, self.padding, self.dilation, self.more, strict=True)
        if self.transposed:
            return tuple(Transposed(*numbers) for numbers in each)
        return tuple(Sliding(*numbers[:4]) for numbers in each)


@dataclass(frozen=True)
class Pooling:
    """The maximum or the mean of each window."""

    maximum: bool
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False

    def rules(self) -> tuple[Rule, ...]:
        each = zip(self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(Sliding(*numbers, self.ceil) for numbers in each)


@dataclass(frozen=True)
class Edging:
    """Padding, or cropping where a number is below 0."""

    edges: tuple[Edged, ...]
    value: float = 0.0

    def rules(self) -> tuple[Rule, ...]:
        return self.edges


@dataclass(frozen=True)
class Resizing:
    """Interpolation."""

    axes: tuple[Resized, ...]

    def rules(self) -> tuple[Rule, ...]:
        return self.axes


@dataclass(frozen=True)
class Input:
    """The image."""


@dataclass(frozen=True)
class Joining:
    """Channels side by side."""


@dataclass(frozen=True)
class Argument:
    """The place of an operator's input among its arguments."""

    number: int


@dataclass(frozen=True)
class Pointwise:
    """Any operator that gives each voxel by itself, with all its arguments; inputs are `Argument`s."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


Operator = Input | Convolution | Pooling | Scaling | Edging | Resizing | Joining | Pointwise


@dataclass(frozen=True)
class Node:
    """One operator of a network.

    Attributes:
        name: the layer, as the network names it.
        operator: with its weights.
        inputs: numbers of the nodes that it reads.
        channels: of what it gives; 0 for a tuple, which only `operator.getitem` reads.
    """

    name: str
    operator: Operator
    inputs: tuple[int, ...]
    channels: int


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as operators, each reading earlier ones; node 0 is the image, the last one gives the logits.

    Attributes:
        traced: spatial size of the image with which it was traced; sizes that differ from it by multiples of `stride`
            have the same graph.
        stated: whether the network says of itself that it keeps the size.
    """

    nodes: tuple[Node, ...]
    traced: tuple[int, ...]
    stated: bool | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def dimensions(self) -> int:
        return len(self.traced)

    @property
    def in_channels(self) -> int:
        return self.nodes[0].channels

    @property
    def classes(self) -> int:
        return self.nodes[-1].channels

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """The nodes that read each node."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for source in dict.fromkeys(node.inputs):
                found[source].append(number)
        return tuple(map(tuple, found))

    def rule(self, number: int, axis: int) -> Rule:
        operator = self.nodes[number].operator
        return operator.rules()[axis] if isinstance(operator, Convolution | Pooling | Edging | Resizing) else Same()

    def once(self, key: Any, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, kept with the graph: a planner asks for many planes with the same rows."""
        if key not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = make()
        found: Kept = self._kept[key]
        return found

    def lengths(self, axis: int, length: int) -> tuple[int, ...]:
        """The rows of every node for an image of so many."""
        return self.once(("lengths", axis, length), lambda: self._lengths(axis, length))

    def _lengths(self, axis: int, length: int) -> tuple[int, ...]:
        rows = [length]
        for number, node in enumerate(self.nodes[1:], start=1):
            rows.append(self.rule(number, axis).length(rows[node.inputs[0]]))
        return tuple(rows)

    def reaches(self, axis: int, length: int) -> tuple[Reach, ...]:
        """The reach of every node for an image of so many rows."""
        rows = self.lengths(axis, length)
        sources = [node.inputs[0] if node.inputs else 0 for node in self.nodes]
        return tuple(self.rule(number, axis).reach(rows[source]) for number, source in enumerate(sources))

    @cached_property
    def padded(self) -> bool:
        """Whether the network keeps the size; another one is given the scan mirrored at its borders."""
        return not any(self.margin) if self.stated is None else self.stated

    @cached_property
    def stride(self) -> tuple[int, ...]:
        """The distance of legal sizes, per axis."""
        return tuple(math.lcm(*(scale[1] for scale in self._scales(axis))) for axis in range(self.dimensions))

    @cached_property
    def margin(self) -> tuple[int, ...]:
        """Voxels that the output lacks on each side."""
        return tuple((n - self.lengths(axis, n)[-1]) // 2 for axis, n in enumerate(self.traced))

    def _scales(self, axis: int) -> list[tuple[int, int]]:
        """Rows of each node for so many rows of the image, apart from borders, as a reduced fraction."""
        scales = [(1, 1)]
        for number, node in enumerate(self.nodes[1:], start=1):
            up, down = scales[node.inputs[0]]
            rule = self.rule(number, axis)
            if isinstance(rule, Sliding):
                down *= rule.stride
            elif isinstance(rule, Transposed):
                up *= rule.stride
            elif isinstance(rule, Resized):
                up, down = up * rule.factor.numerator, down * rule.factor.denominator
            common = math.gcd(up, down)
            scales.append((up // common, down // common))
        return scales

    def smallest_for(self, output: Sequence[int]) -> tuple[int, ...]:
        """The smallest legal input whose output is at least `output` on each axis."""
        found = []
        for axis, (n, step, margin) in enumerate(zip(output, self.stride, self.margin, strict=True)):
            least = n + 2 * margin
            legal = least + (self.traced[axis] - least) % step
            while min(self.lengths(axis, legal)) < 1:
                legal += step
            found.append(legal)
        return tuple(found)

    def context(self, region: Box, scan: Sequence[int]) -> Box:
        """The box to read so that the output of a region is that of one pass over the whole scan.

        For a network that keeps the size, what its field of view reaches, on its grid, up to the padded scan's true
        borders; for another one the region itself, from a position on the grid on.
        """
        starts, stops = [], []
        for axis, (start, stop, step) in enumerate(zip(region.start, region.stop, self.stride, strict=True)):
            if self.padded:
                end = self.smallest_for(scan)[axis]
                first, last = self._field(axis, end, start, stop - 1)
                start, stop = max(first, 0), min(-(-(last + 1) // step) * step, end)
            starts.append(start - start % step)
            stops.append(stop)
        return Box(tuple(starts), tuple(stops))

    def _field(self, axis: int, length: int, first: int, last: int) -> tuple[int, int]:
        """The first and last row of the image that rows of the output depend on, as if there were no borders."""
        reaches = self.reaches(axis, length)
        spans: list[tuple[int, int] | None] = [None] * len(self.nodes)
        spans[-1] = (first, last)
        for number in range(len(self.nodes) - 1, 0, -1):
            span = spans[number]
            if span is None:
                continue
            low, high = reaches[number].first(span[0]), reaches[number].last(span[1])
            for source in self.nodes[number].inputs:
                known = spans[source]
                spans[source] = (low, high) if known is None else (min(low, known[0]), max(high, known[1]))
        found = spans[0]
        return (first, last) if found is None else found

    @cached_property
    def splittable(self) -> bool:
        """Whether parts of a scan give what the whole gives: no layer looks at where the scan ends, but for zeros."""
        return not any(
            (isinstance(node.operator, Resizing) and any(axis.aligned for axis in node.operator.axes))
            or (
                isinstance(node.operator, Edging)
                and any(e.mode != "constant" and (e.before or e.after) for e in node.operator.edges)
            )
            for node in self.nodes
        )

    @cached_property
    def weights(self) -> int:
        """Numbers in the kernels of all convolutions."""
        kernels = [node.operator.weight for node in self.nodes if isinstance(node.operator, Convolution)]
        return sum(weight.numel() for weight in kernels)

    def operations(self, size: Sequence[int]) -> int:
        """Floating-point operations of the convolutions of one pass over an image of this legal size."""
        total = 0
        for number, node in enumerate(self.nodes):
            if isinstance(node.operator, Convolution):
                place = node.inputs[0] if node.operator.transposed else number
                voxels = math.prod(self.lengths(axis, n)[place] for axis, n in enumerate(size))
                total += 2 * node.operator.weight.numel() * voxels
        return total
