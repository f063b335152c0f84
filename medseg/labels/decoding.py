"""How a network's scores become labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["none", "softmax", "sigmoid"]


@dataclass(frozen=True)
class LabelDecoding:
    """From scores to labels."""

    activation: Activation = "none"  # what makes probabilities of scores
    threshold: float | None = None
    """Labels are ``score >= threshold`` of the only channel, after the activation; None if the largest channel wins."""
    table: tuple[int, ...] = ()
    """The channels are regions, each wherever its score reaches the threshold: the label of every combination of them
    (:attr:`medseg.labels.LabelScheme.table`). Empty if they are not."""

    def labels_of(self, channels: int) -> int:
        """How many values from 0 on a label map of that many channels may hold."""
        return max(self.table) + 1 if self.table else max(channels, 2)
