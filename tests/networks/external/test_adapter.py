"""External networks take any size, learn, are saved and loaded like ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medunet.datasets.labels import table_from_names
from medunet.errors import ConfigError
from medunet.losses.build import LossSettings, make_loss
from medunet.model import ModelCard, load_model, save_model
from medunet.networks.build import NetworkSettings, build_network
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.external.settings import DynUNetSettings, SegResNetSettings, UNETRSettings
from medunet.networks.unet import bias_for_rare
from medunet.transforms.preprocess import Normalisation, PreprocessSettings
from tests.networks.external.examples import MONAI, SMP, TRANSFORMERS, name_of, require_packages

ODD = {2: (37, 53), 3: (17, 23, 19)}
LABELS = table_from_names({"background": 0, "bright": 1}, None)


def made(settings: NetworkSettings, seed: int = 0) -> AdaptedNetwork:
    require_packages(settings)
    network = build_network(settings, seed)
    assert isinstance(network, AdaptedNetwork)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*MONAI, *TRANSFORMERS, *SMP], ids=name_of)
def test_it_learns_gives_the_image_s_size_and_comes_back_from_its_file(
    settings: NetworkSettings, tmp_path: Path
) -> None:
    """A bright half is to be told from a dark one; sizes are odd along every axis."""
    before = torch.random.get_rng_state()
    network = made(settings)
    network.freeze_unused()
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator moved"
    size = ODD[settings.dimensions]
    target = torch.zeros(2, 1, *size, dtype=torch.long)
    target[:, :, : size[0] // 2] = 1
    image = 2.0 * target + torch.randn(target.shape, generator=torch.Generator().manual_seed(0)) - 1
    loss = make_loss(LossSettings(), 2)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        logits = network.train()(image)
        assert isinstance(logits, tuple) == settings.deep_supervision
        value = loss(logits, target)
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []

    with torch.inference_mode():
        logits = network.eval()(image)
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 2, *image.shape[2:])
    preprocess = PreprocessSettings(normalise=(Normalisation("zscore"),))
    card = ModelCard("made", settings, preprocess, LABELS, ("X",), (64,) * settings.dimensions)
    save_model(tmp_path / "model.safetensors", network.state_dict(), card)
    model = load_model(tmp_path / "model.safetensors")
    assert model.card == card
    with torch.inference_mode():
        assert torch.equal(model.network(image), logits)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*MONAI, *TRANSFORMERS, *SMP], ids=name_of)
def test_its_heads_are_those_that_give_the_logits(settings: NetworkSettings) -> None:
    network = made(settings).eval()
    image = torch.randn(1, 1, *ODD[settings.dimensions])
    with torch.inference_mode():
        before = network(image)
        network.heads[0].bias[1] += 1  # type: ignore[index, operator, union-attr]
        change = network(image) - before
        bias_for_rare(network)
    torch.testing.assert_close(change[:, 1], torch.ones_like(change[:, 1]), atol=1e-4, rtol=0)
    assert float(change[:, 0].abs().max()) == 0
    assert all(float(head.bias.detach().max()) < -2.9 for head in network.heads)  # type: ignore[operator, union-attr]


def test_weights_depend_on_the_seed_alone() -> None:
    settings = SegResNetSettings(features=8, blocks=(1, 1))
    first, again, other = (made(settings, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_padding_is_zeros_behind_the_last_voxels() -> None:
    """What comes out is what the inner network says of an image that was padded by hand; legal sizes are left alone."""
    network = made(DynUNetSettings(channels=(4, 8, 8), dimensions=2, norm="batch")).eval()
    image = torch.randn(1, 1, 37, 53)
    by_hand = torch.zeros(1, 1, 40, 56)
    by_hand[..., :37, :53] = image
    with torch.inference_mode():
        assert torch.equal(network(image), network.network(by_hand)[..., :37, :53])
        assert torch.equal(network(by_hand), network.network(by_hand))
    assert network.size_for((37, 53)) == (40, 56) and network.size_for((40, 56)) == (40, 56)


def test_an_image_that_leaves_instance_norm_one_voxel_gets_more() -> None:
    network = made(DynUNetSettings(channels=(4, 8, 8), dimensions=2)).eval()
    assert network.size_for((3, 2)) == (4, 8)
    with torch.inference_mode():
        assert network(torch.randn(1, 1, 3, 2)).shape == (1, 2, 3, 2)


def test_a_unetr_refuses_what_is_larger_than_its_positions() -> None:
    network = made(UNETRSettings(features=4, hidden=24, mlp=32, heads=2, image_size=(32, 32), dimensions=2)).eval()
    with pytest.raises(ConfigError, match=r"images of \(32, 32\) cannot take one of \(33, 20\)"):
        network(torch.randn(1, 1, 33, 20))


def test_other_channels_and_axes_are_refused() -> None:
    network = made(SegResNetSettings(features=8, blocks=(1, 1))).eval()
    for shape in ((1, 2, 8, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8, 0)):
        with pytest.raises(ConfigError, match="expected \\(batch, 1, \\*spatial\\) with 3 spatial axes"):
            network(torch.zeros(shape))
