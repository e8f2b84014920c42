"""Prediction: a scan is opened, planned, segmented piece by piece, and written.

The story is `medunet.predict`. Prediction knows nothing of training, evaluation or conversion.

From top to bottom: record, jobs, verify, segmenter, test_time, objects, planning, outputs, scan.
"""
