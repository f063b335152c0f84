"""Who learns when, with what weight, and at which rate: pure functions of time, planned for the length of a run.

A resumed run is planned anew: the state of the optimiser comes back, its options are those that are asked for now.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from medseg.errors import UsageError

Learner = Literal["generator", "discriminator"]


@dataclass(frozen=True)
class StepPlan:
    """Who learns from one batch, and with what weight.

    Updates of each network; the share of the adversarial loss in the generator's gradient, 0 leaves the discriminator
    out of it; the weight of the agreement (``consistency``) with the moving average on cases without labels.
    """

    discriminator_steps: int
    generator_steps: int
    share: float
    consistency: float = 0.0

    def steps(self, learner: Learner) -> int:
        """Updates of one of them."""
        return self.generator_steps if learner == "generator" else self.discriminator_steps


def ramped(weight: float, passed: int, ramp: int) -> float:
    """A weight that rises from 0 over ``ramp`` iterations, of which ``passed`` (negative: not yet begun) are over."""
    if passed <= 0:
        return 0.0
    return weight * min(1.0, passed / ramp) if ramp else weight


@dataclass(frozen=True)
class AdversarialSchedule:
    """Warm-up of the generator, alternation, and the ramp of the adversarial loss; a pure function of time."""

    share: float = 0.1
    """How large the adversarial loss's gradient is in the end, as a share of the supervised loss's
    (:class:`medseg.training.GradientShare`); 0 trains without a discriminator."""
    warm_up: int = 0  # iterations in which only the generator learns, from the supervised loss alone
    settle: int = 0  # iterations after the warm-up in which the discriminator learns already but does not count yet
    ramp: int = 0  # iterations over which the share rises from 0 after that
    alternate: Literal["iteration", "epoch"] = "iteration"
    """``"iteration"``: each batch gives ``discriminator_steps`` and ``generator_steps`` updates. ``"epoch"``: after the
    warm-up, odd epochs train the discriminator, even epochs the generator (1: D, 2: G, 3: D …)."""
    discriminator_steps: int = 1
    generator_steps: int = 1
    """``discriminator_steps``, ``generator_steps``: updates per batch."""

    def __post_init__(self) -> None:
        if min(self.share, self.warm_up, self.settle, self.ramp) < 0:
            raise ValueError(f"share, warm_up, settle and ramp must not be negative; found {self}")
        if min(self.discriminator_steps, self.generator_steps) < 1:
            raise ValueError(f"each network needs at least one step per turn; found {self}")
        if self.alternate not in ("iteration", "epoch"):
            raise ValueError(f"alternate is {self.alternate!r}, expected 'iteration' or 'epoch'")

    def plan(self, iteration: int, epoch: int) -> StepPlan:
        """What to do at a 1-based ``iteration`` of a 1-based ``epoch``."""
        if self.share == 0.0 or iteration <= self.warm_up:
            return StepPlan(0, self.generator_steps, 0.0)
        share = ramped(self.share, iteration - self.warm_up - self.settle, self.ramp)
        both = self.alternate == "iteration"
        discriminates = both or epoch % 2 == 1
        generates = both or not discriminates
        return StepPlan(self.discriminator_steps * discriminates, self.generator_steps * generates, share)


class FrozenFirst:
    """Handler that lets a part of a network rest in the first epochs, until what is new around it has learnt something.

    The part's weights get no gradient and its batch norms keep their running statistics (in training they normalise by
    the batch). It follows from the epoch alone, so a resumed run does the same.

    Parameters
    ----------
    part
        Name of the submodule, such as ``"encoder"``.
    epochs
        How many epochs it rests; 0 for none.

    Raises
    ------
    ValueError
        If ``epochs`` is negative.
    """

    def __init__(self, network: nn.Module, part: str, epochs: int) -> None:
        if epochs < 0:
            raise ValueError(f"found {epochs} frozen epochs, expected 0 or more")
        self.part, self.epochs = network.get_submodule(part), epochs
        self._momenta: dict[_BatchNorm, float | None] = {}

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        norms = (module for module in self.part.modules() if isinstance(module, _BatchNorm))
        self._momenta = {norm: norm.momentum for norm in norms}  # parts that are frozen for good have 0 by now
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._drop)

    def _begin(self, engine: Engine) -> None:
        for norm, momentum in self._momenta.items():
            norm.momentum = 0.0 if engine.state.epoch <= self.epochs else momentum

    def _drop(self, engine: Engine) -> None:
        if engine.state.epoch <= self.epochs:
            for parameter in self.part.parameters():
                parameter.grad = None


def completes_update(iteration: int, epoch_length: int | None, accumulation: int = 1) -> bool:
    """Whether the batch of a 1-based ``iteration`` completes an accumulated gradient; the last one of an epoch does."""
    done = (iteration - 1) % epoch_length + 1 if epoch_length else iteration
    return done % accumulation == 0 or done == epoch_length


def planned_updates(
    schedule: AdversarialSchedule,
    iterations: int,
    epoch_length: int,
    accumulation: int = 1,
    learner: Learner = "generator",
) -> int:
    """Updates that the ``learner`` makes in the first ``iterations`` of a run, if none is skipped."""
    return sum(
        schedule.plan(iteration, (iteration - 1) // epoch_length + 1).steps(learner)
        for iteration in range(1, iterations + 1)
        if completes_update(iteration, epoch_length, accumulation)
    )


@dataclass
class OneCycle:
    """Factor of the learning rate: linear rise, then half a cosine down (Smith 2018), for torch's ``LambdaLR``.

    It goes from the factor ``start`` up for the fraction ``rise`` of a whole run of ``total`` iterations, then down to
    ``end``. ``updates`` are those of the network in them, over which the cycle goes; None if there is one in each. The
    trainer says how many there are. Later updates keep the last factor.
    """

    total: int
    rise: float = 0.1
    start: float = 0.05
    end: float = 0.001
    updates: int | None = None

    def __call__(self, step: int) -> float:
        """Factor at a 0-based ``step`` of the optimiser."""
        length = self.total if self.updates is None else self.updates
        rising = max(1.0, self.rise * length)
        if step < rising:
            return self.start + (1.0 - self.start) * step / rising
        done = min(1.0, (step - rising) / max(1.0, length - rising))
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * done))


def plan_cycles(
    scheduler: LRScheduler | None,
    schedule: AdversarialSchedule,
    epoch_length: int,
    accumulation: int = 1,
    learner: Learner = "generator",
) -> None:
    """Stretch every :class:`OneCycle` over the updates that the ``learner`` makes, which are not its iterations."""
    for cycle in _cycles(scheduler):
        cycle.updates = planned_updates(schedule, cycle.total, epoch_length, accumulation, learner)


def shift_cycles(scheduler: LRScheduler | None, updates: int) -> None:
    """Let every :class:`OneCycle` end that many updates later than it is planned to.

    A plan takes every update to be made as the schedule says now: if it was another before, more or fewer were made.
    """
    if isinstance(scheduler, LambdaLR) and updates:
        for cycle in _cycles(scheduler):
            cycle.updates = (cycle.total if cycle.updates is None else cycle.updates) + updates
        _set_rates(scheduler)


def _cycles(scheduler: LRScheduler | None) -> Iterator[OneCycle]:
    if isinstance(scheduler, LambdaLR):
        yield from (cycle for cycle in scheduler.lr_lambdas if isinstance(cycle, OneCycle))


def group_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each group of parameters was given besides them: rate, decay, moments."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def restore_rates(
    optimizer: Optimizer, scheduler: LRScheduler | None, state: Mapping[str, Any], options: list[dict[str, Any]]
) -> None:
    """Load the state of an optimiser and its scheduler; options that have changed since are the new ones.

    A schedule that is a function of the step (``LambdaLR``) goes on at the same step with the function that it has
    now, planned for the length that the run has now. Nothing changed, nothing changes: every rate is the same number.

    ``state`` is that of a :class:`~medseg.training.step.NetworkStep`, ``options`` what the groups have been given now
    (:func:`group_options` before the first step). A schedule that cannot be planned anew is a ``UsageError``.
    """
    saved = state["scheduler"]
    if (scheduler is None) != (saved is None):
        raise UsageError("the checkpoint has a learning-rate schedule and this run none, or the other way round")
    optimizer.load_state_dict(state["optimizer"])
    scheduled = set() if scheduler is None else {"lr", "initial_lr"}
    for group, before, now in zip(optimizer.param_groups, state["options"], options, strict=True):
        group.update({name: now[name] for name in now.keys() - scheduled if now[name] != before.get(name)})
    if isinstance(scheduler, LambdaLR):
        own = {"base_lrs": scheduler.base_lrs, "lr_lambdas": [None] * len(scheduler.lr_lambdas)}  # None keeps its own
        scheduler.load_state_dict({**saved, **own})
        _set_rates(scheduler)
    elif scheduler is not None:
        _require_same_schedule(scheduler, saved)
        scheduler.load_state_dict(saved)


def _set_rates(scheduler: LambdaLR) -> None:
    """The rates of the step at which the schedule stands."""
    bases, factors = scheduler.base_lrs, scheduler.lr_lambdas
    rates = [base * factor(scheduler.last_epoch) for base, factor in zip(bases, factors, strict=True)]
    for group, base, rate in zip(scheduler.optimizer.param_groups, bases, rates, strict=True):
        group["initial_lr"], group["lr"] = base, rate
    scheduler._last_lr = rates


_RUNNING = frozenset({"last_epoch", "T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter", "milestones"})
"""Attributes of torch's schedules that change while they run."""


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
