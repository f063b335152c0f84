"""Parts of a network that learn at their own pace, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["parameter_groups"]


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
