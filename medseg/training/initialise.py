"""Starting weights from another bundle: what fits is copied, what does not is reported."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.errors import UsageError

_logger = logging.getLogger("medseg.training")

_SCALE_FREE = (
    nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm
)  # fmt: skip
"""Normalisations whose answer does not depend on the size of what they are given."""


@dataclass(frozen=True)
class Transfer:
    """What became of the weights of another network.

    ``copied`` names have a partner of their shape; those without one are ``kept`` here, and ``unused`` there.
    """

    copied: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]
    rescaled: int = 0

    def __str__(self) -> str:
        text = f"{len(self.copied)} tensors copied, {len(self.kept)} start anew, {len(self.unused)} not used"
        return f"{text}, {self.rescaled} convolutions rescaled" if self.rescaled else text


def started(network: nn.Module, init: str | PathLike[str] | None = None, rescaled: bool = False) -> nn.Module:
    """The network of a configuration with the starting weights that its ids ``init`` and ``rescale`` ask for.

    It is changed in place and returned; without ``init`` (:func:`initialise_from`) it stays as it is. To rescale with
    nothing to start from is a ``UsageError``, and so is a value of the wrong kind, such as the text "false".
    """
    if not isinstance(rescaled, bool):
        raise UsageError(f"rescale is {rescaled!r}, expected true or false (True or False on MONAI's command line)")
    if init is None:
        if rescaled:
            raise UsageError("--rescale changes what --init copies, and there is no --init; give both or neither")
        return network
    if not isinstance(init, str | PathLike):
        raise UsageError(f"init is {init!r}, expected the folder of a bundle or a .pt file with a state dict")
    with torch.random.fork_rng(devices=[]):  # a network built to be read from must not move what is drawn later
        transfer = initialise_from(network, init, rescaled=rescaled)
    _logger.info("starting weights: %s", transfer)
    return network


def initialise_from(network: nn.Module, source: str | PathLike[str], *, rescaled: bool = False) -> Transfer:
    """Start ``network`` from a bundle's folder or from a ``.pt`` file with a bare state dict: copy what fits.

    It is a ``UsageError`` if there is nothing, no name and shape fits, or nothing can be rescaled (:func:`rescale`).
    """
    path = Path(source)
    if path.is_dir():
        weights = Bundle.open(path).load_network().state_dict()
    elif path.is_file():
        weights = read_weights(path)
    else:
        raise UsageError(f"there is nothing at {path}; --init takes a bundle's folder or a .pt file")
    own = network.state_dict()
    start = {name: value.clone() for name, value in own.items()}
    copied = tuple(name for name, value in weights.items() if name in own and own[name].shape == value.shape)
    if not copied:
        raise UsageError(
            f"none of the {len(weights)} tensors of the other network fits this one by name and shape; "
            "choose a bundle whose encoder has the same architecture"
        )
    with torch.no_grad():
        for name in copied:
            own[name].copy_(weights[name])
    kept, unused = (tuple(name for name in names if name not in copied) for names in (own, weights))
    transfer = Transfer(copied, kept, unused)
    return replace(transfer, rescaled=rescale(network, start)) if rescaled else transfer


def rescale(network: nn.Module, start: dict[str, Tensor]) -> int:
    """Give MONAI's ``Convolution`` blocks with a normalisation the size of ``start``, fresh weights; returns how many.

    The size of such weights does not matter to what the network computes, but training enlarges them, and the same
    step of the optimiser then turns them less: a network that goes on to another task learns it more slowly than a
    fresh one (van Laarhoven, arXiv:1706.05350). Without such a convolution it is a ``UsageError``.
    """
    count = 0
    for name, block in network.named_modules():
        behind = next(getattr(block, "adn", nn.Module()).children(), None)
        if not isinstance(block, Convolution) or not isinstance(behind, _SCALE_FREE):
            continue
        with torch.no_grad():
            factor = start[f"{name}.conv.weight"].norm() / block.conv.weight.norm().clamp_min(1e-12)
            block.conv.weight.mul_(factor)
            if block.conv.bias is not None:
                block.conv.bias.mul_(factor)
            if getattr(block.adn.N, "running_mean", None) is not None:
                block.adn.N.running_mean.mul_(factor)
                block.adn.N.running_var.mul_(factor**2)
        count += 1
    if not count:
        raise UsageError(
            f"{type(network).__name__} has no convolution of MONAI's that a normalisation follows; leave --rescale out"
        )
    return count
