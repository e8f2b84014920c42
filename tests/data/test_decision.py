"""Decisions: whole on a device or one channel at a time, they are the same, and that of a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.data.decision import LargestWins, PaintedRegions, decision_of
from medunet.data.labels import table_from_names, with_regions
from medunet.data.regions import DeclaredRegions

PLAIN = table_from_names({"background": 0, "a": 1, "b": 2, "c": 4}, None)
NESTED = with_regions(PLAIN, DeclaredRegions({"whole": (1, 2, 4), "core": (2, 4), "enhancing": (4,)}))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9999), count=st.integers(1, 5), ties=st.booleans())
def test_both_ways_are_a_plain_loop(seed: int, count: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((count, 4, 3, 2), dtype=np.float32)
    if ties:
        scores = np.round(scores * 4) / 4
    paints = tuple(int(n) for n in rng.integers(1, 9, count))
    for decision in (LargestWins(), PaintedRegions(paints)):
        expected = np.zeros(scores.shape[1:], np.uint8)
        for place in np.ndindex(expected.shape):
            own = scores[(slice(None), *place)].tolist()
            if isinstance(decision, LargestWins):
                expected[place] = own.index(max(own))
            else:
                found = [paint for paint, score in zip(paints, own, strict=True) if score > 0.5]
                expected[place] = found[-1] if found else 0
        np.testing.assert_array_equal(decision.decide(torch.from_numpy(scores)).numpy(), expected)
        one_by_one = decision.decide_one_by_one(count, lambda index: scores[index])
        np.testing.assert_array_equal(one_by_one, expected)
        assert one_by_one.dtype == np.uint8


def test_which_labels_are_decided_how() -> None:
    assert decision_of(PLAIN) == LargestWins() and not LargestWins().needs_probabilities
    assert decision_of(NESTED) == PaintedRegions((1, 2, 3)) and decision_of(NESTED).needs_probabilities


def test_probabilities_of_classes_sum_to_one_and_those_of_regions_do_not() -> None:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decision_of(PLAIN).activate(logits).sum(0), torch.ones(5, 4))
    torch.testing.assert_close(decision_of(NESTED).activate(logits), 1 / (1 + (-logits).exp()))


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_regions_of_a_label_map_decide_for_that_label_map(noise: float) -> None:
    """Probabilities of each region, on the right side of the threshold, bring the labels back."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (6, 5, 4))
    inside = np.stack([np.isin(labels, region.indices) for region in NESTED.regions])
    scores = np.where(inside, 0.9, 0.1) + noise * (rng.random(inside.shape) - 0.5)
    np.testing.assert_array_equal(decision_of(NESTED).decide(torch.from_numpy(scores)).numpy(), labels)
