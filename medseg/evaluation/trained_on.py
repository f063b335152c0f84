"""Which of the scored cases a model has learnt from: their figures say nothing about new cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.evaluation.pairing import CaseFile, Collection, Pair
from medseg.manifests.items import sums_of
from medseg.manifests.layouts import path_checksum


def trained_on(pairs: Sequence[Pair], predictions: Collection, labels: object) -> dict[str, bool | None]:
    """Whether the model has learnt from each case's image, by case id; None where that is not known.

    The run that made the predictions says so; where it does not and ``labels`` is a bundle's folder, the SHA-256 of
    the image (from the references' datalist, else where the run found it) is looked up among those that the
    bundle states (:func:`medseg.bundle.trained_on`).
    """
    sums = _bundle_sums(labels)
    found: dict[str, bool | None] = {}
    for pair in pairs:
        run = predictions.run
        case = run.case(pair.prediction.case_id) if run else None
        if case is not None and case.trained_on is not None:
            found[pair.case_id] = case.trained_on
            continue
        own = _sums_of(pair.reference) if sums else []
        if sums and not own and run and (image := run.image_of(pair.prediction.case_id)):
            own = [path_checksum(image)]
        found[pair.case_id] = not sums.isdisjoint(own) if own else None
    return found


def _bundle_sums(labels: object) -> frozenset[str]:
    """The images that a bundle was trained on; empty if ``labels`` is no bundle, or one that states none."""
    if not isinstance(labels, str | Path) or not Path(labels, "configs").is_dir():
        return frozenset()
    from medseg import bundle  # on demand: most evaluations have none

    known = bundle.trained_on(labels)
    return known.images if known else frozenset()


def _sums_of(case: CaseFile) -> list[str]:
    """The sums of a case's images: of the files, or as the datalist states them where the files are not here."""
    if case.images and all(path.exists() for path in case.images):
        return [path_checksum(path) for path in case.images]
    return sums_of(case.attributes, "image")


def summarised(known: Mapping[str, bool | None], scored: Iterable[str]) -> dict[str, Any] | None:
    """What ``metrics.json`` says: how many of how many scored cases, and which; None if it is known of none."""
    learnt = {case: known[case] for case in scored if known.get(case) is not None}
    if not learnt:
        return None
    cases = sorted(case for case, yes in learnt.items() if yes)
    return {"n": len(cases), "of": len(learnt), "case_ids": cases}


def sentence(summary: Mapping[str, Any] | None) -> str:
    """What a person must know before believing the figures; empty if the model has seen none of the cases."""
    if not summary or not summary.get("n"):
        return ""
    n, of = summary["n"], summary.get("of", summary["n"])
    what = f"{n} of {of} cases {'was' if n == 1 else 'were'} used to train this model"
    if n == of:
        return f"{what}: these figures say nothing about new cases"
    return f"{what}: their figures say nothing about new cases, and the averages contain them"
