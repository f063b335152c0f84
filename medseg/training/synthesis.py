"""Networks that restore images or create them from noise: what stands in for a segmentation's losses, and a distance
between created and real images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.losses import SSIMLoss
from monai.metrics import CumulativeIterationMetric
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, l1_loss

from medseg.bundle.checkpoints import read_weights
from medseg.networks.autoencoder import Autoencoder
from medseg.training.adversary import Adversary


class RestorationLoss(nn.Module):
    """Mean absolute error, and structural dissimilarity: ``L1 + ssim_weight × (1 − SSIM)``.

    SSIM refers to intensities of ``data_range``, in windows of ``window`` voxels a side, in 2 or 3 ``spatial_dims``.
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

    The parameters are those of :class:`Adversary`, without wrong pairs, which are of segmentations. If ``conditional``,
    the discriminator also sees the generator's input (the corrupted volume). A GAN's noise is not shown: its
    discriminator has ``image_channels=0``.
    """

    judges_labels = False

    def __init__(self, *args: Any, conditional: bool = False, **options: Any) -> None:
        super().__init__(*args, wrong_pairs=0.0, **options)
        self.conditional = conditional

    def judged(self, prediction: Tensor) -> Tensor:
        """The created image itself."""
        return prediction

    def reference(self, label: Tensor, fake: Tensor) -> Tensor:  # noqa: ARG002  the signature of the base class
        """The original image itself."""
        return label

    def known(self, label: Tensor, fake: Tensor) -> float:  # noqa: ARG002  the signature of the base class
        """Everything: an image has no unknown voxels."""
        return 1.0

    def condition(self, image: Tensor) -> Tensor | None:
        """The generator's input, if the discriminator shall see it."""
        return image if self.conditional else None


class FeatureEncoder(nn.Module):
    """Features of a volume: the bottleneck of a pretrained :class:`~medseg.networks.Autoencoder`, averaged over space.

    Every volume is normalised to mean 0 and standard deviation 1 first, so that only its content counts. ``weights`` is
    a safetensors file with the encoder's (:func:`medseg.networks.encoder_state`); the rest is that of the autoencoder.
    """

    def __init__(
        self, weights: str | PathLike[str], features: Sequence[int], norm: str = "batch", *, bias: bool = False
    ) -> None:
        super().__init__()
        self.network = Autoencoder(features=features, norm=norm, bias=bias)
        expected = {name for name in self.network.state_dict() if name.startswith(("conv_0.", "down_"))}
        state = read_weights(Path(weights))
        if missing := expected - state.keys():
            raise ValueError(f"{weights} lacks {len(missing)} tensors of the encoder, such as {min(missing)}")
        self.network.load_state_dict(state, strict=False)
        self.eval().requires_grad_(False)

    def forward(self, volumes: Tensor) -> Tensor:
        """``(B, 1, H, W, D)``, sides multiples of 16 → ``(B, features[4])``."""
        mean, spread = volumes.mean((1, 2, 3, 4), keepdim=True), volumes.std((1, 2, 3, 4), keepdim=True)
        code: Tensor = self.network.encode((volumes - mean) / spread.clamp_min(1e-6))
        return code.mean((2, 3, 4))


def frechet_distance(created: Tensor, real: Tensor) -> float:
    """Fréchet distance of two sets of feature vectors ``(N, F)``, taken as normal distributions (Heusel et al. 2017).

    ``|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)``. It has a floor that grows with F and shrinks with N: compare it with the
    distance of two sets of real images of the same sizes.
    """
    created, real = created.double(), real.double()
    covariances = torch.cov(created.T), torch.cov(real.T)
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ torch.diag(values.clamp_min(0.0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0.0).sqrt().sum()
    shift = (created.mean(0) - real.mean(0)).pow(2).sum()
    return float(shift + covariances[0].trace() + covariances[1].trace() - 2.0 * overlap)


def lower_is_better(current: float, best: float) -> bool:
    """Whether ``current`` is the better one of two distances; NaN never is, and never stays (MONAI starts at −1)."""
    return current == current and (best != best or best < 0.0 or current < best)  # noqa: PLR0124  NaN


def radial_spectrum(images: Tensor) -> Tensor:
    """Power by spatial frequency, ``(B, C, H, W[, D])`` → ``(B, rings)``, coarse to fine; half the least side of them.

    Each ring is the mean over all directions; channels are averaged, the mean of an image is left out, and a Hann
    window takes away the edges, which a Fourier transform would see as a jump.
    """
    image = images.float().mean(1)
    sides = image.shape[1:]
    image = image - image.flatten(1).mean(1).view(-1, *[1] * len(sides))
    radius = torch.zeros(sides, device=image.device)
    for axis, side in enumerate(sides):
        shape = [-1 if other == axis else 1 for other in range(len(sides))]
        image = image * torch.hann_window(side, periodic=False, device=image.device).view(shape)
        radius = radius + torch.fft.fftfreq(side, device=image.device).view(shape) ** 2
    rings = min(sides) // 2
    place = (radius.sqrt() * 2 * rings - 1e-4).ceil().long().flatten() - 1  # the first ring is one wave per side
    inside = (place >= 0) & (place < rings)
    power = torch.fft.fftn(image, dim=tuple(range(1, image.ndim))).abs().square().flatten(1)[:, inside]
    total = torch.zeros(len(image), rings, device=image.device).index_add_(1, place[inside], power)
    return total / torch.bincount(place[inside], minlength=rings)


def spectrum_distance(created: Tensor, real: Tensor) -> float:
    """How far apart two sets of :func:`radial_spectrum` are, in dB: root mean square over the rings of their means.

    Grain shows in the fine rings as too much power, blur as too little; 3 dB is a factor of 2.
    """
    levels = [10.0 * spectra.double().mean(0).clamp_min(1e-12).log10() for spectra in (created, real)]
    return float((levels[0] - levels[1]).square().mean().sqrt())


class Thumbnails(nn.Module):
    """Features of an image: its copy of ``side`` pixels a side, ``(B, C, H, W[, D])`` → ``(B, C · side^dims)``.

    For :class:`FrechetDistance` where no encoder was trained: it sees layout and brightness, and no texture.
    """

    def __init__(self, side: int = 7) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Average within each cell."""
        pool = adaptive_avg_pool3d if images.ndim == 5 else adaptive_avg_pool2d
        return pool(images, self.side).flatten(1)


class _Distance(CumulativeIterationMetric):
    """Keeps the features of what has been seen; nothing of the images stays in memory."""

    def __init__(self, encoder: Callable[[Tensor], Tensor], distance: Callable[[Tensor, Tensor], float]) -> None:
        super().__init__()
        self.encoder, self.distance = encoder, distance

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        with torch.inference_mode():
            return torch.stack([self.encoder(y_pred.float()), self.encoder(torch.as_tensor(y).float())], dim=1)

    def aggregate(self) -> float:
        features = self.get_buffer()
        return self.distance(features[:, 0], features[:, 1])


class FrechetDistance(IgniteMetricHandler):
    """Validation metric: :func:`frechet_distance` of created and real images (see :func:`lower_is_better`).

    ``encoder`` turns ``(B, 1, H, W, D)`` into ``(B, F)``, ``output_transform`` an engine's output into (created, real).
    """

    def __init__(
        self, encoder: Callable[[Tensor], Tensor], output_transform: Callable[[Any], Any] = lambda output: output
    ) -> None:
        metric = _Distance(encoder, frechet_distance)
        super().__init__(metric_fn=metric, output_transform=output_transform, save_details=False)


class SpectrumDistance(IgniteMetricHandler):
    """Validation metric: :func:`spectrum_distance` of created and real images, in dB; ``output_transform`` as above."""

    def __init__(self, output_transform: Callable[[Any], Any] = lambda output: output) -> None:
        metric = _Distance(radial_spectrum, spectrum_distance)
        super().__init__(metric_fn=metric, output_transform=output_transform, save_details=False)
