"""What was annotated: slices, partly annotated pictures, and that the rest is IGNORE wherever labels are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.config import parse_config
from medunet.datasets.annotation import AnnotatedSlices, Annotation, AnnotationSettings, declared_annotation
from medunet.datasets.catalogue import annotated, read_data_set
from medunet.datasets.labels import IGNORE, table_from_names
from medunet.datasets.loading import load_image, load_label
from medunet.errors import ConfigError, DataError
from medunet.evaluate import evaluate_folders, evaluate_pairs
from medunet.evaluation.pairs import Pair
from medunet.formats.dispatch import write_volume
from medunet.inspect import inspect_path
from medunet.patches.cache import case_key
from medunet.patches.dataset import PatchDataset, PatchSettings, PreparedCase, find_foreground
from medunet.patches.prepare import annotated_cases
from medunet.planning.fingerprint import take_fingerprint
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import AugmentSettings
from medunet.transforms.preprocess import PreprocessSettings
from medunet.volume import Volume

TABLE = table_from_names({"background": 0, "cell": 1}, None)


def made_set(folder: Path, **declared: Any) -> Path:
    """Two volumes of 6 x 5 x 8 voxels with a cube of cell in z 2 to 5, and slices 0, 1, 6 and 7 empty."""
    labels = np.zeros((1, 6, 5, 8), np.uint8)
    labels[0, 1:4, 1:4, 2:6] = 1
    for name in ("scan_a", "scan_b"):
        write_volume(Volume(np.random.default_rng(1).normal(size=labels.shape)), folder / "images" / f"{name}.nii.gz")
        write_volume(Volume(labels), folder / "labels" / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "cell": 1}, **declared}))
    return folder


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_slices_that_were_not_annotated_are_unknown(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    indices = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2, (1, *shape)).astype(np.uint8)
    axis, every, first = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3))
    entry = AnnotatedSlices("xyz"[axis], every, first)  # type: ignore[arg-type]
    marked = Annotation((entry,)).marked(indices, TABLE, "x")
    for place in range(shape[axis]):
        part, before = marked.take(place, axis + 1), indices.take(place, axis + 1)
        assert (part == (before if place in range(first, shape[axis], every) else IGNORE)).all()


def test_entries_add_up_and_the_conditions_of_one_hold_together() -> None:
    indices = np.zeros((1, 4, 4, 6), np.uint8)
    indices[0, 1, 1, 1:3] = 1
    slices = (AnnotatedSlices("z", at=(0, 5)), AnnotatedSlices("x", at=(3,)))
    known = Annotation(slices).marked(indices, TABLE, "x")[0] != IGNORE
    expected = np.zeros((4, 4, 6), bool)
    expected[:, :, [0, 5]] = expected[3] = True
    np.testing.assert_array_equal(known, expected)
    filled = AnnotatedSlices(empty="ignore")
    assert np.flatnonzero(filled.lines(indices, "x")).tolist() == [1, 2]
    assert np.flatnonzero(replace(filled, every=2).lines(indices, "x")).tolist() == [2]


@pytest.mark.parametrize(("rim", "reach"), [(0, 0), (1, 1), (2.5, 2)])
def test_the_background_of_a_partly_annotated_picture_is_unknown_beyond_a_rim(rim: float, reach: int) -> None:
    indices = np.zeros((1, 9, 9), np.uint8)
    indices[0, 4, 4] = 1
    indices[0, 0, 0] = IGNORE
    marked = Annotation(partial=True, rim=rim).marked(indices, TABLE, "x")[0]
    assert marked[4, 4] == 1 and marked[0, 0] == IGNORE
    places = np.argwhere(marked == 0)
    far = np.linalg.norm(places - 4, axis=1) if len(places) else np.zeros(1)
    assert far.max() <= rim and [*marked[4]].count(0) == 2 * reach
    empty = Annotation(partial=True, rim=rim).marked(np.zeros((1, 5, 5), np.uint8), TABLE, "x")
    assert (empty == IGNORE).all(), "without an object nothing of the picture is known"


def test_what_is_complete_stays_the_same_array() -> None:
    indices = np.zeros((1, 3, 3), np.uint8)
    assert Annotation().marked(indices, TABLE, "x") is indices


def test_data_set_and_config_say_it_and_every_reader_knows_it(tmp_path: Path) -> None:
    folder = made_set(tmp_path, annotated_slices={"every": 4, "cases": ["scan_a"]}, partial=["*_b"], partial_rim=0)
    a, b = read_data_set(folder).cases
    assert (a.annotation.complete, a.annotation.partial, b.annotation.partial) == (False, False, True)
    label = load_label(a, TABLE, load_image(a))
    assert np.flatnonzero((label[0] != IGNORE).any(axis=(0, 1))).tolist() == [0, 4]
    assert (label[0, :, :, 4] == 1).sum() == 9
    assert set(np.unique(load_label(b, TABLE, load_image(b)))) == {1, IGNORE}
    found = take_fingerprint([a, b], TABLE)
    assert found.cases[0].voxels == (2 * 30 - 9, 9) and found.cases[1].voxels == (0, 36)
    assert found.annotated() == (60 + 36) / 480
    told = inspect_path(folder)["annotated"]
    assert told == "20 % of the voxels; partial: scan_b; some slices: scan_a"

    config = parse_config("data: {annotated_slices: [{axis: x, at: [3]}]}", "c").config.data
    other = annotated(read_data_set(folder), config.annotation)
    assert [c.annotation.slices for c in other.cases] == [(AnnotatedSlices("x", at=(3,)),)] * 2
    assert other.cases[1].annotation.partial and other.cases[1].annotation.rim == 0
    assert inspect_path(made_set(tmp_path / "plain"))["annotated"] is None


def test_prepared_cases_of_another_annotation_are_others(tmp_path: Path) -> None:
    case = read_data_set(made_set(tmp_path)).cases[0]
    keys = {
        case_key(replace(case, annotation=annotation), PreprocessSettings(), TABLE, None)
        for annotation in (Annotation(), Annotation((AnnotatedSlices(every=2),)), Annotation(partial=True))
    }
    assert len(keys) == 3


def test_scores_look_at_what_was_annotated_alone(tmp_path: Path) -> None:
    folder = made_set(tmp_path, annotated_slices=[{"empty": "ignore"}])
    predictions = tmp_path / "predictions"
    for case in read_data_set(folder).cases:
        assert case.label is not None
        labels = load_image(replace(case, images=(case.label,))).array.copy()
        labels[..., :2] = labels[..., 6:] = 1  # wrong, or perhaps right: nobody knows
        write_volume(Volume(labels), predictions / f"{case.name}.nii.gz")
    evaluation = evaluate_folders(predictions, folder)
    assert [case.labels[0].dice for case in evaluation.cases] == [1.0, 1.0]
    assert evaluation.card.notes == ("50 % of the references' voxels are annotated; the others were not scored.",)
    one = read_data_set(folder).cases[0]
    assert one.label is not None
    pair = Pair("a", predictions / "scan_a.nii.gz", one.label)
    assert evaluate_pairs([pair]).cases[0].labels[0].dice < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("oversample", [0.0, 1.0])
@pytest.mark.parametrize("known", ["slice", "corner", "scattered"])
def test_every_patch_shows_something_annotated(dimensions: int, oversample: float, known: str) -> None:
    """For networks of slices and of volumes; the output, of which there is a margin less than of the patch."""
    label = np.full((1, 40, 40, 24), IGNORE, np.uint8)
    where = {"slice": np.s_[:, :, :, 3], "corner": np.s_[:, :2, 38:, :1], "scattered": np.s_[:, 5::17, 3::19, ::11]}
    label[where[known]] = 0
    label[where[known]][..., :1, :1] = 1
    case = PreparedCase("sparse", np.zeros(label.shape, np.float32), label, find_foreground(label, [1]))
    size, margin = ((12,) * dimensions, (2,) * dimensions)
    still = Augmentation(AugmentSettings.none(), dimensions)
    patches = PatchDataset([case], PatchSettings(size, oversample=oversample), 100, still, margin=margin)
    assert all((patches[number].label != IGNORE).any() for number in range(60))


def test_places_are_the_same_where_all_is_annotated() -> None:
    """The first place that is drawn is taken if it shows something: nothing changes for other data."""
    label = np.zeros((1, 30, 30), np.uint8)
    image = np.arange(900, dtype=np.float32).reshape(1, 30, 30)
    sparse = label.copy()
    sparse[0, ::5, ::5] = IGNORE
    first, second = (
        PatchDataset(
            [PreparedCase("a", image, each, {})], PatchSettings((8, 8)), 50, Augmentation(AugmentSettings.none(), 2)
        )
        for each in (label, sparse)
    )
    assert all((first[n].image == second[n].image).all() for n in range(50))


def test_cases_without_annotation_are_left_out_and_named() -> None:
    label = np.zeros((1, 4, 4), np.uint8)
    some = PreparedCase("some", label.astype(np.float32), label, {})
    none = PreparedCase("none", label.astype(np.float32), np.full_like(label, IGNORE), {})
    said: list[str] = []
    assert annotated_cases([some, none], said.append) == [some]
    assert said == ["NOTE: nothing is annotated in none: left out of the training"]
    with pytest.raises(DataError, match="no voxel of the 1 training case"):
        annotated_cases([none])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "say which ones"),
        ({"every": 0}, "at least 1"),
        ({"every": 2, "at": (1,)}, "exclude each other"),
        ({"first": 1, "at": (1,)}, "goes with every"),
        ({"at": ()}, "counted from 0"),
        ({"axis": "t", "every": 2}, "x, y or z"),
        ({"empty": "skip"}, "background or ignore"),
    ],
)
def test_impossible_slices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnnotatedSlices(**changes)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"partial": "t067"}, "list of case names"),
        ({"partial": [7]}, "list of case names"),
        ({"partial_rim": "2"}, "number of voxels"),
        ({"partial_rim": -1}, "0 or more"),
        ({"annotated_slices": 4}, "must be a list"),
        ({"annotated_slices": [{"evry": 4}]}, 'knows no "evry"'),
        ({"annotated_slices": {"every": "4"}}, "whole number"),
        ({"annotated_slices": {"at": [1.5]}}, "list of slices"),
        ({"annotated_slices": {"axis": "z"}}, "say which ones"),
    ],
)
def test_declarations_that_say_nothing_usable_are_refused(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        declared_annotation(declared, "dataset.json")
    assert str(caught.value).startswith("dataset.json: ")


def test_cases_that_there_are_not_are_refused(tmp_path: Path) -> None:
    data = read_data_set(made_set(tmp_path))
    with pytest.raises(DataError, match=r'"_a" is declared .* did you mean scan_a\?'):
        annotated(data, AnnotationSettings(partial=("_a",)))
    with pytest.raises(DataError, match="no case has that name"):
        annotated(data, AnnotationSettings(slices=(AnnotatedSlices(every=2, cases=("scan_c",)),)))


def test_labels_that_do_not_fit_the_declaration_are_refused() -> None:
    flat, deep = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4, 4), np.uint8)
    with pytest.raises(DataError, match="has 2 dimensions"):
        Annotation((AnnotatedSlices(every=2),)).marked(flat, TABLE, "a")
    with pytest.raises(DataError, match="name slice 4 along z, where there are 4"):
        Annotation((AnnotatedSlices(at=(4,)),)).marked(deep, TABLE, "a")
    membranes = table_from_names({"membrane": 0, "cell": 255}, None)
    with pytest.raises(DataError, match="no background to be unknown"):
        Annotation(partial=True).marked(flat, membranes, "a")
