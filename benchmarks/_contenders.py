"""Who takes part in a case, what each needs in memory at least, and the call that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import _ours
import _peers
import _plain
import _products
from _cases import BYTES, SOFTMAXES, Case
from _operands import Operands, make_block

Call = Callable[[], tuple[Tensor, ...]]  # returns the result, then the gradients if they were asked for
Build = Callable[[Operands], Call]


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    `needs_bytes` is the least it can do with, told from the shapes; what needs more than the machine has is
    reported and not tried. `like` names the contender whose results it has to agree with.
    """

    name: str
    label: str
    needs_bytes: int
    build: Build
    like: str | None = "ours"


def contenders(case: Case, peers: tuple[Path, ...]) -> dict[str, Contender]:
    """All of a case, in the order of their turns."""
    found = block_contenders(case, peers) if case.level == "block" else operator_contenders(case)
    return {one.name: one for one in found}


def pairs_bytes(case: Case, forward: int, backward: int) -> int:
    """So many queries x keys matrices, by what is measured."""
    numbers = case.batch * case.queries * case.keys
    return numbers * BYTES[case.dtype] * (backward if case.backward else forward)


def operator_contenders(case: Case) -> list[Contender]:
    """On plain tensors."""
    softmax, concatenation = case.function in SOFTMAXES, case.function == "concatenation"
    matrices = pairs_bytes(case, 2, 3)
    if not softmax:
        if concatenation and case.level == "limit":  # from the scores, as the operator takes them
            sums = _plain.concatenation_of_scores
            found = [Contender("ours", "ours", 0, of_operator(_ours.concatenation_of_scores))]
            found.append(Contender("plain_sums", "plain, a + b", matrices, of_operator(sums)))
        elif concatenation:
            found = [Contender("ours", "ours", 0, of_operator(_ours.concatenation))]
            wide = pairs_bytes(case, 2 * case.inner, 4 * case.inner)
            pairs, sums = _plain.concatenation_pairs, _plain.concatenation_sums
            found.append(Contender("plain", "plain, pairs concatenated", wide, of_operator(pairs)))
            found.append(Contender("plain_sums", "plain, a + b", matrices, of_operator(sums)))
        else:
            found = [Contender("ours", "ours", 0, of_operator(_ours.dot_product))]
            found.append(Contender("plain", "plain", matrices, of_operator(_plain.dot_product)))
        return found
    found = [Contender("ours", "ours", 0, of_operator(budgeted(None)))]
    if case.backward:
        kept = pairs_bytes(case, 1, 1)
        found.append(Contender("ours_kept", "ours, all kept", kept, of_operator(budgeted(_ours.KEEP_ALL))))
    found.append(Contender("ours_linear", "ours, nothing kept", 0, of_operator(budgeted(_ours.KEEP_NOTHING))))
    found.append(Contender("plain", "plain", matrices, of_operator(_plain.gaussian)))
    fused = case.width == case.inner  # else PyTorch takes its plain form
    found.append(Contender("sdpa", "SDPA", 0 if fused else matrices, of_operator(_plain.sdpa)))
    one = pairs_bytes(case, 1, 2)
    found.append(Contender("products", "its products alone, torch.mm", one, _products.whole, None))
    found.append(Contender("products_chunked", "the same in chunks of rows", 0, _products.chunked, None))
    found.append(Contender("products_fastest", "by the faster library", 0, _products.fastest, None))
    return found


def budgeted(memory_budget: int | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The softmaxes with that budget."""
    return lambda theta, phi, g: _ours.gaussian(theta, phi, g, memory_budget)


def of_operator(function: Callable[..., Tensor]) -> Build:
    """Call it with the leaves by name; where gaussian is not subsampled theta stands for phi, too."""

    def build(operands: Operands) -> Call:
        leaves = operands.leaves
        arguments = dict(leaves)
        if "theta" in leaves and "phi" not in leaves:
            arguments = {"theta": leaves["theta"], "phi": leaves["theta"], "g": leaves["g"]}
        return passes(lambda: function(**arguments), operands)

    return build


def passes(forward: Callable[[], Tensor], operands: Operands, also: tuple[Tensor, ...] = ()) -> Call:
    """Forward alone, or with the gradients of the leaves (and of `also`, a block's weights)."""

    @torch.no_grad()
    def only_forward() -> tuple[Tensor, ...]:
        return (forward(),)

    def forward_backward() -> tuple[Tensor, ...]:
        y = forward()
        grads = torch.autograd.grad(y, (*operands.leaves.values(), *also), operands.dy, allow_unused=True)
        return (y.detach(), *grads[: len(operands.leaves)])

    return forward_backward if operands.case.backward else only_forward


def block_contenders(case: Case, peers: tuple[Path, ...]) -> list[Contender]:
    """With the convolutions, the norm and the sum around the operation."""
    concatenation, softmax = case.function == "concatenation", case.function in SOFTMAXES
    matrices = pairs_bytes(case, 2 * case.inner, 4 * case.inner) if concatenation else pairs_bytes(case, 2, 3)
    found = [Contender("ours", "ours", 0, of_our_block())]
    if softmax:
        found.append(Contender("ours_linear", "ours, nothing kept", 0, of_our_block(_ours.KEEP_NOTHING)))
    found.append(Contender("plain", "plain", matrices, of_plain_block(None)))
    if softmax:
        fused = case.width == case.inner
        found.append(
            Contender("sdpa", "plain with SDPA", 0 if fused else matrices, of_plain_block(_plain.sdpa))
        )
    for checkout in peers:
        peer = _peers.find(checkout)
        if peer.why_not(case):
            continue
        like = "ours"
        if case.subsample and peer.subsample_at == "input":
            like = "ours_pooled_input"
            if all(one.name != like for one in found):
                build = of_our_block(subsample_at="input")
                found.append(Contender(like, "ours, keys from pooled x", 0, build, like))
        # The published concatenations hold theta, phi and both side by side before they multiply.
        needed = 2 * matrices if concatenation and not case.backward else matrices
        found.append(Contender(peer.name, peer.name, needed, of_peer(peer, checkout), like))
    return found


def of_our_block(memory_budget: int | None = None, subsample_at: str = "embedding") -> Build:
    """NonLocalBlock."""

    def build(operands: Operands) -> Call:
        block = make_block(operands.case, operands.device, memory_budget, subsample_at)
        return of_module(block, operands)

    return build


def of_plain_block(average: Callable[[Tensor, Tensor, Tensor], Tensor] | None) -> Build:
    """The plain block with the weights of ours."""

    def build(operands: Operands) -> Call:
        return of_module(_plain.PlainBlock(make_block(operands.case, operands.device), average), operands)

    return build


def of_peer(peer: _peers.Peer, checkout: Path) -> Build:
    """Another project's block with the weights of ours."""

    def build(operands: Operands) -> Call:
        block = make_block(operands.case, operands.device, subsample_at=peer.subsample_at)
        return of_module(peer.module(checkout, block), operands)

    return build


def of_module(module: torch.nn.Module, operands: Operands) -> Call:
    """Forward, and the gradients of the map and of all weights."""
    weights = tuple(module.parameters()) if operands.case.backward else ()
    return passes(lambda: module(operands.leaves["x"]), operands, weights)
