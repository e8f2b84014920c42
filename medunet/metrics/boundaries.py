"""Scores of cell borders as partitions: V_rand and V_info of the ISBI 2012 challenge, and its pixel error.

Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for connectomics", Frontiers in
Neuroanatomy 9:142, 2015. Leader-board rules follow what Fiji's Trainable_Segmentation does, whose code computed them:

- A section's cells are the 4-connected parts of the pixels that are not border; each section is scored by itself.
- The prediction's borders are thinned by flooding them from the cells (Vincent and Soille's watershed, 4-connected);
  what is left are lines of about one pixel. A line that parts nothing vanishes, unlike in a skeleton.
- Only the reference's cell pixels count. Predicted border pixels among them are segments of one pixel each.
- A probability map is cut at 0, 0.1, … 1; the best mean over all sections is the score.

`skimage.metrics.adapted_rand_error` takes the predicted border as one more segment and counts pairs without order, so
it gives other numbers; `variation_of_information` gives the entropies that V_info divides.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.metrics.contingency import Ids, contingency
from medunet.metrics.overlap import Pooled, pooled

CUTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Thresholds of the challenge's script; a pixel above is cell."""

BOUNDARY_POLICY = (
    "V_rand and V_info compare partitions into cells as the ISBI 2012 challenge and Fiji do: 4-connected cells of each "
    "section, predicted borders thinned to lines by a watershed, the reference's border pixels left out, predicted "
    "border pixels inside cells taken as segments of one pixel. 1 is perfect.",
    "V_rand = Σp² / (½ Σs² + ½ Σt²) for the shares of pixels p of each pair, s of each predicted and t of each true "
    "cell. Its split score Σp² / Σt² falls where cells are cut up, its merge score Σp² / Σs² where they run together.",
    "V_info = I / (½ H(S) + ½ H(T)) with the mutual information and the entropies of both partitions; split score "
    "I / H(S), merge score I / H(T).",
    "Scores are means over sections; for probability maps those of the threshold with the best mean, V_rand and V_info "
    "each at its own.",
    "Pixel error of the challenge: 1 - the best F1 of cell pixels over the thresholds. Plain: the share of wrong "
    "pixels at 0.5.",
)
"""How boundary scores are defined, sentence by sentence, for reports."""


@dataclass(frozen=True)
class PartitionScores:
    """The agreement of two partitions of a section: 1 is perfect, NaN without a reference cell."""

    rand_split: float = nan
    rand_merge: float = nan
    info_split: float = nan
    info_merge: float = nan

    @property
    def v_rand(self) -> float:
        return _harmonic_mean(self.rand_split, self.rand_merge)

    @property
    def v_info(self) -> float:
        return _harmonic_mean(self.info_split, self.info_merge)


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def compare_partitions(prediction: Ids, reference: Ids, ignore: NDArray[np.bool_] | None = None) -> PartitionScores:
    """Rand and information scores of a prediction's segments, within the reference's.

    Entropies of 0 (a single segment) leave V_info without a value by its formula; it is 1 here if both sides are one
    segment, 0 if one is. Fiji gives 0 for both.

    Args:
        prediction: segment ids of any shape, 0 for border.
        reference: cell ids of the same shape, 0 for border, which is left out.
        ignore: pixels to leave out as well.
    """
    table = contingency(prediction, reference, ignore)
    pixels = int(table.reference_sizes.sum())
    if not pixels:
        return PartitionScores()
    inside = np.bincount(table.columns, weights=table.shared, minlength=1) / pixels
    shared, true = table.shared / pixels, table.reference_sizes / pixels
    # Each border pixel that was predicted inside a cell is a segment of one pixel.
    single = 1 - float(shared.sum())
    both, predicted = float(np.sum(shared**2)) + single / pixels, float(np.sum(inside**2)) + single / pixels
    joint = _entropy(shared) + single * np.log(pixels)
    of_prediction, of_reference = _entropy(inside) + single * np.log(pixels), _entropy(true)
    mutual = of_prediction + of_reference - joint
    return PartitionScores(
        rand_split=both / float(np.sum(true**2)),
        rand_merge=both / predicted,
        info_split=_share(mutual, of_prediction),
        info_merge=_share(mutual, of_reference),
    )


def _entropy(shares: NDArray[np.float64]) -> float:
    known = shares[shares > 0]
    return float(-np.sum(known * np.log(known)))


def _share(mutual: float, entropy: float) -> float:
    # Sums of logarithms leave rests; the entropy of two segments of a picture is far above this.
    return min(max(mutual / entropy, 0.0), 1.0) if entropy > 1e-12 else 1.0


def cell_ids(cells: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The 4-connected parts of a section `(x, y)`, numbered from 1; 0 elsewhere."""
    from scipy.ndimage import label

    found: NDArray[np.int32] = label(cells)[0].astype(np.int32)
    return found


_LINE, _QUEUED, _DRY, _OUTSIDE = 0, -1, -2, -3


def flooded_ids(cells: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The cells of a section `(x, y)`, grown over its borders until they meet; 0 on the lines where they do.

    The watershed of Vincent and Soille (PAMI 13:583, 1991) on two levels, 4-connected, pixels being taken in the order
    of the array as Fiji does, which settles on which side of the middle of an even border the line lies. A section
    without any cell is one segment.
    """
    ids = cell_ids(cells)
    if not ids.any():
        return np.ones(cells.shape, np.int32)
    labels = np.pad(np.where(cells, ids, _DRY), 1, constant_values=_OUTSIDE)
    near = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        for step in (1, -1):
            near |= np.roll(labels > 0, step, axis)
    first = np.flatnonzero((labels == _DRY) & near)
    flat: list[int] = labels.ravel().tolist()
    _flood(flat, first.tolist(), labels.shape[1])
    return np.array(flat, np.int32).reshape(labels.shape)[1:-1, 1:-1]


def _flood(labels: list[int], queue: list[int], width: int) -> None:
    """Label the dry pixels of a padded picture in place, first come, first served.

    Plain Python: the rule depends on the order of pixels, which no array operation keeps; about 1 µs a border pixel.
    """
    for pixel in queue:
        labels[pixel] = _QUEUED
    for pixel in queue:  # grows while it is worked on
        label = _QUEUED
        meeting = False
        for neighbour in (pixel - width, pixel - 1, pixel + width, pixel + 1):
            other = labels[neighbour]
            if other > 0:
                if label <= 0:
                    label = other
                elif label != other:
                    meeting = True
            elif other == _LINE:
                # A line goes on only where no cell reaches.
                if label == _QUEUED:
                    label = _LINE
            elif other == _DRY:
                labels[neighbour] = _QUEUED
                queue.append(neighbour)
        labels[pixel] = _LINE if meeting else label


@dataclass(frozen=True, eq=False)
class BestCut:
    """The mean scores over sections at the threshold where their F is best.

    Attributes:
        score: the mean over sections of the harmonic means of split and merge.
    """

    score: float
    split: float
    merge: float
    threshold: float


@dataclass(frozen=True, eq=False)
class BoundaryCounts(Pooled):
    """Sums over sections from which the scores of one case or many follow; `+` pools.

    Attributes:
        sections: with a reference cell; the others are left out of V_rand and V_info.
        sums: `(threshold, 6)`: V_rand, its split and merge, V_info, its split and merge.
        pixels: `(threshold, 3)`: true positives, false positives and false negatives of cell pixels.
        wrong, known: pixels at a threshold of 0.5.
    """

    sections: int
    sums: NDArray[np.float64]
    pixels: NDArray[np.int64]
    wrong: int
    known: int

    @property
    def rand(self) -> BestCut:
        return self._best(0)

    @property
    def info(self) -> BestCut:
        return self._best(3)

    v_rand = property(attrgetter("rand.score"))
    v_info = property(attrgetter("info.score"))

    @property
    def pixel_error(self) -> float:
        """1 - the best F1 of cell pixels; NaN without a cell pixel on either side."""
        hit, extra, lost = self.pixels.T
        whole = 2 * hit + extra + lost
        if not whole.any():
            return nan
        return 1 - float(np.max(2 * hit[whole > 0] / whole[whole > 0]))

    @property
    def plain_pixel_error(self) -> float:
        """The share of wrong pixels at 0.5; NaN where every pixel is ignored."""
        return self.wrong / self.known if self.known else nan

    def _best(self, first: int) -> BestCut:
        if not self.sections:
            return BestCut(nan, nan, nan, nan)
        means = self.sums[:, first : first + 3] / self.sections
        best = int(np.argmax(means[:, 0]))
        score, split, merge = means[best].tolist()
        return BestCut(score, split, merge, CUTS[best])


def score_boundaries(
    probability: NDArray[Any], reference: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
) -> BoundaryCounts:
    """Score a map of cell probabilities, or a binary map of cells, against cells, section by section.

    Args:
        probability: `(x, y)` or `(x, y, z)`, from 0 (border) to 1 (inside a cell); sections lie across z. A bool map
            is the same at every threshold.
        reference: true inside cells, of the same shape.
        ignore: unannotated pixels, which count on neither side.

    Raises:
        ValueError: shapes differ.
    """
    if probability.shape != reference.shape or (ignore is not None and ignore.shape != reference.shape):
        raise ValueError(f"probability {probability.shape} and reference {reference.shape} (and ignore) must fit")
    places = [np.s_[...]] if reference.ndim == 2 else [np.s_[..., z] for z in range(reference.shape[2])]
    known = ((probability[at], reference[at], None if ignore is None else ignore[at]) for at in places)
    return pooled([_score_section(*section) for section in known])


def _score_section(
    probability: NDArray[Any], reference: NDArray[np.bool_], ignore: NDArray[np.bool_] | None
) -> BoundaryCounts:
    known = np.ones(reference.shape, dtype=bool) if ignore is None else ~ignore
    true = cell_ids(reference & known)
    binary = probability.dtype == bool
    cut = probability if binary else probability > 0.5
    sums, pixels = [], []
    for threshold in (0.5,) if binary else CUTS:
        cells = probability if binary else probability > threshold
        sums.append(_section_scores(cells, true, ignore) if true.any() else (0.0,) * 6)
        hits = [np.count_nonzero(known & part) for part in (cells & reference, cells & ~reference, ~cells & reference)]
        pixels.append(hits)
    repeats = len(CUTS) if binary else 1
    return BoundaryCounts(
        sections=int(true.any()),
        sums=np.repeat(np.array(sums, np.float64), repeats, axis=0),
        pixels=np.repeat(np.array(pixels, np.int64), repeats, axis=0),
        wrong=int(np.count_nonzero((cut != reference) & known)),
        known=int(np.count_nonzero(known)),
    )


def _section_scores(cells: NDArray[np.bool_], true: Ids, ignore: NDArray[np.bool_] | None) -> tuple[float, ...]:
    scores = compare_partitions(flooded_ids(cells), true, ignore)
    return (
        scores.v_rand, scores.rand_split, scores.rand_merge, scores.v_info, scores.info_split, scores.info_merge,
    )  # fmt: skip
