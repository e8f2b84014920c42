"""Losses of others: without ignored voxels they are what they would be if these were not there at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import monai.losses
import pytest
import torch
from torch import Tensor, nn

from medunet.config import parse_config
from medunet.errors import ConfigError
from medunet.losses import foreign
from medunet.losses.build import LossSettings, make_loss, register_loss
from medunet.losses.foreign import LOSSES
from medunet.losses.targets import IGNORE

REGIONS = ((1, 2), (2,))
NEEDED: dict[str, dict[str, Any]] = {
    "GeneralizedWassersteinDiceLoss": {"dist_matrix": [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]]},
}
MORE: dict[str, dict[str, Any]] = {
    "DiceLoss": {"include_background": False, "squared_pred": True, "smooth_nr": 1, "batch": True},
    "DiceCELoss": {"weight": [1, 2, 3], "lambda_ce": 0.5},
    "DiceFocalLoss": {"gamma": 1.5, "batch": True},
    "FocalLoss": {"alpha": [0.2, 0.3, 0.5]},
    "TverskyLoss": {"alpha": 0.3, "beta": 0.7},
    "GeneralizedDiceLoss": {"w_type": "simple"},
    "HausdorffDTLoss": {"alpha": 1.0, "include_background": True},
}
CASES = [(n, NEEDED.get(n, {})) for n in LOSSES] + [(n, {**NEEDED.get(n, {}), **more}) for n, more in MORE.items()]


def classes_of(name: str) -> int:
    return LOSSES[name].classes or 3


def loss_of(name: str, arguments: dict[str, Any], classes: int = 0, regions: Any = ()) -> Any:
    return make_loss(LossSettings(f"monai.{name}", arguments), classes or classes_of(name), regions=regions)


def drawn(classes: int, outputs: int = 0, shape: tuple[int, ...] = (8, 9)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class indices and which of them are ignored: other shares in each patch, all of the third."""
    random = torch.Generator().manual_seed(4)
    logits = torch.randn((3, outputs or classes, *shape), generator=random, dtype=torch.float64)
    target = torch.randint(0, classes, (3, *shape), generator=random)
    unknown = torch.rand((3, *shape), generator=random) < torch.tensor([0.2, 0.6, 2.0]).reshape(3, *(1,) * len(shape))
    return logits, target, unknown


def plain(name: str, arguments: dict[str, Any], regions: bool = False) -> Any:
    """MONAI's own, as its users build it."""
    entry, given = LOSSES[name], dict(arguments)
    for key in {"dist_matrix", *(("weight",) if name == "DiceCELoss" else ())} & given.keys():
        given[key] = torch.tensor(given[key], dtype=torch.float32)
    if name != "GeneralizedWassersteinDiceLoss":
        given["to_onehot_y"] = not regions
    if regions and name != "FocalLoss":
        given["sigmoid"] = True
    elif entry.softmax:
        given[entry.softmax] = not regions
    return getattr(monai.losses, name)(**given)


@pytest.mark.parametrize(("name", "arguments"), [c for c in CASES if not LOSSES[c[0]].surroundings])
def test_a_loss_of_voxels_is_that_without_the_ignored_ones(name: str, arguments: dict[str, Any]) -> None:
    logits, target, unknown = drawn(classes_of(name))
    found = loss_of(name, arguments)(logits, target.masked_fill(unknown, IGNORE))
    given = logits.softmax(1) if name == "AsymmetricUnifiedFocalLoss" else logits
    rows = [(g[:, ~u], t[~u]) for g, t, u in zip(given[:2], target[:2], unknown[:2], strict=True)]
    if arguments.get("batch"):
        rows = [(torch.cat([r[0] for r in rows], 1), torch.cat([r[1] for r in rows]))]
    oracle = plain(name, arguments)
    expected = [oracle(g[None, :, :, None].float(), t[None, None, :, None]) for g, t in rows]
    torch.testing.assert_close(found.double(), torch.stack(expected).mean().double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_nothing_that_is_ignored_matters(name: str, arguments: dict[str, Any]) -> None:
    logits, target, unknown = drawn(classes_of(name), shape=(8, 9))
    logits.requires_grad_()
    loss = loss_of(name, arguments)
    hidden = target.masked_fill(unknown, IGNORE)
    first = loss(logits, hidden)
    (gradient,) = torch.autograd.grad(first, logits)
    assert bool(torch.isfinite(first)) and bool(torch.isfinite(gradient).all())
    assert gradient.movedim(1, -1)[unknown].abs().max() == 0 < gradient.abs().max()
    other = torch.where(unknown[:, None], -3.0 * logits + 1, logits)
    weight = (~unknown).float()
    torch.testing.assert_close(loss(other, hidden), first, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(other, target, weight[:, None]), first, rtol=1e-12, atol=0)
    nothing = loss(logits, torch.full_like(target, IGNORE))
    assert nothing.item() == 0 and torch.autograd.grad(nothing, logits)[0].abs().max() == 0


@pytest.mark.parametrize(("name", "arguments"), CASES)
@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 6)])
def test_where_all_is_known_it_is_monai_s_own(name: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    if name == "DiceCELoss" and "weight" in arguments:
        pytest.skip("weighted cross-entropy is averaged patch by patch here")
    logits, target, _ = drawn(classes_of(name), shape=shape)
    given = logits.float().softmax(1) if name == "AsymmetricUnifiedFocalLoss" else logits.float()
    expected = plain(name, arguments)(given, target[:, None])
    if name == "LogHausdorffDTLoss":
        expected = torch.stack(
            [plain(name, arguments)(given[i : i + 1], target[i : i + 1, None]) for i in range(3)]
        ).mean()
    parts: dict[str, Tensor] = {}
    found = loss_of(name, arguments)(logits.float(), target, parts=parts)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6)
    assert parts == {name: found} and LossSettings(f"monai.{name}", arguments).terms == (name,)


@pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if entry.regions])
def test_regions_have_a_sigmoid_each(name: str) -> None:
    logits, target, unknown = drawn(3, outputs=2)
    inside = torch.stack([torch.isin(target, torch.tensor(region)) for region in REGIONS], 1).float()
    loss = loss_of(name, {}, 3, REGIONS)
    expected = [plain(name, {}, regions=True)(logits[i : i + 1].float(), inside[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(loss(logits.float(), target), torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)
    hidden = target.masked_fill(unknown, IGNORE)
    other = torch.where(unknown[:, None], -logits, logits)
    torch.testing.assert_close(loss(other, hidden), loss(logits, hidden), rtol=1e-12, atol=0)


def test_several_resolutions_and_two_processes() -> None:
    logits, target, unknown = drawn(3, shape=(8, 8))
    loss = loss_of("DiceFocalLoss", {})
    hidden = target.masked_fill(unknown, IGNORE)
    assert bool(torch.isfinite(loss([logits, logits[..., ::2, ::2]], hidden)))
    sent: list[Tensor] = []
    make_loss(LossSettings("monai.DiceLoss"), 3, reduce=lambda sums: sent.append(sums) or sums)(logits, hidden)
    assert len(sent) == 1 and sent[0][1] == 2, "the patches that have a known voxel"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: monai.DiceFocal", r"x:1: loss.kind: .*monai.DiceFocal .*did you mean monai.DiceFocalLoss"),
        ("kind: monai.NACLLoss", r"loss.kind: monai.NACLLoss is not offered: "),
        ("kind: dise", r"loss.kind: the loss dise is unknown; did you mean dice"),
        ("kind: dice, arguments: {gamma: 1}", r"loss.arguments: dice takes none"),
        ("kind: monai.DiceLoss, arguments: {gama: 1}", r"loss.arguments.gama: .*unknown"),
        ("kind: monai.DiceFocalLoss, arguments: {gama: 1}", r"loss.arguments.gama: .*did you mean gamma"),
        ("kind: monai.DiceLoss, arguments: {sigmoid: true}", r"loss.arguments.sigmoid: .*unknown"),
        ("kind: monai.DiceFocalLoss, arguments: {lambda_dice: -1}", r"loss.arguments.lambda_dice: found -1; MONAI's"),
        ("kind: monai.GeneralizedWassersteinDiceLoss", r"loss.arguments: MONAI's .*dist_matrix"),
        ("kind: monai.DiceLoss, class_weights: balanced", r"loss.class_weights: .*takes none"),
        ("kind: monai.DiceLoss, blob_weight: 1", r"loss.blob_weight: .*takes none"),
    ],
)  # fmt: skip
def test_wrong_settings_are_located(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"loss: {{{text}}}", "x")


def test_what_does_not_fit_the_classes_is_located() -> None:
    with pytest.raises(ConfigError, match=r"loss.arguments.weight: found \[1, 2\]; monai.DiceLoss for 3 classes"):
        loss_of("DiceLoss", {"weight": [1, 2]}, 3)
    with pytest.raises(ConfigError, match=r"loss.arguments.*Wasserstein"):
        loss_of("GeneralizedWassersteinDiceLoss", {"dist_matrix": [[0, 1], [1, 0]]}, 3)
    with pytest.raises(ConfigError, match=r"loss.kind: monai.DiceCELoss is for classes that exclude each other"):
        loss_of("DiceCELoss", {}, 3, REGIONS)
    with pytest.raises(ConfigError, match=r"takes 2 classes, but the data set has 3"):
        loss_of("AsymmetricUnifiedFocalLoss", {}, 3)
    logits, target, _ = drawn(3)
    with pytest.raises(ConfigError, match="know no weight of a voxel"):
        loss_of("DiceLoss", {})(logits, target, torch.full(target.shape, 0.5))


def test_a_config_survives_writing() -> None:
    file = parse_config("loss: {kind: monai.DiceCELoss, arguments: {weight: [1, 2], lambda_ce: 0.5}}", "x")
    assert parse_config(file.to_yaml(), "y").config == file.config


class Squares(nn.Module):
    """The mean square of the wrong probabilities, as a user would write it."""

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        if power <= 0:
            raise ValueError("power must be above 0")
        self.power = power

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        wrong = 1 - logits.softmax(1).gather(1, target[:, None])[:, 0]
        return (wrong**self.power * weight).sum() / weight.sum()


@pytest.fixture
def squares() -> Iterator[None]:
    register_loss("squares", Squares)
    yield
    foreign.REGISTERED.remove("squares")


@pytest.mark.usefixtures("squares")
def test_a_registered_loss_is_used_by_its_name() -> None:
    settings = parse_config("loss: {kind: squares, arguments: {power: 3.0}}", "x").config.loss
    logits, target, unknown = drawn(3)
    logits.requires_grad_()
    hidden = target.masked_fill(unknown, IGNORE)
    found = make_loss(settings, 3)(logits, hidden)
    known = ~unknown
    expected = ((1 - logits.softmax(1).gather(1, target[:, None])[:, 0]) ** 3)[known].mean()
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.movedim(1, -1)[unknown].abs().max() == 0
    assert settings.terms == ("squares",)
    with pytest.raises(ConfigError, match=r"loss.arguments.power: found -1; squares refuses it: power must be above 0"):
        parse_config("loss: {kind: squares, arguments: {power: -1}}", "x")


@pytest.mark.usefixtures("squares")
def test_names_of_losses_are_taken_once() -> None:
    for name in ("squares", "dice"):
        with pytest.raises(ConfigError, match=r"medunet.register_loss: the name .* exists already"):
            register_loss(name, Squares)


def test_a_missing_registration_names_the_call() -> None:
    with pytest.raises(ConfigError, match=r"(?s)loss squares is unknown; .*must call medunet.register_loss\('squares'"):
        LossSettings("squares")


def test_a_registered_loss_that_gives_no_scalar_is_refused() -> None:
    register_loss("voxelwise", lambda: lambda logits, target, weight: logits.mean(1))
    try:
        with pytest.raises(ConfigError, match="gives one number"):
            make_loss(LossSettings("voxelwise"), 3)(*drawn(3)[:2])
    finally:
        foreign.REGISTERED.remove("voxelwise")
