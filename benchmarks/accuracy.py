"""Errors against float64, relative to the largest value: operators in float32, blocks in half precision.

    python3 run.py bench accuracy --threads 2
    python3 run.py bench accuracy --only "operator/gaussian" --resume
    python3 run.py bench accuracy --quick                    # tiny maps, seconds
    python3 run.py bench accuracy --markdown                 # the saved results as Markdown; measures nothing

Operators in float32 at N = 3136 (results within 2e-6, gradients within 2e-5, the worst of three seeds) and
N = 25,088 (1e-5, 2e-5; one seed), with everything kept and nothing kept, beside the plain form where it fits.
Operators and blocks in bfloat16 and float16 beside the plain ones in the same precision, which ours must not
be further from float64 than; the mean of six seeds. The reference works on the same inputs and weights in
float64, a few queries at a time.

"rms" is the root of the mean square. In a half-precision block most errors are the convolutions' own, the
same for both, and the largest of them is a matter of chance: "of plain's" gives the ratio seed by seed, and
"rms only" says that by the rms ours is no further, and by the mean of the largest it is. Exit code 1 where a
limit is passed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from rich.console import Console

from _cases import FUNCTIONS, SOFTMAXES, Case, select
from _contenders import contenders
from _errors import block_errors, operator_errors
from _machine import available_cores, code_digest, describe
from _measure import refusal, room_bytes
from _processes import StoppedError, in_fresh_process
from _store import Row, Store
from _tables import markdown, printed

OPERATOR_LIMITS = {3136: (2e-6, 2e-5), 25_088: (1e-5, 2e-5)}  # of results, of gradients
SEEDS = {"float32": 3, "bfloat16": 6, "float16": 6}
MANY_POSITIONS = 10_000  # where one seed has to do
COLUMNS = (
    *("case", "contender", "result", "gradients", "limits", ""),
    *("rms result", "gradients", "of plain's: result", "gradients"),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="as in operators.py")
    parser.add_argument("--quick", action="store_true", help="tiny maps")
    parser.add_argument(
        "--threads", type=int, default=available_cores(), help="of torch (default %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="seconds for one case (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results (default in runs/bench)")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds already")
    parser.add_argument("--markdown", action="store_true", help="print saved results, measure nothing")
    options = parser.parse_args(arguments)
    out = options.out or Path("runs/bench") / f"accuracy{'_quick' if options.quick else ''}.json"
    console = Console(width=None if sys.stdout.isatty() else 190)
    try:
        if options.markdown:
            print(markdown(COLUMNS, lines(Store.load(out).rows.values())))
            return 0
        store = Store(out, describe(options.threads), code_digest())
        cases = select(all_accuracy_cases(quick=options.quick), options.only)
        if options.resume:
            store.resume()
    except ValueError as error:
        parser.error(str(error))
    done = {row["case"] for row in store.rows.values()}
    try:
        for number, case in enumerate(cases, 1):
            if case.name not in done:
                store.add(errors_of(case, options.threads, options.limit))
                console.print(f"{number}/{len(cases)} {case.name}")
    except KeyboardInterrupt:
        console.print(f"stopped; finished cases are in {out}, the same call with --resume goes on")
        return 130
    chosen = {case.name for case in cases}
    rows = [row for row in store.rows.values() if row["case"] in chosen]
    printed("Errors against float64, relative to the largest value", COLUMNS, lines(rows), console)
    console.print(f"written to {out}")
    return 1 if any(verdict(row, rows) == "NOT MET" for row in rows) else 0


def all_accuracy_cases(*, quick: bool) -> list[Case]:
    """For all functions, forward and backward: operators at two sizes (d 256), in half precision at one."""
    sizes = (
        {"tiny": (16, (2, 6, 6))}
        if quick
        else {"res3_4x28x28": (512, (4, 28, 28)), "8x56x56": (512, (8, 56, 56))}
    )
    block = ("tiny", 16, (2, 6, 6)) if quick else ("256_4x14x14", 256, (4, 14, 14))
    cases = [
        # Concatenation from its scores: a rounded one may lie on the other side of ReLU's corner.
        Case(
            "limit" if function == "concatenation" else "operator",
            *(function, name, channels, positions, False, "forward_backward"),
        )
        for name, (channels, positions) in sizes.items()
        for function in FUNCTIONS
    ]
    cases += [
        # Not subsampled: which of four nearly equal values is the maximum, half precision cannot tell.
        Case(level, function, *block, False, "forward_backward", dtype)
        for dtype in ("bfloat16", "float16")
        for function in FUNCTIONS
        for level in ("limit" if function == "concatenation" else "operator", "block")
    ]
    return cases


def errors_of(case: Case, threads: int, limit_seconds: float) -> list[Row]:
    """The rows of a case, from a fresh process."""
    try:
        seeds = 1 if case.queries > MANY_POSITIONS else SEEDS[case.dtype]
        if case.level == "block":
            return list(in_fresh_process(block_errors, case, threads, seeds, limit_seconds=limit_seconds))
        known = contenders(case, ())
        wanted = ["ours_kept", "ours_linear"] if case.function in SOFTMAXES else ["ours"]
        wanted.append("plain_sums" if case.function == "concatenation" else "plain")
        names = tuple(one for one in wanted if not refusal(2 * known[one].needs_bytes, room_bytes("cpu")))
        return list(
            in_fresh_process(operator_errors, case, names, threads, seeds, limit_seconds=limit_seconds)
        )
    except StoppedError as stopped:
        row = {"name": f"{case.name}/ours", "case": case.name, "contender": "ours", "label": "ours"}
        return [{**row, "level": case.level, "status": str(stopped)}]


def lines(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """One line a row."""
    rows = list(rows)
    found = []
    for row in rows:
        if "errors" not in row:
            found.append((row["case"], row["label"], row["status"], *[""] * 7))
            continue
        bounds = limits(row, rows)
        said = " / ".join(f"{bound:.1e}" for bound in bounds) if bounds else ""
        errors = tuple(f"{one:.1e}" for one in errors_for(row))
        rms = f"{row['rms']:.1e}", f"{row['gradient_rms']:.1e}"
        ratios = by_seed(row, rows)
        found.append((row["case"], row["label"], *errors, said, verdict(row, rows), *rms, *ratios))
    return found


def errors_for(row: Row) -> tuple[float, float]:
    """What the limits are for, of result and gradients: in float32 the worst seed, else the seeds' mean."""
    both = row["errors"], row["gradient_errors"]
    result, gradients = (max(one) if row["dtype"] == "float32" else fmean(one) for one in both)
    return result, gradients


def plain_beside(row: Row, rows: list[Row]) -> Row | None:
    """The plain form of the same case in half precision, from which a limit follows for ours."""
    if not row["contender"].startswith("ours") or row["dtype"] == "float32":
        return None
    plain = [one for one in rows if one["case"] == row["case"] and one["contender"].startswith("plain")]
    return plain[0] if plain else None


def limits(row: Row, rows: list[Row]) -> tuple[float, float] | None:
    """Of result and gradients. None for what sets limits itself."""
    if not row["contender"].startswith("ours"):
        return None
    if row["dtype"] == "float32":
        return OPERATOR_LIMITS.get(row["queries"])
    plain = plain_beside(row, rows)
    return None if plain is None else errors_for(plain)


def by_seed(row: Row, rows: list[Row]) -> tuple[str, str]:
    """The smallest and the largest ratio of a seed's largest error to the plain form's."""
    plain = plain_beside(row, rows)
    if plain is None:
        return "", ""
    said = []
    for field in ("errors", "gradient_errors"):
        ratios = [mine / theirs for mine, theirs in zip(row[field], plain[field], strict=True)]
        said.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
    return said[0], said[1]


def verdict(row: Row, rows: list[Row]) -> str:
    """Met or not, a block perhaps by its rms and not by its largest error; "" where there is no limit."""
    if "errors" not in row:
        return "NOT MET"
    bounds = limits(row, rows)
    if bounds is None:
        return ""
    if all(error <= bound for error, bound in zip(errors_for(row), bounds, strict=True)):
        return "met"
    plain = plain_beside(row, rows)
    if plain is None or row["level"] != "block":
        return "NOT MET"
    within_rms = row["rms"] <= plain["rms"] and row["gradient_rms"] <= plain["gradient_rms"]
    return "rms only" if within_rms else "NOT MET"


if __name__ == "__main__":
    sys.exit(main())
