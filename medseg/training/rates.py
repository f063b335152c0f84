"""Rates of a resumed run: the state of the optimiser comes back, its options are those that are asked for now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from medseg.errors import UsageError
from medseg.training.schedule import OneCycle

__all__ = ["group_options", "restore_rates", "shift_cycles"]

_SCHEDULED = frozenset({"lr", "initial_lr"})


def group_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each group of parameters was given besides them: rate, decay, moments."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def restore_rates(
    optimizer: Optimizer, scheduler: LRScheduler | None, state: Mapping[str, Any], options: list[dict[str, Any]]
) -> None:
    """Load the state of an optimiser and its scheduler; options that have changed since are the new ones.

    A schedule that is a function of the step (``LambdaLR``) goes on at the same step with the function that it has
    now, planned for the length that the run has now. Nothing changed, nothing changes: every rate is the same number.

    Parameters
    ----------
    state
        Of a :class:`~medseg.training.steps.NetworkStep`.
    options
        Those that the groups have been given now (:func:`group_options` before the first step).

    Raises
    ------
    UsageError
        If the schedule is another one, or cannot be planned anew.
    """
    saved = state["scheduler"]
    if (scheduler is None) != (saved is None):
        raise UsageError("the checkpoint has a learning-rate schedule and this run none, or the other way round")
    optimizer.load_state_dict(state["optimizer"])
    kept = frozenset() if scheduler is None else _SCHEDULED
    for group, before, now in zip(optimizer.param_groups, state["options"], options, strict=True):
        group.update({name: now[name] for name in now.keys() - kept if now[name] != before.get(name)})
    if isinstance(scheduler, LambdaLR):
        _go_on(scheduler, saved)
    elif scheduler is not None:
        _require_same_schedule(scheduler, saved)
        scheduler.load_state_dict(saved)


def _go_on(scheduler: LambdaLR, saved: Mapping[str, Any]) -> None:
    own = {"base_lrs": scheduler.base_lrs, "lr_lambdas": [None] * len(scheduler.lr_lambdas)}  # None keeps the function
    scheduler.load_state_dict({**saved, **own})
    _set_rates(scheduler)


def shift_cycles(scheduler: LRScheduler | None, updates: int) -> None:
    """Let every :class:`~medseg.training.schedule.OneCycle` end that many updates later than it is planned to.

    A plan takes every update of a run to be made as the schedule says now. Where it said something else before, more or
    fewer have been made.
    """
    if not isinstance(scheduler, LambdaLR) or not updates:
        return
    for cycle in scheduler.lr_lambdas:
        if isinstance(cycle, OneCycle) and cycle.updates is not None:
            cycle.updates += updates
    _set_rates(scheduler)


def _set_rates(scheduler: LambdaLR) -> None:
    """The rates of the step at which the schedule stands."""
    bases, factors = scheduler.base_lrs, scheduler.lr_lambdas
    rates = [base * factor(scheduler.last_epoch) for base, factor in zip(bases, factors, strict=True)]
    for group, base, rate in zip(scheduler.optimizer.param_groups, bases, rates, strict=True):
        group["initial_lr"], group["lr"] = base, rate
    scheduler._last_lr = rates


def _require_same_schedule(scheduler: LRScheduler, saved: Mapping[str, Any]) -> None:
    """A schedule that steps from rate to rate cannot be moved onto another curve."""
    own = scheduler.state_dict()
    settings = {name for name in own if not name.startswith("_")} - _RUNNING
    other = sorted(name for name in settings if own[name] != saved.get(name))
    if other:
        found = ", ".join(f"{name} was {saved.get(name)} and is {own[name]}" for name in other)
        raise UsageError(
            f"the learning-rate schedule {type(scheduler).__name__} cannot be planned anew: {found}. Resume "
            "without changing the length or the rates, or train with LambdaLR and medseg.training.OneCycle"
        )


_RUNNING = frozenset({"last_epoch", "T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter", "milestones"})
"""Attributes of torch's schedules that change while they run."""
