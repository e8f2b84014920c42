"""The rules of the house: who may import whom, which packages a part knows, and no code from files.

`docs/architecture.md` gives the reasons. Imports inside functions count like all others. Only
`if TYPE_CHECKING:` blocks are left out, as they never run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from sys import stdlib_module_names

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "medunet"

# Rule 1. The house has floors. A unit (a folder or a module of the root) imports from floors below its own.
FLOORS = (
    {"__main__", ""},
    {"cli", "api", "monai"},
    {"demo"},
    {"crossvalidate"},
    {"train_network", "training"},
    {
        "inspect",
        "plan_training",
        "planning",
        "predict",
        "prediction",
        "evaluate",
        "evaluation",
        "convert",
        "conversion",
    },
    {"model"},
    {"config"},
    {"patches", "learning"},
    {"instances", "losses", "networks", "inference", "metrics", "report"},
    {"transforms"},
    {"datasets"},
    {"formats"},
    {"volume"},
    {"geometry", "system", "registry"},
    {"errors", "version"},
)

# Rule 2. A story owns one wing, stands on its floor, and imports it; nobody else on that floor knows either.
WINGS = {
    "train_network": "training",
    "plan_training": "planning",
    "predict": "prediction",
    "evaluate": "evaluation",
    "convert": "conversion",
}

# Rule 3. Parts that stand side by side know what a part of their kind works on, and not each other.
SIDE_BY_SIDE = {
    "networks": {"geometry", "system", "registry"},
    "losses": {"geometry", "system", "registry"},
    "learning": {"losses", "geometry", "system", "registry"},
    "inference": {"geometry", "system", "registry"},
    "metrics": {"geometry", "system", "registry"},
    "report": {"geometry", "system", "registry"},
}

# Rule 4. Light parts stay light: packages that they may know besides the standard library.
MAY_USE = {
    "errors": set[str](),
    "version": set[str](),
    "geometry": {"numpy"},
    "registry": set[str](),
    "volume": {"numpy", "torch", "monai"},  # the latter two inside the methods that go to MONAI and back
    "metrics": {"numpy", "scipy"},
    "report": {"numpy", "scipy", "matplotlib", "jinja2", "PIL"},
    "evaluation": {"numpy", "scipy", "PIL"},
    "conversion": {"numpy", "scipy", "PIL", "tifffile", "tqdm"},
    "config": {"pydantic", "ruamel", "numpy"},
    "cli": {"click"},
    "__main__": set[str](),
}

# Rule 5. Inside a wing or a part there is an order as well, from top to bottom. Its docstring states it.
ORDER = re.compile(r"From top to bottom: ([^:]+)\.$")

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Imports against the rules that are meant, at most five, each with its reason."""

DYNAMIC = {"medunet", "medunet.formats.dispatch"}
"""Modules that import by name, which this test cannot follow: public names, and one module per file format."""

VAGUE = {"utils", "util", "common", "misc", "helpers", "tools"}


@dataclass(frozen=True)
class Import:
    """A module that is imported, and the names taken from it (none for a plain `import`)."""

    line: int
    module: str
    names: tuple[str, ...] = ()


@cache
def imports_of(source: str) -> tuple[Import, ...]:
    found = []
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: say the full name instead of a relative import"
            found.append(Import(node.lineno, node.module or "", tuple(alias.name for alias in node.names)))
    return tuple(found)


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


def floor_of(name: str) -> int:
    """The number of a unit's floor, counted from the ground."""
    return next(number for number, floor in enumerate(reversed(FLOORS)) if name in floor)


def may_import(here: str, there: str) -> bool:
    """Rules 1 to 3 for two different units."""
    if WINGS.get(here) == there:
        return True
    if there in SIDE_BY_SIDE.keys() | WINGS.values() and here in SIDE_BY_SIDE:
        return there in SIDE_BY_SIDE[here]
    if here in SIDE_BY_SIDE and there not in SIDE_BY_SIDE[here] and there not in FLOORS[-1]:
        return False
    return floor_of(there) < floor_of(here)


def import_problems(module: str, source: str, modules: set[str]) -> list[str]:
    """Imports of this package that the rules 1 to 3 do not allow."""
    here, problems = unit(module), []
    for line, target in own_imports(source, modules):
        there = unit(target)
        if target not in modules:
            problems.append(f"{module}:{line} imports {target}, which does not exist")
        elif there != here and not may_import(here, there) and (here, target) not in EXCEPTIONS:
            problems.append(f"{module}:{line} ({here}) must not import {target}")
    return problems


def stated_order(docstring: str) -> list[str]:
    """The modules of a part in the order that its docstring states; empty where it states none."""
    found = ORDER.search(" ".join(docstring.split()))
    return [] if found is None else found[1].split(", ")


def order_problems(part: str, order: list[str], sources: dict[str, str]) -> list[str]:
    """Modules that a part's order leaves out, and imports against it."""
    prefix = f"medunet.{part}."
    own = {name.removeprefix(prefix) for name in sources if name.startswith(prefix)}
    folders = {name.rpartition(".")[0] for name in own} - {""}
    problems = [f"{part}: {name} is missing in its order" for name in sorted(own - folders - set(order))]
    problems += [f"{part}: {name} does not exist" for name in sorted(set(order) - own)]
    place = {name: number for number, name in enumerate(order)}
    for name in own & place.keys():
        for line, target in own_imports(sources[prefix + name], set(sources)):
            other = target.removeprefix(prefix)
            if other in place and other != name and place[other] < place[name]:
                problems.append(f"{prefix}{name}:{line} imports {other}, which stands above it")
    return problems


def foreign_problems(module: str, source: str) -> list[str]:
    """Packages that a part must not know."""
    allowed = MAY_USE.get(unit(module))
    if allowed is None:
        return []
    tops = {(item.line, item.module.split(".")[0]) for item in imports_of(source)}
    bad = sorted((line, top) for line, top in tops if top not in allowed | stdlib_module_names | {"medunet"})
    return [f"{module}:{line} must not import {top}" for line, top in bad]


def early_problems(module: str, source: str) -> list[str]:
    """What the command line imports before a command is chosen: `--help` must not wait for torch."""
    light = {"errors", "version", ""}
    top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top]
    own = [name for name in names if name.split(".")[0] == "medunet" and unit(name) not in light]
    return [f"{module} must import {name} inside a command" for name in own]


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
PARTS = sorted({unit(name) for name in MODULES if name.count(".") > 1})


def docstring_of(module: str) -> str:
    return ast.get_docstring(ast.parse(SOURCES[module])) or ""


def test_every_unit_has_one_floor() -> None:
    named = [name for floor in FLOORS for name in floor]
    assert sorted(named) == sorted({unit(module) for module in MODULES})


@pytest.mark.slow
def test_no_import_runs_against_the_rules() -> None:
    problems = [line for name in sorted(MODULES) for line in import_problems(name, SOURCES[name], MODULES)]
    assert problems == []


def test_light_parts_stay_light() -> None:
    assert [line for name in sorted(MODULES) for line in foreign_problems(name, SOURCES[name])] == []
    assert early_problems("medunet.cli", SOURCES["medunet.cli"]) == []


@pytest.mark.parametrize("part", PARTS)
def test_modules_of_a_part_stand_in_the_order_that_its_docstring_states(part: str) -> None:
    assert order_problems(part, stated_order(docstring_of(f"medunet.{part}")), SOURCES) == []


def test_exceptions_are_few_and_used() -> None:
    used = {(unit(name), to) for name, source in SOURCES.items() for _, to in own_imports(source, MODULES)}
    assert len(EXCEPTIONS) <= 5
    assert EXCEPTIONS.keys() - used == set()


def test_there_is_no_import_cycle() -> None:
    graph = {name: {to for _, to in own_imports(source, MODULES)} - {name} for name, source in SOURCES.items()}
    assert find_cycle(graph) == []


def test_no_part_is_larger_than_a_seventh_of_the_house() -> None:
    lines = {name: source.count("\n") for name, source in SOURCES.items()}
    sizes = {part: sum(n for name, n in lines.items() if unit(name) == part) for part in PARTS}
    assert max(sizes.values()) <= 0.15 * sum(lines.values())


@pytest.mark.slow
def test_every_module_says_what_it_is_and_begins_with_the_noun() -> None:
    first = {name: docstring_of(name).split(" ")[0] for name in MODULES}
    assert [name for name, word in first.items() if word in {"", "What", "Which", "How", "Where", "Whether"}] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [module for module in MODULES if VAGUE & set(module.split("."))] == []


@pytest.mark.slow
def test_no_file_can_bring_code_along() -> None:
    assert [problem for module in sorted(MODULES) for problem in forbidden_calls(module, SOURCES[module])] == []


# The checker itself: each of these sources breaks one rule, and the tests above must be able to see it.

WORLD = {
    "medunet",
    "medunet.errors",
    "medunet.version",
    "medunet.geometry.boxes",
    "medunet.volume",
    "medunet.formats.dispatch",
    "medunet.transforms.restore",
    "medunet.networks.unet",
    "medunet.losses.build",
    "medunet.learning.loop",
    "medunet.inference.ensemble",
    "medunet.metrics",
    "medunet.metrics.case",
    "medunet.planning.rules",
    "medunet.prediction.jobs",
    "medunet.evaluation.pairs",
    "medunet.training.setup",
    "medunet.plan_training",
    "medunet.predict",
    "medunet.evaluate",
    "medunet.train_network",
    "medunet.demo",
    "medunet.config",
    "medunet.model",
    "medunet.cli",
}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        # 1: upwards
        ("medunet.geometry.boxes", "from medunet.volume import Volume"),
        ("medunet.formats.dispatch", "def f():\n    if True:\n        from medunet.transforms import restore"),
        ("medunet.errors", "from medunet.geometry.boxes import Box"),
        ("medunet.config", "from medunet import predict"),
        ("medunet.config", "from medunet.model import Model"),
        ("medunet.train_network", "from medunet.cli import cli"),
        ("medunet.train_network", "from medunet.nowhere import x"),
        ("medunet.training.setup", "import medunet.demo"),
        ("medunet.geometry.boxes", "import medunet.system"),
        # 2: into another story or its wing
        ("medunet.predict", "class A:\n    def f(self):\n        import medunet.train_network as t"),
        ("medunet.predict", "from medunet.evaluation.pairs import Pair"),
        ("medunet.prediction.jobs", "from medunet.predict import segment_volume"),
        ("medunet.plan_training", "from medunet.prediction import jobs"),
        # 3: between parts that stand side by side
        ("medunet.inference.ensemble", "from medunet.networks.unet import UNet"),
        ("medunet.losses.build", "from medunet.learning import loop"),
        ("medunet.metrics", "from medunet.volume import Volume"),
    ],
)
def test_the_checker_sees_an_import_against_the_rules(module: str, source: str) -> None:
    assert len(import_problems(module, source, WORLD)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("medunet.metrics", "from medunet.geometry.boxes import Box\nfrom medunet.errors import MedunetError"),
        ("medunet.train_network", "from medunet.version import __version__\nfrom medunet.training import setup"),
        ("medunet.train_network", "from medunet.plan_training import plan\nfrom medunet.prediction.jobs import Job"),
        ("medunet.formats.dispatch", "if TYPE_CHECKING:\n    from medunet.metrics import score"),
        ("medunet.predict", "import numpy\nimport medunetsomething"),
        ("medunet.learning.loop", "from medunet.losses.build import Loss"),
    ],
)
def test_the_checker_lets_imports_by_the_rules_pass(module: str, source: str) -> None:
    assert import_problems(module, source, WORLD) == []


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


def test_the_checker_sees_an_early_import_of_the_command_line() -> None:
    assert len(early_problems("medunet.cli", "from medunet.predict import segment_files")) == 1
    assert (
        early_problems("medunet.cli", "def f():\n    import medunet.predict\nfrom medunet.errors import DataError")
        == []
    )


def test_the_checker_sees_an_import_against_a_part_s_order() -> None:
    sources = {
        "medunet.metrics": '"""Scores.\n\nFrom top to bottom: summary, case,\ndeep.counts.\n"""',
        "medunet.metrics.summary": "from medunet.metrics.case import score",
        "medunet.metrics.case": "",
        "medunet.metrics.deep": "",
        "medunet.metrics.deep.counts": "",
    }
    order = stated_order(ast.get_docstring(ast.parse(sources["medunet.metrics"])) or "")
    assert order == ["summary", "case", "deep.counts"]
    assert order_problems("metrics", order, sources) == []
    assert len(order_problems("metrics", ["case", "summary", "deep.counts"], sources)) == 1
    assert len(order_problems("metrics", ["summary", "case"], sources)) == 1
    assert len(order_problems("metrics", [*order, "gone"], sources)) == 1
    upwards = sources | {"medunet.metrics.deep.counts": "def f():\n    import medunet.metrics.case"}
    assert len(order_problems("metrics", order, upwards)) == 1


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
        "importlib.import_module('medunet.train_network')",
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
