"""A U-Net that restores volumes: what it computes is added to what it was given."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import BasicUNet
from torch import Tensor, nn


class RestoringUNet(BasicUNet):
    """``volume + BasicUNet(volume)``: only what is wrong with the volume has to be learnt (Zhang et al. 2017).

    A fresh one gives back its input, and voxels that nothing has happened to keep their sharpness. Names and shapes
    are those of MONAI's ``BasicUNet``, which starts from its weights (the id ``init``) with encoder and decoder. The
    parameters are those of ``BasicUNet``, with as many ``out_channels`` as ``in_channels``.

    Raises
    ------
    ValueError
        If a volume with other channels would come out than goes in.
    """

    def __init__(self, spatial_dims: int = 3, in_channels: int = 1, out_channels: int = 1, **options: Any) -> None:
        if in_channels != out_channels:
            raise ValueError(f"found {in_channels} channels in and {out_channels} out, expected the same number")
        super().__init__(spatial_dims, in_channels, out_channels, **options)
        for parameter in self.final_conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W[, D])`` → the same shape, restored; sides of 16 or more."""
        restored: Tensor = x + super().forward(x)
        return restored
