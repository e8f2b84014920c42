"""Preparation: what training cases cannot teach is said, and they train all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medunet.datasets.labels import IGNORE, LabelTable, table_from_names, with_regions
from medunet.datasets.regions import DeclaredRegions
from medunet.losses.build import LossSettings, make_loss
from medunet.patches.dataset import PatchDataset, PatchSettings, PreparedCase, collate, find_foreground
from medunet.patches.prepare import training_case_notes
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import AugmentSettings

TABLE = table_from_names({"background": 0, "liver": 1, "vessel": 2, "tumour": 3}, None)
NESTED = with_regions(TABLE, DeclaredRegions({"all": (1, 3), "tumours": (3,)}))


def case(name: str, *present: int, table: LabelTable = TABLE) -> PreparedCase:
    label = np.zeros((1, 12, 10, 8), np.uint8)
    for place, index in enumerate(present):
        label[0, 2 + 3 * place : 4 + 3 * place, 3:6, 2:5] = index
    image = np.random.default_rng(len(name)).normal(size=(1, 12, 10, 8)).astype(np.float32)
    return PreparedCase(name, image, label, find_foreground(label, table.foreground))


def test_labels_that_no_training_case_holds_are_named() -> None:
    assert training_case_notes([case("a", 1), case("bb", 2, 3)], TABLE) == []
    (note,) = training_case_notes([case("a", 1), case("empty")], TABLE)
    assert note.startswith("NOTE: no training case holds the labels vessel, tumour") and "\n" not in note
    (note,) = training_case_notes([case("a", 1, 2)], TABLE)
    assert "the label tumour" in note
    many = table_from_names({"background": 0, **{f"bone {n}": n for n in range(1, 31)}}, None)
    (note,) = training_case_notes([case("a")], many)
    assert "bone 8, … (30 in all)" in note


def test_regions_are_missed_as_wholes() -> None:
    assert [n[:33] for n in training_case_notes([case("a", 3)], NESTED)] == ["NOTE: no region holds vessel; its"]
    notes = training_case_notes([case("a", 1, table=NESTED)], NESTED)
    assert len(notes) == 2 and "holds the region tumours," in notes[0]


@pytest.mark.parametrize("kind", ["dice_cross_entropy", "generalized_dice", "dice_top_k", "tversky", "focal"])
@pytest.mark.parametrize("table", [TABLE, NESTED], ids=["classes", "regions"])
@pytest.mark.parametrize("extra", [{}, {"blob_weight": 1.0}, {"surface": "hausdorff"}, {"class_weights": "balanced"}])
def test_a_case_without_foreground_and_a_label_that_nobody_has_train(kind: str, table: LabelTable, extra: dict) -> None:
    """Patches, also such as lie partly outside the scan, and a loss and gradient that are finite and of use."""
    cases = [case("empty", table=table), case("some", 1, table=table)]
    augmentation = Augmentation(AugmentSettings(), 3)
    patches = PatchDataset(cases, PatchSettings((16, 8, 8), 2, oversample=1.0), 4, augmentation)
    batch = collate([patches[0], patches[1]])
    assert sorted(batch.cases) == ["empty", "some"] and (batch.label == IGNORE).any() and (batch.label == 1).any()
    voxels = [sum(int((c.label == index).sum()) for c in cases) for index in range(table.classes)]
    loss = make_loss(
        LossSettings(kind, **extra),
        table.classes,
        voxels,
        [region.indices for region in table.regions],  # type: ignore[arg-type]
    )
    logits = torch.zeros(2, table.outputs, 16, 8, 8, requires_grad=True)
    value = loss(logits, batch.label)
    value.backward()
    assert torch.isfinite(value) and value > 0
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    # What nobody has is taught to be absent: its logits are pushed down.
    absent = logits.grad[:, -1][batch.label[:, 0] != IGNORE]
    assert absent.sum() > 0
