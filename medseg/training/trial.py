"""The trial of a reduced format before the first step: gradients of one real batch against those of fp32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medseg.training.data import random_state, set_random_state
from medseg.training.distributed import largest
from medseg.training.layer_check import FILLS, LayerCheck, difference, filled_memory
from medseg.training.precision import NumberFormat
from medseg.training.step import Buffers

if TYPE_CHECKING:
    from medseg.training.trainer import AdversarialSegmentationTrainer

TOLERANCE = 1.0
"""Largest error of a parameter's gradient as a whole: beyond it more is wrong than right."""

FLOOR = 0.05
"""Part of the whole gradient's norm that is added to a parameter's: rounding in one next to zero is no error."""

_SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)

_Context = Callable[[], AbstractContextManager[object]]
_Loss = Callable[[_Context], Tensor]

_logger = logging.getLogger("medseg.training")


def try_format(trainer: AdversarialSegmentationTrainer, image: Tensor, label: Tensor) -> None:
    """Compare the trainer's reduced format with fp32 on a batch, and keep in fp32 what disagrees.

    First each layer by itself (:class:`~medseg.training.layer_check.LayerCheck`), so that a kernel that is wrong for
    one shape costs one layer. Then the gradient of the losses for every parameter of the generator, its heads and the
    discriminator, which sees what no layer shows; if that disagrees, everything computes in fp32. The batch is halved
    where memory does not suffice. The state of the run, random numbers included, is afterwards what it was.
    """
    chosen = trainer.format
    with _unchanged(trainer):
        check = LayerCheck(chosen.networks, chosen.dtype)
        unchecked = _with_less(image, label, lambda *batch: _look(trainer, check, *batch))
        errors = _together(dict.fromkeys(check.layers, 0.0) | check.errors)
        if errors:
            _logger.warning("%s is wrong here in %d layers, which compute in fp32: %s", *_told(chosen, errors))
            chosen.keep(errors)
        whole = dict.fromkeys(_weights(trainer), 0.0)
        again = _with_less(image, label, lambda *batch: whole.update(_Objectives(trainer, *batch).disagreements()))
        errors = _together(whole)
        if errors:
            _logger.warning("%s gives other gradients for %d parameters, all is in fp32: %s", *_told(chosen, errors))
            chosen.give_up(errors)
    chosen.settle(unchecked or again)
    if chosen.unchecked:
        _logger.warning("%s could not be compared with fp32: %s", chosen.asked, chosen.unchecked)


def _with_less(image: Tensor, label: Tensor, work: Callable[[Tensor, Tensor], None]) -> str | None:
    """Work with a batch, or with half of it again and again until memory suffices; why it never did, or None."""
    size = len(image)
    while size:
        try:
            work(image[:size], label[:size])
        except torch.OutOfMemoryError:
            size //= 2
        else:
            return None
    return "the memory does not suffice for fp32, even with one item of a batch"


def _look(trainer: AdversarialSegmentationTrainer, check: LayerCheck, image: Tensor, label: Tensor) -> None:
    chosen, objectives = trainer.format, _Objectives(trainer, image, label)
    with check.watching(), torch.no_grad(), torch.autocast(chosen.device.type, chosen.dtype, cache_enabled=False):
        objectives.run_all()


def _weights(trainer: AdversarialSegmentationTrainer) -> dict[str, nn.Parameter]:
    """Every parameter that learns, by ``"network.parameter"``, in one order in all processes."""
    networks = {**trainer.format.networks, "heads": trainer.deep_supervision}
    return {
        f"{name}.{path}": weight
        for name, network in networks.items()
        if network is not None
        for path, weight in network.named_parameters()
    }


def _told(chosen: NumberFormat, errors: Mapping[str, float]) -> tuple[torch.dtype, int, str]:
    return chosen.dtype, len(errors), ", ".join(f"{name} ({error:.3g})" for name, error in errors.items())


def _together(errors: Mapping[str, float]) -> dict[str, float]:
    """The errors of all processes, those that are none left out: each must compute as the others do."""
    worst = largest([min(error, 1e30) for error in errors.values()])
    return {name: error for name, error in zip(errors, worst, strict=True) if error > 0.0}


@contextmanager
def _unchanged(trainer: AdversarialSegmentationTrainer) -> Iterator[None]:
    networks = trainer.format.networks
    buffers, randomness = Buffers(*networks.values()), random_state()
    opponent = trainer.adversary
    noise = None if opponent is None else opponent.noise_state()
    modes = [(module, module.training) for network in networks.values() for module in network.modules()]
    learns = [(weight, weight.requires_grad) for network in networks.values() for weight in network.parameters()]
    eagerly = torch.compiler.set_stance("force_eager")  # kernels are built later
    with eagerly:
        yield
    buffers.restore()
    set_random_state(randomness)
    if opponent is not None:
        opponent.set_noise_state(noise)
    for module, training in modes:
        module.training = training
    for weight, required in learns:
        weight.requires_grad_(required)


class _Objectives:
    """The losses of one batch as functions of the networks, without a step, an event or a trace in the trainer."""

    def __init__(self, trainer: AdversarialSegmentationTrainer, image: Tensor, label: Tensor) -> None:
        self.trainer, self.image, self.label = trainer, image, label
        self.randomness = random_state()
        self.noise = None if trainer.adversary is None else trainer.adversary.noise_state()
        self.buffers = Buffers(*trainer.format.networks.values())
        trainer.network.train()
        if trainer.opponent is not None:
            trainer.opponent.discriminator.train().requires_grad_(True)

    def run_all(self) -> None:
        """Let every network see its part of the batch."""
        prediction = self._predict()
        if self.trainer.opponent is not None:
            self.trainer.opponent.look(self.image, self.label, prediction)

    def disagreements(self) -> dict[str, float]:
        """Error of every parameter's gradient, 0 where it is within the tolerance."""
        trainer = self.trainer
        heads = {} if trainer.deep_supervision is None else {"heads": trainer.deep_supervision}
        errors = self._errors(self._generator_loss, {"generator": trainer.network, **heads})
        if trainer.opponent is not None:
            trainer.opponent.discriminator.requires_grad_(True)  # the generator's loss has taken it away
            errors |= self._errors(self._discriminator_loss, {"discriminator": trainer.opponent.discriminator})
        return errors

    def _errors(self, loss: _Loss, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        weights = {
            f"{name}.{path}": weight
            for name, network in networks.items()
            for path, weight in network.named_parameters()
            if weight.requires_grad
        }
        if not weights:
            return {}
        wanted = self._gradients(loss, list(weights.values()), None)
        whole = torch.stack([gradient.float().norm() for gradient in wanted]).norm()
        worst = dict.fromkeys(weights, 0.0)
        if not torch.isfinite(whole) or not whole:  # fp32 has no answer to compare with
            return worst
        for fill in FILLS[:2]:
            found = self._gradients(loss, list(weights.values()), fill)
            for name, right, other in zip(weights, wanted, found, strict=True):
                share = float(right.norm() / (right.norm() + FLOOR * whole))
                error = difference(other, right) * share if share else float(other.norm() / (FLOOR * whole))
                worst[name] = max(worst[name], error if error > TOLERANCE else 0.0)
        return worst

    def _gradients(self, loss: _Loss, weights: list[nn.Parameter], fill: int | None) -> list[Tensor]:
        """Gradients in fp32 without ``fill``, else in the reduced format and filled memory."""
        chosen = self.trainer.format
        context = nullcontext if fill is None else chosen.computing
        found: list[Tensor] = []
        for scale in _SCALES if chosen.scaled and fill is not None else (1.0,):
            self._begin_again()
            with torch.enable_grad():
                value = loss(context)
                if fill is not None:
                    filled_memory(weights, fill)
                gradients = torch.autograd.grad(value * scale, weights, allow_unused=True)
            pairs = zip(gradients, weights, strict=True)
            found = [torch.zeros_like(weight) if gradient is None else gradient / scale for gradient, weight in pairs]
            if all(bool(torch.isfinite(gradient).all()) for gradient in found):
                break
        return found

    def _begin_again(self) -> None:
        set_random_state(self.randomness)
        self.buffers.restore()
        if self.trainer.adversary is not None:
            self.trainer.adversary.set_noise_state(self.noise)

    def _predict(self, context: _Context = nullcontext) -> Tensor:
        trainer, heads = self.trainer, self.trainer.deep_supervision
        with context(), nullcontext() if heads is None else heads.reading(trainer.network):
            prediction: Tensor = trainer.inferer(self.image, trainer.network)
        return prediction.float()

    def _generator_loss(self, context: _Context) -> Tensor:
        trainer, prediction = self.trainer, self._predict(context)
        loss = trainer.supervised_loss(prediction, self.label)
        if trainer.opponent is not None:
            with context():
                loss = loss + trainer.opponent.teach_all(self.image, self.label, prediction, None)
        return loss

    def _discriminator_loss(self, context: _Context) -> Tensor:
        opponent = self.trainer.opponent
        assert opponent is not None
        with torch.no_grad():  # the same in both formats: what the generator makes of them is its own error
            fake = opponent.judged(self._predict())
        with context():
            loss, _, _ = opponent.judge(self.image, opponent.reference(self.label, fake), fake)
        return loss
