"""Cases one after the other: what does not fit is refused, what is finished is saved, progress is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from _cases import Case
from _contenders import Contender, contenders
from _measure import Settings, peak_of, refusal, room_bytes, time_case
from _processes import StoppedError, in_fresh_process
from _store import Row, Store

NO_MEMORY_OF = (
    "products",
    "products_chunked",
    "products_fastest",
)  # they stand for the machine, not for a way to do it


def run(
    cases: Sequence[Case], store: Store, settings: Settings, limit_seconds: float, console: Console
) -> None:
    """Measure the cases that the store does not have yet."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=len(cases))
        for number, case in enumerate(cases, 1):
            progress.update(task, description=case.name)
            names = taking_part(case, settings)
            if not all(f"{case.name}/{name}" in store.rows for name in names):
                rows = measure(case, settings, limit_seconds, names)
                store.add(rows)
                if not console.is_terminal:
                    console.print(f"{number}/{len(cases)} {summary(rows)}", soft_wrap=True)
            progress.advance(task)


def summary(rows: Iterable[Row]) -> str:
    """A case in one line."""
    rows = list(rows)
    said = (f"{row['contender']} {row['seconds']:.4g} s" for row in rows if "seconds" in row)
    return f"{rows[0]['case']}: {', '.join(said) or rows[0]['status']}"


def taking_part(case: Case, settings: Settings) -> list[str]:
    """All contenders; where it is about the limits of ours, ours in linear memory alone."""
    names = list(contenders(case, settings.peers))
    if case.level != "limit":
        return names
    return ["ours_linear" if "ours_linear" in names else "ours"]


def measure(case: Case, settings: Settings, limit_seconds: float, names: Iterable[str]) -> list[Row]:
    """All rows of a case: time side by side in one fresh process, memory in one for each contender."""
    known = contenders(case, settings.peers)
    rows: dict[str, Row] = {}
    for name in names:
        rows[name] = describe(case, known[name])
        refused = refusal(known[name].needs_bytes, room_bytes(settings.device))
        if refused:
            rows[name]["status"] = refused
    fit = tuple(name for name, row in rows.items() if "status" not in row)
    if case.level != "limit" and fit:
        _time(case, fit, rows, settings, limit_seconds)
    for name in fit:
        if name in NO_MEMORY_OF or ("seconds" not in rows[name] and case.level != "limit"):
            continue
        found = _in_process(peak_of, case, name, settings, limit_seconds=limit_seconds)
        if case.level == "limit":
            rows[name] |= found
            if found["status"] == "measured":
                rows[name] |= {"seconds": found["first_seconds"], "runs": 1, "warmed_up": False}
        else:
            rows[name] |= {field: value for field, value in found.items() if field != "status"}
    return list(rows.values())


def _time(
    case: Case, names: tuple[str, ...], rows: dict[str, Row], settings: Settings, limit_seconds: float
) -> None:
    try:
        timed = in_fresh_process(time_case, case, names, settings, limit_seconds=limit_seconds)
    except StoppedError as stopped:
        if len(names) == 1:
            rows[names[0]]["status"] = str(stopped)
            return
        for name in names:  # one of them is to blame: each by itself, so that the others are measured
            _time(case, (name,), rows, settings, limit_seconds)
            rows[name]["alone"] = True
        return
    for name, found in timed.items():
        rows[name] |= found


def _in_process(function: object, *arguments: object, limit_seconds: float) -> Row:
    try:
        answer: Row = in_fresh_process(function, *arguments, limit_seconds=limit_seconds)  # type: ignore[arg-type]
        return answer
    except StoppedError as stopped:
        return {"status": str(stopped)}


def describe(case: Case, contender: Contender) -> Row:
    """What a row says of itself before it is measured."""
    return {
        "name": f"{case.name}/{contender.name}",
        "case": case.name,
        "contender": contender.name,
        "label": contender.label,
        "level": case.level,
        "function": case.function,
        "shape": case.shape,
        "queries": case.queries,
        "keys": case.keys,
        "width": case.width,
        "inner": case.inner,
        "flops": case.flops,
        "compared_with": contender.like,
    }


def absolute(checkouts: Iterable[Path]) -> tuple[Path, ...]:
    """Paths that hold in other processes too, each of a known project."""
    from _peers import find

    found = tuple(path.resolve() for path in checkouts)
    for path in found:
        find(path)
    return found
