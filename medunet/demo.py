"""`medunet demo`: the whole way on a real MRI that comes with a dependency, in a few minutes on a laptop.

The MNI152 template (ICBM 2009a, T1) and its tissue probability maps lie inside the nilearn package. A small 3-D U-Net
learns grey and white matter on one hemisphere, then segments and is scored on the other. The template is an average of
152 people, very smooth, and made symmetric: the scores show that everything works, not how well patients would be done.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medunet.errors import MissingExtra, OutputError
from medunet.evaluate import evaluate_folders
from medunet.evaluation.files import case_picture, write_evaluation
from medunet.evaluation.settings import EvaluateSettings, Evaluation
from medunet.formats.dispatch import write_volume
from medunet.plan_training import write_plan
from medunet.planning.budget import Budget
from medunet.predict import segment_files
from medunet.prediction.outputs import PredictRequest
from medunet.prediction.planning import PredictSettings
from medunet.system.files import write_text, written_aside
from medunet.train_network import train_run
from medunet.training.run_folder import TrainRequest
from medunet.volume import Volume

MINUTES = 3.0
LABELS = {"background": 0, "grey_matter": 1, "white_matter": 2}
_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def run_demo(folder: Path, overwrite: bool = False, minutes: float = MINUTES) -> Evaluation:
    """Train, predict, evaluate and draw; prints each command that would do the same by hand.

    Raises:
        MissingExtra: nilearn is not installed.
        OutputError: the folder holds an earlier demo and `overwrite` is false.
    """
    if (folder / "run").exists() and not overwrite:
        raise OutputError(f"{folder}: holds an earlier demo; say --overwrite to replace it, or -o another folder")
    left, right = _hemispheres()
    data, test = folder / "data", folder / "test"
    _write_case(data, "left", left)
    _write_case(test, "right", right)
    config, run, out, scores = folder / "demo.yaml", folder / "run", folder / "segmentation", folder / "scores"

    _say(f"medunet plan {data} -o {config} --minutes {minutes:g}")
    write_plan(data, config, Budget.of(None, minutes, "auto"), None, overwrite=True)
    _say(f"medunet train {config} -o {run} --set data.folds=0")
    if train_run(TrainRequest(config, run, ("data.folds=0",), overwrite=True)).signal:
        raise KeyboardInterrupt
    _say(f"medunet predict {run} {test / 'images'} -o {out}")
    segment_files(str(run), PredictRequest([test / "images"], out, overwrite=True), PredictSettings())
    _say(f"medunet evaluate {out} {test} -o {scores}")
    evaluation = evaluate_folders(out, test, EvaluateSettings(title="The other hemisphere"))
    write_evaluation(evaluation, scores, overwrite=True)
    picture = folder / "demo.png"
    with written_aside(picture, overwrite=True) as aside:
        aside.write_bytes(case_picture(evaluation, "right", legend=True))
    for label in evaluation.summary.labels:
        print(f"{label.label}: Dice {label.statistics['dice'].mean:.3f}")
    print(f"picture: {picture}\nreport:  {scores / 'report.html'}")
    return evaluation


def _say(command: str) -> None:
    print(f"\n$ {command}", flush=True)


def _hemispheres() -> tuple[tuple[Volume, Volume], tuple[Volume, Volume]]:
    """Image and labels of the left and of the right half of the template, cut at the midplane x = 0 mm."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise MissingExtra("the demo's MRI comes with nilearn, which is not installed; pip install 'medunet[demo]'")
    folder = Path(spec.origin).parent / "datasets" / "data"
    image = nib.load(folder / _FILE.format("t1"))
    t1, grey, white = (np.asarray(nib.load(folder / _FILE.format(n)).dataobj) for n in ("t1", "gm", "wm"))
    # The maps hold 255 times the probability; a voxel is the tissue that more than half of it is.
    labels = np.where(white > 127, 2, np.where(grey > 127, 1, 0)).astype(np.uint8)
    middle = round(float(np.linalg.inv(image.affine)[0, 3]))
    return _part(t1, labels, image.affine, slice(0, middle)), _part(t1, labels, image.affine, slice(middle, None))


def _part(t1: NDArray[Any], labels: NDArray[Any], affine: NDArray[Any], where: slice) -> tuple[Volume, Volume]:
    moved = np.array(affine, dtype=float)
    moved[:3, 3] += moved[:3, 0] * where.start
    return Volume(t1[None, where], moved), Volume(labels[None, where], moved)


def _write_case(folder: Path, name: str, case: tuple[Volume, Volume]) -> None:
    for place, volume in zip(("images", "labels"), case, strict=True):
        write_volume(volume, folder / place / f"{name}.nii.gz", overwrite=True)
    declaration = {"name": "MNI152 hemisphere", "channels": ["T1"], "labels": LABELS}
    write_text(folder / "dataset.json", json.dumps(declaration, indent=2) + "\n", overwrite=True)
