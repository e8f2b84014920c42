"""Settings of external networks: impossible ones are refused in words that say what would do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from medunet import config as config_module
from medunet.config import parse_config, to_plain
from medunet.errors import ConfigError, MissingExtra
from medunet.networks.build import ARCHITECTURES, NetworkSettings, build_network, settings_kind
from medunet.networks.external.named import MonaiSettings
from medunet.networks.external.settings import (
    DynUNetSettings,
    FlexibleUNetSettings,
    SegResNetSettings,
    SmpSettings,
    SwinUNETRSettings,
    UNetPlusPlusSettings,
    UNETRSettings,
)
from medunet.networks.settings import UNetSettings
from tests.networks.external.examples import MONAI, SMP, TRANSFORMERS, name_of


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNETRSettings(image_size=(96, 100, 96)), r"image_size.*\n?.*(96|112)"),
        (lambda: UNETRSettings().settled(1, 2, (50, 48, 48)), "patches.size: .*48 and 64"),
        (lambda: UNETRSettings(image_size=(32,) * 3).settled(1, 2, (48,) * 3), "leave image_size out"),
        (lambda: UNETRSettings(hidden=100, heads=12), "take 96 or 108"),
        (lambda: SwinUNETRSettings(features=30), "nearest are 24 or 36"),
        (lambda: SwinUNETRSettings(heads=(3, 6, 12, 25)), "25 do not divide the 192 channels"),
        (lambda: SwinUNETRSettings(depths=(2, 2)), "depths: found 2 numbers, expected 4"),
        (lambda: UNetPlusPlusSettings(channels=(8, 16)), "channels: found 2 numbers, expected 5"),
        (lambda: SegResNetSettings(features=12), "multiples of 8"),
        (lambda: DynUNetSettings(channels=(8, 16)), "channels: found 2 numbers, expected 3 or more"),
        (lambda: DynUNetSettings(kernels=2), "kernels: found 2, expected odd"),
        (lambda: DynUNetSettings(strides=(2,)), "strides: found 1 entries"),
        (lambda: DynUNetSettings(channels=(8, 8, 8), deep_supervision=True), "four levels"),
        (lambda: FlexibleUNetSettings(encoder="resnet35"), "did you mean resnet"),
        (lambda: FlexibleUNetSettings(encoder="efficientnet-b0", encoder_weights="imagenet"), "exist in 2-D"),
        (lambda: FlexibleUNetSettings(encoder="resnet18", encoder_weights="imagenet", dimensions=2), "exist in 2-D"),
        (lambda: FlexibleUNetSettings(encoder_weights="medicalnet", in_channels=2), "2 channel"),
        (lambda: SmpSettings(dimensions=3), "flexible_unet, which has a 3-D form"),
        (lambda: SmpSettings(encoder="vgg12"), "did you mean vgg1"),
        (lambda: SmpSettings(dropout=0.1), "smp_unet has none"),
        (lambda: SegResNetSettings(dropout=1.0), "from 0 to below 1"),
        (lambda: SegResNetSettings(classes=0), "expected 1 or more"),
    ],
)
def test_what_is_impossible_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [*MONAI, *TRANSFORMERS, *SMP], ids=name_of)
def test_a_config_keeps_every_setting(settings: NetworkSettings) -> None:
    file = parse_config("", "t")
    written = replace(file, config=config_module.Config(network=settings)).to_yaml()
    assert parse_config(written, "t").config.network == settings


def test_without_a_word_it_is_our_own_unet() -> None:
    assert parse_config("network: {channels: [4, 8]}", "t").config.network == UNetSettings(channels=(4, 8))
    assert parse_config("network: {architecture: unet}", "t").config.network == UNetSettings()


def test_an_unknown_architecture_is_refused_with_its_line_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"t:2: network.architecture: segresnt is unknown; did you mean segresnet"):
        parse_config("network:\n  architecture: segresnt\n", "t")
    with pytest.raises(ConfigError, match="is unknown"):
        settings_kind(["unet"])


def test_an_option_of_another_architecture_is_refused_with_those_it_has() -> None:
    text = "network:\n  architecture: segresnet\n  kernels: 3\n"
    known = "architecture, dimensions, in_channels, classes, dropout, features, blocks, norm"
    with pytest.raises(ConfigError, match=f't:3: unknown key "network.kernels"; known here: {known}'):
        parse_config(text, "t")
    with pytest.raises(ConfigError, match='did you mean "features"'):
        parse_config(text.replace("kernels", "feature"), "t")
    with pytest.raises(ConfigError, match=r'unknown key "network\.features"'):
        parse_config("network: {features: 3}", "t")


def test_a_class_name_or_a_path_is_no_architecture() -> None:
    for name in ("monai.networks.nets.UNet", "os.system", "$print(1)"):
        with pytest.raises(ConfigError, match="is unknown"):
            parse_config(f"network: {{architecture: '{name}'}}", "t")
    with pytest.raises(ConfigError, match="unknown key"):
        parse_config("network: {_target_: os.getcwd}", "t")


@pytest.mark.slow
def test_the_config_reads_every_kind_that_can_be_built() -> None:
    for name, kind in ARCHITECTURES.items():
        assert type(parse_config(f"network: {{architecture: {name}}}", "t").config.network) is kind
    tried = {to_plain(s)["architecture"] for s in (*MONAI, *TRANSFORMERS, *SMP)} | {"unet"}
    assert tried | set(MonaiSettings.library_classes) == set(ARCHITECTURES), "test_named.py tries MONAI's classes"


@pytest.mark.parametrize(
    ("package", "settings", "words"),
    [
        ("einops", SwinUNETRSettings(), r"swin_unetr needs einops; pip install 'medunet\[transformers\]'"),
        ("segmentation_models_pytorch", SmpSettings(), r"pip install 'medunet\[backbones\]'"),
    ],
)
def test_a_missing_package_is_named(
    package: str, settings: NetworkSettings, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=words):
        build_network(settings)
