"""ResNet-20 for CIFAR with parameter-free shortcuts, under the names of the public trained weights."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2)))


class CifarResNet(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (channels_in, channels) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
            layers = [
                Block(channels_in if i == 0 else channels, channels, 2 if stage > 1 and i == 0 else 1)
                for i in range(blocks)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def trained_weights(shared_data: Path) -> dict[str, Tensor]:
    saved = torch.load(
        shared_data / "weights/cifar_resnet/resnet20-12fca82f.th", map_location="cpu", weights_only=True
    )
    return {key.removeprefix("module."): tensor for key, tensor in saved["state_dict"].items()}


def cifar_images(path: Path, each: int) -> tuple[Tensor, Tensor]:
    """The first `each` images of the ten classes, normalised, and their labels."""
    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for label, kind in enumerate(classes):
            for name in [name for name in names if name.split("/")[1] == kind][:each]:
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    images.append(torch.from_numpy(np.array(image.convert("RGB"))).movedim(2, 0))
                labels.append(label)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.stack(images).float() / 255
    return (pixels - mean[:, None, None]) / std[:, None, None], torch.tensor(labels)
