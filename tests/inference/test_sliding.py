"""Blended windows against MONAI's own call, and what MONAI would do to the scan."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medunet.errors import ConfigError
from medunet.inference.sliding import Windows, blended_windows
from medunet.networks.unet import UNetSettings
from tests.networks.variants import seasoned

CONFIG = UNetSettings(dimensions=2, channels=(4, 6), classes=3, norm="instance")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", [(40, 52), (16, 16), (9, 30)])
@pytest.mark.parametrize("batch", [1, 4])
def test_blending_is_monais(shape: tuple[int, int], batch: int) -> None:
    from monai.inferers import sliding_window_inference

    network, image = seasoned(CONFIG).float(), noise(1, *shape)
    calls: list[tuple[int, int]] = []
    answer = blended_windows(
        network, image, Windows((16, 16), batch=batch), progress=lambda *counts: calls.append(counts)
    )
    with torch.inference_mode():
        expected = sliding_window_inference(image[None], (16, 16), batch, network, overlap=0.5, mode="gaussian")[0]
    assert torch.equal(answer, expected)
    assert answer.shape == (3, *shape)
    assert calls[-1][0] == calls[-1][1] == Windows((16, 16)).count(shape)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(31, 50, 17), (7, 16, 33)])
def test_windows_are_counted_as_monai_lays_them(shape: tuple[int, ...], overlap: float) -> None:
    calls: list[tuple[int, int]] = []
    windows = Windows((16, 8, 12), overlap, batch=3)
    blended_windows(lambda x: x, noise(1, *shape), windows, progress=lambda *counts: calls.append(counts))
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(40, 52), (5, 3), (16, 17)])
def test_identity_returns_the_scan_and_leaves_it(shape: tuple[int, int], batch: int) -> None:
    image = noise(2, *shape)
    kept = image.clone()
    answer = blended_windows(lambda x: x, image, Windows((16, 16), batch=batch))
    torch.testing.assert_close(answer, kept, rtol=1e-5, atol=1e-5)
    assert torch.equal(image, kept)


def test_a_network_that_works_in_place_does_not_reach_the_scan() -> None:
    image = noise(1, 40, 40)
    kept = image.clone()
    answer = blended_windows(lambda x: x.mul_(2.0), image, Windows((16, 16)))
    torch.testing.assert_close(answer, 2 * kept, rtol=1e-5, atol=1e-5)
    assert torch.equal(image, kept)


def test_integers_and_monais_tensors_become_plain_floats() -> None:
    from monai.data import MetaTensor

    image = MetaTensor((noise(1, 30, 30) * 50).to(torch.int16), meta={"case": "1"})
    answer = blended_windows(lambda x: x, image, Windows((16, 16)))
    assert type(answer) is torch.Tensor
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, image.as_tensor().float(), rtol=1e-5, atol=1e-4)


def test_unpadded_networks_and_wrong_dimensions_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs the same size"):
        blended_windows(lambda x: x[..., 2:-2, 2:-2], noise(1, 40, 40), Windows((16, 16)))
    with pytest.raises(ConfigError, match="do not fit"):
        blended_windows(lambda x: x, noise(1, 40, 40, 40), Windows((16, 16)))


@pytest.mark.parametrize(
    "parts", [{"size": (16, 0)}, {"size": (16, 16), "overlap": 1.0}, {"size": (16, 16), "batch": 0}]
)
def test_impossible_windows_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Windows(**parts)
