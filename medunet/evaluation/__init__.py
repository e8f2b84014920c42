"""Evaluation: predictions and references are paired, compared and reported.

The story is `medunet.evaluate`. Evaluation knows no torch and nothing of other stories.

From top to bottom: files, scoring, indices, settings, postselection, scorecard, objects_boundaries, pairs.
"""
