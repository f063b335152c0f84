"""The further networks of an ensemble: other bundles for the same task, or other weights of the same network."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.bundle.pipeline import item_at
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file

__all__ = ["load_members", "member_digest"]

_SHARED = ("preprocessing", "inferer", "postprocessing")
_REFERENCE = re.compile(r"@([\w:#]+)$")


def load_members(
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
    return _spelled_out(None if place is None else item_at(bundle.inference, place), bundle.inference)


def _spelled_out(value: Any, config: Mapping[str, Any], depth: int = 0) -> Any:
    """A part of a config with what its references name put in their place; where files are written does not count."""
    if isinstance(value, Mapping):
        return {key: _spelled_out(v, config, depth) for key, v in value.items() if key not in {"output_dir", "device"}}
    if isinstance(value, list):
        return [_spelled_out(item, config, depth) for item in value]
    named = _REFERENCE.match(value) if isinstance(value, str) else None
    if named is None or depth > 20:
        return value
    target: Any = config
    for key in re.split("::|#", named[1]):
        if isinstance(target, list) and key.isdigit() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, Mapping) and key in target:
            target = target[key]
        else:
            return value
    return _spelled_out(target, config, depth + 1)
