"""The U-Net against its size arithmetic, its initialisation, and what each variant promises."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from medunet.errors import ConfigError
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet, bias_for_rare, bias_from_frequencies
from tests.networks.variants import LARGEST, seasoned, unet_settings

SMALL: dict[str, Any] = {"channels": (4, 6, 8), "in_channels": 2, "classes": 3, "dimensions": 2}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"dimensions": 3},
    {"padded": False, "dimensions": 3, "channels": (4, 6)},
    {"residual": True},
    {"residual": True, "padded": False},
    {"attention": True},
    {"attention": True, "residual": True, "padded": False, "downsampling": "stride", "upsampling": "interpolated"},
    {"deep_supervision": True},
    {"downsampling": "stride"},
    {"upsampling": "interpolated"},
    {"early_doubling": True, "narrowing_up": False, "up_bias": False},
    {"decoder_convolutions": 1, "convolutions": (1, 2, 3)},
    {"kernels": ((1, 3), (3, 3), (3, 5)), "strides": ((1, 2), (2, 2))},
    {"dropout": 0.3},
    *({"norm": norm} for norm in ("none", "batch", "instance", "group", "voxel")),
    *({"activation": activation} for activation in ("relu", "leaky_relu", "elu", "gelu", "silu", "prelu")),
    *({"in_channels": count} for count in (1, 3, 4, 10)),
]


def variant(**changes: Any) -> UNetSettings:
    return UNetSettings(**{**SMALL, **changes})


def an_image(config: UNetSettings, steps: int = 1, batch: int = 2) -> torch.Tensor:
    """Noise of a legal size, `steps` strides above the smallest."""
    size = [n + steps * s for n, s in zip(config.shape.smallest, config.shape.stride, strict=True)]
    return torch.randn(batch, config.in_channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(unet_settings(), st.lists(st.integers(0, 1), min_size=3, max_size=3))
def test_predicted_sizes_are_the_networks(config: UNetSettings, steps: list[int]) -> None:
    shape = config.shape
    size = tuple(n + k * s for n, k, s in zip(shape.smallest, steps, shape.stride, strict=False))
    assume(torch.Size(size).numel() <= 2 * LARGEST)
    image = torch.randn(2, config.in_channels, *size)
    network = UNet(config).eval()
    with torch.inference_mode():
        logits = network(image)
        assert logits.shape == (2, config.classes, *shape.output_size(size))
        assert logits.isfinite().all()
        network.train()
        answer = network(image) if min(logits.shape[2:]) > 1 else None
    if answer is not None and config.deep_supervision:
        assert [tuple(a.shape[2:]) for a in answer] == list(shape.decoder_sizes(size))
    elif answer is not None:
        assert isinstance(answer, torch.Tensor)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(unet_settings(), st.integers(0, 2), st.integers(1, 20))
def test_illegal_sizes_are_refused_with_the_legal_ones_named(config: UNetSettings, axis: int, off: int) -> None:
    shape, axis = config.shape, axis % config.dimensions
    size = list(shape.smallest)
    size[axis] += off
    network = UNet(config).eval()
    if off % shape.stride[axis] == 0:
        assert shape.is_legal(size)
        return
    below = size[axis] - off % shape.stride[axis]
    with pytest.raises(ConfigError, match=f"legal sizes are {below} and {below + shape.stride[axis]}"):
        network(torch.zeros(1, config.in_channels, *size))
    size[axis] = shape.smallest[axis] - 1
    with pytest.raises(ConfigError, match=f"smallest legal size is {shape.smallest[axis]}"):
        network(torch.zeros(1, config.in_channels, *size))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 2, 32), (2, 32, 32), (1, 2, 32, 32, 32)])
def test_wrong_channels_and_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected \(batch, 2, \*spatial\) with 2 spatial axes"):
        UNet(variant())(torch.zeros(shape))


def convolutions(network: nn.Module) -> Iterator[nn.Module]:
    return (m for m in network.modules() if getattr(m, "weight", None) is not None and m.weight.ndim > 2)


@pytest.mark.parametrize("changes", [{}, {"upsampling": "interpolated", "attention": True, "residual": True}])
def test_initial_weights_have_the_papers_deviation(changes: dict[str, Any]) -> None:
    network = UNet(variant(channels=(32, 64, 96), **changes))
    for module in convolutions(network):
        weight = module.weight.detach()
        transposed = isinstance(module, nn.ConvTranspose2d)
        incoming = weight.shape[0] if transposed else weight[0].numel()
        n = weight.numel()
        expected = (2 / incoming) ** 0.5
        assert abs(weight.std() / expected - 1) < 5 / (2 * n) ** 0.5
        assert abs(weight.mean()) < 5 * expected / n**0.5
        assert module.bias is None or (module.bias == 0).all()


def test_the_example_of_the_paper() -> None:
    """64 input channels and a 3x3 kernel: N = 576."""
    network = UNet(variant(channels=(64, 64), norm="none"))
    weight = network.encoder[0].convolutions[1].convolution.weight
    assert weight[0].numel() == 576
    assert weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = UNet(variant(), seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second, other = UNet(variant(), seed=3).state_dict(), UNet(variant(), seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_gradients_reach_every_parameter(changes: dict[str, Any]) -> None:
    config = variant(**changes)
    network = UNet(config).train()
    answer = network(an_image(config))
    outputs = answer if isinstance(answer, tuple) else (answer,)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_input_is_not_modified_and_strides_do_not_matter(changes: dict[str, Any]) -> None:
    config = variant(**changes)
    network = UNet(config).eval()
    image = an_image(config)
    kept = image.clone()
    strange = image.transpose(0, -1).contiguous().transpose(0, -1)
    assert not strange.is_contiguous()
    with torch.inference_mode():
        torch.testing.assert_close(network(strange), network(image), rtol=1e-4, atol=1e-5)
    assert torch.equal(image, kept)


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_state_survives_saving(changes: dict[str, Any]) -> None:
    config = variant(**changes)
    network, image = UNet(config, seed=1).eval(), an_image(config)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = UNet(config, seed=2).eval()
    with torch.inference_mode():
        assert not torch.equal(other(image), network(image))
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(image), network(image))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch", "voxel"])
@pytest.mark.parametrize("changes", [{}, {"attention": True, "residual": True}, {"upsampling": "interpolated"}])
def test_a_shift_by_the_stride_shifts_the_answer(norm: str, changes: dict[str, Any]) -> None:
    """What exact tiling rests on; a shift by one voxel must not, or the test could not fail."""
    config = variant(padded=False, norm=norm, **changes)
    network = seasoned(config)
    image = an_image(config, steps=3, batch=1).double()
    stride, n = config.shape.stride[0], config.shape.smallest[0] + 2 * config.shape.stride[0]
    with torch.inference_mode():
        here, there, beside = (network(image[:, :, at : at + n]) for at in (0, stride, 1))
    torch.testing.assert_close(here[:, :, stride:], there[:, :, :-stride], rtol=1e-12, atol=1e-12)
    assert (here[:, :, 1:] - beside[:, :, :-1]).abs().max() > 1e-4


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_over_space_are_inexact_and_say_so(norm: Any) -> None:
    config = variant(padded=False, norm=norm)
    assert not config.exact
    assert norm in (config.inexact_reason or "")
    network = seasoned(config)
    image = an_image(config, steps=3, batch=1).double()
    stride, n = config.shape.stride[0], config.shape.smallest[0] + 2 * config.shape.stride[0]
    with torch.inference_mode():
        here, there = (network(image[:, :, at : at + n]) for at in (0, stride))
    assert (here[:, :, stride:] - there[:, :, :-stride]).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"residual": True}, {"attention": True}, {"downsampling": "stride", "upsampling": "interpolated"}],
    ids=str,
)
def test_unpadded_and_padded_networks_agree_in_the_middle(changes: dict[str, Any]) -> None:
    """With the same weights, a padded network gives the unpadded one's answer where no padding reaches.

    So every crop is the true centre: a skip or a shortcut cropped elsewhere would still give the right sizes.
    """
    config = variant(padded=False, channels=(4, 6), **changes)
    unpadded, padded = seasoned(config), seasoned(variant(channels=(4, 6), **changes))
    padded.load_state_dict(unpadded.state_dict())
    size, margin = 40 + config.shape.margin[0] * 2, config.shape.margin[0]
    assert config.shape.is_legal((size, size))
    assert margin % config.shape.stride[0] == 0
    image = torch.randn(1, 2, size, size, dtype=torch.float64)
    with torch.inference_mode():
        inner = padded(image)[:, :, margin:-margin, margin:-margin]
        torch.testing.assert_close(unpadded(image), inner, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padded", [True, False])
def test_deep_supervision_answers_finest_first_and_only_while_training(padded: bool) -> None:
    config = variant(channels=(4, 4, 4, 4), deep_supervision=True, padded=padded, convolutions=1)
    network, image = UNet(config).train(), an_image(variant(channels=(4, 4, 4, 4), padded=padded, convolutions=1))
    answer = network(image)
    assert isinstance(answer, tuple)
    assert [tuple(a.shape[2:]) for a in answer] == list(config.shape.decoder_sizes(image.shape[2:]))
    assert len(answer) == 3 and all(a.shape[1] == 3 for a in answer)
    assert isinstance(network.eval()(image), torch.Tensor)


def dropouts(config: UNetSettings) -> list[str]:
    return [name for name, module in UNet(config).named_modules() if isinstance(module, nn.Dropout)]


def test_dropout_is_where_it_is_asked() -> None:
    assert dropouts(variant()) == []
    assert dropouts(variant(dropout=0.5)) == ["encoder.1.dropout", "encoder.2.dropout"]
    chosen = variant(dropout=0.5, dropout_levels=(0,), dropout_decoder_levels=(1,))
    assert dropouts(chosen) == ["encoder.0.dropout", "decoder.1.dropout"]
    network, image = UNet(variant(dropout=0.5, norm="none")), an_image(variant())
    assert not torch.equal(network(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


def test_attention_weighs_the_skip_between_nothing_and_all() -> None:
    network = UNet(variant(attention=True))
    gate = network.gates[0]
    skip, asking = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    ratio = gate(skip, asking) / skip
    assert (ratio > 0).all() and (ratio < 1).all()
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        gate.to_weight.weight.zero_()
        gate.to_weight.bias.fill_(-200.0)
    assert gate(skip, asking).abs().max() < 1e-6


def test_voxel_norm_is_layer_norm_over_channels() -> None:
    config = variant(norm="voxel", channels=(6, 6))
    norm = seasoned(config).encoder[0].convolutions[0].norm
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    expected = nn.functional.layer_norm(x.movedim(1, -1), (6,), norm.weight, norm.bias).movedim(-1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_interpolated_up_repeats_voxels() -> None:
    up = UNet(variant(upsampling="interpolated", strides=((2, 3), 2))).ups[0].double()
    x = torch.randn(1, 6, 4, 5, dtype=torch.float64)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(up(x), nn.functional.conv2d(repeated, up.convolution.weight, up.convolution.bias))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 4}, "dimensions: found 4"),
        ({"norm": "layer"}, "norm: found 'layer', expected one of none, batch"),
        ({"activation": "tanh"}, "activation"),
        ({"channels": (8,)}, "two levels or more"),
        ({"channels": [4, 8]}, "expected a tuple"),
        ({"channels": (8, 0)}, "at least 1"),
        ({"channels": (1, 8), "norm": "voxel"}, "at least 2"),
        ({"channels": (2, 8), "norm": "voxel", "early_doubling": True}, "at least 4"),
        ({"convolutions": (2, 2)}, "convolutions: found 2 entries"),
        ({"kernels": (3, 3)}, "kernels: found 2 entries"),
        ({"kernels": 2}, "must be odd"),
        ({"strides": (2, (2, 2, 2))}, "2 numbers for each level"),
        ({"dropout": 1.0}, "dropout: found 1.0"),
        ({"dropout": 0.1, "dropout_levels": (3,)}, "levels from 0 to 2"),
        ({"dropout": 0.1, "dropout_decoder_levels": (2,)}, "levels from 0 to 1"),
        ({"classes": 0}, "expected 1 or more"),
        ({"residual": "yes"}, "expected true or false"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        variant(**changes)


def test_a_network_that_expects_classes_as_often_as_they_are_starts_so() -> None:
    """Of each head; a class that was not seen is expected a little."""
    settings = UNetSettings(channels=(8, 8, 8), classes=3, deep_supervision=True)
    plain, informed = UNet(settings, 3), UNet(settings, 3)
    bias_from_frequencies(informed, [0.9, 0.1, 0.0])
    for outputs in (plain, informed):
        assert len(outputs(torch.randn(1, 1, 16, 16, 16))) == 2
    image = torch.randn(2, 1, 16, 16, 16)
    for before, after in zip(plain(image), informed(image), strict=True):
        logits = (after - before)[0, :, 0, 0, 0]
        torch.testing.assert_close(logits.softmax(0), torch.tensor([0.9, 0.1, 0.001]) / 1.001)
        torch.testing.assert_close(after - before, logits[None, :, None, None, None].expand_as(after))
    assert float(logits.detach().mean()) == pytest.approx(0, abs=1e-6)


def test_a_network_that_expects_rare_structures_gives_them_small_probabilities() -> None:
    """Of each head; the weights stay as they are, so that images still differ."""
    torch.manual_seed(0)
    settings = UNetSettings(channels=(8, 8, 8), classes=2, deep_supervision=True)
    plain, rare = UNet(settings, 3), UNet(settings, 3)
    bias_for_rare(rare)
    image = torch.randn(2, 1, 16, 16, 16)
    for before, after in zip(plain(image), rare(image), strict=True):
        torch.testing.assert_close(after, before + math.log(0.05 / 0.95))
    assert rare(torch.zeros(2, 1, 16, 16, 16))[0].sigmoid().mean().item() == pytest.approx(0.05, abs=0.01)
