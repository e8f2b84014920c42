"""The picture of the house: floors, rooms and imports of the package, drawn from its source.

    python docs/draw_house.py                  writes docs/architecture.svg
    python docs/draw_house.py -o OTHER.svg

A unit is a module or a folder directly under `medunet/`. An arrow means "imports". An arrow that a longer way through
other units implies is left out (a transitive reduction), or nobody could see anything. Units stand above all units that
they import, so every arrow goes down; one that goes up breaks the order and is drawn in red. Only the standard library
is used, and the same source gives the same picture.
"""

from __future__ import annotations

import argparse
import ast
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]

BOX, THIN, GAP, HEIGHT, FLOOR = 134.0, 10.0, 16.0, 42.0, 88.0
"""Width of a box and of an arrow that passes through a floor, space between them, height of a box and of a floor."""
MARGIN, LEGEND = 24.0, 74.0
SWEEPS = 40

KINDS = {
    "door": ("front door", "#e8e8ea", "#8a8a94"),
    "story": ("stories: one for each command", "#fde7c8", "#c9882a"),
    "wing": ("wings: the rooms behind a story", "#dcecd9", "#5a9150"),
    "part": ("parts", "#dbe8f6", "#4f81b5"),
    "value": ("values: modules that the others exchange", "#efe0f3", "#9160a3"),
}
"""Of each kind of unit: its name in the legend, fill and outline."""


@dataclass(frozen=True)
class Unit:
    """A module or folder at the top of the package."""

    name: str
    kind: str
    files: int
    lines: int

    @property
    def size(self) -> str:
        return f"{self.files} files, {self.lines:,} lines" if self.files > 1 else f"{self.lines:,} lines"


def source_files(package: Path) -> Iterator[tuple[str, Path]]:
    """Each module's unit and file; the package's own `__init__` is a unit."""
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        yield (inside.parts[0] if len(inside.parts) > 1 else inside.stem), path


def imported_modules(tree: ast.AST, module: Sequence[str]) -> Iterator[str]:
    """Dotted names that a module imports, in functions too; `if TYPE_CHECKING:` never runs and is left out.

    Args:
        module: the dotted name of the module's package, for relative imports.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*module[: len(module) - node.level + 1]] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        else:
            yield from imported_modules(node, module)


def read_imports(package: Path) -> tuple[dict[str, list[Path]], Counter[tuple[str, str]]]:
    """Files by unit, and how often one unit imports another."""
    files: dict[str, list[Path]] = {}
    for unit, path in source_files(package):
        files.setdefault(unit, []).append(path)
    found: Counter[tuple[str, str]] = Counter()
    for unit, paths in files.items():
        for path in paths:
            inside = path.relative_to(package.parent).with_suffix("")
            for name in imported_modules(ast.parse(path.read_text(encoding="utf-8")), inside.parts[:-1]):
                parts = name.split(".")
                if parts[0] != package.name:
                    continue
                target = parts[1] if len(parts) > 1 and parts[1] in files else "__init__"
                if target != unit:
                    found[unit, target] += 1
    return files, found


def command_names(package: Path) -> set[str]:
    """The functions in `cli.py` that are commands."""
    path = package / "cli.py"
    if not path.exists():
        return set()
    functions = (n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef))
    return {f.name for f in functions if any("command(" in ast.unparse(d) for d in f.decorator_list)}


def read_units(package: Path) -> tuple[dict[str, Unit], Counter[tuple[str, str]]]:
    """All units with what kind each is, and the imports between them.

    A story is a module with the name of a command, or a module that no folder imports. A wing is a folder whose name
    begins as a command's does (`train`, `training/`). Modules that folders import are values, other folders are parts.
    """
    files, imports = read_imports(package)
    commands = command_names(package)
    folders = {unit for unit in files if (package / unit).is_dir()}

    def kind(unit: str) -> str:
        if unit in ("__init__", "__main__", "cli", "version"):
            return "door"
        if unit in folders:
            return "wing" if any(unit[:4] == command[:4] for command in commands) else "part"
        used = any(target == unit and source in folders for source, target in imports)
        return "value" if used and unit not in commands else "story"

    def unit_of(name: str) -> Unit:
        texts = [path.read_text(encoding="utf-8") for path in files[name]]
        return Unit(name, kind(name), len(texts), sum(text.count("\n") for text in texts))

    units = {name: unit_of(name) for name in sorted(files)}
    # The front door hands names on, and everything may ask for the version: no arrows that say anything.
    silent = {"__init__", "__main__", "version"}
    drawn = {name: unit for name, unit in units.items() if name not in silent}
    return drawn, Counter({edge: n for edge, n in imports.items() if not silent & set(edge)})


def floors_of(units: Mapping[str, Unit], imports: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """The floor of each unit, 0 at the bottom: above all that it imports, each kind of the upper house by itself."""
    uses = without_cycles(units, imports)
    floors: dict[str, int] = {}
    ground = 0
    for kinds in (("part", "value"), ("wing", "story"), ("door",)):
        group = {name for name, unit in units.items() if unit.kind in kinds}

        def height(name: str, group: set[str] = group) -> int:
            return max((1 + height(unit) for unit in uses[name] & group), default=0)

        floors |= {name: ground + height(name) for name in sorted(group)}
        ground = max([ground, *(floors[name] + 1 for name in group)])
    return floors


def without_cycles(names: Iterable[str], imports: Mapping[tuple[str, str], int]) -> dict[str, set[str]]:
    """What each unit imports; of each cycle the import of the fewest names is left out."""
    uses: dict[str, set[str]] = {name: set() for name in names}
    for source, target in imports:
        uses[source].add(target)
    while True:
        reach = {name: _reachable(name, uses) for name in uses}
        circling = [(n, s, t) for (s, t), n in imports.items() if t in uses[s] and s in reach[t]]
        if not circling:
            return uses
        _, source, target = min(circling)
        uses[source].discard(target)


def _reachable(start: str, below: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(below.get(start, ()))
    while waiting:
        unit = waiting.pop()
        if unit not in found:
            found.add(unit)
            waiting += below.get(unit, ())
    return found


def without_implied(edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Edges of an acyclic graph that no longer way implies."""
    below: dict[str, set[str]] = {}
    for source, target in edges:
        below.setdefault(source, set()).add(target)

    reach = {unit: _reachable(unit, below) for unit in sorted(below)}
    return [(s, t) for s, t in edges if not any(t in reach.get(other, ()) for other in below[s] - {t})]


@dataclass
class Layout:
    """Where everything stands. Nodes are units and, where an arrow passes through a floor, `source>target@floor`."""

    rows: list[list[str]]
    ways: dict[tuple[str, str], list[str]]
    units: Mapping[str, Unit]
    x: dict[str, float] = field(default_factory=dict)

    def width(self, node: str) -> float:
        return BOX if node in self.units else THIN

    def apart(self, left: str, right: str) -> float:
        return (self.width(left) + self.width(right)) / 2 + GAP * (
            1 if left in self.units or right in self.units else 0.4
        )


def arranged(units: Mapping[str, Unit], floors: Mapping[str, int], edges: Sequence[tuple[str, str]]) -> Layout:
    """Order each floor so that few arrows cross, then move boxes to where their arrows are straight."""
    rows: list[list[str]] = [[] for _ in range(max(floors.values()) + 1)]
    for name in sorted(units):
        rows[floors[name]].append(name)
    ways: dict[tuple[str, str], list[str]] = {}
    for source, target in edges:
        passed = [f"{source}>{target}@{floor}" for floor in range(floors[source] - 1, floors[target], -1)]
        ways[source, target] = [source, *passed, target]
        for node in passed:
            rows[int(node.rsplit("@", 1)[1])].append(node)
    layout = Layout(rows, ways, units)
    pairs = [pair for way in ways.values() for pair in itertools.pairwise(way)]
    _order(layout, pairs)
    _place(layout, pairs)
    return layout


def _neighbours(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    below: dict[str, list[str]] = {}
    above: dict[str, list[str]] = {}
    for upper, lower in pairs:
        below.setdefault(upper, []).append(lower)
        above.setdefault(lower, []).append(upper)
    return below, above


def _order(layout: Layout, pairs: Sequence[tuple[str, str]]) -> None:
    """The barycentre heuristic of Sugiyama, swept up and down; the order with the fewest crossings stays."""
    below, above = _neighbours(pairs)
    best = [list(row) for row in layout.rows]
    fewest = _crossings(best, below)
    for sweep in range(SWEEPS):
        upwards = sweep % 2 == 0
        known = below if upwards else above
        order = range(1, len(layout.rows)) if upwards else range(len(layout.rows) - 2, -1, -1)
        for number in order:
            beside = layout.rows[number - 1 if upwards else number + 1]
            # As a share of the row, so that rows of different length lie over each other.
            place = {node: (index + 0.5) / len(beside) for index, node in enumerate(beside)}
            row = layout.rows[number]
            now = {node: (index + 0.5) / len(row) for index, node in enumerate(row)}

            def wish(
                node: str,
                place: dict[str, float] = place,
                now: dict[str, float] = now,
                known: dict[str, list[str]] = known,
            ) -> tuple[float, str]:
                near = [place[other] for other in known.get(node, ()) if other in place]
                return (fmean(near) if near else now[node], node)

            row.sort(key=wish)
        count = _crossings(layout.rows, below)
        if count < fewest:
            best, fewest = [list(row) for row in layout.rows], count
    layout.rows[:] = best


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, Sequence[str]]) -> int:
    total = 0
    for lower, upper in itertools.pairwise(rows):
        place = {node: index for index, node in enumerate(lower)}
        ends = [
            place[t] for node in upper for t in sorted(below.get(node, ()), key=lambda n: place.get(n, 0)) if t in place
        ]
        total += sum(a > b for index, a in enumerate(ends) for b in ends[index + 1 :])
    return total


def _place(layout: Layout, pairs: Sequence[tuple[str, str]]) -> None:
    """Each node to the mean of its neighbours, as far as those beside it allow; upper and lower floors in turn."""
    below, above = _neighbours(pairs)
    for row in layout.rows:
        x = 0.0
        for left, node in zip([None, *row], row, strict=False):
            x += layout.apart(left, node) if left else 0.0
            layout.x[node] = x
        shift = x / 2
        for node in row:
            layout.x[node] -= shift
    for sweep in range(SWEEPS):
        for row in layout.rows if sweep % 2 else layout.rows[::-1]:
            wished = []
            for node in row:
                near = [layout.x[n] for n in (*below.get(node, ()), *above.get(node, ()))]
                passing = node not in layout.units
                # An arrow on its way should be straight; a box may stand a little aside.
                weight = 4.0 if passing else 1.0
                wished.append((fmean(near) if near else layout.x[node], weight))
            for node, x in zip(row, _spread(layout, row, wished), strict=True):
                layout.x[node] = x


def _spread(layout: Layout, row: Sequence[str], wished: Sequence[tuple[float, float]]) -> list[float]:
    """The places nearest to the wished ones (least squares) that keep order and distances: pooled neighbours."""
    offsets = [0.0]
    for left, right in itertools.pairwise(row):
        offsets.append(offsets[-1] + layout.apart(left, right))
    pools: list[list[float]] = []  # sum of weights, weighted sum, count
    for (x, weight), offset in zip(wished, offsets, strict=True):
        pools.append([weight, weight * (x - offset), 1])
        while len(pools) > 1 and pools[-2][1] / pools[-2][0] > pools[-1][1] / pools[-1][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    starts = [total / weight for weight, total, count in pools for _ in range(int(count))]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


def drawn(layout: Layout, against: Sequence[tuple[str, str]], imports: Mapping[tuple[str, str], int]) -> str:
    """The picture as SVG."""
    left = min(layout.x[n] - layout.width(n) / 2 for row in layout.rows for n in row) - MARGIN
    right = max(layout.x[n] + layout.width(n) / 2 for row in layout.rows for n in row) + MARGIN
    width, height = right - left, MARGIN * 2 + LEGEND + FLOOR * (len(layout.rows) - 1) + HEIGHT
    tops = {
        node: MARGIN + FLOOR * (len(layout.rows) - 1 - number) for number, row in enumerate(layout.rows) for node in row
    }
    middle = {node: x - left for node, x in layout.x.items()}
    ports = _ports(layout, middle)
    shapes = [_arrow(layout, edge, way, middle, tops, ports, imports[edge]) for edge, way in layout.ways.items()]
    shapes += [_against(edge, middle, tops, imports[edge]) for edge in against]
    shapes += [_box(layout.units[n], middle[n], tops[n]) for row in layout.rows[::-1] for n in row if n in layout.units]
    note = "An arrow means “imports”; arrows that a longer way implies are left out."
    shapes += _legend(layout.units, width, height, note + " Red ones go up." * bool(against))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>medunet: units and imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0.8 L8,4 L0,7.2 z" fill="#666e7a"/></marker>'
        '<marker id="red" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0.8 L8,4 L0,7.2 z" fill="#c62828"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *shapes,
        "</svg>",
        "",
    ])  # fmt: skip


def _ports(layout: Layout, middle: Mapping[str, float]) -> dict[tuple[str, str], tuple[float, float]]:
    """Where each arrow leaves its box and enters the other: spread along the edge in the order of the other ends."""
    leaving: dict[str, list[tuple[float, tuple[str, str]]]] = {}
    entering: dict[str, list[tuple[float, tuple[str, str]]]] = {}
    for edge, way in layout.ways.items():
        leaving.setdefault(way[0], []).append((middle[way[1]], edge))
        entering.setdefault(way[-1], []).append((middle[way[-2]], edge))

    def along(ends: Mapping[str, list[tuple[float, tuple[str, str]]]]) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for node, arrows in ends.items():
            step = min(14.0, (BOX - 24) / len(arrows))
            for index, (_, edge) in enumerate(sorted(arrows)):
                found[edge] = middle[node] + step * (index - (len(arrows) - 1) / 2)
        return found

    out, into = along(leaving), along(entering)
    return {edge: (out[edge], into[edge]) for edge in layout.ways}


def _arrow(
    layout: Layout,
    edge: tuple[str, str],
    way: Sequence[str],
    middle: Mapping[str, float],
    tops: Mapping[str, float],
    ports: Mapping[tuple[str, str], tuple[float, float]],
    count: int,
) -> str:
    start, end = ports[edge]
    points = [(start, tops[way[0]] + HEIGHT)]
    for node in way[1:-1]:
        points += [(middle[node], tops[node]), (middle[node], tops[node] + HEIGHT)]
    points.append((end, tops[way[-1]] - 1))
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        bend = (y1 - y0) / 2
        path += f" C{x0:.1f},{y0 + bend:.1f} {x1:.1f},{y1 - bend:.1f} {x1:.1f},{y1:.1f}"
    colour = KINDS[layout.units[edge[0]].kind][2]
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-opacity="0.75" stroke-width="1.2" '
        f'marker-end="url(#tip)"><title>{escape(_meaning(edge, count))}</title></path>'
    )


def _against(edge: tuple[str, str], middle: Mapping[str, float], tops: Mapping[str, float], count: int) -> str:
    """An arrow that goes up, or stays on its floor, from roof to threshold."""
    (x0, y0), (x1, y1) = ((middle[name], tops[name]) for name in edge)
    x0, x1 = x0 + (BOX / 3 if x1 >= x0 else -BOX / 3), x1 + (BOX / 3 if x0 >= x1 else -BOX / 3)
    end = y1 + HEIGHT + 1 if y1 < y0 else y1 - 1
    bend = end + (FLOOR - HEIGHT) / 2 if y1 < y0 else y1 - (FLOOR - HEIGHT) / 2
    first = y0 - (FLOOR - HEIGHT) / 2
    return (
        f'<path d="M{x0:.1f},{y0:.1f} C{x0:.1f},{first:.1f} {x1:.1f},{bend:.1f} {x1:.1f},{end:.1f}" '
        f'fill="none" stroke="#c62828" stroke-width="1.6" marker-end="url(#red)">'
        f"<title>{escape(_meaning(edge, count))}</title></path>"
    )


def _meaning(edge: tuple[str, str], count: int) -> str:
    return f"{edge[0]} imports {edge[1]} ({count} name{'s' if count > 1 else ''})"


def _box(unit: Unit, x: float, top: float) -> str:
    _, fill, outline = KINDS[unit.kind]
    name = f"{unit.name}/" if unit.files > 1 else unit.name
    return (
        f'<g><rect x="{x - BOX / 2:.1f}" y="{top:.1f}" width="{BOX:.0f}" height="{HEIGHT:.0f}" rx="6" fill="{fill}" '
        f'stroke="{outline}" stroke-width="1.3"/>'
        f'<text x="{x:.1f}" y="{top + 18:.1f}" text-anchor="middle" font-size="14" font-weight="bold" '
        f'fill="#1d2430">{escape(name)}</text>'
        f'<text x="{x:.1f}" y="{top + 34:.1f}" text-anchor="middle" font-size="11" fill="#4a5262">'
        f"{escape(unit.size)}</text></g>"
    )


def _legend(units: Mapping[str, Unit], width: float, height: float, note: str) -> list[str]:
    present = [kind for kind in KINDS if any(unit.kind == kind for unit in units.values())]
    shapes, x, y = [], MARGIN, height - LEGEND
    for kind in present:
        title, fill, outline = KINDS[kind]
        room = 40 + 6.6 * len(title)
        if x + room > width - MARGIN:
            x, y = MARGIN, y + 20
        shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="16" height="12" rx="3" fill="{fill}" stroke="{outline}"/>'
            f'<text x="{x + 22:.1f}" y="{y + 10:.1f}" font-size="12" fill="#1d2430">{escape(title)}</text>'
        )
        x += room
    files, lines = (sum(getattr(unit, what) for unit in units.values()) for what in ("files", "lines"))
    shapes.append(
        f'<text x="{MARGIN:.1f}" y="{height - 14:.1f}" font-size="12" fill="#4a5262">'
        f"{len(units)} units, {files} files, {lines:,} lines. {escape(note)}</text>"
    )
    return shapes


def draw(package: Path) -> str:
    """The picture of a package."""
    units, imports = read_units(package)
    floors = floors_of(units, imports)
    downwards = sorted(edge for edge in imports if floors[edge[0]] > floors[edge[1]])
    against = sorted(edge for edge in imports if floors[edge[0]] <= floors[edge[1]])
    layout = arranged(units, floors, without_implied(downwards))
    return drawn(layout, against, imports)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the units of the package and their imports.")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "architecture.svg")
    parser.add_argument("--package", type=Path, default=ROOT / "medunet")
    arguments = parser.parse_args()
    arguments.output.write_text(draw(arguments.package), encoding="utf-8")


if __name__ == "__main__":
    main()
