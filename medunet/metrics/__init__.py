"""Metrics: label maps in, numbers out; how well a segmentation agrees with its reference.

Entry points: `score_case`, `count_objects`, `score_boundaries`, `summarise`. Metrics know no torch and write no file.

From top to bottom: summary, case, boundaries, objects, contingency, overlap, surface.
"""

from medunet.metrics.boundaries import BOUNDARY_POLICY, BoundaryCounts, score_boundaries
from medunet.metrics.case import MEASURES, POLICY, CaseScores, LabelScores, Measure, score_case
from medunet.metrics.objects import OBJECT_POLICY, ObjectCounts, count_objects, object_errors
from medunet.metrics.overlap import Counts, count_labels, count_overlap, pixel_accuracy
from medunet.metrics.summary import LabelSummary, Statistics, Summary, statistics_of, summarise
from medunet.metrics.surface import surface_scores
