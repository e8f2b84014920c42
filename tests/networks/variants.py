"""Random small networks, and weights that a fresh network does not have, for the tests of several parts."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st

from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet

LARGEST = 80_000
"""Voxels of the smallest legal input beyond which a random network is too slow for a test."""


@st.composite
def unet_settings(draw: st.DrawFn, **fixed: Any) -> UNetSettings:
    """Any network that can be built, with few channels; `fixed` fields keep their value."""
    dimensions, levels = draw(st.integers(2, 3)), draw(st.integers(2, 3))
    per_axis = [st.tuples(*[st.sampled_from(choice)] * dimensions) for choice in ([1, 3, 3, 5], [1, 2, 2, 3])]
    options = {
        "dimensions": dimensions,
        "in_channels": draw(st.integers(1, 4)),
        "classes": draw(st.integers(1, 3)),
        "channels": draw(st.tuples(*[st.sampled_from([2, 4, 6])] * levels)),
        "convolutions": draw(st.tuples(*[st.integers(1, 2)] * levels)),
        "decoder_convolutions": draw(st.none() | st.integers(1, 2)),
        "kernels": draw(st.tuples(*[per_axis[0]] * levels)),
        "strides": draw(st.tuples(*[per_axis[1]] * (levels - 1))),
        "padded": draw(st.booleans()),
        "norm": draw(st.sampled_from(["none", "batch", "voxel"])),
        "activation": draw(st.sampled_from(["relu", "leaky_relu", "elu", "gelu", "silu", "prelu"])),
        "downsampling": draw(st.sampled_from(["pool", "stride"])),
        "upsampling": draw(st.sampled_from(["transposed", "interpolated"])),
        "residual": draw(st.booleans()),
        "attention": draw(st.booleans()),
        "deep_supervision": draw(st.booleans()),
        "narrowing_up": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "up_bias": draw(st.booleans()),
    }
    settings = UNetSettings(**{**options, **fixed})
    assume(math.prod(settings.shape.smallest) <= LARGEST)
    return settings


def seasoned(settings: UNetSettings, seed: int = 0) -> UNet:
    """A network in evaluation mode whose biases and norms are not those of a fresh one, in float64."""
    network = UNet(settings, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise + 0.5 if name.endswith(("weight", "running_var")) else noise - 0.5)
    return network
