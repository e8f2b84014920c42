"""Muon against the singular value decomposition, torch's own Muon and torch's AdamW."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medunet.learning.optimisers import Muon, OptimiserSettings, make_optimiser, orthogonal
from medunet.networks.build import build_network
from medunet.networks.settings import UNetSettings


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_singular_vectors_stay_and_values_come_near_one(rows: int, columns: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    diagonal = u.T @ found @ v.T
    assert found.shape == matrix.shape
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), atol=1e-6, rtol=0)
    # What is less than a hundredth of the whole needs more than five rounds to come up.
    large = values > 0.02 * values.norm()
    assert (diagonal.diagonal()[large] > 0.6).all() and (diagonal.diagonal() < 1.3).all()


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonal(torch.zeros(3, 5)).any()


def descend(optimiser: torch.optim.Optimizer, weight: nn.Parameter, steps: int) -> None:
    for step in range(steps):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)) + weight.detach()
        optimiser.step()


def test_matrices_move_as_by_torchs_own() -> None:
    first = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    own, other = nn.Parameter(first.clone()), nn.Parameter(first.clone())
    descend(Muon([{"params": [own], "weight_decay": 0.1, "orthogonal": True}], 0.05, (0.9, 0.999)), own, 5)
    descend(torch.optim.Muon([other], 0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), other, 5)
    # Torch computes in bfloat16, which has three digits.
    moved = (own - first).norm()
    assert (own - other).norm() < 0.02 * moved and moved > 0.1


@pytest.mark.parametrize("shape", [(7,), (3, 4)])
def test_all_else_moves_as_by_torchs_adamw(shape: tuple[int, ...]) -> None:
    first = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    own, other = nn.Parameter(first.clone()), nn.Parameter(first.clone())
    descend(Muon([{"params": [own], "weight_decay": 0.1}], 0.05, (0.8, 0.99)), own, 5)
    descend(torch.optim.AdamW([other], 0.05, betas=(0.8, 0.99), weight_decay=0.1), other, 5)
    torch.testing.assert_close(own, other)


def test_a_step_has_the_size_of_adams_whatever_the_gradients_are() -> None:
    for shape in ((16, 16, 3, 3), (8, 64), (64, 8, 2, 2, 2)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = 1e-6 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([{"params": [weight], "orthogonal": True}], 0.01, (0.9, 0.999)).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.3)


def test_hidden_layers_are_matrices_and_the_ends_are_not() -> None:
    network = build_network(UNetSettings(dimensions=2, channels=(4, 8), in_channels=3, classes=5), 0)
    hidden, ends, others = make_optimiser(OptimiserSettings(weight_decay=0.1), network).param_groups
    assert ends["params"][0].shape[1] == 3 and ends["params"][1].shape[0] == 5
    assert all(w.ndim > 1 for w in hidden["params"]) and hidden["orthogonal"]
    assert all(w.ndim == 1 for w in others["params"]) and others["weight_decay"] == 0
    every = [id(w) for group in (hidden, ends, others) for w in group["params"]]
    assert sorted(every) == sorted(id(w) for w in network.parameters())


@pytest.mark.parametrize("size", [(3,), (3, 3), (3, 4, 5)])
def test_one_and_two_layers_are_ends(size: tuple[int, ...]) -> None:
    network = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(size)], nn.LayerNorm(size[-1]))
    groups = make_optimiser(OptimiserSettings(weight_decay=0.1), network).param_groups
    assert not any(group.get("orthogonal") for group in groups)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been() -> None:
    def steps(optimiser: torch.optim.Optimizer, network: nn.Module, numbers: range) -> None:
        for number in numbers:
            optimiser.zero_grad()
            network(torch.randn(4, 3, generator=torch.Generator().manual_seed(number))).square().mean().backward()
            optimiser.step()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimiser = make_optimiser(OptimiserSettings(rate=0.01, weight_decay=0.1), network)
    steps(optimiser, network, range(3))
    other = copy.deepcopy(network)
    again = make_optimiser(OptimiserSettings(rate=0.5, weight_decay=0.1, betas=(0.1, 0.1)), other)
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    steps(optimiser, network, range(3, 6))
    steps(again, other, range(3, 6))
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)
