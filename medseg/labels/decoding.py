"""How a network's scores become labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["none", "softmax", "sigmoid"]


@dataclass(frozen=True)
class LabelDecoding:
    """From scores to labels.

    Parameters
    ----------
    activation
        What makes probabilities of scores.
    threshold
        Labels are ``score >= threshold`` of the only channel, after the activation; None if the largest channel wins.
    """

    activation: Activation = "none"
    threshold: float | None = None
