"""A cache must never give what was made of something else, nor half of anything, nor take what others need."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medunet.datasets.catalogue import Case
from medunet.datasets.labels import LabelTable, table_from_names
from medunet.errors import ConfigError, DataError, OutputError
from medunet.instances.settings import InstanceSettings
from medunet.instances.weightmap import WeightMapSettings
from medunet.patches import cache as cache_module
from medunet.patches.cache import Cache, case_key, default_folder, entry_size, find_cache, makers
from medunet.patches.dataset import PreparedCase, find_foreground
from medunet.transforms.preprocess import Normalisation, PreprocessSettings

TABLE = table_from_names({"background": 0, "a": 1, "b": 2}, None)
SETTINGS = PreprocessSettings()
quick = settings(deadline=None, max_examples=40)


def made(seed: int = 0, shape: tuple[int, ...] = (5, 4, 3)) -> PreparedCase:
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, (1, *shape)).astype(np.uint8)
    image = random.normal(size=(2, *shape)).astype(np.float32)
    return PreparedCase("made", image, label, find_foreground(label, (1, 2)))


def same(a: PreparedCase, b: PreparedCase) -> None:
    assert a.name == b.name and list(a.foreground) == list(b.foreground)
    pairs = [(a.image, b.image), (a.label, b.label), *((a.foreground[c], b.foreground[c]) for c in a.foreground)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def written(folder: Path, contents: list[bytes], stem: str = "x", suffix: str = ".nii") -> Case:
    """Files of arbitrary content: a key does not ask what they hold. The last one is the label."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}_{number}{suffix}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return Case(stem, tuple(paths[:-1]), paths[-1])


def key(
    case: Case, settings: PreprocessSettings = SETTINGS, labels: LabelTable = TABLE, axes: str | None = None
) -> str:
    return case_key(case, settings, labels, axes)


contents = st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=4)


@pytest.mark.slow
@quick
@given(contents=contents, data=st.data())
def test_any_changed_byte_of_any_file_changes_the_key(contents: list[bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = key(case := written(Path(folder), contents))
        paths = [*case.images, case.label]
        path = paths[data.draw(st.integers(0, len(paths) - 1))]
        assert path is not None
        changed = bytearray(path.read_bytes())
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        assert key(case) != before


@pytest.mark.slow
@quick
@given(contents=contents)
def test_files_that_end_elsewhere_have_another_key(contents: list[bytes]) -> None:
    """Moving a byte from one file to the next leaves the bytes of all files together as they were."""
    moved = [contents[0] + contents[1][:1], contents[1][1:] or b"\0", *contents[2:]]
    with tempfile.TemporaryDirectory() as folder:
        assert key(written(Path(folder, "a"), contents)) != key(written(Path(folder, "b"), moved))


@pytest.mark.slow
@quick
@given(contents=contents, when=st.integers(0, 2**31), stem=st.text("abcXYZ019-_", min_size=1, max_size=12))
def test_equal_content_has_an_equal_key_wherever_it_lies_whatever_its_name_and_time(
    contents: list[bytes], when: int, stem: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = written(Path(folder), contents), written(Path(folder, "else", "where"), contents, stem)
        for path in second.images:
            os.utime(path, (when, when))
        assert key(first) == key(second)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_channels_and_label_are_not_interchangeable(tmp_path: Path, order: tuple[int, ...]) -> None:
    given = [b"first", b"second", b"third"]
    assert key(written(tmp_path / "a", given)) != key(written(tmp_path / "b", [given[i] for i in order]))


def test_the_suffix_counts_because_it_decides_how_a_file_is_read(tmp_path: Path) -> None:
    given = [b"same", b"same"]
    assert key(written(tmp_path, given)) != key(written(tmp_path, given, suffix=".nii.gz"))


numbers = st.floats(-1e6, 1e6)
normalisations = st.builds(
    Normalisation,
    kind=st.sampled_from(["zscore", "ct", "minmax", "none"]),
    nonzero=st.booleans(),
    low=st.none() | numbers,
    high=st.none() | numbers,
    mean=st.none() | numbers,
    std=st.none() | numbers,
)
all_settings = st.builds(
    PreprocessSettings,
    orientation=st.sampled_from(["RAS", "stored"]),
    spacing=st.none() | st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    unit=st.sampled_from(["mm", "um", "nm"]),
    crop=st.sampled_from(["none", "nonzero"]),
    normalise=st.lists(normalisations, min_size=1, max_size=2).map(tuple),
)
tables = st.builds(
    lambda names, start, ignore, kind: LabelTable(tuple(names), tuple(range(start, start + len(names))), ignore, kind),
    st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=4, unique=True),
    st.integers(0, 3),
    st.none() | st.integers(20, 22),
    st.sampled_from(["classes", "instances"]),
)


@pytest.fixture(scope="module")
def one_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return written(tmp_path_factory.mktemp("case"), [b"image", b"label"])


@pytest.mark.slow
@quick
@given(a=all_settings, data=st.data())
def test_any_changed_setting_changes_the_key(one_case: Case, a: PreprocessSettings, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["orientation", "spacing", "unit", "crop", "normalise"]))
    b = replace(a, **{name: getattr(data.draw(all_settings), name)})
    assert (key(one_case, a) == key(one_case, b)) == (a == b)
    assert key(one_case, a) == key(one_case, replace(a))


@quick
@given(a=tables, b=tables)
def test_any_changed_label_table_changes_the_key(one_case: Case, a: LabelTable, b: LabelTable) -> None:
    assert (key(one_case, labels=a) == key(one_case, labels=b)) == (a == b)


def test_stated_axes_change_the_key(one_case: Case) -> None:
    assert len({key(one_case, axes=axes) for axes in (None, "ZYX", "CYX", "None")}) == 4


@pytest.mark.parametrize("name", ["format", "medunet", "source", "numpy", "scipy", "monai", "nibabel", "python-gdcm"])
def test_another_version_of_what_computes_changes_the_key(
    one_case: Case, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, versions = key(one_case), makers()
    assert name in versions
    monkeypatch.setattr(cache_module, "makers", lambda: versions | {name: "other"})
    assert key(one_case) != before


@pytest.mark.parametrize("changed", ["formats/nifti.py", "transforms/preprocess.py", "geometry/grids.py", "volume.py"])
def test_changed_source_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    package = Path(cache_module.__file__).parents[1]
    before = cache_module._source_digest()
    shutil.copytree(package, tmp_path / "medunet")
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "medunet" / "patches" / "cache.py"))
    assert cache_module._source_digest() == before
    with (tmp_path / "medunet" / changed).open("a") as file:
        file.write("\n")
    assert cache_module._source_digest() != before


@pytest.mark.slow
def test_the_key_covers_all_code_that_shapes_a_case() -> None:
    """All that preparing imports, directly or through others, but for errors and the version, which is in the key."""
    package = Path(cache_module.__file__).parents[1]
    command = [sys.executable, "-c", "import sys, medunet.patches.prepare; print(*sys.modules, sep='\\n')"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=package.parent).stdout.split()
    units = {name.split(".")[1] for name in loaded if name.startswith("medunet.")}
    assert {"datasets", "volume"} <= units, "these are loaded for certain"
    assert units - {"errors", "version"} - {part.removesuffix(".py") for part in cache_module._SHAPED_BY} == set()


HEADERS = {
    ".mhd": "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = v.raw\n",
    ".nhdr": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: v.raw\n\n",
    ".hdr": "the voxels of a pair lie in its .img",
}


@pytest.mark.parametrize("suffix", HEADERS)
def test_voxels_beside_a_header_count(tmp_path: Path, suffix: str) -> None:
    image, label, voxels = (
        tmp_path / f"v{suffix}",
        tmp_path / "l.nii",
        tmp_path / f"v{'.img' if suffix == '.hdr' else '.raw'}",
    )
    image.write_text(HEADERS[suffix])
    label.write_bytes(b"label")
    voxels.write_bytes(bytes(8))
    case = Case("v", (image,), label)
    before = key(case)
    voxels.write_bytes(bytes(7) + b"\1")
    assert key(case) != before
    voxels.unlink()
    with pytest.raises(DataError, match="missing"):
        key(case)


def test_a_dicom_series_counts_with_all_its_slices_but_not_their_names(tmp_path: Path) -> None:
    def series(name: str, slices: dict[str, bytes]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in slices.items():
            (folder / file).write_bytes(bytes(128) + b"DICM" + content)
        (tmp_path / "label.nii").write_bytes(b"label")
        return key(Case(name, (folder,), tmp_path / "label.nii"))

    first = series("a", {"1": b"x", "2": b"y"})
    assert series("b", {"2": b"x", "1": b"y"}) == first
    assert (
        len(
            {
                first,
                series("c", {"1": b"x", "2": b"z"}),
                series("d", {"1": b"x"}),
                series("e", {"1": b"x", "2": b"y", "3": b"y"}),
            }
        )
        == 4
    )


@pytest.mark.slow
@quick
@given(
    label=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.sampled_from([0, 1, 2, 5, 255])
    ),
    channels=st.integers(1, 3),
    mapped=st.booleans(),
)
def test_what_is_kept_is_found_again_to_the_last_bit(label: np.ndarray, channels: int, mapped: bool) -> None:
    image = np.random.default_rng(label.size).normal(size=(channels, *label.shape)).astype(np.float32)
    case = PreparedCase("made", image, label[None], find_foreground(label[None], (1, 2, 3, 4, 5)))
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        same(cache.keep("a" * 64, case, mapped), case)
        found = cache.find("a" * 64, "made", mapped)
        assert found is not None and isinstance(found.image, np.memmap) == isinstance(found.label, np.memmap) == mapped
        same(found, case)
        size = sum(path.stat().st_size for path in Path(folder, "cases", "a" * 64).iterdir())
        assert size <= entry_size(label.shape, channels, 5)
        del found
    assert cache.find("b" * 64, "made", mapped) is None


@pytest.mark.slow
@quick
@given(file=st.sampled_from(["image.npy", "label.npy", "foreground.npy", "manifest.json"]), data=st.data())
def test_any_damage_is_noticed_and_what_is_damaged_removed(file: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, case = Cache(Path(folder)), made()
        cache.keep("a" * 64, case, mapped=False)
        path = Path(folder, "cases", "a" * 64, file)
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        damaged = data.draw(st.sampled_from([flipped, content[:place], content + b"\0", None]))
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        assert cache.find("a" * 64, "made", data.draw(st.booleans())) is None
        assert list(Path(folder, "cases").iterdir()) == []
        cache.keep("a" * 64, case, mapped=False)
        again = cache.find("a" * 64, "made", mapped=False)
        assert again is not None
        same(again, case)


def test_what_does_not_fit_together_is_damage_even_with_the_right_digests(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep("a" * 64, made(), mapped=False)
    entry = tmp_path / "cases" / ("a" * 64)
    np.save(entry / "label.npy", np.zeros((1, 2, 2, 2), np.uint8))
    (entry / "manifest.json").write_bytes(cache_module._manifest(entry))
    assert cache.find("a" * 64, "made", mapped=True) is None and not entry.exists()


def test_what_a_killed_program_was_writing_is_no_entry_and_goes_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep("a" * 64, made(), mapped=False)
    for name, age in ((".old", 25), (".new", 1)):
        shutil.copytree(tmp_path / "cases" / ("a" * 64), tmp_path / "cases" / name)
        os.utime(tmp_path / "cases" / name, (time.time() - age * 3600,) * 2)
    cache.make_room({"a" * 64: 1})
    assert {p.name for p in (tmp_path / "cases").iterdir()} == {"a" * 64, ".new", "CACHEDIR.TAG"}


def test_an_interrupt_while_an_entry_is_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache_module.write_array

    def interrupted(path: Path, array: np.ndarray) -> None:
        real(path, array)
        if path.name == "label.npy":
            raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).keep("a" * 64, made(), mapped=False)
    assert list((tmp_path / "cases").iterdir()) == []


def test_trainings_that_keep_one_case_at_once_all_get_it_and_leave_one_entry(tmp_path: Path) -> None:
    cache, case, barrier = Cache(tmp_path), made(shape=(40, 40, 40)), Barrier(6)

    def keep(mapped: bool) -> PreparedCase:
        barrier.wait()
        return cache.keep("a" * 64, case, mapped)

    with ThreadPoolExecutor(6) as pool:
        kept = list(pool.map(keep, [True, False] * 3))
    for one in kept:
        same(one, case)
    assert [p.name for p in (tmp_path / "cases").iterdir()] == ["a" * 64]
    found = cache.find("a" * 64, "made", mapped=False)
    assert found is not None
    same(found, case)


Usage = namedtuple("Usage", "total used free")


def filled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, asked: bool = True
) -> tuple[Cache, int]:
    """Four entries, `0` not used for longest, on a disk that would have `free` bytes without them."""
    cache = Cache(folder, asked)
    for number in range(4):
        cache.keep(f"{number}" * 64, made(number), mapped=False)
        os.utime(folder / "cases" / (f"{number}" * 64) / "manifest.json", (1e9 + number,) * 2)

    def used() -> int:
        return sum(path.stat().st_size for path in (folder / "cases").rglob("*.*") if path.parent.name != "cases")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total, 0, free - used()))
    return cache, used() // 4


def left(cache: Cache) -> str:
    return "".join(sorted(path.name[0] for path in (cache.folder / "cases").iterdir() if len(path.name) == 64))


def test_over_its_share_of_the_disk_the_entries_go_that_were_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, size = filled(tmp_path, monkeypatch, total=0, free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(35 * size, 0, 10**9))
    assert cache.find("0" * 64, "made", mapped=False) is not None  # used just now
    cache.make_room({})
    assert left(cache) == "023"
    cache.make_room({"f" * 64: size, "2" * 64: size})
    assert left(cache) == "02"
    cache.make_room({f"{c}" * 64: 100 * size for c in "02"})  # far over the share, but these are there and in use
    assert left(cache) == "02"


def test_a_full_disk_takes_others_entries_but_not_those_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, size = filled(tmp_path / "probe", monkeypatch, 10**12, 10**9)
    cache, _ = filled(tmp_path / "c", monkeypatch, 10**12, 5 * size + size // 2)
    cache.make_room({"f" * 64: 2 * size, "0" * 64: size})
    assert left(cache) == "023"
    with pytest.raises(OutputError, match=rf"need up to {5 * size:,} bytes in this cache, but [\d,]+ bytes are free"):
        cache.make_room({"f" * 64: 5 * size, "0" * 64: size})
    assert left(cache) == "023" and left(probe) == "0123"


def test_only_a_cache_that_was_asked_for_grows_over_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (True, False):
        cache, size = filled(tmp_path / str(asked), monkeypatch, total=0, free=10**9, asked=asked)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, size=size: Usage(50 * size, 0, 10**9))
        if asked:
            cache.make_room({"f" * 64: 9 * size})
            assert left(cache) == ""
        else:
            with pytest.raises(OutputError, match=f"kept below {5 * size:,} bytes unless data.cache"):
                cache.make_room({"f" * 64: 9 * size})
            assert left(cache) == "0123"


def test_foreign_files_in_the_folder_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = [
        tmp_path / "notes.txt",
        tmp_path / "cases" / "mine" / "image.npy",
        tmp_path / "cases" / ("A" * 64) / "x",
    ]
    for path in precious:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path.parent, (0, 0))
    cache, _ = filled(tmp_path, monkeypatch, 0, 10**9)
    cache.make_room({})
    assert left(cache) == "A" and all(path.read_text() == "mine" for path in precious)


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=re.escape(f"{folder}: cannot be used as a cache")):
            Cache(folder).make_room({})


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_new_folder_is_its_owners_alone_and_a_folder_that_was_there_keeps_its_rights(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    for name, mode in (("new", 0o700), ("shared", 0o755)):
        Cache(tmp_path / name).make_room({})
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


@pytest.mark.parametrize(
    ("environment", "platform", "folder"),
    [
        ({"MEDUNET_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "linux", "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/medunet"),
        ({"XDG_CACHE_HOME": "x", "MEDUNET_CACHE": ""}, "linux", "~/.cache/medunet"),
        ({}, "linux", "~/.cache/medunet"),
        ({"XDG_CACHE_HOME": "/x"}, "darwin", "~/Library/Caches/medunet"),
        ({"LOCALAPPDATA": "/l"}, "win32", "/l/medunet/Cache"),
        ({}, "win32", "~/AppData/Local/medunet/Cache"),
    ],
)
def test_the_default_is_the_systems_folder_for_caches(environment: dict[str, str], platform: str, folder: str) -> None:
    assert default_folder(environment, platform) == Path(folder).expanduser()


def test_settings_choose_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cache(None) is None
    assert find_cache("~/x") == Cache(Path.home() / "x", asked=True)
    assert find_cache(str(tmp_path)) == Cache(tmp_path, asked=True)
    found = find_cache("auto")
    assert found is not None and not found.asked and found.folder == Path(os.environ["MEDUNET_CACHE"])
    with pytest.raises(ConfigError, match=r"data\.cache: ~nobody-of-this-name/x: no such home folder"):
        find_cache("~nobody-of-this-name/x")
    monkeypatch.delenv("MEDUNET_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert find_cache("auto") is None


def test_what_is_made_of_objects_changes_the_key(one_case: Case) -> None:
    made = [
        (None, None),
        (InstanceSettings(), None),
        (InstanceSettings("border"), None),
        (InstanceSettings("border", border=3), None),
        (InstanceSettings("border"), WeightMapSettings("unet2015")),
        (InstanceSettings("border"), WeightMapSettings("unet2015", sigma=4)),
        (InstanceSettings("border"), WeightMapSettings("unet2015", sigma_unit="um")),
    ]
    assert len({case_key(one_case, SETTINGS, TABLE, None, objects) for objects in made}) == len(made)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_weight_is_kept_with_the_case_and_its_loss_is_damage(tmp_path: Path, mapped: bool) -> None:
    cache, name = Cache(tmp_path), "0" * 64
    weight = np.random.default_rng(0).random((1, 5, 4, 3)).astype(np.float16)
    case = replace(made(), weight=weight)
    cache.make_room({name: entry_size((5, 4, 3), 2, 2, weighted=True)})
    for found in (cache.keep(name, case, mapped), cache.find(name, "made", mapped)):
        assert found is not None and found.weight is not None and found.weight.dtype == np.float16
        np.testing.assert_array_equal(found.weight, weight)
    size = sum(path.stat().st_size for path in (tmp_path / "cases" / name).iterdir())
    assert size <= entry_size((5, 4, 3), 2, 2, weighted=True)
    (tmp_path / "cases" / name / "weight.npy").unlink()
    assert cache.find(name, "made", mapped) is None and not (tmp_path / "cases" / name).exists()
