"""The trainer: a generator that learns from references and against a discriminator, under a MONAI workflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from ignite.engine import Engine, EventEnum, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import AdversarialIterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from medseg.devices import Precision, channels_last, use_channels_last
from medseg.errors import TrainingFailed, UsageError
from medseg.training.adversary import Adversary
from medseg.training.data import place_sampler
from medseg.training.deep_supervision import DeepSupervision
from medseg.training.distillation import Distillation
from medseg.training.distributed import leaving, require_same, same_start
from medseg.training.failures import exceptions_leave
from medseg.training.mean_teacher import MeanTeacher, UnlabelledBatch
from medseg.training.precision import NumberFormat, Objective, Trial
from medseg.training.schedule import (
    AdversarialSchedule,
    Learner,
    StepPlan,
    completes_update,
    plan_cycles,
    planned_updates,
    shift_cycles,
)
from medseg.training.step import Buffers, NetworkStep
from medseg.training.supervised_loss import KnownDiceCELoss


class JudgeEvents(EventEnum):
    """What happens after the last iteration; ``engine.state.judge_steps`` are the steps done, and all of them."""

    PROGRESSED = "judge_progressed"


class Stateful(Protocol):
    """A part of a run that is saved in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """State that loads with ``weights_only=True``."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Go back to a saved state."""


class AdversarialSegmentationTrainer(SupervisedTrainer):
    """Trains a segmentation network (the generator) with a supervised loss and against a discriminator.

    It is a ``SupervisedTrainer`` whose ``network`` is the generator, so handlers, post-processing, metrics and the
    federated client of MONAI work on it. Besides MONAI's events it fires ``AdversarialIterationEvents``.
    ``engine.state.output`` holds ``image``, ``label``, ``pred``, ``loss`` (the supervised loss) and, when the
    discriminator takes part, ``adversarial_loss``, ``adversarial_weight``, ``discriminator_loss``, ``real_accuracy``,
    ``fake_accuracy``; with unlabelled cases ``consistency_loss``.

    Parameters
    ----------
    adversary
        The opponent; None trains with the supervised loss alone.
    averaged
        Moving average of the network, updated after every step of the generator.
    unlabelled
        Cases without labels that take part in the generator's steps.
    deep_supervision
        Heads on the decoder of the network, for training only; ``optimizer`` must have their parameters too
        (:func:`medseg.training.parameters_of`).
    distillation
        Finished networks that the generator learns from beside the labels.
    scheduler, max_norm
        Learning rate of the generator, advanced with every update; the norm to which its gradients are clipped.
    precision
        ``"auto"`` takes the fastest format that the device really computes in.
    channels_last
        Keep convolutions in the channels-last layout, which is faster on CPU and with tensor cores.
    supervised
        Every argument of :class:`monai.engines.SupervisedTrainer`; ``amp`` is replaced by ``precision``.

    Raises
    ------
    ValueError
        If unlabelled cases want a teacher and there is no moving average.
    medseg.errors.TrainingDiverged
        While running, when losses or gradients stay non-finite.
    """

    def __init__(  # noqa: PLR0913  parts of a run, all with a default
        self,
        *,
        adversary: Adversary | None = None,
        averaged: AveragedModel | None = None,
        unlabelled: MeanTeacher | None = None,
        deep_supervision: DeepSupervision | None = None,
        distillation: Distillation | None = None,
        scheduler: LRScheduler | None = None,
        max_norm: float = math.inf,
        precision: Precision = "auto",
        channels_last: bool = True,
        **supervised: Any,
    ) -> None:
        events = [*(supervised.pop("event_names", None) or []), AdversarialIterationEvents, JudgeEvents]
        self.stateful: dict[str, Stateful] = {}  # handlers add themselves while the base class attaches them
        self._listeners: list[object] = []
        super().__init__(event_names=events, **supervised)
        if unlabelled is not None and unlabelled.consistency and averaged is None:
            raise ValueError("unlabelled cases learn from the moving average; give the trainer 'averaged'")
        self.adversary, self.averaged, self.unlabelled = adversary, averaged, unlabelled
        self.deep_supervision, self.distillation, self.channels_last = deep_supervision, distillation, channels_last
        self.schedule = AdversarialSchedule(share=0.0) if adversary is None else adversary.schedule
        self.plan = StepPlan(0, 0, 0.0)
        judge = {} if adversary is None else {"discriminator": adversary.discriminator}
        teachers = [] if distillation is None else distillation.teachers
        copies = {"generator": [*([] if averaged is None else [averaged.module]), *teachers]}
        self.format = NumberFormat(self.state.device, precision, {"generator": self.network, **judge}, copies)
        scaled = self.format.scaled
        self.generator_step = NetworkStep(
            "generator", self.network, self.optimizer, scheduler=scheduler, max_norm=max_norm, scaled=scaled
        )
        self._steps: dict[Learner, NetworkStep] = {"generator": self.generator_step}
        if adversary is not None:
            adversary.step.scaler = torch.amp.GradScaler(enabled=scaled)
            self._steps["discriminator"] = adversary.step
        for learner, step in self._steps.items() if self.state.epoch_length else ():
            plan_cycles(step.scheduler, self.schedule, self.state.epoch_length, self._accumulation, learner)
        if deep_supervision is not None:
            same_start(deep_supervision.to(self.state.device))
        for teacher in teachers:
            teacher.to(self.state.device)
        parts = {
            "averaged": averaged,
            "adversary": adversary,
            "deep_supervision": deep_supervision,
            "distillation": distillation,
        }
        self.stateful |= {"precision": self.format, "generator": self.generator_step}
        self.stateful.update({name: part for name, part in parts.items() if part is not None})
        self.add_event_handler(Events.STARTED, lambda: place_sampler(self.data_loader, self.state.iteration))
        if channels_last:
            use_channels_last(self.network, averaged, *judge.values(), *teachers)

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions compute in."""
        return self.format.dtype

    @property
    def iterations(self) -> int:
        """Iterations of the whole run, as it is planned."""
        return int(self.state.max_epochs * (self.state.epoch_length or 0))

    @property
    def _accumulation(self) -> int:
        """Batches whose gradients make one update; MONAI 1.5, which MONAI Label needs, does not accumulate."""
        return int(getattr(self, "accumulation_steps", 1))

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """As ignite's; remembers whose handler it is, to know the validations that run inside this training."""
        self._listeners.append(getattr(handler, "__self__", handler))
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    def run(self) -> None:
        """Train from where the state is to the last iteration, unless a handler asks to stop.

        Whatever goes wrong in a step, a handler or a validation is raised, also if a handler of theirs swallows it.
        """
        with leaving(), exceptions_leave(self, *self._validations()):
            done, length = self.state.iteration, self.state.epoch_length
            if length == 0:
                raise UsageError("the training data gives no batch; expected at least one. Look at the datalist")
            require_same(iterations=self.iterations, epoch_length=length or 0, iteration=done)
            super().run()
            if self.state.iteration < self.iterations and not self.should_terminate:
                raise TrainingFailed(
                    f"the data ended after iteration {self.state.iteration} of {self.iterations}; expected a loader "
                    f"that gives {self.state.epoch_length} batches in every epoch. Look at the length of the training "
                    "list and at the batch size",
                    "data-ended",
                )

    def _validations(self) -> set[Engine]:
        """Engines that handlers of this one hold, such as the validator of a ``ValidationHandler``."""
        owned = (value for handler in self._listeners for value in getattr(handler, "__dict__", {}).values())
        return {engine for engine in owned if isinstance(engine, Engine) and engine is not self}

    def capture(self) -> dict[str, Any]:
        """State of the run at the end of an iteration: counters, networks, optimisers, and what handlers added."""
        counters = {"iteration": self.state.iteration, "epoch_length": self.state.epoch_length}
        return {**counters, **{name: part.state_dict() for name, part in self.stateful.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a captured state of a run with the same parts; :meth:`run` goes on with the next iteration."""
        missing, length = sorted(set(self.stateful) - set(state)), self.state.epoch_length
        if missing or state["epoch_length"] != length:
            raise UsageError(
                f"the checkpoint was written by another configuration ({state['epoch_length']} iterations per epoch, "
                f"without: {', '.join(missing) or 'nothing'}); this one has {length} iterations per epoch. Continue "
                "with the configuration it was started with, or start anew in another output folder"
            )
        self.state.iteration = int(state["iteration"])
        self.state.epoch = self.state.iteration // self.state.epoch_length
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])

    def updates_beyond_plan(self) -> dict[str, int]:
        """Updates that each network has made, less those it would have made by the schedule that there is now."""
        done, length, found = self.state.iteration, self.state.epoch_length, {}
        for learner, step in self._steps.items():
            if step.scheduler is not None and length:
                planned = planned_updates(self.schedule, done, length, self._accumulation, learner)
                found[str(learner)] = int(step.scheduler.last_epoch) - planned
        return found

    def shift_plan(self, updates: Mapping[str, int]) -> None:
        """Let the cycles of the learning rates end that many updates later than planned."""
        for learner, step in self._steps.items():
            shift_cycles(step.scheduler, updates.get(learner, 0))

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        image, label = self._laid_out(batch[0]), batch[1]
        engine.state.output = {CommonKeys.IMAGE: image, CommonKeys.LABEL: label}
        if not self.format.tried:
            self._trial().run(image, label)
        plan = self.schedule.plan(self.state.iteration, self.state.epoch)
        if self.unlabelled is not None:
            plan = replace(plan, consistency=self.unlabelled.weight_at(self.state.iteration))
        self.plan = plan
        self.network.train()
        before = Buffers(self.network)
        opponents = [] if self.adversary is None else [self.adversary.discriminator]
        unlabelled = self._unlabelled_batch(plan)
        prediction = self._forward(image, unlabelled, learns=plan.generator_steps > 0)
        if self.adversary is not None:
            for _ in range(plan.discriminator_steps):
                self._teach_discriminator(self.adversary, image, label, prediction)
        for step in range(plan.generator_steps):
            before = Buffers(self.network) if step else before
            prediction = self._forward(image, unlabelled) if step else prediction
            judge = Buffers(*opponents)
            if not self._teach_generator(image, label, prediction, unlabelled):
                before.restore()  # what was skipped leaves no trace
            judge.restore()  # in the generator's turn the opponent's statistics rest
        if not plan.generator_steps:
            before.restore()  # the statistics of a network rest while it does not learn
            with torch.no_grad():
                self._supervised_loss(prediction, label)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _laid_out(self, image: Tensor) -> Tensor:
        return channels_last(image) if self.channels_last else image

    def _unlabelled_batch(self, plan: StepPlan) -> UnlabelledBatch | None:
        if self.unlabelled is None or not plan.generator_steps:
            return None

        def place(image: Tensor) -> Tensor:
            return self._laid_out(image.to(self.state.device, non_blocking=self.non_blocking))

        return self.unlabelled.batch(self.state.iteration, plan, place, self._labels_of_the_average)

    def _labels_of_the_average(self, image: Tensor) -> Tensor:
        assert self.averaged is not None
        with torch.no_grad(), self.format.computing():
            logits: Tensor = self.inferer(image, self.averaged.module.eval())
        if isinstance(self.loss_function, KnownDiceCELoss) and self.loss_function.sigmoid:
            return (logits > 0).float()  # regions that may overlap
        return logits.max(1, keepdim=True).indices

    def _predict(self, image: Tensor) -> Tensor:
        deep = self.deep_supervision
        with self.format.computing(), nullcontext() if deep is None else deep.reading(self.network):
            prediction: Tensor = self.inferer(image, self.network)
        return prediction.float()

    def _forward(self, image: Tensor, unlabelled: UnlabelledBatch | None, learns: bool = True) -> Tensor:
        seen = image if unlabelled is None else torch.cat([image, unlabelled.strong])  # shared batch statistics
        with torch.set_grad_enabled(learns):
            prediction = self._predict(seen)
        if unlabelled is not None:
            prediction, unlabelled.prediction = prediction[: len(image)], prediction[len(image) :]
        self.state.output[CommonKeys.PRED] = prediction
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        return prediction

    def _supervised(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Loss of the generator's logits, and of the heads if there are any, against the labels."""
        if self.deep_supervision is not None:
            return self.deep_supervision.loss(self.loss_function, prediction, label)
        loss: Tensor = self.loss_function(prediction, label).mean()
        return loss

    def _supervised_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        loss = self.state.output[CommonKeys.LOSS] = self._supervised(prediction, label)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        return loss

    def _teach_discriminator(self, adversary: Adversary, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        with self.format.computing():
            report = adversary.learn(image, label, prediction, 1.0 / self._accumulation, self._updates())
        self.state.output.update(report)
        self.fire_event(AdversarialIterationEvents.DISCRIMINATOR_BACKWARD_COMPLETED)

    def _teach_generator(
        self, image: Tensor, label: Tensor, prediction: Tensor, unlabelled: UnlabelledBatch | None
    ) -> bool:
        """One step of the generator; False if its loss or its gradient was not finite, so that nothing was learnt."""
        loss = supervised = self._supervised_loss(prediction, label)
        if self.distillation is not None:
            with self.format.computing():
                target = self.distillation.target(image)
            loss = self.distillation.loss(supervised, prediction, target)
        if unlabelled is not None and unlabelled.target is not None and unlabelled.prediction is not None:
            consistency = self.loss_function(unlabelled.prediction, unlabelled.target).mean()
            self.state.output["consistency_loss"] = consistency.detach()
            loss = loss + self.plan.consistency * consistency
        if self.adversary is not None and self.plan.share > 0.0:
            judged = unlabelled if self.unlabelled is not None and self.unlabelled.adversarial else None
            with self.format.computing():
                adversarial = self.adversary.teach(image, label, prediction, judged)
            others = [] if judged is None or judged.prediction is None else [judged.prediction]
            scale = self.generator_step.scaler.get_scale()
            weight = self.adversary.balance.weight(
                self.plan.share, supervised, adversarial, [prediction, *others], scale
            )
            self.state.output |= {"adversarial_loss": adversarial.detach(), "adversarial_weight": weight}
            loss = loss + weight * adversarial
            self.fire_event(AdversarialIterationEvents.GENERATOR_LOSS_COMPLETED)
        if not self.generator_step.backward(loss, 1.0 / self._accumulation):
            return False
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if not self._updates():
            return True
        learnt = self.generator_step.update()
        if learnt and self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return learnt

    def _updates(self) -> bool:
        """Whether this batch completes an accumulated gradient."""
        return completes_update(self.state.iteration, self.state.epoch_length, self._accumulation)

    def _trial(self) -> Trial:
        """The trial of the format, on losses without a step, an event or a trace in the output."""
        heads = {} if self.deep_supervision is None else {"heads": self.deep_supervision}
        opponent = self.adversary if self.schedule.share > 0.0 else None  # one that never counts is not tried

        def look(image: Tensor, label: Tensor) -> None:
            prediction = self._predict(image)
            if opponent is not None:
                opponent.look(image, label, prediction)

        def generator(image: Tensor, label: Tensor) -> Tensor:
            prediction = self._predict(image)
            loss = self._supervised(prediction, label)
            if opponent is None:
                return loss
            with self.format.computing():
                return loss + opponent.teach(image, label, prediction, None)

        def discriminator(image: Tensor, label: Tensor) -> Tensor:
            assert opponent is not None
            with torch.no_grad(), self.format.as_fp32():  # what the generator makes of it is its own error
                prediction = self._predict(image)
            with self.format.computing():
                return opponent.judge(image, label, prediction)[0]

        objectives = [Objective({"generator": self.network, **heads}, generator)]
        if opponent is None:
            return Trial(self.format, look, objectives, [])
        objectives.append(Objective({"discriminator": opponent.discriminator}, discriminator))
        return Trial(self.format, look, objectives, opponent.sources)
