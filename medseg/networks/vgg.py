"""VGG-16 with batch norm as the encoder of a U-Net, in 2D or 3D, with the key layout of the ImageNet checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers.factories import Conv, Norm, Pool
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn

_CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Convolutions of each level (configuration D of Simonyan and Zisserman 2014, arXiv 1409.1556)."""


class VGGEncoder(nn.Module):
    """The convolutions of VGG-16-BN; the classifier is cut off.

    Parameters
    ----------
    spatial_dims
        2 or 3.
    in_channels
        Channels of the image.
    channels
        Feature maps of the five levels.
    """

    def __init__(
        self, spatial_dims: int = 3, in_channels: int = 1, channels: Sequence[int] = (64, 128, 256, 512, 512)
    ) -> None:
        super().__init__()
        if len(channels) != len(_CONVOLUTIONS):
            raise ValueError(f"found {len(channels)} levels, expected {len(_CONVOLUTIONS)}")
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        before = in_channels
        for count, width in zip(_CONVOLUTIONS, channels, strict=True):
            for _ in range(count):
                layers += [
                    Conv[Conv.CONV, spatial_dims](before, width, kernel_size=3, padding=1),
                    Norm[Norm.BATCH, spatial_dims](width),
                    nn.ReLU(inplace=True),
                ]
                before = width
            self.ends.append(len(layers))
            layers.append(Pool[Pool.MAX, spatial_dims](kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers[:-1])  # nothing uses what the last pooling would give

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, in_channels, H, W[, D])`` → feature maps of the five levels, each half as fine as the one before."""
        maps = []
        for place, layer in enumerate(self.features, start=1):
            image = layer(image)
            if place in self.ends:
                maps.append(image)
        return maps


class VGGUNet(nn.Module):
    """U-Net with :class:`VGGEncoder` and a new decoder of MONAI's ``UpCat`` blocks (TernausNet, arXiv 1801.05746).

    Parameters
    ----------
    spatial_dims, in_channels, channels
        As of the encoder.
    out_channels
        Classes, background included.
    decoder_channels
        Feature maps of the decoder's four levels, from coarse to fine.
    act, norm
        Of the decoder.
    upsample
        As in MONAI's ``BasicUNet``.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        decoder_channels: Sequence[int] = (256, 128, 64, 32),
        act: str | tuple[str, dict[str, object]] = ("relu", {"inplace": True}),
        norm: str | tuple[str, dict[str, object]] = "batch",
        *,
        upsample: str = "deconv",
    ) -> None:
        super().__init__()
        if len(decoder_channels) != 4:
            raise ValueError(f"found {len(decoder_channels)} decoder levels, expected 4")
        self.encoder = VGGEncoder(spatial_dims, in_channels, channels)
        below = (channels[-1], *decoder_channels[:-1])
        self.decoder = nn.ModuleList(
            UpCat(spatial_dims, coarse, skip, width, act, norm, False, 0.0, upsample)
            for coarse, skip, width in zip(below, reversed(channels[:-1]), decoder_channels, strict=True)
        )
        self.head = Conv[Conv.CONV, spatial_dims](decoder_channels[-1], out_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, in_channels, H, W[, D])`` → logits ``(B, out_channels, H, W[, D])``; sides of at least 16."""
        *skips, code = self.encoder(image)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            code = block(code, skip)
        logits: Tensor = self.head(code)
        return logits
