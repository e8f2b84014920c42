"""Few cases out of many axes of choice, such that every two choices of two axes meet in at least one of them.

A full product of settings grows with each axis, while nearly all mistakes need one or two settings to show: a type
with a format, a format with an order of axes. Pairwise selections have them all in about as many cases as the two
longest axes alone have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

Pair = tuple[int, int, int, int]
"""Two axes with the place of the choice on each: axis, place, other axis, other place."""


def pairs_of(case: Sequence[int]) -> set[Pair]:
    """The pairs of choices that one case, places on each axis, has in it."""
    return {(one, case[one], other, case[other]) for one, other in combinations(range(len(case)), 2)}


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases with one choice of each axis, in which every pair of choices occurs; the same ones in every run.

    Greedy: always the case with most pairs that are still missing, the earliest of the product where several have as
    many. Equal choices on one axis are told apart by their place, so that nothing needs to be hashable.
    """
    if len(axes) < 2 or not all(axes):
        raise ValueError("pairs need two axes or more, none of them empty")
    candidates = [(case, pairs_of(case)) for case in product(*(range(len(axis)) for axis in axes))]
    missing = set().union(*(pairs for _, pairs in candidates))
    chosen = []
    while missing:
        case, pairs = max(candidates, key=lambda candidate: len(candidate[1] & missing))
        chosen.append(tuple(axis[place] for axis, place in zip(axes, case, strict=True)))
        missing -= pairs
    return chosen
