"""Cross-validation splits: the cases of each fold, with all cases of a patient in the same one."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medunet.datasets.catalogue import Case, DataSet
from medunet.errors import ConfigError, DataError

SPLITS_FILE = "splits.json"
"""In the folder of a cross-validation: names of the cases that each fold learns from and holds out."""

_TABLES = ("patients.csv", "cases.csv")
_LONGEST_PATTERN, _MOST_REPEATS, _LONGEST_NAME = 200, 3, 128


@dataclass(frozen=True)
class Fold:
    """Part `number` of `count`, counted from 0."""

    number: int
    count: int


@dataclass(frozen=True)
class Split:
    """The names of the cases that one fold learns from and holds out; of a single case, both."""

    learned: tuple[str, ...]
    held_out: tuple[str, ...]


def fold_folder(run: Path, number: int) -> Path:
    """The folder of a fold of a cross-validation."""
    return run / f"fold_{number}"


def count_folds(cases: Sequence[Case], folds: int, patients: Mapping[str, str] | None = None) -> int:
    """The number of folds: `folds`, or one for each patient (or case) if there are fewer.

    A single case is split inside, into `folds` parts.

    Raises:
        DataError: several cases, but all of one patient.
    """
    if len(cases) == 1:
        return folds
    groups = len(_groups(cases, patients or {}))
    if groups < 2:
        raise DataError(
            f"all {len(cases)} cases are of one patient, {next(iter((patients or {}).values()), '?')}, so none can be "
            "held out\ncorrect what says which case is whose, or set data.folds to 0 to train without validation"
        )
    return min(folds, groups)


def split_cases(
    cases: Sequence[Case], fold: int, folds: int, seed: int, patients: Mapping[str, str] | None = None
) -> tuple[list[Case], list[Case]]:
    """Training and validation cases of one fold of a fixed, seeded cross-validation split.

    Patients are put in a random order, those with most cases first, and each goes to the fold with the fewest cases
    so far. With fewer patients than folds, every patient is held out once. With one case both lists hold it: the
    caller then splits inside the scan.

    Args:
        fold: counted on from 0 again where there are fewer folds.
        patients: the patient of each case, by the case's name; a case without one is a patient of its own.

    Raises:
        DataError: several cases, but all of one patient.
    """
    if len(cases) == 1:
        return [cases[0]], [cases[0]]
    folds = count_folds(cases, folds, patients)
    groups = _groups(cases, patients or {})
    order = [groups[int(i)] for i in np.random.default_rng(seed).permutation(len(groups))]
    counts, held = [0] * folds, set[int]()
    for group in sorted(order, key=len, reverse=True):
        place = int(np.argmin(counts))
        counts[place] += len(group)
        if place == fold % folds:
            held.update(group)
    return [c for i, c in enumerate(cases) if i not in held], [c for i, c in enumerate(cases) if i in held]


def all_splits(cases: Sequence[Case], folds: int, seed: int, patients: Mapping[str, str]) -> list[Split]:
    """Every fold of `split_cases`, by name."""
    splits = []
    for fold in range(count_folds(cases, folds, patients)):
        learned, held = split_cases(cases, fold, folds, seed, patients)
        splits.append(Split(tuple(c.name for c in learned), tuple(c.name for c in held)))
    return splits


def _groups(cases: Sequence[Case], patients: Mapping[str, str]) -> list[list[int]]:
    """The positions of each patient's cases; patients in the order of their first case."""
    found: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for position, case in enumerate(cases):
        # A case without a patient must not fall together with a patient of its name.
        found[case.name in patients, patients.get(case.name, case.name)].append(position)
    return list(found.values())


def splits_text(splits: Sequence[Split], patients: Mapping[str, str]) -> str:
    """The content of `splits.json`."""
    folds = [{"learned": list(split.learned), "held_out": list(split.held_out)} for split in splits]
    return json.dumps({"folds": folds, "patients": dict(sorted(patients.items()))}, indent=1, ensure_ascii=False) + "\n"


def read_splits(path: Path) -> list[Split]:
    """The folds that `splits_text` wrote.

    Raises:
        DataError: the file is not one of ours.
    """
    try:
        folds = json.loads(path.read_text(encoding="utf-8"))["folds"]
        splits = [Split(_names(fold["learned"]), _names(fold["held_out"])) for fold in folds]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as the splits of a cross-validation ({type(error).__name__}: {error})\n"
            "it is written by medunet train --fold all; start again in another folder"
        ) from error
    if not splits:
        raise DataError(f"{path}: names no fold; start again in another folder")
    return splits


def _names(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"expected a list of case names, found {given!r}")
    return tuple(given)


def read_patients(data: DataSet, pattern: str | None = None) -> dict[str, str]:
    """The patient of each labelled case, by the case's name; empty where nothing says so.

    Args:
        pattern: see `check_pattern`. Without one, `"patients"` in `dataset.json` says it, an object
            `{"case": "patient"}` or a list `[{"case": …, "patient": …}]`, or a table `patients.csv` or `cases.csv`
            in the data set's folder with columns `case` and `patient` (a `cases.csv` without `patient` is about
            something else).

    Raises:
        DataError, ConfigError: two places say it, a case is unknown, named twice or left out, or the pattern does not
            match a case's name.
    """
    if pattern is not None:
        return _by_pattern([case.name for case in data.labelled], pattern)
    readers = {data.folder / "dataset.json": _from_json, **{data.folder / name: _from_table for name in _TABLES}}
    said = {path: pairs for path, read in readers.items() if (pairs := read(path)) is not None}
    if len(said) > 1:
        names = " and ".join(path.name for path in said)
        raise DataError(f"{data.folder}: {names} both say which patient a case is of; keep it in one of them")
    for path, pairs in said.items():
        return _checked(path, pairs, data)
    return {}


def _from_json(path: Path) -> list[tuple[str, str]] | None:
    # That it is a JSON object was looked at when the data set was read.
    declared = json.loads(path.read_text(encoding="utf-8")).get("patients") if path.exists() else None
    if declared is None:
        return None
    if isinstance(declared, list) and all(
        isinstance(row, dict) and {"case", "patient"} <= set(row) for row in declared
    ):
        pairs = [(row["case"], row["patient"]) for row in declared]
    elif isinstance(declared, dict):
        pairs = list(declared.items())
    else:
        pairs = [("", None)]
    if not all(isinstance(c, str) and isinstance(p, (str, int)) and not isinstance(p, bool) for c, p in pairs):
        raise DataError(
            f'{path}: "patients" must be an object like {{"case_1": "anna", …}}, or a list like '
            '[{"case": "case_1", "patient": "anna"}, …]'
        )
    return [(case, str(patient)) for case, patient in pairs]


def _from_table(path: Path) -> list[tuple[str, str]] | None:
    if not path.exists():
        return None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            columns = rows.fieldnames or []
            if "patient" not in columns and path.name == "cases.csv":
                return None
            if not {"case", "patient"} <= set(columns):
                raise DataError(f"{path}: needs the columns case and patient, found {', '.join(columns) or 'nothing'}")
            return [((row["case"] or "").strip(), (row["patient"] or "").strip()) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of cases and patients ({error})") from error


def _checked(path: Path, pairs: Sequence[tuple[str, str]], data: DataSet) -> dict[str, str]:
    known = {case.name for case in data.cases}
    patients: dict[str, str] = {}
    for case, patient in pairs:
        if case not in known:
            near = ", ".join(c.name for c in data.cases[:3])
            raise DataError(f'{path}: names a case "{case}", which the data set does not have; its cases are {near}, …')
        if not patient:
            raise DataError(f"{path}: case {case} has an empty patient; give each case the name of its patient")
        if patients.setdefault(case, patient) != patient:
            raise DataError(f"{path}: case {case} is said to be of two patients, {patients[case]} and {patient}")
    missing = [case.name for case in data.labelled if case.name not in patients]
    if missing:
        raise DataError(
            f"{path}: says nothing about {len(missing)} of {len(data.labelled)} cases, first {missing[0]}\n"
            "name the patient of each, so that none of them is learned from and held out at once"
        )
    return {case.name: patients[case.name] for case in data.labelled}


def check_pattern(pattern: str) -> None:
    """Refuse a pattern for names of patients that cannot be used, or that could take forever to match.

    Its first group is the patient, as in `^(seq\\d+)_`. Allowed are at most 3 repetitions (`*`, `+`, `?`, `{2,5}`),
    none of them of a group, because backtracking takes exponential time in `(a+)+`; within these bounds the longest
    name is matched in less than a second.

    Raises:
        ConfigError: not a regular expression, no group, too long, or too many repetitions.
    """
    where = f"data.patient_pattern {pattern!r}"
    if len(pattern) > _LONGEST_PATTERN:
        raise ConfigError(f"data.patient_pattern: is longer than {_LONGEST_PATTERN} characters")
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern, flags=re.DOTALL)
    plain = re.sub(r"\(\?(?:P<\w+>|[:=!]|<[=!])", "(", plain)
    repeats = re.findall(r"(?:[*+?]|\{\d*,\d*\})[?+]?", plain)
    if len(repeats) > _MOST_REPEATS or re.search(r"\)[*+{]", plain):
        raise ConfigError(
            f"{where}: may repeat at most {_MOST_REPEATS} times, and no group, so that matching takes no time\n"
            r"write for example ^(seq\d+)_ or ^(.+?)_day"
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ConfigError(f"{where}: is not a regular expression: {error}") from error
    if compiled.flags & re.VERBOSE:
        raise ConfigError(f"{where}: must not ask for the verbose form, (?x)")
    if not compiled.groups:
        raise ConfigError(rf"{where}: has no group in parentheses that is the patient; write for example ^(seq\d+)_")


def _by_pattern(names: Sequence[str], pattern: str) -> dict[str, str]:
    check_pattern(pattern)
    long = next((name for name in names if len(name) > _LONGEST_NAME), None)
    if long is not None:
        raise DataError(
            f"{long[:60]}…: is longer than {_LONGEST_NAME} characters, to which data.patient_pattern is applied\n"
            "shorten the name, or name the patients in patients.csv"
        )
    matches = {name: re.search(pattern, name) for name in names}
    patients = {name: match[1] for name, match in matches.items() if match and match[1]}
    missing = [name for name in names if name not in patients]
    if missing:
        raise DataError(
            f"data.patient_pattern {pattern!r}: finds no patient in {len(missing)} of {len(names)} names of cases, "
            f"first {missing[0]}\nchange the pattern, or name the patients in patients.csv"
        )
    return patients
