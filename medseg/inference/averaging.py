"""Several looks at one window, averaged: mirrored, and by several networks.

Every window is computed once per view and its probabilities are averaged before it is stitched, as nnU-Net does with
mirrored windows (Isensee et al., Nat Methods 18, 2021), so that memory grows with one window, not with the volume. The
average is kept as a logarithm: with the softmax (or sigmoid) of the bundle's post-processing it becomes the mean
probability, and nothing after the network need know that there was more than one view.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch.nn.functional import logsigmoid

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.geometry import Geometry

__all__ = ["MIRRORS", "Averaged", "View", "check_mirror", "mirrored_axes", "views"]

MIRRORS = {"lr": "LR", "ap": "AP", "is": "IS"}
"""Names of the patient's axes, and the letters that stand for their ends in an orientation such as ``"RAS"``."""

_SIDE = re.compile(r"left|right|(?:^|[^a-z0-9])[lr](?:[^a-z0-9]|$)")

Scores = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class View:
    """One look at a window.

    Parameters
    ----------
    member
        Which network looks.
    flips
        Axes of the network's grid (0, 1, 2) along which it sees the window mirrored.
    """

    member: int
    flips: tuple[int, ...] = ()


def views(members: int, axes: Sequence[int]) -> tuple[View, ...]:
    """Every network with every combination of mirrored axes, the plain look of the first network first."""
    flips = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    return tuple(View(member, chosen) for member in range(members) for chosen in flips)


def check_mirror(mirror: Sequence[str], bundle: Bundle) -> None:
    """Refuse mirroring that makes no sense.

    Raises
    ------
    UsageError
        For an unknown axis, and for left–right where a structure has a side: in a mirrored patient the network
        would name the other side.
    """
    unknown = [name for name in mirror if name not in MIRRORS]
    if unknown or len(set(mirror)) != len(mirror):
        raise UsageError(f"--mirror {','.join(mirror)}: expected some of {', '.join(MIRRORS)}, each once")
    sided = _sided(bundle)
    if "lr" in mirror and sided:
        raise UsageError(
            f"--mirror lr would confuse left and right of {', '.join(sided)} of {bundle.name}; leave lr out"
        )


def mirrored_axes(mirror: Sequence[str], geometry: Geometry) -> tuple[int, ...]:
    """Axes of a grid that lie closest to the patient's axes named in ``mirror``."""
    wanted = {letter for name in mirror for letter in MIRRORS[name]}
    return tuple(axis for axis, letter in enumerate(geometry.orientation) if letter in wanted)


def _sided(bundle: Bundle) -> list[str]:
    """Names of the structures that belong to one side of the body, by their name or by their code."""
    coded = {label for label, code in bundle.label_codes.items() if code.get("laterality")}
    return [name for label, name in bundle.labels.items() if label in coded or _SIDE.search(name.lower())]


class Averaged:
    """An engine that gives the mean probability of several views, as scores.

    Parameters
    ----------
    engines
        One per network, each mapping windows ``(N, C, H, W, D)`` to scores ``(N, K, H, W, D)``.
    looks
        The views to average; a single one passes its scores on as they are.
    activation
        What turns scores into probabilities: ``"softmax"``, ``"sigmoid"`` or ``"none"``, which averages the scores.
    """

    def __init__(self, engines: Sequence[Scores], looks: Sequence[View], activation: str) -> None:
        self._engines, self._looks = tuple(engines), tuple(looks)
        self._mean = _MEANS[activation]

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        if len(self._looks) == 1:
            return self._look(batch, self._looks[0])
        return self._mean(lambda index: self._look(batch, self._looks[index]), len(self._looks))

    def _look(self, batch: torch.Tensor, view: View) -> torch.Tensor:
        engine = self._engines[view.member]
        if not view.flips:
            return engine(batch)
        axes = [axis + 2 for axis in view.flips]
        return engine(batch.flip(axes)).flip(axes)


def _mean_softmax(scores: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    total = torch.log_softmax(scores(0), dim=1)
    for index in range(1, count):
        total = torch.logaddexp(total, torch.log_softmax(scores(index), dim=1))
    return total  # a common factor does not change a softmax


def _mean_sigmoid(scores: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    first = scores(0)
    there, absent = logsigmoid(first), logsigmoid(-first)
    for index in range(1, count):
        more = scores(index)
        there, absent = torch.logaddexp(there, logsigmoid(more)), torch.logaddexp(absent, logsigmoid(-more))
    return there - absent


def _mean_scores(scores: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    total = scores(0).clone()
    for index in range(1, count):
        total += scores(index)
    return total / count


_MEANS: dict[str, Callable[[Callable[[int], torch.Tensor], int], torch.Tensor]] = {
    "softmax": _mean_softmax,
    "sigmoid": _mean_sigmoid,
    "none": _mean_scores,
}
