"""A U-Net that restores volumes: what it computes is added to what it was given."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import BasicUNet
from torch import Tensor, nn


class RestoringUNet(BasicUNet):
    """``volume + BasicUNet(volume)``: only what is wrong with the volume has to be learnt (Zhang et al. 2017).

    A fresh one gives back its input, and voxels that nothing has happened to keep their sharpness. Names and shapes are
    those of MONAI's ``BasicUNet``, which starts from its weights (the id ``init``) with encoder and decoder. The
    parameters are those of ``BasicUNet``, with as many ``out_channels`` as ``in_channels``. Raises ``ValueError`` if a
    volume with other channels would come out than goes in.
    """

    def __init__(self, spatial_dims: int = 3, in_channels: int = 1, out_channels: int = 1, **options: Any) -> None:
        if in_channels != out_channels:
            raise ValueError(f"found {in_channels} channels in and {out_channels} out, expected the same number")
        super().__init__(spatial_dims, in_channels, out_channels, **options)
        for parameter in self.final_conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W[, D])`` → the same shape, restored; sides of 16 or more."""
        # block by block, since TorchScript does not know super()
        x0 = self.conv_0(x)
        x1 = self.down_1(x0)
        x2 = self.down_2(x1)
        x3 = self.down_3(x2)
        up = self.upcat_3(self.upcat_4(self.down_4(x3), x3), x2)
        restored: Tensor = x + self.final_conv(self.upcat_1(self.upcat_2(up, x1), x0))
        return restored
