"""Which thresholds a fit on corrected cases aims at: what is not given stays as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medseg.errors import BundleError, UsageError
from medseg.results.accept_table import AcceptTable
from medseg.results.verdict import Thresholds
from medseg.trust.calibration import FitOptions
from medseg.workflows.trust_fit import FitRequest, _options

NOWHERE = Path("nowhere")


def options(old: tuple[Thresholds, AcceptTable | None] | None, **asked: Any) -> FitOptions:
    stated = None if old is None else SimpleNamespace(thresholds=old[0], accepted=old[1])
    files: Any = SimpleNamespace(stated_calibration=stated)
    return _options(FitRequest(NOWHERE, NOWHERE, NOWHERE, **asked), files).calibration


CHOSEN = Thresholds(0.7, 0.4), AcceptTable(0.75, 0.95)


@pytest.mark.parametrize(
    ("old", "asked", "expected"),
    [
        (None, {}, (None, 0.5, 0.9, 0.8)),  # chosen, never 0.8
        (None, {"precision": 0.97, "good_dice": 0.7}, (None, 0.5, 0.97, 0.7)),
        (None, {"accept": 0.6, "reject": 0.2}, (0.6, 0.2, 0.9, 0.8)),
        ((Thresholds(0.8, 0.5), None), {}, (0.8, 0.5, 0.9, 0.8)),  # an older file, as before
        ((Thresholds(0.8, 0.5), None), {"precision": 0.9}, (None, 0.5, 0.9, 0.8)),
        ((Thresholds(0.62, 0.3), AcceptTable(0.7, None)), {}, (0.62, 0.3, 0.9, 0.7)),
        (CHOSEN, {}, (None, 0.4, 0.95, 0.75)),  # chosen anew, for the same precision
        (CHOSEN, {"accept": 0.9}, (0.9, 0.4, 0.95, 0.75)),
    ],
)
def test_what_is_not_given_stays_as_it_was(old: Any, asked: dict[str, float], expected: tuple[Any, ...]) -> None:
    found = options(old, **asked)
    assert (found.thresholds.accept, found.thresholds.reject, found.precision, found.good_dice) == expected


@pytest.mark.parametrize(
    "asked", [{"accept": 0.4, "reject": 0.5}, {"reject": 1.5}, {"precision": 1.0}, {"precision": 0.0}]
)
def test_what_cannot_be_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        options(None, **asked)


def test_a_threshold_and_a_precision_to_choose_it_for_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="give one of both"):
        options(None, accept=0.8, precision=0.9)


def test_a_calibration_that_cannot_be_read_is_none() -> None:
    class Damaged:
        @property
        def stated_calibration(self) -> None:
            raise BundleError("damaged")

    files: Any = Damaged()
    assert _options(FitRequest(NOWHERE, NOWHERE, NOWHERE), files).calibration == FitOptions()
