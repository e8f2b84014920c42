"""Random changes of a patch's values, in nnU-Net's order; light from out of focus, which it has not, comes first.

MONAI's transforms do the same (except its blur, which pads with 0 and so darkens a patch's rim to a third). Alone its
brightness, shift and contrast are as fast, but here the three are one; noise, blur, low resolution and gamma take
MONAI 1.7 to 4.5 times as long: float64 noise, a convolution in three dimensions, a slow standard deviation.
`python benchmarks/augment_speed.py --parts` measures each.

Sums are taken row by row, so they do not depend on the number of threads, as torch's sum over a whole array does.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.transforms.augment.sampling import along_axes, blur_matrix, linear_matrix, shrink_matrix
from medunet.transforms.augment.settings import AugmentSettings

Drawn: TypeAlias = NDArray[np.float64] | None


def change_values(image: Tensor, settings: AugmentSettings, random: np.random.Generator) -> Tensor:
    """Change the values of one patch.

    Args:
        image: ``(channel, *spatial)`` float32; may be overwritten.
        settings: how often, and how strongly.
        random: decides all, on any device; noise comes from a generator of the image's device seeded by it, so a GPU
            adds noise of the same strength but other values than a CPU.
    """
    channels, axes = len(image), image.ndim - 1
    # All is drawn before anything happens, and used or not: no change moves another one's draw.
    noise, seed = settings.noise.drawn_each(random, 1), int(random.integers(2**63))
    blur = settings.blur.drawn_each(random, axes)
    brightness, shift = (chance.drawn_each(random, channels) for chance in (settings.brightness, settings.shift))
    contrast, low, inverted, gamma = (
        chance.drawn_each(random, 1)
        for chance in (settings.contrast, settings.low_resolution, settings.gamma_inverted, settings.gamma)
    )
    haze, blob = settings.haze.drawn_each(random, 1), random.random((axes, 2))
    if haze is not None:
        image = _hazed(image, float(haze[0]), blob)
    if noise is not None:
        generator = torch.Generator(image.device).manual_seed(seed)
        image.add_(torch.empty_like(image).normal_(generator=generator), alpha=float(noise[0]))
    if blur is not None:
        image = along_axes(image, [blur_matrix(n, s) for n, s in zip(image.shape[1:], blur.tolist(), strict=True)])
    image = _rescaled(image, brightness, shift, contrast)
    if low is not None:
        image = along_axes(image, [_low_resolution(n, float(low[0])) for n in image.shape[1:]])
    if inverted is not None:
        image = _gamma(image, float(inverted[0]), inverted=True)
    if gamma is not None:
        image = _gamma(image, float(gamma[0]), inverted=False)
    return image


def _rescaled(image: Tensor, brightness: Drawn, shift: Drawn, contrast: Drawn) -> Tensor:
    """Brightness, shift and contrast about the mean are one factor and one summand per channel; in place."""
    if brightness is None and shift is None and contrast is None:
        return image
    factor = _per_channel(image, brightness, 1.0)
    summand = _per_channel(image, shift, 0.0)
    if contrast is not None:
        spread = float(contrast[0])
        mean = image.flatten(2).mean(-1).mean(-1) * factor + summand
        factor, summand = factor * spread, summand * spread + mean * (1 - spread)
    view = (-1, *(1,) * (image.ndim - 1))
    return image.mul_(factor.view(view)).add_(summand.view(view))  # a quarter of addcmul's time


def _per_channel(image: Tensor, values: Drawn, default: float) -> Tensor:
    if values is None:
        return torch.full((len(image),), default, device=image.device)
    return torch.from_numpy(values.astype(np.float32)).to(image.device)


def _low_resolution(length: int, factor: float) -> NDArray[np.float64]:
    """Shrink by means over bins, then enlarge linearly; both keep the image's centre where it is."""
    fewer = max(round(length * factor), 1)
    places = (np.arange(length) + 0.5) * fewer / length - 0.5
    product: NDArray[np.float64] = linear_matrix(fewer, places) @ shrink_matrix(length, fewer)
    return product


def _gamma(image: Tensor, exponent: float, inverted: bool) -> Tensor:
    """Raise values, brought to 0 to 1, to a power, and give them back their mean and variance; in place.

    A constant image stays as it is.
    """
    low, high = torch.aminmax(image)
    spread = high - low
    mean, deviation = _mean_and_deviation(image)
    if inverted:
        image.sub_(high).neg_()
    else:
        image.sub_(low)
    # exp(g log x) takes a third of pow's time; log 0 is -inf, and exp(-inf) 0.
    image.div_(spread + 1e-7).clamp_(min=0).log_().mul_(exponent).exp_()
    power_mean, power_deviation = _mean_and_deviation(image)
    factor = deviation * spread / (spread * power_deviation + 1e-8)
    if inverted:
        factor = -factor
    return image.sub_(power_mean).mul_(factor).add_(mean)


_AROUND, _NARROW, _WIDE = 0.2, 0.15, 0.5
"""Parts of a patch: how far outside of it a blob's middle may lie, and its standard deviation."""


def _hazed(image: Tensor, height: float, blob: NDArray[np.float64]) -> Tensor:
    """Add a Gaussian blob, and give the image its mean and variance back; in place. A constant image has no variance.

    Args:
        blob: ``(axes, 2)``, from 0 to 1: where its middle lies along an axis, and how wide it is there.
    """
    mean, deviation = _mean_and_deviation(image)
    light = torch.full((1,) * image.ndim, height, device=image.device)
    for axis, (place, width) in enumerate(blob.tolist(), start=1):
        length = image.shape[axis]
        away = (np.arange(length) + 0.5) / length - (place * (1 + 2 * _AROUND) - _AROUND)
        profile = np.exp(-((away / (_NARROW + (_WIDE - _NARROW) * width)) ** 2) / 2).astype(np.float32)
        light = light * torch.from_numpy(profile).to(image.device).view(
            [-1 if a == axis else 1 for a in range(image.ndim)]
        )
    image.add_(light)
    hazed_mean, hazed_deviation = _mean_and_deviation(image)
    return image.sub_(hazed_mean).mul_(deviation / (hazed_deviation + 1e-8)).add_(mean)


def _mean_and_deviation(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and root mean square about it, of all channels together."""
    rows = image.flatten(0, 1).flatten(1)
    mean = rows.mean(-1).mean()
    squares = torch.linalg.vector_norm(rows - mean, dim=-1).square_()
    return mean, (squares.sum() / image.numel()).sqrt_()
