"""Prepared cases are the same to the last bit wherever they come from, and what cannot be is said beforehand."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medunet.datasets.catalogue import Case, read_data_set
from medunet.datasets.labels import IGNORE, LabelTable, table_from_names
from medunet.datasets.loading import load_image, load_label_values
from medunet.datasets.splits import Fold
from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import write_volume
from medunet.geometry.grids import resample_nearest
from medunet.instances.settings import InstanceSettings, Target
from medunet.instances.targets import make_target, number_objects
from medunet.instances.weightmap import WeightMapSettings, gap_weights
from medunet.patches import prepare, steps
from medunet.patches.cache import Cache, entry_size
from medunet.patches.dataset import PreparedCase
from medunet.patches.prepare import Preparation, prepare_cases, split_inside
from medunet.transforms.preprocess import PreprocessSettings
from medunet.volume import Volume
from tests.flows.made import LABELS, make_set

TABLE = table_from_names(LABELS, None)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    return read_data_set(make_set(tmp_path / "data", cases=3, shape=(10, 9, 8))).cases


def how(tmp_path: Path, cache: Cache | None, memory: int = 10**9) -> Preparation:
    settings = PreprocessSettings(spacing=(0.7, 1.3, 1.0))
    return Preparation(settings, TABLE, None, tmp_path / "run" / "preprocessed", memory, cache)


def same(first: list[PreparedCase], second: list[PreparedCase]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.name == b.name and list(a.foreground) == list(b.foreground)
        for one, other in [
            (a.image, b.image),
            (a.label, b.label),
            *((a.foreground[c], b.foreground[c]) for c in (1, 2)),
        ]:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_without_cold_warm_in_memory_and_mapped_all_give_the_same_bits(tmp_path: Path, cases: tuple[Case, ...]) -> None:
    expected = prepare_cases(cases, how(tmp_path, None))
    for name, memory in (("held", 10**9), ("mapped", 0)):
        lines: list[str] = []
        for _ in ("cold", "warm"):
            ready = prepare_cases(cases, how(tmp_path, Cache(tmp_path / name), memory), say=lines.append)
            same(ready, expected)
            assert all(isinstance(case.image, np.memmap) == (memory == 0) for case in ready)
        assert not (tmp_path / "run").exists()
        starts = [line.partition(" (")[0] for line in lines]
        assert starts == [f"prepared cases: {n} of 3 from the cache, {tmp_path / name}" for n in (0, 3)]
    same(prepare_cases(cases, how(tmp_path, None, 0)), expected)
    assert (tmp_path / "run" / "preprocessed" / "case_0.image.npy").exists()


def test_the_first_cases_are_held_in_memory_while_they_fit(tmp_path: Path, cases: tuple[Case, ...]) -> None:
    one = prepare._size(cases[0], how(tmp_path, None))
    for cache in (None, Cache(tmp_path / "c"), Cache(tmp_path / "c")):
        ready = prepare_cases(cases, how(tmp_path, cache, 2 * one))
        assert [isinstance(case.image, np.memmap) for case in ready] == [False, False, True]


@pytest.mark.parametrize("spacing", [(0.7, 1.3, 1.0), (2.1, 0.3, 0.9), None])
def test_the_size_said_beforehand_is_that_of_the_shape_that_comes_out(
    tmp_path: Path, cases: tuple[Case, ...], spacing: tuple[float, ...] | None
) -> None:
    """Axes that are turned, and lengths that are rounded, count."""
    plan = replace(how(tmp_path, Cache(tmp_path / "c")), settings=PreprocessSettings(spacing=spacing))
    (ready,) = prepare_cases(cases[:1], plan)
    assert prepare._size(cases[0], plan) == entry_size(ready.label.shape[1:], 1, 2)
    (entry,) = (path for path in (tmp_path / "c" / "cases").iterdir() if path.is_dir())
    assert sum(path.stat().st_size for path in entry.iterdir()) <= prepare._size(cases[0], plan)


def test_only_what_changed_is_made_anew(tmp_path: Path, cases: tuple[Case, ...]) -> None:
    lines: list[str] = []
    prepare_cases(cases, how(tmp_path, Cache(tmp_path / "c")))
    shutil.copy(cases[1].images[0], cases[0].images[0])
    ready = prepare_cases(cases, how(tmp_path, Cache(tmp_path / "c")), say=lines.append)
    same(ready, prepare_cases(cases, how(tmp_path, None)))
    assert lines[0].startswith("prepared cases: 2 of 3 from the cache")


def test_a_damaged_entry_is_made_anew(tmp_path: Path, cases: tuple[Case, ...]) -> None:
    lines: list[str] = []
    cache = Cache(tmp_path / "c")
    expected = prepare_cases(cases, how(tmp_path, cache))
    image = next((tmp_path / "c" / "cases").rglob("image.npy"))
    image.write_bytes(image.read_bytes()[:-1])
    for _ in range(2):
        same(prepare_cases(cases, how(tmp_path, cache, 0), say=lines.append), expected)
    assert [line[16] for line in lines] == ["2", "3"]


def test_files_that_change_while_they_are_read_are_not_learned_from(
    tmp_path: Path, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = steps.load_image

    def copied_over_meanwhile(case: Case, axes: str | None) -> object:
        volume = real(case, axes)
        shutil.copy(cases[2].images[0], cases[1].images[0])
        return volume

    monkeypatch.setattr(steps, "load_image", copied_over_meanwhile)
    with pytest.raises(DataError, match="case_1: its files changed while they were read"):
        prepare_cases(cases[1:2], how(tmp_path, Cache(tmp_path / "c")))
    assert [path for path in (tmp_path / "c" / "cases").iterdir() if path.is_dir()] == []


def disk(monkeypatch: pytest.MonkeyPatch, free: dict[str, int]) -> None:
    """What is free on the disks of these folders."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free[Path(path).name]))


def test_a_disk_without_room_for_the_cache_is_an_error_where_the_cache_was_asked_for(
    tmp_path: Path, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, {"c": 1234})
    read: list[str] = []
    needed = sum(prepare._size(case, how(tmp_path, None)) for case in cases)
    with pytest.raises(OutputError, match=f"need up to {needed:,} bytes in this cache, but 1,234 bytes are free there"):
        prepare_cases(cases, how(tmp_path, Cache(tmp_path / "c")), read.append)
    assert not read


def test_a_disk_without_room_for_the_default_cache_is_a_note(
    tmp_path: Path, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare_cases(cases, how(tmp_path, None))
    disk(monkeypatch, {"c": 1234, tmp_path.name: 10**9})
    for memory in (10**9, 0):
        lines: list[str] = []
        same(
            prepare_cases(cases, how(tmp_path, Cache(tmp_path / "c", asked=False), memory), say=lines.append), expected
        )
        assert len(lines) == 1 and lines[0].startswith("NOTE: preparing without the cache.") and "1,234" in lines[0]


@pytest.mark.parametrize("cached", [True, False])
def test_what_fits_neither_into_memory_nor_onto_a_disk_is_said_before_anything_is_read(
    tmp_path: Path, cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    disk(monkeypatch, {"c": 0, tmp_path.name: 4321})
    read: list[str] = []
    needed = sum(prepare._size(case, how(tmp_path, None)) for case in cases)
    cache = Cache(tmp_path / "c", asked=False) if cached else None
    with pytest.raises(OutputError, match=f"not fit into memory need up to {needed:,} bytes, 4,321 are free"):
        prepare_cases(cases, how(tmp_path, cache, 0), read.append)
    assert not read


def test_a_disk_that_refuses_in_the_middle_leaves_nothing_half_written(tmp_path: Path, cases: tuple[Case, ...]) -> None:
    """A limit on the size of files stands for a quota: the system itself refuses to write on."""
    resource = pytest.importorskip("resource")
    expected, lines = prepare_cases(cases, how(tmp_path, None)), []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            prepare_cases(cases, how(tmp_path, Cache(tmp_path / "c")))
        ready = prepare_cases(cases, how(tmp_path, Cache(tmp_path / "c", asked=False)), say=lines.append)
        with pytest.raises(OutputError, match=r"case_0\.image\.npy: cannot be written"):
            prepare_cases(cases, how(tmp_path, None, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    same(ready, expected)
    assert [path.name for path in (tmp_path / "c" / "cases").iterdir()] == ["CACHEDIR.TAG"]
    assert len(lines) == 1 and lines[0].startswith("NOTE: preparing without the cache.")


CELLS = LabelTable(("background", "cell"), (0, 1), 65535, "instances")


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Case, ...]:
    """Two images of objects with thick slices; some of their voxels are not annotated."""
    affine = np.diag([1e-3, 1e-3, 3e-3, 1.0])
    for number in range(2):
        random = np.random.default_rng(number)
        ids = np.zeros((1, 20, 24, 8), np.uint16)
        for x, y in ((2, 3), (8, 3), (12, 12)):
            ids[0, x : x + 6, y : y + 8, 1:7] = random.integers(1, 60000)
        ids[0, :, 22:] = 65535
        image = Volume((100 + 50 * (ids > 0) + random.normal(size=ids.shape)).astype(np.float32), affine)
        write_volume(image, tmp_path / "cells" / "images" / f"c{number}.nii.gz")
        write_volume(Volume(ids, affine), tmp_path / "cells" / "labels" / f"c{number}.nii.gz")
    return read_data_set(tmp_path / "cells").cases


@pytest.mark.parametrize("target", ["foreground", "separated", "border", "cores"])
def test_objects_are_taken_to_the_networks_grid_before_anything_is_made_of_them(
    tmp_path: Path, cells: tuple[Case, ...], target: Target
) -> None:
    instances, weights = InstanceSettings(target), WeightMapSettings("unet2015", sigma=4, sigma_unit="um")
    plan = replace(
        how(tmp_path, None), settings=PreprocessSettings(spacing=(1e-3, 2e-3, 1.5e-3)), labels=CELLS,
        instances=instances, weight_map=weights,
    )  # fmt: skip
    for case, ready in zip(cells, prepare_cases(cells, plan), strict=True):
        image = load_image(case)
        ids = resample_nearest(load_label_values(case, image), ready.label.shape[1:]).astype(np.int64)
        known = ids != 65535
        objects = number_objects(ids, CELLS, "x")
        spacing = [s * n / m for s, n, m in zip((1, 1, 3), image.shape, ids.shape[1:], strict=True)]
        np.testing.assert_array_equal(ready.label, make_target(objects, spacing, instances))
        # Spacings of files are rounded.
        np.testing.assert_allclose(ready.weight, gap_weights(objects, spacing, weights), rtol=2e-3)
        assert (ready.label[~known] == IGNORE).all() and ready.weight is not None and ready.weight.max() > 1
        # So small objects have a core of each share, but no rim.
        assert max(ready.foreground) == max(plan.learned.foreground) and set(ready.foreground) <= {1, 2, 3}


def test_objects_without_cold_warm_in_memory_and_mapped_are_the_same(tmp_path: Path, cells: tuple[Case, ...]) -> None:
    plan = replace(
        how(tmp_path, None), settings=PreprocessSettings(), labels=CELLS, instances=InstanceSettings("cores"),
        weight_map=WeightMapSettings("unet2015"),
    )  # fmt: skip
    expected = prepare_cases(cells, plan)
    for cache, memory in ((None, 0), (Cache(tmp_path / "c"), 10**9), (Cache(tmp_path / "c"), 0)):
        for one, other in zip(prepare_cases(cells, replace(plan, cache=cache, memory=memory)), expected, strict=True):
            np.testing.assert_array_equal(one.label, other.label)
            np.testing.assert_array_equal(one.weight, other.weight)
            assert isinstance(one.weight, np.memmap) == (memory == 0)
    sizes = [sum(f.stat().st_size for f in e.iterdir()) for e in (tmp_path / "c" / "cases").iterdir() if e.is_dir()]
    assert max(sizes) <= prepare._size(cells[0], plan)
    (case, *_) = expected
    learned, held = split_inside(case, plan.learned, Fold(0, 4))
    assert learned.weight is case.weight and held.weight is case.weight
    assert set(np.unique(held.label)) <= {0, 1, 2, 3, IGNORE} and (learned.label != held.label).any()


def test_sigma_in_um_needs_a_pixel_size(tmp_path: Path) -> None:
    cases = read_data_set(make_set(tmp_path / "png", cases=2, shape=(20, 18), suffix=".png")).cases
    plan = replace(
        how(tmp_path, None), settings=PreprocessSettings(), labels=CELLS, instances=InstanceSettings(),
        weight_map=WeightMapSettings("unet2015", sigma_unit="um"),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"case_0: its image has no pixel size, but weight_map\.sigma is 5 um"):
        prepare_cases(cases, plan)
