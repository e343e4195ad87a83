"""Cost against the number of positions: time and peak memory of whole blocks, 1,024 to 131,072 positions.

    python3 run.py bench scaling --threads 2 --peer ../Non-local_pytorch --peer ../SlowFast --peer ../mmcv
    python3 run.py bench scaling --resume --peer ...         # go on after a stop
    python3 run.py bench scaling --plot                      # draw the saved results, measure nothing

A clip of N frames of one pixel and 128 channels (64 inside), so that blocks for video can take part; all
positions are keys. At each length the blocks take turns as in operators.py. A curve ends after a point that
takes longer than --stop seconds or where the next would need more than --most GB. Writes operators_time.svg
and operators_memory.svg.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from _cases import FUNCTIONS, PASSES, Case
from _contenders import contenders
from _machine import ROOT
from _measure import Settings
from _memory import in_words
from _runner import describe, measure, summary
from _scaling_plot import draw
from _store import Row, Store
from operators import make_parser, start

CHANNELS = 128


def main(arguments: list[str] | None = None) -> int:
    """Measure, save, draw."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--longest", type=int, default=131_072, help="positions (default %(default)s)")
    parser.add_argument(
        "--stop", type=float, default=20.0, help="seconds that end a curve (default %(default)s)"
    )
    parser.add_argument("--most", type=float, default=16.0, help="GB that end a curve (default %(default)s)")
    parser.add_argument("--passes", choices=PASSES, default="forward_backward", help="(default %(default)s)")
    parser.add_argument("--function", choices=FUNCTIONS, action="append", help="these alone; repeatable")
    parser.add_argument("--plot", action="store_true", help="draw the saved results, measure nothing")
    parser.add_argument("--assets", type=Path, default=ROOT / "docs/assets", help="where the plots go")
    options = parser.parse_args(arguments)
    out = options.out or Path("runs/bench/scaling.json")
    console = Console(width=None if sys.stdout.isatty() else 170)
    try:
        if options.plot:
            store = Store.load(out)
        else:
            settings, store = start(options, out)
            if options.resume:
                store.resume()
            for function in options.function or FUNCTIONS:
                curve(function, options.passes, options.longest, store, settings, console, options)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        console.print(f"stopped; finished points are in {out}, the same call with --resume goes on")
        return 130
    for path in draw(list(store.rows.values()), options.assets):
        console.print(f"written to {path}")
    return 0


def curve(
    function: str,
    passes: str,
    longest: int,
    store: Store,
    settings: Settings,
    console: Console,
    limits: object,
) -> None:
    """All lengths of a function, for whoever is still in."""
    stop, most = float(getattr(limits, "stop")), float(getattr(limits, "most")) * 1e9  # noqa: B009
    settings = replace(settings, slow_seconds=stop)
    out_of_it: dict[str, str] = {}
    length = 1024
    while length <= longest:
        case = Case("block", function, f"length_{length}", CHANNELS, (length, 1, 1), False, passes)
        known = contenders(case, settings.peers)
        rows: list[Row] = []
        for name, one in known.items():
            if name not in out_of_it and one.needs_bytes > most:
                out_of_it[name] = f"would need {in_words(one.needs_bytes)}"
            if name in out_of_it:
                rows.append({**describe(case, one), "status": f"left out: {out_of_it[name]}"})
        names = [name for name in known if name not in out_of_it]
        if all(f"{case.name}/{name}" in store.rows for name in known):
            rows = [store.rows[f"{case.name}/{name}"] for name in known]
        else:
            if names:
                rows += measure(case, settings, 10 * stop * len(names), names)
            store.add(rows)
            console.print(summary(rows), soft_wrap=True)
        for row in rows:
            if row["status"] != "measured":
                out_of_it.setdefault(row["contender"], row["status"])
            elif row["seconds"] > stop:
                out_of_it[row["contender"]] = f"took {row['seconds']:.0f} s at {length} positions"
        length *= 2


if __name__ == "__main__":
    sys.exit(main())
