"""Files that do not say their axes, from the config's word for them to scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medunet.cli import run
from tests.flows.made import LABELS, make_case
from tests.flows.test_objects import QUICK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]


@pytest.mark.parametrize(("suffix", "planned"), [(".tif", True), (".zarr", False)])
def test_images_with_channels_and_labels_without_are_learned_from_by_their_stated_axes(
    suffix: str, planned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    for seed in range(3):
        image, label = make_case(seed, (40, 36))
        channels = np.stack([image.array[0].T, 200 - image.array[0].T]).astype(np.float32)
        _write(data / "images" / f"c{seed}{suffix}", channels)
        _write(data / "labels" / f"c{seed}{suffix}", label.array[0].T)
    (data / "dataset.json").write_text(json.dumps({"channels": ["a", "b"], "labels": LABELS}))
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{path: {data}}}\nnetwork: {{dimensions: 2}}\n")
    source, axes = data if planned else config, ["--set", "data.axes=CYX", "--set", "training.iterations=3"]
    assert run(["train", str(source), "-o", str(out), *QUICK, *axes, "--set", "data.folds=3"]) == 0
    assert "mean Dice" in capsys.readouterr().out
    assert len(list((out / "validation").glob(f"c?{suffix}"))) == 1


def _write(path: Path, array: np.ndarray) -> None:
    """Without a word on axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack", metadata=None)
        return
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=array.shape, zarr_format=2)
    stored[...] = array
