#!/usr/bin/env python3
"""Draws docs/assets/architecture.svg from the import graph: a box for each room of the package, by layer.

    python docs/draw_architecture.py            # write the picture
    python docs/draw_architecture.py --check    # exit code 1 if the picture is not what would be written

Rows are the layers of the import contract in pyproject.toml. An arrow says "imports"; one that follows from
others is left out (the transitive reduction). A dashed arrow is an import that the command line makes by name
when a command is called. The words in a box are the first of the room's docstring. The same code gives the
same bytes.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.util import find_spec
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

import grimp

from nonlocal_nn.cli import COMMANDS

PACKAGE = "nonlocal_nn"
ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "assets" / "architecture.svg"

# Sizes in pixels.
BOX_WIDTH, BOX_HEIGHT, BOX_GAP, ROW_GAP, MARGIN = 212, 66, 26, 34, 12
PASSAGE = 26  # an arrow that passes a row takes this much of its width
PORT = 24  # between the arrows that start or end at one box
LETTERS = 34  # in a line of a box

Node = tuple[str, int]  # a room and its row; where an arrow passes a row, the arrow's name and that row
Edge = tuple[str, str]


class Graph(NamedTuple):
    """Rooms in rows from top to bottom, and the arrows between them."""

    rows: tuple[tuple[str, ...], ...]
    imports: frozenset[Edge]
    by_name: frozenset[Edge]


# --- what is drawn ---


def read_graph() -> Graph:
    """The rooms by the contract's layers, and the reduced imports.

    Raises:
        ValueError: for a room that the contract does not name.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contract = next(one for one in settings["contracts"] if one["type"] == "layers")
    rows = tuple(tuple(name.strip() for name in layer.split("|")) for layer in contract["layers"])
    listed = {name for row in rows for name in row}
    modules = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    unknown = {room_of(child) for child in modules.find_children(PACKAGE)} - listed
    unknown -= set(contract["exhaustive_ignores"])
    if unknown:
        raise ValueError(f"the layers contract in pyproject.toml does not name {', '.join(sorted(unknown))}")
    imports = {
        (room_of(module), room_of(imported))
        for module in modules.modules - {PACKAGE}
        for imported in modules.find_modules_directly_imported_by(module) - {PACKAGE}
    }
    imports = {(a, b) for a, b in imports if a != b and {a, b} <= listed}
    named = {("cli", room_of(at)) for command in COMMANDS.values() for at in (command.options, command.body)}
    reduced = reduce(imports | named)
    return Graph(rows, frozenset(reduced & imports), frozenset(reduced - imports))


def room_of(module: str) -> str:
    """What stands directly below the package.

    >>> room_of("nonlocal_nn.ops.cpu.gemm")
    'ops'
    """
    return re.split(r"[.:]", module)[1]


def reduce(edges: set[Edge]) -> set[Edge]:
    """The edges without those that a longer path of others implies.

    >>> sorted(reduce({("a", "b"), ("b", "c"), ("a", "c")}))
    [('a', 'b'), ('b', 'c')]
    """

    def reaches(start: str, end: str, without: Edge) -> bool:
        return any(b == end or reaches(b, end, without) for a, b in edges if a == start and (a, b) != without)

    return {edge for edge in edges if not reaches(*edge, without=edge)}


def words_of(room: str) -> str:
    """The first clause of the room's docstring."""
    spec = find_spec(f"{PACKAGE}.{room}")
    assert spec is not None
    assert spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    first = re.split(r"(?<!Eq)(?<!Eqs)[.;:](?:\s|$)", docstring, maxsplit=1)[0]
    return " ".join(first.replace("`", "").split())


# --- where it is drawn ---


def place(graph: Graph) -> tuple[dict[Node, float], dict[Edge, list[Node]]]:
    """The x of the middle of every box and passage, and the nodes that each arrow passes, in order."""
    row_of = {room: number for number, row in enumerate(graph.rows) for room in row}
    paths: dict[Edge, list[Node]] = {}
    for a, b in sorted(graph.imports | graph.by_name):
        passed = [(f"{a} to {b}", row) for row in range(row_of[a] + 1, row_of[b])]
        paths[a, b] = [(a, row_of[a]), *passed, (b, row_of[b])]
    rows: list[list[Node]] = [[(room, number) for room in row] for number, row in enumerate(graph.rows)]
    for path in paths.values():
        for node in path[1:-1]:
            rows[node[1]].append(node)
    links = [link for path in paths.values() for link in pairwise(path)]
    rows = untangle(rows, links)
    return spread(rows, links, boxes=set(row_of.items())), paths


def untangle(rows: list[list[Node]], links: Sequence[tuple[Node, Node]]) -> list[list[Node]]:
    """The order in each row with the fewest crossings that were found: sweeps go up and down, and each node
    goes to the mean place of its neighbours in the row before.
    """
    best, fewest = rows, crossings(rows, links)
    for sweep in range(24):
        order = range(len(rows)) if sweep % 2 == 0 else range(len(rows) - 1, -1, -1)
        step = -1 if sweep % 2 == 0 else 1
        rows = [list(row) for row in rows]
        for number in order:
            if not 0 <= number + step < len(rows):
                continue
            at = {node: place for place, node in enumerate(rows[number + step])}
            mean = {
                node: average([at[other] for other in neighbours(node, links) if other in at], default=place)
                for place, node in enumerate(rows[number])
            }
            rows[number].sort(key=mean.__getitem__)
        if (found := crossings(rows, links)) < fewest:
            best, fewest = rows, found
    return best


def crossings(rows: list[list[Node]], links: Iterable[tuple[Node, Node]]) -> int:
    """How many pairs of links cross."""
    at = {node: place for row in rows for place, node in enumerate(row)}
    return sum(
        (at[a] - at[c]) * (at[b] - at[d]) < 0
        for (a, b), (c, d) in combinations(links, 2)
        if a[1] == c[1]  # of the same two rows
    )


def spread(rows: list[list[Node]], links: Sequence[tuple[Node, Node]], boxes: set[Node]) -> dict[Node, float]:
    """The x of each node: near its neighbours, in the row's order, without overlap. A passage pulls more than
    a box, so that long arrows become straight.
    """
    x = {node: float(BOX_WIDTH * place) for row in rows for place, node in enumerate(row)}
    for _ in range(400):
        for row in rows:
            wanted = []
            for node in row:
                near = [(x[other], 1 + 4 * (other not in boxes)) for other in neighbours(node, links)]
                total = sum(weight for _, weight in near)
                wanted.append(sum(at * weight for at, weight in near) / total if near else x[node])
            x.update(zip(row, apart(wanted, [needed(node, boxes) for node in row]), strict=True))
    return x


def needed(node: Node, boxes: set[Node]) -> int:
    """The width that a node takes of its row."""
    return BOX_WIDTH + BOX_GAP if node in boxes else PASSAGE


def apart(wanted: Sequence[float], widths: Sequence[int]) -> list[float]:
    """The places nearest to those wanted (least squares) at which things of these widths do not overlap.

    >>> apart([0.0, 1.0], [4, 4])
    [-1.5, 2.5]
    """
    starts = [0.0]
    for left, right in pairwise(widths):
        starts.append(starts[-1] + (left + right) / 2)
    groups: list[list[float]] = []  # of wanted places that have to move as one
    for want, start in zip(wanted, starts, strict=True):
        groups.append([want - start])
        while len(groups) > 1 and average(groups[-2]) > average(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    shifts = [average(group) for group in groups for _ in group]
    return [start + shift for start, shift in zip(starts, shifts, strict=True)]


def neighbours(node: Node, links: Iterable[tuple[Node, Node]]) -> list[Node]:
    """What a node is linked to."""
    return [b if a == node else a for a, b in links if node in (a, b)]


def average(numbers: Sequence[float], default: float = 0.0) -> float:
    """The mean; of nothing, `default`."""
    return sum(numbers) / len(numbers) if numbers else default


# --- the picture ---


def draw(graph: Graph) -> str:
    """The picture as SVG. Boxes bring their own background, so it suits a light and a dark page."""
    x, paths = place(graph)
    left = min(x[room, number] for number, row in enumerate(graph.rows) for room in row)
    left = min(left - BOX_WIDTH / 2, *x.values()) - MARGIN
    x = {node: round(at - left, 1) for node, at in x.items()}
    right = max(x[room, number] for number, row in enumerate(graph.rows) for room in row) + BOX_WIDTH / 2
    width = round(max(right, *x.values()) + MARGIN)
    height = 2 * MARGIN + len(graph.rows) * (BOX_HEIGHT + ROW_GAP) - ROW_GAP
    arrows = [draw_arrow(edge, paths, x, dashed=edge in graph.by_name) for edge in sorted(paths)]
    boxes = [
        draw_box(room, x[room, number], top_of(number))
        for number, row in enumerate(graph.rows)
        for room in row
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="Helvetica, Arial, sans-serif" text-anchor="middle" aria-labelledby="title desc">',
            f'<title id="title">The rooms of {PACKAGE} and what each imports</title>',
            f'<desc id="desc">{escape(in_words(graph))}</desc>',
            "<!-- written by docs/draw_architecture.py -->",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="5.5" '
            'markerHeight="5.5" orient="auto"><path d="M0 0 L8 4 L0 8 Z" fill="#808b96"/></marker></defs>',
            '<g fill="none" stroke="#808b96" stroke-width="1.6" marker-end="url(#head)">',
            *arrows,
            "</g>",
            *boxes,
            "</svg>",
            "",
        ]
    )


def top_of(row: int) -> int:
    """The y of a row's upper edge."""
    return MARGIN + row * (BOX_HEIGHT + ROW_GAP)


def draw_box(room: str, x: float, y: int) -> str:
    """A box with the room's name and what it is."""
    lines = textwrap.wrap(words_of(room), LETTERS, max_lines=3, placeholder=" ...")
    first = y + BOX_HEIGHT / 2 - 7 * len(lines) + 5
    text = [f'<text x="{x}" y="{first}" font-size="15" font-weight="bold">{escape(room)}</text>']
    for number, line in enumerate(lines, 1):
        text.append(f'<text x="{x}" y="{first + 2 + 14 * number}" font-size="11">{escape(line)}</text>')
    box = (
        f'<rect x="{round(x - BOX_WIDTH / 2, 1)}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        'fill="#e9eff7" stroke="#7f97b5"/>'
    )
    return "\n".join([box, '<g fill="#1d2b3a">', *text, "</g>"])


def draw_arrow(edge: Edge, paths: dict[Edge, list[Node]], x: dict[Node, float], *, dashed: bool) -> str:
    """An arrow from a box's lower edge, past the rows between, to a box's upper edge."""
    path = paths[edge]
    leaving = [other[1] for other in paths.values() if other[0] == path[0]]
    arriving = [other[-2] for other in paths.values() if other[-1] == path[-1]]
    at = x[path[0]] + port(path[1], leaving, x)
    steps = [f"M{round(at, 1)} {top_of(path[0][1]) + BOX_HEIGHT}"]
    for node in path[1:]:
        last = node == path[-1]
        to = x[node] + (port(path[-2], arriving, x) if last else 0)
        start, end = top_of(node[1] - 1) + BOX_HEIGHT, top_of(node[1])
        middle = (start + end) // 2
        steps.append(f"C{round(at, 1)} {middle} {round(to, 1)} {middle} {round(to, 1)} {end}")
        if not last:
            steps.append(f"V{end + BOX_HEIGHT}")
        at = to
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{" ".join(steps)}"{dash}/>'


def port(node: Node, nodes: Sequence[Node], x: dict[Node, float]) -> float:
    """How far from the middle of a box the arrow to (or from) `node` stands, among those of the others."""
    ordered = sorted(nodes, key=lambda other: (x[other], other))
    return PORT * (ordered.index(node) - (len(ordered) - 1) / 2)


def in_words(graph: Graph) -> str:
    """The arrows as text, for those who cannot see them."""
    found = sorted(graph.imports | graph.by_name)
    rooms = [room for row in graph.rows for room in row if any(a == room for a, _ in found)]
    return "; ".join(f"{room} imports {', '.join(b for a, b in found if a == room)}" for room in rooms) + "."


def main(arguments: list[str] | None = None) -> int:
    """Write the picture, or check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where it would change"
    )
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture (default: docs/assets)")
    options = parser.parse_args(arguments)
    text = draw(read_graph()).encode()
    if not options.check:
        options.out.write_bytes(text)
        return 0
    if options.out.exists() and options.out.read_bytes() == text:
        return 0
    print(f"{options.out.name} is not up to date; run: python docs/draw_architecture.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
