"""Orientation, voxel size and normalisation in a MONAI script are those of `medunet train`, and are taken back."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, PersistentDataset, ThreadDataLoader, decollate_batch
from monai.transforms import Compose, Invertd

import medunet
import medunet.monai as mm
from medunet.errors import ConfigError, DataError
from medunet.transforms.preprocess import PreprocessSettings, preprocess, preprocess_label
from tests.flows.made import make_set

OBLIQUE = np.array([[0.1, -1.9, 0.2, 5], [-0.8, 0.1, 0.3, -7], [0.1, 0.2, 3.1, 2], [0, 0, 0, 1]])
"""Voxels of about 0.8 x 1.9 x 3.1 mm, turned and tilted."""


def scan_of(shape: tuple[int, ...] = (9, 8, 7), seed: int = 0) -> MetaTensor:
    values = np.random.default_rng(seed).normal(100, 20, (1, *shape))
    return MetaTensor(torch.tensor(values, dtype=torch.float32), affine=torch.tensor(OBLIQUE))


def ramp(shape: tuple[int, ...], affine: np.ndarray, axis: int) -> MetaTensor:
    """Each voxel holds its position along an axis of the world: linear, so linear interpolation keeps it."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    values = np.tensordot(affine[axis, : len(shape)], places, 1) + affine[axis, -1]
    return MetaTensor(torch.tensor(values[None], dtype=torch.float32), affine=torch.tensor(affine))


def off_the_ramp(found: MetaTensor, axis: int, margin: int) -> float:
    """The largest distance to the positions that the tensor's own affine says, away from the rim."""
    right = ramp(tuple(found.shape[1:]), found.affine.numpy(), axis)
    inner = (slice(None), *(slice(margin, n - margin) for n in found.shape[1:]))
    return float((found.as_tensor()[inner] - right.as_tensor()[inner]).abs().max())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("pixdim", [(1.0, 1.0, 1.0), (0.5, 2.5, 3.1), (2.0, 2.0, 1.0)])
def test_a_voxel_stays_where_it_was(axis: int, pixdim: tuple[float, ...]) -> None:
    moved = Compose([mm.Orientation(), mm.Spacing(pixdim)])(ramp((24, 34, 26), OBLIQUE, axis))
    assert off_the_ramp(moved, axis, margin=3) < 1e-3
    assert nibabel.aff2axcodes(moved.affine.numpy()) == ("R", "A", "S")
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(moved.affine.numpy()), pixdim, rtol=0.2)


def test_arrays_are_those_of_the_training() -> None:
    scan = scan_of()
    label = MetaTensor(torch.randint(0, 4, scan.shape, dtype=torch.uint8), affine=scan.affine)
    steps = Compose(
        [
            mm.Orientationd(["image", "label"], labels="label"),
            mm.NormalizeScand("image"),
            mm.Spacingd(["image", "label"], (1.1, 1.2, 1.3), labels="label"),
        ]
    )
    found = steps({"image": scan, "label": label})
    volume = medunet.Volume.from_metatensor(scan)
    image, undo = preprocess(volume, PreprocessSettings(spacing=(1.1, 1.2, 1.3)))
    np.testing.assert_array_equal(found["image"].numpy(), image)
    np.testing.assert_array_equal(found["label"].numpy(), preprocess_label(label.numpy(), undo))
    assert found["label"].dtype == torch.uint8


def test_the_way_back_ends_on_the_scans_grid() -> None:
    scan = scan_of()
    steps = Compose([mm.Orientationd("image"), mm.Spacingd("image", (1.0, 1.0, 1.0))])
    item = steps({"image": scan})
    item["pred"] = item["image"].clone()
    back = Invertd("pred", transform=steps, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape == scan.shape and torch.equal(back.affine, scan.affine) and not back.applied_operations
    smooth = ramp((9, 8, 7), OBLIQUE, 1)
    again = steps.inverse(steps({"image": smooth}))["image"]
    assert off_the_ramp(again, 1, margin=2) < 1e-3
    turn = mm.Orientation()
    assert torch.equal(turn.inverse(turn(scan)).as_tensor(), scan.as_tensor())


@pytest.mark.parametrize("pixdim", [(0.3, 1.0, 5.0), (2.2, 0.7, 2.2)])
def test_labels_are_never_interpolated_there_and_back(pixdim: tuple[float, ...]) -> None:
    values = torch.randint(0, 2, (1, 9, 8, 7)) * 7 + 3
    for label in (values.to(torch.int16), values.float()):
        step = mm.Spacingd("label", pixdim, labels="label")
        moved = step({"label": MetaTensor(label, affine=torch.tensor(OBLIQUE))})
        assert set(moved["label"].unique().tolist()) <= {3, 10} and not moved["label"].dtype.is_floating_point
        back = step.inverse(moved)["label"]
        assert set(back.unique().tolist()) <= {3, 10} and back.shape == label.shape
    logits = MetaTensor(values.float(), affine=torch.tensor(OBLIQUE))
    steps = Compose([mm.Spacingd("image", pixdim)])
    item = steps({"image": logits})
    item["pred"] = MetaTensor((item["image"].as_tensor() > 6).float() * 5)
    nearest = Invertd("pred", transform=steps, orig_keys="image", nearest_interp=True)(item)["pred"]
    assert set(nearest.unique().tolist()) <= {0.0, 5.0}


def test_pictures_keep_their_axes_and_are_resampled_in_two() -> None:
    picture = MetaTensor(torch.rand(2, 8, 6), affine=torch.diag(torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)))
    assert torch.equal(mm.Orientation()(picture).as_tensor(), picture.as_tensor())
    moved = mm.Spacing((0.5, 0.5))(picture)
    assert moved.shape == (2, 8, 3)
    np.testing.assert_allclose(np.diag(moved.affine.numpy())[:2], [0.5, 0.5])


@pytest.mark.slow
def test_monais_datasets_and_loaders_take_the_steps(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 2)
    files = [{"image": str(p), "label": str(data / "labels" / p.name)} for p in sorted((data / "images").iterdir())]
    both = ["image", "label"]
    steps = Compose(
        [
            mm.LoadScand(both, labels="label"),
            mm.Orientationd(both),
            mm.NormalizeScand("image"),
            mm.Spacingd(both, (1.5, 1.5, 1.5)),
        ]
    )
    plain = [steps(file) for file in files]
    kept = PersistentDataset(files, steps, cache_dir=tmp_path / "cache")
    loaders = [
        DataLoader(CacheDataset(files, steps, progress=False), num_workers=1),
        ThreadDataLoader(kept, num_workers=0),
    ]
    for loader in loaders:
        for right, batch in zip(plain, loader, strict=True):
            (item,) = decollate_batch(batch)
            assert all(torch.equal(item[key].as_tensor(), right[key].as_tensor()) for key in both)
            back = steps.inverse(item)
            scan = medunet.read_volume(item["image"].meta["filename_or_obj"])
            assert back["label"].shape[1:] == scan.shape
            np.testing.assert_array_equal(back["label"].affine.numpy(), scan.affine)


def test_wrong_calls_are_refused() -> None:
    scan = scan_of()
    with pytest.raises(DataError, match="is a label map"):
        mm.NormalizeScan()(MetaTensor(scan.as_tensor(), meta={"kind": "label"}))
    with pytest.raises(DataError, match="no physical voxel size"):
        mm.Spacing((1, 1, 1))(MetaTensor(scan.as_tensor(), meta={"unit": "pixel"}))
    with pytest.raises(DataError, match="3 dimensions"):
        mm.Spacing((1, 1))(scan)
    with pytest.raises(DataError, match="holds fractions"):
        mm.Spacingd("label", (1, 1, 1), labels="label")({"label": scan})
    with pytest.raises(ConfigError, match="low, high, mean and std"):
        mm.NormalizeScan("ct")
    with pytest.raises(ConfigError, match="none of the keys"):
        mm.Orientationd("image", labels="label")
