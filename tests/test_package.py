"""The package as others see it: public names, version, and how little is loaded to answer `--help`."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import medunet

ROOT = Path(__file__).resolve().parents[1]
PROMISED = {"read_volume", "write_volume", "load_model", "segment_volume", "UNet", "UNetSettings", "evaluate_pairs"}
"""What users' programs rely on; removing one is a breaking change."""
HEAVY = {"torch", "monai", "numpy", "scipy", "nibabel", "itk", "matplotlib", "pydantic", "tensorboard", "pydicom"}


def loaded_by(statement: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_promised_names_are_public() -> None:
    assert set(medunet.__all__) >= PROMISED
    assert len(set(medunet.__all__)) == len(medunet.__all__)


@pytest.mark.parametrize("name", medunet.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    value = getattr(medunet, name)
    assert name == "__version__" or value.__name__ == name
    assert name in dir(medunet)


def test_public_classes_and_functions_are_explained() -> None:
    silent = [n for n in medunet.__all__ if n != "__version__" and not (getattr(medunet, n).__doc__ or "").strip()]
    assert silent == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unet'"):
        _ = medunet.unet


@pytest.mark.parametrize("statement", ["import medunet", "import medunet.cli", "import medunet; dir(medunet)"])
def test_importing_the_package_loads_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement) & HEAVY == set()


def test_help_answers_without_loading_anything_heavy() -> None:
    found = loaded_by("from medunet.cli import run\nassert run(['--help']) == 0\nassert run(['train', '--help']) == 0")
    assert found & HEAVY == set()


def test_loaded_by_can_see_a_heavy_package() -> None:
    assert "numpy" in loaded_by("import medunet; medunet.Volume")


def test_help_takes_less_than_a_second() -> None:
    """The best of three, because the machine may be busy."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "medunet", "--help"], check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1


def test_every_place_states_the_same_version() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert medunet.__version__ == stated == importlib.metadata.version("medunet")
    assert f'version="{stated}"' in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"[{stated}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_pins_fit_the_declared_requirements() -> None:
    """Every direct dependency is pinned, within the range that pyproject.toml allows, and torch comes first."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(name): version for name, version in pinned}
    assert pinned[0][0] == "torch"
    assert len(versions) == len(pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["demo"], *extras["test"]]]
    unfit = [str(r) for r in wanted if not r.specifier.contains(versions.get(canonicalize_name(r.name), "0"))]
    assert unfit == []


@pytest.mark.slow
def test_all_public_names_can_be_had_where_a_system_lacks_what_only_unix_has() -> None:
    """Windows has no `resource` and no `os.sysconf`; importing must not need them."""
    code = (
        "import os, sys\n"
        "os.environ['USERNAME'] = 'somebody'  # as Windows says it\n"
        "for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios'):\n"
        "    sys.modules[name] = None\n"
        "import medunet\n"
        "for name in medunet.__all__:\n"
        "    getattr(medunet, name)\n"
        "import medunet.cli, torch\n"
        "from medunet.system.devices import free_memory, peak_of_process\n"
        "assert peak_of_process() is None\n"
        "assert free_memory(torch.device('cpu')) > 0\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
