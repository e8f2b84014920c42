"""Dice on unseen cases after the same minutes of training: medunet's `train DATASET` and nnU-Net as it plans itself.

    python benchmarks/compare_training.py DATASET --minutes 15 --nnunet ENV/bin/python --work FOLDER
    python benchmarks/compare_training.py DATASET --minutes 15 --nnunet ENV/bin/python --work FOLDER --side-by-side

Both learn from the same cases, those that `medunet train` learns from in fold 0, and are scored on the held-out ones by
the same code. medunet is the command as a user types it, whose minutes count everything from reading the data to the
last validation. nnU-Net (2.8.1; `compare_predictors.py` says how ENV is made) plans and preprocesses as it does by
default; its minutes count training steps only. It is given what it lacks for short trainings: its learning rate falls
to zero over the minutes, which it otherwise does over 250,000 steps; it makes no validation. It predicts with and
without its mirroring. Without --side-by-side the two train one after the other with all cores; with it, at the same
time, each on one core of its own.

Instance sets count as one class; labels are scored by Dice per label and case where reference or prediction has it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RAW = "Dataset001_compared"


def train_nnunet(folder: Path, minutes: float, threads: int) -> None:
    """Plan, preprocess, train for the minutes and predict; runs in nnU-Net's own environment."""
    import torch

    torch.set_num_threads(threads)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    told = json.loads((folder / "task.json").read_text())
    started = time.monotonic()
    extract_fingerprints([1], num_processes=threads)
    plans = plan_experiments([1])
    preprocess([1], plans, configurations=(told["configuration"],), num_processes=(threads,))
    prepared = time.monotonic() - started
    # Patches are made in the training's own process, as workers would compete with it; planning refuses 0.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (their name)
    trainer = get_trainer_from_args("1", told["configuration"], "all", device=torch.device("cpu"))  # type: ignore[arg-type]
    trainer.initialize()
    trainer.on_train_start()
    trainer.network.train()
    started, steps = time.monotonic(), 0
    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
    seconds = time.monotonic() - started
    predicting = {name: predict_nnunet(trainer, folder, name) for name in ("plain", "mirrored")}
    facts = {
        "patch": [int(n) for n in trainer.configuration_manager.patch_size],
        "batch": int(trainer.configuration_manager.batch_size),
        "steps": steps,
        "seconds": seconds,
        "preparing": prepared,
        "predicting": predicting,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def predict_nnunet(trainer: Any, folder: Path, name: str) -> float:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(
        use_mirroring=name == "mirrored", perform_everything_on_device=False, device=torch.device("cpu")
    )
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, trainer.__class__.__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    target = folder / f"predicted_{name}"
    target.mkdir()
    started = time.monotonic()
    predictor.predict_from_files_sequential(str(folder / "held"), str(target))
    return time.monotonic() - started


def write_task(dataset: Path, folder: Path) -> None:
    """The learned cases in nnU-Net's layout, the held-out ones in a folder of their own."""
    import numpy as np

    from medunet.datasets.catalogue import read_data_set, with_labels
    from medunet.datasets.labels import IGNORE
    from medunet.datasets.loading import load_image, load_label
    from medunet.datasets.splits import read_patients, split_cases
    from medunet.formats.dispatch import write_volume

    data = read_data_set(dataset)
    labels = with_labels(data, data.labelled, None)
    learned, held = split_cases(data.labelled, 0, 5, 0, read_patients(data, None))
    raw = folder / "raw" / RAW
    for name in (raw / "imagesTr", raw / "labelsTr", folder / "held", folder / "results", folder / "preprocessed"):
        name.mkdir(parents=True)
    flat = load_image(learned[0]).dimensions == 2
    ending = ".png" if flat else ".nii.gz"
    for case in [*learned, *held]:
        volume = load_image(case)
        images = raw / "imagesTr" if case in learned else folder / "held"
        for channel in range(volume.channels):
            part = volume.with_array(volume.array[channel : channel + 1])
            write_volume(part, images / f"{case.name}_{channel:04d}{ending}")
        if case in learned:
            indices = load_label(case, labels, volume)
            if (indices == IGNORE).any():
                raise SystemExit(f"{case.name}: has voxels to ignore, which this comparison does not hand over")
            write_volume(volume.with_array(indices.astype(np.uint8)), raw / "labelsTr" / f"{case.name}{ending}")
    described = {
        "channel_names": {str(number): name for number, name in enumerate(data.channels)},
        "labels": {("background" if index == 0 else name): index for index, name in enumerate(labels.names)},
        "numTraining": len(learned),
        "file_ending": ending,
    }
    (raw / "dataset.json").write_text(json.dumps(described))
    (folder / "task.json").write_text(json.dumps({"configuration": "2d" if flat else "3d_fullres"}))


def score(dataset: Path, predictions: Path, as_indices: bool) -> dict[str, float]:
    """Mean Dice by label of the held-out cases."""
    import numpy as np

    from medunet.datasets.catalogue import read_data_set, with_labels
    from medunet.datasets.labels import IGNORE
    from medunet.datasets.loading import load_image, load_label
    from medunet.datasets.splits import read_patients, split_cases
    from medunet.formats.dispatch import read_volume
    from medunet.metrics.overlap import count_labels

    data = read_data_set(dataset)
    labels = with_labels(data, data.labelled, None)
    _, held = split_cases(data.labelled, 0, 5, 0, read_patients(data, None))
    rows = []
    for case in held:
        truth = load_label(case, labels, load_image(case))
        found = read_volume(next(predictions.glob(f"{case.name}.*"))).array
        indices = found if as_indices else labels.to_indices(found, case.name)
        counts = count_labels(indices.astype(np.uint8), truth, labels.scored, IGNORE)
        rows.append([counts[name].dice for name in labels.scored])
    means = np.nanmean(np.array(rows), axis=0)
    return dict(zip(labels.scored, (float(m) for m in means), strict=True))


def command(core: int | None, *words: str) -> tuple[list[str], dict[str, str]]:
    """A command line and its environment, on one core or on all."""
    if core is None:
        return list(words), {}
    return ["taskset", "-c", str(core), *words], {"OMP_NUM_THREADS": "1"}


def run_all(jobs: Sequence[tuple[list[str], dict[str, str], Path]], together: bool) -> None:
    running = []
    for words, environment, log in jobs:
        with log.open("w") as file:
            process = subprocess.Popen(words, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT)
        running.append((process, log))
        if not together:
            process.wait()
    failed = [f"{log}: ended with {process.returncode}; read it" for process, log in running if process.wait()]
    if failed:
        raise SystemExit("\n".join(failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--nnunet", help="the interpreter of an environment with nnunetv2")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--side-by-side", action="store_true")
    parser.add_argument("--train-nnunet", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work.absolute()
    threads = 1 if options.side_by_side else os.cpu_count() or 1
    if options.train_nnunet:
        train_nnunet(work, options.minutes, threads)
        return
    shutil.rmtree(work / "nnunet", ignore_errors=True)
    write_task(options.dataset, work / "nnunet")
    ours, our_env = command(
        0 if options.side_by_side else None, sys.executable, "-m", "medunet", "train", str(options.dataset.absolute()),
        "-o", str(work / "medunet"), "--minutes", f"{options.minutes:g}", "--overwrite",
    )  # fmt: skip
    jobs = [(ours, our_env, work / "medunet.log")]
    if options.nnunet:
        theirs, their_env = command(
            1 if options.side_by_side else None, options.nnunet, __file__, str(options.dataset), "--train-nnunet",
            "--minutes", f"{options.minutes:g}", "--work", str(work / "nnunet"),
            *(["--side-by-side"] if options.side_by_side else []),
        )  # fmt: skip
        places = {f"nnUNet_{name}": str(work / "nnunet" / name) for name in ("raw", "preprocessed", "results")}
        jobs.append((theirs, {**their_env, **places, "nnUNet_n_proc_DA": "1"}, work / "nnunet.log"))
    run_all(jobs, options.side_by_side)
    report(options.dataset, work, bool(options.nnunet))


def report(dataset: Path, work: Path, compared: bool) -> None:
    scores = {"medunet": score(dataset, work / "medunet" / "validation", as_indices=False)}
    if compared:
        facts = json.loads((work / "nnunet" / "facts.json").read_text())
        print("nnU-Net:", facts)
        for name in ("plain", "mirrored"):
            scores[f"nnU-Net {name}"] = score(dataset, work / "nnunet" / f"predicted_{name}", as_indices=True)
    (work / "scores.json").write_text(json.dumps(scores, indent=1))
    for name, by_label in scores.items():
        mean = sum(by_label.values()) / len(by_label)
        print(f"{name:<18} mean Dice {mean:.4f}   " + "  ".join(f"{k} {v:.3f}" for k, v in by_label.items()))


if __name__ == "__main__":
    main()
