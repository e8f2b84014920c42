"""Whole passes and overlapping tiles against the network itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box, read_box
from medunet.geometry.shapes import UNetShape
from medunet.geometry.tiles import TilePlan, plan_tiles
from medunet.inference.execution import Execution
from medunet.inference.overlap_tile import overlap_tile
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from tests.inference.oracles import whole_pass
from tests.networks.variants import LARGEST, seasoned, unet_settings

UNPADDED = UNetSettings(dimensions=2, channels=(4, 6, 8), padded=False, classes=3)
PADDED = UNetSettings(dimensions=2, channels=(4, 6, 8), classes=3)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def one_pass_over_the_mirrored_scan(network: UNet, image: torch.Tensor) -> torch.Tensor:
    """The oracle: numpy mirrors, one forward, nothing of `exact.py`."""
    shape = network.settings.shape
    sizes = shape.smallest_for(image.shape[1:])
    pads = [(m, n - m - k) for m, n, k in zip(shape.margin, sizes, image.shape[1:], strict=True)]
    mirrored = np.pad(image.numpy(), [(0, 0), *pads], mode="reflect")
    with torch.inference_mode():
        logits = network(torch.from_numpy(mirrored)[None])[0]
    return logits[(slice(None), *(slice(0, k) for k in image.shape[1:]))]


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    unet_settings(padded=False, deep_supervision=False),
    st.lists(st.integers(2, 40), min_size=3, max_size=3),
    st.lists(st.integers(0, 2), min_size=3, max_size=3),
)
def test_tiles_equal_one_pass(config: UNetSettings, lengths: list[int], more: list[int]) -> None:
    shape = config.shape
    scan = tuple(lengths[: config.dimensions])
    least = shape.smallest_for(shape.stride)
    tile = tuple(n + k * s for n, k, s in zip(least, more, shape.stride, strict=False))
    assume(math.prod(shape.smallest_for(scan)) < 2 * LARGEST and math.prod(tile) < 2 * LARGEST)
    plan = plan_tiles(scan, tile, shape)
    assume(len(plan.tiles) <= 60)
    network, image = seasoned(config), noise(config.in_channels, *scan)
    expected = one_pass_over_the_mirrored_scan(network, image)
    scale = float(expected.abs().max())
    torch.testing.assert_close(overlap_tile(network, image, plan), expected, rtol=0, atol=1e-11 * scale)


def test_tiles_equal_one_pass_in_float32() -> None:
    network, image = seasoned(UNPADDED), noise(1, 101, 77)
    plan = plan_tiles((101, 77), UNPADDED.shape.smallest_for((24, 16)), UNPADDED.shape)
    assert len(plan.tiles) > 12
    expected = one_pass_over_the_mirrored_scan(network, image).float()
    answer = overlap_tile(network.float(), image.float(), plan)
    assert answer.dtype == torch.float32
    assert (answer - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_tile_off_the_grid_differs() -> None:
    """Else the equality above would hold for any plan."""
    network, image = seasoned(UNPADDED), noise(1, 60, 60)
    shape = UNPADDED.shape
    expected = one_pass_over_the_mirrored_scan(network, image)
    errors = []
    for start in (shape.stride[0], shape.stride[0] + 1):
        read = Box.of_shape(shape.smallest_for((20, 20)), [start - m for m in shape.margin])
        with torch.inference_mode():
            logits = network(torch.from_numpy(read_box(image.numpy(), read, "reflect"))[None])[0]
        window = expected[:, start : start + 20, start : start + 20]
        errors.append(float((logits[:, :20, :20] - window).abs().max() / expected.abs().max()))
    assert errors[0] < 1e-12
    assert errors[1] > 1e-3


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(unet_settings(padded=True, deep_supervision=False), st.lists(st.integers(1, 20), min_size=3, max_size=3))
def test_a_whole_pass_is_the_network_on_the_padded_scan(config: UNetSettings, lengths: list[int]) -> None:
    scan = tuple(lengths[: config.dimensions])
    network, image = seasoned(config), noise(config.in_channels, *scan)
    sizes = config.shape.smallest_for(scan)
    padded = np.pad(image.numpy(), [(0, 0), *((0, n - k) for n, k in zip(sizes, scan, strict=True))])
    with torch.inference_mode():
        expected = network(torch.from_numpy(padded)[None])[0][(slice(None), *(slice(0, k) for k in scan))]
    assert torch.equal(whole_pass(network, image, config.shape.stride), expected)


def identity(batch: torch.Tensor) -> torch.Tensor:
    return batch


@pytest.mark.parametrize("shape", [(2, 5, 9), (1, 1, 1), (3, 7, 4, 10)])
def test_identity_returns_the_scan_from_a_whole_pass(shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    assert torch.equal(whole_pass(identity, image, (4,) * (len(shape) - 1)), image)


@pytest.mark.parametrize("scan", [(70, 45), (3, 2), (1, 1), (24, 100)])
def test_identity_returns_the_scan_from_tiles(scan: tuple[int, int]) -> None:
    """A network that only crops: the scan must come back whole, whatever its size."""
    shape = UNetShape(((3, 3), (3, 5)), ((2, 4),), (1, 2), (2,))
    margin = shape.margin
    image, calls = noise(2, *scan), []

    def cropping(batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :, margin[0] : -margin[0], margin[1] : -margin[1]]

    plan = plan_tiles(scan, shape.smallest_for((9, 17)), shape)
    answer = overlap_tile(cropping, image, plan, progress=lambda done, total: calls.append((done, total)))
    assert torch.equal(answer, image)
    assert calls == [(i + 1, len(plan.tiles)) for i in range(len(plan.tiles))]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_scans_of_integers_become_float32_and_stay_untouched(dtype: torch.dtype) -> None:
    image = (noise(1, 21, 30).abs() * 100).to(dtype)
    kept = image.clone()
    plan = plan_tiles((21, 30), UNPADDED.shape.smallest_for((16, 16)), UNPADDED.shape)
    tiled = overlap_tile(seasoned(UNPADDED).float(), image, plan)
    whole = whole_pass(seasoned(PADDED).float(), image, PADDED.shape.stride)
    assert tiled.dtype == whole.dtype == torch.float32
    assert tiled.shape == whole.shape == (3, 21, 30)
    assert torch.equal(image, kept)


def test_a_scan_stored_in_another_order_gives_the_same() -> None:
    network, image = seasoned(PADDED), noise(1, 24, 30)
    fortran = image.transpose(1, 2).contiguous().transpose(1, 2)
    answer = whole_pass(network, fortran, PADDED.shape.stride)
    torch.testing.assert_close(answer, whole_pass(network, image, PADDED.shape.stride), rtol=1e-12, atol=1e-12)


def test_bfloat16_is_near_and_comes_back_as_float32() -> None:
    network, image = seasoned(PADDED).float(), noise(1, 32, 32).float()
    exact = whole_pass(network, image, PADDED.shape.stride)
    near = whole_pass(network, image, PADDED.shape.stride, Execution(dtype=torch.bfloat16))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()


def test_training_mode_and_lists_are_refused() -> None:
    image = noise(1, 32, 32).float()
    with pytest.raises(ConfigError, match=r"network.eval\(\)"):
        whole_pass(UNet(PADDED), image, PADDED.shape.stride)
    with pytest.raises(ConfigError, match="answered with a tuple"):
        whole_pass(lambda batch: (batch, batch), image, (4, 4))


def test_answers_of_the_wrong_size_are_refused() -> None:
    image = noise(1, 64, 64)
    plan = plan_tiles((64, 64), UNPADDED.shape.smallest_for((64, 64)), UNPADDED.shape)
    with pytest.raises(ConfigError, match="expected"):
        overlap_tile(identity, image, plan)
    with pytest.raises(ConfigError, match="the plan is for a scan"):
        overlap_tile(identity, image[:, 1:], plan)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same() -> None:
    image = noise(1, 101, 77)
    plan: TilePlan = plan_tiles((101, 77), UNPADDED.shape.smallest_for((24, 16)), UNPADDED.shape)
    here, there = overlap_tile(seasoned(UNPADDED), image, plan), whole_pass(seasoned(PADDED), image, (4, 4))
    gpu = Execution(device="cuda")
    torch.testing.assert_close(overlap_tile(seasoned(UNPADDED).cuda(), image, plan, gpu), here)
    torch.testing.assert_close(whole_pass(seasoned(PADDED).cuda(), image, (4, 4), gpu), there)
