"""What MONAI's networks need around them: discriminators, generators that it lacks, published encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.networks.autoencoder import ENCODER_PREFIXES, Autoencoder, encoder_state
    from medseg.networks.dcgan import DCGANDiscriminator, DCGANGenerator
    from medseg.networks.discriminator import ConditionalPatchDiscriminator, Judgement
    from medseg.networks.encoders import Match, inflate, load_encoder, parameter_groups, pretrained, read_checkpoint
    from medseg.networks.even_windows import EvenWindowInferer
    from medseg.networks.nnunet import MeanOf, NNUNet, SliceWise
    from medseg.networks.restoring import RestoringUNet
    from medseg.networks.vgg import VGGEncoder, VGGUNet

__all__ = [
    "ENCODER_PREFIXES",
    "Autoencoder",
    "ConditionalPatchDiscriminator",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "EvenWindowInferer",
    "Judgement",
    "Match",
    "MeanOf",
    "NNUNet",
    "RestoringUNet",
    "SliceWise",
    "VGGEncoder",
    "VGGUNet",
    "encoder_state",
    "inflate",
    "load_encoder",
    "parameter_groups",
    "pretrained",
    "read_checkpoint",
]

__getattr__ = lazily(
    __name__,
    {
        "autoencoder": "ENCODER_PREFIXES Autoencoder encoder_state",
        "dcgan": "DCGANDiscriminator DCGANGenerator",
        "discriminator": "ConditionalPatchDiscriminator Judgement",
        "encoders": "Match inflate load_encoder parameter_groups pretrained read_checkpoint",
        "even_windows": "EvenWindowInferer",
        "nnunet": "MeanOf NNUNet SliceWise",
        "restoring": "RestoringUNet",
        "vgg": "VGGEncoder VGGUNet",
    },
)
