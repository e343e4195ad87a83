"""Non-local means as the gaussian non-local operation, and a block that starts as that and learns.

A weight of non-local means is exp(-d2 / n h^2), where sigma is 0, with d2 the squared distance of two patches
a_i and a_j of n values: a_i . a_i - 2 a_i . a_j + a_j . a_j. What depends on i alone cancels in w / C. So it
is a gaussian non-local operation (Eq. 2) with one more feature,

    theta_i = (2 a_i / n h^2, 1),    phi_j = (a_j, -a_j . a_j / n h^2),    g = identity

>>> import torch, nonlocal_nn as nl
>>> x = torch.rand(1, 1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
>>> block = NonLocalMeansBlock(1, patch_size=3, h=0.2).double()
>>> expected = nl.denoise_nl_means(x, 3, 9, 0.2, batch_dims=1, channel_axis=1)
>>> torch.allclose(block(x), expected, atol=1e-6)
True
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nonlocal_nn._typing import Float
from nonlocal_nn.ops.softmax import gaussian


def patch_theta_phi(
    theta: Float[Tensor, "batch query d"], phi: Float[Tensor, "batch key d"], h: Tensor
) -> tuple[Tensor, Tensor]:
    """Features whose dot products are minus the squared distances over d h^2, up to what a softmax cancels.

    >>> a, h = torch.rand(1, 5, 3), torch.tensor(0.5)
    >>> theta, phi = patch_theta_phi(a, a, h)
    >>> weights = torch.softmax(-torch.cdist(a, a) ** 2 / (3 * h**2), dim=2)
    >>> torch.allclose(torch.softmax(theta @ phi.mT, dim=2), weights, atol=1e-5)
    True
    """
    # Distances do not change when the same is taken from both, and small numbers leave small errors.
    middle = phi.mean(dim=1, keepdim=True).detach()
    theta, phi = theta - middle, phi - middle
    strength = 1 / (phi.shape[2] * h**2)
    return (
        torch.cat((2 * strength * theta, torch.ones_like(theta[..., :1])), dim=2),
        torch.cat((phi, -strength * phi.square().sum(dim=2, keepdim=True)), dim=2),
    )


class NonLocalMeansBlock(nn.Module):
    """Every pixel becomes a mean of all pixels, by how alike learned features of their patches are.

    As it starts, the features are the pixels of the patch, and it is `nl.denoise_nl_means` with a
    `patch_distance` that reaches everywhere. theta and phi (convolutions, as in Sec. 3.3) and h learn.
    Memory is linear in the number of positions, forward and backward.

    Attributes:
        theta, phi: patches of queries and keys: weights of convolutions, (channels patch_size^2, channels,
            patch_size, patch_size).
        log_h: logarithm of h.

    Args:
        channels: of the picture.
        patch_size: odd; the edge is a mirror, so the picture must be larger than half of it.
        h: strength, in the units of the picture.

    Raises:
        ValueError: options that cannot be, or a picture of other channels or too small.
    """

    def __init__(self, channels: int, patch_size: int = 7, h: float = 0.1) -> None:
        super().__init__()
        if channels < 1 or patch_size < 1 or patch_size % 2 == 0 or not h > 0:
            raise ValueError(
                f"channels, patch_size, h = {channels}, {patch_size}, {h}: channels 1 or more, an odd "
                "patch_size, h above 0"
            )
        self.channels, self.patch_size = channels, patch_size
        values = channels * patch_size**2
        pick = torch.eye(values).reshape(values, channels, patch_size, patch_size)
        self.theta = nn.Parameter(pick.clone())
        self.phi = nn.Parameter(pick.clone())
        self.log_h = nn.Parameter(torch.tensor(math.log(h)))

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """The mean of all pixels for each pixel."""
        edge = self.patch_size // 2
        if x.shape[1] != self.channels or min(x.shape[2:]) <= edge:
            raise ValueError(
                f"a picture of shape {tuple(x.shape)}: this block takes {self.channels} channels and more "
                f"than {edge} pixels along each axis"
            )
        wide = nn.functional.pad(x, (edge,) * 4, mode="reflect")
        theta, phi = (nn.functional.conv2d(wide, weight).flatten(2).mT for weight in (self.theta, self.phi))
        y = gaussian(*patch_theta_phi(theta, phi, self.log_h.exp()), x.flatten(2).mT)
        return y.mT.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{self.channels}, patch_size={self.patch_size}, h={float(self.log_h.exp()):.3g}"
