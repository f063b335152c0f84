"""The trainer: a generator that learns from references and against a discriminator, under a MONAI workflow."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
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
from medseg.training.data import DrawSampler
from medseg.training.deep_supervision import DeepSupervision
from medseg.training.distributed import leaving, require_same, same_start
from medseg.training.failures import exceptions_leave
from medseg.training.mean_teacher import MeanTeacher, Views
from medseg.training.precision import NumberFormat
from medseg.training.schedule import StepPlan, completes_update, generator_steps, plan_cycles
from medseg.training.step import Buffers, NetworkStep
from medseg.training.trial import try_format


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
    discriminator takes part, ``adversarial_loss``, ``discriminator_loss``, ``real_accuracy``, ``fake_accuracy``; with
    unlabelled cases ``consistency_loss``.

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
    scheduler
        Learning rate of the generator, advanced with every update.
    max_norm
        Gradient clipping of the generator.
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

    def __init__(
        self,
        *,
        adversary: Adversary | None = None,
        averaged: AveragedModel | None = None,
        unlabelled: MeanTeacher | None = None,
        deep_supervision: DeepSupervision | None = None,
        scheduler: LRScheduler | None = None,
        max_norm: float = math.inf,
        precision: Precision = "auto",
        channels_last: bool = True,
        **supervised: Any,
    ) -> None:
        events = [*(supervised.pop("event_names", None) or []), AdversarialIterationEvents]
        self.stateful: dict[str, Stateful] = {}  # handlers add themselves while the base class attaches them
        self._listeners: list[object] = []
        super().__init__(event_names=events, **supervised)
        if unlabelled is not None and unlabelled.consistency and averaged is None:
            raise ValueError("unlabelled cases learn from the moving average; give the trainer 'averaged'")
        self.adversary, self.averaged, self.unlabelled = adversary, averaged, unlabelled
        self.deep_supervision = deep_supervision
        networks = {"generator": self.network}
        if adversary is not None:
            networks["discriminator"] = adversary.discriminator
        copies = {} if averaged is None else {"generator": averaged.module}
        self.format = NumberFormat(self.state.device, precision, networks, copies)
        self.channels_last = channels_last
        if self.state.epoch_length:
            accumulation = getattr(self, "accumulation_steps", 1)
            plan_cycles(
                scheduler, None if adversary is None else adversary.schedule, self.state.epoch_length, accumulation
            )
        self.generator_step = NetworkStep(
            "generator", self.network, self.optimizer, scheduler=scheduler, max_norm=max_norm, scaled=self.format.scaled
        )
        if adversary is not None:
            adversary.step.scaler = torch.amp.GradScaler(enabled=self.format.scaled)
        if deep_supervision is not None:
            same_start(deep_supervision.to(self.state.device))
        parts = {"averaged": averaged, "adversary": adversary, "deep_supervision": deep_supervision}
        self.stateful["precision"] = self.format
        self.stateful["generator"] = self.generator_step
        self.stateful.update({name: part for name, part in parts.items() if part is not None})
        self.add_event_handler(Events.STARTED, self._place_sampler)
        if channels_last:
            use_channels_last(self.network, averaged, None if adversary is None else adversary.discriminator)

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions compute in."""
        return self.format.dtype

    @property
    def opponent(self) -> Adversary | None:
        """The adversary, if it ever counts."""
        return self.adversary if self.adversary is not None and self.adversary.schedule.weight > 0.0 else None

    @property
    def iterations(self) -> int:
        """Iterations of the whole run, as it is planned."""
        return int(self.state.max_epochs * (self.state.epoch_length or 0))

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """As ignite's; remembers whose handler it is, to know the validations that run inside this training."""
        self._listeners.append(getattr(handler, "__self__", handler))
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    def run(self) -> None:
        """Train from where the state is to the last iteration.

        Raises
        ------
        Exception
            Whatever goes wrong in a step, a handler or a validation, also if a handler of theirs swallows it.
        TrainingFailed
            If the data ends before the last iteration and nobody asked the run to stop.
        """
        with leaving(), exceptions_leave(self, *self._validations()):
            done, length = self.state.iteration, self.state.epoch_length
            if length == 0:
                raise UsageError("the training data gives no batch; expected at least one. Look at the datalist")
            require_same(iterations=self.iterations, epoch_length=length or 0, iteration=done)
            super().run()
            self._require_end()

    def _require_end(self) -> None:
        if self.state.iteration < self.iterations and not self.should_terminate:
            raise TrainingFailed(
                f"the data ended after iteration {self.state.iteration} of {self.iterations}; expected a loader that "
                f"gives {self.state.epoch_length} batches in every epoch. Look at the length of the training list and "
                "at the batch size",
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
        """Go back to a captured state; :meth:`run` then goes on with the next iteration.

        Raises
        ------
        UsageError
            If the state belongs to a run with other parts or with another number of iterations per epoch.
        """
        _require_same_run(state, set(self.stateful), self.state.epoch_length)
        self.state.iteration = int(state["iteration"])
        self.state.epoch = self.state.iteration // self.state.epoch_length
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])

    def updates_beyond_plan(self) -> int:
        """Updates that the generator has made, less those it would have made by the schedule that it has now."""
        scheduler = self.generator_step.scheduler
        if scheduler is None or not self.state.epoch_length:
            return 0
        schedule = None if self.adversary is None else self.adversary.schedule
        accumulation = getattr(self, "accumulation_steps", 1)
        planned = generator_steps(schedule, self.state.iteration, self.state.epoch_length, accumulation)
        return int(scheduler.last_epoch) - planned

    def _place_sampler(self) -> None:
        sampler = getattr(self.data_loader, "sampler", None)
        if isinstance(sampler, DrawSampler):
            sampler.go_to(self.state.iteration)

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        image, label = self._inputs(batchdata)
        engine.state.output = {CommonKeys.IMAGE: image, CommonKeys.LABEL: label}
        if not self.format.tried:
            try_format(self, image, label)
        turn = self._turn()
        self.network.train()
        before = Buffers(self.network)
        views = self._views(turn)
        prediction = self._forward(image, views, learns=turn.generator_steps > 0)
        if self.adversary is not None:
            for _ in range(turn.discriminator_steps):
                self._teach_discriminator(self.adversary, image, label, prediction)
        for step in range(turn.generator_steps):
            before = Buffers(self.network) if step else before
            prediction = self._forward(image, views) if step else prediction
            if not self._teach_generator(image, label, prediction, turn.weight, views):
                before.restore()  # what was skipped leaves no trace
        if not turn.generator_steps:
            before.restore()  # the statistics of a network rest while it does not learn
            with torch.no_grad():
                self._supervised_loss(prediction, label)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _inputs(self, batchdata: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        return channels_last(batch[0]) if self.channels_last else batch[0], batch[1]

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.state.device, non_blocking=self.non_blocking)
        return channels_last(tensor) if self.channels_last else tensor

    def _views(self, turn: StepPlan) -> Views | None:
        if self.unlabelled is None or not turn.generator_steps:
            return None
        return self.unlabelled.views(self.state.iteration, turn.weight, self._placed, self._labels_of_the_average)

    def _labels_of_the_average(self, image: Tensor) -> Tensor:
        assert self.averaged is not None
        with torch.no_grad(), self.format.computing():
            logits: Tensor = self.inferer(image, self.averaged.module.eval())
        return logits.max(1, keepdim=True).indices

    def _turn(self) -> StepPlan:
        if self.adversary is None:
            return StepPlan(0, 1, 0.0)
        return self.adversary.schedule.turn(self.state.iteration, self.state.epoch)

    def _forward(self, image: Tensor, views: Views | None, learns: bool = True) -> Tensor:
        seen = image if views is None else torch.cat([image, views.strong])  # one pass, shared batch statistics
        deep = self.deep_supervision
        reading = nullcontext() if deep is None else deep.reading(self.network)
        with torch.set_grad_enabled(learns), self.format.computing(), reading:
            prediction: Tensor = self.inferer(seen, self.network)
        prediction = prediction.float()
        if views is not None:
            prediction, views.prediction = prediction[: len(image)], prediction[len(image) :]
        self.state.output[CommonKeys.PRED] = prediction
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        return prediction

    def supervised_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Loss of the generator's logits, and of the heads if there are any, against the labels."""
        loss: Tensor
        if self.deep_supervision is None:
            loss = self.loss_function(prediction, label).mean()
        else:
            loss = self.deep_supervision.loss(self.loss_function, prediction, label)
        return loss

    def _supervised_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        loss = self.supervised_loss(prediction, label)
        self.state.output[CommonKeys.LOSS] = loss
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        return loss

    def _teach_discriminator(self, adversary: Adversary, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        share, update = self._accumulation()
        fake = adversary.judged(prediction.detach())
        with self.format.computing():
            report = adversary.learn(image, adversary.reference(label, fake), fake, share, update)
        self.state.output.update(report)
        self.fire_event(AdversarialIterationEvents.DISCRIMINATOR_BACKWARD_COMPLETED)

    def _teach_generator(
        self, image: Tensor, label: Tensor, prediction: Tensor, weight: float, views: Views | None = None
    ) -> bool:
        """One step of the generator; False if its loss or its gradient was not finite, so that nothing was learnt."""
        share, update = self._accumulation()
        loss = self._supervised_loss(prediction, label)
        if views is not None and views.target is not None and views.prediction is not None:
            consistency = self.loss_function(views.prediction, views.target).mean()
            self.state.output["consistency_loss"] = consistency.detach()
            loss = loss + views.consistency * consistency
        if self.adversary is not None and weight > 0.0:
            judged = views if self.unlabelled is not None and self.unlabelled.adversarial else None
            with self.format.computing():
                adversarial = self.adversary.teach_all(image, label, prediction, judged)
            self.state.output["adversarial_loss"] = adversarial.detach()
            loss = loss + weight * adversarial
            self.fire_event(AdversarialIterationEvents.GENERATOR_LOSS_COMPLETED)
        if not self.generator_step.backward(loss, share):
            return False
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if not update:
            return True
        learnt = self.generator_step.update()
        if learnt and self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return learnt

    def _accumulation(self) -> tuple[float, bool]:
        """Share of this batch in the accumulated gradient, and whether this batch completes it."""
        steps = getattr(self, "accumulation_steps", 1)  # MONAI 1.5, which MONAI Label needs, does not accumulate
        return 1.0 / steps, completes_update(self.state.iteration, self.state.epoch_length, steps)


def _require_same_run(state: dict[str, Any], parts: set[str], length: int | None) -> None:
    missing = sorted(parts - set(state))
    if missing or state["epoch_length"] != length:
        raise UsageError(
            f"the checkpoint was written by another configuration ({state['epoch_length']} iterations per epoch, "
            f"without: {', '.join(missing) or 'nothing'}); this one has {length} iterations per "
            "epoch. Continue with the configuration it was started with, or start anew in another output folder"
        )
