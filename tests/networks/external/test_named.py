"""Networks by the arguments of their class: MONAI's list, and networks that Python registered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import nn

import medunet
from medunet.config import parse_config
from medunet.datasets.labels import table_from_names
from medunet.errors import ConfigError, ModelError
from medunet.inference.streaming.graph import NotLocal
from medunet.model import ModelCard, load_model, save_model
from medunet.networks.build import build_network, register_network, require_library
from medunet.networks.external import named
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.external.named import NETWORKS, MonaiSettings, RegisteredSettings
from medunet.transforms.preprocess import Normalisation, PreprocessSettings

SMALL: dict[str, dict[str, Any]] = {
    "AttentionUnet": {"channels": [4, 8], "strides": [2]},
    "UNet": {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1, "norm": "batch"},
    "BasicUNet": {"features": [4, 4, 4, 4, 8, 4], "upsample": "nontrainable"},
    "BasicUNetPlusPlus": {"features": [4, 4, 4, 4, 8, 4]},
    "DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]},
    "FlexibleUNet": {"backbone": "resnet10", "decoder_channels": [8, 8, 4, 4, 4]},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "SegResNetDS": {"init_filters": 8, "blocks_down": [1, 1, 1]},
    "MedNeXt": {"init_filters": 8, "kernel_size": 3, "blocks_down": [1, 1], "blocks_up": [1, 1],
                "encoder_expansion_ratio": [2, 2], "decoder_expansion_ratio": [2, 2]},
}  # fmt: skip
LARGE = {"VNet", "HighResNet", "FlexibleUNet"}
KINDS = [pytest.param(n, d, marks=[pytest.mark.slow] if n in LARGE else []) for n in NETWORKS for d in (2, 3)]


@pytest.mark.parametrize(("name", "dimensions"), KINDS)
def test_it_is_monai_s_own_takes_any_size_and_its_stride_is_right(name: str, dimensions: int) -> None:
    given = SMALL.get(name, {})
    settings = MonaiSettings(f"monai.{name}", dimensions, 2, 3, arguments=given)  # type: ignore[arg-type]
    before = torch.random.get_rng_state()
    require_library(settings)
    network = build_network(settings, seed=3).eval()
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator moved"
    assert isinstance(network, AdaptedNetwork)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        more = {"dropout_dim": dimensions} if name == "VNet" else {}
        own = getattr(nets, name)(
            spatial_dims=dimensions, in_channels=2, out_channels=3, **SMALL.get(name, {}), **more
        ).eval()
    legal = tuple(max(2 * n, 8) for n in settings.shape.stride)
    image = torch.randn((1, 2, *legal), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer = own(image)
        assert torch.equal(network(image), answer[0] if isinstance(answer, list) else answer)
        odd = image[(..., *(slice(n - 1) for n in legal))]
        assert network(odd).shape == (1, 3, *(n - 1 for n in legal))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("architecture: monai.BasicUnett", r"x:1: network.architecture: .*did you mean monai.BasicUNet"),
        ("architecture: monai.VISTA3D", r"network.architecture: .*unknown"),
        ("architecture: monai.BasicUNet, arguments: {featurs: [1]}", r"network.arguments.featurs: .*mean features"),
        ("architecture: monai.BasicUNet, arguments: {norm: layer}", r"network.arguments.norm: .*one of batch, inst"),
        ("architecture: monai.BasicUNet, arguments: {act: os.system}", r"network.arguments.act: .*unknown"),
        ("architecture: monai.VNet, dropout: 0.3", r"network.dropout: .*see network.arguments"),
    ],
)
def test_wrong_settings_are_located(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"network: {{{text}}}", "x")


def test_what_monai_refuses_is_located_before_any_work() -> None:
    with pytest.raises(ConfigError, match=r"network.arguments.features: found \(4, 4\); MONAI's BasicUNet refuses it"):
        require_library(MonaiSettings("monai.BasicUNet", arguments={"features": [4, 4]}))
    with pytest.raises(ConfigError, match=r"network.arguments: MONAI's UNet refuses it: .*'channels' and 'strides'"):
        require_library(MonaiSettings("monai.UNet"))


def test_strides_of_a_dynunet_may_differ_per_axis() -> None:
    given = {
        "kernel_size": [3, 3, 3],
        "strides": [1, [1, 2], 2],
        "upsample_kernel_size": [[1, 2], 2],
        "filters": [4, 8, 8],
    }
    settings = MonaiSettings("monai.DynUNet", 2, arguments=given)
    assert settings.shape.stride == (4, 4)
    with torch.inference_mode():
        assert build_network(settings).eval()(torch.zeros(1, 1, 9, 7)).shape == (1, 2, 9, 7)
    with pytest.raises(ConfigError, match=r"network.arguments: MONAI's DynUNet refuses it"):
        require_library(MonaiSettings("monai.DynUNet"))


@pytest.mark.parametrize("name", ["BasicUNetPlusPlus", "DynUNet", "FlexibleUNet"])
def test_with_batch_norm_it_streams_exactly_and_with_instance_norm_it_names_the_layer(name: str) -> None:
    key, image = "norm_name" if name == "DynUNet" else "norm", torch.randn(2, 75, 41)
    given = SMALL[name] | {key: "batch"}
    network = build_network(MonaiSettings(f"monai.{name}", 2, 2, 3, arguments=given)).eval()
    with torch.inference_mode():
        whole = network(image[None])[0]
    for place, logits in medunet.stream(network, image):
        torch.testing.assert_close(logits, whole[(slice(None), *place)], rtol=0, atol=1e-5 * float(whole.abs().max()))
    other = build_network(MonaiSettings(f"monai.{name}", 2, 2, 3, arguments=given | {key: "instance"})).eval()
    with pytest.raises(NotLocal, match=r"takes statistics over the scan") as refusal:
        medunet.stream(other, image)
    assert str(refusal.value).split()[0] in dict(other.network.named_modules())  # type: ignore[operator,arg-type]


@dataclass(frozen=True)
class Settings:
    """The settings of a network of a user's own."""

    width: int = 4

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width must be at least 1")


def build(settings: Settings, dimensions: int, in_channels: int, classes: int) -> nn.Module:
    kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
    first, last = kind(in_channels, settings.width, 3, padding=1), kind(settings.width, classes, 1)
    return nn.Sequential(first, nn.ReLU(), last)


@pytest.fixture
def mine() -> Iterator[None]:
    register_network("mine", Settings, build, multiple=2)
    yield
    named.REGISTERED.remove("mine")


@pytest.mark.usefixtures("mine")
def test_a_registered_network_is_named_saved_and_loaded(tmp_path: Path) -> None:
    file = parse_config("network: {architecture: mine, dimensions: 2, arguments: {width: 6}}", "x")
    settings = file.config.network
    assert isinstance(settings, RegisteredSettings) and settings.shape.stride == (2, 2)
    assert parse_config(file.to_yaml(), "y").config == file.config
    network = build_network(settings).eval()
    card = ModelCard("balls", settings, PreprocessSettings(normalise=(Normalisation("zscore"),)),
                     table_from_names({"background": 0, "ball": 1}, None), ("image",), (8, 8))  # fmt: skip
    save_model(tmp_path / "model.safetensors", network.state_dict(), card)
    image = torch.randn(1, 1, 7, 9)
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path).network(image), network(image))

    named.REGISTERED.remove("mine")
    with pytest.raises(ModelError, match=r"(?s)model.safetensors: .*mine is unknown.*medunet.register_network\('mine'"):
        load_model(tmp_path)


@pytest.mark.usefixtures("mine")
def test_wrong_registrations_and_arguments_are_refused() -> None:
    for name in ("mine", "unet", "dynunet"):
        with pytest.raises(ConfigError, match="exists already"):
            register_network(name, Settings, build)
    with pytest.raises(ConfigError, match="multiple must be at least 1"):
        register_network("other", Settings, build, 0)
    with pytest.raises(ConfigError, match=r"x:1: network.arguments.width: found 0; mine refuses it: width must be"):
        parse_config("network: {architecture: mine, arguments: {width: 0}}", "x")
    with pytest.raises(ConfigError, match=r"network.arguments.depth: found 3; mine refuses it: .*unexpected keyword"):
        parse_config("network: {architecture: mine, arguments: {depth: 3}}", "x")


def test_a_function_that_gives_no_module_is_refused() -> None:
    register_network("nothing", Settings, lambda **facts: None)  # type: ignore[arg-type,return-value]
    try:
        with pytest.raises(ConfigError, match=r"gives NoneType, expected a torch.nn.Module"):
            build_network(RegisteredSettings("nothing"))
    finally:
        named.REGISTERED.remove("nothing")
