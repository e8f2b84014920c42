"""A run that was stopped by a real signal and gone on with leaves all that the unbroken one leaves."""

from __future__ import annotations

import csv
import os
import signal
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import medunet.learning.loop
import medunet.training.epochs
from medunet.cli import run
from medunet.model import load_model
from tests.flows.made import make_set

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]

EPOCHS, ITERATIONS = 3, 3
TINY = ["--set", "network.channels=[4, 8]", "--set", "patches.size=[8, 8, 8]", "--set", "network.dropout=0.2",
        "--set", f"training.epochs={EPOCHS}", "--set", f"training.iterations={ITERATIONS}",
        "--set", "training.validation_share=0.5", "--set", "optimiser.rate=0.02", "--device", "cpu"]  # fmt: skip

CLOCK = {"minutes", "seconds_per_iteration", "patches_per_second", "waiting_share"}
"""Columns of metrics.csv that tell the time."""


@cache
def world(base: Path) -> tuple[Path, dict[str, object]]:
    """The data, and what the run that was never broken left; without workers, as their number changes nothing."""
    data = make_set(base / "data", cases=3, shape=(12, 11, 10))
    (base / "c.yaml").write_text(
        "augment: {monai: [{name: RandGaussianNoised, prob: 0.5}, {name: RandAffined, prob: 0.5, rotate_range: 0.4}]}"
    )
    assert start(base, base / "whole", data) == 0
    return data, left_by(base / "whole")


def start(base: Path, out: Path, data: Path, *more: str) -> int:
    return run(["train", str(base / "c.yaml"), "-o", str(out), *TINY, "--set", f"data.path={data}", *more])


def left_by(folder: Path) -> dict[str, object]:
    """What a run left that does not tell the time."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    content.pop("elapsed")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        model = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
    record = {k: v for k, v in load_model(folder).card.record.items() if k != "minutes"}
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]
    return {"checkpoint": plain(content), "model": model, "record": record, "metrics": rows}


def plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else repr(value)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture
def signal_after(monkeypatch: pytest.MonkeyPatch) -> object:
    """SIGTERM, sent to this process by itself right after the given optimiser step."""
    real = medunet.learning.loop.train_step

    def after(step: int) -> None:
        def stepped(state, batch, recipe, progress):  # type: ignore[no-untyped-def]
            facts = real(state, batch, recipe, progress)
            if state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return facts

        monkeypatch.setattr(medunet.learning.loop, "train_step", stepped)

    return after


@given(stop=st.integers(1, EPOCHS * ITERATIONS), workers=st.sampled_from([0, 2]))
@example(stop=EPOCHS * ITERATIONS, workers=0)
@example(stop=ITERATIONS, workers=2)
@settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_weights_averages_optimiser_losses_scores_and_the_best_model_are_those_of_the_unbroken_run(
    base: Path, signal_after, tmp_path_factory: pytest.TempPathFactory, stop: int, workers: int
) -> None:
    data, expected = world(base)
    out = tmp_path_factory.mktemp("broken") / "run"
    signal_after(stop)
    assert start(base, out, data, "--set", f"training.workers={workers}") == 143
    assert load_model(out).card.name == "balls", "the model so far is usable"
    signal_after(0)
    assert run(["train", "-o", str(out), "--resume", "--device", "cpu"]) == 0
    assert left_by(out) == expected


def test_a_validation_that_is_cut_off_is_made_up_for(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C, or a crash, while the scans are predicted at the end of an epoch."""
    data, expected = world(base)
    real, calls = medunet.training.epochs.validate, []

    def cut_off(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(medunet.training.epochs, "validate", cut_off)
    assert start(base, tmp_path / "run", data) == 130
    assert run(["train", "-o", str(tmp_path / "run"), "--resume", "--device", "cpu"]) == 0
    assert left_by(tmp_path / "run") == expected


def test_a_finished_run_goes_on_for_more_epochs_with_the_rate_it_had(base: Path, tmp_path: Path) -> None:
    data, _ = world(base)
    out = tmp_path / "run"
    assert start(base, out, data) == 0
    ended = torch.load(out / "last.ckpt", weights_only=True)["rate"]
    assert run(["train", "-o", str(out), "--resume", "--set", "training.epochs=4", "--device", "cpu"]) == 0
    point = torch.load(out / "last.ckpt", weights_only=True)["notes"]["joint"]
    assert point == [EPOCHS / 4, ended]


def test_a_longer_run_that_is_stopped_again_keeps_its_learning_rates(base: Path, tmp_path: Path, signal_after) -> None:
    data, _ = world(base)
    folders = tmp_path / "once", tmp_path / "twice"
    for out in folders:
        assert start(base, out, data) == 0
    longer = ["--resume", "--set", f"training.epochs={EPOCHS + 2}", "--device", "cpu"]
    assert run(["train", "-o", str(folders[0]), *longer]) == 0
    signal_after(EPOCHS * ITERATIONS + 2)
    assert run(["train", "-o", str(folders[1]), *longer]) == 143
    signal_after(0)
    assert run(["train", "-o", str(folders[1]), "--resume", "--device", "cpu"]) == 0
    assert left_by(folders[0]) == left_by(folders[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--set", "training.epochs=2"], "training.epochs is 2, but this run has done 3 already"),
        (["--minutes", "0.0001"], "training.minutes is 0.0001, but this run has taken"),
        (["--set", "training.seed=7"], "seed was 0, is 7"),
        (["--set", "patches.batch=3"], "patches.batch was 2, is 3"),
    ],
)
def test_what_a_resume_cannot_do_is_said_and_nothing_is_touched(
    base: Path, capsys: pytest.CaptureFixture[str], change: list[str], words: str
) -> None:
    world(base)
    files = sorted(p for p in (base / "whole").rglob("*") if p.is_file())
    before = [p.read_bytes() for p in files]
    capsys.readouterr()
    assert run(["train", "-o", str(base / "whole"), "--resume", "--device", "cpu", *change]) == 1
    assert words in capsys.readouterr().err
    assert [p.read_bytes() for p in files] == before and sorted(
        p for p in (base / "whole").rglob("*") if p.is_file()
    ) == files


def test_no_number_in_a_scan_stops_the_run_and_the_state_before_is_kept(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of step 4 is NaN; gone on with after the cause is gone, the run ends like any other."""
    data, expected = world(base)
    real, wrong = medunet.learning.loop.train_step, []

    def spoilt(state, batch, recipe, progress):  # type: ignore[no-untyped-def]
        if state.step == 4 and not wrong:
            wrong.append(batch.cases)
            batch.image.fill_(torch.nan)
        return real(state, batch, recipe, progress)

    monkeypatch.setattr(medunet.learning.loop, "train_step", spoilt)
    out = tmp_path / "run"
    assert start(base, out, data) == 1
    error = capsys.readouterr().err
    assert f"the loss became nan at step 4 with the cases {', '.join(wrong[0])}" in error and "--resume" in error
    assert len([line for line in error.splitlines() if line.startswith("medunet: error")]) == 1
    assert run(["train", "-o", str(out), "--resume", "--device", "cpu"]) == 0
    assert left_by(out) == expected


def test_only_a_resume_goes_without_a_config_and_without_a_model_to_start_with(tmp_path: Path) -> None:
    assert run(["train", "-o", str(tmp_path / "run")]) == 2
    assert run(["train", "-o", str(tmp_path / "run"), "--resume", "--init", "model"]) == 2
    assert run(["train", "-o", str(tmp_path / "run"), "--resume"]) == 1
