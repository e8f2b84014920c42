"""Notes of an evaluation: what was left out, and how label maps were read."""

from __future__ import annotations

from collections.abc import Sequence

from medunet.datasets.labels import LabelTable
from medunet.evaluation.membranes import border_index
from medunet.evaluation.settings import EvaluateSettings
from medunet.metrics.case import CaseScores
from medunet.metrics.summary import Summary


def notes_on(
    cases: Sequence[CaseScores], summary: Summary, labels: LabelTable, how: EvaluateSettings
) -> tuple[str, ...]:
    """Sentences for the reader of the scores."""
    if how.boundaries:
        return (*_annotated_notes(cases), *_boundary_notes(labels, summary))
    return (*_annotated_notes(cases), *_object_notes(labels, summary, how))


def _annotated_notes(cases: Sequence[CaseScores]) -> tuple[str, ...]:
    known, total = sum(case.annotated for case in cases), sum(case.voxels for case in cases)
    share = f"{100 * known / total:.3g} %" if total else "nothing"
    partly = (f"{share} of the references' voxels are annotated; the others were not scored.",)
    return () if known == total else partly


def _object_notes(labels: LabelTable, summary: Summary, how: EvaluateSettings) -> tuple[str, ...]:
    if labels.kind != "instances":
        return ()
    masks = f"every id above 0 was scored as one label, “{labels.names[1]}”"
    if summary.objects is not None:
        return (f"Objects were compared by their ids; for Dice and the other mask scores {masks}.",)
    why = "" if how.instances is False else (
        " No prediction holds more than one id, so objects were not compared; give label maps with one id per object, "
        "or ask for it with --instances."
    )  # fmt: skip
    return (f"The references hold object ids: {masks}.{why}",)


def _boundary_notes(labels: LabelTable, summary: Summary) -> tuple[str, ...]:
    if summary.boundaries is None or not summary.boundaries.plain_pixel_error > 0.5:
        return ()
    cell = labels.names[1 - border_index(labels)]
    return (
        f"More than half of the pixels are wrong. Maps were read as probabilities of being inside “{cell}”; if they "
        "are probabilities of membrane, turn them round first.",
    )
