"""Scores over views against the plain formula, and what a test counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nonlocal_nn.data.dataset import Skipped, ViewSample
from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.transforms import MEAN, STD, normalize
from nonlocal_nn.evaluation.views import Scoring, evaluate, score_dataset, score_video, score_views

MakeSample = Callable[..., ViewSample]  # the fixture make_sample


class TinyNet(nn.Module):
    """A convolution, batch norm, dropout: all whose mode matters; `calls` notes the sizes of the batches."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3)
        self.norm = nn.BatchNorm3d(8)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)
        nn.init.normal_(
            self.fc.weight, std=8
        )  # views that differ enough for their order of averaging to show
        self.calls: list[int] = []

    def forward(self, views: Tensor) -> Tensor:
        self.calls.append(len(views))
        features: Tensor = self.norm(self.conv(views)).relu().mean((2, 3, 4))
        out: Tensor = self.fc(self.dropout(features))
        return out


def constant(logits: Tensor) -> nn.Module:
    class Constant(nn.Module):
        def forward(self, views: Tensor) -> Tensor:
            return logits.expand(len(views), -1)

    return Constant()


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_the_mean_of_probabilities(make_sample: MakeSample, multi_label: bool) -> None:
    model, sample = TinyNet().eval(), make_sample()
    with torch.no_grad():
        logits = model(normalize(sample.views, MEAN, STD)).double()
    expected = (logits.sigmoid() if multi_label else logits.softmax(1)).mean(0)
    scores = score_video(model, sample, Scoring(multi_label=multi_label))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    # it is not the softmax of the mean logits
    other = logits.mean(0).sigmoid() if multi_label else logits.mean(0).softmax(0)
    assert (scores - other).abs().max() > 1e-4


def test_batches_are_bounded_and_change_nothing(make_sample: MakeSample) -> None:
    model, sample = TinyNet(), make_sample(clips=3)  # 9 views
    together = score_views(model, sample, Scoring(views_per_batch=30))
    parts = score_views(model, sample, Scoring(views_per_batch=4))
    assert model.calls == [9, 4, 4, 1]
    torch.testing.assert_close(parts, together, rtol=0, atol=1e-6)


def test_the_views_order_does_not_matter_to_the_video(make_sample: MakeSample) -> None:
    model, sample = TinyNet(), make_sample(clips=3)
    turned = sample._replace(clips=sample.clips.flip(0), boxes=sample.boxes[::-1])
    torch.testing.assert_close(score_video(model, turned), score_video(model, sample), rtol=0, atol=1e-7)


def test_mean_and_std_are_those_given(make_sample: MakeSample) -> None:
    model, sample = TinyNet().eval(), make_sample()
    with torch.no_grad():
        expected = model(normalize(sample.views, 0.0, 255.0)).double().softmax(1)
    scores = score_views(model, sample, Scoring(mean=0.0, std=255.0))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(scores, score_views(model, sample))


def test_the_model_is_tested_in_testing_mode_and_put_back(make_sample: MakeSample) -> None:
    model = TinyNet().train()
    model.norm.eval()  # frozen by its owner
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = score_video(model, make_sample()), score_video(model, make_sample())
    assert torch.equal(first, second)  # no dropout
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)


def test_the_mode_is_put_back_after_an_error(make_sample: MakeSample) -> None:
    class Failing(TinyNet):
        def forward(self, views: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Failing().train()
    with pytest.raises(RuntimeError):
        score_video(model, make_sample())
    assert model.training
    assert model.norm.training


def test_half_precision_is_near_and_used(make_sample: MakeSample) -> None:
    seen: list[torch.dtype] = []

    class Noting(TinyNet):
        def forward(self, views: Tensor) -> Tensor:
            out = super().forward(views)
            seen.append(out.dtype)
            return out

    model, sample = Noting(), make_sample()
    exact, narrow = score_video(model, sample), score_video(model, sample, Scoring(precision="bf16-mixed"))
    assert seen == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(narrow, exact, rtol=0, atol=2e-2)


def test_evaluate_counts_views_and_videos(make_sample: MakeSample) -> None:
    model = TinyNet()
    videos: list[ViewSample | Skipped] = [make_sample(index=i, label=i % 7) for i in range(10)]
    videos[4] = Skipped(4, Problem("four.mp4", "is empty"))
    result = evaluate(model, videos, workers=0)

    each = {v.index: score_views(model, v).numpy() for v in videos if isinstance(v, ViewSample)}
    views_right = [view.argmax() == i % 7 for i, views in each.items() for view in views]
    assert result.clip_top1 == pytest.approx(100 * np.mean(views_right))
    video_right = [views.mean(0).argmax() == i % 7 for i, views in each.items()]
    assert result.video_top1 == pytest.approx(100 * np.mean(video_right))
    in_five = [i % 7 in np.argsort(-views.mean(0))[:5] for i, views in each.items()]
    assert result.video_top5 == pytest.approx(100 * np.mean(in_five))
    per_class = [
        np.mean([r for r, i in zip(video_right, each, strict=True) if i % 7 == c]) for c in (0, 1, 2, 3, 5, 6)
    ]
    assert result.mean_class == pytest.approx(100 * np.mean(per_class))
    assert result.classes_left_out == (4,)  # the only video of class 4 was the broken one
    assert (result.videos, result.views, result.map) == (9, 54, None)
    assert result.skipped == (Problem("four.mp4", "is empty"),)
    assert result.indices == (0, 1, 2, 3, 5, 6, 7, 8, 9)


def test_several_labels_give_map_alone(make_sample: MakeSample) -> None:
    targets = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0]])
    videos = [make_sample(index=i, label=row) for i, row in enumerate(targets)]

    class BrightFirst(nn.Module):
        def forward(self, views: Tensor) -> Tensor:
            return torch.stack([views.mean((1, 2, 3, 4)) * sign for sign in (1.0, -1.0, 0.0)], 1)

    result = evaluate(BrightFirst(), videos, Scoring(multi_label=True), workers=0)
    from sklearn.metrics import average_precision_score

    expected = np.mean([average_precision_score(targets[:, c], result.scores[:, c]) for c in (0, 1)])
    assert result.map == pytest.approx(100 * expected)
    assert result.classes_left_out == (2,)
    assert (result.clip_top1, result.video_top1, result.video_top5, result.mean_class) == (None,) * 4
    assert result.labels == ((0,), (0, 1), ())


def test_few_classes_have_no_top5(make_sample: MakeSample) -> None:
    assert evaluate(TinyNet(classes=5), [make_sample()], workers=0).video_top5 is None
    assert evaluate(TinyNet(classes=6), [make_sample()], workers=0).video_top5 is not None


def test_worker_processes_change_nothing(make_sample: MakeSample) -> None:
    videos = [make_sample(index=i, label=i % 7) for i in range(5)]
    videos.insert(2, Skipped(2, Problem("two.mp4", "is empty")))
    model = TinyNet()
    one, many = evaluate(model, videos, workers=0), evaluate(model, videos, workers=2)
    assert one == many
    assert np.array_equal(one.scores, many.scores)


def test_scores_come_one_video_at_a_time(make_sample: MakeSample) -> None:
    asked: list[int] = []

    class Source:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> ViewSample:
            asked.append(index)
            return make_sample(index=index)

    scored = score_dataset(TinyNet(), Source(), workers=0)
    next(scored)
    assert asked == [0]


@pytest.mark.parametrize(
    ("label", "classes", "multi_label", "said"),
    [
        (7, 7, False, r"label 7.*7 classes \(0 to 6\)"),
        ((1, 2), 7, False, "2 labels"),
        ((), 7, False, "0 labels"),
    ],
)
def test_refuses_labels(
    make_sample: MakeSample, label: int, classes: int, multi_label: bool, said: str
) -> None:
    label_tensor = torch.tensor(label, dtype=torch.int64)
    with pytest.raises(ValueError, match=said):
        evaluate(
            TinyNet(classes), [make_sample(label=label_tensor)], Scoring(multi_label=multi_label), workers=0
        )


def test_nothing_readable_is_an_error_with_the_first_reason() -> None:
    with pytest.raises(ValueError, match=r"none of the 1 videos.*a.mp4: is empty"):
        evaluate(TinyNet(), [Skipped(0, Problem("a.mp4", "is empty"))], workers=0)


def test_broken_weights_are_not_scored(make_sample: MakeSample) -> None:
    with pytest.raises(ValueError, match="not all finite"):
        score_video(constant(torch.tensor([0.0, float("nan")])), make_sample())


def test_a_model_of_the_wrong_shape_is_named(make_sample: MakeSample) -> None:
    with pytest.raises(ValueError, match=r"\(6, 3, 4, 8, 8\) for 6 views"):
        score_video(nn.Identity(), make_sample())


@pytest.mark.parametrize("field", [{"views_per_batch": 0}])
def test_refuses_no_views(field: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="views_per_batch = 0"):
        Scoring(**field)


def test_threads_are_shared_with_the_workers_and_given_back(
    make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Noting(TinyNet):
        def forward(self, views: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(views)

    before = torch.get_num_threads()
    monkeypatch.setattr("nonlocal_nn._cores.available_cores", lambda: 3)
    try:
        torch.set_num_threads(3)
        evaluate(Noting(), [make_sample(index=i) for i in range(2)], workers=2)
        assert seen == [1, 1]
        assert torch.get_num_threads() == 3
        evaluate(Noting(), [make_sample()], workers=0)
        assert seen[2:] == [3]
    finally:
        torch.set_num_threads(before)
