"""The selection that replaces full products of cases has every pair in it, in few cases, and always the same ones."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.pairwise import pairwise

SIZES = [(2, 2), (1, 4), (3, 3, 3), (11, 2, 2), (10, 6, 2), (2, 3, 4, 5), (2, 2, 2, 2, 2, 2)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_pair_of_choices_occurs_and_no_other_choice(sizes: tuple[int, ...]) -> None:
    axes = [[f"{axis}.{place}" for place in range(size)] for axis, size in enumerate(sizes)]
    cases = pairwise(*axes)
    assert all(choice in axis for case in cases for choice, axis in zip(case, axes, strict=True))
    found = {pair for case in cases for pair in combinations(case, 2)}
    assert found >= {pair for one, other in combinations(axes, 2) for pair in product(one, other)}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_cases_are_few_different_and_the_same_in_every_run(sizes: tuple[int, ...]) -> None:
    """Processes that run tests in parallel must agree on their names; two axes alone need the product."""
    axes = [range(size) for size in sizes]
    cases = pairwise(*axes)
    longest, second = sorted(sizes)[-1], sorted(sizes)[-2]
    assert longest * second <= len(cases) == len(set(cases)) <= 1.6 * longest * second + 4
    assert cases == pairwise(*axes)


def test_equal_and_unhashable_choices_are_told_apart_by_their_place() -> None:
    assert len(pairwise([{}, {}], [[1], [1], [2]])) == 6


@pytest.mark.parametrize("axes", [(), ([1, 2],), ([1, 2], [])])
def test_there_must_be_pairs(axes: tuple[list[int], ...]) -> None:
    with pytest.raises(ValueError, match="two axes or more"):
        pairwise(*axes)
