"""nnU-Net's windows are summed in half precision, and say so where that overflows."""

from __future__ import annotations

import pytest
import torch

from medseg.networks.even_windows import EvenWindowInferer


def test_scores_beyond_half_precision_are_no_result() -> None:
    infer, image = EvenWindowInferer([4, 4, 4]), torch.ones(1, 1, 6, 4, 4)
    assert (infer(image, lambda window: 100 * window) - 100).abs().max() < 0.1
    with pytest.raises(ValueError, match="too large for half precision"):
        infer(image, lambda window: 60_000 * window)
