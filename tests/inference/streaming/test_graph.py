"""A traced graph's sizes and arithmetic, against what medunet's own networks say of themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medunet.geometry.boxes import Box
from medunet.inference.streaming.trace import graph_of
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from tests.networks.variants import unet_settings


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_sizes_are_those_that_the_network_states(data: st.DataObject) -> None:
    config = data.draw(unet_settings())
    graph, shape = graph_of(UNet(config).eval()), config.shape
    assert (graph.margin, graph.padded) == (shape.margin, shape.padded)
    assert all(own % step == 0 for own, step in zip(shape.stride, graph.stride, strict=True))
    wanted = tuple(data.draw(st.integers(1, 70)) for _ in range(config.dimensions))
    assert graph.smallest_for(wanted) == shape.smallest_for(wanted)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_context_of_a_region_is_never_smaller_than_it_must_be(data: st.DataObject) -> None:
    """At most what the network states, which counts every border; both hold the region."""
    config = data.draw(unet_settings())
    graph = graph_of(UNet(config).eval())
    scan = tuple(data.draw(st.integers(2, 90)) for _ in range(config.dimensions))
    starts = tuple(data.draw(st.integers(0, n - 1)) for n in scan)
    stops = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(starts, scan, strict=True))
    region = Box(starts, stops)
    own, stated = graph.context(region, scan), config.shape.context(region, scan)
    assert stated.contains(own) and all(a <= b for a, b in zip(own.start, starts, strict=True))
    if graph.padded:
        assert own.contains(region)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_operations_are_those_that_torch_counts(dimensions: int, padded: bool) -> None:
    config = UNetSettings(dimensions=dimensions, channels=(4, 6, 8), padded=padded)  # type: ignore[arg-type]
    network = UNet(config).eval()
    size = config.shape.smallest_for((24,) * dimensions)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, *size))
    assert graph_of(network).operations(size) == counter.get_total_flops()


def test_layers_have_the_names_that_the_network_gives_them() -> None:
    graph = graph_of(UNet(UNetSettings(dimensions=2, channels=(4, 6))).eval())
    names = {node.name for node in graph.nodes}
    assert {"image", "encoder.0.convolutions.0.convolution", "head"} <= names
    assert isinstance(graph.nodes[0].channels, int) and not any(isinstance(node, nn.Module) for node in graph.nodes)
