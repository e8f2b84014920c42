"""Object and boundary scores on a scorecard: columns, rows, a section, headlines, lines and a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

from medunet.metrics.boundaries import BOUNDARY_POLICY, BoundaryCounts
from medunet.metrics.objects import OBJECT_POLICY, THRESHOLDS, ObjectCounts
from medunet.metrics.summary import Statistics, statistics_of
from medunet.report.page import Headline, Section
from medunet.report.table import Cell, Column, Spread, Table, cell_text

Row = tuple[Cell, ...]


@dataclass(frozen=True)
class FurtherScores:
    """Scores of one further kind, of objects or of boundaries, ready for tables and pages.

    Attributes:
        key: its name in `scores.json`.
        columns, cells: its columns in `scores.csv`, and their values by case.
        summary: rows `(label, measure, cases, mean, deviation, median, worst, worst_case)` of `summary.csv`.
        record, case_records: its entries in `scores.json`.
        lines: for a terminal.
        policy: definitions, sentence by sentence.
    """

    key: str
    columns: tuple[Column, ...]
    cells: Mapping[str, Row]
    summary: tuple[Row, ...]
    record: dict[str, Any]
    case_records: Mapping[str, dict[str, Any]]
    headlines: tuple[Headline, ...]
    section: Section
    lines: tuple[str, ...]
    policy: tuple[str, ...]


_SCORES = (
    Column("seg", "SEG", share=True, hint="Cell Tracking Challenge, mean over reference objects"),
    Column("det", "DET", hint="Cell Tracking Challenge, on masks"),
    Column("ap50", "AP50", hint="TP / (TP + FP + FN) at an IoU of 0.5"),
    Column("ap75", "AP75", hint="TP / (TP + FP + FN) at an IoU of 0.75"),
    Column("mean_ap", "mAP", hint="mean AP over the IoU thresholds 0.5, 0.55, … 0.95"),
    Column("pq", "PQ", hint="panoptic quality"),
    Column("sq", "SQ", hint="mean IoU of pairs above 0.5"),
    Column("rq", "RQ", hint="F1 of pairs above 0.5"),
    Column("f1", "F1", hint="at an IoU of 0.5"),
    Column("precision", "Precision", hint="of objects, at an IoU of 0.5"),
    Column("recall", "Recall", hint="of objects, at an IoU of 0.5"),
)
_COUNTS = (
    Column("reference", "True", hint="objects of the reference"),
    Column("prediction", "Predicted", hint="objects of the prediction"),
    Column("missed", "Missed", hint="reference objects where nothing was predicted"),
    Column("invented", "Invented", hint="predicted objects where there is none"),
    Column("merged", "Merged", hint="predicted objects that cover several"),
    Column("split", "Split", hint="reference objects in which several predictions lie"),
    Column("unjudged", "Unjudged", hint="predicted objects that lie mostly on ignored voxels"),
)
"""Attributes of `ObjectCounts` with their titles."""

OBJECT_SCORES = {column.key: column.title for column in _SCORES}

_CSV_KEYS = {
    "reference": "objects_true", "prediction": "objects_predicted", "missed": "objects_missed",
    "invented": "objects_invented", "merged": "objects_merged", "split": "objects_split",
    "unjudged": "objects_unjudged", "f1": "object_f1", "precision": "object_precision", "recall": "object_recall",
}  # fmt: skip
"""Names in CSV files, where voxels have a precision and a recall as well."""


def object_scores(scored: Mapping[str, ObjectCounts], pooled: ObjectCounts, label: str) -> FurtherScores:
    """The scores of cases that were compared object by object.

    Args:
        scored: the counts by case.
        pooled: the counts of all cases together.
        label: the name of the objects in rows of `summary.csv`.
    """
    by_image = {key: _by_image(scored, key) for key in OBJECT_SCORES}
    return FurtherScores(
        key="objects",
        columns=tuple(Column(_CSV_KEYS.get(c.key, c.key), c.title) for c in (*_SCORES, *_COUNTS)),
        cells={case: _object_row(counts) for case, counts in scored.items()},
        summary=tuple(_summary_rows(label, pooled, by_image)),
        record={"pooled": _object_record(pooled), "by_image": {key: found.mean for key, found in by_image.items()}},
        case_records={case: _object_record(counts) for case, counts in scored.items()},
        headlines=_object_headlines(pooled, by_image),
        section=_object_section(scored, pooled, by_image),
        lines=tuple(_object_lines(pooled, by_image)),
        policy=OBJECT_POLICY,
    )


def _object_row(counts: ObjectCounts) -> Row:
    return tuple(getattr(counts, column.key) for column in (*_SCORES, *_COUNTS))


def _by_image(scored: Mapping[str, ObjectCounts], key: str) -> Statistics:
    values = {case: getattr(counts, key) for case, counts in scored.items()}
    return statistics_of({case: value for case, value in values.items() if not isnan(value)})


def summary_row(label: str, key: str, s: Statistics) -> Row:
    """A row of `summary.csv`."""
    return (label, key, s.count, s.mean, s.deviation, s.median, s.worst, s.worst_case or "")


def _summary_rows(label: str, pooled: ObjectCounts, by_image: Mapping[str, Statistics]) -> list[Row]:
    rows: list[Row] = []
    for key, s in by_image.items():
        name = _CSV_KEYS.get(key, key)
        rows.append(summary_row(label, name, s))
        rows.append(_pooled_row(label, name, s.count, getattr(pooled, key)))
    return rows


def _pooled_row(label: str, key: str, cases: int, value: float) -> Row:
    return (label, f"{key}_pooled", cases, value, None, None, None, "")


_THRESHOLD_SCORES = (
    "true_positives", "false_positives", "false_negatives", "precision", "recall", "f1", "ap", "mean_true_score",
    "mean_matched_score", "panoptic_quality",
)  # fmt: skip
"""Attributes of `Matches` in `scores.json`."""


def _object_record(counts: ObjectCounts) -> dict[str, Any]:
    return {
        **{column.key: getattr(counts, column.key) for column in (*_SCORES, *_COUNTS)},
        "thresholds": {
            f"{threshold:g}": {name: getattr(match, name) for name in _THRESHOLD_SCORES}
            for threshold, match in zip(THRESHOLDS, counts.matches, strict=True)
        },
    }


def _object_headlines(pooled: ObjectCounts, by_image: Mapping[str, Statistics]) -> tuple[Headline, ...]:
    wrong = pooled.missed + pooled.invented + pooled.merged + pooled.split
    return (
        Headline("SEG", cell_text(pooled.seg), f"DET {cell_text(pooled.det)}"),
        Headline("AP at IoU 0.5", cell_text(pooled.ap50), f"by image {cell_text(by_image['ap50'].mean)}"),
        Headline("mAP 0.5:0.95", cell_text(pooled.mean_ap), f"by image {cell_text(by_image['mean_ap'].mean)}"),
        Headline("Panoptic quality", cell_text(pooled.pq), f"SQ {cell_text(pooled.sq)}, RQ {cell_text(pooled.rq)}"),
        Headline("Objects", str(pooled.reference), f"{pooled.prediction} predicted"),
        Headline(
            "Missed objects", str(pooled.missed),
            f"{pooled.invented} invented, {pooled.merged} merged, {pooled.split} split", alarm=wrong > 0,
        ),
    )  # fmt: skip


def _object_section(
    scored: Mapping[str, ObjectCounts], pooled: ObjectCounts, by_image: Mapping[str, Statistics]
) -> Section:
    spreads = [Spread(found.mean, found.deviation) for found in by_image.values()]
    rows: tuple[Row, ...] = (
        ("all objects pooled", *_object_row(pooled)),
        ("mean ± SD by image", *spreads, *(None for _ in _COUNTS)),
    )
    cases: tuple[Row, ...] = tuple((case, *_object_row(counts)) for case, counts in scored.items())
    return Section(
        "Objects",
        ("Of all objects of all cases together, and by image. Hover over a heading for its meaning.",),
        tables=(
            Table((Column("what", ""), *_SCORES, *_COUNTS), rows),
            _threshold_table(pooled),
            Table((Column("case", "Case"), *_SCORES, *_COUNTS), cases),
        ),
    )


def _threshold_table(pooled: ObjectCounts) -> Table:
    columns = (
        Column("ap", "AP", share=True), Column("f1", "F1"), Column("precision", "Precision"),
        Column("recall", "Recall"), Column("true_positives", "TP"), Column("false_positives", "FP"),
        Column("false_negatives", "FN"), Column("mean_matched_score", "Mean IoU of pairs"),
    )  # fmt: skip
    rows = tuple(
        (threshold, *(getattr(match, column.key) for column in columns))
        for threshold, match in zip(THRESHOLDS, pooled.matches, strict=True)
    )
    return Table((Column("threshold", "IoU at least", digits=2), *columns), rows)


def _object_lines(pooled: ObjectCounts, by_image: Mapping[str, Statistics]) -> list[str]:
    keys = ("seg", "det", "ap50", "ap75", "mean_ap", "pq", "f1")
    counted = f"objects: {pooled.reference} true, {pooled.prediction} predicted"
    kinds = [f"{getattr(pooled, kind)} {kind}" for kind in ("missed", "invented", "merged", "split")]
    if pooled.unjudged:
        kinds.append(f"{pooled.unjudged} on ignored voxels not judged")
    lines = [
        f"{counted}; {', '.join(kinds)}",
        "  pooled    " + ", ".join(f"{OBJECT_SCORES[key]} {cell_text(getattr(pooled, key))}" for key in keys),
    ]
    if by_image["pq"].count > 1:
        lines.append(
            "  by image  " + ", ".join(f"{OBJECT_SCORES[key]} {cell_text(by_image[key].mean)}" for key in keys)
        )
    return lines


_BOUNDARY_COLUMNS = tuple(
    Column(key, title, digits=4)
    for key, title in (
        ("v_rand", "V_rand"), ("rand_split", "Rand split"), ("rand_merge", "Rand merge"), ("v_info", "V_info"),
        ("info_split", "Info split"), ("info_merge", "Info merge"), ("pixel_error", "Pixel error"),
        ("plain_pixel_error", "Plain pixel error"),
    )
)  # fmt: skip


def boundary_scores(scored: Mapping[str, BoundaryCounts], pooled: BoundaryCounts, label: str) -> FurtherScores:
    """The scores of cases that were compared as partitions; arguments as for `object_scores`."""
    values = {case: _boundary_values(counts) for case, counts in scored.items()}
    of_all = _boundary_values(pooled)
    v_rand, v_info, error, plain = (
        cell_text(of_all[key], 4) for key in ("v_rand", "v_info", "pixel_error", "plain_pixel_error")
    )
    return FurtherScores(
        key="boundaries",
        columns=_BOUNDARY_COLUMNS,
        cells={case: tuple(found.values()) for case, found in values.items()},
        summary=tuple(_pooled_row(label, key, len(scored), value) for key, value in of_all.items()),
        record={"pooled": {**of_all, **_thresholds(pooled)}},
        case_records={case: {**found, **_thresholds(scored[case])} for case, found in values.items()},
        headlines=(
            Headline("V_rand", v_rand, f"at threshold {pooled.rand.threshold:g}"),
            Headline("V_info", v_info, f"at threshold {pooled.info.threshold:g}"),
            Headline("Pixel error", error, f"plain {plain}"),
        ),
        section=_boundary_section(values, of_all),
        lines=(
            f"boundaries of {pooled.sections} sections: V_rand {v_rand} (split {cell_text(pooled.rand.split, 4)}, "
            f"merge {cell_text(pooled.rand.merge, 4)}), V_info {v_info}, pixel error {error} (plain {plain})",
        ),
        policy=BOUNDARY_POLICY,
    )


def _boundary_values(counts: BoundaryCounts) -> dict[str, float]:
    rand, info = counts.rand, counts.info
    return {
        "v_rand": rand.score, "rand_split": rand.split, "rand_merge": rand.merge,
        "v_info": info.score, "info_split": info.split, "info_merge": info.merge,
        "pixel_error": counts.pixel_error, "plain_pixel_error": counts.plain_pixel_error,
    }  # fmt: skip


def _thresholds(counts: BoundaryCounts) -> dict[str, Any]:
    return {
        "sections": counts.sections,
        "v_rand_threshold": counts.rand.threshold,
        "v_info_threshold": counts.info.threshold,
    }


def _boundary_section(values: Mapping[str, Mapping[str, float]], of_all: Mapping[str, float]) -> Section:
    rows: list[Row] = [("all sections", *of_all.values())]
    rows += [(case, *found.values()) for case, found in values.items()]
    text = "The first row takes one threshold for all sections; each case below has its own best."
    return Section("Boundaries", (text,), tables=(Table((Column("case", "Case"), *_BOUNDARY_COLUMNS), tuple(rows)),))
