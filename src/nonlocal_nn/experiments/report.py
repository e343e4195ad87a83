"""What a table found: rows of a csv, and from these the text of the page and the figure.

Whatever is written is made from the csv alone, so that a page can be checked against it.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nonlocal_nn._files import write_csv, write_whole
from nonlocal_nn.experiments.image_cells import AnyCell
from nonlocal_nn.experiments.statistics import (
    Difference,
    difference,
    holm,
    smallest_difference,
    word_for,
)
from nonlocal_nn.experiments.tables import Table
from nonlocal_nn.models.reach import reach

ALL = ""  # the part that is the whole set


@dataclass(frozen=True)
class Row:
    """One cell, over the whole test set or a part of it.

    Attributes:
        variant, seed, part: where it stands; part "" is the whole set, else "38 px, 6 frames".
        videos, right: videos (of a table about images: images) tested, and those whose class is right.
        quartets, quartets_right, quartets_tied: how many, and percent; 0 quartets where the set has none.
        parameters, macs: of the network and one clip.
        steps, train_seconds: of the training.
    """

    variant: str
    seed: int
    part: str
    videos: int
    right: int
    quartets: int
    quartets_right: float
    quartets_tied: float
    parameters: int
    macs: int
    steps: int
    train_seconds: float

    @property
    def figure(self) -> float:
        """Percent: of quartets where there are any, else of videos."""
        return self.quartets_right if self.quartets else self.videos_right

    @property
    def videos_right(self) -> float:
        return 100.0 * self.right / self.videos


def rows_of(table: Table, cells: Sequence[AnyCell], macs: dict[str, int]) -> list[Row]:
    """The rows of all finished cells; the folds of one seed are added up, where all are there.

    macs: by name of the variant.
    """
    folds = {(cell.variant, cell.seed): 0 for cell in cells}
    found: dict[tuple[str, int], list[tuple[AnyCell, dict[str, Any]]]] = {}
    for cell in cells:
        folds[cell.variant, cell.seed] += 1
        results = cell.results()
        if results is not None:
            found.setdefault((cell.variant, cell.seed), []).append((cell, results))
    rows: list[Row] = []
    for variant in table.variants:
        for (name, seed), those in sorted(found.items()):
            if name == variant.name and len(those) == folds[name, seed]:
                rows += _rows(name, seed, those, macs[name])
    return rows


def _rows(name: str, seed: int, those: list[tuple[AnyCell, dict[str, Any]]], macs: int) -> list[Row]:
    cell, first = those[0]
    about: dict[str, Any] = {
        "variant": name,
        "seed": seed,
        "parameters": first["parameters"],
        "macs": macs,
        "steps": cell.steps,
        "train_seconds": round(sum(results["train_seconds"] for _, results in those), 1),
    }
    parts = [(ALL, [results for _, results in those])]
    parts += [(_part_name(part), [part]) for part in first.get("parts", ())]
    return [Row(part=part, **_sums(results), **about) for part, results in parts]


def _sums(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    quartets = sum(r.get("quartets", 0) for r in results)
    return {
        "videos": sum(r["videos"] for r in results),
        "right": round(sum(r["videos"] * r["video_top1"] / 100 for r in results)),
        "quartets": quartets,
        "quartets_right": _mean(results, "quartets_right") if quartets else 0.0,
        "quartets_tied": _mean(results, "quartets_tied") if quartets else 0.0,
    }


def _mean(results: Sequence[dict[str, Any]], name: str) -> float:
    total = sum(r["quartets"] for r in results)
    return round(float(sum(r[name] * r["quartets"] for r in results) / total), 4)


def _part_name(part: dict[str, Any]) -> str:
    return f"{part['distance_pixels']} px, {part['distance_frames']} frames"


def write_rows(rows: Iterable[Row], file: Path) -> None:
    """The csv, written whole or not at all."""
    names = [spec.name for spec in fields(Row)]
    write_csv(file, names, ([getattr(row, name) for name in names] for row in rows))


def read_rows(file: Path) -> list[Row]:
    """The rows that `write_rows` wrote."""
    kinds = {
        "variant": str,
        "part": str,
        "quartets_right": float,
        "quartets_tied": float,
        "train_seconds": float,
    }
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Row(**{name: kinds.get(name, int)(value) for name, value in row.items()})
            for row in csv.DictReader(stream)
        ]


@dataclass(frozen=True)
class Comparison:
    """One variant minus another, in words too.

    Attributes:
        variant, other: their names.
        found: the difference; None with fewer than two seeds in common.
        p_holm: adjusted over the comparisons of the table.
        paper: the paper's difference, in points on Kinetics.
        word: whether the direction is the paper's; None where the paper has none.
    """

    variant: str
    other: str
    found: Difference | None
    p_holm: float | None
    paper: float | None
    word: str | None


def compare(table: Table, rows: Sequence[Row]) -> list[Comparison]:
    """The table's comparisons, over the seeds that both variants have."""
    figures = {(row.variant, row.seed): row.figure for row in rows if row.part == ALL}
    pairs: list[tuple[str, str, Difference | None]] = []
    for variant, other in table.comparisons:
        seeds = sorted({s for v, s in figures if v == variant} & {s for v, s in figures if v == other})
        found = None
        if len(seeds) >= 2:
            found = difference([figures[variant, s] for s in seeds], [figures[other, s] for s in seeds])
        pairs.append((variant, other, found))
    adjusted = iter(holm([found.p for *_, found in pairs if found is not None]))
    result = []
    for variant, other, found in pairs:
        paper = table.paper_difference(variant, other)
        word = None if found is None or not paper else word_for(found, paper)
        result.append(
            Comparison(variant, other, found, None if found is None else next(adjusted), paper, word)
        )
    return result


def markdown(table: Table, rows: Sequence[Row]) -> str:
    """The table as it stands in the docs."""
    says = f"The paper: {table.claim}." if _has_paper(table) else _sentence(table.claim)
    lines = [f"**{table.name}. {table.title}.** {says}", ""]
    parts = _parts(rows)
    quartets = any(row.quartets for row in rows)
    what = "quartets right (tied), %" if quartets else f"{table.shown} right, %"
    paper = _has_paper(table)
    head = ["variant", *(["paper"] if paper else []), f"{what}, by seed", "mean", "s.d."]
    head += (["videos right, %"] if quartets else []) + parts
    head += ["a feature sees", "parameters", "multiply-adds", "s a step"]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for variant in table.variants:
        mine = [row for row in rows if row.variant == variant.name]
        whole = sorted((row for row in mine if row.part == ALL), key=lambda row: row.seed)
        if whole:
            line = _line(table, variant.name, whole, mine, parts, quartets)
            lines.append(f"| {' | '.join(line if paper else [line[0], *line[2:]])} |")
    lines += ["", *_comparison_lines(table, rows)]
    return "\n".join(lines) + "\n"


def console_tables(table: Table, rows: Sequence[Row]) -> list[Any]:
    """The table for a terminal, as rich shows it: the whole set, its parts, and the comparisons as lines."""
    from rich.table import Table as RichTable

    quartets, parts = any(row.quartets for row in rows), _parts(rows)
    whole = RichTable(title=f"{table.name}: {table.title}")
    by_part = RichTable(title="the same by distance" if quartets else None)
    heads = ["variant", "paper", "mean", "s.d.", "ties", "videos", "by seed", "parameters", "s a step"]
    for head in heads if quartets else [head for head in heads if head not in ("ties", "videos")]:
        whole.add_column(head, justify="left" if head in ("variant", "by seed") else "right")
    for head in ("variant", *parts):
        by_part.add_column(head, justify="left" if head == "variant" else "right")
    for variant in table.variants:
        mine = [row for row in rows if row.variant == variant.name]
        seeds = sorted((row for row in mine if row.part == ALL), key=lambda row: row.seed)
        if not seeds:
            continue
        line = _line(table, variant.name, seeds, mine, parts, quartets)
        name, paper, _, mean, deviation = line[:5]
        ties = [f"{statistics.mean(row.quartets_tied for row in seeds):.0f}", line[5]] if quartets else []
        each = " ".join(f"{row.figure:.1f}" for row in seeds)
        whole.add_row(name, paper, mean, deviation, *ties, each, line[-3], line[-1])
        by_part.add_row(name, *line[6 : 6 + len(parts)])
    return [whole, *([by_part] if parts else []), *_comparison_lines(table, rows)]


def _has_paper(table: Table) -> bool:
    return any(variant.paper is not None for variant in table.variants)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _parts(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.part for row in rows if row.part != ALL))


def _line(
    table: Table, name: str, whole: Sequence[Row], mine: Sequence[Row], parts: Sequence[str], quartets: bool
) -> list[str]:
    paper = table[name].paper
    first = whole[0]
    cells = [
        name,
        "" if paper is None else f"{paper:.1f}",
        ", ".join(_with_ties(row.figure, row.quartets_tied) for row in whole),
        f"{statistics.mean(row.figure for row in whole):.1f}",
        f"{statistics.stdev(row.figure for row in whole):.1f}" if len(whole) > 1 else "",
    ]
    if quartets:
        cells.append(f"{statistics.mean(row.videos_right for row in whole):.1f}")
    for part in parts:
        there = [row for row in mine if row.part == part]
        mean = statistics.mean(row.figure for row in there) if there else 0.0
        tied = statistics.mean(row.quartets_tied for row in there) if there else 0.0
        cells.append(_with_ties(mean, tied) if there else "")
    seconds = statistics.mean(row.train_seconds / row.steps for row in whole) if first.steps else None
    cells += [str(reach(table[name].spec)), f"{first.parameters:,}", f"{first.macs / 1e6:.1f} M"]
    cells.append("" if seconds is None else f"{seconds:.3f}")
    return cells


def _with_ties(percent: float, ties: float) -> str:
    """`92.5 (16)`; a share of ties below one with a decimal, so that none is shown as nothing."""
    return f"{percent:.1f}" + (f" ({ties:.{int(ties < 1)}f})" if ties else "")


def _comparison_lines(table: Table, rows: Sequence[Row]) -> list[str]:
    comparisons = compare(table, rows)
    lines = []
    for one in comparisons:
        found = one.found
        if found is None:
            continue
        paper = "" if one.paper is None else f"; the paper {one.paper:+.1f}"
        word = "" if one.word is None else f": **{one.word}**"
        lines.append(
            f"- {one.variant} - {one.other}: {found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}], "
            f"{found.same_sign} of {found.seeds} seeds, p {found.p:.4g} (Holm {one.p_holm:.4g}){paper}{word}"
        )
    seeds = [one.found.seeds for one in comparisons if one.found is not None]
    if seeds:
        alone, together = (
            smallest_difference(min(seeds), comparisons=count) for count in (1, len(comparisons))
        )
        lines += [
            "",
            f"Intervals are 95 % t intervals of the paired difference over seeds. {min(seeds)} seeds find a "
            f"difference of {alone:.1f} standard deviations in four of five cases, of {together:.1f} with "
            f"Holm's correction over {len(comparisons)} comparisons.",
        ]
    return lines


def draw(
    table: Table, rows: Sequence[Row], file: Path, ends: dict[str, tuple[float, str]] | None = None
) -> Path:
    """The figure: a dot for every seed, mean and interval; against distance where the table is about that.

    file: .svg or .png. ends: by variant, the distance from which its features hold no part of both, with its
    unit; drawn as a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    if ends is not None:
        _draw_distances(figure, table, rows, ends)
    else:
        _draw_variants(figure, table, rows)
    about = {"Date": None} if file.suffix == ".svg" else None  # the same figure, the same file
    write_whole(
        file, lambda partial: figure.savefig(partial, format=file.suffix[1:], dpi=150, metadata=about)
    )
    return file


def _draw_variants(figure: Any, table: Table, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    names = [v.name for v in table.variants if any(row.variant == v.name for row in rows)]
    for place, name in enumerate(names):
        values = [row.figure for row in rows if row.variant == name and row.part == ALL]
        axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6, markersize=5)
        axes.plot([statistics.mean(values)] * 2, [place - 0.25, place + 0.25], color="black")
    papers = [table[name].paper for name in names]
    axes.set_yticks(
        range(len(names)),
        [n if p is None else f"{n} (paper {p:.1f})" for n, p in zip(names, papers, strict=True)],
    )
    axes.invert_yaxis()
    if table.images is None:
        axes.axvline(50, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("right, %: a dot for each seed, a line for their mean")
    axes.set_title(f"{table.name}: {table.title}", fontsize=10)


def _draw_distances(
    figure: Any, table: Table, rows: Sequence[Row], ends: dict[str, tuple[float, str]]
) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit, where in zip(panels, ("pixels", "frames"), (0, 1), strict=True):
        for number, variant in enumerate(table.variants):
            distance, of = ends.get(variant.name, (0.0, unit))
            if of != unit:
                continue
            mine = [row for row in rows if row.variant == variant.name and row.part != ALL]
            colour = f"C{number % 2}"
            at = [float(row.part.split(", ")[where].split(" ")[0]) for row in mine]
            axes.plot(at, [row.figure for row in mine], "o", color=colour, alpha=0.4, markersize=4)
            places = sorted(set(at))
            means = [
                statistics.mean(row.figure for row, x in zip(mine, at, strict=True) if x == p) for p in places
            ]
            axes.plot(places, means, color=colour, label=variant.name.split(",")[0])
            if distance:
                axes.axvline(distance, color=colour, linewidth=0.8, linestyle=":")
                words = f"reach of {variant.name.split(',')[0]} "
                axes.text(distance, 102, words, color=colour, fontsize=8, ha="right", va="bottom")
        axes.set_xlabel(f"distance in {'space, pixels' if unit == 'pixels' else 'time, frames'}")
        axes.set_ylim(45, 106)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower left", fontsize=8)
    panels[0].set_ylabel("quartets right, %")
