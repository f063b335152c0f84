"""Deep supervision: further heads on the decoder's coarser levels, which exist in training only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss


class DeepSupervision(nn.Module):
    """Heads on intermediate features of a network, so that every level of the decoder learns from the labels.

    The network stays as it is: its features are read while it runs, and the heads are no part of it, so its state
    dict, and the model that is shipped, have the keys of the plain network. The loss of the head on the k-th layer
    counts 2⁻ᵏ (at least 1/16), the label being brought to its grid by nearest neighbour (Lee et al. 2015,
    arXiv 1409.5185; the weights of nnU-Net).

    ``layers`` are names of submodules of the network whose outputs are read, finest first: BasicUNet of MONAI has
    ``upcat_2`` and ``upcat_3`` at half and quarter resolution. ``channels`` are the feature maps of each; another
    number of them, or none, is a ``ValueError``. ``out_channels`` counts the background; ``spatial_dims`` is 2 or 3.
    """

    def __init__(
        self, layers: Sequence[str], channels: Sequence[int], out_channels: int, spatial_dims: int = 3
    ) -> None:
        super().__init__()
        if not layers or len(layers) != len(channels):
            raise ValueError(f"found {len(layers)} layers and {len(channels)} numbers of channels; give one for each")
        convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.layers = tuple(layers)
        self.heads = nn.ModuleList(convolution(count, out_channels, kernel_size=1) for count in channels)
        self._features: dict[str, Tensor] = {}

    @contextmanager
    def reading(self, network: nn.Module) -> Iterator[None]:
        """While open, a forward pass of ``network`` leaves its features here; a compiled one does not show them."""
        if network._compiled_call_impl is not None:
            raise ValueError("deep supervision cannot read the features of a compiled network; set compile to false")
        self._features.clear()
        hooks = [network.get_submodule(name).register_forward_hook(partial(self._keep, name)) for name in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        self._features[name] = output

    def forward(self, count: int) -> list[Tensor]:
        """Logits of the heads for the first ``count`` items of the batch that was read last, finest first, in fp32."""
        features = [self._features[name][:count].float() for name in self.layers]
        with torch.autocast(features[0].device.type, enabled=False):  # they cost next to nothing
            return [head(feature) for head, feature in zip(self.heads, features, strict=True)]

    def loss(self, loss_function: Callable[..., Any], prediction: Tensor, label: Tensor) -> Tensor:
        """Supervised loss of the network's logits ``(B, classes, …)`` and of the heads, weighted 1, ½, ¼ …"""
        weighted = DeepSupervisionLoss(cast(_Loss, loss_function), weight_mode="exp")
        total: Tensor = weighted([prediction, *self(len(prediction))], label.float())
        return total


def parameters_of(*networks: nn.Module | None) -> list[nn.Parameter]:
    """All parameters of several networks, for one optimiser; None is left out."""
    return [parameter for network in networks if network is not None for parameter in network.parameters()]
