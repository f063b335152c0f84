"""Results made worse on purpose: corrected cases alone show what a good result looks like, and little of poor ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from monai.data import MetaTensor

from medseg.trust.fit import TrustCase
from medseg.trust.synthetic_faults import IMAGE_FAULTS, MASK_FAULTS


def worse_images(image: MetaTensor, rng: np.random.Generator, count: int) -> Iterator[tuple[str, MetaTensor]]:
    """The image with ``count`` different faults: their names, and images ``(C, H, W, D)`` in the same units."""
    for name in rng.choice(sorted(IMAGE_FAULTS), min(count, len(IMAGE_FAULTS)), replace=False):
        channels = []
        for channel in image.as_tensor().numpy():
            mean, spread = float(channel.mean()), max(float(channel.std()), 1e-6)
            worse = IMAGE_FAULTS[str(name)](((channel - mean) / spread).astype(np.float32), rng)
            channels.append(np.asarray(worse, dtype=np.float32) * spread + mean)
        yield str(name), MetaTensor(np.stack(channels).astype(np.float32), affine=image.affine)


def worse_masks(case: TrustCase, rng: np.random.Generator, count: int) -> Iterator[TrustCase]:
    """The case with ``count`` different faults of its probabilities; its image stays."""
    for name in rng.choice(sorted(MASK_FAULTS), min(count, len(MASK_FAULTS)), replace=False):
        worse = MASK_FAULTS[str(name)](case.probabilities.numpy(), rng)
        yield replace(case, probabilities=torch.from_numpy(np.asarray(worse, dtype=np.float32)), kind=str(name))
