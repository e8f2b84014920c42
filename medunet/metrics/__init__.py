"""Metrics: label maps in, numbers out; how well a segmentation agrees with its reference.

Entry points: `case.score_case`, `objects.count_objects`, `boundaries.score_boundaries`,
`summary.summarise`. Metrics know no torch and write no file.

From top to bottom: summary, case, boundaries, objects, contingency, overlap, surface.
"""
