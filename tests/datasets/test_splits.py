"""Splits: everybody is held out once, patients stay together, and what names them is looked at closely."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medunet.config import DataSettings
from medunet.datasets.catalogue import Case, DataSet
from medunet.datasets.splits import (
    Fold,
    all_splits,
    check_pattern,
    count_folds,
    read_patients,
    read_splits,
    split_cases,
    splits_text,
)
from medunet.errors import ConfigError, DataError, MedunetError
from medunet.patches.prepare import held_out_mask


def cases(number: int) -> tuple[Case, ...]:
    return tuple(named(f"c{i}" for i in range(number)))


def named(names: object) -> list[Case]:
    return [Case(name, (Path(f"{name}.nii"),), Path(f"{name}.nii")) for name in names]  # type: ignore[attr-defined]


def data_set(folder: Path, *names: str) -> DataSet:
    return DataSet(folder, "set", tuple(named(names)), (), None)


@pytest.mark.slow
@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_every_case_is_held_out_once_and_no_patient_is_divided(owners: list[int], folds: int, seed: int) -> None:
    owners = [*owners, 10]
    everything = cases(len(owners))
    patients = {case.name: f"p{owner}" for case, owner in zip(everything, owners, strict=True)}
    splits = all_splits(everything, folds, seed, patients)
    assert len(splits) == min(folds, len(set(owners)))
    assert sorted(name for split in splits for name in split.held_out) == sorted(patients)
    for split in splits:
        assert split.learned and split.held_out
        assert sorted(split.learned + split.held_out) == sorted(patients)
        assert not {patients[n] for n in split.learned} & {patients[n] for n in split.held_out}
    assert splits == all_splits(everything, folds, seed, patients)


@pytest.mark.slow
@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(2, 7))
def test_folds_are_as_even_as_the_patients_allow(owners: list[int], folds: int) -> None:
    owners = [*owners, 10]
    everything = cases(len(owners))
    patients = {case.name: f"p{owner}" for case, owner in zip(everything, owners, strict=True)}
    sizes = [len(split.held_out) for split in all_splits(everything, folds, 0, patients)]
    # Each patient went to the smallest fold, so that no fold leads by more than its last and smallest patient.
    assert max(sizes) - min(sizes) <= max(Counter(owners).values())


@pytest.mark.slow
@given(st.integers(2, 60), st.integers(2, 8), st.integers(0, 99))
def test_without_patients_folds_differ_by_one_case_and_are_those_of_earlier_runs(n: int, folds: int, seed: int) -> None:
    everything = cases(n)
    order = np.random.default_rng(seed).permutation(n)
    for number, split in enumerate(all_splits(everything, folds, seed, {})):
        plain = sorted(int(i) for i in order[number :: min(folds, n)])
        assert [everything[i].name for i in plain] == list(split.held_out)


def test_the_seed_changes_the_split() -> None:
    assert split_cases(cases(13), 0, 5, seed=2)[1] != split_cases(cases(13), 0, 5, seed=1)[1]


def test_few_cases_or_patients_are_left_out_one_by_one() -> None:
    for number in (2, 3, 4):
        assert [len(split.held_out) for split in all_splits(cases(number), 5, 0, {})] == [1] * number
    learned, held = split_cases(cases(2), 4, 5, 0)
    assert len(learned) == 1 and len(held) == 1
    patients = {f"c{i}": "anna" if i < 5 else "bert" for i in range(8)}
    assert sorted(len(split.held_out) for split in all_splits(cases(8), 5, 0, patients)) == [3, 5]


def test_a_case_without_a_patient_is_none_of_that_name() -> None:
    assert count_folds(cases(2), 5, {"c0": "c1"}) == 2


def test_one_patient_cannot_be_held_out_from_himself() -> None:
    with pytest.raises(DataError, match="all 3 cases are of one patient, anna"):
        split_cases(cases(3), 0, 5, 0, {f"c{i}": "anna" for i in range(3)})
    assert count_folds(cases(1), 5, {"c0": "anna"}) == 5


@pytest.mark.slow
@given(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30)), st.integers(2, 6))
def test_parts_of_a_single_scan_cover_it_once(shape: tuple[int, ...], folds: int) -> None:
    if max(shape) < folds:
        with pytest.raises(DataError, match=f"from which {folds} parts cannot be cut"):
            held_out_mask(shape, Fold(0, folds))
        return
    masks = [held_out_mask(shape, Fold(number, folds)) for number in range(folds)]
    assert all(mask.any() for mask in masks) and (np.sum(masks, axis=0) == 1).all()
    assert masks[0].reshape(-1)[-1], "the first fold is the end of the scan"


@pytest.mark.parametrize("form", ["object", "list", "patients.csv", "cases.csv"])
def test_patients_from_each_place(tmp_path: Path, form: str) -> None:
    pairs = {"a": "anna", "b": "anna", "c": "bert"}
    if form == "object":
        (tmp_path / "dataset.json").write_text(json.dumps({"patients": pairs}))
    elif form == "list":
        rows = [{"case": case, "patient": patient} for case, patient in pairs.items()]
        (tmp_path / "dataset.json").write_text(json.dumps({"patients": rows}))
    else:
        lines = ["site, case, patient", *(f"x, {case}, {patient}" for case, patient in pairs.items())]
        (tmp_path / form).write_text("﻿" + "\n".join(lines), encoding="utf-8")
    assert read_patients(data_set(tmp_path, "a", "b", "c")) == pairs


def test_nothing_says_so_and_other_tables_are_not_asked(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case,age\na,5\n")
    (tmp_path / "dataset.json").write_text("{}")
    assert read_patients(data_set(tmp_path, "a", "b")) == {}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("patients.csv", "case,patient\na,anna\nz,bert\n", 'names a case "z", which the data set does not have'),
        ("patients.csv", "case,patient\na,anna\n", "says nothing about 1 of 2 cases, first b"),
        ("patients.csv", "case,patient\na,anna\nb,\n", "case b has an empty patient"),
        ("patients.csv", "case,patient\na,anna\nb\n", "case b has an empty patient"),
        ("patients.csv", "case,patient\na,anna\nb,x\na,bert\n", "of two patients, anna and bert"),
        ("patients.csv", "case;patient\na;anna\n", "needs the columns case and patient, found case;patient"),
        ("patients.csv", "", "needs the columns case and patient, found nothing"),
        ("dataset.json", '{"patients": {"a": ["x"], "b": "y"}}', '"patients" must be an object like'),
        ("dataset.json", '{"patients": [["a", "x"]]}', '"patients" must be an object like'),
        ("dataset.json", '{"patients": 5}', '"patients" must be an object like'),
    ],
)
def test_patients_that_cannot_be_are_said(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError) as error:
        read_patients(data_set(tmp_path, "a", "b"))
    assert message in str(error.value) and file in str(error.value)


def test_two_places_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("case,patient\na,x\nb,y\n")
    (tmp_path / "dataset.json").write_text('{"patients": {"a": "x", "b": "y"}}')
    with pytest.raises(DataError, match=re.escape("dataset.json and patients.csv both say")):
        read_patients(data_set(tmp_path, "a", "b"))


def test_patients_by_a_pattern(tmp_path: Path) -> None:
    data = data_set(tmp_path, "seq01_t1", "seq01_t2", "seq02_t1")
    found = read_patients(data, r"^(seq\d+)_")
    assert found == {"seq01_t1": "seq01", "seq01_t2": "seq01", "seq02_t1": "seq02"}
    with pytest.raises(DataError, match="finds no patient in 2 of 3 names of cases, first seq01_t1"):
        read_patients(data, "^(seq02)")
    with pytest.raises(DataError, match="longer than 128 characters"):
        read_patients(data_set(tmp_path, "a" * 129), "(a)")


@pytest.mark.parametrize(
    "pattern",
    [r"^(seq\d+)_", r"^(.+?)_\d+_\w+$", r"^(sub-[^_*+?]+)_ses-[^_]+", r"(?P<p>a\+\)*)", r"(?:x|y)(a{3})b{1,2}c{4}"],
)
def test_patterns_that_may_be_used(pattern: str) -> None:
    assert DataSettings(patient_pattern=pattern).patient_pattern == pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "is not a regular expression"),
        ("^seq", "has no group"),
        ("", "has no group"),
        ("(a+)+$", "and no group"),
        ("(a|a)*b", "and no group"),
        ("((a){9}){9}", "and no group"),
        ("(a?a?a?a?)", "at most 3"),
        ("(?=(a+)){9}", "and no group"),
        ("(?x)(a+) +$", "verbose"),
        ("(a)" * 70, "longer than 200"),
    ],
)
def test_patterns_that_may_not(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSettings(patient_pattern=pattern)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["(a*a*a*)b", r"(.*.*.*)\1\1b", r"(\w+\w+\w+)$x"])
def test_the_slowest_patterns_that_pass_come_to_an_end(tmp_path: Path, pattern: str) -> None:
    """In less than a second; a pattern with repeated groups would take longer than anybody waits."""
    check_pattern(pattern)
    with pytest.raises(DataError, match="finds no patient"):
        read_patients(data_set(tmp_path, "a" * 128), pattern)


def test_splits_are_written_and_read(tmp_path: Path) -> None:
    splits = all_splits(cases(7), 3, 0, {})
    (tmp_path / "splits.json").write_text(splits_text(splits, {}))
    assert read_splits(tmp_path / "splits.json") == splits


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"folds": []}', '{"folds": [{"learned": "a", "held_out": []}]}'])
def test_what_is_no_splits_file_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(MedunetError, match=re.escape("splits.json")):
        read_splits(tmp_path / "splits.json")


@pytest.mark.data
def test_sequences_of_a_real_set_stay_together(real_data: Path) -> None:
    names = [path.stem for path in sorted((real_data / "camvid_rgb" / "images").iterdir())]
    data = data_set(real_data / "camvid_rgb", *names)
    patients = read_patients(data, r"^(\w+?)_")
    splits = all_splits(data.labelled, 5, 0, patients)
    assert len(splits) == min(5, len(set(patients.values()))) >= 2
    for one in splits:
        assert not {name.split("_")[0] for name in one.held_out} & {name.split("_")[0] for name in one.learned}
