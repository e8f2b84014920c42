"""Going through arrays part by part, against plain numpy: any shape, order of memory, flip and crop."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.system import blocks as module
from medunet.system.blocks import as_stored, blocks, copy_in_tiles, gathered, ordered_blocks, slowest_axis
from medunet.system.scratch import Scratch, lives_in_file

BLOCK = 64


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    """Parts of a few elements, and temporary copies in files however small, so that small arrays do as large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", BLOCK)
        patch.setattr(module, "WINDOW", 2 * BLOCK)
        patch.setattr(module, "RUN", 16)
        patch.setattr(module, "Scratch", functools.partial(Scratch, limit=0))
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...], str]:
    """How an array of a shape may lie in memory: order of axes, margins before, steps with crop, and the place."""
    order = tuple(draw(st.permutations(range(len(shape)))))
    steps = [draw(st.sampled_from([1, -1, 2])) for _ in shape]
    margins = [draw(st.integers(0, 2)) for _ in shape]
    place = draw(st.sampled_from(["memory", "file"]))
    cuts = []
    for n, step, margin in zip(shape, steps, margins, strict=True):
        last = margin + (n - 1) * abs(step)
        cuts.append(slice(margin, last + 1, step) if step > 0 else slice(last, margin - 1 if margin else None, step))
    return (
        order,
        tuple(margin + (n - 1) * abs(s) + 2 for n, s, margin in zip(shape, steps, margins, strict=True)),
        (tuple(cuts)),
        place,
    )


SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from(["uint8", "int16", ">i4", "float64"])


@st.composite
def arrays(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> tuple[np.ndarray, np.ndarray]:
    """An array of distinct numbers, if its type has enough, that is a view; and what that is a view of."""
    shape = draw(shapes)
    order, stored, cuts, place = draw(layouts(shape))
    empty = Scratch(Path(tempfile.gettempdir()), limit=0) if place == "file" else np.empty
    base = empty(tuple(stored[axis] for axis in order), draw(DTYPES))
    base[...] = 0
    view = base.transpose(np.argsort(order))[cuts]
    assert view.shape == shape
    view[...] = np.arange(view.size).reshape(shape) % 200 + 1
    return view, base


@pytest.mark.slow
@settings(deadline=None, max_examples=75)
@given(pair=arrays(), whole=st.integers(0, 4))
def test_blocks_are_the_array_cut_into_small_views(pair: tuple[np.ndarray, np.ndarray], whole: int) -> None:
    array, _ = pair
    whole = min(whole, array.ndim)
    parts = list(blocks(array, whole))
    np.testing.assert_array_equal(np.concatenate([part.reshape(-1) for part in parts]), array.reshape(-1))
    for part in parts:
        assert part.shape[part.ndim - whole :] == array.shape[array.ndim - whole :]
        assert part.nbytes <= BLOCK or part.size == np.prod(part.shape[part.ndim - whole :]), "no axis left to cut"
    at_least = array.nbytes / max(BLOCK, array.itemsize * np.prod(array.shape[array.ndim - whole :]))
    assert len(parts) >= at_least
    for part in blocks(array, whole):
        part[...] = 7
    assert (array == 7).all()


def test_blocks_are_not_smaller_than_need_be() -> None:
    assert [part.shape for part in blocks(np.zeros((10, 4, 4), np.uint8))] == [(4, 4, 4), (4, 4, 4), (2, 4, 4)]
    assert [part.shape for part in blocks(np.zeros((2, 5, 4, 4), np.uint8))] == [(4, 4, 4), (1, 4, 4)] * 2
    assert [part.shape for part in blocks(np.zeros((2, 8, 16), np.uint8), whole=2)] == [(1, 8, 16)] * 2


@pytest.mark.slow
@settings(deadline=None, max_examples=75)
@given(pair=arrays(), dtype=st.sampled_from([None, "<i2", "float32"]))
def test_ordered_blocks_are_the_bytes_of_the_array_in_c_order(
    folder: Path, pair: tuple[np.ndarray, np.ndarray], dtype: str | None
) -> None:
    array, _ = pair
    parts = list(ordered_blocks(array, folder, dtype))
    assert all(part.flags.c_contiguous for part in parts)
    assert b"".join(part.tobytes() for part in parts) == array.astype(dtype or array.dtype).tobytes()


@pytest.mark.slow
@settings(deadline=None, max_examples=75)
@given(data=st.data(), shape=SHAPES)
def test_copies_by_tiles_reach_every_element_and_no_other(data: st.DataObject, shape: tuple[int, ...]) -> None:
    source, _ = data.draw(arrays(st.just(shape)))
    target, base = data.draw(arrays(st.just(shape)))
    target[...] = 0
    assert not base.any()
    copy_in_tiles(target, source)
    np.testing.assert_array_equal(target, source)
    assert np.count_nonzero(base) == source.size
    assert (source != 0).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=75)
@given(pair=arrays())
def test_gathered_arrays_are_the_same_and_copied_only_out_of_files(
    folder: Path, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    array, _ = pair
    ready = gathered(array, folder)
    np.testing.assert_array_equal(ready, array)
    assert ready.dtype == array.dtype
    if ready is not array:
        assert lives_in_file(array) and lives_in_file(ready) and ready.flags.c_contiguous
    assert gathered(ready, folder) is ready


def test_only_what_lies_across_is_gathered(folder: Path) -> None:
    """Of a stack ``(z, y, x)`` in a file, whatever goes by groups of slices can be read as it is."""
    stack = Scratch(folder, limit=0)((9, 4, 4), np.int16)
    stack[...] = 1
    for along in (stack, stack[::-1], stack[:, ::-1, ::-1], stack.transpose(0, 2, 1), stack[np.newaxis], stack[2:, 1:]):
        assert gathered(along, folder) is along
    for across in (stack.T, stack.transpose(2, 0, 1), stack.T[np.newaxis], stack[:, :, ::2].T):
        assert gathered(across, folder) is not across
        in_memory = across.copy("K")
        assert gathered(in_memory, folder) is in_memory


@settings(deadline=None, max_examples=50)
@given(pair=arrays())
def test_as_stored_is_a_view_that_goes_through_memory_once(pair: tuple[np.ndarray, np.ndarray]) -> None:
    array, _ = pair
    stored = as_stored(array)
    assert np.shares_memory(stored, array) and sorted(stored.reshape(-1)) == sorted(array.reshape(-1))
    steps = [abs(stride) for stride, n in zip(stored.strides, stored.shape, strict=True) if n > 1]
    assert steps == sorted(steps, reverse=True)


def test_the_slowest_axis_is_a_spatial_one_and_longer_than_one() -> None:
    array = np.zeros((3, 4, 5, 6))
    assert slowest_axis(array) == 0
    assert slowest_axis(array.transpose(0, 3, 2, 1)) == 2
    assert slowest_axis(array[:, ::-1].transpose(0, 2, 1, 3)) == 1
    assert slowest_axis(array[:, :1]) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("channels", [1, 3])
def test_memory_does_not_grow_with_arrays_in_files(tmp_path: Path, channels: int) -> None:
    """96 MiB are turned around: of neither array, nor of the copy, more than some blocks are ever in memory."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from medunet.system.blocks import blocks, copy_in_tiles, ordered_blocks\n"
        "from medunet.system.scratch import Scratch\n"
        "def peak():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith('VmHWM'))\n"
        "folder, channels, before = Path(sys.argv[1]), int(sys.argv[2]), peak()\n"
        "array = Scratch(folder)((channels, 96 // channels, 512, 1024), np.int16)\n"
        "for block in blocks(array):\n"
        "    block[...] = 1\n"
        "assert sum(int(block.sum()) for block in ordered_blocks(array.T, folder)) == array.size\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(channels)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(done.stdout) < 64
