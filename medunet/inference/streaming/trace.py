"""Trace of a network: its operators are written down while a small image passes through it."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from medunet.inference.streaming.graph import (
    Argument,
    Convolution,
    Edging,
    Graph,
    Input,
    Joining,
    Node,
    NotLocal,
    Operator,
    Pointwise,
    Pooling,
    Resizing,
    Scaling,
)
from medunet.inference.streaming.rules import Edged, Resized

# Operators that give each voxel from the same voxel of their inputs; in-place forms have the same name and a `_`.
# fmt: off
POINTWISE = frozenset([
    "relu", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "gelu", "sigmoid", "tanh", "hardtanh", "hardswish",
    "hardsigmoid", "softplus", "_prelu_kernel", "add", "sub", "rsub", "mul", "div", "neg", "exp", "log", "log1p",
    "sqrt", "rsqrt", "square", "pow", "abs", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "reciprocal",
    "where",
])
# Operators that do so as long as their dimension is that of the channels.
OVER_CHANNELS = frozenset([
    "_softmax", "_log_softmax", "mean", "sum", "amax", "amin", "var_mean", "var", "slice", "index_select",
    "split", "split_with_sizes",
])
UNCHANGED = frozenset(["alias", "detach", "clone", "lift_fresh", "contiguous"])
STATISTICS = frozenset([
    "native_group_norm", "native_layer_norm", "mean", "sum", "amax", "amin", "max", "min", "var", "var_mean", "std",
    "_softmax", "_log_softmax",
])
READS_VALUES = frozenset(["_local_scalar_dense", "is_nonzero", "equal", "nonzero"])
# fmt: on
RESIZES = {
    "upsample_nearest": "nearest",
    "_upsample_nearest_exact": "nearest-exact",
    "upsample_bilinear": "linear",
    "upsample_trilinear": "linear",
    "upsample_linear": "linear",
}  # fmt: skip
PADS = {"constant_pad_nd": "constant", "replication_pad": "replicate", "reflection_pad": "reflect"}


def trace(network: nn.Module, channels: int, size: Sequence[int]) -> Graph:
    """The graph of a network's logits, for images of this size and all that differ by multiples of its stride.

    Args:
        network: in evaluation mode; not changed. Of several answers the first is taken.
        channels: of the image.
        size: spatial, one that the network takes.

    Raises:
        NotLocal: an operator is unknown, needs the whole image, or the network looks at values; names the layer.
        Exception: whatever the network raises for this size.
    """
    if any(module.training for module in network.modules()):
        raise NotLocal("the network is in training mode, with dropout and batch statistics; call network.eval()")
    first = next(network.parameters(), torch.empty(0))
    image = torch.zeros((1, channels, *size), dtype=first.dtype, device=first.device)
    recorder = _Recorder(image)
    with torch.no_grad(), _named_layers(network, recorder.layers), recorder:
        answer = network(image)
    answer = next(iter(tree_leaves(answer)), None)
    return recorder.graph(answer)


PROBES = (32, 48, 60, 64, 96, 128, 240)
"""Lengths with which an unknown network is tried, in this order."""


def graph_of(network: Any, channels: int | None = None, dimensions: int | None = None) -> Graph:
    """The graph of a network, traced with the smallest image that it is known to take.

    Args:
        network: medunet's own or an adapted one, which know their sizes; any other is tried with a few.
        channels: of the image; needed for a network that does not state them.
        dimensions: of the image; needed likewise.

    Raises:
        NotLocal: see `trace`; or the network took no image of any of the sizes that were tried.
    """
    settings = getattr(network, "settings", None)
    if settings is not None and hasattr(settings, "in_channels"):
        reason = getattr(settings, "inexact_reason", None)
        if reason is not None:
            raise NotLocal(f"this network cannot be streamed: {reason}; use --method auto")
        size = network.size_for((1,) * settings.dimensions) if hasattr(network, "size_for") else settings.shape.smallest
        return replace(trace(network, settings.in_channels, size), stated=settings.padded)
    if channels is None or dimensions is None:
        raise NotLocal(f"found a {type(network).__name__}, which does not state its channels and axes")
    reasons = []
    for length in PROBES:
        try:
            graph = trace(network, channels, (length,) * dimensions)
            return _checked(network, graph)
        except NotLocal:
            raise
        except Exception as error:  # a network raises errors of any kind for a size that it does not take
            reasons.append(
                f"{length}: {type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
            )
    raise NotLocal(f"the network took no image of {channels} channel(s) and a length of " + "; ".join(reasons))


def graph_for(network: nn.Module, channels: int, size: Sequence[int]) -> Graph:
    """The graph of a network for images of one size, and of all that differ from it by multiples of its stride.

    A network that takes the size as it is answers for it as it is, even where it is no multiple of the stride; another
    one is given the next size that it takes, see `Graph.smallest_for`.

    Raises:
        NotLocal: see `trace`.
    """
    graph = graph_of(network, channels, len(size))
    rest = [(n - known) % step for n, known, step in zip(size, graph.traced, graph.stride, strict=True)]
    if not any(rest) or graph.stated is not None:
        return graph
    try:
        own = trace(network, channels, [n + more for n, more in zip(graph.traced, rest, strict=True)])
        return _checked(network, own) if own.stride == graph.stride and own.padded else graph
    except Exception:  # a network raises errors of any kind for a size that it does not take
        return graph


def _checked(network: nn.Module, graph: Graph) -> Graph:
    """The graph, after the same one was found for an image of one stride more.

    Raises:
        NotLocal: the network computes something else for another size.
    """
    larger = tuple(n + step for n, step in zip(graph.traced, graph.stride, strict=True))
    again = trace(network, graph.in_channels, larger)
    rules = [[(one.lengths(axis, n), one.reaches(axis, n)) for axis, n in enumerate(larger)] for one in (graph, again)]
    if _arguments(again) != _arguments(graph) or rules[0] != rules[1]:
        raise NotLocal("the network computes something else for each size of an image")
    return graph


def _arguments(graph: Graph) -> list[Any]:
    """The kinds of all operators and the plain numbers among their arguments."""
    found = []
    for node in graph.nodes:
        operator_ = node.operator
        leaves = tree_leaves((operator_.arguments, operator_.keywords)) if isinstance(operator_, Pointwise) else ()
        found.append((type(operator_), node.inputs, [leaf for leaf in leaves if not isinstance(leaf, Tensor)]))
    return found


@contextmanager
def _named_layers(network: nn.Module, layers: list[str]) -> Iterator[None]:
    """While it lasts, `layers` ends with the name of the layer that computes."""

    def leave(*_: Any) -> None:
        layers.pop()

    handles = []
    # An adapted network is known by the names of the network inside.
    known = getattr(network, "adapted", network)
    for name, module in known.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: layers.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):
    """Writes down the operators that work on the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[str] = []
        self._spatial = image.ndim - 2
        self._size = tuple(image.shape[2:])
        self._nodes = [Node("image", Input(), (), image.shape[1])]
        self._numbers: dict[int, int] = {id(image): 0}
        self._alive: list[Any] = [image]
        """Every tensor met, as the numbers are kept by identity."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise torch imports its compiler, which takes seconds."""
        return False

    def graph(self, answer: Any) -> Graph:
        if not isinstance(answer, Tensor) or id(answer) not in self._numbers:
            raise NotLocal("the network's answer was not computed from the image by operators that can be followed")
        last = self._numbers[id(answer)]
        kept = _ancestors(self._nodes, last)
        place = {number: index for index, number in enumerate(kept)}
        nodes = tuple(
            Node(node.name, node.operator, tuple(place[source] for source in node.inputs), node.channels)
            for node in (self._nodes[number] for number in kept)
        )
        graph = Graph(_folded(nodes), self._size)
        if tuple(graph.lengths(a, n)[-1] for a, n in enumerate(self._size)) != tuple(answer.shape[2:]):
            raise NotLocal(f"the sizes of {nodes[-1].name} follow no rule")
        return graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = [
            leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and id(leaf) in self._numbers
        ]
        result = func(*args, **kwargs)
        self._alive.append((args, kwargs, result))
        if sources:
            self._write(func.overloadpacket.__name__, func, args, kwargs, result)
        return result

    def _write(self, name: str, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if name in READS_VALUES:
            raise self._refusal("looks at values of the image to decide what it computes")
        if name.endswith("_") and not name.startswith("_"):
            name = name[:-1]
            if args[0]._base is not None:
                raise self._refusal("writes into a part of a map")
            func = getattr(torch.ops.aten, name, func)
        first = result[0] if isinstance(result, tuple | list) else result
        if name in UNCHANGED or _is_same_view(name, args, first):
            self._numbers[id(result)] = self._numbers[id(args[0])]
            return
        operator_ = self._operator(name, func, args, kwargs, first)
        if operator_ is None:
            return
        inputs = [
            leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and id(leaf) in self._numbers
        ]
        if any(leaf.ndim != self._spatial + 2 for leaf in inputs):
            raise self._refusal(f"may mix distant places ({name})")
        if any(leaf.shape[2:] != inputs[0].shape[2:] for leaf in inputs):
            raise self._refusal(f"joins maps of different sizes ({name})")
        numbers = tuple(self._numbers[id(leaf)] for leaf in inputs)
        if isinstance(result, tuple | list) and isinstance(operator_, Pointwise):
            self._add(operator_, numbers, 0)
            whole = len(self._nodes) - 1
            for index, part in enumerate(result):
                self._add(Pointwise(operator.getitem, (Argument(0), index), {}), (whole,), part.shape[1])
                self._numbers[id(part)] = len(self._nodes) - 1
            return
        self._add(operator_, numbers, first.shape[1])
        self._numbers[id(first)] = len(self._nodes) - 1

    def _add(self, operator_: Operator, inputs: tuple[int, ...], channels: int) -> None:
        self._nodes.append(Node(self._layer, operator_, inputs, channels))

    @property
    def _layer(self) -> str:
        return next((name for name in reversed(self.layers) if name), "the network")

    def _refusal(self, what: str) -> NotLocal:
        return NotLocal(f"{self._layer} {what}")

    def _operator(self, name: str, func: Any, args: Any, kwargs: Any, result: Tensor) -> Operator | None:
        """The operator of a call; None for one that makes nothing of the image's values."""
        bare = re.sub(r"[123]d$", "", name.removesuffix("_with_indices"))
        if name == "convolution":
            _, weight, bias, stride, padding, dilation, transposed, more, groups = args
            if any(id(t) in self._numbers for t in (weight, bias) if t is not None):
                raise self._refusal("convolves with a kernel that was computed from the image")
            every = [self._per_axis(numbers) for numbers in (stride, padding, dilation, more)]
            if transposed and any(k < s for k, s in zip(weight.shape[2:], every[0], strict=True)):
                raise self._refusal("enlarges by more than its kernel")
            return Convolution(weight, bias, every[0], every[1], every[2], transposed, every[3], groups)
        if name in ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"):
            return self._batch_norm(name, args)
        if bare in ("max_pool", "avg_pool"):
            return self._pooling(bare == "max_pool", args)
        if bare in RESIZES:
            return self._resizing(RESIZES[bare], args, kwargs, result)
        if bare in PADS or name in PADS:
            return self._padding(PADS[bare if bare in PADS else name], args, kwargs, result)
        if name == "slice" and len(args) > 1 and args[1] >= 2:
            return self._crop(args, result)
        if name == "cat":
            if (args[1] if len(args) > 1 else kwargs.get("dim", 0)) not in (1, 1 - args[0][0].ndim):
                raise self._refusal("joins maps along another axis than the channels")
            if any(id(t) not in self._numbers for t in args[0]):
                raise self._refusal("joins the image with constants")
            return Joining()
        return self._pointwise(name, func, args, kwargs, result)

    def _batch_norm(self, name: str, args: Any) -> Operator:
        _, weight, bias, mean, variance, *others = args
        training = False if name.endswith("no_training") else bool(others[0])
        if training or mean is None:
            raise self._refusal("takes statistics over the scan")
        factor = torch.rsqrt(variance.double() + others[-1])
        factor = factor if weight is None else factor * weight.double()
        return Scaling(factor, (0.0 if bias is None else bias.double()) - mean.double() * factor)

    def _pooling(self, maximum: bool, args: Any) -> Operator:
        defaults: list[Any] = [[], [0], [1], False] if maximum else [[], [0], False, True, None]
        kernel, stride, padding, *others = list(args[1:]) + defaults[len(args) - 2 :]
        dilation, ceil = others if maximum else ([1], others[0])
        if not maximum and (ceil or others[2] is not None or (any(padding) and not others[1])):
            raise self._refusal("takes means over windows of different sizes")
        every = [self._per_axis(numbers) for numbers in (kernel, stride or kernel, padding, dilation)]
        return Pooling(maximum, every[0], every[1], every[2], every[3], ceil)

    def _per_axis(self, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(numbers) * (1 if len(numbers) > 1 else self._spatial)

    def _resizing(self, mode: str, args: Any, kwargs: Any, result: Tensor) -> Operator:
        source, _, *more = args
        aligned = bool(more.pop(0)) if mode == "linear" else False
        scales = more[0] if more and isinstance(more[0], list | tuple) else more
        scales = [*scales, *[None] * (self._spatial - len(scales))]
        axes = zip(source.shape[2:], result.shape[2:], scales, strict=True)
        return Resizing(tuple(Resized(Fraction(out, n), mode, scale, aligned) for n, out, scale in axes))

    def _padding(self, mode: str, args: Any, kwargs: Any, result: Tensor) -> Operator | None:
        amounts = list(args[1])
        if len(amounts) > 2 * self._spatial and mode == "constant":
            return self._channel_padding(args, amounts)
        pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
        pairs = [(0, 0)] * (self._spatial - len(pairs)) + pairs
        if not any(map(any, pairs)):
            self._numbers[id(result)] = self._numbers[id(args[0])]
            return None
        value = float(args[2] if len(args) > 2 else kwargs.get("value", 0.0)) if mode == "constant" else 0.0
        return Edging(tuple(Edged(before, after, mode) for before, after in pairs), value)

    def _channel_padding(self, args: Any, amounts: list[int]) -> Operator:
        if any(amounts[: 2 * self._spatial]):
            raise self._refusal("pads channels and space at once")
        return Pointwise(torch.ops.aten.constant_pad_nd, (Argument(0), *args[1:]), {})

    def _crop(self, args: Any, result: Tensor) -> Operator:
        defaults: list[Any] = [0, None, 1]
        source, dim, start, _, step = list(args) + defaults[len(args) - 2 :]
        if step != 1:
            raise self._refusal("takes every other row")
        length = source.shape[dim]
        first = range(length)[slice(start, None)].start
        edges = [Edged(0, 0)] * self._spatial
        edges[dim - 2] = Edged(-first, first + result.shape[dim] - length)
        return Edging(tuple(edges))

    def _pointwise(self, name: str, func: Any, args: Any, kwargs: Any, result: Any) -> Operator:
        over_channels = name in OVER_CHANNELS and self._channel_wise(name, args, kwargs)
        repeats = name in ("repeat", "expand") and self._repeats_channels(name, args)
        if name not in POINTWISE and not over_channels and not repeats:
            why = "takes statistics over the scan" if name in STATISTICS else f"may mix distant places ({name})"
            raise self._refusal(why)
        inputs: dict[int, Argument] = {}

        def replaced(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) in self._numbers:
                return inputs.setdefault(len(inputs), Argument(len(inputs)))
            if any(n != 1 for n in leaf.shape[-self._spatial :]):
                raise self._refusal("holds numbers for each place of the image")
            return leaf

        arguments, keywords = tree_map(replaced, (tuple(args), dict(kwargs)))
        if repeats and name == "expand":
            arguments = (Argument(0), [-1, args[1][1], *[-1] * self._spatial])
        return Pointwise(func, arguments, keywords)

    def _channel_wise(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in ("split", "split_with_sizes"):
            return (args[2] if len(args) > 2 else kwargs.get("dim", 0)) in (1, -1 - self._spatial)
        if name == "slice" or name in ("_softmax", "_log_softmax", "index_select"):
            return len(args) > 1 and args[1] in (1, -1 - self._spatial)
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        keep = (args[2] if len(args) > 2 else False) or kwargs.get("keepdim", False)
        return isinstance(dims, list | tuple) and [d % (self._spatial + 2) for d in dims] == [1] and bool(keep)

    def _repeats_channels(self, name: str, args: Any) -> bool:
        sizes, shape = list(args[1]), args[0].shape
        if len(sizes) != len(shape):
            return False
        if name == "repeat":
            return all(n == 1 for axis, n in enumerate(sizes) if axis != 1)
        return all(n in (-1, have) for axis, (n, have) in enumerate(zip(sizes, shape, strict=True)) if axis != 1)


def _is_same_view(name: str, args: Any, result: Any) -> bool:
    """Whether a view has the map's own voxels in its own order; an axis of length 1 before them does not count."""
    if name in ("unsqueeze", "squeeze"):
        return bool(args[1] == 0)
    views = ("view", "_unsafe_view", "expand", "permute")
    return name in views and bool(result.shape == args[0].shape and result.stride() == args[0].stride())


def _ancestors(nodes: Sequence[Node], last: int) -> list[int]:
    """The nodes that one depends on, itself included, and the image, in order."""
    wanted = {0, last}
    for number in range(last, 0, -1):
        if number in wanted:
            wanted.update(nodes[number].inputs)
    return sorted(wanted)


def _folded(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes with each batch norm as a part of the convolution before it, where nobody else reads that."""
    readers = [0] * len(nodes)
    for node in nodes:
        for source in node.inputs:
            readers[source] += 1
    kept: list[Node] = []
    place: dict[int, int] = {}
    for number, node in enumerate(nodes):
        before = nodes[node.inputs[0]].operator if node.inputs else None
        if isinstance(node.operator, Scaling) and isinstance(before, Convolution) and readers[node.inputs[0]] == 1:
            place[number] = place[node.inputs[0]]
            kept[place[number]] = replace(kept[place[number]], operator=replace(before, scaling=node.operator))
            continue
        place[number] = len(kept)
        kept.append(replace(node, inputs=tuple(place[source] for source in node.inputs)))
    return tuple(kept)
