"""One JSON file of a bundle's ``trust/``, bound to one set of weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from medseg.errors import BundleError

_LARGEST: Final = 1e12
"""No statistic of an image, no weight and no count comes near it, and squares of it are still numbers."""
SMALLEST_SPREAD: Final = 1e-9
"""A standard deviation below it is none to divide by."""


class _Stored(Protocol):
    @property
    def weights_sha256(self) -> str: ...


Part = TypeVar("Part", bound=_Stored)


def read_stored(path: Path, what: str, parse: Callable[[Any], Part], weights_sha256: Collection[str] | None) -> Part:
    """Read one part of trust; nothing in it is executed.

    Parameters
    ----------
    path
        The JSON file.
    what
        What it should be, for messages.
    parse
        Makes it from the content; any error of a wrong content is turned into a ``BundleError``.
    weights_sha256
        SHA-256 of the weights in use, one per file that holds them; ``None`` checks nothing.

    Raises
    ------
    BundleError
        If the file is something else, or belongs to other weights.
    """
    try:
        text = path.read_text(encoding="utf-8")
        part = parse(json.loads(text, parse_float=_sensible, parse_int=_sensible_whole, parse_constant=_sensible))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BundleError(f"{path} is not a {what} ({error!r}); fit it again: medseg trust fit") from error
    if weights_sha256 is not None:
        check_weights(path, part.weights_sha256, weights_sha256)
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


def check_weights(path: Path, belongs_to: str, weights_sha256: Collection[str]) -> None:
    """Refuse a part of trust that was fitted for other weights with a ``BundleError``."""
    if belongs_to not in weights_sha256:
        present = ", ".join(digest[:12] for digest in sorted(weights_sha256)) or "none"
        raise BundleError(
            f"{path} belongs to weights {belongs_to[:12]}, found weights {present}; fit it again: medseg trust fit"
        )
