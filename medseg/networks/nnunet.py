"""nnU-Net's two networks, of MONAI's blocks: a plain U-Net and one with a residual encoder, in 2D and 3D.

MONAI's ``DynUNet`` is the plain one where all kernels are equal: its decoder takes the kernels of the stage below,
where nnU-Net takes those of the skip. Its residual blocks have no pooled shortcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer
from torch import Tensor, nn

Sizes = Sequence[int]
"""One number per axis."""


class NNUNet(nn.Module):
    """A U-Net whose stages have kernels, strides and depths of their own; scores have the input's size.

    Maps ``(N, C, *size)`` to ``(N, K, *size)``, sizes a multiple of the product of all strides.

    Parameters
    ----------
    spatial_dims, in_channels, out_channels
        2 or 3; channels of images and scores.
    filters, kernel_sizes, strides
        Per stage, finest first: channels, kernel and stride of the first convolution.
    encoder_depths, decoder_depths
        Per stage, finest first: convolutions, or residual blocks in the encoder; the decoder has none for the last.
    residual
        Whether the encoder has a stem and residual blocks (ResNet-D).
    bias, norm, act
        Of all convolutions and blocks, as for MONAI's ``Convolution``.
    """

    def __init__(  # noqa: PLR0913  what a plan of nnU-Net says of its network
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        filters: Sequence[int],
        kernel_sizes: Sequence[Sizes],
        strides: Sequence[Sizes],
        encoder_depths: Sequence[int],
        decoder_depths: Sequence[int],
        *,
        residual: bool = False,
        bias: bool = True,
        norm: Any = ("INSTANCE", {"affine": True}),
        act: Any = ("LEAKYRELU", {"negative_slope": 0.01, "inplace": True}),
    ) -> None:
        super().__init__()
        block = partial(Convolution, spatial_dims, adn_ordering="NA", norm=norm, act=act, bias=bias)
        self.stem = block(in_channels, filters[0], 1, kernel_sizes[0]) if residual else nn.Identity()
        inputs = [filters[0] if residual else in_channels, *filters[:-1]]
        encoder_block = partial(_Residual, spatial_dims, norm=norm, act=act, bias=bias) if residual else block
        self.down = nn.ModuleList(
            _stack(encoder_block, depth, before, after, stride, kernel)
            for depth, before, after, stride, kernel in zip(
                encoder_depths, inputs, filters, strides, kernel_sizes, strict=True
            )
        )
        up = partial(Convolution, spatial_dims, is_transposed=True, conv_only=True, bias=bias, padding=0)
        self.up = nn.ModuleList(
            up(below, here, stride, stride, output_padding=0)
            for below, here, stride in zip(filters[1:], filters, strides[1:], strict=False)
        )
        self.merge = nn.ModuleList(
            _stack(block, depth, 2 * here, here, 1, kernel)
            for depth, here, kernel in zip(decoder_depths, filters, kernel_sizes, strict=False)
        )
        self.head = Conv[Conv.CONV, spatial_dims](filters[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to scores."""
        x = self.stem(x)
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for up, merge, skip in reversed(list(zip(self.up, self.merge, skips, strict=False))):
            x = merge(torch.cat((up(x), skip), dim=1))
        scores: Tensor = self.head(x)
        return scores


class _Residual(nn.Module):
    """Two convolutions beside a shortcut: average pooling where they stride, one of kernel 1 where channels change."""

    def __init__(
        self, dims: int, before: int, after: int, stride: Sizes | int, kernel: Sizes, *, norm: Any, act: Any, bias: bool
    ) -> None:
        super().__init__()
        block = partial(Convolution, dims, norm=norm, act=act)
        self.conv1 = block(before, after, stride, kernel, adn_ordering="NA", bias=bias)
        self.conv2 = block(after, after, 1, kernel, adn_ordering="N", bias=bias)
        self.skip = nn.Sequential()
        if any(step != 1 for step in (stride if isinstance(stride, Sequence) else (stride,))):
            self.skip.append(Pool[Pool.AVG, dims](stride, stride))
        if before != after:
            self.skip.append(block(before, after, 1, 1, adn_ordering="N", bias=False))
        self.act = get_act_layer(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features."""
        out: Tensor = self.act(self.conv2(self.conv1(x)) + self.skip(x))
        return out


def _stack(block: Any, depth: int, before: int, after: int, stride: Sizes | int, kernel: Sizes) -> nn.Sequential:
    """Blocks one after the other, the first of which strides and changes the channels."""
    return nn.Sequential(
        block(before, after, stride, kernel), *(block(after, after, 1, kernel) for _ in range(depth - 1))
    )


class SliceWise(nn.Module):
    """A 2D network on every slice, along the first spatial axis, of a volume."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, D, H, W)`` to scores ``(N, K, D, H, W)``."""
        scores: Tensor = self.network(x.transpose(1, 2).flatten(0, 1))
        return scores.reshape(len(x), x.shape[2], *scores.shape[1:]).transpose(1, 2)


class MeanOf(nn.Module):
    """The mean score of several networks for the same images: the folds of a cross-validation."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to scores."""
        total: Tensor = self.networks[0](x)
        for network in self.networks[1:]:
            total = total + network(x)
        return total / len(self.networks)
