"""Dice and seconds of the ways to predict with one trained model, on cases it did not learn from.

    python benchmarks/compare_methods.py RUN DATASET

RUN is a trained run of a data set with held-out cases. Each way segments the held-out scans on their own grids, in one
process, interleaved case by case; reading and writing are not counted.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from medunet.config import load_config
from medunet.data.catalogue import load_image, load_label, read_data_set, split_cases
from medunet.data.labels import IGNORE
from medunet.metrics import count_labels
from medunet.model import load_model
from medunet.predict import PredictSettings, prepare_scan, segment_array

WAYS = {
    "exact, float32": PredictSettings(method="exact", precision="fp32"),
    "exact, bf16": PredictSettings(method="exact", precision="bf16"),
    "blended windows, float32": PredictSettings(method="blend", precision="fp32"),
    "blended windows, bf16": PredictSettings(method="blend", precision="bf16"),
    "exact, bf16, mirrored": PredictSettings(method="exact", precision="bf16", tta=True),
}


def main(run: str, folder: str) -> None:
    data, settings = read_data_set(Path(folder)), load_config(Path(run) / "config.yaml").config.data
    model = load_model(run)
    table = model.card.labels
    scored = {table.names[index]: index for index in table.foreground}
    _, held = split_cases(data.labelled, settings.fold, settings.folds, settings.seed)
    seconds: dict[str, float] = defaultdict(float)
    dice: dict[str, list[float]] = defaultdict(list)
    for case in held:
        volume = load_image(case)
        truth = load_label(case, table, volume)
        for way, how in WAYS.items():
            started = time.perf_counter()
            array, undo = prepare_scan(volume, model)
            found, _ = segment_array(array, undo, model, how)
            seconds[way] += time.perf_counter() - started
            dice[way].append(float(np.mean([c.dice for c in count_labels(found, truth, scored, IGNORE).values()])))
    print(f"{len(held)} held-out cases of {data.name}, {run}")
    for way in WAYS:
        print(f"{way:<26} mean Dice {np.mean(dice[way]):.4f}   {seconds[way]:6.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:3])
