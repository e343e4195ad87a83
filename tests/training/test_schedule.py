"""The learning rate against torch's own schedulers, and the paper's recipe in numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonlocal_nn.training.config import ScheduleConfig
from nonlocal_nn.training.schedule import epoch_ends, lr_at, make_plan


def _torch_rates(make: object, steps: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_that_of_torch() -> None:
    plan = make_plan(ScheduleConfig(iterations=23, kind="cosine", final=0.1), videos=50, batch_size=5)
    expected = _torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 23, eta_min=0.02), 23, lr=0.2
    )
    assert [lr_at(step, 0.2, plan) for step in range(23)] == pytest.approx(expected, rel=1e-9)


def test_steps_are_those_of_torch() -> None:
    plan = make_plan(
        ScheduleConfig(epochs=4, milestones=(1.0, 2.5), factor=0.3), videos=8, batch_size=4
    )  # 2 steps an epoch
    expected = _torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.3), 8, lr=0.2)
    assert [lr_at(step, 0.2, plan) for step in range(8)] == pytest.approx(expected)


def test_warm_up_rises_to_the_schedule() -> None:
    plan = make_plan(ScheduleConfig(iterations=100, warmup=10, warmup_start=0.2), videos=50, batch_size=5)
    rates = [lr_at(step, 1.0, plan) for step in range(12)]
    assert rates == pytest.approx([0.2 + 0.08 * step for step in range(10)] + [1.0, 1.0])


def test_paper_recipe_counted_in_epochs_has_the_length_counted_in_iterations() -> None:
    iterations = make_plan(ScheduleConfig(iterations=400_000), videos=246_000, batch_size=64)
    epochs = make_plan(ScheduleConfig(epochs=400_000 * 64 / 246_000), videos=246_000, batch_size=64)
    assert epochs.total_steps == iterations.total_steps == 400_000
    assert epochs.milestones == pytest.approx(iterations.milestones) == (150_000, 300_000)


def test_epoch_ends_cover_every_sample_of_the_epoch_and_no_step_more() -> None:
    plan = make_plan(ScheduleConfig(epochs=6), videos=83, batch_size=8)
    for epoch, end in enumerate(sorted(epoch_ends(plan, 1)), start=1):
        assert (end - 1) * 8 < 83 * epoch <= end * 8
    assert len(epoch_ends(plan, 1)) == 5  # the sixth is the end of training
    assert len(epoch_ends(plan, 2)) == 2
    assert epoch_ends(plan, 0) == frozenset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "schedule.epochs is 0"),
        ({"iterations": 10, "milestones": (5, 2)}, "must rise"),
        ({"iterations": 10, "milestones": (5, 20)}, "before the end at 10 iterations"),
        ({"iterations": 10, "warmup": 10}, "schedule.warmup is 10"),
        ({"factor": 1.5}, "schedule.factor is 1.5"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(dataclasses.replace(ScheduleConfig(), **change), videos=100, batch_size=10)  # type: ignore[arg-type]
