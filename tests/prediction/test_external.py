"""External networks segment whole scans of any size by blended windows, within the memory that is allowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medunet.errors import ConfigError
from medunet.inference.sliding_window import Windows, blended_windows
from medunet.inference.streaming.graph import NotLocal
from medunet.inference.streaming.streamer import Streamer
from medunet.model import Model, ModelCard
from medunet.networks.build import NetworkSettings, build_network
from medunet.networks.external.settings import SegResNetSettings
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter
from medunet.prediction.verify import require_verifiable
from tests.networks.external.examples import MONAI, SMP, TRANSFORMERS, name_of, require_packages
from tests.prediction.made import make_model, make_scan

FP32 = PredictSettings(precision="fp32")
SMALL = SegResNetSettings(features=8, blocks=(1, 1), classes=3)


def external_model(network: NetworkSettings, patch: tuple[int, ...]) -> Model:
    card: ModelCard = replace(
        make_model().card, network=network, patch=patch, slice_axis=0, labels=make_model().card.labels
    )
    return Model(build_network(network).eval(), card)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*MONAI[::3], *TRANSFORMERS, *SMP[:1]], ids=name_of)
def test_a_whole_scan_of_an_odd_size(settings: NetworkSettings) -> None:
    """Larger than a window along one axis, smaller along another; a 2-D network goes slice by slice."""
    require_packages(settings)
    settings = replace(settings, classes=3)
    model = external_model(settings, (32,) * 3 if settings.dimensions == 3 else (64, 64))
    scan = make_scan(37, 19, 23) if settings.dimensions == 3 else make_scan(2, 71, 53)
    labels = Segmenter([model], FP32).indices(Segmenter([model], FP32).open(scan))
    assert labels.shape == (1, *scan.shape) and labels.max() < 3


@pytest.mark.slow
def test_labels_are_those_of_blended_windows() -> None:
    model = external_model(SMALL, (16, 16, 16))
    segmenter = Segmenter([model], FP32)
    scan = segmenter.open(make_scan(21, 17, 30))
    expected = blended_windows(model.network, scan.views[0], Windows((16, 16, 16))).argmax(0)
    np.testing.assert_array_equal(segmenter.indices(scan)[0], expected.numpy())


def test_a_plan_counts_the_pass_over_a_window_and_refuses_what_does_not_fit() -> None:
    model = external_model(SMALL, (16, 16, 16))
    enough = Segmenter([model], FP32)
    plan = enough.plan(enough.open(make_scan(40, 30, 20)))
    assert plan.method.way == "blend" and plan.bytes > model.network.pass_bytes((16, 16, 16))  # type: ignore[operator]
    # The layer's name in MONAI's SegResNet.
    assert plan.describe().startswith("down_layers.0.1.norm1 takes statistics over the scan")
    short = Segmenter([model], replace(FP32, memory=plan.bytes - 1))
    with pytest.raises(ConfigError, match=r"blended windows of 16×16×16 .* need about .*\n?.*give --memory"):
        short.plan(short.open(make_scan(40, 30, 20)))
    just = Segmenter([model], replace(FP32, memory=plan.bytes))
    assert just.plan(just.open(make_scan(40, 30, 20))) == plan


def test_exactness_and_verify_are_refused_with_the_reason() -> None:
    model = external_model(SMALL, (16, 16, 16))
    with pytest.raises(ConfigError, match=r"an exact result was asked for, but .*norm1 takes statistics"):
        Segmenter([model], replace(FP32, method="exact"))
    with pytest.raises(ConfigError, match="norm1 takes statistics over the scan"):
        require_verifiable(Segmenter([model], FP32))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*MONAI, *TRANSFORMERS, *SMP], ids=name_of)
def test_an_external_network_is_streamed_exactly_or_refuses_by_name(settings: NetworkSettings) -> None:
    """Against one pass over the whole scan; what refuses has statistics or attention over the scan."""
    require_packages(settings)
    network = build_network(settings).eval()
    sizes = (70, 41, 37) if settings.dimensions == 3 else (150, 117)
    try:
        streamer = Streamer(network)
    except NotLocal as refusal:
        assert any(
            part in str(refusal)
            for part in ("statistics over the scan", "may mix distant places", "attends from each place to all others")
        )
        return
    image = torch.randn(settings.in_channels, *sizes, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = network(image[None])[0]
    rows = torch.cat([logits for _, _, logits in streamer.run(image, 8)], 1)
    assert (rows - whole).abs().max() <= 1e-5 * whole.abs().max()
