"""A network that starts with a trained model's weights takes what fits, by name, and says what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medunet.cli import run
from medunet.config import load_config
from medunet.datasets.labels import LabelTable, table_from_names
from medunet.datasets.regions import Region
from medunet.errors import ModelError
from medunet.model import Model, ModelCard, load_model
from medunet.networks.build import NetworkSettings, build_network
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.external.settings import DynUNetSettings, SegResNetSettings
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.training.warm_start import WarmStart, take_weights
from medunet.transforms.preprocess import PreprocessSettings
from tests.flows.made import make_set

pytestmark = pytest.mark.usefixtures("plain_runs")

SETTINGS = UNetSettings(
    in_channels=2, classes=3, channels=(4, 8), convolutions=1, residual=True, deep_supervision=True, dimensions=2
)
LABELS = table_from_names({"background": 0, "liver": 1, "spleen": 2}, None)


def trained(
    settings: UNetSettings = SETTINGS, labels: LabelTable = LABELS, channels: tuple[str, ...] = ("T1", "T2")
) -> Model:
    network = UNet(settings, seed=1)
    with torch.no_grad():
        for number, tensor in enumerate(network.state_dict().values()):
            tensor.fill_(number) if tensor.ndim < 2 else tensor.add_(100 + number)
    card = ModelCard("organs", settings, PreprocessSettings(), labels, channels, (8, 8))
    return Model(network, card, Path("m.safetensors"), "abc")


def took(
    settings: UNetSettings = SETTINGS, labels: LabelTable = LABELS, channels: tuple[str, ...] = ("T1", "T2"),
    model: Model | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor], WarmStart]:  # fmt: skip
    """Weights after, those before, those of the model, and what was said."""
    model, network = model or trained(), UNet(settings, seed=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    taken = take_weights(network, model, channels, labels)
    return network.state_dict(), before, model.network.state_dict(), taken


def test_the_same_network_is_taken_as_a_whole() -> None:
    after, _, source, taken = took()
    assert all(torch.equal(after[name], source[name]) for name in source)
    assert taken.weights == taken.total and taken.lines(trained().card) == [
        "starting with the weights of organs: 100 % of the network's"
    ]


def test_heads_are_taken_by_the_labels_names() -> None:
    labels = table_from_names({"background": 0, "spleen": 1, "kidney": 2, "Liver": 7}, None)
    after, before, source, taken = took(replace(SETTINGS, classes=4), labels)
    for part in ("weight", "bias"):
        name = f"head.{part}"
        for here, there in ((0, 0), (1, 2), (3, 1)):
            assert torch.equal(after[name][here], source[name][there])
        assert torch.equal(after[name][2], before[name][2])
    assert taken.left == ["outputs of labels that the model does not have: kidney"]
    others = [name for name in source if "head" not in name]
    assert all(torch.equal(after[name], source[name]) for name in others)


def test_the_first_convolution_is_taken_by_the_channels_names() -> None:
    after, before, source, taken = took(replace(SETTINGS, in_channels=3), channels=("FLAIR", "t2", "T1"))
    for name in ("encoder.0.convolutions.0.convolution.weight", "encoder.0.shortcut.weight"):
        assert torch.equal(after[name][:, 1], source[name][:, 1]) and torch.equal(after[name][:, 2], source[name][:, 0])
        assert torch.equal(after[name][:, 0], before[name][:, 0])
    assert taken.left == ["the first convolution's part for channels that the model does not have: FLAIR"]


@pytest.mark.parametrize("names", [(), ("", ""), ("A", "B"), ("A", "A")])
def test_channels_without_common_names_are_taken_by_their_place_if_they_are_as_many(names: tuple[str, ...]) -> None:
    after, _, source, taken = took(channels=names)
    assert taken.weights == taken.total
    assert torch.equal(after["encoder.0.shortcut.weight"], source["encoder.0.shortcut.weight"])
    name = "encoder.0.shortcut.weight"
    after, before, _, taken = took(replace(SETTINGS, in_channels=1), channels=names[:1])
    assert torch.equal(after[name], before[name])
    assert taken.left == [
        "the first convolution: 1 channel here, 2 in the model, and no names that tell which is which"
    ]


def test_regions_are_no_labels() -> None:
    labels = replace(LABELS, regions=(Region("liver", (1,), 1), Region("spleen", (2,), 2)))
    after, before, _, taken = took(replace(SETTINGS, classes=2), labels)
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert taken.left == ["outputs of labels that the model does not have: liver, spleen"]


def test_what_has_another_shape_or_is_not_there_starts_anew_and_is_named() -> None:
    after, before, source, taken = took(replace(SETTINGS, channels=(4, 16), attention=True))
    name = "encoder.1.convolutions.0.convolution.weight"
    assert torch.equal(after[name], before[name])
    assert torch.equal(after["encoder.0.shortcut.weight"], source["encoder.0.shortcut.weight"])
    (line,) = taken.left
    assert "encoder.1.convolutions.0.convolution ((16, 4, 3, 3) here, (8, 4, 3, 3) there)" in line and "more" in line
    assert 0 < taken.weights < taken.total


@pytest.mark.parametrize(
    "changes", [{"channels": (6, 12)}, {"dimensions": 3}, {"kernels": 5, "channels": (4, 8, 16), "residual": False}]
)
def test_a_model_of_which_nothing_fits_is_an_error(changes: dict[str, object]) -> None:
    changes.setdefault("in_channels", 1)
    with pytest.raises(ModelError, match="none of its encoder's convolutions fits"):
        took(replace(SETTINGS, **changes), channels=("CT",))


@pytest.mark.slow
def test_planning_for_a_model_keeps_its_network_and_the_new_model_says_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, old, new = make_set(tmp_path / "data", cases=3, shape=(12, 11, 10)), tmp_path / "old", tmp_path / "new"
    (tmp_path / "c.yaml").write_text("")
    brief = ["--set", "training.epochs=1", "--set", "training.iterations=2", "--device", "cpu"]
    small = ["--set", "network.channels=[4, 12]", "--set", "patches.size=[8, 8, 12]", "--set", f"data.path={data}"]
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(old), *small, *brief]) == 0
    capsys.readouterr()
    assert run(["train", str(data), "-o", str(new), "--init", str(old), *brief]) == 0
    said = capsys.readouterr().err
    assert f"the network is that of {old}" in said and "100 % of the network's" in said
    config = load_config(new / "config.yaml").config
    assert config.network.channels == (4, 12) and config.patches.size == (8, 8, 12)
    assert config.training.init == str(old) and config.training.minutes is None
    record = load_model(new).card.record
    assert record["init"] == "balls" and record["init_share"] == 1.0
    assert record["init_checksum"] == load_model(old).checksum[:12]
    capsys.readouterr()
    assert run(["train", "-o", str(new), "--resume", "--set", "training.epochs=2", "--device", "cpu"]) == 0
    assert "starting with" not in capsys.readouterr().err and load_model(new).card.record["init"] == "balls"
    assert run(["train", str(data), "-o", str(tmp_path / "x"), "--init", str(tmp_path / "nothing"), *brief]) == 1
    assert "no such model" in capsys.readouterr().err and not (tmp_path / "x").exists()


DYNUNET = DynUNetSettings(in_channels=2, classes=3, channels=(4, 8, 8, 8), deep_supervision=True, dimensions=2)


def external(settings: NetworkSettings, seed: int) -> AdaptedNetwork:
    network = build_network(settings, seed)
    assert isinstance(network, AdaptedNetwork)
    return network


def external_model(settings: NetworkSettings = DYNUNET) -> Model:
    card = ModelCard("organs", settings, PreprocessSettings(), LABELS, ("T1", "T2"), (16, 16))
    return Model(external(settings, 1), card, Path("m.safetensors"), "abc")


def test_a_network_of_others_is_taken_as_a_whole_each_weight_counted_once() -> None:
    model, network = external_model(), external(DYNUNET, 2)
    taken = take_weights(network, model, ("T1", "T2"), LABELS)
    source = model.network.state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in network.state_dict().items())
    assert taken.weights == taken.total == sum(p.numel() for p in network.parameters())


def test_heads_of_a_network_of_others_are_taken_by_the_labels_names() -> None:
    labels = table_from_names({"background": 0, "spleen": 1, "liver": 2}, None)
    model, network = external_model(), external(DYNUNET, 2)
    take_weights(network, model, ("T1", "T2"), labels)
    for own, its in zip(network.heads, model.network.heads, strict=True):  # type: ignore[arg-type]
        assert torch.equal(own.weight[[0, 2, 1]], its.weight) and torch.equal(own.bias[[0, 2, 1]], its.bias)  # type: ignore[index]


def test_a_network_of_others_wants_the_same_channels_and_the_same_architecture() -> None:
    with pytest.raises(ModelError, match="has the channels T1, T2, the data T2, T1"):
        take_weights(external(DYNUNET, 2), external_model(), ("T2", "T1"), LABELS)
    other = external(SegResNetSettings(in_channels=2, classes=3, features=8, blocks=(1, 1), dimensions=2), 2)
    with pytest.raises(ModelError, match=r"dynunet, channels \(4, 8, 8, 8\), 2-D, against segresnet, channels 8, 2-D"):
        take_weights(other, external_model(), ("T1", "T2"), LABELS)
