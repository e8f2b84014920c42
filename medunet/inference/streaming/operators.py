"""Operators made ready to stream: private copies of weights, the streamed axis first, channels innermost in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map

from medunet.inference.streaming.graph import (
    Argument,
    Convolution,
    Edging,
    Joining,
    Operator,
    Pointwise,
    Pooling,
    Resizing,
    Scaling,
)
from medunet.inference.streaming.rules import Reach, Resized

CHANNELS_INNERMOST = {2: torch.channels_last, 3: torch.channels_last_3d}
CONVOLVE: dict[int, Callable[..., Tensor]] = {2: functional.conv2d, 3: functional.conv3d}
ENLARGE: dict[int, Callable[..., Tensor]] = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@dataclass(frozen=True)
class Target:
    """Type, device and axis that operators are made for.

    Attributes:
        dtype: in which they compute.
        device: on which.
        axis: the spatial axis that is streamed; it becomes the first.
        backwards: kernels are mirrored along that axis, which makes of a scan in its own order what the network makes
            of the mirrored scan, in the scan's order.
    """

    dtype: torch.dtype
    device: torch.device
    axis: int = 0
    backwards: bool = False

    def weights(self, weight: Tensor) -> Tensor:
        """A kernel ``(channel, channel, *spatial)`` with the streamed axis first, channels innermost in memory."""
        moved = weight.detach().movedim(2 + self.axis, 2).to(self.device, self.dtype, copy=True)
        moved = moved.flip(2) if self.backwards else moved
        return moved.contiguous(memory_format=CHANNELS_INNERMOST[moved.ndim - 2])

    def vector(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().to(self.device, self.dtype, copy=True)

    def empty(self, channels: int, rows: int, plane: Sequence[int]) -> Tensor:
        """An uninitialised map ``(1, channel, row, *plane)``, channels innermost in memory.

        So neighbouring rows are one block of memory, and any number of rows is a contiguous tensor for a convolution.
        """
        stored = torch.empty((1, rows, *plane, channels), dtype=self.dtype, device=self.device)
        return stored.movedim(-1, 1)

    def size(self, spatial: Sequence[Any]) -> tuple[Any, ...]:
        """One thing per axis, that of the streamed axis first."""
        return (spatial[self.axis], *spatial[: self.axis], *spatial[self.axis + 1 :])


@dataclass(frozen=True)
class Span:
    """The rows that are made in one step, and those that are read for it.

    Attributes:
        start: first row made.
        stop: behind the last one.
        reach: the operator's along the streamed axis.
        length: rows of the complete input.
        spare: nobody else reads the first input, so it may be overwritten.
    """

    start: int
    stop: int
    reach: Reach
    length: int
    spare: bool = False

    @property
    def rows(self) -> tuple[int, int]:
        """The rows of the input that exist and are read, at least one."""
        first, last = self.reach.first(self.start), self.reach.last(self.stop - 1)
        return min(max(first, 0), self.length - 1), max(min(last + 1, self.length), 1)

    @property
    def edges(self) -> tuple[int, int, int]:
        """Rows that are read before the first that exists, of those that exist, and behind the last."""
        first, last = self.reach.first(self.start), self.reach.last(self.stop - 1)
        before = min(max(-first, 0), last + 1 - first)
        behind = min(max(last + 1 - self.length, 0), last + 1 - first)
        return before, last + 1 - first - before - behind, behind


Layer = Callable[[Sequence[Any], Span, "Tensor | None"], Any]
"""Makes rows from the rows of all inputs, in `out` where it is given (and may still answer with another tensor)."""


def put(rows: Tensor, out: Tensor | None) -> Tensor:
    return rows if out is None else out.copy_(rows)


def _padded(rows: Tensor, span: Span, value: float) -> Tensor:
    """Rows with `value` in place of those that do not exist."""
    before, inner, behind = span.edges
    if not before and not behind:
        return rows
    plane = rows.shape[3:]
    padded = rows.new_full((1, before + inner + behind, *plane, rows.shape[1]), value).movedim(-1, 1)
    if inner:
        padded.narrow(2, before, inner).copy_(rows)
    return padded


class Convolving:
    """A convolution, with a batch norm that follows folded in.

    Along the streamed axis it takes what it is given; its zeros there are rows that are added.
    """

    def __init__(self, operator: Convolution, target: Target) -> None:
        weight, bias, scaling = operator.weight, operator.bias, operator.scaling
        if scaling is not None:
            weight = weight.double() * scaling.factor.view(-1, *(1,) * (weight.ndim - 1))
            bias = scaling.summand + (0.0 if bias is None else bias.double() * scaling.factor)
        self.weight, self.bias = target.weights(weight), target.vector(bias)
        self._stride, self._dilation = target.size(operator.stride), target.size(operator.dilation)
        self._padding = (0, *target.size(operator.padding)[1:])
        self._groups = operator.groups
        # On one thread, torch gives thin float32 slabs to a convolution of its own that took seven times as long.
        named = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")
        self._direct = named and self.weight.device.type == "cpu" and self.weight.dtype == torch.float32

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        rows = _padded(inputs[0], span, 0.0)
        if self._direct:
            made = torch.mkldnn_convolution(
                rows, self.weight, self.bias, self._padding, self._stride, self._dilation, self._groups
            )
        else:
            convolve = CONVOLVE[rows.ndim - 2]
            made = convolve(rows, self.weight, self.bias, self._stride, self._padding, self._dilation, self._groups)
        return put(made, out)


class Enlarging:
    """A transposed convolution of any kind."""

    def __init__(self, operator: Convolution, target: Target) -> None:
        weight, bias = _transposed_weights(operator)
        self._weight, self._bias = target.weights(weight), target.vector(bias)
        self._stride, self._dilation = target.size(operator.stride), target.size(operator.dilation)
        self._padding = (0, *target.size(operator.padding)[1:])
        self._more, self._groups = target.size(operator.more), operator.groups
        self._reach_back = target.size(operator.dilation)[0] * (self._weight.shape[2] - 1)

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        rows, stride = inputs[0], self._stride[0]
        # Row i of the input goes to rows from i * stride - offset on; see `rules.Transposed`.
        offset = span.reach.high
        first = span.rows[0] * stride - offset
        last = first + (rows.shape[2] - 1) * stride + self._reach_back + 1
        more = (max(span.stop - last, 0), *self._more[1:])
        enlarge = ENLARGE[rows.ndim - 2]
        made = enlarge(rows, self._weight, self._bias, self._stride, self._padding, more, self._groups, self._dilation)
        return put(made.narrow(2, span.start - first, span.stop - span.start), out)


class Unfolding:
    """A transposed convolution whose kernel is its stride: one matrix product over the channels of each voxel.

    No two kernels overlap; the product is written where it belongs.
    """

    def __init__(self, operator: Convolution, target: Target) -> None:
        weight, bias = _transposed_weights(operator)
        self._stride = target.size(operator.stride)
        turned = target.weights(weight)
        self._matrix = turned.movedim(1, -1).flatten(1).t().contiguous()
        vector = target.vector(bias)
        self._bias = None if vector is None else vector.repeat(len(self._matrix) // len(vector))
        self._target, self._channels = target, weight.shape[1]

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        rows = inputs[0]
        size = rows.shape[2:]
        voxels = rows.movedim(1, -1).reshape(-1, rows.shape[1])
        product = functional.linear(voxels, self._matrix, self._bias)
        source = product.view(*size, *self._stride, -1)
        before = span.start - span.rows[0] * self._stride[0]
        full = out
        if out is None or out.shape[2] != size[0] * self._stride[0]:
            plane = [n * s for n, s in zip(size[1:], self._stride[1:], strict=True)]
            full = self._target.empty(self._channels, size[0] * self._stride[0], plane)
        assert full is not None
        to = full.movedim(1, -1)[0]
        for axis, (n, s) in enumerate(zip(size, self._stride, strict=True)):
            to = to.unflatten(2 * axis, (n, s))
            source = source.movedim(len(size) + axis, 2 * axis + 1)
        to.copy_(source)
        return full if full is out else put(full.narrow(2, before, span.stop - span.start), out)


def _transposed_weights(operator: Convolution) -> tuple[Tensor, Tensor | None]:
    scaling = operator.scaling
    if scaling is None:
        return operator.weight, operator.bias
    groups = operator.groups
    factor = scaling.factor.view(groups, 1, -1, *(1,) * (operator.weight.ndim - 2))
    weight = (operator.weight.double().unflatten(0, (groups, -1)) * factor).flatten(0, 1)
    bias = 0.0 if operator.bias is None else operator.bias.double() * scaling.factor
    return weight, scaling.summand + bias


class Pools:
    """The maximum or the mean of windows."""

    def __init__(self, operator: Pooling, target: Target) -> None:
        self._kernel, self._stride = target.size(operator.kernel), target.size(operator.stride)
        self._padding, self._dilation = target.size(operator.padding), target.size(operator.dilation)
        self._maximum, self._ceil = operator.maximum, operator.ceil

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        rows = _padded(inputs[0], span, float("-inf") if self._maximum else 0.0)
        padding = (0, *self._padding[1:])
        flat = rows.ndim == 4
        if self._maximum:
            pool = functional.max_pool2d if flat else functional.max_pool3d
            return put(pool(rows, self._kernel, self._stride, padding, self._dilation, self._ceil), out)
        mean = functional.avg_pool2d if flat else functional.avg_pool3d
        return put(mean(rows, self._kernel, self._stride, padding), out)


class Scales:
    """A factor and a summand for each channel."""

    def __init__(self, operator: Scaling, target: Target) -> None:
        self._factor = operator.factor.to(target.device, target.dtype)
        self._summand = operator.summand.to(target.device, target.dtype)

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        shape = (1, -1, *(1,) * (inputs[0].ndim - 2))
        made = torch.addcmul(self._summand.view(shape), inputs[0], self._factor.view(shape))
        return put(made, out)


class Edges:
    """Padding and cropping."""

    def __init__(self, operator: Edging, target: Target) -> None:
        self._rules, self._value, self._backwards = target.size(operator.edges), operator.value, target.backwards

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        rows = inputs[0]
        for axis, rule in enumerate(self._rules[1:], start=3):
            if rule.mode == "constant":
                if rule.before or rule.after:
                    edges = [0, 0] * (rows.ndim - 1 - axis) + [rule.before, rule.after]
                    rows = functional.pad(rows, edges, value=self._value)
            elif rule.before or rule.after:
                rows = rows.index_select(axis, torch.as_tensor(rule.sources(rows.shape[axis]), device=rows.device))
        first = self._rules[0]
        if first.mode == "constant":
            return put(_padded(rows, span, self._value), out)
        index = first.sources(span.length)
        index = span.length - 1 - index[::-1] if self._backwards else index
        index = torch.as_tensor(index[span.start : span.stop] - span.rows[0], device=rows.device)
        return put(rows.index_select(2, index), out)


class Resizes:
    """Interpolation, axis by axis."""

    def __init__(self, operator: Resizing, target: Target) -> None:
        self._rules: tuple[Resized, ...] = target.size(operator.axes)
        self._backwards = target.backwards

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        rows = inputs[0]
        double = rows.dtype == torch.float64
        positions = self._rules[0].positions(span.length, double)
        positions = span.length - 1 - positions[::-1] if self._backwards else positions
        rows = _gather(
            rows, 2, self._rules[0], torch.from_numpy(positions[span.start : span.stop].copy()), span.rows[0]
        )
        for axis, rule in enumerate(self._rules[1:], start=3):
            if rule.factor != 1:
                rows = _gather(rows, axis, rule, torch.from_numpy(rule.positions(rows.shape[axis], double)), 0)
        return put(rows, out)


def _gather(rows: Tensor, axis: int, rule: Resized, positions: Tensor, first: int) -> Tensor:
    """Rows at positions of the complete map along an axis, of which `rows` begins with row `first`."""
    if rule.factor == 1:
        return rows
    last = rows.shape[axis] - 1
    low = (positions.floor().long() - first).clamp(0, last)
    near = rows.index_select(axis, low.to(rows.device))
    if rule.mode != "linear":
        return near
    share = (positions - positions.floor()).to(rows.device, rows.dtype).view(-1, *(1,) * (rows.ndim - 1 - axis))
    far = rows.index_select(axis, (low + 1).clamp(0, last).to(rows.device))
    return near.lerp_(far, share) if not share.requires_grad else near + (far - near) * share


class Joins:
    """Channels side by side."""

    def __call__(self, inputs: Sequence[Tensor], span: Span, out: Tensor | None) -> Tensor:
        return torch.cat(tuple(inputs), 1) if out is None else torch.cat(tuple(inputs), 1, out=out)


class Elementwise:
    """Any operator that gives each voxel by itself."""

    def __init__(self, operator: Pointwise, target: Target) -> None:
        def ready(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.detach().to(target.device, target.dtype)
            return value

        self._function = operator.function
        self._arguments, self._keywords = tree_map(ready, (operator.arguments, operator.keywords))
        self._name = getattr(self._function, "_qualified_op_name", getattr(self._function, "__name__", ""))
        packet = getattr(self._function, "overloadpacket", self._function)
        self.in_place = getattr(torch.ops.aten, f"{getattr(packet, '__name__', '')}_", None)
        self._out = getattr(packet, "out", None)
        self._plain = packet.__name__.rstrip("_") if hasattr(packet, "__name__") else ""

    def __call__(self, inputs: Sequence[Any], span: Span, out: Tensor | None) -> Any:
        arguments, keywords = self._arguments, self._keywords
        if out is not None and self._plain == "relu":
            return torch.clamp_min(inputs[0], 0, out=out)
        if out is not None and self._plain == "leaky_relu":
            return torch.ops.aten.leaky_relu.out(inputs[0], *arguments[1:], out=out)
        values = [inputs[a.number] if isinstance(a, Argument) else a for a in arguments]
        if any(isinstance(v, (list, tuple)) for v in values):
            values = tree_map(lambda v: inputs[v.number] if isinstance(v, Argument) else v, values)
        if out is None and span.spare and self.in_place is not None and isinstance(values[0], Tensor):
            return self.in_place(*values, **keywords)
        made = self._function(*values, **keywords)
        return made if out is None else put(made, out)


def ready_layer(operator: Operator, target: Target) -> Layer:
    """An operator with its weights converted."""
    if isinstance(operator, Convolution):
        if not operator.transposed:
            return Convolving(operator, target)
        plain = not any(operator.padding) and not any(operator.more) and set(operator.dilation) == {1}
        unfolds = plain and tuple(operator.weight.shape[2:]) == operator.stride and operator.groups == 1
        return (Unfolding if unfolds else Enlarging)(operator, target)
    if isinstance(operator, Pooling):
        return Pools(operator, target)
    if isinstance(operator, Scaling):
        return Scales(operator, target)
    if isinstance(operator, Edging):
        return Edges(operator, target)
    if isinstance(operator, Resizing):
        return Resizes(operator, target)
    if isinstance(operator, Joining):
        return Joins()
    assert isinstance(operator, Pointwise)
    return Elementwise(operator, target)
