"""What a person must know before believing an evaluation, although nothing went wrong in carrying it out."""

from __future__ import annotations

from collections.abc import Iterator

from medseg.evaluation.structure_names import Structures
from medseg.evaluation.tables import Evaluated

__all__ = ["warnings_of"]

_SHOWN = 8


def warnings_of(evaluated: Evaluated, structures: Structures) -> list[str]:
    """Sentences for ``metrics.json`` and the terminal; empty if there is nothing to say."""
    return [*_nothing_scored(evaluated), *_same_files(evaluated), *structures.warnings, *_values(evaluated, structures)]


def _nothing_scored(evaluated: Evaluated) -> Iterator[str]:
    if any(not row.absent for row in evaluated.results):
        return
    if not evaluated.scored:
        yield f"no structure was scored: all {len(evaluated.pairs)} cases were refused"
    else:
        yield (
            "no structure was scored: all masks are empty on both sides; look whether these are the label maps you "
            "meant, and whether their values survived"
        )


def _same_files(evaluated: Evaluated) -> Iterator[str]:
    same = [pair for pair in evaluated.scored if pair.prediction.samefile(pair.reference)]
    if same:
        yield (
            f"{len(same)} of {len(evaluated.scored)} predictions are the very files that they are compared with: their "
            "figures say nothing about a model"
        )


def _values(evaluated: Evaluated, structures: Structures) -> Iterator[str]:
    """Structures that occur nowhere, and values that occur but have no name."""
    occur = {row.label: row.name for row in evaluated.results if not row.absent}
    if not occur:
        return
    never = [name for label, name in structures.names.items() if label not in occur]
    if never:
        yield f"never on either side, so not scored: {', '.join(never[:_SHOWN])}{_more(never)}"
    unnamed = [label for label in occur if label not in structures.names] if structures.names else []
    if unnamed:
        shown = ", ".join(str(label) for label in unnamed[:_SHOWN])
        yield f"values that no structure is named for are scored under their number: {shown}{_more(unnamed)}"


def _more(things: list[str] | list[int]) -> str:
    return f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
