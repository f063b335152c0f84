"""Channels that lie on different grids: which bundles take them, whether they belong together, and how they travel.

A bundle takes them if its own preprocessing loads each channel under a key of its own, resamples the others onto the
first (``ResampleToMatchd`` onto ``image``) and concatenates all (``ConcatItemsd`` into ``image``). The first channel's
grid is the one results are made on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.data import MetaTensor

from medseg.bundle import Bundle
from medseg.bundle.pipeline import ABSENT, follow, item_at, reached
from medseg.errors import Refusal
from medseg.geometry import SMALLEST_COVERAGE, Geometry
from medseg.ingest import SeriesRecord

__all__ = ["Channels", "channels_of", "check_together", "joined", "others_of", "with_others"]

_OTHERS = "other_channels"


@dataclass(frozen=True)
class Channels:
    """How a bundle takes its channels.

    Parameters
    ----------
    keys
        Names in its transforms: ``image`` for all channels at once, else one name each, the first ``image``.
    resampled
        Whether it resamples the others onto the grid of the first.
    """

    keys: tuple[str, ...] = ("image",)
    resampled: bool = False


def channels_of(bundle: Bundle) -> Channels:
    """Read from ``inference.json``, as data, how a bundle takes its channels."""
    config = bundle.inference
    listed = [step for _, step in reached(config, bundle.pipeline.preprocessing) if _enabled(step, config)]
    concat = next((step for step in listed if _is(step, "ConcatItemsd") and step.get("name") == "image"), None)
    keys = () if concat is None else _names(concat.get("keys"))
    if len(keys) < 2 or keys[0] != "image":
        return Channels()
    matching = [step for step in listed if _is(step, "ResampleToMatchd") and step.get("key_dst") == "image"]
    matched = {key for step in matching for key in _names(step.get("keys"))}
    return Channels(keys, matched.issuperset(keys[1:]))


def check_together(
    records: Sequence[SeriesRecord], grids: Sequence[Geometry], facts: Sequence[Mapping[str, Any]]
) -> str:
    """Refuse channels that cannot be laid over the first one; gives what is worth noting of the others.

    Raises
    ------
    Refusal
        ``mixed-patients``, or ``geometry-mismatch`` if frames of reference differ or a channel covers too little.
    """
    notes = []
    for number, (record, grid, found) in enumerate(zip(records, grids, facts, strict=True)):
        if number == 0:
            continue
        if record.patient_hash and records[0].patient_hash and record.patient_hash != records[0].patient_hash:
            raise Refusal("mixed-patients", f"{record.source} is of another patient than the first channel; pair anew")
        notes.append(_covered(number + 1, record, grids[0].covered_by(grid)) + _frame(record, facts[0], found))
    return "; ".join(notes)


def _covered(number: int, record: SeriesRecord, share: float) -> str:
    if share < SMALLEST_COVERAGE:
        raise Refusal(
            "geometry-mismatch",
            f"{record.source} covers {share:.0%} of the first channel's field of view, expected"
            f" {SMALLEST_COVERAGE:.0%} at least; are both of one examination and registered?",
        )
    return f"channel {number} covers {share:.0%} of the first"


def _frame(record: SeriesRecord, first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    known = [str(facts.get("frame_of_reference_hash") or "") for facts in (first, other)]
    if all(known) and known[0] != known[1]:
        raise Refusal(
            "geometry-mismatch",
            f"{record.source} has another frame of reference than the first channel, so that equal positions are not"
            " the same place; register it to the first channel",
        )
    return "" if all(known) or not any(known) else ", and only one of them states its frame of reference"


def joined(case: Mapping[str, Any]) -> MetaTensor:
    """The first channel of a case ``{"image": …, other keys: …}``, carrying the others along."""
    image: MetaTensor = case["image"]
    others = {key: value for key, value in case.items() if key != "image" and isinstance(value, MetaTensor)}
    return with_others(image, others) if others else image


def with_others(image: MetaTensor, others: Mapping[str, MetaTensor]) -> MetaTensor:
    """``image`` on its grid, carrying channels that lie on other grids by their keys."""
    carrying = MetaTensor(image.as_tensor(), affine=image.affine)
    carrying.meta[_OTHERS] = dict(others)
    return carrying


def others_of(image: MetaTensor) -> dict[str, MetaTensor]:
    """The channels that an image carries along, by key; empty if all are in the image itself."""
    return dict(image.meta.get(_OTHERS, {}))


def _enabled(step: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a transform is switched on, as far as its text tells: words, references, ``$True`` and ``$not …``."""
    value: Any = step.get("_disabled_", False)
    if isinstance(value, str) and value.startswith("@"):
        value = item_at(config, follow(config, value[1:].replace("#", "::")))
    if isinstance(value, str):
        return value.lower().replace(" ", "") not in {"true", "$true", "$notfalse", "$1"}
    return not value or value is ABSENT


def _is(step: Mapping[str, Any], name: str) -> bool:
    return str(step.get("_target_", "")).rpartition(".")[2] == name


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value or ())
