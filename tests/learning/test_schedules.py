"""Learning rates, the run's clock, optimisers and averaged weights."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medunet.errors import ConfigError, ModelError
from medunet.learning.averaging import Ema
from medunet.learning.optimisers import OptimiserSettings, make_optimiser
from medunet.learning.schedules import ResumePoint, ScheduleSettings, learning_rate

KINDS = ["cosine", "poly", "constant"]


@pytest.mark.slow
@given(
    kind=st.sampled_from(KINDS),
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 1),
    one=st.floats(0, 1),
    two=st.floats(0, 1),
)
@settings(deadline=None, max_examples=150)
def test_the_rate_rises_then_falls(kind: str, warmup: float, floor: float, one: float, two: float) -> None:
    schedule = ScheduleSettings(kind, warmup, floor=floor)  # type: ignore[arg-type]
    early, late = sorted((one, two))
    first, second = (learning_rate(schedule, 0.1, p) for p in (early, late))
    assert 0 <= first <= 0.1 * (1 + 1e-9) and 0 <= second <= 0.1 * (1 + 1e-9)
    if late < warmup:
        assert first <= second
    elif early >= warmup:
        assert second <= first * (1 + 1e-9)


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 1.0, 0.0),
        ("poly", 0.1, 1.0),
        ("poly", 0.55, 0.5**0.9),
        ("poly", 1.0, 0.0),
        ("constant", 0.1, 1.0),
        ("constant", 1.0, 1.0),
        ("cosine", 0.0, 0.01),
        ("poly", 0.05, 0.505),
    ],
)
def test_known_rates(kind: str, progress: float, expected: float) -> None:
    schedule = ScheduleSettings(kind, warmup=0.1)  # type: ignore[arg-type]
    assert learning_rate(schedule, 3.0, progress) == pytest.approx(3 * expected, abs=1e-12)


def test_the_rate_ends_at_its_floor_and_needs_no_warmup() -> None:
    assert learning_rate(ScheduleSettings("cosine", 0, floor=0.1), 2.0, 1.0) == pytest.approx(0.2)
    assert learning_rate(ScheduleSettings("poly", 0), 2.0, 0.0) == 2.0


def test_poly_without_warmup_is_nnunets() -> None:
    for step in range(0, 1000, 37):
        expected = 0.01 * (1 - step / 1000) ** 0.9
        assert learning_rate(ScheduleSettings("poly", 0), 0.01, step / 1000) == pytest.approx(expected)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("kind", ["muon", "adamw", "adam", "sgd"])
def test_norms_and_biases_do_not_decay(kind: str) -> None:
    """Without a gradient only decay moves a weight."""
    net = network()
    optimiser = make_optimiser(OptimiserSettings(kind, rate=0.1, weight_decay=0.5), net)  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "3.weight"}


@pytest.mark.parametrize("kind", ["muon", "adamw", "adam", "sgd"])
def test_optimisers_learn_and_leave_frozen_weights(kind: str) -> None:
    net = network()
    next(net.parameters()).requires_grad_(False)
    frozen = next(net.parameters()).clone()
    optimiser = make_optimiser(OptimiserSettings(kind, rate=0.01, momentum=0.9), net)  # type: ignore[arg-type]
    image, target = torch.randn(2, 1, 8, 8), torch.randn(2, 2, 6, 6)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = ((net(image) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(next(net.parameters()), frozen)


def test_the_first_adamw_step_is_the_papers() -> None:
    """After one step Adam's update is the rate times the gradient's sign (Kingma and Ba 2015)."""
    net = nn.Linear(3, 2, bias=False)
    before = net.weight.detach().clone()
    optimiser = make_optimiser(OptimiserSettings("adamw", rate=0.01, weight_decay=0.1), net)
    net.weight.grad = torch.randn(2, 3)
    optimiser.step()
    torch.testing.assert_close(net.weight.detach(), before * (1 - 0.001) - 0.01 * net.weight.grad.sign())


@pytest.mark.parametrize(("kind", "rate"), [("muon", 0.006), ("adamw", 0.002), ("adam", 0.002), ("sgd", 0.01)])
def test_each_optimiser_has_a_rate_of_its_own(kind: str, rate: float) -> None:
    """Changing the kind alone must not leave a rate that another kind wants."""
    groups = make_optimiser(OptimiserSettings(kind), network()).param_groups  # type: ignore[arg-type]
    assert {group["lr"] for group in groups} == {rate}


def test_a_network_without_trainable_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable weight"):
        make_optimiser(OptimiserSettings(), nn.Linear(2, 2).requires_grad_(False))


def test_averaged_weights_follow_the_formula() -> None:
    net = network()
    ema = Ema(net, 0.9)
    expected = {name: t.clone() for name, t in net.state_dict().items()}
    for step in range(120):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += torch.randn_like(parameter)
        net(torch.randn(2, 1, 8, 8))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in net.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * tensor if floating else tensor.clone()
    assert expected["1.num_batches_tracked"] == 120
    for name, tensor in ema.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_averaged_weights_are_lent_and_taken_back_to_the_last_bit() -> None:
    net = network()
    ema = Ema(net, 0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    ema.update(0)
    own = {name: t.clone() for name, t in net.state_dict().items()}
    averaged = ema.state_dict()
    addresses = [p.data_ptr() for p in net.parameters()]
    with pytest.raises(KeyboardInterrupt), ema.applied():
        assert all(torch.equal(t, averaged[name]) for name, t in net.state_dict().items())
        net(torch.randn(2, 1, 8, 8))  # in training mode, which changes the running statistics
        raise KeyboardInterrupt
    assert all(torch.equal(t, own[name]) for name, t in net.state_dict().items())
    assert all(torch.equal(t, averaged[name]) for name, t in ema.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == addresses, "the optimiser must still hold the network's weights"


def test_averages_survive_saving() -> None:
    ema = Ema(network(), 0.9)
    ema.update(3)
    other_network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Conv2d(4, 2, 1))
    other = Ema(other_network, 0.9)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in ema.state_dict().items())
    assert all(type(t) is torch.Tensor for t in ema.state_dict().values())
    wrong = ema.state_dict() | {"0.bias": torch.zeros(9)}
    with pytest.raises(ModelError, match=r"1 of 10 tensors differ, first 0\.bias"):
        other.load_state_dict(wrong)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ScheduleSettings("step"), "step"),  # type: ignore[arg-type]
        (lambda: ScheduleSettings(warmup=1), "warmup"),
        (lambda: ScheduleSettings(power=0), "power"),
        (lambda: ScheduleSettings(floor=2), "floor"),
        (lambda: OptimiserSettings("lion"), "lion"),  # type: ignore[arg-type]
        (lambda: OptimiserSettings(rate=0), "rate"),
        (lambda: OptimiserSettings(rate=math.nan), "rate"),
        (lambda: OptimiserSettings(weight_decay=-1), "weight_decay"),
        (lambda: OptimiserSettings(momentum=1), "momentum"),
        (lambda: Ema(nn.Linear(1, 1), 1), "decay"),
    ],
)
def test_impossible_settings_are_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.slow
@given(
    kind=st.sampled_from(KINDS),
    warmup=st.floats(0, 0.5),
    floor=st.floats(0, 1),
    old=st.integers(2, 400),
    new=st.integers(2, 2000),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=200)
def test_a_run_of_another_length_goes_on_without_a_jump(
    kind: str, warmup: float, floor: float, old: int, new: int, share: float
) -> None:
    """The first step has the last rate; each later one changes by little; the end is that of the new schedule."""
    schedule = ScheduleSettings(kind, warmup, floor=floor)  # type: ignore[arg-type]
    step = min(max(1, round(share * old)), new - 1)
    last = learning_rate(schedule, 0.1, (step - 1) / old)
    point = ResumePoint(step / new, last)
    rates = [learning_rate(schedule, 0.1, s / new, point) for s in range(step, new)]
    assert rates[0] == last
    plain = [learning_rate(schedule, 0.1, s / new) for s in range(step, new)]
    glide = (0.1 if plain[0] > last else 1.0) * (new - step)
    for here, (found, expected) in enumerate(zip(rates, plain, strict=True)):
        assert min(last, expected) - 1e-12 <= found <= max(last, expected) + 1e-12
        if here >= glide:
            assert found == expected
    # The steepest part of a smooth step has one and a half times its mean slope.
    moves = [abs(b - a) for a, b in pairwise(rates)]
    own = max((abs(b - a) for a, b in pairwise(plain)), default=0.0)
    assert all(move <= own + 0.1 * min(1.0, 1.5 / glide) + 1e-12 for move in moves)


def test_a_finished_run_warms_up_again_as_much_as_is_added() -> None:
    schedule = ScheduleSettings("cosine", warmup=0.05)
    for added, highest in ((1.1, 0.03), (2.0, 0.52), (10.0, 0.99)):
        point = ResumePoint(1 / added, 0.0)
        rates = [learning_rate(schedule, 1.0, p / 1000, point) for p in range(math.ceil(1000 / added), 1001)]
        assert rates[0] < 0.001 and rates[-1] == pytest.approx(0, abs=1e-9) and max(rates) <= highest
        assert max(rates) > 0.6 * highest
