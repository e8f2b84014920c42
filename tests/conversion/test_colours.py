"""Colours to label values and back: identity over random tables and maps, and a plain slow version as oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.conversion.colours import ColourTable, code_of, numbered, packed, unpacked, written
from medunet.errors import DataError

COLOUR = st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))


@st.composite
def tables(draw: st.DrawFn) -> ColourTable:
    colours = draw(st.lists(COLOUR, min_size=1, max_size=9, unique=True))
    values = draw(st.lists(st.integers(0, 65534), min_size=len(colours), max_size=len(colours), unique=True))
    return ColourTable(tuple(f"class {n}" for n in range(len(colours))), tuple(colours), tuple(values))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(table=tables(), seed=st.integers(0, 999), shape=st.lists(st.integers(1, 5), min_size=2, max_size=3))
def test_a_label_map_comes_back_from_its_colours(table: ColourTable, seed: int, shape: list[int]) -> None:
    labels = np.random.default_rng(seed).choice(np.array(table.values, np.uint16), shape)
    colours = table.encode(labels, "x")
    assert colours.shape == (3, *shape) and colours.dtype == np.uint8
    decoded = table.decode(packed(colours))
    np.testing.assert_array_equal(decoded.labels, labels)
    assert decoded.changed == 0 and decoded.unknown == {}


def slowly(table: ColourTable, colours: np.ndarray, tolerance: float) -> tuple[np.ndarray, int, dict[int, int]]:
    """Pixel by pixel, with nothing but the definition of the distance."""
    labels, changed, unknown = np.zeros(colours.shape[1:], np.int64), 0, dict[int, int]()
    for place in np.ndindex(colours.shape[1:]):
        pixel = tuple(int(part) for part in colours[(slice(None), *place)])
        distances = [math.sqrt(sum((a - b) ** 2 for a, b in zip(pixel, own, strict=True)) / 3) for own in table.colours]
        nearest = distances.index(min(distances))
        if distances[nearest] <= tolerance:
            labels[place] = table.values[nearest]
            changed += distances[nearest] > 0
        else:
            unknown[code_of(pixel)] = unknown.get(code_of(pixel), 0) + 1
    return labels, changed, unknown


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(table=tables(), seed=st.integers(0, 999), tolerance=st.sampled_from([0.0, 1.0, 7.5, 60.0, 255.0]))
def test_the_nearest_class_is_that_of_a_slow_version(table: ColourTable, seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    clean = np.array(table.colours).T[:, rng.integers(0, len(table.colours), (4, 5))]
    colours = np.clip(clean + rng.integers(-9, 10, clean.shape) * (rng.random((4, 5)) < 0.6), 0, 255).astype(np.uint8)
    labels, changed, unknown = slowly(table, colours, tolerance)
    decoded = table.decode(packed(colours), tolerance)
    np.testing.assert_array_equal(decoded.labels, labels)
    assert decoded.changed == changed and decoded.unknown == unknown
    if unknown:
        assert table.decode(packed(colours), math.ceil(table.farthest(unknown))).unknown == {}


@pytest.mark.slow
@given(colours=st.lists(COLOUR, min_size=1, max_size=5))
def test_codes_are_colours(colours: list[tuple[int, int, int]]) -> None:
    array = np.array(colours, np.uint8).T
    assert packed(array).tolist() == [code_of(colour) for colour in colours]
    np.testing.assert_array_equal(unpacked(packed(array)), array)
    assert written(code_of(colours[0])) == " ".join(map(str, colours[0]))


def test_for_greys_the_distance_is_the_difference_in_grey() -> None:
    table = ColourTable(("black", "white"), ((0, 0, 0), (255, 255, 255)), (0, 1))
    greys = np.array([[0, 10, 11, 244, 245]], np.uint32) * 0x010101
    decoded = table.decode(greys, 10)
    assert decoded.changed == 2 and decoded.unknown == {11 * 0x010101: 1, 244 * 0x010101: 1}
    assert table.closest == (255.0, "black", "white")


def test_unknown_colours_are_described_by_count_and_nearest_class() -> None:
    table = ColourTable(("sky", "road"), ((0, 0, 255), (100, 100, 100)), (0, 1))
    text = table.describe({code_of((1, 2, 254)): 3, code_of((103, 103, 103)): 1200})
    assert text == "(103 103 103) 1,200 px, 3.0 from road; (1 2 254) 3 px, 1.4 from sky"
    assert "… 5 more" in table.describe(dict.fromkeys(range(13), 1))


def test_a_value_without_a_colour_is_refused_with_its_count() -> None:
    table = ColourTable(("sky",), ((0, 0, 255),), (3,))
    with pytest.raises(DataError, match=r"a.png: holds values without a colour: 4 \(2 px\)"):
        table.encode(np.array([[3, 4, 4]]), "a.png")


def test_numbers_follow_the_table_with_the_background_first_and_what_is_ignored_last() -> None:
    assert numbered(("sky", "Background", "car"), None) == (1, 0, 2)
    assert numbered(("sky", "void", "car"), "void") == (0, 255, 1)
    many = tuple(str(n) for n in range(300))
    assert numbered((*many, "void"), "void")[-1] == 300


@pytest.mark.parametrize(
    ("names", "colours", "values", "said"),
    [
        ((), (), (), "at least one class"),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), (0, 1), "different names, found a twice"),
        (("a", "b"), ((1, 1, 1), (1, 1, 1)), (0, 1), "different colours"),
        (("a", "b"), ((0, 0, 0), (1, 1, 1)), (1, 1), "different values, found 1 twice"),
        (("a",), ((0, 0, 0),), (70000,), "between 0 and 65534"),
    ],
)
def test_an_ambiguous_table_cannot_exist(names: tuple, colours: tuple, values: tuple, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ColourTable(names, colours, values)
