"""The patch discriminator: looks at an image together with a segmentation and judges each patch of the pair."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d


class Judgement(NamedTuple):
    """What the discriminator says about a batch."""

    logits: list[Tensor]
    """One tensor ``(B, 1, H', W', D')`` per scale; positive means "real". No sigmoid has been applied."""
    features: list[list[Tensor]]  # per scale the feature maps before the logits, for feature matching


class ConditionalPatchDiscriminator(nn.Module):
    """Patch discriminators over one or several scales, conditioned on the image.

    A real pair is (image, one-hot reference), a fake pair is (image, softmax of the generator). With
    ``image_channels=0`` it is unconditional and judges the second tensor alone, as GANs that make images need it.

    Parameters
    ----------
    label_channels
        Channels of the judged tensor: classes including the background, or image channels of a GAN.
    image_channels
        Channels of the condition; 0 for none.
    channels
        Feature maps of the first convolution, doubled by every further layer.
    layers
        Convolutions after the first one; all but the last halve the grid.
    scales
        Number of discriminators; each works on a grid half as fine as the one before.
    norm
        Normalisation. Not batch norm by default: real and fake batches would have different statistics.
    spectral
        Divide every convolution by its largest singular value (Miyato et al. 2018, arXiv 1802.05957).
    spatial_dims
        2 or 3.
    products
        Whether it also sees the image inside of each label: every image channel times every label channel. What a
        wrong label takes in, or leaves out, is then plain to see where the size and shape of a structure say nothing.

    Notes
    -----
    PatchGAN: Isola et al. 2017 (arXiv 1611.07004); several scales: Wang et al. 2018 (arXiv 1711.11585); products: Luc
    et al. 2016 (arXiv 1611.08408).
    """

    def __init__(  # noqa: PLR0913  what a network is made of, nearly all with a default
        self,
        label_channels: int,
        image_channels: int = 1,
        channels: int = 16,
        layers: int = 2,
        scales: int = 1,
        norm: str | None = "instance",
        spectral: bool = False,
        spatial_dims: int = 3,
        *,
        products: bool = False,
    ) -> None:
        super().__init__()
        self.image_channels, self.products = image_channels, products
        self.spatial_dims = spatial_dims
        self.scales = nn.ModuleList(
            PatchDiscriminator(
                spatial_dims=spatial_dims,
                channels=channels,
                in_channels=image_channels + label_channels + image_channels * label_channels * products,
                num_layers_d=layers,
                norm=cast(str, norm),
                last_conv_kernel_size=3,
            )
            for _ in range(scales)
        )
        if spectral:
            self.apply(normalise_spectrally)

    def forward(self, image: Tensor | None, label: Tensor) -> Judgement:
        """Judge pairs.

        ``image``: condition ``(B, image_channels, H, W[, D])``, or None if unconditional. ``label``: one-hot reference
        or softmax ``(B, label_channels, H, W[, D])``. Raises ``ValueError`` if the condition does not have
        ``image_channels`` channels.
        """
        found = 0 if image is None else image.shape[1]
        if found != self.image_channels:
            raise ValueError(
                f"the condition has {found} channels, expected {self.image_channels}; "
                "set image_channels to the number of image channels (0 for an unconditional discriminator)"
            )
        parts = [label] if image is None else [image, label]
        if image is not None and self.products:
            parts.append((image[:, :, None] * label[:, None]).flatten(1, 2))
        pair = torch.cat(parts, dim=1)
        pool = avg_pool3d if self.spatial_dims == 3 else avg_pool2d
        logits: list[Tensor] = []
        features: list[list[Tensor]] = []
        for index, network in enumerate(self.scales):
            pair = pool(pair, 2) if index else pair
            *maps, last = network(pair)  # MONAI returns every feature map; only the last one holds logits
            logits.append(last)
            features.append(maps)
        return Judgement(logits, features)


def normalise_spectrally(module: nn.Module) -> None:
    """Divide the weight of a convolution by its largest singular value (for ``Module.apply``)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.utils.parametrizations.spectral_norm(module)
