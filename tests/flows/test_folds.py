"""`train --fold all` through the command line: folds, out-of-fold scores, post-processing, one ensemble, resuming."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import medunet
import medunet.crossvalidate
from medunet.cli import run
from medunet.config import load_config
from medunet.errors import ModelError
from medunet.metrics.overlap import count_overlap
from medunet.model import load_model, load_models, save_model
from medunet.prediction.planning import PredictSettings
from medunet.training.run_folder import TrainRequest
from medunet.transforms.postprocess import PostStep
from tests.flows.made import make_set, running_plainly
from tests.fresh import Fresh

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]

SMALL = ["--set", "network.channels=[8, 16]", "--set", "patches.size=[16, 16, 16]", "--set", "training.minutes=null",
         "--set", "network.kernels=3", "--set", "network.strides=2", "--set", "optimiser.rate=0.01",
         "--set", "training.epochs=1", "--set", "training.iterations=15", "--device", "cpu"]  # fmt: skip


def train(data: Path, out: Path, *more: str) -> int:
    config = out.parent / "c.yaml"
    config.write_text("")
    return run(["train", str(config), "-o", str(out), "--fold", "all", *SMALL, "--set", f"data.path={data}", *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and its finished cross-validation of three folds; not to be changed."""
    folder = tmp_path_factory.mktemp("folds")
    data = make_set(folder / "data", cases=5, shape=(16, 14, 12))
    with running_plainly():
        assert train(data, folder / "run", "--set", "data.folds=3") == 0
    return data, folder / "run"


@pytest.fixture
def copied(done: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(done[1], tmp_path / "run")
    return tmp_path / "run"


def dice(prediction: Path, reference: Path, value: int) -> float:
    one, two = (medunet.read_volume(path).array == value for path in (prediction, reference))
    return count_overlap(one, two).dice


def test_every_case_is_predicted_by_the_fold_that_did_not_learn_from_it(done: tuple[Path, Path]) -> None:
    data, out = done
    splits = json.loads((out / "splits.json").read_text())["folds"]
    assert sorted(name for fold in splits for name in fold["held_out"]) == [f"case_{n}" for n in range(5)]
    scores = json.loads((out / "validation" / "scores.json").read_text())
    assert sorted(scores["cases"]) == [f"case_{n}" for n in range(5)]
    plain = PredictSettings(postprocess=False)
    for number, fold in enumerate(splits):
        config = load_config(out / f"fold_{number}" / "config.yaml").config
        assert config.data.fold == number and config == replace(
            load_config(out / "config.yaml").config, data=config.data
        )
        for name in fold["held_out"]:
            # Predicted anew by that fold alone: the very same labels.
            model = load_model(out / f"fold_{number}")
            again = medunet.segment_volume(medunet.read_volume(data / "images" / f"{name}.nii.gz"), model, plain)
            kept = medunet.read_volume(out / "validation" / f"{name}.nii.gz")
            np.testing.assert_array_equal(again.array, kept.array)
            found = scores["cases"][name]["labels"]["bright"]["dice"]
            file = out / "validation" / f"{name}.nii.gz"
            assert found == pytest.approx(dice(file, data / "labels" / f"{name}.nii.gz", 7))
    rows = list(csv.DictReader((out / "validation" / "scores.csv").read_text().splitlines()))
    assert len(rows) == 2 * 5 and (out / "report.html").exists()


def test_the_folder_of_folds_is_one_model(done: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = done
    models = load_models(out)
    assert [model.path for model in models] == [out / f"fold_{n}" / "model.safetensors" for n in range(3)]
    assert run(["predict", str(out), str(data / "images"), "-o", str(tmp_path / "p"), "--device", "cpu"]) == 0
    volume = medunet.read_volume(data / "images" / "case_3.nii.gz")
    expected = medunet.segment_volume(volume, models)
    np.testing.assert_array_equal(medunet.read_volume(tmp_path / "p" / "case_3.nii.gz").array, expected.array)


def test_other_folders_in_it_are_no_members_and_missing_folds_are_said(copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied / "fold_0", copied / "old_fold")
    shutil.copytree(copied / "fold_0", copied / "fold_7")
    assert len(load_models(copied)) == 3
    (copied / "fold_1" / "report.html").unlink()
    with pytest.raises(ModelError, match=r"fold_1 of 3 folds is not finished") as error:
        load_models(copied)
    assert "--fold all --resume" in str(error.value) and str(copied / "fold_0") in str(error.value)
    assert len(load_models(copied / "fold_1")) == 1, "a single fold can still be asked for"


def test_a_model_with_postprocessing_applies_it_and_can_be_told_not_to(
    done: tuple[Path, Path], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(done[0] / "images" / "case_0.nii.gz")
    steps = (PostStep("remove_small", "bright", 1e6, "mm"),)
    for number in range(3):
        path = copied / f"fold_{number}" / "model.safetensors"
        model = load_model(path)
        save_model(path, model.network.state_dict(), replace(model.card, postprocess=steps))
        assert load_model(path).card.postprocess == steps
    for name, more in (("with", []), ("without", ["--no-postprocess"])):
        record = ["--record", str(tmp_path / f"{name}.json"), *more]
        assert run(["predict", str(copied), image, "-o", str(tmp_path / f"{name}.nii.gz"), *record]) == 0
    assert "remove components of bright below 1e+06 mm³" in capsys.readouterr().err
    everything = tmp_path / "all.nii.gz"
    model = load_model(copied / "fold_0")
    nothing = tuple(PostStep("remove_small", name, 1e6, "mm") for name in ("bright", "dark"))
    single = tmp_path / "single.safetensors"
    save_model(single, model.network.state_dict(), replace(model.card, postprocess=nothing))
    assert run(["predict", str(single), image, "-o", str(everything)]) == 0
    assert "NOTE: nothing but background was found" in capsys.readouterr().out
    one, two = (medunet.read_volume(tmp_path / f"{name}.nii.gz").array for name in ("with", "without"))
    assert (two == 7).any() and not (one == 7).any()
    np.testing.assert_array_equal(one, np.where(two == 7, 0, two))
    record = json.loads((tmp_path / "with.json").read_text())
    assert record["postprocess"] == [{"action": "remove_small", "label": "bright", "size": 1e6, "unit": "mm"}]
    (changed,) = record["cases"][0]["postprocessed_voxels"].values()
    assert changed == np.count_nonzero(two == 7)
    assert json.loads((tmp_path / "without.json").read_text())["postprocess"] == []
    in_memory = medunet.segment_volume(medunet.read_volume(Path(image)), load_models(copied))
    np.testing.assert_array_equal(in_memory.array, one)

    path = copied / "fold_2" / "model.safetensors"
    model = load_model(path)
    save_model(path, model.network.state_dict(), replace(model.card, postprocess=()))
    assert run(["predict", str(copied), image, "-o", str(tmp_path / "x.nii.gz")]) == 1
    assert "differ in their post-processing; say --no-postprocess" in capsys.readouterr().err
    assert run(["predict", str(copied), image, "-o", str(tmp_path / "x.nii.gz"), "--no-postprocess"]) == 0


def test_postprocessing_that_helps_reaches_every_fold_and_predict(done: tuple[Path, Path], copied: Path) -> None:
    """Islands are drawn into the folds' predictions, as a worse network would have them."""
    splits = json.loads((copied / "splits.json").read_text())["folds"]
    for number, fold in enumerate(splits):
        for name in fold["held_out"]:
            file = copied / f"fold_{number}" / "validation" / f"{name}.nii.gz"
            drawn = medunet.read_volume(done[0] / "labels" / f"{name}.nii.gz")
            drawn.array[0, ::15, ::13, ::11] = np.where(
                drawn.array[0, ::15, ::13, ::11] == 0, 7, drawn.array[0, ::15, ::13, ::11]
            )
            medunet.write_volume(drawn, file, overwrite=True)
    config = copied / "config.yaml"
    assert run(["train", str(config), "-o", str(copied), "--fold", "all", "--resume", "--device", "cpu"]) == 0
    record = json.loads((copied / "postprocessing.json").read_text())
    (step,) = record["steps"]
    assert step["action"] == "keep_largest" and step["label"] in ("bright", None)
    assert record["dice_after"]["bright"] > record["dice_before"]["bright"] + 0.001
    assert record["dice_after"]["dark"] == record["dice_before"]["dark"] == 1
    assert all(model.card.postprocess == (PostStep(**step),) for model in load_models(copied))
    scores = json.loads((copied / "validation" / "scores.json").read_text())
    means = {label: scores["labels"][label]["statistics"]["dice"]["mean"] for label in ("bright", "dark")}
    assert means["bright"] == pytest.approx(record["dice_before"]["bright"], abs=1e-5), "the scores are without it"


def test_a_finished_one_is_left_as_it_is_and_more_epochs_go_on(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["train", str(copied / "config.yaml"), "-o", str(copied), "--fold", "all", "--resume", "--device", "cpu"]
    before = [(copied / f"fold_{n}" / "model.safetensors").read_bytes() for n in range(3)]
    assert run(again) == 0
    assert capsys.readouterr().err.count("is finished") == 3
    assert before == [(copied / f"fold_{n}" / "model.safetensors").read_bytes() for n in range(3)]
    for _ in range(2):
        assert run([*again, "--set", "training.epochs=2"]) == 0
    assert capsys.readouterr().err.count("is finished") == 3, "the second time there was nothing to do"
    for number in range(3):
        rows = list(csv.DictReader((copied / f"fold_{number}" / "metrics.csv").read_text().splitlines()))
        assert [row["step"] for row in rows] == ["15", "30"]
    assert load_config(copied / "config.yaml").config.training.epochs == 2


STOPPED = """
import os, signal
import medunet.learning.loop as loop
from medunet.cli import main
from tests.flows.made import running_plainly

real, steps = loop.train_step, []

def train_step(*given):
    facts = real(*given)
    steps.append(facts)
    if len(steps) == 8:
        os.kill(os.getpid(), signal.SIGTERM)
    return facts

loop.train_step = train_step
with running_plainly():
    main()
"""


def test_a_stopped_one_goes_on_with_the_fold_under_way(fresh: Fresh, tmp_path: Path) -> None:
    """A real signal in the second fold, real processes; the end is that of an unbroken one, bit for bit."""
    data = make_set(tmp_path / "data", cases=4, shape=(16, 14, 12))
    (tmp_path / "c.yaml").write_text("")
    more = ["--set", "data.folds=2", "--set", f"data.path={data}", "--set", "training.iterations=5"]
    command = ["train", str(tmp_path / "c.yaml"), "--fold", "all"]
    broken = tmp_path / "broken"
    stopped = fresh.run(STOPPED, *command, "-o", str(broken), *SMALL, *more)
    assert stopped.returncode == 143, stopped.stderr
    assert "1 of 2 folds are finished; go on with: medunet train" in stopped.stdout
    assert "--fold all --resume" in stopped.stdout
    assert torch.load(broken / "fold_1" / "last.ckpt", weights_only=True)["step"] == 3
    assert not (broken / "validation").exists() and not (broken / "fold_1" / "report.html").exists()
    first = (broken / "fold_0" / "last.ckpt").read_bytes()
    resumed = fresh.medunet(*command, "-o", str(broken), "--resume", "--device", "cpu", plain=True).wait()
    assert resumed.returncode == 0, resumed.stderr
    assert "fold 0 of 2: is finished" in resumed.stderr and "fold 1 of 2: goes on" in resumed.stderr
    assert (broken / "fold_0" / "last.ckpt").read_bytes() == first
    whole = fresh.medunet(*command, "-o", str(tmp_path / "whole"), *SMALL, *more, plain=True).wait()
    assert whole.returncode == 0, whole.stderr
    for number in range(2):
        one, two = (load_model(tmp_path / name / f"fold_{number}").network.state_dict() for name in ("broken", "whole"))
        assert all((one[key] == two[key]).all() for key in one)


def test_an_interrupt_between_trainings_says_how_to_go_on(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(medunet.crossvalidate, "compare_predictions", interrupted)
    assert run(["train", str(copied / "config.yaml"), "-o", str(copied), "--fold", "all", "--resume"]) == 130
    assert f"go on with: medunet train {copied / 'config.yaml'} -o {copied} --fold all --resume" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "data.seed=3"], "because fold 0 would also hold out"),
        (["--set", "data.folds=2"], "because fold 0 would also hold out"),
        (["--set", "data.patient_pattern='^(case)_'"], "all 5 cases are of one patient, case"),
        (["--set", "network.channels=[4, 12]"], "cannot be resumed, because since it was stopped network.channels was"),
        (["--set", "data.folds=0"], "data.folds is 0"),
        (["--set", "training.minutes=0.001"], "fold_0: training.minutes is 0.001, but this run has taken"),
    ],
)
def test_a_resume_that_is_another_cross_validation_is_refused_and_changes_nothing(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    out = done[1]
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert run(["train", str(out / "config.yaml"), "-o", str(out), "--fold", "all", "--resume", *change]) == 1
    assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_fold_goes_on_with_the_checkpoint_that_is_left_and_a_model_without_one_is_kept(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["train", str(copied / "config.yaml"), "-o", str(copied), "--fold", "all", "--resume", "--device", "cpu"]
    asked = []

    def interrupted(request: TrainRequest) -> object:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(medunet.crossvalidate, "train_run", interrupted)
    (copied / "fold_1" / "last.ckpt").unlink()
    (copied / "fold_1" / "report.html").unlink()
    assert run(again) == 130 and asked[0].resume and not asked[0].overwrite
    assert "fold 1 of 3: goes on" in capsys.readouterr().err
    (copied / "fold_1" / "last.previous.ckpt").unlink()
    before = contents(copied)
    assert run(again) == 1 and contents(copied) == before
    assert "fold_1: holds a model, but no last.ckpt" in capsys.readouterr().err


def test_a_cross_validation_is_not_taken_for_a_run_nor_a_run_for_one(
    done: tuple[Path, Path], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = done[0], str(copied / "config.yaml")
    assert run(["train", config, "-o", str(copied), "--fold", "all"]) == 1
    assert "holds a run already" in capsys.readouterr().err
    for more in (["--resume"], ["--overwrite"], ["--overwrite", "--fold", "1"]):
        assert run(["train", config, "-o", str(copied), *more]) == 1
        assert "holds a cross-validation" in capsys.readouterr().err
    assert run(["train", config, "-o", str(copied / "fold_0"), "--fold", "all", "--resume"]) == 1
    assert "holds a single run" in capsys.readouterr().err
    precious = tmp_path / "mine" / "fold_0" / "notes.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    assert train(data, tmp_path / "mine", "--overwrite") == 1
    assert "holds fold_0, but no cross-validation" in capsys.readouterr().err and precious.read_text() == "mine"


def test_overwriting_leaves_no_old_fold_and_what_is_wrong_is_said_before(
    done: tuple[Path, Path], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "fold_2" / "notes.txt").write_text("mine")
    old = (copied / "fold_0" / "model.safetensors").read_bytes()
    assert train(done[0], copied, "--overwrite", "--set", "loss.class_weights=[1, 2]") == 1
    assert (copied / "fold_0" / "model.safetensors").read_bytes() == old
    assert train(done[0], copied, "--overwrite", "--set", "data.folds=2", "--set", "training.iterations=2") == 0
    assert [path.name for path in (copied / "fold_2").iterdir()] == ["notes.txt"]
    assert len(load_models(copied)) == 2


def test_only_a_cross_validation_is_replaced_and_only_its_own_folds(
    done: tuple[Path, Path], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    (mine / "fold_x" / "validation").mkdir(parents=True)
    (mine / "fold_x" / "validation" / "precious.txt").write_text("mine")
    (mine / "fold_x" / "config.yaml").write_text("mine: 1")
    (mine / "splits.json").write_text('[{"train": ["my own"], "val": ["splits"]}]')
    before = contents(mine)
    assert train(done[0], mine) == 1
    assert "but no cross-validation that could be replaced" in capsys.readouterr().err and contents(mine) == before
    (mine / "fold_x").rename(tmp_path / "elsewhere")
    assert train(done[0], mine) == 1 and "holds splits.json, but no cross-validation" in capsys.readouterr().err

    for name in ("fold_0_keep", "fold_3"):
        shutil.copytree(copied / "fold_0", copied / name)
    (copied / "fold_2" / "splits.json").write_text("mine")
    kept, before = contents(copied / "fold_0_keep"), contents(copied)
    more = ["--overwrite", "--set", "training.iterations=2", "--set"]
    assert train(done[0], copied, *more, "data.folds=4") == 1
    assert "fold_3: is in the way: there are to be 4 folds" in capsys.readouterr().err and contents(copied) == before
    assert train(done[0], copied, *more, "data.folds=2") == 0
    assert contents(copied / "fold_0_keep") == contents(copied / "fold_3") == kept
    assert contents(copied / "fold_2") == {"splits.json": b"mine"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_patients_stay_together_in_every_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_set(tmp_path / "data", cases=4, shape=(16, 14, 12))
    (data / "patients.csv").write_text("case,patient\n" + "".join(f"case_{n},p{n // 2}\n" for n in range(4)))
    assert train(data, tmp_path / "run", "--set", "training.iterations=2") == 0
    assert "2 folds; cases of 2 patients stay together" in capsys.readouterr().err
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert {frozenset(fold["held_out"]) for fold in splits["folds"]} == {
        frozenset({"case_0", "case_1"}),
        frozenset({"case_2", "case_3"}),
    }
    assert load_model(tmp_path / "run" / "fold_1").card.record["held_out"] == 2
    assert train(data, tmp_path / "one", "--set", "data.patient_pattern='(x+)+'") == 1
    assert "data.patient_pattern" in capsys.readouterr().err and not (tmp_path / "one").exists()


def test_the_parts_of_a_single_scan_are_put_together_again(tmp_path: Path) -> None:
    """Each voxel of the result is of the fold that did not see its label; the scan lies in LPS and is resampled."""
    data = make_set(tmp_path / "data", cases=1, shape=(40, 14, 12))
    more = ["--set", "data.folds=3", "--set", "preprocess.spacing=[2, 1, 1]", "--set", "training.iterations=3"]
    assert train(data, tmp_path / "run", *more) == 0
    out = tmp_path / "run"
    joined = medunet.read_volume(out / "validation" / "case_0.nii.gz").array[0]
    parts = [medunet.read_volume(out / f"fold_{n}" / "validation" / "case_0.nii.gz").array[0] for n in range(3)]
    # The last third along x in RAS is the first one in LPS.
    for number, rows in enumerate((slice(0, 13), slice(15, 25), slice(27, 40))):
        np.testing.assert_array_equal(joined[rows], parts[number][rows])
    assert not np.array_equal(parts[0], parts[1])
    scores = json.loads((out / "validation" / "scores.json").read_text())["cases"]["case_0"]["labels"]
    for name, value in (("bright", 7), ("dark", 32)):
        truth = medunet.read_volume(data / "labels" / "case_0.nii.gz").array
        assert scores[name]["true_positives"] + scores[name]["false_negatives"] == np.count_nonzero(truth == value)
    assert json.loads((out / "postprocessing.json").read_text())["reason"].startswith("1 cases are too few")
    assert len(load_models(out)) == 3


@pytest.mark.parametrize("planned", [False, True])
def test_minutes_are_for_all_folds_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], planned: bool
) -> None:
    """Known before the plan, and written down before the first training, which is interrupted here."""

    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(medunet.crossvalidate, "train_run", interrupted)
    data = make_set(tmp_path / "data", cases=3, shape=(16, 14, 12))
    (tmp_path / "c.yaml").write_text(f"data: {{path: {data}}}\npatches: {{size: [16, 16, 16]}}\n")
    source, out = data if planned else tmp_path / "c.yaml", tmp_path / "run"
    assert run(["train", str(source), "-o", str(out), "--fold", "all", "--minutes", "30", "--device", "cpu"]) == 130
    assert load_config(out / "config.yaml").config.training.minutes == 10
    printed = capsys.readouterr().err
    assert "3 folds, 10 minutes each (30 in all)" in printed and "0 of 3 folds are finished; go on with" in printed
    again = ["train", str(source), "-o", str(out), "--fold", "all", "--resume", "--minutes", "60"]
    assert run(again) == 130 and load_config(out / "config.yaml").config.training.minutes == 20


@pytest.mark.parametrize("value", ["-1", "some", "1.5", ""])
def test_other_words_for_folds_are_wrong_usage(tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "x", "-o", str(tmp_path / "run"), f"--fold={value}"]) == 2
    assert "a number from 0 on, all, or none" in capsys.readouterr().err


def test_without_a_fold_all_cases_are_learned_from_and_none_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_set(tmp_path / "data", cases=3, shape=(16, 14, 12)), tmp_path / "run"
    config = tmp_path / "c.yaml"
    config.write_text("data:\n  fold: 2\n")
    command = ["train", str(config), "-o", str(out), *SMALL, "--set", f"data.path={data}"]
    command += ["--set", "training.iterations=2"]
    assert run([*command, "--fold", "none"]) == 0
    assert "3 training cases, 0 held out" in capsys.readouterr().err
    settings = load_config(out / "config.yaml").config.data
    assert (settings.folds, settings.fold) == (0, 0)
    record = load_model(out).card.record
    assert (record["cases"], record["held_out"]) == (3, 0)
    assert not list((out / "validation").glob("*.nii.gz"))
    assert run(["predict", str(out), str(data / "images"), "-o", str(tmp_path / "p"), "--device", "cpu"]) == 0
    # What was learned from must not be held out of the same run later.
    assert run([*command, "--fold", "0", "--set", "data.folds=3", "--resume"]) == 1
    assert "cannot be resumed" in capsys.readouterr().err


def test_a_single_scan_without_a_fold_is_learned_from_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan would hold out the part that shares most labels with the rest; there is no such part then."""
    data, out = make_set(tmp_path / "data", cases=1, shape=(16, 14, 20)), tmp_path / "run"
    assert run(["train", str(data), "-o", str(out), *SMALL, "--fold", "none", "--set", "training.iterations=2"]) == 0
    assert "1 training cases, 0 held out" in capsys.readouterr().err
    assert load_model(out).card.record["held_out"] == 0
