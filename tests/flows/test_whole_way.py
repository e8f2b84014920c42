"""The whole way through the command line: data set -> plan -> train -> predict -> evaluate, and what a run leaves."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import medunet
from medunet.cli import run
from medunet.config import load_config
from tests.flows.made import make_set
from tests.fresh import Fresh

pytestmark = pytest.mark.slow

SMALL = ["--set", "network.channels=[8, 16]", "--set", "patches.size=[16, 16, 16]", "--set", "training.minutes=null",
         "--set", "network.kernels=3", "--set", "network.strides=2",
         "--set", "optimiser.rate=0.01", "--device", "cpu"]  # fmt: skip


def steps(epochs: int, iterations: int) -> list[str]:
    return ["--set", f"training.epochs={epochs}", "--set", f"training.iterations={iterations}"]


def metrics(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_from_scans_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, config, out = make_set(tmp_path / "data"), tmp_path / "c.yaml", tmp_path / "run"
    assert run(["plan", str(data), "-o", str(config), "--minutes", "1"]) == 0
    assert "Expected here: " in capsys.readouterr().out
    assert run(["train", str(config), "-o", str(out), *SMALL, *steps(3, 30)]) == 0
    printed = capsys.readouterr()
    assert "mean Dice" in printed.out and "balls: 4 training cases, 1 held out" in printed.err
    for name in ("config.yaml", "model.safetensors", "last.ckpt", "metrics.csv", "report.html", "tensorboard"):
        assert (out / name).exists(), name
    assert "# " in (out / "config.yaml").read_text()
    assert load_config(out / "config.yaml").config.network.classes == 3
    rows = metrics(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and rows[-1]["step"] == "90"
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])

    scores = json.loads((out / "validation" / "scores.json").read_text())
    assert run(["predict", str(out), str(data / "images"), "-o", str(tmp_path / "p"), "--device", "cpu"]) == 0
    assert (
        run(["evaluate", str(tmp_path / "p"), str(data), "-o", str(tmp_path / "s"), "--json", str(tmp_path / "s.json")])
        == 0
    )
    again = json.loads((tmp_path / "s.json").read_text())
    assert again["summary"]["mean"]["dice"] > 0.8, "a network that saw these balls finds them"
    for case in (data / "images").iterdir():
        scan, result = medunet.read_volume(case), medunet.read_volume(tmp_path / "p" / case.name)
        assert result.shape == scan.shape and set(np.unique(result.array)) <= {0, 7, 32}
        np.testing.assert_array_equal(result.affine, scan.affine)
    assert scores["summary"]["mean"]["dice"] > 0.5
    events = list((out / "tensorboard").glob("events*"))
    assert events and _tags(events[0]) >= {
        "loss/epoch",
        "optimiser/learning rate",
        "validation/dice",
        "validation/worst 1",
    }


def _tags(path: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path.parent))
    found.Reload()
    tags = found.Tags()
    return set(tags["scalars"]) | set(tags["images"])


@pytest.mark.usefixtures("plain_runs")
def test_training_straight_from_a_data_set_and_evaluating_with_one_scan(tmp_path: Path) -> None:
    """Its last fifth is held out and scored: in RAS, so the first four stored rows of an LPS scan."""
    data, out = make_set(tmp_path / "one", cases=1), tmp_path / "run"
    label = medunet.read_volume(data / "labels" / "case_0.nii.gz")
    label.array[0, 1:3, 2:6, 3:5] = 7
    label.array[0, 0:2, 9:12, 8:9] = 32
    medunet.write_volume(label, data / "labels" / "case_0.nii.gz", overwrite=True)
    quick = ["--set", "training.minutes=null", *steps(1, 5)]
    assert run(["train", str(data), "-o", str(out), *quick, "--device", "cpu"]) == 0
    record = json.loads((out / "validation" / "scores.json").read_text())
    truth = medunet.read_volume(data / "labels" / "case_0.nii.gz").array[0, :4]
    scored = record["cases"]["case_0"]["labels"]
    for name, value in (("bright", 7), ("dark", 32)):
        expected = int((truth == value).sum())
        found = scored[name]["true_positives"] + scored[name]["false_negatives"]
        assert found == expected > 0


@pytest.mark.usefixtures("plain_runs")
def test_pictures(tmp_path: Path) -> None:
    data, out = make_set(tmp_path / "png", shape=(40, 36), suffix=".png"), tmp_path / "run"
    small = ["--set", "network.dimensions=2", "--set", "network.channels=[8, 16]", "--set", "patches.size=[32, 32]",
             "--set", f"data.path={data}", "--device", "cpu", *steps(2, 10)]  # fmt: skip
    (tmp_path / "c.yaml").write_text("")
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), *small]) == 0
    assert run(["predict", str(out), str(data / "images"), "-o", str(tmp_path / "p")]) == 0
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [f"case_{n}.png" for n in range(5)]


def final_weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_stopped_and_resumed_run_ends_like_the_unbroken_one(fresh: Fresh, tmp_path: Path) -> None:
    """Real signal, real processes; bit for bit, in the middle of an epoch."""
    data = make_set(tmp_path / "data", cases=2)
    (tmp_path / "c.yaml").write_text("")
    common = [*SMALL, *steps(2, 25), "--set", f"data.path={data}", "--set", "network.dropout=0.2"]
    train, whole, broken = ["train", str(tmp_path / "c.yaml")], tmp_path / "whole", tmp_path / "broken"
    assert fresh.medunet(*train, "-o", str(whole), *common, plain=True).wait().returncode == 0
    process = fresh.medunet(*train, "-o", str(broken), *common)
    events = broken / "tensorboard"
    while not (events.exists() and any(p.stat().st_size > 4000 for p in events.iterdir())) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stopped = process.wait()
    assert stopped.returncode == 143, stopped.stderr
    assert "--resume" in stopped.stdout and not (broken / "report.html").exists()
    resumed = fresh.medunet(*train, "-o", str(broken), "--resume", plain=True).wait()
    assert resumed.returncode == 0, resumed.stderr
    expected, found = final_weights(whole), final_weights(broken)
    assert all((expected[name] == found[name]).all() for name in expected)
    assert [(row["epoch"], row["step"]) for row in metrics(broken)] == [("1", "25"), ("2", "50")]


@pytest.mark.usefixtures("plain_runs")
def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", cases=3)
    (tmp_path / "c.yaml").write_text("")
    for workers in (0, 2):
        extra = ["--set", f"data.path={data}", "--set", f"training.workers={workers}", *steps(1, 6)]
        assert run(["train", str(tmp_path / "c.yaml"), "-o", str(tmp_path / f"w{workers}"), *SMALL, *extra]) == 0
    first, second = final_weights(tmp_path / "w0"), final_weights(tmp_path / "w2")
    assert all((first[name] == second[name]).all() for name in first)
