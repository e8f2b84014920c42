"""No score looks at what a prediction says where nothing was annotated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.metrics.case import MEASURES, score_case
from medunet.metrics.overlap import count_labels, pixel_accuracy

IGNORE = 255


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), dimensions=st.integers(2, 3), every=st.integers(1, 4), share=st.floats(0, 0.8))
@settings(deadline=None, max_examples=60)
def test_predictions_at_ignored_voxels_change_no_score(seed: int, dimensions: int, every: int, share: float) -> None:
    random, shape = np.random.default_rng(seed), (9,) * dimensions
    true, predicted, other = (random.integers(0, 3, shape).astype(np.uint8) for _ in range(3))
    unknown = random.random(shape) < share
    unknown[..., np.arange(9) % every != 0] = True
    true[unknown] = IGNORE
    changed = np.where(unknown, other, predicted)
    labels, spacing = {"a": (1,), "b": (2,), "both": (1, 2)}, (1.0,) * dimensions
    one, two = (score_case(each, true, spacing, labels, IGNORE) for each in (predicted, changed))
    for first, second in zip(one, two, strict=True):
        values = [[scores.value(measure) for measure in MEASURES] for scores in (first, second)]
        np.testing.assert_array_equal(*values)
        assert first.counts == second.counts
    assert count_labels(predicted, true, labels, IGNORE) == count_labels(changed, true, labels, IGNORE)
    np.testing.assert_equal(pixel_accuracy(predicted, true, IGNORE), pixel_accuracy(changed, true, IGNORE))
