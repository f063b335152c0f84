"""One JSON file of a bundle's ``trust/``, bound to one set of weights; nothing in it is executed.

It comes from whoever made the bundle. Its size is bounded before it is parsed; its form is compared with that of its
record before the record is made (:mod:`medseg.json_shape`), and the record judges what the numbers mean.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from medseg.errors import BundleError, OtherWeights
from medseg.files import write_text
from medseg.json_shape import Spec, misfit, numbers, one_of, parse_json, read_bounded

_LARGEST: Final = 1e12
"""No statistic of an image, no weight and no count comes near it, and squares of it are still numbers."""
_LARGEST_BYTES: Final = 64 << 20
"""A calibration of fifty structures has about as many."""
SMALLEST_SPREAD: Final = 1e-9
"""A standard deviation below it is none to divide by."""


class StoredPart(ABC):
    """A part of trust as a record that knows its JSON, with a ``format`` of its own."""

    what: ClassVar[str]  # what it is, for messages
    file_format: ClassVar[str]
    form: ClassVar[Spec]  # of what ``to_json`` gives
    remedy: ClassVar[str] = "fit it again: medseg trust fit"
    weights_sha256: str

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """As in the file, but for the format."""

    @classmethod
    @abstractmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From what fits :attr:`form`; a ``ValueError`` says that it makes no sense."""

    def write(self, path: Path) -> None:
        """Write plain JSON, whole or not at all; without a line for every number of every tree."""
        write_text(path, json.dumps({"format": self.file_format, **self.to_json()}, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path, weights_sha256: Collection[str] | None = None) -> Self:
        """Read one.

        Raises ``BundleError`` if the file is something else, or belongs to none of the given weights (None: any will
        do).
        """
        try:
            content = parse_json(read_bounded(path, _LARGEST_BYTES))
            if wrong := misfit(content, {"format!": one_of(cls.file_format)}) or misfit(content, cls.form):
                raise ValueError(wrong)
            part = cls.from_json(content)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise BundleError(f"{path} is not a {cls.what}: {why}; {cls.remedy}") from error
        if weights_sha256 is not None:
            check_weights(path, part.weights_sha256, weights_sha256, cls.remedy)
        return part


STATISTICS: Final = numbers(-_LARGEST, _LARGEST)
"""A list of numbers that arithmetic survives."""
SPREADS: Final = numbers(SMALLEST_SPREAD, _LARGEST)
"""A list of numbers to divide by."""


def check_weights(
    path: Path, belongs_to: str, weights_sha256: Collection[str], remedy: str = StoredPart.remedy
) -> None:
    """Refuse a part of trust that was fitted for other weights with a ``BundleError``."""
    if belongs_to not in weights_sha256:
        present = ", ".join(digest[:12] for digest in sorted(weights_sha256)) or "none"
        raise OtherWeights(f"{path} belongs to weights {belongs_to[:12]}, found weights {present}; {remedy}")
