"""What a bundle does to its label maps at the end: fill holes, drop what is small, keep the largest part.

It is written into the bundle's ``inference.json`` as MONAI's transforms, so that MONAI does the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.bundle.config import config_file, steps, target_of
from medseg.errors import BundleError, UsageError
from medseg.files import write_text
from medseg.inference.config import read_inference_config

_CLEANERS = ("FillHolesd", "RemoveSmallObjectsd", "KeepLargestConnectedComponentd")
_ALL = "all"


@dataclass(frozen=True)
class Cleaning:
    """What is done to label maps on the source grid, in this order."""

    fill_holes: tuple[str, ...] = ()
    """Structures whose enclosed background is filled; ``("all",)`` for all, empty for none."""
    smallest_ml: float = 0.0
    """Parts of the foreground, all structures together, below this volume are dropped; what touches a larger part is
    none of its own. 0 drops nothing."""
    keep_largest: tuple[str, ...] = ()
    """Structures of which the largest part alone is kept (26 neighbours), each by itself."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.smallest_ml < 1e6:
            raise UsageError(f"the smallest volume is {self.smallest_ml} ml; give one of at least 0")

    def transforms(self, labels: Mapping[int, str]) -> list[dict[str, Any]]:
        """The steps of a postprocessing; names are those of ``labels``, by value."""
        made: list[dict[str, Any]] = []
        if self.fill_holes:
            made.append({"_target_": "FillHolesd", "keys": "pred", "applied_labels": _values(self.fill_holes, labels)})
        if self.smallest_ml:
            # not `independent_channels`: MONAI would take every label for one object, however many parts it has
            volume = {"min_size": self.smallest_ml * 1000.0, "by_measure": True, "independent_channels": False}
            made.append({"_target_": "RemoveSmallObjectsd", "keys": "pred", "connectivity": 3, **volume})
        if self.keep_largest:
            chosen = {"applied_labels": _values(self.keep_largest, labels), "is_onehot": False}
            made.append({"_target_": "KeepLargestConnectedComponentd", "keys": "pred", **chosen})
        return made


def _values(names: Sequence[str], labels: Mapping[int, str]) -> list[int]:
    if tuple(names) == (_ALL,):
        return sorted(labels)
    by_name = {name.casefold(): value for value, name in labels.items()}
    unknown = [name for name in names if name.casefold() not in by_name]
    if unknown:
        raise UsageError(
            f"no structure is called {unknown[0]!r}; expected some of {', '.join(labels.values())}, or all"
        )
    return sorted(by_name[name.casefold()] for name in names)


def set_cleaning(bundle: Bundle, cleaning: Cleaning) -> list[dict[str, Any]]:
    """Write it into a bundle, in place of what was there of it; returns the steps.

    Raises ``UsageError`` if a structure is not the bundle's, or its config is no JSON; ``BundleError`` if the bundle's
    postprocessing is no list of transforms, or cannot be used with these steps; it is unchanged; ``MissingDependency``
    if a package that the steps need is not installed.
    """
    path, place = config_file(bundle.path, "inference"), bundle.pipeline.postprocessing
    if path is None or path.suffix != ".json" or place is None:
        raise UsageError(f"{bundle.name} has no postprocessing in configs/inference.json; write the steps by hand")
    before = path.read_text(encoding="utf-8")
    config = json.loads(before)
    listed = config.get(place)
    listed = listed.get("transforms") if isinstance(listed, dict) else listed
    if not isinstance(listed, list) or not all(isinstance(step, dict) for step in steps(config, place)):
        raise BundleError(f"{place!r} of {bundle.name} is no list of transforms; write the steps by hand")
    kept = [step for step in listed if target_of(step) not in _CLEANERS]
    saves = next((number for number, step in enumerate(kept) if target_of(step) == "SaveImaged"), len(kept))
    made = cleaning.transforms(bundle.labels)
    listed[:] = [*kept[:saves], *made, *kept[saves:]]
    write_text(path, json.dumps(config, indent=2) + "\n")
    try:
        read_inference_config(Bundle.open(bundle.path, bundle.permission))
    except BaseException:
        write_text(path, before)
        raise
    return made
