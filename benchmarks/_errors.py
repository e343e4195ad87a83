"""A float64 reference in chunks of queries, and errors against it. Run in fresh processes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import _plain
from _cases import Case
from _contenders import contenders, of_module
from _operands import Operands, make_block

Errors = list[tuple[float, float]]  # the largest, and the root of the mean square

CHUNK_BYTES = 256 * 2**20  # of one queries x keys matrix in float64


def operator_errors(case: Case, names: tuple[str, ...], threads: int, seeds: int) -> list[dict[str, Any]]:
    """Of each contender: the errors of the result and of the gradients, relative to the largest value."""
    torch.set_num_threads(threads)
    known = contenders(case, ())
    errors: dict[str, list[Errors]] = {name: [] for name in names}
    for seed in range(seeds):
        operands = Operands(case, "cpu", seed)
        exact = operator_reference(operands)
        for name in names:
            errors[name].append(all_errors(known[name].build(operands)(), exact))
    return [as_row(case, name, known[name].label, errors[name]) for name in names]


def operator_reference(operands: Operands) -> tuple[Tensor, ...]:
    """Result and gradients of the leaves in float64; memory linear in the queries."""
    leaves = {name: value.detach().double().requires_grad_() for name, value in operands.leaves.items()}
    parts = []
    for some in chunks(operands.case):
        if "a" in leaves:
            y = _plain.concatenation_of_scores(leaves["a"][:, some], leaves["b"], leaves["g"])
        else:
            average = _plain.dot_product if operands.case.function == "dot_product" else _plain.gaussian
            y = average(leaves["theta"][:, some], leaves.get("phi", leaves["theta"]), leaves["g"])
        y.backward(operands.dy[:, some].double())
        parts.append(y.detach())
    grads = [leaf.grad for leaf in leaves.values()]
    return (torch.cat(parts, dim=1), *(grad for grad in grads if grad is not None))


def chunks(case: Case) -> Iterator[slice]:
    """Slices of the queries."""
    rows = max(1, CHUNK_BYTES // (8 * case.keys))
    for first in range(0, case.queries, rows):
        yield slice(first, first + rows)


def block_errors(case: Case, threads: int, seeds: int) -> list[dict[str, Any]]:
    """Our block and the plain one in the case's precision, against the plain one in float64: z and dx."""
    torch.set_num_threads(threads)
    errors: dict[str, list[Errors]] = {"ours": [], "plain": []}
    for seed in range(seeds):
        operands = Operands(case, "cpu", seed)
        block = make_block(case, "cpu", seed=seeds + seed)
        plain = _plain.PlainBlock(block)
        double = copy.deepcopy(plain).double()
        x = operands.leaves["x"].detach().double().requires_grad_()
        z = double(x)
        exact = (z.detach(), torch.autograd.grad(z, x, operands.dy.double())[0])
        for name, module in (("ours", block), ("plain", plain)):
            errors[name].append(all_errors(of_module(module, operands)(), exact))
    return [as_row(case, name, name, errors[name]) for name in errors]


def all_errors(result: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> Errors:
    """Of the result, then of the gradients."""
    return [relative_errors(mine, truth) for mine, truth in zip(result, exact, strict=True)]


def relative_errors(mine: Tensor, truth: Tensor) -> tuple[float, float]:
    """The largest error and the root of the mean square, over the largest value."""
    gap, largest = mine.double() - truth, truth.abs().max()
    return (gap.abs().max() / largest).item(), (gap.square().mean().sqrt() / largest).item()


def as_row(case: Case, name: str, label: str, by_seed: list[Errors]) -> dict[str, Any]:
    """Result and worst gradient: the largest errors by seed, and the root of their mean square over seeds."""

    def root(squares: list[float]) -> float:
        return (sum(one * one for one in squares) / len(squares)) ** 0.5

    return {
        "name": f"{case.name}/{name}",
        "case": case.name,
        "contender": name,
        "label": label,
        "level": case.level,
        "function": case.function,
        "queries": case.queries,
        "dtype": case.dtype,
        "status": "measured",
        "errors": [errors[0][0] for errors in by_seed],
        "gradient_errors": [max(largest for largest, _ in errors[1:]) for errors in by_seed],
        "rms": root([errors[0][1] for errors in by_seed]),
        "gradient_rms": root([max(rms for _, rms in errors[1:]) for errors in by_seed]),
    }
