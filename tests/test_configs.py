"""The ready experiments: they load, their sizes are legal, and each trains on a real data set of its kind."""

from __future__ import annotations

import csv
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medunet
from medunet.config import load_config
from medunet.networks.presets import unet3d2016_settings, unet2015_settings
from medunet.networks.unet import UNet
from medunet.train_network import train_run
from medunet.training.run_folder import TrainRequest
from medunet.transforms.augment.settings import Chance, ElasticGrid
from tests.networks.external.examples import require_packages

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL = sorted(CONFIGS.glob("*.yaml"))

COMMAND = re.compile(r"medunet train (configs/\S+) (.*)")


@dataclass(frozen=True)
class Small:
    """A config made small enough for a test, and a real data set that it is meant for.

    Attributes:
        channels: of our own network; empty for those of others, which have other options.
    """

    config: str
    data: str
    channels: str
    size: str
    more: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        return (
            *((f"network.channels={self.channels}",) if self.channels else ()),
            f"patches.size={self.size}",
            "patches.batch=1",
            "training.epochs=1",
            "training.iterations=2",
            "training.workers=0",
            *self.more,
        )


SMALL = (
    Small("unet2015", "isbi2012_em", "[4, 4, 8, 8, 16]", "[220, 220]"),
    Small("unet2d", "vnc_sstem", "[4, 8, 16]", "[64, 64]"),
    Small("unet2d", "isbi2012_em", "[4, 8, 16]", "[64, 64]"),
    Small("mri3d", "nichart_brain", "[4, 8, 16]", "[32, 32, 32]"),
    Small("mri3d", "mni152_tissue", "[4, 8]", "[32, 32, 32]", ("preprocess.spacing=[6, 6, 6]",)),
    Small("ct3d", "totalseg_ct", "[4, 8, 16]", "[32, 32, 32]", ("preprocess.spacing=[6, 6, 6]",)),
    Small(
        "unet3d2016",
        "msd_hippocampus",
        "[4, 4, 8, 8]",
        "[92, 92, 92]",
        ("data.annotated_slices=[{axis: z, every: 4}, {axis: x, at: [15]}]",),
    ),
    Small("unet3d_unpadded", "msd_hippocampus", "[4, 8, 16]", "[60, 60, 60]"),
    Small("cells", "ctc_phc_u373", "[4, 8, 16]", "[64, 64]"),
    Small(
        "backbones2d", "dsb2018_nuclei", "", "[64, 64]", ("network.encoder=resnet18", "network.encoder_weights=null")
    ),
    Small(
        "swin_unetr",
        "msd_hippocampus",
        "",
        "[64, 32, 32]",
        ("network.features=12", "network.depths=[1, 1, 1, 1]", "preprocess.spacing=[2, 2, 2]"),
    ),
    Small(
        "transunet",
        "msd_hippocampus",
        "[4, 8, 16]",
        "[32, 32, 32]",
        ("network.hidden=16", "network.mlp=32", "network.heads=2", "network.layers=1"),
    ),
)


def few_cases(source: Path, target: Path, count: int) -> Path:
    """A data set of the first cases of another: links, or a corner of 256 x 256 pixels where they are PNG."""
    for part in ("images", "labels"):
        (target / part).mkdir(parents=True)
        for path in sorted((source / part).iterdir())[:count]:
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.crop((0, 0, 256, 256)).save(target / part / path.name)
            else:
                (target / part / path.name).symlink_to(path)
    (target / "dataset.json").symlink_to(source / "dataset.json")
    return target


def test_there_is_an_experiment_for_each_kind_of_data() -> None:
    names = {path.stem for path in ALL}
    assert names == {
        "unet2015",
        "unet2d",
        "mri3d",
        "ct3d",
        "unet3d_unpadded",
        "unet3d2016",
        "cells",
        "backbones2d",
        "swin_unetr",
        "transunet",
    }
    assert names == {small.config for small in SMALL}


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_config_loads_and_its_patch_is_legal(path: Path) -> None:
    config = load_config(path).config
    assert len(config.patches.size) == config.network.dimensions
    assert config.network.shape.is_legal(config.patches.size)


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_commands_in_a_config_are_valid(path: Path) -> None:
    """Each names the file it stands in, and its --set values are accepted and give a legal patch."""
    text = path.read_text(encoding="utf-8")
    comments = "\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    commands = COMMAND.findall(re.sub(r"\\\n\s*", "", comments))
    assert commands
    for name, options in commands:
        assert name == f"configs/{path.name}"
        words = shlex.split(options)
        config = load_config(path, [value for key, value in pairwise(words) if key == "--set"]).config
        assert config.data.path == "FOLDER"
        assert config.network.shape.is_legal(config.patches.size)


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_config_leaves_to_the_data_set_what_the_data_set_decides(path: Path) -> None:
    stated = load_config(path).stated
    assert not stated & {"data.path", "network.in_channels", "network.classes"}


@pytest.mark.slow
def test_unet2015_is_the_published_network() -> None:
    config = load_config(CONFIGS / "unet2015.yaml").config
    assert config.network == unet2015_settings()
    assert config.network.shape.output_size(config.patches.size) == (388, 388)
    assert (config.optimiser.kind, config.optimiser.momentum, config.patches.batch) == ("sgd", 0.99, 1)
    assert (config.loss.kind, config.augment.elastic_grid) == ("cross_entropy", ElasticGrid(points=3))
    assert config.augment.elastic == Chance(1, 10, 10)
    network = UNet(config.network).to("meta").eval()
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert network(torch.empty(1, 1, *config.patches.size, device="meta")).shape == (1, 2, 388, 388)


@pytest.mark.slow
def test_unet3d2016_is_the_published_network() -> None:
    config = load_config(CONFIGS / "unet3d2016.yaml", ["network.in_channels=3", "network.classes=3"]).config
    assert config.network == unet3d2016_settings()
    assert config.patches.size == (132, 132, 116) and config.patches.batch == 1
    assert config.augment.elastic_grid == ElasticGrid(spacing=32, spline="b-spline")
    assert config.augment.elastic == Chance(1, 4, 4)
    assert config.training.epochs * config.training.iterations == 70_000
    network = UNet(config.network).to("meta").eval()
    norms = sum(p.numel() for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d) for p in m.parameters())
    assert sum(p.numel() for p in network.parameters()) - norms == 19_069_955, "as the paper counts"
    assert network(torch.empty(1, 3, *config.patches.size, device="meta")).shape == (1, 3, 44, 44, 28)


def test_the_sizes_that_unet3d_unpadded_explains_are_right() -> None:
    config = load_config(CONFIGS / "unet3d_unpadded.yaml").config
    shape = config.network.shape
    assert shape.encoder_sizes((84, 84, 84)) == ((80,) * 3, (36,) * 3, (14,) * 3)
    assert shape.decoder_sizes((84, 84, 84)) == ((44,) * 3, (24,) * 3)
    assert shape.output_size(config.patches.size) == (44, 44, 44)
    assert [list(sizes)[:3] for sizes in shape.legal_sizes(0, 60)] == [[44, 48, 52]] * 3


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("plain_runs")
@pytest.mark.parametrize("small", SMALL, ids=lambda small: f"{small.config}-{small.data}")
def test_a_small_version_trains_on_real_data(small: Small, real_data: Path, tmp_path: Path) -> None:
    require_packages(load_config(CONFIGS / f"{small.config}.yaml").config.network)
    data, run = few_cases(real_data / small.data, tmp_path / "data", 2), tmp_path / "run"
    train_run(TrainRequest(CONFIGS / f"{small.config}.yaml", run, (*small.overrides, f"data.path={data}"), "cpu"))

    model = medunet.load_model(run)
    stated = load_config(CONFIGS / f"{small.config}.yaml", small.overrides).config
    assert model.card.patch == stated.patches.size
    assert model.card.network.padded == stated.network.padded
    assert all(normalisation.complete for normalisation in model.card.preprocess.normalise)

    rows = list(csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["step"] for row in rows] == ["2"]
    assert np.isfinite(float(rows[0]["loss"]))
    predicted = [path for path in (run / "validation").iterdir() if path.name.split(".")[-1] in {"gz", "png", "tif"}]
    assert predicted
    for path in predicted:
        labels = medunet.read_volume(path)
        scan = medunet.read_volume(next((data / "images").glob(path.name.split(".")[0] + ".*")))
        assert labels.shape == scan.shape
        assert np.allclose(labels.affine, scan.affine)
        assert set(np.unique(labels.array)) <= set(model.card.labels.values)
