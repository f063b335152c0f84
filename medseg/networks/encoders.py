"""Weights of published encoders (MedicalNet's 3D ResNets, ImageNet's 2D networks), and which parts learn how fast.

2D kernels become 3D ones by inflation (I3D: Carreira and Zisserman 2017, arXiv 1705.07750).
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg.errors import UsageError

Inflation = Literal["mean", "centre"]


def inflate(kernel: Tensor, depth: int, how: Inflation = "mean", axis: int = -1) -> Tensor:
    """3D kernel that answers to a volume of equal slices as the 2D one does to a slice.

    Parameters
    ----------
    kernel
        ``(out, in, kh, kw)``.
    depth
        Extent along the new axis.
    how
        ``"mean"`` repeats the kernel and divides it by ``depth``; ``"centre"`` puts it into the middle of zeros, so
        that at first every slice is seen alone.
    axis
        Place of the new axis in the result; −1, the last, for volumes ``(H, W, D)`` whose slices lie along D.

    Raises
    ------
    ValueError
        If ``how`` is neither, or the kernel is not two-dimensional.
    """
    if how not in ("mean", "centre") or kernel.ndim != 4:
        raise ValueError(f"found the inflation {how!r} of a kernel of {kernel.ndim} axes, expected mean or centre of 4")
    place = axis % 5
    repeated = torch.stack([kernel] * depth, dim=place)
    if how == "mean":
        return repeated / depth
    weights = torch.zeros(depth, dtype=kernel.dtype)
    weights[depth // 2] = 1.0
    return repeated * weights.view([-1 if dim == place else 1 for dim in range(5)])


def fit(value: Tensor, shape: Sequence[int], *, inflation: Inflation = "mean", axis: int = -1) -> Tensor | None:
    """``value`` in the given ``shape``, or None if that has no meaning.

    A 2D kernel is inflated. Kernels that look at several channels, such as the three colours of a photograph, become
    kernels for one channel by their sum, as if the grey image were shown in every colour, and for several channels by
    an equal share of it each.
    """
    wanted = tuple(shape)
    if value.ndim == 4 and len(wanted) == 5:
        value = inflate(value, wanted[axis % 5], inflation, axis)
    if value.ndim in (4, 5) and value.ndim == len(wanted) and value.shape[1] != wanted[1]:
        if value.shape[1] != 3:  # only the first convolution looks at colours
            return None
        value = value.sum(1, keepdim=True).expand(-1, wanted[1], *value.shape[2:]) / wanted[1]
    return value if tuple(value.shape) == wanted else None


def parameter_groups(
    network: nn.Module, learning_rate: float, factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, with discriminative learning rates (Howard and Ruder 2018, arXiv 1801.06146).

    Parameters
    ----------
    network
        Parts that are frozen are changed: their parameters no longer require gradients, and their batch norms keep
        the running statistics that they came with.
    learning_rate
        Of parts that ``factors`` does not name.
    factors
        Beginning of the parameters' names → factor of the learning rate; 0 freezes. The longest beginning counts:
        ``{"encoder": 0.1, "encoder.conv1": 0}``.

    Returns
    -------
    list
        One group per factor with ``params`` and ``lr``, the fastest first. A schedule multiplies each ``lr``.

    Raises
    ------
    ValueError
        If a beginning matches no parameter, a factor is negative, or everything is frozen.
    """
    chosen = dict(factors or {})
    names = [name for name, _ in network.named_parameters()]
    for part, factor in chosen.items():
        if factor < 0.0:
            raise ValueError(f"found the factor {factor} for {part!r}, expected 0 (frozen) or more")
        if not any(_within(name, part) for name in names):
            raise ValueError(f"no parameter's name begins with {part!r}; the first ones are {', '.join(names[:3])}")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        factor = _factor(name, chosen)
        parameter.requires_grad_(factor > 0.0)
        if factor > 0.0:
            groups.setdefault(factor, []).append(parameter)
    _keep_statistics(network, chosen)
    if not groups:
        raise ValueError("every parameter is frozen, so there is nothing to train; give a part a factor above 0")
    ordered = sorted(groups.items(), reverse=True)
    return [{"params": parameters, "lr": learning_rate * factor} for factor, parameters in ordered]


def _keep_statistics(network: nn.Module, factors: Mapping[str, float]) -> None:
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and _factor(name, factors) == 0.0:
            module.momentum = 0.0


def _factor(name: str, factors: Mapping[str, float]) -> float:
    parts = [part for part in factors if _within(name, part)]
    return factors[max(parts, key=len)] if parts else 1.0


def _within(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")


_logger = logging.getLogger("medseg.networks")
_HUB = "medicalnet:"
_DEPTHS = (10, 18, 34, 50, 101, 152, 200)


@dataclass(frozen=True)
class Match:
    """What became of the tensors of a checkpoint."""

    copied: tuple[str, ...]  # names taken over as they are
    adapted: tuple[str, ...]
    """Names taken over after inflation to 3D, or after a change of the number of input channels."""
    misfits: tuple[str, ...]
    """Names on both sides whose shapes cannot be reconciled, with both shapes; the encoder keeps its own."""
    missing: tuple[str, ...]  # names of the encoder that the checkpoint does not have; the encoder keeps its own
    unused: tuple[str, ...]  # names of the checkpoint that the encoder does not have, such as its classifier

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


def read_checkpoint(source: str | PathLike[str], part: str = "encoder") -> dict[str, Tensor]:
    """Tensors of a published checkpoint, as data only.

    A dictionary under ``state_dict`` or ``model`` is opened, and the prefix ``module.`` that training on several
    devices leaves is taken away. Of a whole network that has the ``part`` (``FlexibleUNet`` and ``VGGUNet`` have an
    ``encoder``), such as a run of medseg leaves, the part's tensors are taken.

    Parameters
    ----------
    source
        A file (``.pth``, ``.pt``, ``.safetensors``), or ``medicalnet:18`` to fetch MedicalNet's ResNet of that depth
        from its hub (needs the package huggingface_hub and a connection; the file is cached).
    part
        Name of a submodule; empty takes all tensors there are.

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
    begin = f"{part}."
    own = {name.removeprefix(begin): value for name, value in tensors.items() if part and name.startswith(begin)}
    return own or tensors


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
    inflation, axis
        How a 2D kernel becomes a 3D one, see :func:`~medseg.networks.encoders.fit`.

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
        found = read_checkpoint(source, part)
        match = load_encoder(network.get_submodule(part), found, inflation=inflation, axis=axis)
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
