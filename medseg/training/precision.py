"""The number format that the networks of a run compute in: what was asked for, and what a trial has left of it.

Before the first step a reduced format is compared with fp32 on a real batch. First each layer by itself
(:mod:`~medseg.training.layer_check`), so that a kernel that is wrong for one shape costs one layer. Then the gradients
of the losses by every parameter, which see what no layer shows; if they disagree, everything computes in fp32.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medseg.devices import FORMAT_NAMES, Precision, fast_dtype, processor
from medseg.training.data import random_state, set_random_state
from medseg.training.distributed import over_processes
from medseg.training.layer_check import FILLS, LayerCheck, difference, filled_memory, keep_in_fp32
from medseg.training.step import Buffers

TOLERANCE = 1.0
"""Largest error of a parameter's gradient as a whole: beyond it more is wrong than right."""

FLOOR = 0.05
"""Part of the whole gradient's norm that is added to a parameter's: rounding in one next to zero is no error."""

_SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)
_LARGEST = 1e30
"""Errors are cut to it, infinite ones too: they are written as JSON."""

_logger = logging.getLogger("medseg.training")


@dataclass
class Decision:
    """What a trial has left of the format ``first``, and on which processor (None: not yet tried).

    Layers that are ``kept`` in fp32 by ``"network.module"``, with their relative errors; parameters whose gradients are
    in ``disagreement`` as a whole, for which everything computes in fp32; why it is ``unchecked``, if it could not be.
    """

    first: str
    kept: dict[str, float] = field(default_factory=dict)
    disagreement: dict[str, float] = field(default_factory=dict)
    unchecked: str | None = None
    tried_on: str | None = None


class NumberFormat:
    """The format that the networks of a run compute in.

    It is part of the checkpoints, so a run that goes on computes in the same formats without another trial, unless it
    goes on with another processor. Layers of the ``networks`` may be kept in fp32; ``copies`` follow them by name.

    ``dtype`` is what convolutions compute in; losses are ``scaled`` where gradients may underflow.
    """

    def __init__(
        self,
        device: torch.device,
        asked: Precision,
        networks: Mapping[str, nn.Module],
        copies: Mapping[str, Sequence[nn.Module]],
    ) -> None:
        self.device, self.asked, self.networks, self._copies = device, asked, networks, copies
        self.dtype = fast_dtype(device, asked)
        self.scaled = self.dtype == torch.float16
        self.decided = Decision(FORMAT_NAMES[self.dtype])

    @property
    def tried(self) -> bool:
        """Whether nothing is left to try: the format is fp32, or this processor has been tried."""
        return self.dtype == torch.float32 or self.decided.tried_on == processor(self.device)

    def computing(self) -> AbstractContextManager[object]:
        """Context in which networks compute in the format; nothing for fp32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)

    @contextmanager
    def as_fp32(self) -> Iterator[None]:
        """While open, the format is fp32."""
        dtype, self.dtype = self.dtype, torch.float32
        try:
            yield
        finally:
            self.dtype = dtype

    def keep(self, errors: Mapping[str, float]) -> None:
        """Let layers compute in fp32."""
        for layer in errors.keys() - self.decided.kept.keys():
            name, _, path = layer.partition(".")
            for network in (self.networks[name], *self._copies.get(name, ())):
                keep_in_fp32(network.get_submodule(path))
        self.decided.kept.update(errors)

    def give_up(self, disagreement: Mapping[str, float]) -> None:
        """Compute everything in fp32."""
        self.decided.disagreement.update(disagreement)
        self.dtype = torch.float32

    def settle(self, unchecked: str | None = None) -> None:
        """Note that this processor has been tried, or why it could not be."""
        self.decided.unchecked, self.decided.tried_on = unchecked, processor(self.device)

    def record(self) -> dict[str, Any]:
        """For ``run.json``: what was asked for and used, what computes in fp32 all the same, and why."""
        decided = self.decided
        return {
            "asked": self.asked,
            "used": FORMAT_NAMES[self.dtype],
            "kept_in_fp32": sorted(decided.kept),
            "disagreement": {name: f"{error:.3g}" for name, error in {**decided.kept, **decided.disagreement}.items()},
            "checked_on": decided.tried_on,
            "unchecked": decided.unchecked,
        }

    def state_dict(self) -> dict[str, Any]:
        """What has been decided, as JSON."""
        return {"json": json.dumps(asdict(self.decided))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was decided; in another format than that run's, a new trial decides."""
        decided = Decision(**json.loads(state["json"]))
        if decided.first == self.decided.first:
            self.keep(decided.kept)
            if decided.disagreement:
                self.give_up(decided.disagreement)
            self.decided = decided


@dataclass(frozen=True)
class Objective:
    """What one part of a run learns from: networks by name, and their loss on images and labels."""

    networks: Mapping[str, nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by ``"network.parameter"``, in one order in all processes."""
        return {
            f"{name}.{path}": weight
            for name, network in self.networks.items()
            for path, weight in network.named_parameters()
        }


class Trial:
    """Compares a reduced format with fp32 on a batch, and keeps in fp32 what disagrees.

    The batch is halved where memory does not suffice. The state of the run, random numbers included, is afterwards what
    it was. ``look`` lets every network see its part of a batch (image, label), without a loss. The losses of the
    ``objectives`` compute in the format, and leave no trace but in buffers and random numbers, of which ``sources`` are
    generators besides the global ones.
    """

    def __init__(
        self,
        chosen: NumberFormat,
        look: Callable[[Tensor, Tensor], None],
        objectives: Sequence[Objective],
        sources: Sequence[torch.Generator],
    ) -> None:
        self.format, self.look, self.objectives, self.sources = chosen, look, objectives, sources
        self.buffers, self.randomness = Buffers(*chosen.networks.values()), random_state()
        self.states = [source.get_state() for source in sources]

    def run(self, image: Tensor, label: Tensor) -> None:
        """Decide for a batch of this run."""
        chosen = self.format
        with self._unchanged():
            check = LayerCheck(chosen.networks, chosen.dtype)
            unchecked = _with_less(image, label, lambda *batch: self._check_layers(check, *batch))
            if errors := _worst(dict.fromkeys(check.layers, 0.0) | check.errors):
                _warn("%s is wrong here in %d layers, which compute in fp32: %s", chosen, errors)
                chosen.keep(errors)
            found = {name: 0.0 for objective in self.objectives for name in objective.parameters()}
            again = _with_less(image, label, lambda *batch: found.update(self._disagreements(*batch)))
            if errors := _worst(found):
                _warn("%s gives other gradients for %d parameters, all is in fp32: %s", chosen, errors)
                chosen.give_up(errors)
        chosen.settle(unchecked or again)
        if unchecked or again:
            _logger.warning("%s could not be compared with fp32: %s", chosen.asked, unchecked or again)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        networks = self.format.networks.values()
        modes = [(module, module.training) for network in networks for module in network.modules()]
        learns = [(weight, weight.requires_grad) for network in networks for weight in network.parameters()]
        for network in networks:
            network.train()
        with torch.compiler.set_stance("force_eager"):  # kernels are built later
            yield
        self._begin_again()
        for module, training in modes:
            module.training = training
        for weight, required in learns:
            weight.requires_grad_(required)

    def _begin_again(self) -> None:
        self.buffers.restore()
        set_random_state(self.randomness)
        for source, state in zip(self.sources, self.states, strict=True):
            source.set_state(state)

    def _check_layers(self, check: LayerCheck, image: Tensor, label: Tensor) -> None:
        self._begin_again()
        chosen = self.format
        with check.watching(), torch.no_grad(), torch.autocast(chosen.device.type, chosen.dtype, cache_enabled=False):
            self.look(image, label)

    def _disagreements(self, image: Tensor, label: Tensor) -> dict[str, float]:
        """Error of every parameter's gradient, 0 where it is within the tolerance."""
        worst: dict[str, float] = {}
        for objective in self.objectives:
            expected = self._gradients(objective, image, label, None)
            norms = [gradient.float().norm() for gradient in expected.values()]
            whole = torch.stack(norms).norm() if norms else torch.zeros(())
            if not torch.isfinite(whole) or not whole:  # fp32 has no answer to compare with
                continue
            for fill in FILLS[:2]:
                for name, other in self._gradients(objective, image, label, fill).items():
                    right = expected[name]
                    share = float(right.norm() / (right.norm() + FLOOR * whole))
                    error = difference(other, right) * share if share else float(other.norm() / (FLOOR * whole))
                    worst[name] = max(worst.get(name, 0.0), error if error > TOLERANCE else 0.0)
        return worst

    def _gradients(self, objective: Objective, image: Tensor, label: Tensor, fill: int | None) -> dict[str, Tensor]:
        """Gradients in fp32 without ``fill``, else in the format and filled memory."""
        found: dict[str, Tensor] = {}
        for scale in _SCALES if self.format.scaled and fill is not None else (1.0,):
            self._begin_again()
            with torch.enable_grad(), self.format.as_fp32() if fill is None else nullcontext():
                value = objective.loss(image, label)
                weights = {name: weight for name, weight in objective.parameters().items() if weight.requires_grad}
                if not weights:
                    return {}
                if fill is not None:
                    filled_memory(weights.values(), fill)
                gradients = torch.autograd.grad(value * scale, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                found[name] = torch.zeros_like(weight) if gradient is None else gradient / scale
            if all(bool(torch.isfinite(gradient).all()) for gradient in found.values()):
                break
        return found


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


def _worst(errors: Mapping[str, float]) -> dict[str, float]:
    """The errors of all processes, those that are none left out: each must compute as the others do."""
    worst = over_processes([min(error, _LARGEST) for error in errors.values()], "MAX")
    return {name: error for name, error in zip(errors, worst, strict=True) if error > 0.0}


def _warn(message: str, chosen: NumberFormat, errors: Mapping[str, float]) -> None:
    listed = ", ".join(f"{name} ({error:.3g})" for name, error in errors.items())
    _logger.warning(message, chosen.dtype, len(errors), listed)
