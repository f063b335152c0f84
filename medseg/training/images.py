"""What a generator of images needs in the place of a segmentation's losses: restoring, and creating from noise."""

from __future__ import annotations

from typing import Any

from monai.losses import SSIMLoss
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from medseg.training.adversary import Adversary

__all__ = ["ImageAdversary", "NoSupervision", "RestorationLoss"]


class RestorationLoss(nn.Module):
    """Mean absolute error, and structural dissimilarity: ``L1 + ssim_weight × (1 − SSIM)``.

    Parameters
    ----------
    ssim_weight
        0 for the absolute error alone.
    data_range
        Range of intensities that SSIM refers to.
    window
        Side of SSIM's window in voxels.
    spatial_dims
        2 or 3.
    """

    def __init__(
        self, ssim_weight: float = 0.2, data_range: float = 5.0, window: int = 5, spatial_dims: int = 3
    ) -> None:
        super().__init__()
        self.ssim_weight = ssim_weight
        self.dissimilarity = SSIMLoss(spatial_dims, data_range=data_range, win_size=window, kernel_sigma=1.0)

    def forward(self, restored: Tensor, original: Tensor) -> Tensor:
        """Both ``(B, C, H, W[, D])``."""
        loss = l1_loss(restored, original)
        return loss + self.ssim_weight * self.dissimilarity(restored, original) if self.ssim_weight else loss


class NoSupervision(nn.Module):
    """Loss of a generator that only the discriminator teaches: zero."""

    def forward(self, created: Tensor, original: Tensor) -> Tensor:  # noqa: ARG002  the signature of a loss
        """Zero, with a gradient of zero."""
        return created.sum() * 0.0


class ImageAdversary(Adversary):
    """Opponent of a generator of images, which are judged as they are: no classes, no softmax.

    Parameters
    ----------
    conditional
        Whether the discriminator also sees the generator's input (the corrupted volume). A GAN's noise is not shown:
        its discriminator has ``image_channels=0``.
    options
        As for :class:`Adversary`; smoothing of labels has no meaning here.
    """

    def __init__(self, *args: Any, conditional: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conditional = conditional

    def judged(self, prediction: Tensor) -> Tensor:
        """The created image itself."""
        return prediction

    def reference(self, label: Tensor, fake: Tensor) -> Tensor:  # noqa: ARG002  the signature of the base class
        """The original image itself."""
        return label

    def condition(self, image: Tensor | None) -> Tensor | None:
        """The generator's input, if the discriminator shall see it."""
        return image if self.conditional else None
