"""Objects as users ask for them: from files to files and in memory, for every way in which they are learned."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import roifile
import tifffile
import torch
from scipy import ndimage
from skimage.segmentation import watershed

import medunet
from medunet.api import segment_objects, segment_volume
from medunet.cli import run
from medunet.datasets.labels import LabelTable, table_from_names
from medunet.errors import ConfigError
from medunet.instances.settings import InstanceSettings
from medunet.instances.watershed import ObjectRule
from medunet.model import Model, ModelCard, save_model
from medunet.networks.settings import UNetSettings
from medunet.predict import segment_files
from medunet.prediction.outputs import PredictRequest
from medunet.prediction.planning import PredictSettings
from medunet.transforms.preprocess import Normalisation, PreprocessSettings
from medunet.volume import Volume

IDS = LabelTable(("background", "cell"), (0, 1), None, "instances")
TARGETS = ("foreground", "separated", "border", "cores")


class Stated(torch.nn.Module):
    """A network whose answer is its input: scans that hold scores."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def card_of(instances: InstanceSettings | None, dimensions: int, labels: LabelTable = IDS, channels: int = 0):
    labels = instances.learned(labels) if instances else labels
    network = UNetSettings(
        dimensions=dimensions, in_channels=channels or labels.outputs, classes=labels.outputs, channels=(4, 8)
    )
    return ModelCard(
        "cells", network, PreprocessSettings(normalise=(Normalisation("none"),)), labels,
        ("grey",) * network.in_channels, (16,) * dimensions, mirror_axes=(0,), instances=instances,
    )  # fmt: skip


def cells(shape: tuple[int, ...], seed: int = 4) -> np.ndarray:
    """Touching cells in a blob, and one that lies alone; ids in no order."""
    random = np.random.default_rng(seed)
    grid = np.indices(shape)
    middle = [n / 2 for n in shape]
    blob = sum(((g - m) / (0.4 * n)) ** 2 for g, m, n in zip(grid, middle, shape, strict=True)) < 1
    seeds = np.zeros(shape, np.int32)
    places = np.argwhere(blob)[random.permutation(blob.sum())]
    chosen: list[np.ndarray] = []
    for place in places:
        if all(np.linalg.norm(place - other) > 14 for other in chosen):
            chosen.append(place)
    for number, place in enumerate(chosen):
        seeds[tuple(place)] = number + 1
    distance = ndimage.distance_transform_edt(seeds == 0)
    return watershed(distance, seeds, mask=blob)


def scores_of(ids: np.ndarray, settings: InstanceSettings) -> np.ndarray:
    """Logits `(output, *spatial)` of a network that has learned its targets well, if not sharply."""
    depth, largest = np.zeros(ids.shape), np.ones(ids.shape)
    for number in range(1, ids.max() + 1):
        own = ndimage.distance_transform_edt(ids == number)
        depth, largest = np.maximum(depth, own), np.where(ids == number, own.max(), largest)
    inside = ids > 0
    if settings.target == "separated":
        lowest = ndimage.minimum_filter(np.where(inside, ids, ids.max()), 3)
        inside &= (lowest == ids) & (ndimage.maximum_filter(ids, 3) == ids)
    if settings.target == "border":
        border = inside & (depth <= 2)
        channels = [~inside, inside & ~border, border]
    elif settings.target == "cores":
        channels = [inside, *(inside & (depth > share * largest) for share in settings.depths)]
    else:
        channels = [~inside, inside]
    softly = [ndimage.gaussian_filter(one.astype(np.float32), 0.5) for one in channels]
    return np.stack([8 * (one - 0.5) for one in softly])


def overlap(found: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Of each true object, the IoU with the one that covers most of it."""
    best = []
    for number in range(1, ids.max() + 1):
        own = ids == number
        values, counts = np.unique(found[own], return_counts=True)
        other = found == values[np.argmax(counts)] if values[np.argmax(counts)] else np.zeros_like(own)
        best.append((own & other).sum() / (own | other).sum())
    return np.array(best)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["separated", "border", "cores"])
@pytest.mark.parametrize("shape", [(90, 80), (30, 40, 36)])
def test_touching_objects_come_back(target: str, shape: tuple[int, ...]) -> None:
    settings = InstanceSettings(target)  # type: ignore[arg-type]
    ids = cells(shape)
    assert ids.max() >= 6
    model = Model(Stated().eval(), card_of(settings, len(shape)))
    volume = Volume(scores_of(ids, settings), np.diag([-1.0, 2, 1, 1]))
    found = segment_objects(volume, model)
    assert found.array.dtype == np.uint16 and found.array.max() == ids.max()
    assert np.median(overlap(found.array[0], ids)) > 0.9 and overlap(found.array[0], ids).min() > 0.5
    np.testing.assert_array_equal(found.affine, volume.affine)
    mask = segment_volume(volume, model)
    assert set(np.unique(mask.array)) == {0, 1}
    if target != "separated":
        np.testing.assert_array_equal(mask.array > 0, found.array > 0)


def test_plain_foreground_has_one_object_for_what_touches_unless_it_is_split() -> None:
    ids = cells((60, 50))
    settings = InstanceSettings("foreground")
    model, volume = Model(Stated().eval(), card_of(settings, 2)), Volume(scores_of(ids, settings), unit="um")
    assert segment_objects(volume, model).array.max() == 1
    two = np.zeros((40, 60), int)
    y, x = np.indices(two.shape)
    two[(y - 20) ** 2 + (x - 20) ** 2 < 120], two[(y - 20) ** 2 + (x - 39) ** 2 < 120] = 1, 2
    apart = segment_objects(Volume(scores_of(two, settings)), model, rule=ObjectRule(split=1.0)).array[0]
    assert overlap(apart, two).min() > 0.9


def test_an_array_gives_an_array_and_rules_are_obeyed() -> None:
    ids = np.zeros((30, 30), int)
    ids[5:12, 5:12], ids[8, 8], ids[20, 20], ids[0:4, 15:25] = 1, 0, 2, 3
    model = Model(Stated().eval(), card_of(None, 2, table_from_names({"background": 0, "cell": 9}, None)))
    scores = np.stack([ids == 0, ids > 0]).astype(np.float32)
    found = segment_objects(scores, model)
    assert isinstance(found, np.ndarray) and found.shape == (1, 30, 30)
    np.testing.assert_array_equal([found[0, 5, 5], found[0, 8, 8], found[0, 20, 20], found[0, 1, 17]], [1, 0, 3, 2])
    kept = segment_objects(scores, model, rule=ObjectRule(2, fill_holes=True, drop_edge=True))[0]
    assert kept.max() == 1 and kept[8, 8] == 1 and kept.sum() == 49


def test_a_network_of_pictures_joins_objects_through_the_slices_of_a_stack() -> None:
    settings = InstanceSettings("border")
    ids = cells((30, 26, 20))
    scores = scores_of(ids, settings)
    flat = Model(Stated().eval(), card_of(settings, 2))
    deep = Model(Stated().eval(), card_of(settings, 3))
    found = segment_objects(Volume(scores), flat).array
    np.testing.assert_array_equal(found, segment_objects(Volume(scores), deep).array)
    assert found.max() == ids.max()


@pytest.mark.parametrize("memory", [2**32, 3 * 2**20])
def test_less_memory_and_mirroring_find_the_same_objects(memory: int) -> None:
    """A trained network's scores stand in for themselves: mirror images of a voxel-wise answer are the same."""
    settings = InstanceSettings("cores")
    ids = cells((60, 50))
    model = Model(Stated().eval(), card_of(settings, 2))
    volume = Volume(scores_of(ids, settings))
    plain = segment_objects(volume, model).array
    how = PredictSettings(memory=memory, tta=True, precision="fp32")
    np.testing.assert_array_equal(segment_objects(volume, model, how).array, plain)
    np.testing.assert_array_equal(segment_objects(volume, [model, model], how).array, plain)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A real network with random weights that answers in borders."""
    card = card_of(InstanceSettings("border"), 2, channels=1)
    torch.manual_seed(3)
    from medunet.networks.unet import UNet

    network = UNet(card.network, 3)
    save_model(tmp_path / "model.safetensors", network.state_dict(), card)
    return tmp_path / "model.safetensors"


def test_tiffs_keep_axes_and_pixel_size_and_the_record_counts(trained: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 3, (40, 52)).astype(np.float32)
    tifffile.imwrite(
        tmp_path / "a.tif", image, imagej=True, resolution=(2.0, 2.0), metadata={"axes": "YX", "unit": "um"}
    )
    output, record = tmp_path / "out", tmp_path / "record.json"
    options = ["--instances", "--probabilities", "--verify", "--min-size", "2", "--record", str(record)]
    assert run(["predict", str(trained), str(tmp_path / "a.tif"), "-o", str(output), *options]) == 0
    with tifffile.TiffFile(output / "a.tif") as file:
        ids = file.asarray()
        assert file.series[0].axes == "YX" and ids.dtype == np.uint16 and ids.shape == image.shape
        assert file.pages[0].tags["XResolution"].value == (2, 1)
    written = json.loads(record.read_text())
    assert written["cases"][0]["objects"] == ids.max() > 3
    assert written["instances"] == {"min_size": 2, "fill_holes": False, "drop_edge": False, "split": None}
    assert np.bincount(ids.ravel())[1:].min() >= 2
    np.testing.assert_array_equal(np.unique(ids), np.arange(ids.max() + 1))
    # the ids of the network's own probabilities, read back from the file
    probabilities = medunet.read_volume(output / "a_probabilities.tif").array
    assert (ids.T[probabilities.argmax(axis=0) == 0] == 0).all()


@pytest.mark.slow
def test_a_table_and_rois_describe_the_ids_beside_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = np.random.default_rng(0).normal(0, 3, (40, 52)).astype(np.float32)
    tifffile.imwrite(
        tmp_path / "a.tif", image, imagej=True, resolution=(2.0, 2.0), metadata={"axes": "YX", "unit": "um"}
    )
    output = tmp_path / "out"
    command = ["predict", str(trained), str(tmp_path / "a.tif"), "-o", str(output), "--instances", "--table", "--rois"]
    assert run(command) == 0
    ids = tifffile.imread(output / "a.tif")
    with (output / "a_objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows] == list(range(1, ids.max() + 1))
    assert [int(row["pixels"]) for row in rows] == np.bincount(ids.ravel())[1:].tolist()
    assert [float(row["area_um2"]) for row in rows] == pytest.approx(np.bincount(ids.ravel())[1:] / 4)
    means = ndimage.mean(image, ids, np.arange(1, ids.max() + 1))
    assert [float(row["mean_grey"]) for row in rows] == pytest.approx(means, rel=1e-5, abs=1e-6)
    rois = roifile.roiread(output / "a_rois.zip")
    assert sorted(roi.name for roi in rois) == sorted(str(number) for number in range(1, ids.max() + 1))
    (output / "a.tif").unlink()
    (output / "a_rois.zip").unlink()
    assert run(command) == 1
    assert "a_objects.csv: exists already" in capsys.readouterr().err
    assert not (output / "a.tif").exists()


@pytest.mark.slow
@pytest.mark.parametrize("code", ["RAS", "LPI", "PIR"])
def test_nifti_objects_lie_where_the_scan_lies(code: str, tmp_path: Path) -> None:
    """Another orientation in the file, the same objects in space; numbers follow the file's own order."""
    labels = table_from_names({"background": 0, "cell": 1}, None)
    card = replace(card_of(None, 3, labels), preprocess=PreprocessSettings(normalise=(Normalisation("none"),)))
    network = UNetSettings(dimensions=3, in_channels=1, classes=2, channels=(2, 4), kernels=1)
    from medunet.networks.unet import UNet

    torch.manual_seed(0)
    save_model(tmp_path / "model.safetensors", UNet(network, 0).state_dict(), replace(card, network=network))
    values = np.random.default_rng(1).normal(0, 5, (12, 10, 9)).astype(np.float32)
    scan = nib.as_closest_canonical(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1])))
    turned = scan.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(tuple(code))
        )
    )  # fmt: skip
    found = []
    for name, image in (("plain", scan), ("turned", turned)):
        nib.save(image, tmp_path / f"{name}.nii.gz")
        request = PredictRequest([tmp_path / f"{name}.nii.gz"], tmp_path / "out", objects=ObjectRule())
        assert not segment_files(str(tmp_path / "model.safetensors"), request, PredictSettings()).failed
        result = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert result.get_data_dtype() == np.uint16
        np.testing.assert_array_equal(result.affine, image.affine)
        found.append(np.asarray(nib.as_closest_canonical(result).dataobj))
    assert found[0].max() == found[1].max() > 0
    np.testing.assert_array_equal(found[0] > 0, found[1] > 0)


@pytest.mark.parametrize(
    "option",
    [["--min-size", "3"], ["--fill-holes"], ["--drop-edge-objects"], ["--split", "1"], ["--table"], ["--rois"]],
)
def test_options_of_objects_need_instances(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["predict", "model", str(tmp_path), "-o", str(tmp_path / "o"), *option]) == 2
    assert "--instances" in capsys.readouterr().err


def test_a_model_of_several_classes_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    labels = table_from_names({"background": 0, "nucleus": 1, "axon": 2}, None)
    card = card_of(None, 2, labels, channels=1)
    from medunet.networks.unet import UNet

    save_model(tmp_path / "m.safetensors", UNet(card.network, 0).state_dict(), card)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), np.uint8), metadata={"axes": "YX"})
    arguments = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "a.tif"), "-o", str(tmp_path / "o")]
    assert run([*arguments, "--instances"]) == 1
    assert "one kind of object; this one learned 2: nucleus, axon" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    with pytest.raises(ConfigError, match="one kind of object"):
        segment_objects(np.zeros((1, 20, 20), np.float32), medunet.load_model(tmp_path / "m.safetensors"))
