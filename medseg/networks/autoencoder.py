"""The autoencoder generator: BasicUNet's encoder, and a decoder that mirrors it without skip connections."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

__all__ = ["ENCODER_PREFIXES", "Autoencoder", "encoder_state"]

ENCODER_PREFIXES = ("conv_0.", "down_1.", "down_2.", "down_3.", "down_4.")
"""Beginnings of the state-dict keys that belong to the encoder, here and in MONAI's ``BasicUNet``."""


class Autoencoder(nn.Module):
    """Restores a volume from a corrupted one, and so learns features without labels.

    Encoder: [convolution, norm, activation] × 2 per level, halved by max-pooling; decoder: upsampling and the same
    pairs of convolutions, so everything passes through the bottleneck. Built from MONAI's own blocks with the names
    and shapes of its ``BasicUNet``: pretraining one is copying :func:`encoder_state`.

    Parameters
    ----------
    spatial_dims
        2 or 3.
    in_channels, out_channels
        Channels of the corrupted and of the restored volume.
    features
        Feature maps of the five levels and of the last decoder block, as in ``BasicUNet``.
    act, norm, bias, dropout, upsample
        As in ``BasicUNet``; give both networks the same.
    """

    def __init__(  # noqa: PLR0913  the arguments of BasicUNet
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 1,
        features: Sequence[int] = (16, 16, 32, 64, 128, 16),
        act: str | tuple[str, dict[str, object]] = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
        norm: str | tuple[str, dict[str, object]] = ("instance", {"affine": True}),
        *,
        bias: bool = True,
        dropout: float = 0.0,
        upsample: str = "deconv",
    ) -> None:
        super().__init__()
        f = tuple(features)
        if len(f) != 6:
            raise ValueError(f"found {len(f)} feature sizes, expected 6: five levels and the last decoder block")
        blocks = (act, norm, bias, dropout)
        self.conv_0 = TwoConv(spatial_dims, in_channels, f[0], *blocks)
        self.down_1 = Down(spatial_dims, f[0], f[1], *blocks)
        self.down_2 = Down(spatial_dims, f[1], f[2], *blocks)
        self.down_3 = Down(spatial_dims, f[2], f[3], *blocks)
        self.down_4 = Down(spatial_dims, f[3], f[4], *blocks)
        self.up_4 = UpCat(spatial_dims, f[4], 0, f[3], *blocks, upsample)
        self.up_3 = UpCat(spatial_dims, f[3], 0, f[2], *blocks, upsample)
        self.up_2 = UpCat(spatial_dims, f[2], 0, f[1], *blocks, upsample)
        self.up_1 = UpCat(spatial_dims, f[1], 0, f[5], *blocks, upsample, halves=False)
        convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.final_conv = convolution(f[5], out_channels, kernel_size=1)

    def forward(self, volume: Tensor) -> Tensor:
        """``(B, in_channels, H, W[, D])`` → ``(B, out_channels, H, W[, D])``; sides need to be multiples of 16.

        Raises
        ------
        ValueError
            If a side is not: without skip connections nothing can put a lost voxel back.
        """
        if any(side % 16 for side in volume.shape[2:]):
            raise ValueError(
                f"found sides of {list(volume.shape[2:])}, expected multiples of 16; pad or crop the volume"
            )
        # block by block instead of a loop, which TorchScript does not compile
        code = self.up_3(self.up_4(self.encode(volume), None), None)
        restored: Tensor = self.final_conv(self.up_1(self.up_2(code, None), None))
        return restored

    def encode(self, volume: Tensor) -> Tensor:
        """The bottleneck: ``(B, features[4], H/16, W/16[, D/16])``."""
        code: Tensor = self.down_4(self.down_3(self.down_2(self.down_1(self.conv_0(volume)))))
        return code


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of the state dict of an :class:`Autoencoder` or a ``BasicUNet``."""
    return {name: value for name, value in state.items() if name.startswith(ENCODER_PREFIXES)}
