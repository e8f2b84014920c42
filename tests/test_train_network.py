"""What a training must never do: delete foreign files, leak held-out cases, leave half a run behind."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import medunet
import medunet.train_network
from medunet.cli import run
from medunet.config import load_config
from medunet.datasets.labels import table_from_names
from medunet.training.finish import widened
from tests.flows.made import make_set, running_plainly

pytestmark = pytest.mark.usefixtures("plain_runs")

TINY = ["--set", "network.channels=[4, 8]", "--set", "patches.size=[8, 8, 8]", "--set", "network.kernels=3",
        "--set", "network.strides=2", "--set", "training.epochs=1", "--set", "training.iterations=2",
        "--set", "training.minutes=null", "--device", "cpu"]  # fmt: skip


def train(data: Path, out: Path, *more: str) -> int:
    config = out.parent / "c.yaml"
    config.write_text("")
    return run(["train", str(config), "-o", str(out), *TINY, "--set", f"data.path={data}", *more])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_set(tmp_path / "data", cases=4, shape=(10, 9, 8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and a finished run of it, with the config beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_set(folder / "data", cases=4, shape=(10, 9, 8))
    with running_plainly():
        assert train(data, folder / "run") == 0
    return data, folder / "run"


@pytest.fixture
def copied(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished run that can be changed, with the config beside it."""
    shutil.copytree(trained[1], tmp_path / "run")
    shutil.copy(trained[1].parent / "c.yaml", tmp_path)
    return tmp_path / "run"


@pytest.mark.parametrize("arguments", [[], ["--overwrite"]])
def test_a_folder_with_foreign_files_is_left_alone(data: Path, tmp_path: Path, arguments: list[str]) -> None:
    precious = tmp_path / "project" / "validation" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    assert train(data, tmp_path / "project", *arguments) == 1
    assert precious.read_text() == "mine" and len(list((tmp_path / "project").iterdir())) == 1


@pytest.mark.slow
def test_overwriting_replaces_a_run_and_keeps_what_is_not_of_it(trained: tuple[Path, Path], copied: Path) -> None:
    data, out = trained[0], copied
    (out / "notes.txt").write_text("mine")
    before = (out / "model.safetensors").read_bytes()
    assert train(data, out) == 1
    assert train(data, out, "--overwrite", "--set", "training.seed=5") == 0
    assert (out / "notes.txt").exists() and (out / "model.safetensors").read_bytes() != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--set", "loss.class_weights=[1, 2]"], "weights"),
        (["--set", "patches.size=[2, 2, 2]", "--set", "patches.batch=1"], "one voxel in the deepest level"),
        (["--set", "patches.size=[9, 8, 8]"], "nearest legal patch is [10, 8, 8]"),
        (["--set", "training.workers=-1"], "must not be negative"),
        (["--set", "preprocess.spacing=[1, 1]"], "has 2 numbers"),
    ],
)
def test_what_is_wrong_is_said_before_an_old_run_is_touched(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    data, out = trained
    assert train(data, tmp_path / "run", *wrong) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
    files = sorted(p for p in out.rglob("*") if p.is_file())
    before = [p.read_bytes() for p in files]
    assert train(data, out, "--overwrite", *wrong) == 1
    assert sorted(p for p in out.rglob("*") if p.is_file()) == files
    assert [p.read_bytes() for p in files] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--fold", "1"], "held_out"),
        (["--set", "network.channels=[4, 12]"], "network"),
        (["--set", "optimiser.kind=sgd"], "optimiser"),
        (["--set", "training.ema=0"], "averaged"),
    ],
)
def test_a_resume_that_is_another_run_is_refused(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str], change: list[str], named: str
) -> None:
    out = trained[1]
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert run(["train", str(out.parent / "c.yaml"), "-o", str(out), "--resume", *change]) == 1
    assert before == {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert "cannot be resumed, because" in (error := capsys.readouterr().err) and named in error


@pytest.mark.slow
def test_more_epochs_can_be_asked_for_and_are_written_down(copied: Path) -> None:
    out = copied
    assert run(["train", str(out.parent / "c.yaml"), "-o", str(out), "--resume", "--set", "training.epochs=3"]) == 0
    assert load_config(out / "config.yaml").config.training.epochs == 3
    assert len((out / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_a_best_model_is_scored_anew_where_another_score_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: bool
) -> None:
    """Also where the checkpoint, of an older version, does not say by what it was the best."""
    data, out = make_set(tmp_path / "data", cases=4, shape=(10, 9, 8)), tmp_path / "run"
    assert train(data, out, "--set", "data.folds=2") == 0
    content = torch.load(out / "last.ckpt", weights_only=True)
    assert content["notes"].pop("scored", ["dice", 2]) == ["dice", 2]
    if old:
        torch.save(content, out / "last.ckpt")
    # No step is worth anything, so that the first model stays the best.
    more = ["--set", "training.epochs=2", "--set", "optimiser.rate=1e-12", "--set", "training.score=iou"]
    again = ["train", str(tmp_path / "c.yaml"), "-o", str(out), "--resume", "--device", "cpu"]
    assert run([*again, *more]) == 0
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    said = f"the best so far has {float(rows[0]['validation_iou']):.4f} (was {content['best']:.4f})"
    assert f"compared by iou of 2 held-out cases, no longer by dice of 2: {said}" in capsys.readouterr().err
    best = torch.load(out / "last.ckpt", weights_only=True)
    assert best["best"] == pytest.approx(max(float(row["validation_iou"]) for row in rows))
    assert best["notes"]["scored"] == ["iou", 2]
    assert run([*again, "--set", "training.epochs=3"]) == 0
    assert "models are compared by" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "weights", "informed"), [(4, "null", True), (4, "balanced", False), (3, "null", False)]
)
def test_a_training_of_many_classes_starts_with_them_as_frequent_as_they_are(
    data: Path, tmp_path: Path, labels: int, weights: str, informed: bool
) -> None:
    """Unless the loss weighs them: then none is rarer to it than another."""
    names = {"background": 0, "bright": 7, "dark": 32, "never": 99}
    declared = {"name": "balls", "channels": ["X"], "labels": dict(list(names.items())[:labels])}
    (data / "dataset.json").write_text(json.dumps(declared))
    small = ["--set", "training.iterations=1", "--set", "optimiser.rate=1e-9", "--set", f"loss.class_weights={weights}"]
    assert train(data, tmp_path / "run", *small) == 0
    held = {path.name for path in (tmp_path / "run" / "validation").glob("*.nii.gz")}
    learned = [medunet.read_volume(path).array for path in (data / "labels").iterdir() if path.name not in held]
    counts = np.array([sum(int((label == value).sum()) for label in learned) for value in (0, 7, 32)])
    bias = medunet.load_model(tmp_path / "run").network.heads[0].bias.detach().softmax(0).double()
    expected = torch.tensor([*counts / counts.sum(), 1e-3] if informed else [1.0] * labels, dtype=torch.float64)
    torch.testing.assert_close(bias, expected / expected.sum(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_an_interrupt_while_data_is_read_touches_nothing(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = trained
    before = (out / "model.safetensors").read_bytes()
    real = medunet.train_network.prepare_cases

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(medunet.train_network, "prepare_cases", interrupted)
    before_it = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        assert train(data, out, "--overwrite") == 130
        assert train(data, tmp_path / "new") == 130
    finally:
        signal.signal(signal.SIGINT, before_it)
    assert (out / "model.safetensors").read_bytes() == before and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_bare_tiff_stacks_train_once_their_axes_are_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for name in "ab":
        for place, array in (
            ("images", random.integers(0, 200, (8, 9, 10))),
            ("labels", random.integers(0, 2, (8, 9, 10))),
        ):
            path = tmp_path / "data" / place / f"{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, array.astype(np.uint8), metadata=None)
    assert train(tmp_path / "data", tmp_path / "run") == 1
    assert "--axes ZYX" in capsys.readouterr().err
    assert run(["plan", str(tmp_path / "data"), "-o", str(tmp_path / "p.yaml"), "--axes", "ZYX", "--minutes", "1"]) == 0
    assert run(["inspect", str(tmp_path / "data"), "--axes", "ZYX"]) == 0
    assert train(tmp_path / "data", tmp_path / "run", "--set", "data.axes=ZYX") == 0
    inputs = str(tmp_path / "data" / "images")
    assert run(["predict", str(tmp_path / "run"), inputs, "-o", str(tmp_path / "p"), "--axes", "ZYX"]) == 0
    assert medunet.read_volume(tmp_path / "p" / "a.tif").shape == (10, 9, 8)
    assert run(["evaluate", str(tmp_path / "p"), str(tmp_path / "data"), "--axes", "ZYX"]) == 0


def test_cases_with_other_channels_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = medunet.read_volume(data / "images" / "case_2.nii.gz")
    two = medunet.Volume(np.concatenate([volume.array, volume.array]), volume.affine)
    medunet.write_volume(two, data / "images" / "case_2.nii.gz", overwrite=True)
    assert train(data, tmp_path / "run") == 1
    assert "case_2: has 2 channel(s) and 3 dimensions, case_0 has 1 and 3" in capsys.readouterr().err


@pytest.mark.slow
def test_object_ids_of_a_single_scan_are_all_scored(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", cases=1, shape=(20, 9, 8))
    label = medunet.read_volume(data / "labels" / "case_0.nii.gz")
    label.array[:] = 0
    for number in range(3):
        label.array[0, 0:3, 3 * number : 3 * number + 2, 1:4] = number + 1
    medunet.write_volume(label, data / "labels" / "case_0.nii.gz", overwrite=True)
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "cell": 1}, "label_kind": "instances"}))
    assert train(data, tmp_path / "run") == 0
    scores = json.loads((tmp_path / "run" / "validation" / "scores.json").read_text())
    (cell,) = scores["cases"]["case_0"]["labels"].values()
    assert cell["true_positives"] + cell["false_negatives"] == 3 * 3 * 2 * 3


def test_widened_tables_find_a_free_value() -> None:
    assert widened(table_from_names({"background": 0, "a": 1, "b": 3}, None)).ignore == 2
    assert widened(table_from_names({"background": 0, "a": 1}, 9)).ignore == 9
    of_ids = widened(table_from_names({"background": 0, "a": 1}, 7, "instances"))
    assert of_ids.kind == "instances" and of_ids.ignore == 2**32  # no id of 32 bits


@pytest.mark.slow
def test_a_training_gives_the_same_bits_with_the_cache_cold_warm_and_off_in_memory_and_mapped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    off, cache = ["--set", "data.cache=null"], ["--set", f"data.cache={tmp_path / 'cache'}"]
    assert train(data, tmp_path / "off", *off) == 0
    assert "from the cache" not in capsys.readouterr().err
    assert train(data, tmp_path / "cold", *cache) == 0
    assert f"prepared cases: 0 of 4 from the cache, {tmp_path / 'cache'}" in capsys.readouterr().err
    monkeypatch.setattr(medunet.train_network, "free_memory", lambda device: 0)
    assert train(data, tmp_path / "mapped", *off) == 0
    assert train(data, tmp_path / "warm", *cache, "--set", "data.fold=0") == 0
    assert f"prepared cases: 4 of 4 from the cache, {tmp_path / 'cache'}" in capsys.readouterr().err
    from safetensors.torch import load_file

    runs = [tmp_path / name for name in ("off", "cold", "mapped", "warm")]
    assert [run_ for run_ in runs if (run_ / "preprocessed").exists()] == []
    weights = [load_file(run_ / "model.safetensors") for run_ in runs]
    assert all((other[key] == weights[0][key]).all() for other in weights[1:] for key in weights[0])


@pytest.mark.slow
def test_tensorboard_of_a_resumed_run_has_each_step_once_and_the_last_end(data: Path, tmp_path: Path) -> None:
    """As TensorBoard's own server reads it."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    out = tmp_path / "run"
    assert train(data, out, "--set", "training.epochs=2") == 0
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), "--resume", "--set", "training.epochs=4"]) == 0
    events = EventAccumulator(str(out / "tensorboard"), {"tensors": 0})
    events.Reload()
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert steps["loss/step"] == steps["optimiser/learning rate"] == list(range(1, 9))
    assert steps["loss/dice"] == steps["loss/cross_entropy"] == steps["loss/epoch"] == [2, 4, 6, 8]
    assert steps["loss/epoch"] == steps["speed/patches per second"] == steps["speed/waiting share"] == [2, 4, 6, 8]
    assert steps["config/text_summary"] == [0, 4]
    assert steps["validation/worst 1"] == steps["validation/dice"] == sorted(set(steps["validation/dice"]))
    assert steps["final/Dice"] == steps["final scores/text_summary"] == [8]
    found = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["length"].string_value == "4 x 2 steps"
    assert not [path for path in (out / "tensorboard").iterdir() if path.is_dir()]
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 4 and "patches_per_second" in rows[0]
    for row in rows:
        terms = float(row["loss:dice"]), float(row["loss:cross_entropy"])
        assert min(terms) > 0 and sum(terms) == pytest.approx(float(row["loss"]), rel=1e-5)


@pytest.mark.slow
def test_a_run_without_held_out_cases_has_a_model_and_no_scores(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "run", "--fold", "none") == 0
    assert "no case was held out (data.folds is 0), so there are no validation scores" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").exists() and not (tmp_path / "run" / "validation").exists()
