"""Resizing, cropping, mirroring and normalising, each against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from nonlocal_nn.data.decode import Clip
from nonlocal_nn.data.sampling import CropBox, random_crop, sample_generator
from nonlocal_nn.data.transforms import MEAN, STD, TrainTransform, ViewTransform, normalize


def _clip(frames: int = 4, height: int = 64, width: int = 90, seed: int = 0) -> Clip:
    """Smooth random pictures: bilinear resizing of noise would compare rounding only."""
    coarse = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (frames, 3, 8, 11)).astype(np.float32)
    )
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear")
    pixels = smooth.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return Clip(pixels, np.arange(frames), np.arange(frames) / 25, "a.mp4")


def _reference(clip: Clip, box: CropBox, height: int, width: int) -> torch.Tensor:
    """Cut and resize in float32: (3, frames, height, width), 0 .. 255."""
    cut = clip.frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
    planes = torch.from_numpy(np.ascontiguousarray(cut)).permute(0, 3, 1, 2).float()
    return functional.interpolate(planes, (height, width), mode="bilinear", antialias=True).transpose(0, 1)


def _assert_same_levels(video: torch.Tensor, reference: torch.Tensor) -> None:
    """Whole levels are resized along one axis, rounded, then along the other, rounded: half a level each.

    The 5 % beyond are the 16-bit weights of torch's uint8 kernel. Cutting off instead of rounding would
    darken by half a level for each axis.
    """
    error = video.float() - reference
    assert error.abs().max() <= 2 * 0.5 * 1.05
    assert abs(error.mean()) < 0.25


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalize_is_the_formula(dtype: torch.dtype) -> None:
    video = torch.randint(0, 256, (2, 4, 5, 6, 3)).to(dtype).permute(0, 4, 1, 2, 3)
    before = video.clone()
    expected = (video.double() - 114.75) / 57.375
    out = normalize(video)
    assert (MEAN, STD) == (114.75, 57.375)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert torch.allclose(out.double(), expected, atol=1e-6)
    assert torch.equal(video, before)
    mean, std = [1.0, 20.0, 120.0], [2.0, 3.0, 50.0]
    out = normalize(video[0], mean, std)
    for channel in range(3):
        wanted = (video[0, channel].double() - mean[channel]) / std[channel]
        assert torch.allclose(out[channel].double(), wanted, atol=1e-5)


def test_normalize_refuses_what_is_no_video() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        normalize(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="2 means or deviations for 3 channels"):
        normalize(torch.zeros(3, 2, 8, 8), mean=[1.0, 2.0])


@pytest.mark.parametrize("index", range(6))
def test_training_crop_is_the_drawn_square_resized(index: int) -> None:
    clip = _clip()
    transform = TrainTransform(crop=48, jitter=(50, 80), flip=0.0)
    video = transform(clip, sample_generator(0, 0, index))
    box = random_crop(64, 90, 48, (50, 80), sample_generator(0, 0, index))
    assert video.dtype == torch.uint8
    assert video.shape == (3, 4, 48, 48)
    assert video.permute(1, 2, 3, 0).is_contiguous()  # as decoded: nothing was turned around in memory
    _assert_same_levels(video, _reference(clip, box, 48, 48))


def test_mirroring_is_exact_and_as_frequent_as_asked() -> None:
    clip = _clip(frames=2)
    mirrored = 0
    for index in range(200):
        plain = TrainTransform(crop=16, jitter=(20, 24), flip=0.0)(clip, sample_generator(0, 0, index))
        always = TrainTransform(crop=16, jitter=(20, 24), flip=1.0)(clip, sample_generator(0, 0, index))
        some = TrainTransform(crop=16, jitter=(20, 24), flip=0.5)(clip, sample_generator(0, 0, index))
        assert torch.equal(always, plain.flip(-1))
        assert torch.equal(some, always) or torch.equal(some, plain)
        mirrored += torch.equal(some, always)
    assert 70 < mirrored < 130


def test_a_crop_as_large_as_the_frame_keeps_its_pixels() -> None:
    clip = _clip(height=48, width=48)
    video = TrainTransform(crop=48, jitter=(48, 48), flip=0.0)(clip, sample_generator(0, 0, 0))
    assert np.array_equal(video.permute(1, 2, 3, 0).numpy(), clip.frames)


def test_frames_smaller_than_the_crop_are_enlarged() -> None:
    clip = _clip(height=30, width=40)
    assert TrainTransform()(clip, sample_generator(0, 0, 0)).shape == (3, 4, 224, 224)
    frames, boxes = ViewTransform()(clip)
    assert frames.shape == (3, 4, 256, 341)
    assert len(boxes) == 3


@pytest.mark.parametrize(("height", "width"), [(64, 90), (90, 64), (64, 64)])
def test_views_are_crops_of_the_frame_resized_once(height: int, width: int) -> None:
    clip = _clip(height=height, width=width)
    frames, boxes = ViewTransform(short_side=56, crop=48, crops=3)(clip)
    tall = frames.shape[-2], frames.shape[-1]
    assert min(tall) == 56
    _assert_same_levels(frames, _reference(clip, CropBox(0, 0, height, width), *tall))
    assert [(box.height, box.width) for box in boxes] == [(48, 48)] * 3
    assert len(set(boxes)) == 3
    _, (centre,) = ViewTransform(short_side=56, crop=48, crops=1)(clip)
    assert centre == boxes[1]


def test_resizing_frame_by_frame_is_the_same() -> None:
    clip = _clip()
    transform = ViewTransform(short_side=56, crop=48, crops=3)
    turned = clip.frames[:, :, ::-1]  # as np.rot90 gives it: another order in memory
    singly = np.stack([transform.resize(image) for image in turned])
    together, _ = transform(Clip(np.ascontiguousarray(turned), clip.indices, clip.pts_seconds, clip.path))
    assert np.array_equal(singly, together.permute(1, 2, 3, 0).numpy())
    again, _ = transform(Clip(singly, clip.indices, clip.pts_seconds, clip.path))
    assert torch.equal(again, together)  # resizing what has its size changes nothing


def test_the_full_frame_is_one_view() -> None:
    frames, boxes = ViewTransform(short_side=56, crop=None, crops=1)(_clip())
    assert boxes == (CropBox(0, 0, 56, frames.shape[-1]),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainTransform(crop=224, jitter=(200, 320)), r"crop 224 and jitter \(200, 320\)"),
        (lambda: TrainTransform(jitter=(320, 256)), r"jitter \(320, 256\)"),
        (lambda: TrainTransform(flip=1.5), "flip is a probability, not 1.5"),
        (lambda: ViewTransform(short_side=0), "short_side must be 1 or more, not 0"),
        (lambda: ViewTransform(short_side=200, crop=224), "crop of 224 does not fit"),
        (lambda: ViewTransform(crops=2), "not 2"),
        (lambda: ViewTransform(crop=None, crops=3), "crops must be 1, not 3"),
    ],
)
def test_impossible_sizes_are_refused_when_built(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
