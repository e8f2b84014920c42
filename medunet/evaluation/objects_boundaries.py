"""Object and boundary scores on a scorecard: columns, rows, a section, headlines, lines and a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from medunet.metrics import (
    BOUNDARY_POLICY,
    OBJECT_POLICY,
    BoundaryCounts,
    CaseScores,
    ObjectCounts,
    Statistics,
    statistics_of,
)
from medunet.metrics.objects import THRESHOLDS
from medunet.report.page import Headline, Section
from medunet.report.table import Cell, Column, Spread, Table, cell_text


@dataclass(frozen=True)
class ScorePart:
    """One further kind of scores, ready to be put into tables and pages.

    Attributes:
        key: its name in `scores.json`.
        columns, cells: what it adds to `scores.csv`, and the values by case.
        summary: rows `(label, measure, cases, mean, deviation, median, worst, worst_case)` of `summary.csv`.
        record, case_records: what it adds to `scores.json`.
        lines: for a terminal.
    """

    key: str
    columns: tuple[Column, ...]
    cells: Mapping[str, tuple[Cell, ...]]
    summary: tuple[tuple[Cell, ...], ...]
    record: dict[str, Any]
    case_records: Mapping[str, dict[str, Any]]
    headlines: tuple[Headline, ...]
    section: Section
    lines: tuple[str, ...]
    policy: tuple[str, ...]


_Titles = Mapping[str, str]

OBJECT_SCORES: _Titles = {
    "seg": "SEG", "det": "DET", "ap50": "AP50", "ap75": "AP75", "mean_ap": "mAP", "pq": "PQ", "sq": "SQ", "rq": "RQ",
    "f1": "F1", "precision": "Precision", "recall": "Recall",
}  # fmt: skip
"""Titles of `ObjectCounts`' scores."""
_OBJECT_HINTS: _Titles = {
    "seg": "Cell Tracking Challenge, mean over reference objects",
    "det": "Cell Tracking Challenge, on masks",
    "ap50": "TP / (TP + FP + FN) at an IoU of 0.5",
    "ap75": "TP / (TP + FP + FN) at an IoU of 0.75",
    "mean_ap": "mean AP over the IoU thresholds 0.5, 0.55, … 0.95",
    "pq": "panoptic quality",
    "sq": "mean IoU of pairs above 0.5",
    "rq": "F1 of pairs above 0.5",
    "f1": "at an IoU of 0.5",
    "precision": "of objects, at an IoU of 0.5",
    "recall": "of objects, at an IoU of 0.5",
}
_OBJECT_COUNTS: _Titles = {
    "reference": "True", "prediction": "Predicted", "missed": "Missed", "invented": "Invented", "merged": "Merged",
    "split": "Split", "unjudged": "Unjudged",
}  # fmt: skip
_COUNT_HINTS: _Titles = {
    "reference": "objects of the reference",
    "prediction": "objects of the prediction",
    "missed": "reference objects where nothing was predicted",
    "invented": "predicted objects where there is none",
    "merged": "predicted objects that cover several",
    "split": "reference objects in which several predictions lie",
    "unjudged": "predicted objects that lie mostly on ignored voxels",
}


def object_part(cases: Sequence[CaseScores], label: str) -> ScorePart | None:
    """The scores of cases that were compared object by object; None without any.

    Args:
        label: what the objects are, for rows of `summary.csv`.
    """
    scored = {case.case: case.objects for case in cases if case.objects is not None}
    if not scored:
        return None
    pooled = sum(list(scored.values())[1:], next(iter(scored.values())))
    by_image = {key: _by_image(scored, key) for key in OBJECT_SCORES}
    return ScorePart(
        key="objects",
        columns=tuple(Column(_OBJECT_KEYS.get(key, key), title) for key, title in _shown_objects().items()),
        cells={case: tuple(getattr(counts, key) for key in _shown_objects()) for case, counts in scored.items()},
        summary=tuple(_summary_rows(label, pooled, by_image)),
        record={
            "pooled": _object_record(pooled),
            "by_image": {key: found.mean for key, found in by_image.items()},
        },
        case_records={case: _object_record(counts) for case, counts in scored.items()},
        headlines=_object_headlines(pooled, by_image),
        section=_object_section(scored, pooled, by_image),
        lines=tuple(_object_lines(pooled, by_image)),
        policy=OBJECT_POLICY,
    )


_OBJECT_KEYS: _Titles = {
    "reference": "objects_true", "prediction": "objects_predicted", "missed": "objects_missed",
    "invented": "objects_invented", "merged": "objects_merged", "split": "objects_split",
    "unjudged": "objects_unjudged", "f1": "object_f1", "precision": "object_precision", "recall": "object_recall",
}  # fmt: skip
"""Names in CSV files, where voxels have a precision and a recall as well."""


def _shown_objects() -> dict[str, str]:
    return {**OBJECT_SCORES, **_OBJECT_COUNTS}


def _by_image(scored: Mapping[str, ObjectCounts], key: str) -> Statistics:
    values = {case: getattr(counts, key) for case, counts in scored.items()}
    return statistics_of({case: value for case, value in values.items() if not isnan(value)})


def _summary_rows(label: str, pooled: ObjectCounts, by_image: Mapping[str, Statistics]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for key, s in by_image.items():
        name = _OBJECT_KEYS.get(key, key)
        rows.append((label, name, s.count, s.mean, s.deviation, s.median, s.worst, s.worst_case or ""))
        rows.append((label, f"{name}_pooled", s.count, getattr(pooled, key), None, None, None, ""))
    return rows


def _object_record(counts: ObjectCounts) -> dict[str, Any]:
    return {
        **{key: getattr(counts, key) for key in _shown_objects()},
        "thresholds": {
            f"{threshold:g}": {
                "true_positives": match.true_positives,
                "false_positives": match.false_positives,
                "false_negatives": match.false_negatives,
                "precision": match.precision,
                "recall": match.recall,
                "f1": match.f1,
                "ap": match.accuracy,
                "mean_true_score": match.mean_true_score,
                "mean_matched_score": match.mean_matched_score,
                "panoptic_quality": match.panoptic_quality,
            }
            for threshold, match in zip(THRESHOLDS, counts.matches, strict=True)
        },
    }


def _object_headlines(pooled: ObjectCounts, by_image: Mapping[str, Statistics]) -> tuple[Headline, ...]:
    wrong = pooled.missed + pooled.invented + pooled.merged + pooled.split
    return (
        Headline("SEG", _shown(pooled.seg), f"DET {_shown(pooled.det)}"),
        Headline("AP at IoU 0.5", _shown(pooled.ap50), f"by image {_shown(by_image['ap50'].mean)}"),
        Headline("mAP 0.5:0.95", _shown(pooled.mean_ap), f"by image {_shown(by_image['mean_ap'].mean)}"),
        Headline("Panoptic quality", _shown(pooled.pq), f"SQ {_shown(pooled.sq)}, RQ {_shown(pooled.rq)}"),
        Headline("Objects", str(pooled.reference), f"{pooled.prediction} predicted"),
        Headline(
            "Missed objects", str(pooled.missed),
            f"{pooled.invented} invented, {pooled.merged} merged, {pooled.split} split", alarm=wrong > 0,
        ),
    )  # fmt: skip


def _object_section(
    scored: Mapping[str, ObjectCounts], pooled: ObjectCounts, by_image: Mapping[str, Statistics]
) -> Section:
    scores = [Column(key, title, hint=_OBJECT_HINTS[key], share=key == "seg") for key, title in OBJECT_SCORES.items()]
    counts = [Column(key, title, hint=_COUNT_HINTS[key]) for key, title in _OBJECT_COUNTS.items()]
    spreads = [Spread(found.mean, found.deviation) for found in by_image.values()]
    rows: list[tuple[Cell, ...]] = [("all objects pooled", *(getattr(pooled, key) for key in _shown_objects()))]
    rows.append(("mean ± SD by image", *spreads, *(None for _ in _OBJECT_COUNTS)))
    cases = [(case, *(getattr(one, key) for key in _shown_objects())) for case, one in scored.items()]
    return Section(
        "Objects",
        ("Of all objects of all cases together, and by image. Hover over a heading for its meaning.",),
        tables=(
            Table((Column("what", ""), *scores, *counts), tuple(rows)),
            _threshold_table(pooled),
            Table((Column("case", "Case"), *scores, *counts), tuple(cases)),
        ),
    )


def _threshold_table(pooled: ObjectCounts) -> Table:
    columns = (
        Column("threshold", "IoU at least", digits=2), Column("ap", "AP", share=True), Column("f1", "F1"),
        Column("precision", "Precision"), Column("recall", "Recall"), Column("tp", "TP"), Column("fp", "FP"),
        Column("fn", "FN"), Column("mean_matched_score", "Mean IoU of pairs"),
    )  # fmt: skip
    rows = [
        (
            threshold, match.accuracy, match.f1, match.precision, match.recall, match.true_positives,
            match.false_positives, match.false_negatives, match.mean_matched_score,
        )
        for threshold, match in zip(THRESHOLDS, pooled.matches, strict=True)
    ]  # fmt: skip
    return Table(columns, tuple(rows))


def _object_lines(pooled: ObjectCounts, by_image: Mapping[str, Statistics]) -> list[str]:
    keys = ("seg", "det", "ap50", "ap75", "mean_ap", "pq", "f1")
    counted = f"objects: {pooled.reference} true, {pooled.prediction} predicted"
    kinds = [f"{getattr(pooled, kind)} {kind}" for kind in ("missed", "invented", "merged", "split")]
    if pooled.unjudged:
        kinds.append(f"{pooled.unjudged} on ignored voxels not judged")
    lines = [
        f"{counted}; {', '.join(kinds)}",
        "  pooled    " + ", ".join(f"{OBJECT_SCORES[key]} {_shown(getattr(pooled, key))}" for key in keys),
    ]
    if by_image["pq"].count > 1:
        lines.append("  by image  " + ", ".join(f"{OBJECT_SCORES[key]} {_shown(by_image[key].mean)}" for key in keys))
    return lines


def _shown(value: float) -> str:
    return cell_text(value, 3)


_BOUNDARY_SCORES: _Titles = {
    "v_rand": "V_rand", "rand_split": "Rand split", "rand_merge": "Rand merge", "v_info": "V_info",
    "info_split": "Info split", "info_merge": "Info merge", "pixel_error": "Pixel error",
    "plain_pixel_error": "Plain pixel error",
}  # fmt: skip


def boundary_part(cases: Sequence[CaseScores], label: str) -> ScorePart | None:
    """The scores of cases that were compared as partitions; None without any. Arguments as for `object_part`."""
    scored = {case.case: case.boundaries for case in cases if case.boundaries is not None}
    if not scored:
        return None
    pooled = sum(list(scored.values())[1:], next(iter(scored.values())))
    values = {case: _boundary_values(counts) for case, counts in scored.items()}
    all_values = _boundary_values(pooled)
    columns = tuple(Column(key, title, digits=4) for key, title in _BOUNDARY_SCORES.items())
    cut = f"at threshold {pooled.rand.threshold:g}"
    return ScorePart(
        key="boundaries",
        columns=columns,
        cells={case: tuple(found.values()) for case, found in values.items()},
        summary=tuple(
            (label, f"{key}_pooled", len(scored), value, None, None, None, "") for key, value in all_values.items()
        ),
        record={"pooled": {**all_values, **_thresholds(pooled)}},
        case_records={case: {**found, **_thresholds(scored[case])} for case, found in values.items()},
        headlines=(
            Headline("V_rand", _shown4(pooled.v_rand), cut),
            Headline("V_info", _shown4(pooled.v_info), f"at threshold {pooled.info.threshold:g}"),
            Headline("Pixel error", _shown4(pooled.pixel_error), f"plain {_shown4(pooled.plain_pixel_error)}"),
        ),
        section=_boundary_section(columns, values, pooled),
        lines=(
            f"boundaries of {pooled.sections} sections: V_rand {_shown4(pooled.v_rand)} (split "
            f"{_shown4(pooled.rand.split)}, merge {_shown4(pooled.rand.merge)}), V_info {_shown4(pooled.v_info)}, "
            f"pixel error {_shown4(pooled.pixel_error)} (plain {_shown4(pooled.plain_pixel_error)})",
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


def _boundary_section(
    columns: tuple[Column, ...], values: Mapping[str, Mapping[str, float]], pooled: BoundaryCounts
) -> Section:
    rows: list[tuple[Cell, ...]] = [("all sections", *_boundary_values(pooled).values())]
    rows += [(case, *found.values()) for case, found in values.items()]
    text = "The first row takes one threshold for all sections; each case below has its own best."
    return Section("Boundaries", (text,), tables=(Table((Column("case", "Case"), *columns), tuple(rows)),))


def _shown4(value: float) -> str:
    return cell_text(value, 4)
