"""The arithmetic of tables and figures, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _cases import Case, all_cases, select
from _figures import Figure, figures
from _measure import refusal
from _store import Store
from _tables import lines_of

CASE = "operator/embedded_gaussian/res3_4x28x28/all/forward/float32"


def row(contender: str, seconds: float, **more: Any) -> dict[str, Any]:
    case = Case("operator", "embedded_gaussian", "res3_4x28x28", 512, (4, 28, 28), False, "forward")
    assert case.name == CASE
    return {
        "name": f"{CASE}/{contender}",
        "case": CASE,
        "contender": contender,
        "label": contender,
        "level": "operator",
        "function": "embedded_gaussian",
        "status": "measured",
        "flops": case.flops,
        "seconds": seconds,
        "runs": 5,
        **more,
    }


ROWS = [row("ours", 0.1), row("plain", 0.3), row("products", 0.08), row("products_chunked", 0.09)]


def test_the_products_are_counted_as_4nmd_and_12nmd() -> None:
    forward = Case("operator", "embedded_gaussian", "", 512, (4, 28, 28), False, "forward")
    both = Case("operator", "embedded_gaussian", "", 512, (4, 28, 28), True, "forward_backward")
    assert forward.flops == 4 * 3136 * 3136 * 256
    assert both.flops == 12 * 3136 * 784 * 256


def test_ratios_and_shares_are_of_the_same_case() -> None:
    ours, plain, *_ = lines_of(ROWS)
    assert ours[:5] == (CASE, "ours", "0.1", "5", "3.00")
    assert ours[5:7] == ("101", "80%")  # 10.07 GFLOP in 0.1 s; the faster products took 0.08 s
    assert plain[4] == "1.00"


def test_figures_are_met_not_met_or_not_measured() -> None:
    found = {figure.text: figure for figure in figures({one["name"]: one for one in ROWS})}
    name = "embedded_gaussian, N 3136, d 256, forward, kept"
    times = found[f"{name}: times the plain form"]
    assert times.met is True
    assert times.line()[1:3] == (">= 2.50 x", "3.00 x (products alone 3.75 x)")  # 0.3 s over 0.08 s
    assert found[f"{name}: of torch.mm's rate"].line()[1:] == (">= 90.0%", "80.0%", "NOT MET")
    faster = {one["name"]: one for one in [*ROWS, row("products_fastest", 0.05)]}
    share = next(one for one in figures(faster) if one.text == f"{name}: of the fastest products' rate")
    assert share.value == pytest.approx(0.5)
    others = [figure for figure in found.values() if not figure.text.startswith(name)]
    assert others
    assert all(figure.met is None for figure in others)
    assert Figure("memory", 0.9, 1.0, "GB", at_least=False).met is True
    assert Figure("memory", 1.0, 1.0, "GB", at_least=False).met is False


def test_resuming_keeps_rows_of_this_code_and_machine(tmp_path: Path) -> None:
    machine = {"cpu": "a", "torch": "2"}
    file = tmp_path / "rows.json"
    Store(file, machine, "code").add(ROWS)
    again = Store(file, machine, "code")
    again.resume()
    assert list(again.rows) == [one["name"] for one in ROWS]
    changed = Store(file, machine, "other code")
    changed.resume()
    assert changed.rows == {}
    with pytest.raises(ValueError, match=r"cpu 'a', this is 'b'; give another --out"):
        Store(file, {"cpu": "b", "torch": "2"}, "code").resume()
    file.write_text("{}")
    with pytest.raises(ValueError, match="does not hold results"):
        Store.load(file)


def test_the_cases_are_those_of_the_issue() -> None:
    cases = all_cases("float32", quick=False)
    assert len({case.name for case in cases}) == len(cases) == 7 * 2 * 4 * 2 * 2 + 2 * 4 * 2 * 2 + 3
    chosen = select(cases, ["operator/gaussian/res4_4x14x14", "limit/*1000000"])
    assert [case.level for case in chosen] == ["operator"] * 4 + ["limit"] * 2
    with pytest.raises(ValueError, match="'res9' chooses nothing"):
        select(cases, ["res9"])


def test_what_cannot_fit_is_refused_with_its_size() -> None:
    assert refusal(10, room=10) == ""
    assert refusal(40_300_000_000, room=20_000_000_000) == "out of memory: needs 40.30 GB"
