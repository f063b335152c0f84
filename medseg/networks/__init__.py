"""What MONAI's networks need around them: the conditional patch discriminator and the autoencoder generator."""

from medseg.networks.autoencoder import ENCODER_PREFIXES, Autoencoder, encoder_state
from medseg.networks.discriminator import ConditionalPatchDiscriminator, Judgement

__all__ = ["ENCODER_PREFIXES", "Autoencoder", "ConditionalPatchDiscriminator", "Judgement", "encoder_state"]
