"""Shared fixtures: where the real data sets are, a cache that is nobody's, and a seeded generator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.flows.made import running_plainly
from tests.fresh import Fresh, fresh_processes

DATA = Path(os.environ.get("MEDUNET_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; the test skips, saying so, where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data sets not found at {DATA} (set MEDUNET_DATA)")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the user's own cache; for the session, because fixtures of modules train, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDUNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """Starts processes of their own, without the seconds that importing the libraries takes."""
    with fresh_processes(tmp_path_factory.mktemp("fresh")) as processes:
        yield processes


@pytest.fixture
def plain_runs() -> Iterator[None]:
    """For tests of trainings that are about neither the pictures in their reports nor the trial before."""
    with running_plainly():
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
