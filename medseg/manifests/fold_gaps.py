"""Folds that lack a structure: where training never sees it, or validation cannot judge it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from medseg.labels.scheme import listed

__all__ = ["explain_fold_gaps"]

_SHOWN = 6


def explain_fold_gaps(cases: Sequence[tuple[int | None, Collection[int]]], names: Mapping[int, str]) -> str:
    """What each fold lacks of the structures that occur, in words; empty if nothing, or if there is one fold only.

    Parameters
    ----------
    cases
        Fold (``None``: trained on in every fold) and label values of each labelled training case.
    names
        Structures by value.
    """
    folds = sorted({fold for fold, _ in cases if fold is not None})
    if len(folds) < 2:
        return ""
    labels = sorted({value for _, values in cases for value in values} - {0})
    unseen: dict[int, int] = {}
    unjudged: dict[int, list[int]] = {}
    for label in labels:
        having = {fold for fold, values in cases if label in values}
        if len(having) == 1 and (only := next(iter(having))) is not None:
            unseen[label] = only
        if missing := [fold for fold in folds if fold not in having]:
            unjudged[label] = missing
    parts = [
        f"training of fold {fold} never sees {_structure(label, names)}, which only cases of that fold have"
        for label, fold in unseen.items()
    ]
    parts += [
        f"validation of fold{'s' if len(where) > 1 else ''} {listed(where)} lacks {_structure(label, names)}"
        for label, where in unjudged.items()
    ]
    return "; ".join(parts[:_SHOWN]) + (f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")


def _structure(label: int, names: Mapping[int, str]) -> str:
    return f"{label} ({names[label]})" if label in names else str(label)
