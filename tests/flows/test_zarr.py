"""OME-Zarr through the command line: a data set of folders is inspected, learned from, predicted and scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

import medunet
from medunet.cli import run
from medunet.datasets.catalogue import Case
from medunet.datasets.labels import table_from_names
from medunet.model import save_model
from medunet.networks.settings import UNetSettings
from medunet.patches.cache import case_key
from medunet.transforms.preprocess import PreprocessSettings
from tests.flows.made import LABELS, make_case
from tests.formats.agreement import files_in
from tests.formats.omezarr.zarrfiles import save_array, save_group, save_image
from tests.prediction.made import make_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]

SIZES = [2.0, 0.5, 0.5]
MOVED = [7.0, 8.0, 9.0]


def save_case(folder: Path, seed: int, zarr_format: int = 3) -> None:
    image, label = make_case(seed, (20, 18, 16))
    for kind, volume in (("images", image), ("labels", label)):
        array = volume.array[0].transpose(2, 1, 0).astype(np.int16 if kind == "images" else np.uint8)
        path = folder / kind / f"case_{seed}.ome.zarr"
        save_image(path, array, "zyx", zarr_format, scale=SIZES, translation=MOVED)


def save_set(folder: Path, cases: int = 4) -> Path:
    for seed in range(cases):
        save_case(folder, seed, 2 if seed % 2 else 3)
    (folder / "dataset.json").write_text(json.dumps({"name": "balls", "channels": ["X"], "labels": LABELS}))
    return folder


def save_run(folder: Path, channels: int = 1, dimensions: int = 3) -> Path:
    network = UNetSettings(channels=(4, 4, 8), classes=3, in_channels=channels, dimensions=dimensions)
    model = make_model(network=network, patch=(16,) * dimensions)
    save_model(folder / "model.safetensors", model.network.state_dict(), model.card)
    return folder


def predict(model: Path, *rest: object) -> int:
    return run(["predict", str(model), *map(str, rest), "--device", "cpu"])


def test_from_scans_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, found = save_set(tmp_path / "data"), tmp_path / "run", tmp_path / "p"
    assert run(["inspect", str(data)]) == 0
    assert "20×18×16 (4 cases)" in capsys.readouterr().out
    small = ["--set", "network.channels=[4, 8]", "--set", "patches.size=[16, 16, 16]", "--set", f"data.path={data}",
             "--set", "training.epochs=1", "--set", "training.iterations=10", "--device", "cpu"]  # fmt: skip
    (tmp_path / "c.yaml").write_text("")
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), *small]) == 0
    assert {p.suffix for p in (out / "validation").iterdir()} >= {".zarr", ".json"}
    assert predict(out, data / "images", "-o", found, "--probabilities") == 0
    assert len(list(found.iterdir())) == 8
    for number in range(4):
        scan = medunet.read_volume(data / "images" / f"case_{number}.ome.zarr")
        labels = medunet.read_volume(found / f"case_{number}.ome.zarr")
        scores = medunet.read_volume(found / f"case_{number}_probabilities.ome.zarr")
        assert labels.shape == scan.shape and set(np.unique(labels.array)) <= {0, 7, 32}
        assert (labels.unit, scores.unit, scores.channels) == ("um", "um", 3)
        np.testing.assert_array_equal(labels.affine, scan.affine)
        np.testing.assert_array_equal(scores.affine, scan.affine)
        np.testing.assert_array_equal(np.array([0, 7, 32])[scores.array.argmax(0)], labels.array[0])
        group = zarr.open_group(found / f"case_{number}.ome.zarr", mode="r")
        assert group.metadata.zarr_format == (2 if number % 2 else 3)
        assert "image-label" in group.attrs.get("ome", group.attrs)
    assert run(["evaluate", str(found), str(data), "--json", str(tmp_path / "s.json")]) == 0
    assert len(json.loads((tmp_path / "s.json").read_text())["cases"]) == 4
    one = [str(place / "case_1.ome.zarr") for place in (found, data / "labels")]
    assert run(["evaluate", *one, "--json", str(tmp_path / "one.json")]) == 0
    assert list(json.loads((tmp_path / "one.json").read_text())["cases"]) == ["case_1"]
    assert "bright" in (tmp_path / "one.json").read_text(), "dataset.json stands above the folder of the labels"


def test_a_scan_with_labels_in_it_is_a_reference_of_its_own(tmp_path: Path) -> None:
    save_case(tmp_path, 0)
    scan = tmp_path / "images" / "case_0.ome.zarr"
    (tmp_path / "labels" / "case_0.ome.zarr").rename(scan / "labels")
    (scan / "labels").rename(scan / "balls")
    save_group(scan / "labels", {"labels": ["balls"]})
    truth = (scan / "balls").rename(scan / "labels" / "balls")
    assert run(["evaluate", str(truth), str(truth), "--json", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["summary"]["mean"]["dice"] == 1
    before = files_in(scan)
    assert predict(save_run(tmp_path / "run"), scan, "-o", tmp_path / "case_0.zarr") == 0
    assert files_in(scan) == before


def test_where_results_may_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model, target = save_set(tmp_path / "data", 2), save_run(tmp_path / "run"), tmp_path / "out" / "a.zarr"
    scan = data / "images" / "case_0.ome.zarr"
    before = files_in(data)
    for output, more, said in [
        (data / "images", ["--overwrite"], "is one of the scans"),
        (scan, ["--overwrite"], "is one of the scans"),
        (scan / "labels", [], "lies inside the OME-Zarr"),
        (scan / "labels" / "a.zarr", [], "lies inside the OME-Zarr"),
    ]:
        assert predict(model, scan, "-o", output, *more) == 1
        assert said in capsys.readouterr().err
    assert predict(model, scan / "0", "-o", target) == 1
    assert "is one resolution of" in capsys.readouterr().err
    assert predict(model, data / "images", "-o", target) == 1
    assert "is one file, but 2 scans" in capsys.readouterr().err
    assert predict(model, scan, "-o", target) == 0
    first = files_in(target)
    assert predict(model, scan, "-o", target) == 1
    assert "exists already" in capsys.readouterr().err
    assert predict(model, data / "images" / "case_1.ome.zarr", "-o", target, "--overwrite") == 0
    assert files_in(target) != first and [p.name for p in target.parent.iterdir()] == ["a.zarr"]
    for more in ([], ["--overwrite"]):
        assert predict(model, scan, "-o", target.parent / "b.zarr", "--probabilities", *more) == 0
    assert sorted(p.name for p in target.parent.iterdir()) == ["a.zarr", "b.zarr", "b_probabilities.zarr"]
    assert files_in(data) == before
    assert predict(model, scan, "-o", tmp_path / "tiff", "--overwrite") == 0
    assert predict(model, scan, "-o", tmp_path / "a.nii.gz") == 0
    assert medunet.read_volume(tmp_path / "a.nii.gz").spacing == (0.5, 0.5, 2.0)


def test_time_channels_and_plain_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.random.default_rng(0).integers(0, 255, (3, 2, 20, 24)).astype(np.uint8)
    omero = {"omero": {"channels": [{"label": "DAPI"}, {"label": "actin"}]}}
    scan = save_image(tmp_path / "film.zarr", array, "tcyx", more=omero)
    model, out = save_run(tmp_path / "run", dimensions=2), tmp_path / "out"
    assert predict(model, scan, "-o", out) == 1
    assert "--frame 1 to --frame 3" in capsys.readouterr().err
    assert predict(model, scan, "-o", out, "--frame", 2, "--channel", "actin") == 0
    still = save_image(tmp_path / "still.zarr", array[1, 1], "yx")
    assert predict(model, still, "-o", out) == 0
    results = [medunet.read_volume(out / name).array for name in ("film.zarr", "still.zarr")]
    np.testing.assert_array_equal(*results)
    plain = save_array(tmp_path / "plain.zarr", array[1, 1])
    assert run(["inspect", str(plain)]) == 1
    assert "--axes YX" in capsys.readouterr().out
    assert predict(model, plain, "-o", out, "--axes", "YX") == 0
    np.testing.assert_array_equal(medunet.read_volume(out / "plain.zarr").array, results[0])
    assert run(["inspect", str(scan), "--frame", "1"]) == 0
    said = capsys.readouterr().out
    for words in (
        "version 3, OME-NGFF 0.5",
        "TCYX",
        "3×2×20×24",
        "0 DAPI, 1 actin",
        "written as .zarr",
        "x: 24 pixels",
    ):
        assert words in said, words


def test_a_label_on_another_grid_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_set(tmp_path / "data", 2)
    (data / "labels" / "case_1.ome.zarr").rename(tmp_path / "old")
    save_image(data / "labels" / "case_1.ome.zarr", np.zeros((16, 18, 19), np.uint8), "zyx", scale=SIZES)
    assert run(["plan", str(data), "-o", str(tmp_path / "c.yaml")]) == 1
    assert "case_1: label and image have different shapes: image 20×18×16, label 19×18×16" in capsys.readouterr().err


def test_a_data_set_is_converted_with_its_folders(tmp_path: Path) -> None:
    source, out = save_set(tmp_path / "data", 2), tmp_path / "out"
    (source / "images").rename(source / "raw")
    (source / "labels").rename(source / "masks")
    (source / "dataset.json").unlink()
    for more in ([], ["--link"]):
        target = out / str(len(more))
        assert run(["convert", str(source), "-o", str(target), *more]) == 0
        for number in range(2):
            name = f"case_{number}.ome.zarr"
            assert files_in(target / "images" / name) == files_in(source / "raw" / name)
            truth, label = (medunet.read_volume(place / name) for place in (source / "masks", target / "labels"))
            np.testing.assert_array_equal(label.array, truth.array)
            np.testing.assert_array_equal(label.affine, truth.affine)


def test_the_cache_knows_which_chunk_is_where(tmp_path: Path) -> None:
    save_case(tmp_path, 0)
    scan, label = (tmp_path / kind / "case_0.ome.zarr" for kind in ("images", "labels"))
    table, case = table_from_names(LABELS, None), Case("case_0", (scan,), label)
    keys = [case_key(case, PreprocessSettings(), table, None)]
    chunks = scan / "0" / "c" / "0" / "0"
    (chunks / "0").rename(chunks / "old")
    (chunks / "1").rename(chunks / "0")
    keys.append(case_key(case, PreprocessSettings(), table, None))
    (chunks / "old").rename(chunks / "1")
    keys.append(case_key(case, PreprocessSettings(), table, None))
    (scan / ".DS_Store").write_text("x")
    save_group(scan / "labels", {"labels": []})
    assert case_key(case, PreprocessSettings(), table, None) == keys[-1]
    assert len(set(keys)) == 3
