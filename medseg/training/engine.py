"""The trainer: a generator that learns from references and against a discriminator, under a MONAI workflow."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import AdversarialIterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from medseg.errors import UsageError
from medseg.training.adversary import Adversary
from medseg.training.precision import Precision, autocast, fast_dtype, needs_scaler
from medseg.training.sampling import DrawSampler
from medseg.training.schedule import Turn
from medseg.training.steps import NetworkStep

__all__ = ["AdversarialSegmentationTrainer", "Stateful"]


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
    discriminator takes part, ``adversarial_loss``, ``discriminator_loss``, ``real_accuracy``, ``fake_accuracy``.

    Parameters
    ----------
    adversary
        The opponent; None trains with the supervised loss alone.
    averaged
        Moving average of the network, updated after every step of the generator.
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
    medseg.errors.TrainingDiverged
        While running, when losses or gradients stay non-finite.
    """

    def __init__(
        self,
        *,
        adversary: Adversary | None = None,
        averaged: AveragedModel | None = None,
        scheduler: LRScheduler | None = None,
        max_norm: float = math.inf,
        precision: Precision = "auto",
        channels_last: bool = True,
        **supervised: Any,
    ) -> None:
        events = [*(supervised.pop("event_names", None) or []), AdversarialIterationEvents]
        self.stateful: dict[str, Stateful] = {}  # handlers add themselves while the base class attaches them
        super().__init__(event_names=events, **supervised)
        self.adversary, self.averaged = adversary, averaged
        self.dtype = fast_dtype(self.state.device, precision)
        self.channels_last = channels_last
        scaled = needs_scaler(self.dtype)
        self.generator_step = NetworkStep(
            "generator", self.network, self.optimizer, scheduler=scheduler, max_norm=max_norm, scaled=scaled
        )
        self.stateful["generator"] = self.generator_step
        if averaged is not None:
            self.stateful["averaged"] = averaged
        if adversary is not None:
            self.stateful["adversary"] = adversary
        self.add_event_handler(Events.STARTED, self._place_sampler)
        if channels_last:
            _use_channels_last(self.network)
            if adversary is not None:
                _use_channels_last(adversary.discriminator)

    def capture(self) -> dict[str, Any]:
        """State of the run at the end of an iteration: counters, networks, optimisers, and what handlers added."""
        return {
            "iteration": self.state.iteration,
            "epoch_length": self.state.epoch_length,
            **{name: part.state_dict() for name, part in self.stateful.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a captured state; :meth:`run` then goes on with the next iteration.

        Raises
        ------
        UsageError
            If the state belongs to a run with other parts or with another number of iterations per epoch.
        """
        missing = sorted(set(self.stateful) - set(state))
        if missing or state["epoch_length"] != self.state.epoch_length:
            raise UsageError(
                f"the checkpoint was written by another configuration ({state['epoch_length']} iterations per epoch, "
                f"without: {', '.join(missing) or 'nothing'}); this one has {self.state.epoch_length} iterations per "
                "epoch. Continue with the configuration it was started with, or start anew in another output folder"
            )
        self.state.iteration = int(state["iteration"])
        self.state.epoch = self.state.iteration // self.state.epoch_length
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])

    def _place_sampler(self) -> None:
        sampler = getattr(self.data_loader, "sampler", None)
        if isinstance(sampler, DrawSampler):
            sampler.go_to(self.state.iteration)

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        image, label = self._inputs(batchdata)
        engine.state.output = {CommonKeys.IMAGE: image, CommonKeys.LABEL: label}
        turn = self._turn()
        self.network.train()
        prediction = self._forward(image, learns=turn.generator_steps > 0)
        if self.adversary is not None:
            for _ in range(turn.discriminator_steps):
                self._teach_discriminator(self.adversary, image, label, prediction)
        for step in range(turn.generator_steps):
            prediction = self._forward(image) if step else prediction
            self._teach_generator(image, label, prediction, turn.weight)
        if not turn.generator_steps:
            with torch.no_grad():
                self._supervised_loss(prediction, label)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _inputs(self, batchdata: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        image, label = batch[0], batch[1]
        if self.channels_last and image.ndim in (4, 5):
            image = image.contiguous(memory_format=_layout(image.ndim))
        return image, label

    def _turn(self) -> Turn:
        if self.adversary is None:
            return Turn(0, 1, 0.0)
        return self.adversary.schedule.turn(self.state.iteration, self.state.epoch)

    def _forward(self, image: Tensor, learns: bool = True) -> Tensor:
        with torch.set_grad_enabled(learns), autocast(self.state.device, self.dtype):
            prediction: Tensor = self.inferer(image, self.network)
        prediction = prediction.float()
        self.state.output[CommonKeys.PRED] = prediction
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        return prediction

    def _supervised_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        loss: Tensor = self.loss_function(prediction, label).mean()
        self.state.output[CommonKeys.LOSS] = loss
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        return loss

    def _teach_discriminator(self, adversary: Adversary, image: Tensor, label: Tensor, prediction: Tensor) -> None:
        share, update = self._accumulation()
        fake = prediction.detach().softmax(1)
        with autocast(self.state.device, self.dtype):
            report = adversary.learn(image, adversary.reference(label, fake), fake, share, update)
        self.state.output.update(report)
        self.fire_event(AdversarialIterationEvents.DISCRIMINATOR_BACKWARD_COMPLETED)

    def _teach_generator(self, image: Tensor, label: Tensor, prediction: Tensor, weight: float) -> None:
        share, update = self._accumulation()
        loss = self._supervised_loss(prediction, label)
        if self.adversary is not None and weight > 0.0:
            with autocast(self.state.device, self.dtype):
                fake = prediction.softmax(1)
                adversarial = self.adversary.teach(image, fake, self.adversary.reference(label, fake))
            self.state.output["adversarial_loss"] = adversarial.detach()
            loss = loss + weight * adversarial
            self.fire_event(AdversarialIterationEvents.GENERATOR_LOSS_COMPLETED)
        if not self.generator_step.backward(loss, share):
            return
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if update and self.generator_step.update() and self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def _accumulation(self) -> tuple[float, bool]:
        """Share of this batch in the accumulated gradient, and whether this batch completes it."""
        steps = self.accumulation_steps
        length = self.state.epoch_length
        position = (self.state.iteration - 1) % length if length else self.state.iteration - 1
        return 1.0 / steps, (position + 1) % steps == 0 or position + 1 == length


def _layout(ndim: int) -> torch.memory_format:
    return torch.channels_last_3d if ndim == 5 else torch.channels_last


def _use_channels_last(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=_layout(parameter.ndim))
