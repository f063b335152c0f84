"""Pixels outside the field of view whose padding value does not fit into the stored bits.

Some scanners store 12 bits and pad with -2000 in all 16: cut to 12 bits it would become a value in the middle of the
range. PS3.3 C.7.5.1.1.2 (Pixel Padding Value) lets the value lie outside the range of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.ingest.headers import Header

__all__ = ["PaddingOutside", "padding_outside"]


@dataclass(frozen=True)
class PaddingOutside:
    """Padding values beyond the stored bits, and what stands for them.

    Attributes
    ----------
    low, high
        First and last padding value, as the allocated bits hold them.
    smallest, largest
        What the stored bits hold. The smallest stands for the padding: air in CT, nothing elsewhere.
    """

    low: int
    high: int
    smallest: int
    largest: int

    def found_in(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Which pixels, with all their allocated bits, are padding outside the stored range."""
        outside = (stored < self.smallest) | (stored > self.largest)
        return outside & (stored >= self.low) & (stored <= self.high)


def padding_outside(header: Header) -> PaddingOutside | None:
    """The padding of a slice that does not fit into its stored bits; ``None`` if there is none."""
    if not header.padding or header.bits_stored >= header.bits_allocated:
        return None
    half = 1 << (header.bits_stored - 1)
    smallest, largest = (-half, half - 1) if header.signed else (0, 2 * half - 1)
    low, high = min(header.padding), max(header.padding)
    if smallest <= low and high <= largest:
        return None
    return PaddingOutside(low, high, smallest, largest)
