"""Scores on their way back to the scan's grid: slab by slab and part by part as all at once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.geometry.boxes import Box
from medunet.transforms.preprocess import PreprocessSettings, ScanView
from medunet.transforms.restore import Part, restore_labels, restored
from tests.transforms.restoring import restore_scores
from tests.transforms.test_preprocess import NONE, random_volume


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    spacing=st.none() | st.tuples(*[st.floats(0.4, 4)] * 3),
    axis=st.integers(0, 2),
    data=st.data(),
)
def test_slabs_of_parts_give_what_all_scores_at_once_give(seed, spacing, axis, data) -> None:
    """Rows arrive along any axis, cut anywhere; the other axes are split anywhere: the same labels and scores."""
    volume = random_volume(seed, (9, 10, 11))
    undo = ScanView(volume, PreprocessSettings(spacing=spacing, crop="nonzero", normalise=NONE)).undo
    scores = np.random.default_rng(seed).normal(size=(3, *undo.shape)).astype(np.float32)
    labels = np.zeros((1, *volume.shape), np.uint8)
    probabilities = np.stack([np.ones(volume.shape), *np.zeros((2, *volume.shape))]).astype(np.float32)
    other = data.draw(st.sampled_from([a for a in range(3) if a != axis]))
    middle = data.draw(st.integers(0, undo.kept[other]))
    cuts = sorted({0, undo.shape[axis], *data.draw(st.sets(st.integers(0, undo.shape[axis])))})
    for a, b in itertools.pairwise(sorted({0, middle, undo.kept[other]})):
        kept = Box(
            tuple(a if n == other else 0 for n in range(3)),
            tuple(b if n == other else m for n, m in enumerate(undo.kept)),
        )
        part = Part.of(undo, axis, kept)
        own = scores[(slice(None), *part.scores.slices)]
        slabs = [(i, j, own.take(range(i, j), axis=axis + 1)) for i, j in itertools.pairwise(cuts)]
        for piece in restored(slabs, undo, part):
            undo.kept_part(labels)[(0, *piece.box.slices)] = piece.winners()
            for index in range(piece.classes):
                undo.kept_part(probabilities)[(index, *piece.box.slices)] = piece.scores(index)
    np.testing.assert_array_equal(labels, restore_labels(scores, undo))
    np.testing.assert_array_equal(probabilities, restore_scores(scores, undo))


def test_few_rows_are_held() -> None:
    """What is interpolated is the slab and one row before it, whatever the scan's length."""
    volume = random_volume(1, (5, 6, 200))
    undo = ScanView(volume, PreprocessSettings(spacing=(1.0, 1.0, 0.31), orientation="stored", normalise=NONE)).undo
    slabs = ((i, min(i + 8, undo.shape[2]), np.zeros((2, *undo.shape[:2], min(8, undo.shape[2] - i)), np.float32))
             for i in range(0, undo.shape[2], 8))  # fmt: skip
    most = max(piece._scores.shape[3] for piece in restored(slabs, undo, Part.of(undo, 2)))
    assert undo.shape[2] > 300
    assert most <= 11
