"""Prediction: a scan is opened, planned, segmented piece by piece, and written.

The story is `medunet.predict`. Prediction knows nothing of training, evaluation or conversion.

From top to bottom: jobs, verify, segmenter, members, planning, outputs, scan.
"""
