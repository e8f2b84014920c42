"""Label maps in, numbers out: how well a segmentation agrees with its reference. Neither torch nor files."""

from medunet.metrics.case import MEASURES, POLICY, CaseScores, LabelScores, Measure, score_case
from medunet.metrics.overlap import Counts, count_labels, count_overlap, pixel_accuracy
from medunet.metrics.summary import LabelSummary, Statistics, Summary, summarise
from medunet.metrics.surface import SurfaceScores, surface_scores

__all__ = [
    "MEASURES",
    "POLICY",
    "CaseScores",
    "Counts",
    "LabelScores",
    "LabelSummary",
    "Measure",
    "Statistics",
    "Summary",
    "SurfaceScores",
    "count_labels",
    "count_overlap",
    "pixel_accuracy",
    "score_case",
    "summarise",
    "surface_scores",
]
