"""From object ids to a model of each target, with and without a weight map, and what is said where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import medunet
from medunet.cli import run
from medunet.config import load_config
from medunet.metrics.objects import count_objects
from medunet.model import load_model
from medunet.volume import Volume
from tests.flows.made import make_set

pytestmark = pytest.mark.slow

QUICK = ["--set", "network.channels=[8, 16]", "--set", "network.kernels=3", "--set", "network.strides=2",
         "--set", "patches.size=[32, 32]", "--set", "training.workers=0", "--set", "optimiser.rate=0.005",
         "--set", "training.epochs=1", "--set", "training.iterations=25", "--device", "cpu"]  # fmt: skip


def make_cells(folder: Path, cases: int = 4, kind: str = "instances") -> Path:
    """Bright discs in pairs that touch, ids of 16 bits without order, a strip without annotation; um in TIFF."""
    for number in range(cases):
        random = np.random.default_rng(number)
        x, y = np.indices((48, 40))
        ids = np.zeros((48, 40), np.uint16)
        for centre in ((12, 10), (12, 22), (34, 18), (34, 30)):
            at = np.array(centre) + random.integers(-1, 2, 2)
            ids[(x - at[0]) ** 2 + (y - at[1]) ** 2 < 40] = random.integers(300, 60000)
        image = random.normal(100, 10, ids.shape) + 60 * (ids > 0)
        ids[:, :2] = 7
        affine = np.diag([0.5, 0.5, 1.0, 1.0])
        medunet.write_volume(Volume(image[None].astype(np.float32), affine, "um"), folder / "images" / f"c{number}.tif")
        medunet.write_volume(Volume(ids[None], affine, "um"), folder / "labels" / f"c{number}.tif")
    declared = {"name": "cells", "labels": {"background": 0, "cell": 1}, "ignore": 7, "label_kind": kind}
    (folder / "dataset.json").write_text(json.dumps(declared))
    return folder


def train(data: Path, out: Path, *more: str) -> int:
    return run(["train", str(data), "-o", str(out), *QUICK, *more])


def train_unplanned(data: Path, out: Path, *more: str) -> int:
    """With a config instead of a plan, which tries steps of a much larger network than is trained here."""
    config = out.parent / "unplanned.yaml"
    config.write_text(f"data: {{path: {data}}}\nnetwork: {{dimensions: 2}}\n")
    return train(config, out, *more)


@pytest.mark.usefixtures("plain_runs")
@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("foreground", ["cell"]),
        ("separated", ["cell"]),
        ("border", ["cell", "cell_border"]),
        ("cores", ["cell", "cell_core_1", "cell_core_2"]),
    ],
)
def test_each_target_is_learned_and_scored_as_a_mask(target: str, names: list[str], tmp_path: Path) -> None:
    data, out = make_cells(tmp_path / "data"), tmp_path / "run"
    weights = ["--set", "weight_map.kind=unet2015", "--set", "weight_map.sigma=2", "--set", "weight_map.sigma_unit=um"]
    more = [] if target == "foreground" else weights
    assert train_unplanned(data, out, "--set", f"instances.target={target}", *more) == 0
    header = (out / "metrics.csv").read_text().splitlines()[0].split(",")
    assert [name[5:] for name in header if name.startswith("dice:")] == names
    card = load_model(out).card
    assert card.instances is not None and card.instances.target == target
    assert card.network.classes == card.labels.outputs == (2 if len(names) == 1 else 3)
    scores = json.loads((out / "validation" / "scores.json").read_text())
    assert list(scores["labels"]) == ["cell"] and scores["label_table"]["kind"] == "instances"
    assert scores["summary"]["mean"]["dice"] > 0.5, "a network that saw bright discs finds some"
    mask = medunet.read_volume(next((out / "validation").glob("*.tif"))).array
    assert set(np.unique(mask)) <= {0, 1}
    shown = EventAccumulator(str(out / "tensorboard"))
    shown.Reload()
    pooled = scores["summary"]["objects"]["pooled"]
    for tag, key in {"SEG": "seg", "AP50": "ap50", "mAP": "mean_ap", "PQ": "pq"}.items():
        (event,) = shown.Scalars(f"final objects/{tag}")
        assert (event.step, event.value) == (25, pytest.approx(pooled[key]))
    data_of = shown.PluginTagToContent("hparams")[metadata.EXPERIMENT_TAG]
    columns = [info.name.tag for info in metadata.parse_experiment_plugin_data(data_of).metric_infos]
    assert {"final/Dice", "final objects/SEG", "final objects/PQ"} <= set(columns)


@pytest.mark.usefixtures("plain_runs")
def test_a_plan_has_a_target_and_a_resumed_run_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = make_cells(tmp_path / "data"), tmp_path / "run"
    assert train(data, out) == 0
    assert "objects (cell), learned as cores" in capsys.readouterr().err
    assert "of the 16 measured objects touch another; cores learns" in (out / "config.yaml").read_text()
    assert load_config(out / "config.yaml").config.instances.target == "cores"
    assert run(["train", str(data), "-o", str(out), "--resume", "--set", "training.epochs=2", "--device", "cpu"]) == 0
    assert len((out / "metrics.csv").read_text().splitlines()) == 3
    capsys.readouterr()
    other = ["--resume", "--set", "training.epochs=3", "--set", "instances.depths=[0.2, 0.5]", "--device", "cpu"]
    assert run(["train", str(data), "-o", str(out), *other]) == 1
    assert "instances.depths was [0.3, 0.6], is [0.2, 0.5]" in capsys.readouterr().err


@pytest.mark.usefixtures("plain_runs")
def test_a_cross_validation_scores_masks_and_gives_parts_of_objects_no_postprocessing(tmp_path: Path) -> None:
    data, out = make_cells(tmp_path / "data"), tmp_path / "run"
    more = ["--set", "instances.target=cores", "--set", "data.folds=2", "--set", "training.iterations=10"]
    assert train_unplanned(data, out, "--fold", "all", *more) == 0
    scores = json.loads((out / "validation" / "scores.json").read_text())
    assert list(scores["labels"]) == ["cell"] and len(scores["cases"]) == 4
    # Objects are those of the fold that held the case out, and are compared one by one.
    for number, case in ((n, c) for n in (0, 1) for c in (out / f"fold_{n}" / "validation" / "objects").iterdir()):
        assert (out / "validation" / "objects" / case.name).read_bytes() == case.read_bytes(), number
    found = [medunet.read_volume(path).array for path in (out / "validation" / "objects").iterdir()]
    pooled = scores["summary"]["objects"]["pooled"]
    assert len(found) == 4 and pooled["prediction"] + pooled["unjudged"] == sum(int(ids.max()) for ids in found)
    assert "parts of objects" in json.loads((out / "postprocessing.json").read_text())["reason"]
    assert load_model(out / "fold_0").card.postprocess == ()


def test_one_image_is_split_inside(tmp_path: Path) -> None:
    data, out = make_cells(tmp_path / "data", cases=1), tmp_path / "run"
    more = ["--set", "instances.target=border", "--set", "weight_map.kind=unet2015"]
    assert train_unplanned(data, out, *more) == 0
    scores = json.loads((out / "validation" / "scores.json").read_text())
    assert list(scores["labels"]) == ["cell"]
    # Objects are those of the held-out part, a fifth of the rows, but for the strip without annotation.
    fold = load_config(out / "config.yaml").config.data.fold
    first, last = (48 - round(48 * (fold + n) / 5) for n in (1, 0))
    ids, true = (
        medunet.read_volume(path).array[0, first:last, 2:].astype(int)
        for path in (out / "validation" / "objects" / "c0.tif", data / "labels" / "c0.tif")
    )
    counts, pooled = count_objects(ids, true), scores["summary"]["objects"]["pooled"]
    assert counts.reference > 0 and pooled["reference"] == counts.reference
    assert pooled["seg"] == pytest.approx(counts.seg)
    assert pooled["merged"] == counts.merged and pooled["missed"] == counts.missed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["weight_map.kind=unet2015"], "weight_map.kind is unet2015, but the label files of balls hold classes"),
        (["instances.target=border"], "instances.target is border, but the label files of balls hold classes"),
        (
            ["weight_map.kind=unet2015", "weight_map.parts_of=bright", "instances.target=separated"],
            "instances.target is separated, but",
        ),
    ],
)
def test_what_needs_objects_is_refused_for_classes(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_set(tmp_path / "data", shape=(20, 18), suffix=".png")
    (tmp_path / "c.yaml").write_text("network: {dimensions: 2}")
    sets = [item for setting in more for item in ("--set", setting)]
    assert train(tmp_path / "c.yaml", tmp_path / "run", *sets, "--set", f"data.path={data}") == 1
    said = capsys.readouterr().err
    assert message in said and '"label_kind": "instances"' in said
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("plain_runs")
def test_the_parts_of_a_class_are_objects_for_a_weight_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_set(tmp_path / "data", shape=(20, 18), suffix=".png")
    (tmp_path / "c.yaml").write_text("network: {dimensions: 2}\nweight_map: {kind: unet2015, parts_of: cell}")
    sets = ["--set", f"data.path={data}"]
    assert train(tmp_path / "c.yaml", tmp_path / "no", *sets) == 1
    said = capsys.readouterr().err
    assert "weight_map.parts_of is cell, but the label files of balls hold" in said and "name the class" in said
    assert train(tmp_path / "c.yaml", tmp_path / "run", *sets, "--set", "weight_map.parts_of=bright") == 0
    assert load_config(tmp_path / "run" / "config.yaml").config.weight_map.parts_of == "bright"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["loss.class_weights=balanced"], "weight_map.class_balance and loss.class_weights both weigh classes"),
        (["weight_map.sigma=-1"], "weight_map.sigma must be a positive number, found -1"),
        (["weight_map.sigma_unit=mm"], "weight_map.sigma_unit"),
        (["weight_map.width=3"], 'unknown key "weight_map.width"'),
    ],
)
def test_weight_maps_that_cannot_be_are_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_cells(tmp_path / "data", cases=2)
    sets = [item for setting in ["weight_map.kind=unet2015", *more] for item in ("--set", setting)]
    assert train_unplanned(data, tmp_path / "run", *sets) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("plain_runs")
def test_a_data_set_alone_is_enough_for_a_network_of_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The plan is that of our U-Net, the network the one that is asked for, with an output for each region."""
    data, out = make_cells(tmp_path / "data"), tmp_path / "run"
    small = ["--set", "network.architecture=segresnet", "--set", "network.features=8", "--set", "network.blocks=[1, 1]"]
    short = QUICK[QUICK.index("patches.size=[32, 32]") - 1 :]
    assert run(["train", str(data), "-o", str(out), *short, *small]) == 0
    assert "the network is segresnet, as asked" in capsys.readouterr().err
    config = load_config(out / "config.yaml").config
    assert config.network.architecture == "segresnet" and config.network.classes == 3
    assert config.network.dimensions == 2
