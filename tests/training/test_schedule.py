"""The schedule is a pure function of time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.training import AdversarialSchedule, OneCycle, StepPlan
from medseg.training.schedule import plan_cycles, planned_updates


def test_warm_up_settle_and_ramp() -> None:
    schedule = AdversarialSchedule(share=0.4, warm_up=10, settle=5, ramp=4)
    assert schedule.plan(10, 1) == StepPlan(0, 1, 0.0)  # the generator alone
    assert schedule.plan(11, 1) == StepPlan(1, 1, 0.0)  # the discriminator learns, but does not count yet
    assert schedule.plan(15, 1) == StepPlan(1, 1, 0.0)
    assert schedule.plan(17, 1).share == pytest.approx(0.2)
    assert schedule.plan(1000, 1).share == pytest.approx(0.4)


def test_alternation_by_epoch() -> None:
    schedule = AdversarialSchedule(share=0.1, alternate="epoch", discriminator_steps=2)
    assert [schedule.plan(1, epoch) for epoch in (1, 2, 3)] == [
        StepPlan(2, 0, 0.1),
        StepPlan(0, 1, 0.1),
        StepPlan(2, 0, 0.1),
    ]


def test_without_weight_the_discriminator_rests() -> None:
    assert AdversarialSchedule(share=0.0).plan(100, 3) == StepPlan(0, 1, 0.0)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_the_weight_never_falls(warm_up: int, settle: int, ramp: int) -> None:
    schedule = AdversarialSchedule(share=0.3, warm_up=warm_up, settle=settle, ramp=ramp)
    weights = [schedule.plan(i, 1).share for i in range(1, 160)]
    assert weights == sorted(weights)
    assert weights[-1] == pytest.approx(0.3)


@pytest.mark.parametrize("wrong", [{"share": -1.0}, {"discriminator_steps": 0}, {"alternate": "day"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"share|step|alternate"):
        AdversarialSchedule(**wrong)  # type: ignore[arg-type]


def test_one_cycle_rises_falls_and_stays() -> None:
    factor = OneCycle(total=100, rise=0.1, start=0.1, end=0.01)
    assert factor(0) == pytest.approx(0.1)
    assert factor(10) == pytest.approx(1.0)
    assert factor(100) == factor(5000) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("schedule", "accumulation", "expected"),
    [
        (AdversarialSchedule(share=0.0), 1, 12),
        (AdversarialSchedule(share=0.0), 3, 6),  # the third batch of an epoch of four, and its last one
        (AdversarialSchedule(share=0.1), 1, 12),
        (AdversarialSchedule(share=0.1, generator_steps=2), 1, 24),
        (AdversarialSchedule(share=0.1, alternate="epoch"), 1, 4),  # the second of three epochs
        (AdversarialSchedule(share=0.1, alternate="epoch", warm_up=3), 1, 7),  # and the warm-up in the first
        (AdversarialSchedule(share=0.0, alternate="epoch"), 1, 12),
    ],
)
def test_the_steps_of_the_generator_are_counted_as_planned(
    schedule: AdversarialSchedule, accumulation: int, expected: int
) -> None:
    assert planned_updates(schedule, iterations=12, epoch_length=4, accumulation=accumulation) == expected


def test_a_cycle_of_fewer_updates_reaches_its_end_with_the_last_of_them() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, OneCycle(12, end=0.01))
    plan_cycles(scheduler, AdversarialSchedule(share=0.1, alternate="epoch"), epoch_length=4)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.01)]
