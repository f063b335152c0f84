"""What a datalist asks of readers of DICOM objects and mask files: which name means which structure, and what is done.

Two keys at the top of a datalist::

    "roi_mapping": {"LEBER": "liver", "liver_MD": "liver", "BODY": null},
    "label_reading": {"threshold": 0.5, "resample": true, "missing_slices": "fill", "order": ["liver", "tumour"]}

What is not asked for is refused, and what is done is noted with the case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from medseg.errors import UsageError

ROI_MAPPING_KEY = "roi_mapping"
"""Key of a datalist: name of a segment, an ROI or a mask file → name of a declared structure, ``null`` for none."""

READING_KEY = "label_reading"
"""Key of a datalist: how DICOM objects are read as labels."""

MissingSlices = Literal["refuse", "fill", "empty"]


def plain_name(name: str) -> str:
    """A name as names of structures are compared: capitals, blanks and ways to write an accent do not count."""
    return unicodedata.normalize("NFC", " ".join(name.split()).casefold())


@dataclass(frozen=True)
class ReadingRules:
    """How names become structures, and what may be done to objects that do not fit as they are."""

    names: Mapping[str, str | None] = field(default_factory=dict)
    """Structure by name of a segment, ROI or mask file, beside the declared names themselves; ``None`` leaves it out on
    purpose. Capitals do not count."""
    threshold: float = 0.5  # share of MaximumFractionalValue from which a pixel of a FRACTIONAL segmentation is inside
    resample: bool = False
    """A segmentation on another grid of the same frame of reference may take the nearest voxel's label."""
    missing_slices: MissingSlices = "refuse"
    """What slices between two contours of an ROI are that have none, where both contours lie over each other:
    ``"fill"`` interpolates the outline, ``"empty"`` takes the gap as it is."""
    order: tuple[str, ...] = ()  # structures that may overlap, each under those behind it

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = "the datalist") -> ReadingRules:
        """The rules of a datalist, or of a case of :func:`medseg.training.fold_items`.

        Raises ``UsageError`` if either key holds anything else than it may.
        """
        names = content.get(ROI_MAPPING_KEY) or {}
        if not isinstance(names, Mapping) or not all(isinstance(name, str | None) for name in names.values()):
            raise UsageError(f'`{ROI_MAPPING_KEY}` of {where}: expected an object such as {{"LEBER": "liver"}}')
        _check_once(names, where)
        asked = content.get(READING_KEY) or {}
        if not isinstance(asked, Mapping):
            raise UsageError(f'`{READING_KEY}` of {where}: expected an object such as {{"missing_slices": "fill"}}')
        for key, value in asked.items():
            holds, expected = _ASKED.get(key, (None, ""))
            if holds is None:
                known = ", ".join(_ASKED)
                raise UsageError(f"`{READING_KEY}` of {where} holds {key!r}, expected some of {known}; correct it")
            if not holds(value):
                raise UsageError(f"{key!r} of `{READING_KEY}` of {where} is {value!r}, expected {expected}; correct it")
        given: dict[str, Any] = {key: tuple(value) if key == "order" else value for key, value in asked.items()}
        return cls(dict(names), **given)

    def to_json(self) -> dict[str, Any]:
        """The keys of a datalist that make these rules; none for the usual ones."""
        usual = ReadingRules()
        asked = {key: getattr(self, key) for key in _ASKED if getattr(self, key) != getattr(usual, key)}
        asked = {key: list(value) if key == "order" else value for key, value in asked.items()}
        return ({ROI_MAPPING_KEY: dict(self.names)} if self.names else {}) | ({READING_KEY: asked} if asked else {})


def _check_once(names: Mapping[str, str | None], where: str) -> None:
    """Two spellings of one name must mean one thing: which of them counted would be chance."""
    said: dict[str, str | None] = {}
    for name, target in names.items():
        if said.setdefault(plain_name(name), target) != target:
            raise UsageError(
                f"`{ROI_MAPPING_KEY}` of {where} maps {name!r} to {target!r} and, in another spelling, to "
                f"{said[plain_name(name)]!r}; keep one (capitals and blanks do not count)"
            )


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_ASKED = {
    "threshold": (_is_share, "a share above 0, at most 1"),
    "resample": (lambda value: isinstance(value, bool), "true or false"),
    "missing_slices": (lambda value: value in get_args(MissingSlices), "one of " + ", ".join(get_args(MissingSlices))),
    "order": (_are_names, "a list of structures"),
}
