"""A data set whose answer is known: bright and dark balls in noise, as files; and trainings without side shows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunet.formats.dispatch import write_volume
from medunet.volume import Volume

LABELS = {"background": 0, "bright": 7, "dark": 32}


def make_case(seed: int, shape: tuple[int, ...], affine: np.ndarray | None = None) -> tuple[Volume, Volume]:
    random = np.random.default_rng(seed)
    grid = np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    for value in (7, 32):
        centre = [random.integers(n // 4, n - n // 4 + 1) for n in shape]
        ball = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < (min(shape) / 4) ** 2
        labels[ball] = value
    image = random.normal(100, 5, shape) + 40 * (labels == 7) - 40 * (labels == 32)
    affine = np.eye(4) if affine is None else affine
    return Volume(image[None].astype(np.float32), affine), Volume(labels[None], affine)


def make_set(folder: Path, cases: int = 5, shape: tuple[int, ...] = (20, 18, 16), suffix: str = ".nii.gz") -> Path:
    """A plain data set; the scans lie in LPS orientation, so that axes must be turned and turned back."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    for seed in range(cases):
        image, label = make_case(seed, shape, affine)
        if suffix == ".png":
            image = Volume(np.clip(image.array, 0, 255).astype(np.uint8), unit="pixel")
            label = Volume(label.array, unit="pixel")
        write_volume(image, folder / "images" / f"case_{seed}{suffix}")
        write_volume(label, folder / "labels" / f"case_{seed}{suffix}")
    (folder / "dataset.json").write_text(json.dumps({"name": "balls", "channels": ["X"], "labels": LABELS}))
    return folder


@contextmanager
def running_plainly() -> Iterator[None]:
    """Reports show a grey pixel for each picture and curve, and a training is tried with one step instead of six.

    Drawing is half of what a tiny training takes, and the trial most of the rest. What is drawn is compared in
    tests/report, trials in tests/planning; whole runs with both are in test_whole_way.py, in test_objects.py and in
    processes of their own, unless they are asked not to.
    """
    import medunet.evaluation.files
    import medunet.evaluation.scorecard
    import medunet.planning.trial

    buffer = io.BytesIO()
    Image.new("L", (1, 1), 128).save(buffer, "PNG")
    pixel = buffer.getvalue()
    with pytest.MonkeyPatch.context() as patch:
        for module, names in (
            (medunet.evaluation.files, ("overlay_picture", "object_picture")),
            (medunet.evaluation.scorecard, ("curves_plot", "score_plot")),
        ):
            for name in names:
                assert callable(getattr(module, name))
                patch.setattr(module, name, lambda *_, **__: pixel)
        assert medunet.planning.trial._STEPS >= 1
        patch.setattr(medunet.planning.trial, "_STEPS", 1)
        yield
