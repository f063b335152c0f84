"""Starting weights from another bundle: what fits is copied, what does not is reported."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.errors import UsageError

__all__ = ["Transfer", "copy_matching", "initialise_from"]


@dataclass(frozen=True)
class Transfer:
    """What became of the weights of another network.

    Attributes
    ----------
    copied
        Names present on both sides with one shape.
    kept
        Names of this network that found no partner and keep their own start.
    unused
        Names of the other network without a partner here.
    """

    copied: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.copied)} tensors copied, {len(self.kept)} start anew, {len(self.unused)} not used"


def copy_matching(network: nn.Module, weights: dict[str, Tensor]) -> Transfer:
    """Copy every tensor whose name and shape match.

    Raises
    ------
    UsageError
        If nothing matches.
    """
    own = network.state_dict()
    copied = tuple(name for name, value in weights.items() if name in own and own[name].shape == value.shape)
    if not copied:
        raise UsageError(
            f"none of the {len(weights)} tensors of the other network fits this one by name and shape; "
            "choose a bundle whose encoder has the same architecture"
        )
    with torch.no_grad():
        for name in copied:
            own[name].copy_(weights[name])
    kept = tuple(name for name in own if name not in copied)
    return Transfer(copied, kept, tuple(name for name in weights if name not in copied))


def initialise_from(network: nn.Module, source: str | PathLike[str]) -> Transfer:
    """Start ``network`` from a bundle's folder or from a ``.pt`` file with a bare state dict."""
    path = Path(source)
    if path.is_dir():
        weights = Bundle.open(path).load_network().state_dict()
    elif path.is_file():
        weights = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise UsageError(f"there is nothing at {path}; --init takes a bundle's folder or a .pt file")
    return copy_matching(network, weights)
