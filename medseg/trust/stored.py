"""One JSON file of a bundle's ``trust/``, bound to one set of weights; nothing in it is executed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from medseg.errors import BundleError
from medseg.files import write_json

_LARGEST: Final = 1e12
"""No statistic of an image, no weight and no count comes near it, and squares of it are still numbers."""
SMALLEST_SPREAD: Final = 1e-9
"""A standard deviation below it is none to divide by."""


class StoredPart(ABC):
    """A part of trust as a record that knows its JSON, with a ``format`` of its own."""

    what: ClassVar[str]  # what it is, for messages
    file_format: ClassVar[str]
    remedy: ClassVar[str] = "fit it again: medseg trust fit"
    weights_sha256: str

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """As in the file, but for the format."""

    @classmethod
    @abstractmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From what :meth:`to_json` and JSON made of one; any usual error says that it is something else."""

    def write(self, path: Path) -> None:
        """Write plain JSON, whole or not at all."""
        write_json(path, {"format": self.file_format, **self.to_json()})

    @classmethod
    def read(cls, path: Path, weights_sha256: Collection[str] | None = None) -> Self:
        """Read one.

        Raises ``BundleError`` if the file is something else, or belongs to none of the given weights (None: any will
        do).
        """
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text, parse_float=_sensible, parse_int=_sensible_whole, parse_constant=_sensible)
            if content["format"] != cls.file_format:
                raise ValueError(f"format {content['format']!r}, expected {cls.file_format!r}")
            part = cls.from_json(content)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise BundleError(f"{path} is not a {cls.what} ({error!r}); {cls.remedy}") from error
        if weights_sha256 is not None:
            check_weights(path, part.weights_sha256, weights_sha256, cls.remedy)
        return part


def numbers(values: Sequence[Any]) -> tuple[float, ...]:
    """Numbers as they were read; a text that looks like one is none and raises ``TypeError``."""
    if odd := [value for value in values if not isinstance(value, int | float)]:
        raise TypeError(f"{odd[0]!r} is no number")
    return tuple(float(value) for value in values)


def _sensible(text: str) -> float:
    """A number that arithmetic survives: what is not finite, or as good as that, turns verdicts into chance."""
    value = float(text)
    if not abs(value) <= _LARGEST:
        raise ValueError(f"the number {text[:40]} is none to reckon with")
    return value


def _sensible_whole(text: str) -> int:
    _sensible(text)
    return int(text)


def check_weights(
    path: Path, belongs_to: str, weights_sha256: Collection[str], remedy: str = StoredPart.remedy
) -> None:
    """Refuse a part of trust that was fitted for other weights with a ``BundleError``."""
    if belongs_to not in weights_sha256:
        present = ", ".join(digest[:12] for digest in sorted(weights_sha256)) or "none"
        raise BundleError(f"{path} belongs to weights {belongs_to[:12]}, found weights {present}; {remedy}")
