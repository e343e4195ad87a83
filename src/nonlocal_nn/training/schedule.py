"""The learning rate at every optimizer step, as a pure function: a resumed run asks again and gets the same.

>>> from nonlocal_nn.training.config import ScheduleConfig
>>> paper = make_plan(ScheduleConfig(iterations=400_000), videos=246_000, batch_size=64)
>>> [f"{lr_at(step, 0.01, paper):g}" for step in (0, 149_999, 150_000, 300_000)]
['0.01', '0.01', '0.001', '0.0001']
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nonlocal_nn.training.config import ScheduleConfig


@dataclass(frozen=True)
class Plan:
    """A schedule with its lengths counted in optimizer steps.

    Attributes:
        schedule: as configured, in its own unit.
        total_steps, milestones, warmup_steps: in optimizer steps.
        steps_per_epoch: rarely a whole number.
    """

    schedule: ScheduleConfig
    total_steps: int
    steps_per_epoch: float
    milestones: tuple[float, ...]
    warmup_steps: float


def make_plan(schedule: ScheduleConfig, videos: int, batch_size: int) -> Plan:
    """Count the schedule in steps of `batch_size` clips over a set of `videos`.

    >>> make_plan(ScheduleConfig(epochs=3, milestones=(2,)), videos=83, batch_size=8).total_steps
    32

    Epochs follow each other without a gap: an epoch need not be a whole number of batches, only the end is
    rounded up.

    Raises:
        ValueError: a length, milestone or share outside its range.
    """
    steps_per_epoch = videos / batch_size
    if schedule.iterations is not None:
        unit, length, steps_per_unit = "iterations", float(schedule.iterations), 1.0
    else:
        unit, length, steps_per_unit = "epochs", float(schedule.epochs), steps_per_epoch
    if length <= 0 or not math.isfinite(length):
        raise ValueError(f"schedule.{unit} is {length:g}; it must be more than 0")
    milestones = (length * 3 / 8, length * 3 / 4) if schedule.milestones is None else schedule.milestones
    if schedule.kind == "steps":
        if list(milestones) != sorted(milestones) or any(m < 0 for m in milestones):
            raise ValueError(f"schedule.milestones {milestones} must rise from 0 on (they are in {unit})")
        if schedule.milestones is not None and milestones and milestones[-1] >= length:
            raise ValueError(
                f"schedule.milestones {milestones} are in {unit} like the length, and the last one is not "
                f"before the end at {length:g} {unit}"
            )
    if not 0 <= schedule.warmup < length:
        raise ValueError(f"schedule.warmup is {schedule.warmup:g} {unit}, outside 0 to the length {length:g}")
    for name in ("factor", "final", "warmup_start"):
        share = getattr(schedule, name)
        if not 0 <= share <= 1:
            raise ValueError(f"schedule.{name} is {share:g}; it is a share of the rate, 0 to 1")
    return Plan(
        schedule,
        # the tolerance: 3 epochs of 8 / 3 batches each are 8 steps, whatever the rounding of the product
        total_steps=math.ceil(length * steps_per_unit - 1e-6),
        steps_per_epoch=steps_per_epoch,
        milestones=tuple(m * steps_per_unit for m in milestones),
        warmup_steps=schedule.warmup * steps_per_unit,
    )


def lr_at(step: int, lr: float, plan: Plan) -> float:
    """The learning rate of optimizer step `step` (the first is 0).

    >>> plan = make_plan(ScheduleConfig(iterations=10, kind="cosine", warmup=4, warmup_start=0.0), 100, 10)
    >>> [round(lr_at(step, 1.0, plan), 3) for step in (0, 2, 5, 10)]
    [0.0, 0.452, 0.5, 0.0]
    """
    schedule = plan.schedule
    if schedule.kind == "steps":
        rate = lr * schedule.factor ** sum(step >= milestone - 1e-6 for milestone in plan.milestones)
    else:
        done = min(step / plan.total_steps, 1.0)
        rate = lr * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * done)))
    if step < plan.warmup_steps:
        rate *= schedule.warmup_start + (1 - schedule.warmup_start) * step / plan.warmup_steps
    return rate


def epoch_ends(plan: Plan, every: int) -> frozenset[int]:
    """Numbers of finished steps after which every `every`-th epoch is over (0: none), the end of training
    left out.

    >>> sorted(epoch_ends(make_plan(ScheduleConfig(epochs=4), videos=10, batch_size=4), every=1))
    [3, 5, 8]
    """
    if every <= 0:
        return frozenset()
    ends = set()
    epoch = every
    while (end := math.ceil(epoch * plan.steps_per_epoch - 1e-6)) < plan.total_steps:
        ends.add(end)
        epoch += every
    return frozenset(ends)
