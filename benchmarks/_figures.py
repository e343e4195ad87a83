"""The figures that the operators set out to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from _cases import PASSES, SOFTMAXES
from _store import Row
from _tables import products_rate, rate

Rows = dict[str, Row]  # by name: case/contender

KEPT_SHARE = {"forward": 0.90, "forward_backward": 0.85}
LINEAR = 0.85  # of what is asked for with everything kept
# shape: N, d and the ratio to the plain form, forward and both passes
SOFTMAX = {
    "res3_4x28x28": ("N 3136, d 256", {"forward": 2.5, "forward_backward": 1.35}),
    "2d_128x128": ("N 16384, d 128", {"forward": 4.0, "forward_backward": 2.2}),
    "res4_4x14x14": ("N 784, d 512", {"forward": 1.0, "forward_backward": 1.0}),
}


@dataclass(frozen=True)
class Figure:
    """One figure; `value` is None where it was not measured. At least `bound`, or for memory less than it.

    `products_alone`: what the value would be if a case's matrix products were all there is to compute.
    """

    text: str
    value: float | None
    bound: float
    unit: str = "x"
    at_least: bool = True
    products_alone: float | None = None

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value < self.bound

    def line(self) -> tuple[str, str, str, str]:
        """For a table: what, asked for, measured, met or not."""
        sign = ">=" if self.at_least else "<"
        said = {True: "met", False: "NOT MET", None: "not measured"}[self.met]
        measured = self._number(self.value)
        if measured and self.products_alone is not None:
            measured += f" (products alone {self._number(self.products_alone)})"
        return self.text, f"{sign} {self._number(self.bound)}", measured, said

    def _number(self, value: float | None) -> str:
        if value is None:
            return ""
        if self.unit == "%":
            return f"{value:.1%}"
        return f"{value:.2f} {self.unit}"


def figures(rows: Rows, dtype: str = "float32") -> list[Figure]:
    """All of them, from the rows of a run."""
    return [*_sums(rows, dtype), *_softmaxes(rows, dtype), *_memory(rows, dtype), *_blocks(rows)]


def words(passes: str) -> str:
    """The pass, for people."""
    return passes.replace("_", " + ")


def _seconds(rows: Rows, case: str, contender: str) -> float | None:
    return rows.get(f"{case}/{contender}", {}).get("seconds")


def _ratio(rows: Rows, case: str, slow: str, fast: str) -> float | None:
    above, below = _seconds(rows, case, slow), _seconds(rows, case, fast)
    return None if above is None or below is None else above / below


def _sums(rows: Rows, dtype: str) -> Iterator[Figure]:
    for function, shape, bounds in (
        ("dot_product", "res3_4x28x28", (3.5, 3.0)),
        ("concatenation", "res4_4x14x14", (100.0, 80.0)),
    ):
        for passes, bound in zip(PASSES, bounds, strict=True):
            case = f"operator/{function}/{shape}/all/{passes}/{dtype}"
            text = f"{function}, {shape}, {words(passes)}: times the plain form"
            yield Figure(text, _ratio(rows, case, "plain", "ours"), bound)


def _softmaxes(rows: Rows, dtype: str) -> Iterator[Figure]:
    for function in SOFTMAXES:
        for shape, (size, bounds) in SOFTMAX.items():
            for passes in PASSES:
                case = f"operator/{function}/{shape}/all/{passes}/{dtype}"
                kept = "ours" if passes == "forward" else "ours_kept"
                for contender, factor, memory in ((kept, 1.0, "kept"), ("ours_linear", LINEAR, "linear")):
                    text = f"{function}, {size}, {words(passes)}, {memory}"
                    bound = factor * KEPT_SHARE[passes]
                    for torch_mm, of in ((True, "torch.mm's rate"), (False, "the fastest products' rate")):
                        share = _share(rows, case, contender, torch_mm=torch_mm)
                        yield Figure(f"{text}: of {of}", share, bound, "%")
                    ratio, most = _ratio(rows, case, "plain", contender), _products_ratio(rows, case)
                    bound = factor * bounds[passes]
                    yield Figure(f"{text}: times the plain form", ratio, bound, products_alone=most)


def _products_ratio(rows: Rows, case: str) -> float | None:
    """The plain form's time over that of the fastest products."""
    plain = rows.get(f"{case}/plain")
    machine = products_rate(row for row in rows.values() if row["case"] == case)
    theirs = None if plain is None else rate(plain)
    return None if theirs is None or machine is None else machine / theirs


def _share(rows: Rows, case: str, contender: str, *, torch_mm: bool) -> float | None:
    row = rows.get(f"{case}/{contender}")
    machine = products_rate((row for row in rows.values() if row["case"] == case), torch_mm=torch_mm)
    ours = None if row is None else rate(row)
    return None if ours is None or machine is None else ours / machine


def _memory(rows: Rows, dtype: str) -> Iterator[Figure]:
    for function, shape, passes, contender, text, bound in (
        ("concatenation", "1d_1000000", "forward", "ours", "N 1,000,000, d 32", 1.0),
        ("concatenation", "1d_1000000", "forward_backward", "ours", "N 1,000,000, d 32", 1.0),
        ("embedded_gaussian", "1d_131072", "forward_backward", "ours_linear", "N 131,072, d 64", 2.0),
    ):
        row = rows.get(f"limit/{function}/{shape}/all/{passes}/{dtype}/{contender}", {})
        for field, meaning in (("peak_bytes", "above the start"), ("total_bytes", "whole process")):
            value = row[field] / 1e9 if field in row else None
            what = f"{function}, {text}, {words(passes)}: peak memory, {meaning}"
            yield Figure(what, value, bound, "GB", at_least=False)


def _blocks(rows: Rows) -> Iterator[Figure]:
    cases = {row["case"] for row in rows.values() if row["level"] == "block"}
    ratios = {case: ratio for case in cases if (ratio := _ratio(rows, case, "plain", "ours")) is not None}
    if not ratios:
        yield Figure("whole block, slowest case: times the plain block", None, 1.0)
        return
    worst = min(ratios, key=ratios.__getitem__)
    slower = sum(ratio < 1 for ratio in ratios.values())
    text = f"whole block, {slower} of {len(ratios)} cases slower; slowest {worst.removeprefix('block/')}"
    yield Figure(f"{text}: times the plain block", ratios[worst], 1.0)
