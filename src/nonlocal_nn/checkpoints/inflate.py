"""Weights of an image ResNet become those of a video ResNet (section 4, "Inflated 3D ConvNet").

A kernel k x k becomes t x k x k: t copies, each divided by t. A video of one repeated frame then gives the
image network's features, because the t products add up to the one of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from nonlocal_nn.checkpoints.layouts import IMAGE
from nonlocal_nn.checkpoints.report import LoadReport


def inflate_kernel(kernel: Tensor, times: int) -> Tensor:
    """(out, in, height, width) -> (out, in, times, height, width): copies of the kernel that add up to it.

    >>> import torch
    >>> inflate_kernel(torch.ones(1, 1, 1, 2), 4).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
    """
    return (kernel / times).unsqueeze(2).repeat(1, 1, times, 1, 1)


def inflate_to(tensor: Tensor, own: Tensor) -> Tensor:
    """The kernel inflated to the shape of `own` where it has no time axis or one frame; else as it is.

    >>> import torch
    >>> inflate_to(torch.ones(1, 1, 1, 2), torch.empty(1, 1, 4, 1, 2)).shape
    torch.Size([1, 1, 4, 1, 2])
    """
    if tensor.dim() == 5 and own.dim() == 5 and tensor.shape[2] == 1 < own.shape[2]:
        tensor = tensor.squeeze(2)  # of a C2D
    if tensor.dim() == 4 and own.dim() == 5 and tensor.shape == own.shape[:2] + own.shape[3:]:
        return inflate_kernel(tensor, own.shape[2])
    return tensor


def inflate_state_dict(
    image_state: Mapping[str, Tensor],
    video_state: Mapping[str, Tensor],
    to_ours: Callable[[str], str | None] = IMAGE.to_ours,
) -> tuple[dict[str, Tensor], LoadReport]:
    """A full state dict of the video network: the image network's weights where it has them, else its own.

    >>> import torch
    >>> image = {"conv1.weight": torch.ones(8, 3, 7, 7), "fc.bias": torch.ones(1000)}
    >>> video = {"stem.conv.weight": torch.zeros(8, 3, 5, 7, 7), "head.fc.bias": torch.zeros(4)}
    >>> state, report = inflate_state_dict(image, video)
    >>> print(report)
    1 tensors placed
    other shape, left as they were: head.fc.bias (file 1000, network 4)

    The report names what was not placed: `missing`, tensors of non-local blocks (and of the classifier if the
    image network has none); `mismatched`, a classifier for other classes. Neither argument is changed.

    Args:
        image_state: of a torchvision ResNet with bottlenecks (50, 101), or any with its names.
        video_state: of the video network, whose names and shapes decide.
        to_ours: a name here for each name of the image network, None for one that is nothing here.

    Raises:
        ValueError: the image network is another one (depth, width, names); the text says what does not fit.
    """
    wanted = dict(video_state)
    placed: dict[str, Tensor] = {}
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    unused: list[str] = []
    for image_name, tensor in image_state.items():
        name = to_ours(image_name)
        if name is None or name not in wanted:
            unused.append(image_name)
            continue
        own = wanted[name]
        tensor = inflate_to(tensor, own)
        if tensor.shape != own.shape:
            mismatched[name] = (tuple(tensor.shape), tuple(own.shape))
        else:
            placed[name] = tensor.to(own.dtype)
    report = LoadReport(
        placed=tuple(name for name in wanted if name in placed),
        missing=tuple(name for name in wanted if name not in placed and name not in mismatched),
        unused=tuple(unused),
        mismatched=mismatched,
    )
    _check_same_network(report, to_ours)
    return {name: placed.get(name, tensor).clone() for name, tensor in wanted.items()}, report


def _check_same_network(report: LoadReport, to_ours: Callable[[str], str | None]) -> None:
    """All but classifier, non-local blocks and step counters must have found its place."""
    missing = [name for name in report.missing if not _may_differ(name)]
    unused = [name for name in report.unused if not _may_differ(to_ours(name) or name)]
    shapes = [
        f"{name} {theirs} for {ours}"
        for name, (theirs, ours) in report.mismatched.items()
        if not _may_differ(name)
    ]
    if not (missing or unused or shapes):
        return
    problems = [
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (
            ("the image network lacks", missing),
            ("the video network lacks", unused),
            ("other shapes", shapes),
        )
        if names
    ]
    raise ValueError(
        "these image weights are not those of this network's ResNet (a ResNet-50 goes into r50, a ResNet-101 "
        f"into r101, names as torchvision's); {'; '.join(problems)}"
    )


def _may_differ(name: str) -> bool:
    classifier = name.startswith("head.fc.") or name.rpartition(".")[0] == "fc"
    return classifier or ".nonlocal" in name or name.endswith(".num_batches_tracked")
