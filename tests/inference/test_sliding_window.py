"""Blended windows against MONAI's own call, and what MONAI would do to the scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.inference.execution import Passage
from medunet.inference.sliding_window import Windows, blended_rows, blended_windows
from medunet.networks.settings import UNetSettings
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
    assert calls[-1][0] == calls[-1][1] == len(Windows((16, 16)).tiles(shape))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
)
def test_windows_and_weights_are_monais(shape: tuple[int, int], size: tuple[int, int], overlap: float) -> None:
    from monai.data.utils import compute_importance_map, dense_patch_slices
    from monai.inferers.utils import _get_scan_interval

    windows = Windows(size, overlap)
    padded = tuple(max(n, s) for n, s in zip(shape, size, strict=True))
    slices = dense_patch_slices(padded, size, _get_scan_interval(padded, size, 2, (overlap, overlap)))
    before = [max(s - n, 0) // 2 for n, s in zip(shape, size, strict=True)]
    expected = [tuple(s.start - b for s, b in zip(window, before, strict=True)) for window in slices]
    assert [tile.read.start for tile in windows.tiles(shape)] == expected
    expected_weight = compute_importance_map(size, mode="gaussian", sigma_scale=0.125, dtype=torch.float32)
    torch.testing.assert_close(windows.weight(), expected_weight, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_come_in_order_along_any_axis(axis: int) -> None:
    network, image = seasoned(CONFIG).float(), noise(1, 50, 43)
    whole = blended_windows(network, image, Windows((16, 12)))
    expected = 0
    for start, stop, logits in blended_rows(network, image, Windows((16, 12)), passage=Passage(axis)):
        assert start == expected and stop > start
        torch.testing.assert_close(logits, whole.narrow(axis + 1, start, stop - start))
        expected = stop
    assert expected == image.shape[axis + 1]


def test_only_a_band_is_held() -> None:
    """Rows are handed on before windows further down are read."""
    reads: list[int] = []

    class Watched:
        shape, dtype, ndim = (1, 400, 16), np.dtype(np.float32), 3

        def __getitem__(self, key: Any) -> Any:
            reads.append(key[1].stop)
            return np.zeros([k.stop - k.start if k.start is not None else 1 for k in key], np.float32)

    for start, _, _ in blended_rows(lambda x: x, Watched(), Windows((16, 16))):
        assert max(reads) <= start + 48


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
