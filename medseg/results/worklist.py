"""The one order "worst first", in which the worklist, the report and everything else list the cases of a folder."""

from __future__ import annotations

from collections.abc import Sequence

MISS_BELOW = 0.5
"""A structure whose measured Dice is below is a miss, which no verdict outranks."""

_GROUPS = {"reject": 1, "review": 2, "": 3, "accept": 4}
_NOT_DONE = 5


def worst_first(
    case_id: str,
    *,
    status: str = "done",
    verdict: str = "",
    flags: Sequence[str] = (),
    estimates: Sequence[float | None] = (),
    measured_dice: float | None = None,
) -> tuple[int, bool, float, str]:
    """Sorting key that puts the case to look at first on top.

    A measured miss comes first, then what trust rejects, wants reviewed, has not judged, accepts; what was not done
    comes last. Within a group the worst measured Dice decides; where nothing was measured what is flagged comes
    first, then the lowest estimate.

    Parameters
    ----------
    case_id
        Decides between equals.
    status, verdict, flags
        As in ``run.json``; an unknown verdict is looked at as early as a rejected case.
    estimates
        Predicted Dice and its lower bound, where there are any.
    measured_dice
        Dice of the worst structure against a reference; None without one.
    """
    if status != "done":
        group = _NOT_DONE
    elif measured_dice is not None and measured_dice < MISS_BELOW:
        group = 0
    else:
        group = _GROUPS.get(verdict, 1)
    if measured_dice is not None:
        return group, True, measured_dice, case_id
    # What was looked at without a figure could not be judged; what was never looked at stands behind the measured.
    unknown = -1.0 if verdict or flags else 2.0
    return group, not flags, min((v for v in estimates if v is not None), default=unknown), case_id
