"""A video ResNet put together from finished parts: stem, stages of bottlenecks and non-local blocks, head.

    clip -> conv1 -> pool1 -> res2 -> pool2 -> res3 -> res4 -> res5 -> average -> dropout -> fc     (Table 1)

Every part works on any clip length and frame size. On a CPU the tensors stay in channels-last memory
throughout.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonlocal_nn._typing import Float
from nonlocal_nn.blocks.options import check_choice
from nonlocal_nn.blocks.squeeze_excitation import SqueezeExcitation
from nonlocal_nn.models.spec import Placement, StrideAt, VideoResNetSpec

if TYPE_CHECKING:
    from nonlocal_nn.checkpoints.report import LoadReport


class VideoStem(nn.Module):
    """conv1, its norm, ReLU and pool1.

    >>> stem = VideoStem(nn.Conv3d(3, 8, (1, 5, 5), padding=(0, 2, 2)), nn.BatchNorm3d(8), pool1=None)
    >>> stem(torch.zeros(1, 3, 4, 16, 16)).shape
    torch.Size([1, 8, 4, 16, 16])
    """

    def __init__(self, conv: nn.Conv3d, norm: nn.Module, pool1: nn.MaxPool3d | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.pool1 = pool1

    def forward(self, x: Float[Tensor, "batch channel t h w"]) -> Float[Tensor, "batch out t2 h2 w2"]:
        x = self.convolved(x)
        return x if self.pool1 is None else self.pool1(x)

    def convolved(self, x: Float[Tensor, "batch channel t h w"]) -> Float[Tensor, "batch out t2 h2 w2"]:
        """Table 1's row conv1."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3, 1x1 convolutions around an identity or a 1x1 shortcut.

    >>> block = Bottleneck(64, 16, 64, norm=nn.BatchNorm3d, stride=2, times=(3, 1))
    >>> block(torch.zeros(1, 64, 4, 8, 8)).shape
    torch.Size([1, 64, 4, 4, 4])

    Args:
        channels_in, inner, channels_out: 64-64-256 is (64, 64, 256).
        norm: builds a normalisation from a channel count.
        stride: in height and width (and on the shortcut).
        times: frames the first 1x1 and the middle 3x3 kernels span: (1, 1) for C2D, (3, 1) for I3D 3x1x1,
            (1, 3) for I3D 3x3x3.
        excitation: a `SqueezeExcitation`, of channels_out, or of channels_in where it comes first.
        placement: where it stands (Hu et al. 2018, section 6): "standard", on what the convolutions give,
            before the addition; "pre", before the convolutions; "post", after the addition and its ReLU;
            "identity", on the shortcut.
        stride_at: which convolution has the stride: the middle "3x3", or the first "1x1".
    """

    def __init__(
        self,
        channels_in: int,
        inner: int,
        channels_out: int,
        norm: Callable[[int], nn.Module],
        stride: int = 1,
        times: tuple[int, int] = (1, 1),
        excitation: SqueezeExcitation | None = None,
        placement: Placement = "standard",
        stride_at: StrideAt = "3x3",
    ) -> None:
        super().__init__()
        check_choice("placement", placement, get_args(Placement))
        check_choice("stride_at", stride_at, get_args(StrideAt))
        first, middle = times
        early, late = (stride, 1) if stride_at == "1x1" else (1, stride)
        self.conv1 = nn.Conv3d(
            channels_in,
            inner,
            (first, 1, 1),
            stride=(1, early, early),
            padding=(first // 2, 0, 0),
            bias=False,
        )
        self.norm1 = norm(inner)
        self.conv2 = nn.Conv3d(
            inner, inner, (middle, 3, 3), stride=(1, late, late), padding=(middle // 2, 1, 1), bias=False
        )
        self.norm2 = norm(inner)
        self.conv3 = nn.Conv3d(inner, channels_out, 1, bias=False)
        self.norm3 = norm(channels_out)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv3d(channels_in, channels_out, 1, stride=(1, stride, stride), bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=norm(channels_out)))
        self.excitation, self.placement = excitation, placement

    def forward(self, x: Float[Tensor, "batch channel t h w"]) -> Float[Tensor, "batch out t h2 w2"]:
        excited = None if self.excitation is None else self.placement
        y = x if excited != "pre" else self._excite(x)
        y = F.relu(self.norm1(self.conv1(y)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if excited == "identity":
            shortcut = self._excite(shortcut)
        y = self._excite(y, shortcut) if excited == "standard" else y + shortcut
        y = F.relu(y, inplace=True)
        return self._excite(y) if excited == "post" else y

    def _excite(self, u: Tensor, shortcut: Tensor | None = None) -> Tensor:
        assert self.excitation is not None
        y: Tensor = self.excitation(u, shortcut)
        return y


class Stage(nn.Module):
    """Residual blocks, some followed by a non-local block.

    Children are named in the order they run: "0", "1", "nonlocal1", "2", ...: "nonlocal1" follows block 1.
    `stage[i]` is residual block i.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], nonlocal_after: Mapping[int, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.blocks = len(blocks)
        placed = dict(nonlocal_after or {})
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)
            if index in placed:
                self.add_module(f"nonlocal{index}", placed.pop(index))
        if placed:
            raise ValueError(
                f"no residual block {sorted(placed)} to follow: the stage has {len(blocks)}, counted from 0"
            )

    def __getitem__(self, index: int) -> nn.Module:
        if not 0 <= index < self.blocks:
            raise IndexError(f"residual block {index} of a stage with {self.blocks}")
        return self.get_submodule(str(index))

    def __len__(self) -> int:
        return self.blocks

    def forward(self, x: Float[Tensor, "batch channel t h w"]) -> Float[Tensor, "batch out t h2 w2"]:
        for layer in self.children():
            x = layer(x)
        return x


class Head(nn.Module):
    """Average over every position of space and time, dropout, a linear classifier.

    >>> Head(8, 5, dropout=0.5)(torch.zeros(2, 8, 3, 7, 9)).shape
    torch.Size([2, 5])

    On a clip larger than the standard one (testing on full frames) the features of all positions are
    averaged; as the classifier is linear, that is the average of the logits of the positions, before softmax.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "batch channel t h w"]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.fc(self.dropout(x.mean(dim=(2, 3, 4))))
        return logits


class VideoResNet(nn.Module):
    """A network for clips, from its parts.

    >>> from nonlocal_nn.models.catalog import create_model
    >>> model = create_model("c2d_tiny_nl2", num_classes=4).eval()
    >>> model(torch.zeros(1, 3, 8, 48, 48)).shape
    torch.Size([1, 4])
    >>> list(model.features(torch.zeros(1, 3, 8, 48, 48)))[-1]
    'res4'

    Attributes:
        spec: the `VideoResNetSpec` it was built from; None for one assembled by hand.
        classes: the names of the classes in the order of the logits, or None.
        metadata: what else is saved with the model, such as how its clips are cut.
        load_report: what became of each tensor of the published file it was loaded from, or None.
    """

    def __init__(
        self,
        stem: VideoStem,
        stages: Mapping[str, Stage],
        head: Head,
        *,
        pool2: nn.MaxPool3d | None = None,
        spec: VideoResNetSpec | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stage_names = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.pool2 = pool2
        self.head = head
        self.spec = spec
        self.classes: tuple[str, ...] | None = None
        self.metadata: dict[str, str] = {}
        self.load_report: LoadReport | None = None

    def forward(self, x: Float[Tensor, "batch 3 t h w"]) -> Float[Tensor, "batch classes"]:
        """Logits of each clip (batch, 3, frames, height, width)."""
        for _, row in self._rows(x):
            x = row  # the row before is dropped here, so that inference holds one at a time
        logits: Tensor = self.head(x)
        return logits

    def features(self, x: Float[Tensor, "batch 3 t h w"]) -> dict[str, Tensor]:
        """The outputs of Table 1's rows in order: conv1, pool1, res2, pool2, res3, ...; no absent pools."""
        return dict(self._rows(x))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> VideoResNet:
        """The network of a repository on the Hugging Face hub, or of a folder from `save_pretrained`.

        In eval mode. Needs huggingface_hub: pip install 'nonlocal-nn[hub]'.
        """
        model: VideoResNet = _hub().from_pretrained(
            cls,
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and a model card (README.md) into a folder."""
        _hub().save_pretrained(self, folder)

    def push_to_hub(
        self,
        name: str,
        *,
        message: str = "Add a nonlocal_nn network",
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the network and its model card to the Hugging Face hub; returns the commit's address."""
        return str(_hub().push_to_hub(self, name, message=message, private=private, token=token))

    def _rows(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        if x.dim() != 5 or x.shape[1] != self.stem.conv.in_channels:
            raise ValueError(
                f"a clip must be (batch, {self.stem.conv.in_channels}, frames, height, width), "
                f"got {tuple(x.shape)}"
            )
        if (
            x.device.type == "cpu"
        ):  # measured: a training step of c2d_tiny_nl2 takes two thirds of the time so
            x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.stem.convolved(x)
        yield "conv1", x
        if self.stem.pool1 is not None:
            x = self.stem.pool1(x)
            yield "pool1", x
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
            yield name, x
            if name == "res2" and self.pool2 is not None:
                x = self.pool2(x)
                yield "pool2", x


def _hub() -> ModuleType:
    """Looked up by name when a method is called: that module imports this one, which must not import it."""
    return importlib.import_module("nonlocal_nn.checkpoints.hub")
