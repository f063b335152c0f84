"""Weights of published encoders: MedicalNet's 3D ResNets, and ImageNet's 2D networks inflated to 3D."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.networks.inflation import Inflation, fit

__all__ = ["Match", "load_encoder", "pretrained", "read_checkpoint"]

_logger = logging.getLogger("medseg.networks")
_HUB = "medicalnet:"
_DEPTHS = (10, 18, 34, 50, 101, 152, 200)


@dataclass(frozen=True)
class Match:
    """What became of the tensors of a checkpoint.

    Attributes
    ----------
    copied
        Names taken over as they are.
    adapted
        Names taken over after inflation to 3D, or after a change of the number of input channels.
    misfits
        Names on both sides whose shapes cannot be reconciled, with both shapes; the encoder keeps its own.
    missing
        Names of the encoder that the checkpoint does not have; the encoder keeps its own.
    unused
        Names of the checkpoint that the encoder does not have, such as its classifier.
    """

    copied: tuple[str, ...]
    adapted: tuple[str, ...]
    misfits: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{len(self.copied)} tensors copied, {len(self.adapted)} adapted, {len(self.misfits)} do not fit, "
            f"{len(self.missing)} start anew, {len(self.unused)} of the checkpoint not used"
        ]
        for title, names in (("do not fit", self.misfits), ("start anew", self.missing), ("not used", self.unused)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                lines.append(f"  {title}: {', '.join(names[:6])}{more}")
        return "\n".join(lines)


def read_checkpoint(source: str | PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a published checkpoint, as data only.

    A dictionary under ``state_dict`` or ``model`` is opened, and the prefix ``module.`` that training on several
    devices leaves is taken away.

    Parameters
    ----------
    source
        A file (``.pth``, ``.pt``, ``.safetensors``), or ``medicalnet:18`` to fetch MedicalNet's ResNet of that depth
        from its hub (needs the package huggingface_hub and a connection; the file is cached).

    Raises
    ------
    UsageError
        If there is no such file, it holds no tensors, or the hub cannot be reached.
    """
    text = str(source)
    state = _from_hub(text.removeprefix(_HUB)) if text.startswith(_HUB) else _from_file(Path(source))
    for key in ("state_dict", "model"):
        inner = state.get(key)
        state = inner if isinstance(inner, Mapping) else state
    tensors = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"{source} holds no tensors under names; expected a state dict of a network")
    return tensors


def load_encoder(
    encoder: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    inflation: Inflation = "mean",
    axis: int = -1,
) -> Match:
    """Copy into ``encoder`` what fits by name and, perhaps after adaptation, by shape.

    Parameters
    ----------
    encoder
        For example ``FlexibleUNet(...).encoder`` or :class:`~medseg.networks.VGGEncoder`.
    weights
        What :func:`read_checkpoint` gives.
    inflation, axis
        How a 2D kernel becomes a 3D one, see :func:`~medseg.networks.inflation.fit`.

    Raises
    ------
    UsageError
        If no convolution fits: the checkpoint belongs to another architecture.
    """
    own = encoder.state_dict()
    copied: list[str] = []
    adapted: list[str] = []
    misfits: list[str] = []
    for name in [name for name in weights if name in own]:
        fitted = fit(weights[name], own[name].shape, inflation=inflation, axis=axis)
        if fitted is None:
            misfits.append(f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}")
            continue
        (copied if fitted.shape == weights[name].shape else adapted).append(name)
        with torch.no_grad():
            own[name].copy_(fitted)
    if not any(own[name].ndim > 3 for name in (*copied, *adapted)):
        raise UsageError(
            f"no convolution among the {len(weights)} tensors of the checkpoint fits the encoder by name and shape "
            f"(it begins with {', '.join(list(weights)[:3])}; the encoder with {', '.join(list(own)[:3])}); "
            "choose the checkpoint of the same architecture"
        )
    missing = tuple(name for name in own if name not in weights)
    unused = tuple(name for name in weights if name not in own)
    return Match(tuple(copied), tuple(adapted), tuple(misfits), missing, unused)


def pretrained(
    network: nn.Module,
    source: str | PathLike[str] | None,
    *,
    part: str = "encoder",
    inflation: Inflation = "mean",
    axis: int = -1,
) -> nn.Module:
    """``network`` with published weights in one of its parts, for configurations; what matched is logged.

    Parameters
    ----------
    network
        For example MONAI's ``FlexibleUNet`` with a ResNet backbone, or :class:`~medseg.networks.VGGUNet`.
    source
        As for :func:`read_checkpoint`; None leaves the network as it is.
    part
        Name of the submodule that the weights belong to; empty for the network itself.
    inflation, axis
        As for :func:`load_encoder`.
    """
    if source is not None:
        match = load_encoder(network.get_submodule(part), read_checkpoint(source), inflation=inflation, axis=axis)
        _logger.info("pretrained weights: %s", match)
    return network


def _from_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UsageError(f"there is no checkpoint at {path}; give a file, or medicalnet:18 to fetch one from its hub")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{path} cannot be read as weights alone ({type(error).__name__}); save the network's state_dict() with "
            "torch.save, without objects of other classes"
        ) from error
    if not isinstance(state, Mapping):
        raise UsageError(f"{path} holds a {type(state).__name__}, expected a state dict")
    return state


def _from_hub(depth: str) -> Mapping[str, Any]:
    from monai.networks.nets.resnet import get_pretrained_resnet_medicalnet

    if not depth.isdecimal() or int(depth) not in _DEPTHS:
        raise UsageError(f"MedicalNet has no ResNet {depth!r}; its depths are {', '.join(map(str, _DEPTHS))}")
    try:
        state: Mapping[str, Any] = get_pretrained_resnet_medicalnet(int(depth), device="cpu", datasets23=True)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"MedicalNet's ResNet {depth} could not be fetched from its hub ({type(error).__name__}). Without a "
            f"connection, download resnet_{depth}_23dataset.pth (or resnet_{depth}.pth) from "
            f"https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet{depth} elsewhere and give the file instead"
        ) from error
    return state
