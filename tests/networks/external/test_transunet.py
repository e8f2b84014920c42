"""TransUNet: sizes, positions, attention against a plain rewrite, and what its settings refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("einops", reason="einops is missing: pip install 'medunet[transformers]'")

from medunet.datasets.labels import table_from_names
from medunet.errors import ConfigError
from medunet.inference.streaming.graph import NotLocal
from medunet.inference.streaming.trace import graph_of, trace
from medunet.model import ModelCard, load_model, save_model
from medunet.networks.build import build_network
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.external.settings import TransUNetSettings
from medunet.networks.external.transunet import TransUNet, resized_positions
from medunet.training.warm_start import take_weights
from medunet.transforms.preprocess import Normalisation, PreprocessSettings

FLAT = TransUNetSettings(
    channels=(4, 6, 8), hidden=12, mlp=16, heads=3, layers=2, image_size=(16, 24), in_channels=2, dimensions=2
)
DEEP = replace(FLAT, dimensions=3, image_size=(16, 8, 16), classes=3)
LABELS = table_from_names({"background": 0, "bright": 1}, None)


def made(settings: TransUNetSettings, seed: int = 0) -> AdaptedNetwork:
    network = build_network(settings, seed)
    assert isinstance(network, AdaptedNetwork)
    return network.eval()


def inner(network: AdaptedNetwork) -> TransUNet:
    assert isinstance(network.network, TransUNet)
    return network.network


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (FLAT, ((16, 24), (8, 8), (1, 1), (37, 5), (64, 4))),
        (DEEP, ((16, 8, 16), (3, 9, 17), (8, 24, 4))),
        (replace(FLAT, channels=(4,) * 7, image_size=(50, 70)), ((50, 70), (64, 64), (129, 1))),
        (replace(DEEP, strides=((1, 2, 2), 2), kernels=((1, 3, 3), 3, 3), residual=True), ((5, 8, 16), (6, 7, 9))),
        (replace(FLAT, norm="instance"), ((4, 4), (21, 13))),
    ],
    ids=("2d", "3d", "seven levels", "anisotropic", "instance norm"),
)
def test_logits_have_the_size_of_the_image(settings: TransUNetSettings, sizes: tuple[tuple[int, ...], ...]) -> None:
    network = made(settings)
    for size in sizes:
        with torch.inference_mode():
            logits = network(torch.randn(2, 2, *size))
        assert logits.shape == (2, settings.classes, *size) and bool(logits.isfinite().all())


def test_positions_are_one_for_each_place_of_the_deepest_map() -> None:
    assert FLAT.positions == (4, 6) and DEEP.positions == (4, 2, 4)
    assert replace(FLAT, image_size=(17, 24)).positions == (5, 6), "the image is padded"
    assert replace(DEEP, strides=((1, 2, 2), 2)).positions == (8, 2, 4)
    assert inner(made(DEEP)).transformer.positions.shape == (1, 12, 4, 2, 4)


@pytest.mark.parametrize("size", [(4, 6), (4, 2, 6)])
def test_positions_of_their_own_size_are_left_alone(size: tuple[int, ...]) -> None:
    positions = torch.randn(1, 5, *size)
    assert resized_positions(positions, size) is positions


@pytest.mark.parametrize("dimensions", [2, 3])
def test_positions_along_a_ramp_stay_one(dimensions: int) -> None:
    """Linear interpolation keeps a linear function: place i of n lies at (i + 1/2) / n of the image."""

    def ramp(size: tuple[int, ...]) -> Tensor:
        axes = [(torch.arange(n) + 0.5) / n for n in size]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]

    have, want = (8, 6, 10)[:dimensions], (11, 12, 5)[:dimensions]
    found, expected = resized_positions(ramp(have), want), ramp(want)
    inside = ((expected > 0.1) & (expected < 0.9)).all(1, keepdim=True).expand_as(expected)
    torch.testing.assert_close(found[inside], expected[inside])


def test_the_order_of_places_matters_only_by_the_positions() -> None:
    """Without positions (and with pointwise convolutions) the answer for a mirrored map is mirrored; with them not."""
    transformer = inner(made(replace(FLAT, kernels=1))).transformer
    image = torch.randn(1, 8, 4, 6)
    with torch.inference_mode():
        assert not torch.allclose(transformer(image.flip(2)), transformer(image).flip(2), atol=1e-4)
        transformer.positions.zero_()
        torch.testing.assert_close(transformer(image.flip(2)), transformer(image).flip(2), atol=1e-5, rtol=0)


def plain_norm(x: Tensor, norm: nn.Module) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    weight, bias = norm.weight, norm.bias
    return centred / scale * weight + bias  # type: ignore[operator, no-any-return]


def plain_attention(tokens: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """Attention of tokens ``(place, hidden)``, head by head and place by place."""
    length = tokens.shape[1] // heads
    query, key, value = (tokens @ weights["qkv.weight"].T + weights["qkv.bias"]).chunk(3, dim=1)
    found = torch.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * length, (head + 1) * length)
        for place in range(len(tokens)):
            alike = torch.stack([query[place, part].dot(k) for k in key[:, part]]) / math.sqrt(length)
            share = alike.exp() / alike.exp().sum()
            found[place, part] = sum(s * v for s, v in zip(share, value[:, part], strict=True))
    return found @ weights["out_proj.weight"].T + weights["out_proj.bias"]


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=("fused", "with dropout, in evaluation"))
@torch.no_grad()
def test_a_block_is_what_a_slow_plain_one_gives(dropout: float) -> None:
    block = inner(made(replace(FLAT, dropout=dropout))).transformer.blocks[0].double()
    tokens = torch.randn(2, 9, 12, dtype=torch.float64)
    for found, x in zip(block(tokens), tokens, strict=True):
        y = x + plain_attention(plain_norm(x, block.norm1), block.attn.state_dict(), heads=3)  # type: ignore[arg-type, union-attr]
        hidden = plain_norm(y, block.norm2) @ block.mlp.linear1.weight.T + block.mlp.linear1.bias  # type: ignore[arg-type, operator, union-attr]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        y = y + hidden @ block.mlp.linear2.weight.T + block.mlp.linear2.bias  # type: ignore[operator, union-attr]
        torch.testing.assert_close(found, y)


@pytest.mark.parametrize("settings", [FLAT, DEEP, replace(FLAT, residual=True, dropout=0.1)])
def test_the_gradient_reaches_every_weight(settings: TransUNetSettings) -> None:
    network = made(settings).train()
    assert settings.image_size is not None
    size = tuple(n + 4 for n in settings.image_size)
    network(torch.randn(2, 2, *size)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (made(FLAT, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator moved"
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("network.encoder.0.convolutions.0.convolution.weight", "network.transformer.positions"):
        assert not torch.equal(first[name], other[name])


def saved(settings: TransUNetSettings, path: Path) -> AdaptedNetwork:
    network = made(settings)
    preprocess = PreprocessSettings(normalise=(Normalisation("zscore"),) * 2)
    assert settings.image_size is not None
    card = ModelCard("made", settings, preprocess, LABELS, ("T1", "T2"), settings.image_size)
    save_model(path, network.state_dict(), card)
    return network


def test_a_model_file_gives_the_same_network(tmp_path: Path) -> None:
    network, image = saved(FLAT, tmp_path / "m.safetensors"), torch.randn(1, 2, 20, 33)
    model = load_model(tmp_path / "m.safetensors", "cpu")
    assert model.card.network == FLAT
    with torch.inference_mode():
        assert torch.equal(model.network(image), network(image))


def test_a_warm_start_takes_all_but_positions_of_another_size(tmp_path: Path) -> None:
    saved(FLAT, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors", "cpu")
    same = take_weights(made(FLAT, 1), model, ("T1", "T2"), LABELS)
    assert same.weights == same.total and not same.left
    other = take_weights(made(replace(FLAT, image_size=(32, 24)), 1), model, ("T1", "T2"), LABELS)
    assert other.total - other.weights == 12 * 8 * 6
    assert other.left == ["network.transformer ((1, 12, 8, 6) here, (1, 12, 4, 6) there)"]


def test_it_cannot_be_streamed_and_the_reason_names_the_attention() -> None:
    network = made(FLAT)
    with pytest.raises(NotLocal, match=r"transformer\.blocks\.0\.attn attends from each place to all others"):
        graph_of(network)
    assert "transformer.blocks.0.attn" in dict(network.network.named_modules())
    with pytest.raises(NotLocal, match=r"transformer"):
        trace(network, 2, (16, 24))


def test_memory_of_a_pass_grows_with_the_image() -> None:
    network = made(FLAT)
    small, large = network.pass_bytes((16, 24)), network.pass_bytes((256, 128))
    assert large - small > 4 * 4 * 256 * 128, "less than one map of the finest level"


def test_memory_of_a_pass_holds_no_map_of_all_pairs_unless_there_is_dropout() -> None:
    """The fused attention does without it; 96 × 96 places have 85 million pairs."""
    pairs = 4 * (96 * 96) ** 2
    assert made(FLAT).pass_bytes((384, 384)) < pairs
    assert made(replace(FLAT, dropout=0.1)).pass_bytes((384, 384)) > FLAT.heads * pairs


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TransUNetSettings(hidden=100, heads=12), "hidden: found 100, which 12 heads .*take 96 or 108"),
        (lambda: TransUNetSettings(heads=0), "hidden, mlp, heads and layers"),
        (lambda: TransUNetSettings(layers=0), "hidden, mlp, heads and layers"),
        (lambda: TransUNetSettings(channels=(8,)), "channels: found 1 numbers, expected 2 or more"),
        (lambda: TransUNetSettings(strides=(2,)), "strides: found 1 entries"),
        (lambda: TransUNetSettings(kernels=2), "odd"),
        (lambda: TransUNetSettings(image_size=(32, 32)), "image_size: found .*expected 3 numbers"),
        (lambda: TransUNetSettings(image_size=(32, 32, 0)), "image_size: found .*at least 1"),
        (lambda: build_network(TransUNetSettings()), "image_size: a TransUNet learns positions for one size"),
        (lambda: TransUNetSettings(dropout=1.0), "from 0 to below 1"),
        (lambda: TransUNetSettings(dimensions=4), "dimensions: found 4"),  # type: ignore[arg-type]
    ],
)
def test_what_is_impossible_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_the_image_size_is_that_of_the_patches_unless_it_is_given() -> None:
    assert TransUNetSettings().settled(1, 2, (48, 32, 48)).image_size == (48, 32, 48)
    assert DEEP.settled(1, 2, (48, 32, 48)).image_size == (16, 8, 16)
