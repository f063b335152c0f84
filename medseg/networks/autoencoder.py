"""The autoencoder generator: BasicUNet's encoder, and a decoder that mirrors it without skip connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

ENCODER_PREFIXES = ("conv_0.", "down_1.", "down_2.", "down_3.", "down_4.")
"""Beginnings of the state-dict keys that belong to the encoder, here and in MONAI's ``BasicUNet``."""


class _Same(nn.Module):
    """In the place of a decoder block that is not needed."""

    def forward(self, volume: Tensor, skip: Tensor | None) -> Tensor:  # noqa: ARG002  the arguments of UpCat
        return volume


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
        Feature maps of the levels, two to five, and of the last decoder block; five as in ``BasicUNet``. All passes
        through a grid that is halved once less: five levels (1/16) keep the layout, three (1/4) detail too.
    act, norm, bias, dropout, upsample
        As in ``BasicUNet``; give both networks the same.
    """

    if TYPE_CHECKING:  # TorchScript does not understand these
        down_1: nn.Module
        down_2: nn.Module
        down_3: nn.Module
        down_4: nn.Module
        up_1: nn.Module
        up_2: nn.Module
        up_3: nn.Module
        up_4: nn.Module

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
        *levels, last = features
        if not 2 <= len(levels) <= 5:
            raise ValueError(f"found {len(levels) + 1} feature sizes, expected 2 to 5 levels and the last block")
        blocks = (act, norm, bias, dropout)
        self.divisor = 2 ** (len(levels) - 1)
        self.conv_0 = TwoConv(spatial_dims, in_channels, levels[0], *blocks)
        for depth in range(1, 5):  # all are there, for TorchScript; those below the bottleneck change nothing
            down: nn.Module = nn.Identity()
            up: nn.Module = _Same()
            if depth < len(levels):
                wide, narrow = levels[depth], levels[depth - 1] if depth > 1 else last
                down = Down(spatial_dims, levels[depth - 1], wide, *blocks)
                up = UpCat(spatial_dims, wide, 0, narrow, *blocks, upsample, halves=depth > 1)
            self.add_module(f"down_{depth}", down)
            self.add_module(f"up_{depth}", up)
        convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.final_conv = convolution(last, out_channels, kernel_size=1)

    def forward(self, volume: Tensor) -> Tensor:
        """``(B, in_channels, H, W[, D])`` → ``(B, out_channels, H, W[, D])``; sides need to be multiples of 16
        with five levels, of 4 with three.

        Raises ``ValueError`` if a side is not: without skip connections nothing can put a lost voxel back.
        """
        if any(side % self.divisor for side in volume.shape[2:]):
            raise ValueError(
                f"found sides of {list(volume.shape[2:])}, expected multiples of {self.divisor}; pad or crop the volume"
            )
        # block by block instead of a loop, which TorchScript does not compile
        code = self.up_3(self.up_4(self.encode(volume), None), None)
        restored: Tensor = self.final_conv(self.up_1(self.up_2(code, None), None))
        return restored

    def encode(self, volume: Tensor) -> Tensor:
        """The bottleneck: with five levels ``(B, features[4], H/16, W/16[, D/16])``."""
        code: Tensor = self.down_4(self.down_3(self.down_2(self.down_1(self.conv_0(volume)))))
        return code


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of the state dict of an :class:`Autoencoder` or a ``BasicUNet``."""
    return {name: value for name, value in state.items() if name.startswith(ENCODER_PREFIXES)}
