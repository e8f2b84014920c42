"""Decisions: whole on a device or one channel at a time, they are the same, and that of a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.datasets.labels import LabelTable, table_from_names, with_regions
from medunet.datasets.regions import DeclaredRegions
from medunet.transforms.labelling import LargestWins, PaintedRegions, ProbableCombination, labelling_rule_of

PLAIN = table_from_names({"background": 0, "a": 1, "b": 2, "c": 4}, None)
CROSSING = with_regions(PLAIN, DeclaredRegions({"A": (1, 4), "B": (2, 4)}))
NESTED = with_regions(PLAIN, DeclaredRegions({"whole": (1, 2, 4), "core": (2, 4), "enhancing": (4,)}))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9999), count=st.integers(1, 5), ties=st.booleans())
def test_both_ways_are_a_plain_loop(seed: int, count: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((count, 4, 3, 2), dtype=np.float32)
    if ties:
        scores = np.round(scores * 4) / 4
    paints = tuple(int(n) for n in rng.integers(1, 9, count))
    for rule in (LargestWins(), PaintedRegions(paints)):
        expected = np.zeros(scores.shape[1:], np.uint8)
        for place in np.ndindex(expected.shape):
            own = scores[(slice(None), *place)].tolist()
            if isinstance(rule, LargestWins):
                expected[place] = own.index(max(own))
            else:
                found = [paint for paint, score in zip(paints, own, strict=True) if score > 0.5]
                expected[place] = found[-1] if found else 0
        np.testing.assert_array_equal(rule.decide(torch.from_numpy(scores)).numpy(), expected)
        one_by_one = rule.decide_one_by_one(count, lambda index: scores[index])
        np.testing.assert_array_equal(one_by_one, expected)
        assert one_by_one.dtype == np.uint8


def test_which_labels_are_decided_how() -> None:
    assert labelling_rule_of(PLAIN) == LargestWins() and not LargestWins().needs_probabilities
    assert labelling_rule_of(NESTED) == PaintedRegions((1, 2, 3)) and labelling_rule_of(NESTED).needs_probabilities
    assert labelling_rule_of(CROSSING) == ProbableCombination(((1, (0,)), (2, (1,)), (3, (0, 1))))


@st.composite
def declarations(draw: st.DrawFn) -> LabelTable:
    """Up to 9 values, each in another combination of up to 4 regions; regions in any order, nested or not."""
    count = draw(st.integers(1, 4))
    every = [tuple(place for place in range(count) if bits >> place & 1) for bits in range(1, 2**count)]
    chosen = draw(st.lists(st.sampled_from(every), min_size=1, max_size=9, unique=True))
    values = draw(st.lists(st.integers(1, 300), min_size=len(chosen), max_size=len(chosen), unique=True))
    regions = {
        f"region {place}": tuple(sorted(v for v, places in zip(values, chosen, strict=True) if place in places))
        for place in range(count)
    }
    table = table_from_names({"background": 0, **{f"n{v}": v for v in values}}, None)
    return with_regions(table, DeclaredRegions({name: held for name, held in regions.items() if held}))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(table=declarations(), seed=st.integers(0, 9999), noise=st.sampled_from([0.0, 3.9]))
def test_masks_of_regions_of_a_label_map_decide_for_that_label_map(table: LabelTable, seed: int, noise: float) -> None:
    """Logits of the right sign, whatever their size, bring every label map back."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, table.classes, (4, 3, 2))
    inside = np.stack([np.isin(labels, region.indices) for region in table.regions])
    logits = np.where(inside, 4.0, -4.0) * rng.uniform(1 - noise / 4, 1, inside.shape)
    rule = labelling_rule_of(table)
    scores = rule.activate(torch.from_numpy(logits.astype(np.float32)))
    np.testing.assert_array_equal(rule.decide(scores).numpy(), labels)
    one_by_one = rule.decide_one_by_one(len(table.regions), lambda index: scores[index].numpy())
    np.testing.assert_array_equal(one_by_one, labels)


@settings(deadline=None, max_examples=60)
@given(table=declarations(), seed=st.integers(0, 9999))
def test_the_most_probable_combination_is_that_of_a_plain_loop(table: LabelTable, seed: int) -> None:
    """Products of probabilities, in float64, of all declared combinations and of none."""
    rule = ProbableCombination(tuple(table.combined.items()))
    scores = np.random.default_rng(seed).random((len(table.regions), 3, 4, 5)).astype(np.float32)
    likelihoods = [np.ones(scores.shape[1:])] + [np.zeros(scores.shape[1:])] * (table.classes - 1)
    for index in range(table.classes):
        places = table.combined.get(index, ())
        factors = [p if place in places else 1 - p for place, p in enumerate(scores.astype(np.float64))]
        likelihoods[index] = np.prod(factors, axis=0)
    found = rule.decide(torch.from_numpy(scores)).numpy()
    best, own = np.max(likelihoods, axis=0), np.take_along_axis(np.stack(likelihoods), found[None], 0)[0]
    assert (own >= best * (1 - 1e-5)).all(), "up to rounding"
    one_by_one = rule.decide_one_by_one(len(scores), lambda index: scores[index])
    np.testing.assert_array_equal(one_by_one, found)
    assert found.dtype == np.uint8


def test_sure_regions_and_large_slabs_are_decided_too() -> None:
    """Probabilities of 0 and 1, and more voxels than are compared at a time."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (3, 700, 300))
    scores = np.stack([np.isin(labels, region.indices) for region in CROSSING.regions]).astype(np.float32)
    np.testing.assert_array_equal(labelling_rule_of(CROSSING).decide(torch.from_numpy(scores)).numpy(), labels)


def test_probabilities_of_classes_sum_to_one_and_those_of_regions_do_not() -> None:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(labelling_rule_of(PLAIN).activate(logits).sum(0), torch.ones(5, 4))
    torch.testing.assert_close(labelling_rule_of(NESTED).activate(logits), 1 / (1 + (-logits).exp()))


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_regions_of_a_label_map_decide_for_that_label_map(noise: float) -> None:
    """Probabilities of each region, on the right side of the threshold, bring the labels back."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (6, 5, 4))
    inside = np.stack([np.isin(labels, region.indices) for region in NESTED.regions])
    scores = np.where(inside, 0.9, 0.1) + noise * (rng.random(inside.shape) - 0.5)
    np.testing.assert_array_equal(labelling_rule_of(NESTED).decide(torch.from_numpy(scores)).numpy(), labels)
