"""The elastic deformation of the two U-Net papers: splines between random vectors, by scipy as oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.moves import draw_field
from medunet.transforms.augment.sampling import spline_matrix
from medunet.transforms.augment.settings import AugmentSettings, Chance, Draw, ElasticGrid

STILL = AugmentSettings.none()


def only(grid: ElasticGrid | None, elastic: Chance, coarse: int | None = None) -> AugmentSettings:
    names = {name: getattr(STILL, name) for name in STILL.__dataclass_fields__}
    return AugmentSettings(**names | {"elastic": elastic, "elastic_grid": grid, "coarse_axis": coarse})


@pytest.mark.slow
@given(st.integers(2, 9), st.booleans(), st.integers(0, 999))
@settings(deadline=None)
def test_splines_are_scipys(length: int, through: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, places = random.normal(size=length), random.uniform(0, length - 1, 20)
    found = spline_matrix(length, places, through) @ values
    expected = ndimage.map_coordinates(values, [places], order=3, mode="mirror", prefilter=through)
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("spline", ["cubic", "b-spline"])
def test_the_field_of_2015_is_a_bicubic_spline_over_three_by_three_vectors(spline: str) -> None:
    grid, size = ElasticGrid(points=3, spline=spline), (41, 61)  # type: ignore[arg-type]
    field = draw_field(only(grid, Chance(1, 4, 4)), np.random.default_rng(5), size).numpy()
    vectors = np.random.default_rng(5).standard_normal((2, 3, 3), dtype=np.float32)
    places = np.stack(np.meshgrid(*(np.linspace(0, 2, n) for n in size), indexing="ij"))
    for axis in range(2):
        expected = ndimage.map_coordinates(vectors[axis], places, order=3, mode="mirror", prefilter=spline == "cubic")
        np.testing.assert_allclose(field[axis], expected, atol=1e-5)
    if spline == "cubic":
        np.testing.assert_allclose(field[:, ::20, ::30], vectors, atol=1e-5)


@pytest.mark.slow
def test_vectors_and_displacements_have_the_stated_deviation() -> None:
    """Of 2015 the vectors themselves; of 2016 what a B-spline leaves of them: (1/6, 4/6, 1/6) per axis, at a vector."""
    through, smooth = (
        [draw_field(only(grid, Chance(1, 1, 1)), np.random.default_rng(seed), size).numpy() for seed in range(150)]
        for grid, size in ((ElasticGrid(points=3), (21, 21)), (ElasticGrid(spacing=8, spline="b-spline"), (17, 17, 17)))
    )
    assert np.std([field[:, ::10, ::10] for field in through]) == pytest.approx(1, abs=0.05)
    left = np.std([field[:, ::8, ::8, ::8] for field in smooth], axis=(0, 1))
    assert left == pytest.approx(np.full((3, 3, 3), np.sqrt(1 / 2) ** 3), rel=0.2), "ends are as rough as the middle"


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_patch_moves_with_its_label_and_nothing_from_outside_is_learned(dimensions: int) -> None:
    """In the one resampling that there is: an image that tells its positions shows by how much each voxel moved."""
    grid = ElasticGrid(points=3) if dimensions == 2 else ElasticGrid(spacing=16, spline="b-spline")
    augmentation = Augmentation(only(grid, Chance(1, 3, 3)), dimensions)
    draw, size = Draw(1, 2, 3), (33,) * dimensions
    read = augmentation.read_size(size, draw)
    image = np.stack(np.indices(read)).astype(np.float32)
    label = (np.indices(read).sum(axis=0) % 200).astype(np.uint8)[None]
    seen, classes = augmentation(image, label, draw, size)
    field = 3 * draw_field(only(grid, Chance(1, 3, 3)), draw.generator(2), size).numpy()
    begin = np.array([(n - m) // 2 for n, m in zip(read, size, strict=True)]).reshape(-1, *(1,) * dimensions)
    inside = np.ones(size, bool)
    for n, place in zip(read, np.indices(size) + begin + field, strict=True):
        inside &= (place >= 0) & (place <= n - 1)
    assert inside.mean() > 0.99
    np.testing.assert_allclose(seen.numpy()[:, inside], (np.indices(size) + begin + field)[:, inside], atol=1e-3)
    nearest = np.rint(np.indices(size) + begin + field).astype(int).sum(axis=0) % 200
    known = inside & (classes[0].numpy() != IGNORE)
    assert (classes[0].numpy() == nearest)[known].mean() > 0.999
    assert np.abs(field).max() > 1


def test_thick_slices_are_left_alone_and_draws_repeat() -> None:
    settings_ = only(ElasticGrid(spacing=16), Chance(1, 2, 2), coarse=2)
    first, second = (draw_field(settings_, np.random.default_rng(1), (20, 20, 6)) for _ in range(2))
    assert torch.equal(first, second) and not first[2].any() and first[0].any()


def test_grids_that_fold_patches_are_refused() -> None:
    augmentation = Augmentation(only(ElasticGrid(points=3), Chance(1, 10, 10)), 2)
    augmentation.check_size((572, 572))
    augmentation.check_size((81, 90))
    with pytest.raises(ConfigError, match=r"folds patches of \(80, 300\) .* 39.5 voxels apart"):
        augmentation.check_size((80, 300))
    fine = Augmentation(only(ElasticGrid(spacing=12), Chance(1, 4, 4), coarse=2), 3)
    with pytest.raises(ConfigError, match="at most 3, or take a coarser grid"):
        fine.check_size((100, 100, 100))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ElasticGrid(), "either points or spacing"),
        (lambda: ElasticGrid(points=3, spacing=32), "either points or spacing"),
        (lambda: ElasticGrid(points=1), "at least 2"),
        (lambda: ElasticGrid(spacing=0.5), "at least 1 voxel"),
        (lambda: ElasticGrid(points=3, spline="linear"), "cubic or b-spline"),
    ],
)
def test_impossible_grids_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
