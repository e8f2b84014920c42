"""Dice and seconds of the ways to predict with one trained model, on cases it did not learn from.

    python benchmarks/compare_methods.py RUN DATASET [--axes AXES]

RUN is a trained run of a data set with held-out cases. Each way segments the held-out scans on their own grids, in one
process, interleaved case by case; reading and writing are not counted. Cases that hold none of a label, neither in
truth nor in prediction, do not count for it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from medunet.config import load_config
from medunet.datasets.catalogue import read_data_set
from medunet.datasets.labels import IGNORE
from medunet.datasets.loading import load_image, load_label
from medunet.datasets.splits import read_patients, split_cases
from medunet.metrics.overlap import count_labels
from medunet.model import load_model
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter

WAYS = {
    "exact, float32": PredictSettings(method="exact", precision="fp32"),
    "exact, bf16": PredictSettings(method="exact", precision="bf16"),
    "blended windows, float32": PredictSettings(method="blend", precision="fp32"),
    "exact, float32, mirrored": PredictSettings(method="exact", precision="fp32", tta=True),
    "blended windows, float32, mirrored": PredictSettings(method="blend", precision="fp32", tta=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--axes")
    options = parser.parse_args()
    data, settings = read_data_set(options.dataset), load_config(options.run / "config.yaml").config.data
    model = load_model(options.run)
    table = model.card.labels
    scored = {table.names[index]: index for index in table.foreground}
    patients = read_patients(data, settings.patient_pattern)
    _, held = split_cases(data.labelled, settings.fold, settings.folds, settings.seed, patients)
    ways = {way: Segmenter([model], how) for way, how in WAYS.items()}
    seconds: dict[str, float] = defaultdict(float)
    dice: dict[str, list[list[float]]] = defaultdict(list)
    for case in held:
        volume = load_image(case, options.axes)
        truth = load_label(case, table, volume, options.axes)
        for way, segmenter in ways.items():
            started = time.perf_counter()
            found = segmenter.indices(segmenter.open(volume))
            seconds[way] += time.perf_counter() - started
            counts = count_labels(found, truth, scored, IGNORE)
            dice[way].append([counts[name].dice for name in scored])
    print(f"{len(held)} held-out cases of {data.name}, {options.run}, windows of {model.card.patch}")
    for way in WAYS:
        by_label = np.nanmean(np.array(dice[way]), axis=0)
        print(f"{way:<36} mean Dice {np.nanmean(by_label):.4f}   {seconds[way]:6.2f} s")


if __name__ == "__main__":
    main()
