"""The pages: links lead somewhere, commands exist, public names are documented, and the picture shows the imports."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import medunet
from medunet.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("tutorials/*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    targets = [target.split("#")[0] for target in LINK.findall(page.read_text(encoding="utf-8"))]
    inside = [target for target in targets if target and "://" not in target]
    assert [target for target in inside if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_no_place_of_one_machine(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(work|home|tmp|root)/|\.\./shared", page.read_text(encoding="utf-8"))


def typed_commands(text: str) -> list[list[str]]:
    """The words behind `medunet` of every command in blocks of shell and between backquotes."""
    lines = [
        line
        for kind, block in BLOCK.findall(text)
        if kind == "sh"
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
    ]
    lines += re.findall(r"`(medunet [^`\n]+)`", BLOCK.sub("", text))
    found = [re.search(r"(?:^|-m )medunet (.*)", line.split(" #")[0]) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


def unknown_words(words: list[str]) -> list[str]:
    """What in a command line does not exist: the command, or one of its options."""
    given = [word for word in words if re.match(r"--?[a-z]", word)]
    if words[0].startswith("-"):
        command: click.Command = cli
    elif words[0] in cli.commands:
        command = cli.commands[words[0]]
    else:
        return [] if words[0].isupper() else [words[0]]
    known = {
        name for parameter in (*command.params, *cli.params) for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return [word for word in given if word not in known | {"--help", "-h", "--version"}]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    commands = typed_commands(page.read_text(encoding="utf-8"))
    wrong = {" ".join(words): unknown for words in commands if (unknown := unknown_words(words))}
    assert wrong == {}


def test_the_checker_sees_what_does_not_exist() -> None:
    text = "```sh\nmedunet train A -o B --fold all\nmedunet trian A\n```\nand `medunet predict RUN A --teleport`"
    assert [unknown_words(words) for words in typed_commands(text)] == [[], ["trian"], ["--teleport"]]


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in cli.commands if f"`medunet {name}" not in readme] == []


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "python.rst").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: medunet\.(\w+)$", page, re.MULTILINE))
    assert set(medunet.__all__) - documented == {"__version__"}


def test_the_glossary_is_in_order() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = [word.casefold() for word in re.findall(r"^\*\*([^*]+?)\.\*\*", page, re.MULTILINE)]
    assert len(words) > 50
    assert words == sorted(words)


def test_every_decision_is_listed() -> None:
    index = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    assert pages and [page.name for page in pages if f"]({page.name})" not in index] == []


@pytest.fixture(scope="module")
def house() -> ModuleType:
    """The script that draws the picture."""
    spec = importlib.util.spec_from_file_location("draw_house", ROOT / "docs" / "draw_house.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_house"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_picture_has_every_unit_once_and_is_always_the_same(house: ModuleType) -> None:
    package = ROOT / "medunet"
    picture = house.draw(package)
    assert picture == house.draw(package)
    drawn = re.findall(r'font-weight="bold" fill="#1d2430">([^<]+)<', picture)
    there = {
        path.name.removesuffix(".py")
        for path in package.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(name.rstrip("/") for name in drawn) == sorted(there - {"__init__", "__main__", "version"})


EDGES = st.sets(
    st.tuples(st.sampled_from("abcdefg"), st.sampled_from("abcdefg")).filter(lambda edge: edge[0] < edge[1])
)


@pytest.mark.slow
@given(EDGES)
def test_what_is_left_out_of_the_picture_is_implied(house: ModuleType, edges: set[tuple[str, str]]) -> None:
    """The same units can be reached as before (by powers of the matrix), and without any arrow fewer could."""
    kept = house.without_implied(sorted(edges))
    assert set(kept) <= edges and reached(kept) == reached(edges)
    for edge in kept:
        assert reached([other for other in kept if other != edge]) != reached(edges)


def reached(edges: object) -> set[tuple[str, str]]:
    found = set(edges)  # type: ignore[call-overload]
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


@pytest.mark.slow
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")).filter(lambda e: e[0] != e[1]), st.integers(1, 9)
    )
)
def test_cycles_are_cut(house: ModuleType, imports: dict[tuple[str, str], int]) -> None:
    uses = house.without_cycles("abcde", imports)
    left = {(source, target) for source, targets in uses.items() for target in targets}
    assert left <= set(imports) and not any(a == b for a, b in reached(left))
