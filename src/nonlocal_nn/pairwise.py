"""The table of pairwise functions f with their C(x), one entry each, that everything else reads.

>>> [function.name for function in pairwise_functions()][:4]
['embedded_gaussian', 'gaussian', 'dot_product', 'concatenation']
>>> get_pairwise("dot_product").equation
'1/N sum_j ({product}) g_j'

A function of your own is an entry more. Its affinity is enough (docs/extending.md shows one in use):

>>> import torch, nonlocal_nn as nl
>>> def affinity(theta, phi):  # rows of f / C
...     return (-torch.cdist(theta, phi).square()).softmax(dim=2)
>>> euclidean = PairwiseFunction("euclidean", affinity, sums_to_one=True)
>>> block = nl.NonLocalBlock(8, pairwise=euclidean)
>>> block(torch.randn(1, 8, 2, 4, 4)).shape
torch.Size([1, 8, 2, 4, 4])

No torch here before a function is called: `nonlocal --help` reads the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PairwiseFunction:
    """f and C of Eq. 1, y_i = 1 / C(x) sum_j f(x_i, x_j) g(x_j).

    >>> f = PairwiseFunction("rectified", lambda theta, phi: (theta @ phi.mT).relu() / phi.shape[1])
    >>> f.label, f.signed
    ('rectified', True)

    The tensors that its functions get are theta (batch, queries, d), phi (batch, keys, d) and g (batch, keys,
    channels), in float32 or float64 where the average is made from `affinity`.

    Args:
        name: in options, files and messages; letters, digits and underscores.
        affinity: (theta, phi) -> the rows f / C, (batch, queries, keys). Row i may depend on theta_i and all
            of phi alone, as rows are made some at a time. Built of differentiable torch operations; without
            parameters of its own, which no block would train.
        equation: of y_i, for `print(block)`; "{product}" stands for theta_i . phi_j, with its factor.
        label: for captions; None: the name.
        embeds: theta and phi are learned embeddings of x; False: x itself is compared.
        product: f depends on theta_i . phi_j alone, so that `scale=True` of a block has a meaning:
            `affinity`, `average` and `sharded` then take the factor as an argument `scale`.
        scores: f depends on a_i + b_j = w_f . [theta_i, phi_j] alone. The block learns w_f, and the functions
            take a (batch, queries) and b (batch, keys) in place of theta and phi.
        signed: f can be negative. True where nobody knows.
        sums_to_one: C is the sum of f over j.
        average: (theta, phi, g, memory_budget=...) -> y, a faster form of the sum. None: made from
            `affinity`, a chunk of rows at a time, in memory linear in the number of positions.
        sharded: (theta, phi, g, group=..., memory_budget=...) -> y over the keys of all processes. None: a
            block with this function cannot be split over processes, and says so.

    Raises:
        ValueError: for a name or a combination that cannot be.
    """

    name: str
    affinity: Callable[..., Tensor]
    equation: str = "sum_j f(theta_i, phi_j) / C g_j"
    label: str = ""
    embeds: bool = True
    product: bool = False
    scores: bool = False
    signed: bool = True
    sums_to_one: bool = False
    average: Callable[..., Tensor] | None = None
    sharded: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a pairwise function needs a name of letters, digits and _, not {self.name!r}")
        if not callable(self.affinity):
            raise ValueError(f"affinity of {self.name!r} must be a function, got {self.affinity!r}")
        if any(True for _ in getattr(self.affinity, "parameters", tuple)()):
            raise ValueError(
                f"affinity of {self.name!r} has parameters of its own, which no block would train; "
                "make it a function of theta and phi alone"
            )
        if self.scores and (self.product or not self.embeds):
            raise ValueError(f"{self.name!r}: scores are of learned theta and phi, and not of their product")
        if not self.label:
            object.__setattr__(self, "label", self.name)

    def register(self) -> PairwiseFunction:
        """Make the name known to model specs, options and files, in this process; returns the function.

        >>> half = PairwiseFunction("half", lambda theta, phi: (theta @ phi.mT) / 2)
        >>> half.register() is get_pairwise("half")
        True
        >>> _ = _TABLE.pop("half")

        Raises:
            ValueError: another function has the name.
        """
        if _TABLE.setdefault(self.name, self) is not self:
            raise ValueError(f"a pairwise function {self.name!r} is there already; choose another name")
        return self

    def rows(self, theta: Tensor, phi: Tensor, scale: float = 1.0) -> Tensor:
        """F / C of these queries, (batch, queries, keys)."""
        return self.affinity(theta, phi, scale) if self.product else self.affinity(theta, phi)

    def averaged(
        self, theta: Tensor, phi: Tensor, g: Tensor, scale: float = 1.0, memory_budget: int | None = None
    ) -> Tensor:
        """y_i over all keys, (batch, queries, channels)."""
        options: dict[str, Any] = {"scale": scale} if self.product else {}
        if self.average is not None:
            return self.average(theta, phi, g, memory_budget=memory_budget, **options)
        from nonlocal_nn.ops.rows import average_by_rows

        return average_by_rows(lambda t, p: self.rows(t, p, scale), theta, phi, g, memory_budget)

    def averaged_over(
        self,
        group: dist.ProcessGroup,
        theta: Tensor,
        phi: Tensor,
        g: Tensor,
        scale: float = 1.0,
        memory_budget: int | None = None,
    ) -> Tensor:
        """y_i of this process's queries over the keys of all processes of the group.

        Raises:
            ValueError: the function has no such form.
        """
        self.check_sharded()
        assert self.sharded is not None
        options: dict[str, Any] = {"scale": scale} if self.product else {}
        return self.sharded(theta, phi, g, group=group, memory_budget=memory_budget, **options)

    def check_sharded(self) -> None:
        """Raises ValueError where the function has no form split over processes."""
        if self.sharded is None:
            raise ValueError(
                f"pairwise={self.name!r} has no form that is split over processes; give its PairwiseFunction "
                "one (sharded=...), or give each process the whole map"
            )

    def multiply_adds(self, queries: int, keys: int, d: int, channels: int) -> tuple[int, int]:
        """Of f and of sum_j f g_j as Eq. 1 is written: (for the positions, for all pairs).

        Scores are a number for each query and one for each key, d multiply-adds each, and none for a pair.
        What a function of one's own does with theta_i and phi_j is taken for a product of d numbers.
        """
        if self.scores:
            return (queries + keys) * d, queries * keys * channels
        return 0, queries * keys * (d + channels)

    def __deepcopy__(self, memo: dict[int, Any]) -> PairwiseFunction:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        if _TABLE.get(self.name) is self:
            return get_pairwise, (self.name,)
        return super().__reduce__()


def get_pairwise(function: str | PairwiseFunction) -> PairwiseFunction:
    """The entry of a name; a `PairwiseFunction` is returned as it is.

    >>> get_pairwise("gausian")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: pairwise='gausian' does not exist; choose one of 'embedded_gaussian', 'gaussian', ...

    Raises:
        ValueError: no function has the name.
    """
    if isinstance(function, PairwiseFunction):
        return function
    if not isinstance(function, str) or function not in _TABLE:
        raise ValueError(
            f"pairwise={function!r} does not exist; choose one of {', '.join(map(repr, _TABLE))}, or give a "
            "PairwiseFunction of your own"
        )
    return _TABLE[function]


def pairwise_functions() -> tuple[PairwiseFunction, ...]:
    """All that have a name here, those of the paper first."""
    return tuple(_TABLE.values())


# --- the functions of the paper; torch is imported when one is called ---


def _gaussian_affinity(theta: Tensor, phi: Tensor, scale: float) -> Tensor:
    from nonlocal_nn.ops.equation import gaussian_affinity

    return gaussian_affinity(theta, phi, scale)


def _gaussian(theta: Tensor, phi: Tensor, g: Tensor, scale: float, memory_budget: int | None) -> Tensor:
    from nonlocal_nn.ops.softmax import gaussian

    return gaussian(theta, phi, g, scale, memory_budget=memory_budget)


def _gaussian_sharded(
    theta: Tensor, phi: Tensor, g: Tensor, scale: float, group: Any, memory_budget: int | None
) -> Tensor:
    from nonlocal_nn.distributed.softmax import gaussian

    return gaussian(theta, phi, g, scale, group, memory_budget=memory_budget)


def _dot_product_affinity(theta: Tensor, phi: Tensor, scale: float) -> Tensor:
    from nonlocal_nn.ops.equation import dot_product_affinity

    return dot_product_affinity(theta, phi, scale)


def _dot_product(theta: Tensor, phi: Tensor, g: Tensor, scale: float, memory_budget: int | None) -> Tensor:  # noqa: ARG001
    from nonlocal_nn.ops.dot_product import dot_product

    return dot_product(theta * scale if scale != 1 else theta, phi, g)


def _dot_product_sharded(
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    scale: float,
    group: Any,
    memory_budget: int | None,  # noqa: ARG001 - it needs a matrix d x channels only
) -> Tensor:
    from nonlocal_nn.distributed.dot_product import dot_product

    return dot_product(theta * scale if scale != 1 else theta, phi, g, group)


def _concatenation_affinity(a: Tensor, b: Tensor) -> Tensor:
    from nonlocal_nn.ops.equation import concatenation_affinity

    return concatenation_affinity(a, b)


def _concatenation(a: Tensor, b: Tensor, g: Tensor, memory_budget: int | None) -> Tensor:  # noqa: ARG001
    from nonlocal_nn.ops.concatenation import concatenation

    return concatenation(a, b, g)


def _concatenation_sharded(a: Tensor, b: Tensor, g: Tensor, group: Any, memory_budget: int | None) -> Tensor:  # noqa: ARG001
    from nonlocal_nn.distributed.concatenation import concatenation

    return concatenation(a, b, g, group)


_TABLE: dict[str, PairwiseFunction] = {
    function.name: function
    for function in (
        PairwiseFunction(
            "embedded_gaussian",
            _gaussian_affinity,
            equation="sum_j softmax_j({product}) g_j",
            label="embedded Gaussian",
            product=True,
            signed=False,
            sums_to_one=True,
            average=_gaussian,
            sharded=_gaussian_sharded,
        ),
        PairwiseFunction(
            "gaussian",
            _gaussian_affinity,
            equation="sum_j softmax_j({product}) g_j",
            label="Gaussian",
            embeds=False,
            product=True,
            signed=False,
            sums_to_one=True,
            average=_gaussian,
            sharded=_gaussian_sharded,
        ),
        PairwiseFunction(
            "dot_product",
            _dot_product_affinity,
            equation="1/N sum_j ({product}) g_j",
            label="dot product",
            product=True,
            signed=True,
            average=_dot_product,
            sharded=_dot_product_sharded,
        ),
        PairwiseFunction(
            "concatenation",
            _concatenation_affinity,
            equation="1/N sum_j ReLU(w_f . [theta_i, phi_j]) g_j",
            label="concatenation",
            scores=True,
            signed=False,
            average=_concatenation,
            sharded=_concatenation_sharded,
        ),
    )
}
