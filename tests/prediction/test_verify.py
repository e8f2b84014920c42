"""Verification: it holds where the engine is right, for whole scans and parts, and fails where it is not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from medunet.errors import ConfigError, MedunetError
from medunet.model import Model
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter
from medunet.prediction.verify import Verification, require_verifiable, verify
from tests.prediction.made import make_model, make_scan

FP32 = PredictSettings(precision="fp32")


def verified(models: list[Model], shape: tuple[int, ...], settings: PredictSettings = FP32) -> Verification:
    segmenter = Segmenter(models, settings)
    scan = segmenter.open(make_scan(*shape))
    return verify(segmenter, scan, segmenter.plan(scan))


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_a_whole_scan(padded: bool) -> None:
    found = verified([make_model(UNetSettings(channels=(4, 8), classes=3, padded=padded))], (30, 41, 22))
    assert found.holds and found.whole and found.shape == (30, 41, 22) and found.difference < 1e-5
    assert found.precision < 1e-4, "streamed in float32 too; ties that rounding decides"
    if padded:
        assert found.blended is not None and 0 < found.blended < 1
        assert re.search(
            r"verified on the whole scan: .* by blended windows: \d+\.\d+ %, in \d+\.\d times the time",
            found.describe(),
        )
    else:
        assert found.blended is None and "blended" not in found.describe()


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_the_middle_of_a_scan_that_one_pass_has_no_memory_for(padded: bool) -> None:
    model = make_model(UNetSettings(channels=(4, 8), classes=3, padded=padded))
    found = verified([model], (30, 160, 130), replace(FP32, memory=80 * 2**20))
    assert found.holds and not found.whole and found.difference < 1e-5
    assert min(found.shape) > 1 and found.shape != (30, 160, 130)
    assert f"its {'×'.join(map(str, found.shape))} voxels in the middle" in found.describe()
    with pytest.raises(ConfigError, match="--memory allows 49 MiB; give it more, or leave --verify out"):
        verified([model], (200, 200, 200), replace(FP32, memory=49 * 2**20))


def test_slices_and_several_models() -> None:
    flat = UNetSettings(dimensions=2, channels=(4, 8), classes=3)
    found = verified([make_model(flat, seed, slice_axis=1) for seed in (1, 2)], (30, 5, 22))
    assert found.holds and found.shape == (30, 22)


def test_precision_is_counted() -> None:
    found = verified([make_model()], (30, 41, 22), replace(FP32, precision="bf16"))
    assert found.difference < 1e-5 and 0 < found.precision < 0.1


class Biased(UNet):
    """It computes something else for an image larger than the one that it is traced with."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = super().forward(image)
        return logits if image.shape[2:] == self.settings.shape.smallest else logits + 1


def test_a_difference_is_an_error() -> None:
    model = make_model()
    broken = Biased(model.card.network, 1).eval()
    with pytest.raises(MedunetError, match=r"differ by .* of the largest logit.*\n.*--method blend"):
        verified([replace(model, network=broken)], (30, 41, 22))


def test_a_network_that_cannot_be_exact_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"instance norm.*\nleave --verify out"):
        require_verifiable(Segmenter([make_model(UNetSettings(channels=(4, 8), classes=3, norm="instance"))], FP32))
    require_verifiable(Segmenter([make_model()], FP32))
