"""Cost of a training step of a U-Net, counted from its settings alone, so that a planner can compare hundreds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from medunet.networks.settings import UNetSettings


@dataclass(frozen=True)
class Cost:
    """The cost of one training step with one patch.

    Attributes:
        operations: multiplications and additions of all convolutions, forward and backward (three times the forward).
        bytes: activations that are kept for the backward pass, and as much for their gradients, in float32.
    """

    operations: float
    bytes: float


def step_cost(settings: UNetSettings, patch: Sequence[int]) -> Cost:
    """Count a training step on one patch of a padded network with pooling and transposed convolutions.

    Attention gates, shortcuts and deep supervision are left out: they cost a few per cent. Unpadded networks are
    counted as if each level's maps had the size of its last one, which is too little.

    Raises:
        ConfigError: the patch is not legal for the network.
    """
    shape = settings.shape
    encoder = [math.prod(s) for s in shape.encoder_sizes(patch)]
    decoder = [math.prod(s) for s in shape.decoder_sizes(patch)]
    forward, kept = 0.0, 0.0
    # Convolution, normalisation and activation each keep a map.
    maps = 2.0 if settings.norm == "none" else 3.0
    for level in range(settings.levels):
        taps = math.prod(shape.kernels[level])
        forward += _convolutions(settings.encoder_channels(level), taps, encoder[level])
        kept += maps * sum(settings.encoder_channels(level)[1:]) * encoder[level]
        if level < settings.levels - 1:
            coarse, fine = settings.up_channels(level)
            up = decoder[level]
            forward += 2.0 * coarse * fine * up + _convolutions(settings.decoder_channels(level), taps, decoder[level])
            kept += (settings.channels[level] + 2.0 * fine) * up
            kept += maps * sum(settings.decoder_channels(level)[1:]) * decoder[level]
    forward += 2.0 * settings.channels[0] * settings.classes * decoder[0]
    return Cost(3.0 * forward, 8.0 * (kept + settings.classes * decoder[0]))


def _convolutions(channels: Sequence[int], taps: int, voxels: int) -> float:
    return sum(2.0 * taps * source * target * voxels for source, target in pairwise(channels))


_BUFFERS = 112 * 2**20
"""What libraries keep for themselves once they compute: the growth of a step on 16 voxels, measured."""


def step_memory(settings: UNetSettings, patch: Sequence[int], batch: int) -> float:
    """Bytes by which a process grows when it trains: weights, two moments, average, activations, loss.

    Measured against the growth of the resident memory on a CPU (eight networks, 2-D and 3-D, 8 to 32 channels, 2 to 60
    classes, one of them in bfloat16 as well), the estimate was 1.1 to 2.0 times the truth: never too low.

    Raises:
        ConfigError: the patch is not legal for the network.
    """
    # The loss holds logits, log-probabilities, probabilities and their gradients, in float32.
    loss = 12.0 * settings.classes * math.prod(settings.shape.output_size(patch))
    # Weights, gradients, two moments of Adam and the running average.
    weights = 5 * 4.0 * _parameters(settings)
    return _BUFFERS + weights + batch * (step_cost(settings, patch).bytes + loss)


def _parameters(settings: UNetSettings) -> float:
    """The weights of all convolutions, without biases, norms, gates and shortcuts."""
    total = 0.0
    for level in range(settings.levels):
        taps = math.prod(settings.shape.kernels[level])
        rows = [settings.encoder_channels(level)]
        if level < settings.levels - 1:
            rows.append(settings.decoder_channels(level))
            total += math.prod(settings.up_channels(level)) * math.prod(settings.shape.strides[level])
        total += sum(taps * source * target for row in rows for source, target in pairwise(row))
    return total + settings.channels[0] * settings.classes
