"""Operators and blocks beside the plain form, SDPA and other projects' blocks: time, memory, agreement.

    python3 run.py bench operators --threads 2 --peer ../Non-local_pytorch --peer ../SlowFast --peer ../mmcv
    python3 run.py bench operators --resume --peer ...       # go on after a stop (Ctrl-C loses one case)
    python3 run.py bench operators --only operator/gaussian --only "block/*/res3_4x28x28"
    python3 run.py bench operators --quick                   # tiny maps, seconds
    python3 run.py bench operators --markdown                # the saved results as Markdown; measures nothing

The contenders of a case take turns in one fresh process (A B C C B A ...), the fastest of at least --rounds
counts, and a contender counts only if its results agree with ours. Peak memory is the high-water mark of a
fresh process for each contender, above what it held after its imports. What cannot fit in memory is
reported, not tried. A whole run takes hours; finished cases are saved as it goes. Exit code 1 where a figure
to reach was measured and is not met.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from _cases import all_cases, select
from _figures import figures
from _machine import available_cores, code_digest, describe
from _measure import Settings
from _runner import absolute, run
from _store import Store
from _tables import COLUMNS, lines_of, markdown, printed

FIGURE_COLUMNS = ("figure to reach", "asked for", "measured", "")


def main(arguments: list[str] | None = None) -> int:
    """Measure what is chosen, print, save."""
    parser = make_parser(__doc__ or "")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="cases whose name holds it; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="a few tiny maps, to see that it works")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(default %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the chosen cases and end")
    parser.add_argument("--markdown", action="store_true", help="print saved results, measure nothing")
    options = parser.parse_args(arguments)
    out = options.out or Path("runs/bench") / f"operators{'_quick' if options.quick else ''}.json"
    console = Console(width=None if sys.stdout.isatty() else 170)
    try:
        if options.markdown:
            print(as_markdown(Store.load(out), options.dtype))
            return 0
        settings, store = start(options, out)
        cases = select(all_cases(options.dtype, quick=options.quick), options.only)
        if options.list:
            print("\n".join(case.name for case in cases))
            return 0
        if options.resume:
            store.resume()
    except ValueError as error:
        parser.error(str(error))
    try:
        run(cases, store, settings, options.limit, console)
    except KeyboardInterrupt:
        console.print(f"stopped; finished cases are in {out}, the same call with --resume goes on")
        return 130
    chosen = {case.name for case in cases}
    printed("", COLUMNS, lines_of(row for row in store.rows.values() if row["case"] in chosen), console)
    console.print(", ".join(f"{key} {value}" for key, value in store.machine.items()), soft_wrap=True)
    found = [] if options.quick else figures(store.rows, options.dtype)  # tiny maps say nothing of them
    if options.only:
        found = [figure for figure in found if figure.met is not None]
    if found:
        printed("Figures to reach", FIGURE_COLUMNS, (figure.line() for figure in found), console)
    console.print(f"written to {out}")
    return 1 if any(figure.met is False for figure in found) else 0


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that this measurement and scaling.py share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a checkout of Non-local_pytorch, SlowFast or mmcv; repeatable",
    )
    parser.add_argument(
        "--threads", type=int, default=available_cores(), help="of torch (default: all cores, %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each, at least (default %(default)s)")
    parser.add_argument(
        "--slow", type=float, default=60.0, help="seconds; slower calls run once (default %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="seconds for one process (default %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the results (default in runs/bench)")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds already")
    return parser


def start(options: argparse.Namespace, out: Path) -> tuple[Settings, Store]:
    """Checked options, and a place for the results.

    Raises:
        ValueError: for options that make no sense.
    """
    if options.rounds < 1 or options.threads < 1:
        raise ValueError(
            f"--rounds and --threads must be at least 1, got {options.rounds}, {options.threads}"
        )
    settings = Settings(options.rounds, options.threads, options.device, options.slow, absolute(options.peer))
    return settings, Store(out, describe(options.threads, options.device), code_digest())


def as_markdown(store: Store, dtype: str) -> str:
    """The saved table and figures, for benchmarks/RESULTS.md."""
    parts = [", ".join(f"{key} {value}" for key, value in store.machine.items())]
    parts.append(markdown(COLUMNS, lines_of(store.rows.values())))
    parts.append(markdown(FIGURE_COLUMNS, (figure.line() for figure in figures(store.rows, dtype))))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
