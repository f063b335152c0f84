"""Cases without labels: drawn beside the labelled ones, they train the generator through others' judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import DataLoader
from monai.transforms import Compose
from torch import Tensor

from medseg.training.data import TrainingDataset, place_sampler, training_loader
from medseg.training.schedule import StepPlan, ramped


@dataclass
class UnlabelledBatch:
    """One batch of unlabelled images ``(B, C, …)``.

    The teacher and the discriminator see ``weak``, the generator ``strong``, the same patches disturbed further.
    ``target`` is the teacher's label map ``(B, 1, …)``, where it is needed; ``prediction`` the generator's logits.
    """

    weak: Tensor
    strong: Tensor
    target: Tensor | None = None
    prediction: Tensor | None = None


class MeanTeacher:
    """A batch of unlabelled images for every iteration, and how much each way of learning from them counts.

    The generator learns from them through the discriminator (Hung et al. 2018, arXiv 1802.07934), and from the labels
    that its own moving average gives to an undisturbed view (mean teacher, Tarvainen and Valpola 2017,
    arXiv 1703.01780). The discriminator itself learns from labelled cases alone: else it could tell fakes by the
    image. Which batch belongs to which iteration depends on the seed alone, so nothing has to be saved.

    The ``loader``, from :func:`medseg.training.training_loader`, gives ``image`` and, if the generator shall see
    another view, ``strong``. ``consistency`` is the final weight of the supervised loss against the moving
    average's labels, 0 for none; the teacher counts from iteration ``start`` on, its weight rises over ``ramp``. If
    ``adversarial``, the discriminator judges these predictions too, with the weight of the adversarial loss.
    """

    def __init__(
        self, loader: DataLoader, *, consistency: float = 1.0, start: int = 0, ramp: int = 0, adversarial: bool = True
    ) -> None:
        if min(consistency, start, ramp) < 0:
            raise ValueError(f"consistency, start and ramp must not be negative; found {(consistency, start, ramp)}")
        self.loader, self.consistency, self.start, self.ramp = loader, consistency, start, ramp
        self.adversarial = adversarial
        self._stream: Iterator[dict[str, Any]] | None = None
        self._next = 0

    def weight_at(self, iteration: int) -> float:
        """Weight of the agreement with the teacher at a 1-based ``iteration``."""
        return ramped(self.consistency, iteration - self.start, self.ramp)

    def batch(
        self, iteration: int, plan: StepPlan, place: Callable[[Tensor], Tensor], teacher: Callable[[Tensor], Tensor]
    ) -> UnlabelledBatch | None:
        """The batch of a 1-based ``iteration``, or None while nothing would be learnt from it.

        ``place`` brings a tensor to the device of the run; ``teacher`` gives the label map of images, if it is needed.
        """
        if plan.consistency == 0.0 and not (self.adversarial and plan.share > 0.0):
            return None
        if self._stream is None or self._next != iteration:
            place_sampler(self.loader, iteration - 1)
            self._stream = iter(self.loader)
        self._next = iteration + 1
        drawn = next(self._stream)
        weak = place(torch.as_tensor(drawn["image"]))
        strong = place(torch.as_tensor(drawn["strong"])) if "strong" in drawn else weak
        return UnlabelledBatch(weak, strong, teacher(weak) if plan.consistency else None)


def unlabelled_cases(  # noqa: PLR0913  knobs of one object, all with a default
    data: Sequence[dict[str, Any]],
    transform: Compose,
    *,
    batch_size: int,
    iterations: int,
    seed: int = 0,
    num_workers: int = 0,
    consistency: float = 1.0,
    start: int = 0,
    ramp: int = 0,
    adversarial: bool = True,
) -> MeanTeacher | None:
    """:class:`MeanTeacher` from a list of cases; None if the list is empty or both of its weights are 0.

    The parameters are those of :class:`TrainingDataset`, :func:`training_loader` and :class:`MeanTeacher`.
    """
    if not data or not (consistency or adversarial):
        return None
    dataset = TrainingDataset(data, transform, seed=seed + 1)  # + 1: not the augmentation of the labelled cases
    loader = training_loader(dataset, batch_size, iterations, num_workers=num_workers)
    return MeanTeacher(loader, consistency=consistency, start=start, ramp=ramp, adversarial=adversarial)
