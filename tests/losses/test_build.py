"""Losses against plain numpy, torch and MONAI, and their promises about ignored voxels and absent classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss, FocalLoss, TverskyLoss

from medunet.datasets import labels
from medunet.errors import ConfigError
from medunet.losses import build as losses
from medunet.losses import terms
from medunet.losses.build import LossSettings, SegmentationLoss, balanced_weights, make_loss
from medunet.losses.targets import IGNORE, pair_classes

KINDS = ["dice", "cross_entropy", "dice_cross_entropy", "focal", "tversky"]


def batch(
    seed: int = 0, shape: tuple[int, ...] = (2, 4, 6, 5), ignored: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits ``(batch, classes, *spatial)`` and a target ``(batch, 1, *spatial)`` with all classes in it."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, shape[1], size=(shape[0], 1, *shape[2:])).astype(np.uint8)
    target.reshape(-1)[: shape[1]] = np.arange(shape[1])
    target[rng.random(target.shape) < ignored] = IGNORE
    return torch.from_numpy(rng.normal(scale=2, size=shape)).float().requires_grad_(), torch.from_numpy(target)


def numpy_loss(kind: str, logits: torch.Tensor, target: torch.Tensor, given: LossSettings) -> float:
    """The textbook formulas, voxel by voxel and class by class; every class must occur."""
    if kind == "dice_cross_entropy":
        return sum(numpy_loss(k, logits, target, given) for k in ("dice", "cross_entropy"))
    z = np.moveaxis(logits.detach().double().numpy(), 1, -1).reshape(-1, logits.shape[1])
    t = target.numpy().reshape(-1).astype(int)
    z, t = z[t != IGNORE], t[t != IGNORE]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    true = p[np.arange(len(t)), t]
    if kind == "cross_entropy":
        return float(np.mean(-np.log(true)))
    if kind == "focal":
        return float(np.mean(-((1 - true) ** given.gamma) * np.log(true)))
    scores = []
    for c in range(0 if given.include_background else 1, p.shape[1]):
        hit, false_positive, false_negative = (p[t == c, c].sum(), p[t != c, c].sum(), (1 - p[t == c, c]).sum())
        s = given.smooth
        if kind == "dice":
            scores.append((2 * hit + s) / (p[:, c].sum() + (t == c).sum() + s))
        else:
            scores.append((hit + s) / (hit + given.alpha * false_positive + given.beta * false_negative + s))
    return 1 - float(np.mean(scores))


@pytest.mark.slow
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10_000),
    ignored=st.sampled_from([0.0, 0.3]),
    background=st.booleans(),
    smooth=st.sampled_from([0.0, 1.0, 5.0]),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
)
@settings(deadline=None, max_examples=100)
def test_losses_are_the_textbook_formulas(
    kind: str, seed: int, ignored: float, background: bool, smooth: float, gamma: float
) -> None:
    given_ = LossSettings(kind, include_background=background, smooth=smooth, gamma=gamma)  # type: ignore[arg-type]
    logits, target = batch(seed, ignored=ignored)
    found = make_loss(given_, 4)(logits, target)
    assert found.shape == () and found.dtype == torch.float32
    assert found.item() == pytest.approx(numpy_loss(kind, logits, target, given_), rel=1e-4)


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0, 0.0)])
def test_cross_entropy_is_torchs(weights: tuple[float, ...] | None) -> None:
    logits, target = batch(1, ignored=0.3)
    loss = make_loss(LossSettings("cross_entropy", class_weights=weights), 4)(logits, target)
    tensor = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, target[:, 0].long(), weight=tensor, ignore_index=IGNORE)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", ["dice", "tversky", "focal"])
def test_without_ignored_voxels_losses_are_monais(kind: str, background: bool) -> None:
    logits, target = batch(2)
    common = {"to_onehot_y": True, "include_background": background}
    overlap = common | {"softmax": True, "batch": True, "smooth_nr": 1, "smooth_dr": 1}
    expected = {
        "dice": lambda: DiceLoss(**overlap)(logits, target),
        "tversky": lambda: TverskyLoss(alpha=0.3, beta=0.7, **overlap)(logits, target),
        # MONAI averages over all classes, the other ones being 0.
        "focal": lambda: FocalLoss(to_onehot_y=True, use_softmax=True)(logits, target) * 4,
    }[kind]()
    loss = make_loss(LossSettings(kind, include_background=background), 4)(logits, target)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, expected.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, logits)[0] for value in (loss, expected)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_under_ignored_voxels_is_of_no_account(kind: str) -> None:
    logits, target = batch(3, ignored=0.4)
    loss = make_loss(LossSettings(kind), 4)  # type: ignore[arg-type]
    value = loss(logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    ignored = (target == IGNORE).expand_as(logits)
    assert gradient[ignored].abs().max() == 0 and gradient[~ignored].abs().max() > 0
    changed = torch.where(ignored, logits + 7 * torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(changed, target), value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_ignores_and_a_common_factor_changes_nothing(kind: str) -> None:
    """Only for smooth 0 is Dice blind to a common factor of its sums."""
    logits, target = batch(4)
    loss = make_loss(LossSettings(kind, smooth=0), 4)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(4)
    out = torch.rand(target.shape, generator=random) < 0.3
    weight = torch.where(out, 0.0, 1.0)
    expected = loss(logits, torch.where(out, IGNORE, target))
    torch.testing.assert_close(loss(logits, target, weight), expected)
    torch.testing.assert_close(loss(logits, target, 5 * weight), expected)
    heavier = torch.where(torch.rand(target.shape, generator=random) < 0.5, 10.0, 1.0)
    assert abs(loss(logits, target, heavier) - loss(logits, target)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0, 4.0)])
def test_a_batch_without_a_known_voxel_costs_nothing(kind: str, weights: tuple[float, ...] | None) -> None:
    logits, target = batch(5)
    loss = make_loss(LossSettings(kind, class_weights=weights), 4)(  # type: ignore[arg-type]
        logits, torch.full_like(target, IGNORE)
    )
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and (logits.grad == 0).all()


@pytest.mark.parametrize("kind", ["dice", "tversky"])
@pytest.mark.parametrize("residual", [1e-3, 1e-5])
def test_an_absent_class_rightly_predicted_absent_is_harmless(kind: str, residual: float) -> None:
    """With MONAI's formula and smooth 1 it costs nearly as much as a total miss."""
    shape = (2, 3, 40, 40, 40)
    target = torch.zeros((2, 1, *shape[2:]), dtype=torch.uint8)
    target[:, :, :20] = 1
    probability = torch.full(shape, residual)
    probability.scatter_(1, target.long(), 1 - 2 * residual)
    logits = probability.log().requires_grad_()

    loss = make_loss(LossSettings(kind), 3)(logits, target)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, logits)
    monai = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True, smooth_nr=1, smooth_dr=1)(
        logits, target
    )

    assert loss < 5 * residual and monai > 100 * loss
    # Each voxel's pull on the absent class is about its own share of a mean over all voxels, times its probability.
    assert gradient[:, 2].abs().max() <= 3 * residual / target.numel()


def test_an_absent_class_wrongly_predicted_costs() -> None:
    target = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)
    loss = make_loss(LossSettings("dice"), 3)
    costs = [
        loss(torch.tensor([0.0, 0.0, z]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8), target).item() for z in (-9, 0, 9)
    ]
    assert costs[0] < costs[1] < costs[2]
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    loss(logits, target).backward()
    assert logits.grad is not None and (logits.grad[:, 1:] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_costs_almost_nothing_and_learning_reaches_it(kind: str) -> None:
    _, target = batch(6, shape=(1, 3, 6, 6))
    loss = make_loss(LossSettings(kind), 3)  # type: ignore[arg-type]
    perfect = 20 * F.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()
    assert loss(perfect, target) < 1e-4
    logits = torch.zeros(1, 3, 6, 6, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(150):
        optimiser.zero_grad()
        loss(logits, target).backward()
        optimiser.step()
    assert (logits.argmax(1) == target[:, 0]).float().mean() > (0.6 if kind in ("dice", "tversky") else 0.99)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_compute_in_float32_under_autocast(kind: str) -> None:
    logits, target = batch(7, shape=(2, 3, 32, 32))
    half = logits.detach().bfloat16().requires_grad_()
    loss = make_loss(LossSettings(kind), 3)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(half, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(half.detach().float(), target))
    found.backward()
    assert half.grad is not None and torch.isfinite(half.grad).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_targets_of_any_integer_type_with_or_without_a_channel(dtype: torch.dtype) -> None:
    logits, target = batch(8, ignored=0.2)
    loss = make_loss(LossSettings(), 4)
    expected = loss(logits, target)
    assert loss(logits, target.to(dtype)) == loss(logits, target[:, 0].to(dtype)) == expected


def test_deep_supervision_halves_the_weight_per_level() -> None:
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.integers(0, 3, size=(2, 1, 8, 8, 4)).astype(np.uint8))
    target[0, 0, :2] = IGNORE
    sizes = [(8, 8, 4), (4, 4, 4), (2, 2, 2)]
    logits = [torch.from_numpy(rng.normal(size=(2, 3, *size))).float() for size in sizes]
    loss = make_loss(LossSettings(), 3)
    thin = [target, target[:, :, 1::2, 1::2], target[:, :, 2::4, 2::4, 1::2]]
    expected = sum(w * loss(z, t) for w, z, t in zip((4, 2, 1), logits, thin, strict=True)) / 7
    torch.testing.assert_close(loss(tuple(logits), target), expected)
    weight = torch.rand(target.shape)
    weighted = loss(logits, target, weight)
    assert torch.isfinite(weighted) and weighted != expected


@pytest.mark.slow
@given(
    kind=st.sampled_from(list(losses._KINDS)),
    blob=st.sampled_from([0.0, 0.4]),
    surface=st.sampled_from(["none", "boundary", "hausdorff"]),
    progress=st.sampled_from([0.0, 0.1, 1.0]),
    regions=st.booleans(),
    levels=st.integers(0, 3),
    per_patch=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_the_parts_are_what_the_loss_adds_up(
    kind: str, blob: float, surface: str, progress: float, regions: bool, levels: int, per_patch: bool
) -> None:
    """Each by name and in its weight; asking for them changes neither loss nor gradient by a bit."""
    how = LossSettings(
        kind, blob_weight=blob, surface=surface, surface_weight=0.3, batch_dice=not per_patch,  # type: ignore[arg-type]
    )  # fmt: skip
    logits, target = batch(3, (2, 3, 8, 4), ignored=0.1)
    every = [logits, *(logits.detach()[:, :, :: 2**n, :: 2**n].clone().requires_grad_() for n in (1, 2))][:levels]
    loss = make_loss(how, 3, regions=[(1, 2), (2,), (1,)] if regions else ())
    parts: dict[str, torch.Tensor] = {}
    asked, plain = (loss(every or logits, target, progress=progress, **more) for more in ({"parts": parts}, {}))
    assert torch.equal(asked, plain) and tuple(parts) == how.terms
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(), asked.detach())
    gradients = [torch.autograd.grad(value, every or [logits], retain_graph=True) for value in (asked, plain)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("term", ["dice", "cross_entropy", "blob", "hausdorff"])
def test_a_part_is_its_term_in_its_weight(term: str) -> None:
    logits, target = batch(4, (2, 3, 8, 8))
    parts: dict[str, torch.Tensor] = {}
    make_loss(LossSettings(blob_weight=0.5, surface="hausdorff", surface_weight=0.2), 3)(
        logits, target, None, 0.25, parts
    )  # a surface term is warmed in over half of the run
    weight = {"blob": 0.5, "hausdorff": 0.1}.get(term, 1.0)
    alone = getattr(terms, term)(pair_classes(logits, target, None), terms.TermSettings())
    torch.testing.assert_close(parts[term], weight * alone.detach())


def test_deep_supervision_refuses_another_field_of_view() -> None:
    target = torch.zeros((1, 1, 10, 10), dtype=torch.uint8)
    with pytest.raises(ConfigError, match="field of view"):
        make_loss(LossSettings(), 2)([torch.zeros(1, 2, 10, 10), torch.zeros(1, 2, 7, 7)], target)


def test_balanced_weights_give_each_class_the_same_say() -> None:
    voxels = (900, 90, 10)
    weights = balanced_weights(voxels)
    shares = [w * n for w, n in zip(weights, voxels, strict=True)]
    assert shares == pytest.approx([shares[0]] * 3) and sum(shares) == pytest.approx(sum(voxels))
    assert balanced_weights((10, 0)) == (0.5, 1.0)
    logits, target = batch(9)
    found = make_loss(LossSettings("cross_entropy", class_weights="balanced"), 4, (4, 3, 2, 1))(logits, target)
    numbers = LossSettings("cross_entropy", class_weights=balanced_weights((4, 3, 2, 1)))
    assert found == make_loss(numbers, 4)(logits, target)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "l2"}, "l2"),
        ({"smooth": -1.0}, "smooth"),
        ({"gamma": float("nan")}, "gamma"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha"),
        ({"class_weights": "even"}, "class_weights"),
        ({"class_weights": (0.0, 0.0)}, "class_weights"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LossSettings(**changes)  # type: ignore[arg-type]


def test_losses_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        make_loss(LossSettings(), 1)
    with pytest.raises(ConfigError, match="2 numbers, but there are 3"):
        make_loss(LossSettings(class_weights=(1.0, 2.0)), 3)
    with pytest.raises(ConfigError, match="voxel counts"):
        make_loss(LossSettings(class_weights="balanced"), 3)
    with pytest.raises(ValueError, match="do not fit"):
        make_loss(LossSettings(), 2)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 5))


def test_ignored_voxels_are_the_ones_that_label_tables_ignore() -> None:
    assert IGNORE == labels.IGNORE


def test_the_module_gives_the_loss_and_refuses_what_is_no_class() -> None:
    module = SegmentationLoss(LossSettings(kind="dice"), classes=3)
    logits, target = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(0, 3, (2, 1, 4, 5))
    target[0, 0, 0] = IGNORE
    found = module(logits, target)
    assert torch.equal(found, make_loss(LossSettings(kind="dice"), 3)(logits, target))
    found.backward()
    assert logits.grad is not None and not logits.grad[0, :, 0].any()
    with pytest.raises(ValueError, match="holds 7, expected class indices 0 to 2, or 255"):
        module(logits, target.masked_fill(target == 1, 7))
    with pytest.raises(ValueError, match="have 2 outputs, expected 3"):
        module(logits[:, :2], target)
    assert float(module(logits.detach(), torch.full_like(target, IGNORE))) == 0
