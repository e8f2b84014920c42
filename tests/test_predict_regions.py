"""`predict --region-masks`: a mask of each region beside the label map, from that very label map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medunet
from medunet.cli import run
from medunet.datasets.labels import LabelTable, table_from_names, with_regions
from medunet.datasets.regions import DeclaredRegions
from medunet.model import save_model
from medunet.networks.settings import UNetSettings
from tests.prediction.made import make_model, make_scan

PLAIN = table_from_names({"background": 0, "a": 3, "b": 5, "a+b": 200}, None)
CROSSING = with_regions(PLAIN, DeclaredRegions({"left side": (3, 200), "B": (5, 200)}))
NESTED = with_regions(PLAIN, DeclaredRegions({"left side": (3, 5, 200), "B": (5, 200), "c": (200,)}))


def saved_model(folder: Path, labels: LabelTable, **changes: object) -> Path:
    model = make_model(UNetSettings(channels=(4, 8), classes=labels.outputs), labels=labels, **changes)
    save_model(folder / "model.safetensors", model.network.state_dict(), model.card)
    return folder


def scan(path: Path) -> Path:
    medunet.write_volume(make_scan(14, 13, 12), path)
    return path


def predicted(model: Path, *more: object) -> int:
    return run(["predict", str(model), *map(str, more), "--device", "cpu", "--region-masks"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "masks"),
    [
        (CROSSING, {"left_side": (3, 200), "B": (5, 200)}),
        (NESTED, {"left_side": (3, 5, 200), "B": (5, 200), "c": (200,)}),
    ],
    ids=["overlapping", "nested"],
)
@pytest.mark.parametrize("ending", ["nii.gz", "mha", "tif"])
def test_masks_say_what_the_label_map_says(
    table: LabelTable, masks: dict, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, source = saved_model(tmp_path / "run", table), scan(tmp_path / "scan.nii.gz")
    output, record = tmp_path / "out" / f"case.{ending}", tmp_path / "record.json"
    assert predicted(model, source, "-o", output, "--record", record, "--probabilities") == 0
    assert f"with masks of {len(masks)} regions" in capsys.readouterr().out
    names = {f"case.{ending}", f"case_probabilities.{ending}", *(f"case_{name}.{ending}" for name in masks)}
    assert {path.name for path in output.parent.iterdir()} == names
    labels = medunet.read_volume(output)
    assert len(np.unique(labels.array)) > 1
    for name, values in masks.items():
        mask = medunet.read_volume(output.with_name(f"case_{name}.{ending}"))
        np.testing.assert_array_equal(mask.array, np.isin(labels.array, values))
        np.testing.assert_array_equal(mask.affine, labels.affine)
    paths = [str(output.with_name(f"case_{name}.{ending}")) for name in masks]
    assert json.loads(record.read_text())["cases"][0]["region_masks"] == paths


def test_pictures_have_pictures_of_masks(tmp_path: Path) -> None:
    labels = with_regions(PLAIN, DeclaredRegions({"A": (3, 200), "B": (5, 200)}))
    network = UNetSettings(dimensions=2, channels=(4, 8), classes=2)
    model = make_model(network, labels=labels)
    save_model(tmp_path / "run" / "model.safetensors", model.network.state_dict(), model.card)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 18), np.uint8)).save(tmp_path / "a.png")
    assert predicted(tmp_path / "run", tmp_path / "a.png", "-o", tmp_path / "out") == 0
    found = np.array(Image.open(tmp_path / "out" / "a.png"))
    for name, values in (("A", (3, 200)), ("B", (5, 200))):
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out" / f"a_{name}.png")), np.isin(found, values))


@pytest.mark.slow
def test_existing_masks_are_kept_unless_said_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, source, out = saved_model(tmp_path / "run", CROSSING), scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    out.mkdir()
    old = scan(out / "scan_B.nii.gz")
    before = old.read_bytes()
    assert predicted(model, source, "-o", out) == 1
    assert "scan_B.nii.gz: exists already" in capsys.readouterr().err
    assert old.read_bytes() == before and [path.name for path in out.iterdir()] == ["scan_B.nii.gz"]
    assert predicted(model, source, "-o", out, "--overwrite") == 0
    assert old.read_bytes() != before and len(list(out.iterdir())) == 3


@pytest.mark.slow
def test_voxel_files_beside_headers_are_kept_unless_said_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A header that names voxels of another name, which nothing but `--overwrite` may replace."""
    model, source, out = saved_model(tmp_path / "run", CROSSING), scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    out.mkdir()
    (out / "scan_B.zraw").write_bytes(b"voxels")
    asked = (model, source, "-o", out / "scan.mhd", "--probabilities")
    assert predicted(*asked) == 1
    assert "scan_B.zraw: exists already" in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("scan_B.zraw", b"voxels")]
    assert predicted(*asked, "--overwrite") == 0 and len(list(out.iterdir())) == 8


def test_a_mask_never_takes_the_place_of_another_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor of a scan."""
    model = saved_model(tmp_path / "run", CROSSING)
    scans = scan(tmp_path / "in" / "a.nii.gz"), scan(tmp_path / "in" / "a_B.nii.gz")
    assert predicted(model, *scans, "-o", tmp_path / "out") == 1
    assert "two results would be called a_B" in capsys.readouterr().err and not (tmp_path / "out").exists()
    output = tmp_path / "in" / "out.nii.gz"
    assert predicted(model, scans[1], "-o", scans[0], "--overwrite") == 1
    assert "a_B.nii.gz: is one of the scans" in capsys.readouterr().err and not output.exists()


def test_a_model_without_regions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, source = saved_model(tmp_path / "run", PLAIN), scan(tmp_path / "scan.nii.gz")
    assert predicted(model, source, "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("medunet: error:") and len(error.splitlines()) <= 3
    assert "this model learned no regions" in error and "200 a+b" in error and not (tmp_path / "out").exists()
    assert predicted(model, source, "-o", tmp_path / "out", "--instances") == 2
