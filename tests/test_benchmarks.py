"""Benchmarks are run by hand, so nothing else would notice that a name they import has moved; the GPU's runs small."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

from tests.fresh import Fresh

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_all_that_a_benchmark_imports_from_medunet_is_there(path: Path) -> None:
    found = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medunet")
        for alias in node.names
    ]
    missing = [f"{module}.{name}" for module, name in found if not hasattr(importlib.import_module(module), name)]
    assert missing == []


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_and_keeps_what_a_part_found_in_time(fresh: Fresh, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    code = f"""
import dataclasses, runpy
gpu = runpy.run_path({str(script)!r})
parts = [word for part in ("machine", "step", "files") for word in ("--part", part)]
gpu["main"](["--device", "cpu", "--small", "-o", "found.json", *parts])
late = dict(state="not started")
gpu["run_part"]("training", gpu["SMALL"], "cpu", 0.05, late, lambda: None)
assert late["state"] == "time limit" and late["seconds"] < 10, late
wrong = dict()
gpu["run_part"]("machine", gpu["SMALL"], "cuda:99", 5.0, wrong, lambda: None)
assert wrong["state"] == "failed" and wrong["error"] and wrong["results"] == dict(), wrong
"""
    done = fresh.run(code, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "to look at: nothing" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [part["state"] for part in found["parts"].values()] == ["done"] * 3
    assert found["parts"]["step"]["results"]["fp32"]["seconds_a_step"] > 0
    assert len(found["parts"]["files"]["results"]["segment_files"]["stages"]) == 2
