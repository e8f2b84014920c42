"""Streaming: exact whole-scan inference in slabs of a few rows, each activation computed once."""
