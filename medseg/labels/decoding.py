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
    table
        The channels are regions, each wherever its score reaches the threshold: the label of every combination of them
        (:attr:`medseg.labels.LabelScheme.table`). Empty if they are not.
    """

    activation: Activation = "none"
    threshold: float | None = None
    table: tuple[int, ...] = ()

    def labels_of(self, channels: int) -> int:
        """How many values from 0 on a label map of that many channels may hold."""
        return max(self.table) + 1 if self.table else max(channels, 2)
