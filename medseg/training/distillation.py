"""Learning from finished networks beside the references: what several have learnt goes into one of the same cost."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medseg.bundle.checkpoints import read_weights
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file


class Distillation:
    """Networks that look at each training patch beside the one that learns, and what they say of it as its target.

    The loss is the cross-entropy of the student's probabilities and the mean of the teachers' (Hinton et al. 2015,
    arXiv 1503.02531; without a temperature, since a voxel's doubt is what there is to learn), and one minus the Dice
    of both (Milletarì et al. 2016, with squares below, which is 0 if they agree and not only if both are certain). It
    counts wherever there is an image, also where the label is not known: there the teachers' word is all there is.

    Parameters
    ----------
    teachers
        Networks of the student's classes; they are set to evaluation and never change.
    checksums
        SHA-256 of the weights of each: a run that goes on must find the same teachers.
    weight
        Share of this loss; the supervised one has the rest. Between 0 and 1, else it is a ``ValueError``.
    sigmoid
        The channels are regions that may overlap; otherwise classes, background first.
    """

    def __init__(
        self, teachers: Sequence[nn.Module], checksums: Sequence[str], weight: float = 1.0, *, sigmoid: bool = False
    ) -> None:
        if not teachers or not 0.0 < weight <= 1.0:
            raise ValueError(f"expected teachers and a weight between 0 and 1; found {len(teachers)} and {weight}")
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.checksums, self.weight, self.sigmoid = list(checksums), weight, sigmoid
        activation = {"sigmoid": sigmoid, "softmax": not sigmoid, "include_background": sigmoid}
        self._dice = DiceLoss(**activation, squared_pred=True, batch=True)
        # not MONAI's DiceCELoss: of several channels that are regions, it takes the cross-entropy of classes
        self._entropy = binary_cross_entropy_with_logits if sigmoid else cross_entropy

    @torch.no_grad()
    def target(self, image: Tensor) -> Tensor:
        """Mean probabilities of the teachers ``(B, classes, …)`` for images ``(B, channels, …)``, in fp32."""
        total: Tensor | None = None
        for teacher in self.teachers:
            logits = teacher(image).float()
            found = logits.sigmoid() if self.sigmoid else logits.softmax(1)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total / len(self.teachers)

    def loss(self, supervised: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
        """The ``supervised`` loss and that of the student's logits against the target, by their shares."""
        distilled: Tensor = self._entropy(prediction, target) + self._dice(prediction, target)
        return (1.0 - self.weight) * supervised + self.weight * distilled

    def state_dict(self) -> dict[str, Any]:
        """Which teachers they are."""
        return {"checksums": self.checksums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the run goes on with the teachers that it began with; others are a ``UsageError``."""
        if state["checksums"] != self.checksums:
            was, now = ([text[:12] for text in sums] for sums in (state["checksums"], self.checksums))
            raise UsageError(
                f"the run learnt from teachers with the SHA-256 {was}, and finds {now}; give the same files, or train "
                "anew in another folder with --output"
            )


def distillation(
    network: nn.Module,
    teachers: Sequence[str | PathLike[str]] | None = None,
    weight: float = 1.0,
    *,
    sigmoid: bool = False,
) -> Distillation | None:
    """Teachers built like ``network``, one from each ``.pt`` file with a state dict of all its weights; None without.

    A file that is none, or of another network, is a ``UsageError``; so is a weight that is no share, also without any.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight <= 1.0:
        raise UsageError(f"teacher_weight is {weight!r}, expected a share of the loss above 0 and up to 1")
    if not teachers:
        return None
    if isinstance(teachers, str) or not isinstance(teachers, Sequence):
        raise UsageError(f"teachers is {teachers!r}, expected a list of .pt files with state dicts")
    built = []
    for path in teachers:
        teacher = copy.deepcopy(network)
        try:
            teacher.load_state_dict(read_weights(Path(path)))
        except (BundleError, RuntimeError) as error:
            told = str(error).splitlines()[-1].strip()[:200]
            what = f"{path} is no teacher of this network ({told})"
            raise UsageError(f"{what}; give a .pt file with the weights of the same network") from error
        built.append(teacher)
    return Distillation(built, [sha256_file(path) for path in teachers], weight, sigmoid=sigmoid)
