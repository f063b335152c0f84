"""Several looks at one window, averaged: mirrored, and by several networks.

Every window is computed once per view and its probabilities are averaged before it is stitched, as nnU-Net does with
mirrored windows (Isensee et al., Nat Methods 18, 2021), so that memory grows with one window, not with the volume. The
average is kept as a logarithm: with the softmax (or sigmoid) of the bundle's post-processing it becomes the mean
probability, and nothing after the network need know that there was more than one view.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.bundle.config import item_at, spelled_out
from medseg.bundle.policy import require_no_loose_weights
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file
from medseg.geometry import Geometry
from medseg.inference.engines import Engine
from medseg.labels.codes import sided_names
from medseg.networks.nnunet import MeanOf

MIRRORS = {"lr": "LR", "ap": "AP", "is": "IS"}
"""Names of the patient's axes, and the letters that stand for their ends in an orientation such as ``"RAS"``."""

_SHARED = ("preprocessing", "inferer", "postprocessing")
_REFERENCE = re.compile(r"@([\w:#]+)$")


def ensemble_of(engines: Sequence[Engine], axes: Sequence[int], activation: str) -> Engine:
    """What maps windows to the mean of every engine with every combination of mirrored axes (0, 1, 2) of its grid.

    ``activation`` turns scores into probabilities: ``"softmax"``, ``"sigmoid"`` or ``"none"``, which averages scores.
    """
    flips = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    views = [_mirrored(engine, chosen) if chosen else engine for engine in engines for chosen in flips]
    return views[0] if len(views) == 1 else Ensemble(views, activation)


def _mirrored(engine: Engine, flips: tuple[int, ...]) -> Engine:
    """An engine that sees windows mirrored; its scores lie as the windows do."""
    axes = [axis + 2 for axis in flips]
    return lambda batch: engine(batch.flip(axes)).flip(axes)


@dataclass(frozen=True)
class Ensemble:
    """The mean probability of several views as scores, see :func:`ensemble_of`."""

    views: Sequence[Engine]
    activation: str

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        scores = (view(batch) for view in self.views)
        if self.activation == "softmax":  # a common factor does not change a softmax
            return reduce(torch.logaddexp, (torch.log_softmax(given, dim=1) for given in scores))
        if self.activation == "sigmoid":
            return _mean_sigmoid(scores)
        return reduce(torch.add, scores) / len(self.views)


def _mean_sigmoid(scores: Iterator[torch.Tensor]) -> torch.Tensor:
    first = next(scores)
    there, absent = logsigmoid(first), logsigmoid(-first)
    for more in scores:
        there, absent = torch.logaddexp(there, logsigmoid(more)), torch.logaddexp(absent, logsigmoid(-more))
    return there - absent


def check_mirror(mirror: Sequence[str], bundle: Bundle) -> None:
    """Refuse an unknown axis, and left–right where a structure has a side, as it would have the other one mirrored.

    Of an imported bundle the origin says along which axes its network has learnt from mirrored images.
    """
    unknown = [name for name in mirror if name not in MIRRORS]
    if unknown or len(set(mirror)) != len(mirror):
        raise UsageError(f"--mirror {','.join(mirror)}: expected some of {', '.join(MIRRORS)}, each once")
    learnt = bundle.metadata.get("imported", {}).get("mirror")
    if learnt is not None:
        if strange := [name for name in mirror if name not in learnt]:
            raise UsageError(
                f"--mirror {','.join(strange)}: {bundle.name} was not trained on images mirrored so, expected some of"
                f" {', '.join(learnt) or 'none'}; leave it out"
            )
        return
    sided = sided_names(bundle)
    if "lr" in mirror and sided:
        raise UsageError(
            f"--mirror lr would confuse left and right of {', '.join(sided)} of {bundle.name}; leave lr out"
        )


def mirrored_axes(mirror: Sequence[str], geometry: Geometry) -> tuple[int, ...]:
    """Axes of a grid that lie closest to the patient's axes named in ``mirror``."""
    wanted = {letter for name in mirror for letter in MIRRORS[name]}
    return tuple(axis for axis, letter in enumerate(geometry.orientation) if letter in wanted)


def members_of(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The networks whose scores a bundle's own averages, or it alone."""
    return list(network.networks) if isinstance(network, MeanOf) else [network]


def load_models(
    bundle: Bundle, network: torch.nn.Module, ensemble: Sequence[str], device: str = "cpu"
) -> list[torch.nn.Module]:
    """Load the networks that are averaged with a bundle's own, in evaluation mode.

    The bundle says how images are prepared and labels are made; ``ensemble`` are folders of bundles, whose networks may
    differ, and weights files for its ``network`` (folds).

    Raises ``UsageError`` if there is no such file or folder, or a bundle labels other structures or prepares images
    differently; ``BundleError``, ``UntrustedBundle``: as :meth:`medseg.bundle.Bundle.load_network`.
    """
    return [_load(Path(place), bundle, network, device) for place in ensemble]


def member_digest(place: str) -> str:
    """SHA-256 of what a member's scores depend on; a ``UsageError`` if there is no such file or folder."""
    path = Path(place)
    return Bundle.open(path).sha256 if path.is_dir() else sha256_file(_weights_file(path))


def _weights_file(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"--ensemble {path}: there is no such bundle or weights file")
    return path


def _load(path: Path, bundle: Bundle, network: torch.nn.Module, device: str) -> torch.nn.Module:
    if path.is_dir():
        other = Bundle.open(path, bundle.permission)
        _check_alike(other, bundle)
        return other.load_network(device)
    require_no_loose_weights(path)
    state = read_weights(_weights_file(path))
    member = copy.deepcopy(network)
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise BundleError(f"the weights in {path.name} are not finite in {bad[0]}; train them again")
    try:
        member.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BundleError(f"the weights in {path.name} do not fit the network of {bundle.name}: {error}") from error
    return member


def _check_alike(other: Bundle, bundle: Bundle) -> None:
    if (other.input_channels, other.scheme) != (bundle.input_channels, bundle.scheme):
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
