"""The walk of a voxel: from a scan to its label in at most five files, each step named in the one before it."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

WALKS = {
    "one scan in memory": [
        ("medunet.predict", "segment_volume", ["_opened", "plan", "pieces", "put"]),
        ("medunet.predict", "_opened", ["open"]),
        ("medunet.prediction.segmenter", "Segmenter.open", ["ScanView"]),
        ("medunet.transforms.preprocess", "ScanView.__getitem__", []),
        ("medunet.prediction.segmenter", "Segmenter.pieces", ["_scores", "pieces_of"]),
        ("medunet.prediction.segmenter", "Segmenter._scores", ["_mean"]),
        ("medunet.prediction.segmenter", "Segmenter._mean", ["_member"]),
        ("medunet.prediction.segmenter", "_member", ["rows"]),
        ("medunet.inference.streaming.streamer", "Stream.rows", ["run"]),
        ("medunet.inference.streaming.streamer", "Streamer.run", ["_run"]),
        ("medunet.transforms.restore", "pieces_of", ["Piece"]),
        ("medunet.transforms.restore", "OutputBuffer.put", []),
    ],
    "scans in files": [
        ("medunet.predict", "segment_files", ["PredictionJobs", "run"]),
        ("medunet.prediction.jobs", "PredictionJobs.run", ["_open", "_segment", "_write"]),
        ("medunet.prediction.jobs", "PredictionJobs._open", ["load_image", "open", "plan", "Opened"]),
        ("medunet.prediction.jobs", "PredictionJobs._segment", ["_results", "Segmented"]),
        ("medunet.prediction.jobs", "PredictionJobs._results", ["pieces", "put"]),
        ("medunet.prediction.segmenter", "Segmenter.pieces", ["pieces_of"]),
        ("medunet.prediction.jobs", "PredictionJobs._write", ["write_together", "Written"]),
        ("medunet.formats.results", "write_together", ["write_volume"]),
    ],
}
"""Module, function, and the names by which it leads on: to the next steps, or to a step further down."""

MOST_FILES = 5


def names_in(module: str, function: str) -> set[str]:
    """All names and attributes that a function's body mentions."""
    found = importlib.import_module(module)
    for part in function.split("."):
        found = getattr(found, part)
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(inspect.unwrap(found))))  # type: ignore[arg-type]
    return {node.id if isinstance(node, ast.Name) else node.attr for node in ast.walk(tree) if _is_name(node)}


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Attribute)


@pytest.mark.parametrize("walk", WALKS)
def test_a_voxel_is_followed_through_few_files(walk: str) -> None:
    steps = WALKS[walk]
    assert len({module for module, _, _ in steps}) <= MOST_FILES
    for module, function, leads in steps:
        assert set(leads) <= names_in(module, function), f"{module}.{function} leads on"


@pytest.mark.parametrize("walk", WALKS)
def test_every_step_is_led_to_by_one_before_it(walk: str) -> None:
    """No file is opened by guessing: a step's name, or that of its class, stands in an earlier step."""
    known = {WALKS[walk][0][1]}
    for _, function, leads in WALKS[walk]:
        first, _, last = function.partition(".")
        assert known & {first, last or first}, f"nothing leads to {function}"
        known |= {first, *leads}


def test_a_scan_is_opened_planned_cut_into_pieces_and_put_in_this_order() -> None:
    source = inspect.getsource(importlib.import_module("medunet.predict").segment_volume)
    places = [source.index(word) for word in ("_opened(volume", ".plan(scan)", ".pieces(scan, plan", ".put(piece)")]
    assert places == sorted(places)
