"""Several networks and several mirrored views of one window, averaged, each run by the chosen engine.

Several looks at one window, averaged: mirrored, and by several networks.

Every window is computed once per view and its probabilities are averaged before it is stitched, as nnU-Net does with
mirrored windows (Isensee et al., Nat Methods 18, 2021), so that memory grows with one window, not with the volume. The
average is kept as a logarithm: with the softmax (or sigmoid) of the bundle's post-processing it becomes the mean
probability, and nothing after the network need know that there was more than one view.

The further networks of an ensemble: other bundles for the same task, or other weights of the same network.

The networks of a predictor, run in the chosen way: engines, windows, integers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.bundle.config import item_at, spelled_out
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file
from medseg.geometry import Geometry
from medseg.inference.choice import EngineChoice
from medseg.inference.config import InferenceConfig
from medseg.inference.engines import REFERENCE, Engine, build_engine
from medseg.inference.footprint import Footprint, large_window, measure_footprint
from medseg.inference.memory import share_bytes
from medseg.inference.quantised import INT8, QuantisedEngine
from medseg.inference.sliding_window import WindowSettings, plan_windows, spread_windows

MIRRORS = {"lr": "LR", "ap": "AP", "is": "IS"}
"""Names of the patient's axes, and the letters that stand for their ends in an orientation such as ``"RAS"``."""

_SIDE = re.compile(r"left|right|(?:^|[^a-z0-9])[lr](?:[^a-z0-9]|$)")

Scores = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TTAView:
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


def views(members: int, axes: Sequence[int]) -> tuple[TTAView, ...]:
    """Every network with every combination of mirrored axes, the plain look of the first network first."""
    flips = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    return tuple(TTAView(member, chosen) for member in range(members) for chosen in flips)


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


class Ensemble:
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

    def __init__(self, engines: Sequence[Scores], looks: Sequence[TTAView], activation: str) -> None:
        self._engines, self._looks = tuple(engines), tuple(looks)
        self._mean = _MEANS[activation]

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        if len(self._looks) == 1:
            return self._look(batch, self._looks[0])
        return self._mean(lambda index: self._look(batch, self._looks[index]), len(self._looks))

    def _look(self, batch: torch.Tensor, view: TTAView) -> torch.Tensor:
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


_SHARED = ("preprocessing", "inferer", "postprocessing")


def load_models(
    bundle: Bundle, network: torch.nn.Module, ensemble: Sequence[str], device: str = "cpu"
) -> list[torch.nn.Module]:
    """Load the networks that are averaged with a bundle's own.

    Parameters
    ----------
    bundle, network
        The bundle that says how images are prepared and labels are made, and its network.
    ensemble
        Folders of bundles, whose networks may differ, and weights files for ``network`` (folds).
    device
        Torch device.

    Returns
    -------
    list of Module
        In evaluation mode, in the order of ``ensemble``.

    Raises
    ------
    UsageError
        If there is no such file or folder, or a bundle labels other structures or prepares images differently.
    BundleError, UntrustedBundle
        As :meth:`medseg.bundle.Bundle.load_network`.
    """
    return [_load(Path(place), bundle, network, device) for place in ensemble]


def member_digest(place: str) -> str:
    """SHA-256 of what a member's scores depend on.

    Raises
    ------
    UsageError
        If there is no such file or folder.
    """
    path = Path(place)
    if path.is_dir():
        return Bundle.open(path).sha256
    if not path.is_file():
        raise UsageError(f"--ensemble {place}: there is no such bundle or weights file")
    return sha256_file(path)


def _load(path: Path, bundle: Bundle, network: torch.nn.Module, device: str) -> torch.nn.Module:
    if path.is_dir():
        other = Bundle.open(path, bundle.permission)
        _check_alike(other, bundle)
        return other.load_network(device)
    if not path.is_file():
        raise UsageError(f"--ensemble {path}: there is no such bundle or weights file")
    member = copy.deepcopy(network)
    state = read_weights(path)
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise BundleError(f"the weights in {path.name} are not finite in {bad[0]}; train them again")
    try:
        member.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BundleError(f"the weights in {path.name} do not fit the network of {bundle.name}: {error}") from error
    return member


def _check_alike(other: Bundle, bundle: Bundle) -> None:
    if (other.input_channels, other.labels) != (bundle.input_channels, bundle.labels):
        raise UsageError(
            f"{other.name} labels {list(other.labels.values())} in {other.input_channels} channels, {bundle.name}"
            f" {list(bundle.labels.values())} in {bundle.input_channels}; only bundles for the same task are averaged"
        )
    for section in _SHARED:
        if _section(bundle, section) != _section(other, section):
            raise UsageError(
                f"{section} in inference.json of {other.name} and {bundle.name} differ; only networks that see the same"
                " windows are averaged"
            )


def _section(bundle: Bundle, name: str) -> Any:
    """A part of what a bundle's evaluator is given."""
    place = getattr(bundle.pipeline, name)
    value = None if place is None else item_at(bundle.inference, place)
    return spelled_out(bundle.inference, value, without={"output_dir", "device"})


_WHOLE = WindowSettings((0, 0, 0))
_MEMORY_FRACTION = 0.4
_LARGEST_FRACTION = 0.9
_CALIBRATION_WINDOWS = 12


class Networks:
    """The bundle's network and those that are averaged with it.

    Parameters
    ----------
    members
        The networks in float32, in evaluation mode; the bundle's own first.
    recipe
        What the bundle asks for.
    device
        Torch device.
    kept
        One folder per network that keeps it in integers; empty keeps them in memory.
    """

    def __init__(
        self, members: Sequence[torch.nn.Module], recipe: InferenceConfig, device: str, kept: Sequence[Path] = ()
    ) -> None:
        self.members, self.device = tuple(members), device
        self.choice = EngineChoice()
        self._recipe, self._kept = recipe, tuple(kept)
        self._engines: list[Engine] = []
        self._footprint: Footprint | None = None

    @property
    def own_windows(self) -> WindowSettings:
        """The bundle's own sliding window; one as large as the volume if its inferer takes the whole volume."""
        return self._recipe.windows or _WHOLE

    def use(self, choice: EngineChoice) -> None:
        """Run the networks in the given way from now on."""
        self.choice = settled(choice, self.device)
        self._engines = [self._engine(choice.engine, member) for member in range(len(self.members))]

    def copy_of(self, member: int = 0) -> torch.nn.Module:
        """A copy of a network in float32, to build an engine around."""
        return copy.deepcopy(self.members[member])

    def averaged(self, looks: Sequence[TTAView]) -> Ensemble:
        """What maps windows to the mean of some views."""
        return Ensemble(self._engines, looks, self._recipe.activation)

    def learn(self, volume: torch.Tensor) -> None:
        """Learn what integers need from a volume ``(C, H, W, D)`` on the network's grid, if that is still to do."""
        for engine in self._engines:
            if isinstance(engine, QuantisedEngine) and not engine.ready:
                engine.calibrate(list(spread_windows(volume, self.own_windows, _CALIBRATION_WINDOWS)))

    def windows(self, volume: torch.Tensor) -> WindowSettings:
        """The windows for a volume ``(C, H, W, D)``: the bundle's own, or as large as memory allows."""
        own = self.own_windows
        if self.choice.windows != "large" or self._recipe.windows is None:
            return own
        if self._footprint is None:
            reference: Engine = build_engine(REFERENCE, self.copy_of(), self.device)
            window = torch.zeros(1, volume.shape[0], *plan_windows(volume.shape[1:], own).roi_size)
            self._footprint = measure_footprint(reference, window)
        budget = min(self.choice.memory_bytes or 0, share_bytes(self.device) * _LARGEST_FRACTION)
        return large_window(volume.shape[1:], own, self._footprint, budget)

    def _engine(self, name: str, member: int) -> Engine:
        if name == INT8:
            return QuantisedEngine(self.copy_of(member), self._kept[member] if self._kept else None)
        return build_engine(name, self.copy_of(member), self.device)


def settled(choice: EngineChoice, device: str) -> EngineChoice:
    """A choice of large windows with the memory that they may take, if it does not say so yet: a part of what this
    process may have now, so that others that begin later find their share, rounded down to a power of two, so that a
    few megabytes more or less do not move the windows from one run to the next."""
    if choice.windows != "large" or choice.memory_bytes is not None:
        return choice
    part = max(1, int(share_bytes(device) * _MEMORY_FRACTION))
    return replace(choice, memory_bytes=1 << (part.bit_length() - 1))
