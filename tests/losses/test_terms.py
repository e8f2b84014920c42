"""Terms of losses, for classes and for regions, against plain numpy in float64 and MONAI."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import BoundaryLoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, HausdorffDTLoss
from numpy.typing import NDArray
from scipy import ndimage

from medunet.errors import ConfigError
from medunet.losses.build import Loss, LossSettings, make_loss
from medunet.losses.targets import IGNORE, membership_of, overlap_sums, pair_classes, pair_regions
from tests.pairwise import pairwise

REGIONS = ((1, 2, 3), (2, 3), (3,))
KINDS = {
    "dice": ("dice",),
    "cross_entropy": ("cross_entropy",),
    "dice_cross_entropy": ("dice", "cross_entropy"),
    "focal": ("focal",),
    "dice_focal": ("dice", "focal"),
    "tversky": ("tversky",),
    "tversky_cross_entropy": ("tversky", "cross_entropy"),
    "generalized_dice": ("generalized_dice",),
    "generalized_dice_cross_entropy": ("generalized_dice", "cross_entropy"),
    "top_k": ("top_k",),
    "dice_top_k": ("dice", "top_k"),
}
EVERY = [
    LossSettings("dice", squared=True),
    LossSettings("dice", batch_dice=False),
    LossSettings("generalized_dice"),
    LossSettings("generalized_dice_cross_entropy", batch_dice=False, squared=True),
    LossSettings("top_k"),
    LossSettings("dice_top_k", top_k=0.5, class_weights=(1.0, 2.0, 3.0)),
    LossSettings("dice_focal"),
    LossSettings("tversky_cross_entropy", batch_dice=False),
    LossSettings("cross_entropy", blob_weight=0.7),
    LossSettings("cross_entropy", surface="boundary", surface_weight=0.3),
    LossSettings("cross_entropy", surface="hausdorff", surface_weight=0.3),
]


def named(value: object) -> str:
    if isinstance(value, LossSettings):
        return f"{value.kind} {value.surface} {value.blob_weight} {value.batch_dice}"
    return str(value)


NAMES = [named(how) for how in EVERY]


def made(
    seed: int = 0, shape: tuple[int, ...] = (2, 3, 7, 6), classes: int = 4, ignored: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(batch, channels, *spatial)`` in float64, and class indices with every class in every patch."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, size=(shape[0], 1, *shape[2:])).astype(np.uint8)
    target[rng.random(target.shape) < ignored] = IGNORE
    target.reshape(shape[0], -1)[:, :classes] = np.arange(classes)
    return torch.from_numpy(rng.normal(scale=2, size=shape)).requires_grad_(), torch.from_numpy(target)


def three_classes(given: LossSettings) -> Loss:
    return make_loss(given, 3)


def nested(given: LossSettings) -> Loss:
    return make_loss(given, 4, regions=REGIONS)


def naive(settings_: LossSettings, logits: torch.Tensor, target: torch.Tensor, regions: bool) -> float:
    """Probabilities and truths of each channel, then each formula as it stands in its paper."""
    z, t = logits.detach().double().numpy(), target.numpy()[:, 0].astype(int)
    known = t != IGNORE
    if regions:
        p = 1 / (1 + np.exp(-z))
        y = np.stack([np.isin(t, indices) for indices in REGIONS], axis=1).astype(float)
        cost = np.where(y > 0, -np.log(p), -np.log(1 - p))
        right, everywhere = np.where(y > 0, p, 1 - p), np.broadcast_to(known[:, None], p.shape)
        first = 0
    else:
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        y = np.stack([t == c for c in range(z.shape[1])], axis=1).astype(float)
        right, everywhere = (p * y).sum(1), known
        cost = -np.log(np.where(known, right, 1.0))
        first = 1
    cost, right = cost[everywhere], right[everywhere]
    terms = {
        "cross_entropy": lambda: cost.mean(),
        "focal": lambda: ((1 - right) ** settings_.gamma * cost).mean(),
        "top_k": lambda: np.sort(cost)[-math.ceil(settings_.top_k * cost.size) :].mean(),
        "dice": lambda: naive_overlap(settings_, p, y, known, first),
        "tversky": lambda: naive_overlap(settings_, p, y, known, first, (settings_.alpha, settings_.beta)),
        "generalized_dice": lambda: naive_generalized(settings_, p, y, known, first),
    }
    return sum(terms[name]() for name in KINDS[settings_.kind])


Array = NDArray[np.float64]


def rows(settings_: LossSettings, values: Array) -> list[Array]:
    """The batch as one row of voxels, or each patch as a row."""
    return [values] if settings_.batch_dice else [values[n : n + 1] for n in range(len(values))]


def naive_overlap(
    settings_: LossSettings, p: Array, y: Array, known: Array, first: int, errors: tuple[float, float] | None = None
) -> float:
    scores = []
    for q, t, k in zip(rows(settings_, p), rows(settings_, y), rows(settings_, known), strict=True):
        for c in range(first, p.shape[1]):
            a, b = q[:, c][k], t[:, c][k]
            if errors is None:
                power = 2 if settings_.squared else 1
                under = (a**power).sum() + b.sum() + settings_.smooth
                scores.append(1 - (2 * (a * b).sum() + settings_.smooth) / under)
            else:
                under = (a * b).sum() + errors[0] * (a * (1 - b)).sum() + errors[1] * ((1 - a) * b).sum()
                scores.append(1 - ((a * b).sum() + settings_.smooth) / (under + settings_.smooth))
    return float(np.mean(scores))


def naive_generalized(settings_: LossSettings, p: Array, y: Array, known: Array, first: int) -> float:
    scores = []
    for q, t, k in zip(rows(settings_, p), rows(settings_, y), rows(settings_, known), strict=True):
        channels = [(q[:, c][k], t[:, c][k]) for c in range(first, p.shape[1])]
        weights = [1 / b.sum() ** 2 for _, b in channels]
        over = sum(w * 2 * (a * b).sum() for w, (a, b) in zip(weights, channels, strict=True))
        power = 2 if settings_.squared else 1
        under = sum(w * ((a**power).sum() + b.sum()) for w, (a, b) in zip(weights, channels, strict=True))
        smooth = settings_.smooth * max(weights)
        scores.append(1 - (over + smooth) / (under + smooth))
    return float(np.mean(scores))


@pytest.mark.slow
@given(
    kind=st.sampled_from(list(KINDS)),
    regions=st.booleans(), seed=st.integers(0, 10_000), ignored=st.sampled_from([0.0, 0.3]),
    together=st.booleans(), squared=st.booleans(), smooth=st.sampled_from([0.0, 1.0]),
    share=st.sampled_from([0.05, 0.3, 1.0]),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_terms_are_the_textbook_formulas(
    kind: str, regions: bool, seed: int, ignored: float, together: bool, squared: bool, smooth: float, share: float
) -> None:
    how = LossSettings(kind, batch_dice=together, squared=squared, smooth=smooth, top_k=share)
    logits, target = made(seed, classes=4 if regions else 3, ignored=ignored)
    loss = nested(how) if regions else three_classes(how)
    found = loss(logits, target)
    assert found.item() == pytest.approx(naive(how, logits, target, regions), rel=1e-9)
    assert loss(logits.float(), target).item() == pytest.approx(found.item(), rel=1e-4)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9999), data=st.data())
def test_targets_of_regions_are_those_of_numpy(seed: int, data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 6))
    some = st.lists(st.integers(1, classes - 1), min_size=1, unique=True).map(tuple)
    regions = data.draw(st.lists(some, min_size=1, max_size=4))
    rng = np.random.default_rng(seed)
    target = rng.choice([*range(classes), IGNORE], size=(2, 1, 4, 5)).astype(np.uint8)
    weight = rng.random((2, 1, 4, 5), dtype=np.float32)
    logits = torch.zeros(2, len(regions), 4, 5)
    pair = pair_regions(logits, torch.from_numpy(target), torch.from_numpy(weight), membership_of(regions, classes))
    known = target[:, 0] != IGNORE
    assert pair.inside is not None
    for place, indices in enumerate(regions):
        expected = np.isin(target[:, 0], indices)
        np.testing.assert_array_equal(pair.mask(place).numpy(), expected & known & (weight[:, 0] > 0))
        np.testing.assert_array_equal(pair.inside[:, place].numpy()[known], expected[known])
    np.testing.assert_array_equal(pair.weight.numpy(), np.where(known, weight[:, 0], 0))


@pytest.mark.parametrize("how", EVERY, ids=NAMES)
@pytest.mark.parametrize("regions", [False, True])
def test_a_weight_of_zero_is_an_ignored_voxel_and_what_lies_there_is_of_no_account(
    how: LossSettings, regions: bool
) -> None:
    logits, target = made(3, shape=(2, 3, 9, 8), classes=4 if regions else 3)
    loss = nested(how) if regions else three_classes(how)
    out = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    value = loss(logits, torch.where(out, IGNORE, target))
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    torch.testing.assert_close(loss(logits, target, torch.where(out, 0.0, 1.0)), value)
    ignored = out.expand_as(logits)
    assert gradient[ignored].abs().max() == 0 and gradient[~ignored].abs().max() > 0
    changed = torch.where(ignored, logits + 9 * torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(changed, torch.where(out, IGNORE, target)), value)
    nothing = loss(logits, torch.full_like(target, IGNORE))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0 and not gradient.any()


@pytest.mark.slow
@pytest.mark.parametrize("how", EVERY, ids=NAMES)
@pytest.mark.parametrize("regions", [False, True])
def test_gradients_are_those_of_differences(how: LossSettings, regions: bool) -> None:
    logits, target = made(4, shape=(2, 3, 4, 4), classes=4 if regions else 3, ignored=0.2)
    loss = nested(how) if regions else three_classes(how)
    weight = torch.rand(target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda z: loss(z, target, weight), (logits,))


@pytest.mark.parametrize(("how", "regions", "size"), pairwise(EVERY, (False, True), (1e-3, 80.0)), ids=named)
def test_half_precision_and_extreme_logits_stay_finite(how: LossSettings, regions: bool, size: float) -> None:
    """The second patch is empty of foreground."""
    logits, target = made(5, shape=(2, 3, 12, 10), classes=4 if regions else 3)
    target[1] = 0
    half = (size * logits.detach()).bfloat16().requires_grad_()
    loss = nested(how) if regions else three_classes(how)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(half, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(half.detach().float(), target))
    found.backward()
    assert torch.isfinite(found) and half.grad is not None and torch.isfinite(half.grad).all() and half.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("how", EVERY, ids=NAMES)
@pytest.mark.parametrize("regions", [False, True])
def test_learning_goes_towards_the_truth(how: LossSettings, regions: bool) -> None:
    size = np.indices((12, 12)).sum(0) // 7
    target = torch.from_numpy(np.minimum(size, 3 if regions else 2).astype(np.uint8))[None, None]
    loss = nested(how) if regions else three_classes(how)
    logits = torch.zeros(1, 3, 12, 12, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for _ in range(80):
        optimiser.zero_grad()
        loss(logits, target).backward()
        optimiser.step()
    found = (logits > 0).sum(1) if regions else logits.argmax(1)
    assert (found == target[:, 0]).float().mean() > 0.9


@pytest.mark.parametrize("together", [True, False])
def test_dice_and_its_relatives_are_monais(together: bool) -> None:
    logits, target = made(6, classes=3)
    common = {"softmax": True, "to_onehot_y": True, "include_background": False, "batch": together}
    squared = LossSettings("dice", squared=True, batch_dice=together)
    expected = DiceLoss(squared_pred=True, smooth_nr=1, smooth_dr=1, **common)(logits, target)
    torch.testing.assert_close(three_classes(squared)(logits, target), expected)
    generalized = LossSettings("generalized_dice", batch_dice=together, smooth=0)
    expected = GeneralizedDiceLoss(smooth_nr=0, smooth_dr=0, **common)(logits, target)
    torch.testing.assert_close(three_classes(generalized)(logits, target), expected)


def test_dice_and_cross_entropy_of_regions_are_monais_and_torchs() -> None:
    logits, target = made(7)
    truth = torch.cat([torch.isin(target, torch.tensor(indices)) for indices in REGIONS], dim=1).double()
    expected = DiceLoss(sigmoid=True, batch=True, smooth_nr=1, smooth_dr=1)(logits, truth)
    torch.testing.assert_close(nested(LossSettings("dice"))(logits, target), expected)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(nested(LossSettings("cross_entropy"))(logits, target), expected)
    expected = FocalLoss(gamma=2)(logits, truth).double()
    torch.testing.assert_close(nested(LossSettings("focal"))(logits, target), expected, rtol=1e-5, atol=1e-7)


def patches() -> tuple[torch.Tensor, torch.Tensor]:
    """Two volumes of two structures, in one of which a structure is missing."""
    grid = np.indices((9, 8, 7))
    target = np.zeros((2, 1, 9, 8, 7), np.uint8)
    target[0, 0][((grid - 3) ** 2).sum(0) < 7] = 1
    target[0, 0, 6:, 5:, 4:] = 2
    target[1, 0, 2:5] = 1
    logits = np.random.default_rng(8).normal(scale=2, size=(2, 3, 9, 8, 7))
    return torch.from_numpy(logits).requires_grad_(), torch.from_numpy(target)


@pytest.mark.parametrize("background", [False, True])
def test_surface_terms_are_monais(background: bool) -> None:
    logits, target = patches()
    common = {"softmax": True, "to_onehot_y": True, "include_background": background}
    for surface, monai in (("boundary", BoundaryLoss(**common)), ("hausdorff", HausdorffDTLoss(**common))):
        how = LossSettings("cross_entropy", include_background=background, surface=surface, surface_weight=1.0)
        term = make_loss(how, 3)(logits, target) - make_loss(LossSettings("cross_entropy"), 3)(logits, target)
        expected = monai(logits, target)
        torch.testing.assert_close(term, expected.double(), rtol=1e-5, atol=1e-6)
        found, wanted = (torch.autograd.grad(value, logits)[0] for value in (term, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_no_surface_is_made_up_at_the_border_of_ignored_voxels() -> None:
    """A plane at half height, known in a band around it alone: distances there are those of the whole."""
    target = torch.zeros(1, 1, 12, 6, dtype=torch.uint8)
    target[:, :, 6:] = 1
    logits = torch.randn(1, 2, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    band = torch.where((torch.arange(12) > 3) & (torch.arange(12) < 9), 1.0, 0.0)[None, None, :, None].expand(
        1, 1, 12, 6
    )
    how = LossSettings("cross_entropy", surface="boundary", surface_weight=1.0)
    term = make_loss(how, 2)(logits, target, band) - make_loss(LossSettings("cross_entropy"), 2)(logits, target, band)
    distance = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    expected = (logits.softmax(1)[0, 1, 4:9] * distance[:, None]).mean()
    torch.testing.assert_close(term, expected)


def test_the_weight_of_a_surface_term_grows_with_the_training() -> None:
    logits, target = patches()
    how = LossSettings("cross_entropy", surface="hausdorff", surface_weight=2.0, surface_warm_in=0.4)
    plain = make_loss(LossSettings("cross_entropy"), 3)(logits, target)
    loss = make_loss(how, 3)
    full = loss(logits, target) - plain
    for progress, share in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)):
        torch.testing.assert_close(loss(logits, target, progress=progress) - plain, share * full)
    at_once = make_loss(replace(how, surface_warm_in=0.0), 3)
    torch.testing.assert_close(at_once(logits, target, progress=0.0) - plain, full)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), regions=st.booleans(), smooth=st.sampled_from([0.0, 1.0]))
def test_blobs_are_scored_one_by_one(seed: int, regions: bool, smooth: float) -> None:
    """The paper's way: for each piece of a class the class's other pieces are masked out."""
    rng = np.random.default_rng(seed)
    target = rng.choice(4 if regions else 3, size=(2, 1, 9, 8), p=[0.7, 0.1, 0.1, 0.1] if regions else [0.8, 0.1, 0.1])
    logits = torch.from_numpy(rng.normal(size=(2, 3, 9, 8)))
    out = torch.from_numpy(rng.random(target.shape) < 0.2)
    labelled = torch.where(out, IGNORE, torch.from_numpy(target.astype(np.uint8)))
    how = LossSettings("cross_entropy", blob_weight=1.0, smooth=smooth)
    loss = nested(how) if regions else three_classes(how)
    plain = (nested if regions else three_classes)(LossSettings("cross_entropy"))
    found = (loss(logits, labelled) - plain(logits, labelled)).item()

    p = (logits.sigmoid() if regions else logits.softmax(1)).numpy()
    scores, truth = [], labelled.numpy()[:, 0]
    for channel in range(0 if regions else 1, 3):
        for patch in range(2):
            known = truth[patch] != IGNORE
            mask = np.isin(truth[patch], REGIONS[channel] if regions else (channel,)) & known
            pieces, count = ndimage.label(mask, np.ones((3, 3)))
            for number in range(1, count + 1):
                seen = known & ((pieces == number) | (pieces == 0))
                a, b = p[patch, channel][seen], (pieces == number)[seen]
                scores.append(1 - (2 * a[b].sum() + smooth) / (a.sum() + b.sum() + smooth))
    assert found == pytest.approx(np.mean(scores) if scores else 0.0, abs=1e-9)


def test_a_small_blob_counts_as_much_as_a_large_one() -> None:
    """Losing 4 voxels beside 400 is half a loss for blobs and nearly nothing for Dice."""
    target = torch.zeros(1, 1, 30, 30, dtype=torch.uint8)
    target[..., :20, :20], target[..., 25:27, 25:27] = 1, 1
    logits = torch.stack([1 - target[:, 0].float(), target[:, 0].float()], dim=1) * 20
    logits[:, 1, 25:27, 25:27] = -20
    dice = make_loss(LossSettings("dice"), 2)(logits, target)
    both = make_loss(LossSettings("dice", blob_weight=1.0, smooth=0), 2)(logits, target)
    assert dice < 0.01 and both - dice == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("how", EVERY, ids=NAMES)
@pytest.mark.parametrize("regions", [False, True])
def test_sums_can_be_added_up_over_processes(how: LossSettings, regions: bool) -> None:
    """Two halves of a batch, each told the other's sums, say what the whole batch says; as often in both."""
    if "top_k" in how.kind:
        how = replace(how, kind="dice_cross_entropy")  # the hardest voxels are those of each process
    logits, target = made(9, classes=4 if regions else 3, ignored=0.1)
    logits = logits.detach()
    given = {"regions": REGIONS} if regions else {}
    classes = 4 if regions else 3
    told: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def listen(rank: int) -> object:
        return lambda sums: told[rank].append(sums) or sums

    for rank in (0, 1):
        make_loss(how, classes, reduce=listen(rank), **given)(logits[rank : rank + 1], target[rank : rank + 1])
    assert [t.shape for t in told[0]] == [t.shape for t in told[1]] and told[0]
    others = iter(told[1])
    half = make_loss(how, classes, reduce=lambda sums: sums + next(others), **given)
    whole = make_loss(how, classes, **given)(logits, target)
    torch.testing.assert_close(half(logits[:1], target[:1]), whole)


def test_statistics_of_dice_are_in_one_place() -> None:
    logits, target = made(10, classes=3)
    pair = pair_classes(logits, target, None)
    whole, patch = (overlap_sums(pair, per_patch, False) for per_patch in (False, True))
    p = logits.softmax(1)
    truth = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1)
    for found, expected in ((whole.hits, p * truth), (whole.true, truth), (whole.given, p)):
        torch.testing.assert_close(found[0], expected.sum(dim=(0, 2, 3)).double())
    for found, expected in ((patch.hits, p * truth), (patch.true, truth), (patch.given, p)):
        torch.testing.assert_close(found, expected.sum(dim=(2, 3)).double())
    assert whole.voxels.item() == target.numel() and patch.voxels[:, 0].tolist() == [42, 42]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"surface": "edge"}, "surface"),
        ({"surface_weight": -1.0}, "surface_weight"),
        ({"surface_warm_in": 2.0}, "surface_warm_in"),
        ({"blob_weight": float("inf")}, "blob_weight"),
        ({"top_k": 0.0}, "top_k"),
        ({"top_k": 10.0}, "top_k"),
        ({"kind": "dice_topk"}, "dice_top_k"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LossSettings(**changes)


def test_weights_of_regions() -> None:
    """One number per region; balanced ones are inverse to a region's voxels, those of all its classes."""
    logits, target = made(11)
    balanced = make_loss(LossSettings("cross_entropy", class_weights="balanced"), 4, (90, 5, 3, 2), REGIONS)
    by_hand = LossSettings("cross_entropy", class_weights=(17 / 30, 17 / 15, 17 / 6))
    torch.testing.assert_close(balanced(logits, target), nested(by_hand)(logits, target))
    alone = nested(LossSettings("cross_entropy", class_weights=(0.0, 1.0, 0.0)))(logits, target)
    expected = make_loss(LossSettings("cross_entropy"), 4, regions=REGIONS[1:2])(logits[:, 1:2], target)
    torch.testing.assert_close(alone, expected)
    with pytest.raises(ConfigError, match="4 numbers, but there are 3 regions"):
        nested(LossSettings(class_weights=(1.0, 1.0, 1.0, 1.0)))
