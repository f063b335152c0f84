"""A generator from noise and its discriminator, as in DCGAN (Radford et al. 2015, arXiv 1511.06434), in 2D or 3D."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

from monai.networks.blocks import Convolution
from torch import Tensor, nn

from medseg.networks.discriminator import Judgement, normalise_spectrally


class DCGANGenerator(nn.Module):
    """Noise → image: blocks that double the grid, batch norm, ReLU, at the end tanh.

    MONAI's ``Generator`` has convolutions with odd kernels only; these have the 4-wide ones of the paper, which spread
    over the grid evenly.

    Parameters
    ----------
    features
        Feature maps from the coarsest grid on.
    size
        Size of the image, 2 or 3 sides; multiples of ``2 ** halvings``.
    halvings
        How often the grid is doubled, at most once per number of features, which is the default; the first blocks keep
        it if it is fewer times: 28×28 with three feature maps and 2 halvings starts on 7×7.
    upsample
        ``"deconv"``: transposed convolutions, as in the paper. ``"resize"``: linear interpolation and a convolution of
        3, which cannot leave the grain of the former (Odena et al. 2016, doi:10.23915/distill.00003).
    """

    def __init__(
        self,
        latent: int = 64,
        out_channels: int = 1,
        features: Sequence[int] = (128, 64, 32),
        size: Sequence[int] = (32, 32, 32),
        *,
        halvings: int | None = None,
        upsample: Literal["deconv", "resize"] = "deconv",
    ) -> None:
        super().__init__()
        if upsample not in ("deconv", "resize"):
            raise ValueError(f"found the upsampling {upsample!r}, expected deconv or resize")
        kept, start = same_size(features, halvings), coarsest(size, len(features) if halvings is None else halvings)
        layers: list[nn.Module] = [
            Convolution(
                len(size), latent, features[0], 1, start, "NDA", "relu", "batch",
                bias=False, is_transposed=True, padding=0, output_padding=0,
            )
        ]  # fmt: skip
        for number, (wide, narrow) in enumerate(pairwise((*features, out_channels))):
            last = number == len(features) - 1
            layers += _finer(len(size), wide, narrow, last, "none" if number < kept else upsample)
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(start_small)

    def forward(self, noise: Tensor) -> Tensor:
        """``(B, latent, 1, 1[, 1])`` → ``(B, out_channels, H, W[, D])`` within −1 … 1."""
        image: Tensor = self.layers(noise)
        return image


class DCGANDiscriminator(nn.Module):
    """Image → one logit: the generator's mirror, with strided convolutions and leaky ReLU.

    Parameters
    ----------
    features
        Feature maps from the finest grid on.
    size
        Size of the image, as of the generator.
    halvings
        As of the generator; the last blocks keep the grid.
    norm
        Normalisation behind all convolutions but the first; ``"batch"`` as in the paper.
    spectral
        Divide every convolution by its largest singular value (Miyato et al. 2018, arXiv 1802.05957).
    """

    def __init__(
        self,
        in_channels: int = 1,
        features: Sequence[int] = (32, 64, 128),
        size: Sequence[int] = (32, 32, 32),
        norm: str | None = "batch",
        *,
        halvings: int | None = None,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        dims, end = len(size), coarsest(size, len(features) if halvings is None else halvings)
        halved = len(features) - same_size(features, halvings)
        act = ("leakyrelu", {"negative_slope": 0.2, "inplace": True})
        blocks = [
            Convolution(
                dims,
                fine,
                coarse,
                *((2, 4) if index < halved else (1, 3)),
                "NDA",
                act,
                norm if index else None,
                bias=not (index and norm),
                padding=1,
            )
            for index, (fine, coarse) in enumerate(zip((in_channels, *features[:-1]), features, strict=True))
        ]
        self.blocks = nn.ModuleList(blocks)
        self.final = Convolution(dims, features[-1], 1, 1, end, conv_only=True, padding=0)
        self.apply(start_small)
        if spectral:
            self.apply(normalise_spectrally)

    def forward(self, condition: None, image: Tensor) -> Judgement:  # noqa: ARG002  the signature of discriminators
        """``(B, in_channels, H, W[, D])`` → one logit per image; there is no condition."""
        maps = []
        for block in self.blocks:
            image = block(image)
            maps.append(image)
        return Judgement([self.final(image)], [maps])


def _finer(
    dims: int, wide: int, narrow: int, last: bool, how: Literal["none", "deconv", "resize"]
) -> Iterator[nn.Module]:
    """A block that doubles the grid, or keeps it; the last one has neither norm nor activation."""
    rest: dict[str, Any] = {"conv_only": True} if last else {"adn_ordering": "NDA", "act": "relu", "norm": "batch"}
    rest |= {"bias": last, "padding": 1}
    if how == "deconv":
        yield Convolution(dims, wide, narrow, 2, 4, is_transposed=True, output_padding=0, **rest)
        return
    if how == "resize":
        yield nn.Upsample(scale_factor=2, mode="trilinear" if dims == 3 else "bilinear")
    yield Convolution(dims, wide, narrow, 1, 3, **rest)


def same_size(features: Sequence[int], halvings: int | None) -> int:
    """How many blocks keep the grid. More halvings than blocks, or none, are a ``ValueError``."""
    if halvings is not None and not 1 <= halvings <= len(features):
        raise ValueError(f"found {halvings} halvings for {len(features)} feature maps, expected 1 to {len(features)}")
    return 0 if halvings is None else len(features) - halvings


def coarsest(size: Sequence[int], halvings: int) -> tuple[int, ...]:
    """Grid on which the generator starts.

    Raises ``ValueError`` if a side cannot be halved that often.
    """
    factor = 2**halvings
    if len(size) not in (2, 3) or any(side % factor or side < factor for side in size):
        raise ValueError(f"found an image of {list(size)}, expected 2 or 3 sides that are multiples of {factor}")
    return tuple(side // factor for side in size)


def start_small(module: nn.Module) -> None:
    """Weights from N(0, 0.02²), norms from N(1, 0.02²), as in the paper."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
