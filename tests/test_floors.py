"""Where things live: import directions, cycles, names and forbidden calls, read from the source of every module.

Imports inside functions count like all others. Only `if TYPE_CHECKING:` blocks are left out, as they never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "medunet"

FLOORS: dict[str, int] = {
    "errors": 0,
    "files": 0,
    "geometry": 1,
    "data": 2,
    "networks": 2,
    "learning": 2,
    "inference": 2,
    "metrics": 2,
    "report": 2,
    # It knows torch alone, but stands here: parts are handed a device, only verbs choose one.
    "devices": 3,
    "config": 3,
    "model": 3,
    "scoreparts": 3,
    "scorecard": 3,
    "plan": 4,
    "planning": 4,
    "course": 4,
    "initialise": 4,
    "experiment": 4,
    "session": 4,
    "train": 4,
    "crossvalidate": 4,
    "outputs": 4,
    "objectfiles": 4,
    "segmentation": 4,
    "scanwork": 4,
    "predict": 4,
    "evaluate": 4,
    "scorefiles": 4,
    "inspect": 4,
    "convert": 4,
    "maskmeaning": 4,
    "recolour": 4,
    "validate": 4,
    "runtext": 4,
    "demo": 4,
    "cli": 5,
    "__main__": 5,
}
"""Each file or folder of the package and its floor; it imports from floors below."""

SIDEWAYS = {
    ("files", "errors"),
    ("model", "config"),
    ("scorecard", "scoreparts"),
    ("plan", "planning"),
    ("experiment", "plan"),
    ("experiment", "initialise"),
    ("session", "course"),
    ("session", "initialise"),
    ("session", "experiment"),
    ("session", "runtext"),
    ("session", "validate"),
    ("train", "session"),
    ("train", "experiment"),
    ("train", "validate"),
    ("train", "planning"),
    ("train", "runtext"),
    # The way back is asked for, and writes its folder, as the way there.
    ("recolour", "convert"),
    ("recolour", "maskmeaning"),
    ("convert", "maskmeaning"),
    ("predict", "outputs"),
    ("predict", "scanwork"),
    ("scanwork", "outputs"),
    ("scanwork", "segmentation"),
    ("outputs", "objectfiles"),
    ("predict", "segmentation"),
    # Every fold is a whole run of `train`; its predictions are scored and tried on together.
    ("crossvalidate", "course"),
    ("crossvalidate", "experiment"),
    ("crossvalidate", "train"),
    ("crossvalidate", "validate"),
    ("crossvalidate", "scorefiles"),
    ("crossvalidate", "segmentation"),
    ("validate", "segmentation"),
    ("validate", "evaluate"),
    ("validate", "scorefiles"),
    ("scorefiles", "evaluate"),
    ("demo", "experiment"),
    ("demo", "plan"),
    ("demo", "train"),
    ("demo", "outputs"),
    ("demo", "segmentation"),
    ("demo", "predict"),
    ("demo", "evaluate"),
    ("demo", "scorefiles"),
    ("__main__", "cli"),
}
"""Imports within one floor that are meant."""

MAY_USE: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "geometry": {"numpy"},
    "metrics": {"numpy", "scipy"},
    "report": {"numpy", "scipy", "matplotlib", "jinja2", "PIL"},
    "scoreparts": {"numpy"},
    "scorecard": {"numpy"},
    "config": {"pydantic", "ruamel", "numpy"},
    "devices": {"torch"},
    "cli": {"click"},
    "__main__": set(),
}
"""Packages besides the standard library, for those where it matters: light ones, and those without torch and monai."""

DYNAMIC = {"medunet", "medunet.data.formats"}
"""Modules that import by name, which this test cannot follow: public names, and one module per file format."""

VAGUE = {"utils", "util", "common", "misc", "helpers", "tools"}


@dataclass(frozen=True)
class Import:
    """A module that is imported, and the names taken from it (none for a plain `import`)."""

    line: int
    module: str
    names: tuple[str, ...] = ()


def imports_of(source: str) -> list[Import]:
    found = []
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: say the full name instead of a relative import"
            found.append(Import(node.lineno, node.module or "", tuple(alias.name for alias in node.names)))
    return found


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without those that only a type checker sees."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _running(child)


def own_imports(source: str, modules: set[str]) -> list[tuple[int, str]]:
    """Line and module for each import from this package; `from package import submodule` means the submodule."""
    found = []
    for item in imports_of(source):
        if item.module.split(".")[0] != "medunet":
            continue
        parts = {f"{item.module}.{name}" for name in item.names}
        found += [(item.line, module) for module in sorted(parts & modules)]
        if not item.names or parts - modules:
            found.append((item.line, item.module))
    return found


def unit(module: str) -> str:
    """The file or folder of the package that a module belongs to; empty for the package itself."""
    return (module.split(".") + [""])[1]


def floor_problems(module: str, source: str, modules: set[str]) -> list[str]:
    """Imports that the tables above do not allow."""
    here, problems = unit(module), []
    for line, target in own_imports(source, modules):
        there = unit(target)
        if target not in modules:
            problems.append(f"{module}:{line} imports {target}, which does not exist")
        elif there == here or (there == "" and _only_version(source, line)):
            continue
        elif there not in FLOORS or not (FLOORS[there] < FLOORS[here] or (here, there) in SIDEWAYS):
            problems.append(f"{module}:{line} ({here}, floor {FLOORS[here]}) must not import {target}")
    return problems


def _only_version(source: str, line: int) -> bool:
    return all(item.names == ("__version__",) for item in imports_of(source) if item.line == line)


def foreign_problems(module: str, source: str) -> list[str]:
    """Packages that a part must not know."""
    from sys import stdlib_module_names

    allowed = MAY_USE.get(unit(module))
    if allowed is None:
        return []
    tops = {(item.line, item.module.split(".")[0]) for item in imports_of(source)}
    bad = sorted((line, top) for line, top in tops if top not in allowed | stdlib_module_names | {"medunet"})
    return [f"{module}:{line} must not import {top}" for line, top in bad]


def forbidden_calls(module: str, source: str) -> list[str]:
    """Calls that run code which a file brought along, and imports that this test could not see."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        bad = (
            name in {"eval", "exec", "__import__", "yaml.load", "yaml.unsafe_load", "os.system"}
            or name.split(".")[0] in {"dill", "joblib", "marshal", "shelve"}
            or (name.startswith("pickle.") and name != "pickle.UnpicklingError")
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name in {"np.load", "numpy.load"} and options.get("allow_pickle", "False") != "False")
            or (name == "YAML" and options.get("typ") not in {"'rt'", "'safe'"})
            or options.get("shell") == "True"
            or (name.endswith("import_module") and module not in DYNAMIC)
        )
        if bad:
            problems.append(f"{module}:{node.lineno} must not call {ast.unparse(node)}")
    hidden = {"pickle", "torch", "yaml", "marshal", "shelve", "dill", "joblib"}
    for item in imports_of(source):
        if item.module in hidden and {"load", "loads", "Unpickler", "unsafe_load"} & set(item.names):
            problems.append(f"{module}:{item.line} must not import {', '.join(item.names)} from {item.module}")
    return problems


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of an import cycle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _sources() -> dict[str, str]:
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["medunet", *path.relative_to(PACKAGE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


SOURCES = _sources()
MODULES = set(SOURCES)


def test_every_part_has_a_floor() -> None:
    assert {unit(module) for module in MODULES} - {""} == set(FLOORS)


def test_sideways_imports_that_are_allowed_lie_on_one_floor_and_are_used() -> None:
    assert [pair for pair in SIDEWAYS if FLOORS[pair[0]] != FLOORS[pair[1]]] == []
    used = {(unit(name), unit(to)) for name, source in SOURCES.items() for _, to in own_imports(source, MODULES)}
    assert SIDEWAYS - used == set()


@pytest.mark.parametrize("module", sorted(MODULES - {"medunet"}))
def test_a_module_imports_from_floors_below(module: str) -> None:
    assert floor_problems(module, SOURCES[module], MODULES) == []
    assert foreign_problems(module, SOURCES[module]) == []


def test_there_is_no_import_cycle() -> None:
    graph = {name: {to for _, to in own_imports(source, MODULES)} - {name} for name, source in SOURCES.items()}
    assert find_cycle(graph) == []


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, source in SOURCES.items() if source.strip() and not ast.get_docstring(ast.parse(source))]
    assert silent == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [module for module in MODULES if VAGUE & set(module.split("."))] == []


def test_no_file_can_bring_code_along() -> None:
    assert [problem for module in sorted(MODULES) for problem in forbidden_calls(module, SOURCES[module])] == []


# The checker itself: each of these sources breaks one rule, and the tests above must be able to see it.

WORLD = {
    "medunet",
    "medunet.errors",
    "medunet.geometry.boxes",
    "medunet.data",
    "medunet.data.volume",
    "medunet.metrics",
    "medunet.predict",
    "medunet.train",
    "medunet.config",
    "medunet.cli",
}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("medunet.geometry.boxes", "from medunet.data.volume import Volume"),
        ("medunet.metrics", "def f():\n    if True:\n        from medunet.data import volume"),
        ("medunet.data.volume", "import medunet.metrics"),
        ("medunet.errors", "from medunet.geometry.boxes import Box"),
        ("medunet.predict", "class A:\n    def f(self):\n        import medunet.train as t"),
        ("medunet.config", "from medunet import predict"),
        ("medunet.config", "from medunet import UNet"),
        ("medunet.train", "from medunet.cli import cli"),
        ("medunet.train", "from medunet.nowhere import x"),
    ],
)
def test_the_checker_sees_an_import_upwards_or_sideways(module: str, source: str) -> None:
    assert len(floor_problems(module, source, WORLD)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("medunet.metrics", "from medunet.geometry.boxes import Box\nfrom medunet.errors import MedunetError"),
        ("medunet.train", "from medunet import __version__\nfrom medunet.data import volume"),
        ("medunet.data.volume", "if TYPE_CHECKING:\n    from medunet.metrics import score"),
        ("medunet.predict", "import numpy\nimport medunetsomething"),
    ],
)
def test_the_checker_lets_downward_imports_pass(module: str, source: str) -> None:
    assert floor_problems(module, source, WORLD) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("medunet.metrics", "def f():\n    import torch"),
        ("medunet.report.page", "from monai.transforms import Compose"),
        ("medunet.geometry.boxes", "import scipy.ndimage"),
        ("medunet.cli", "import numpy as np"),
    ],
)
def test_the_checker_sees_packages_that_a_part_must_not_know(module: str, source: str) -> None:
    assert len(foreign_problems(module, source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "from pickle import loads",
        "from torch import load",
        "eval('1')",
        "yaml.load(text, Loader=yaml.Loader)",
        "YAML(typ='unsafe')",
        "np.load(path, allow_pickle=True)",
        "importlib.import_module('medunet.train')",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_the_checker_sees_calls_that_run_code_from_files(source: str) -> None:
    assert len(forbidden_calls("medunet.model", source)) == 1


@pytest.mark.parametrize("source", ["network.eval()", "torch.load(p, weights_only=True)", "re.compile('x')"])
def test_the_checker_lets_harmless_calls_pass(source: str) -> None:
    assert forbidden_calls("medunet.model", source) == []


def test_the_checker_finds_a_cycle() -> None:
    assert set(find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert find_cycle({"a": {"b"}, "b": set()}) == []
