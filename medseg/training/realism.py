"""How close created images come to real ones: distances of feature distributions and of nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from torch import Tensor, nn

from medseg.bundle.checkpoints import read_weights
from medseg.networks import Autoencoder

__all__ = ["FeatureEncoder", "FrechetDistance", "closer", "frechet_distance", "nearest"]


class FeatureEncoder(nn.Module):
    """Features of a volume: the bottleneck of a pretrained :class:`~medseg.networks.Autoencoder`, averaged over space.

    Every volume is normalised to mean 0 and standard deviation 1 first, so that only its content counts.

    Parameters
    ----------
    weights
        safetensors file with the encoder's weights (:func:`medseg.networks.encoder_state`).
    features, norm, bias
        As of the autoencoder.
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


def nearest(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each query to its nearest reference, and which that is: root mean square difference of the vectors.

    Parameters
    ----------
    queries, references
        ``(N, F)`` and ``(M, F)``.
    """
    found = torch.cdist(queries, references).min(dim=1)
    return found.values / queries.shape[1] ** 0.5, found.indices


def closer(current: float, best: float) -> bool:
    """Whether ``current`` is the better one of two distances; NaN never is, and never stays (MONAI starts at −1)."""
    return current == current and (best != best or best < 0.0 or current < best)  # noqa: PLR0124  NaN


class _Distance(CumulativeIterationMetric):
    """Keeps the features of what has been seen; nothing of the images stays in memory."""

    def __init__(self, encoder: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = encoder

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        with torch.inference_mode():
            return torch.stack([self.encoder(y_pred.float()), self.encoder(torch.as_tensor(y).float())], dim=1)

    def aggregate(self) -> float:
        features = self.get_buffer()
        return frechet_distance(features[:, 0], features[:, 1])


class FrechetDistance(IgniteMetricHandler):
    """Validation metric: :func:`frechet_distance` of created and real images; lower is better (see :func:`closer`).

    Parameters
    ----------
    encoder
        Turns ``(B, 1, H, W, D)`` into ``(B, F)``.
    output_transform
        Turns ``engine.state.output`` into (created, real).
    """

    def __init__(
        self, encoder: Callable[[Tensor], Tensor], output_transform: Callable[[Any], Any] = lambda output: output
    ) -> None:
        super().__init__(metric_fn=_Distance(encoder), output_transform=output_transform, save_details=False)
