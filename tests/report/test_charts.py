from __future__ import annotations

import numpy as np
import pytest

from medseg.report.charts import limits_of_agreement, nice_ticks, sections
from medseg.report.collect import collect
from tests.report.report_folders import Folders


def test_the_calibration_plot_counts_structures_and_their_bounds(folders: Folders) -> None:
    study = collect(folders.results)
    trust = next(section for section in sections(study) if section.anchor == "trust")
    known = []
    for case in study.cases:
        dice = {s.label: s.values["dice"] for s in case.structures}
        known += [(one, d) for one in case.assessed if (d := dice[one.label]) is not None]
    error = np.mean([abs(estimate.predicted_dice - dice) for estimate, dice in known])
    covered = sum(dice >= estimate.lower_bound for estimate, dice in known)
    assert trust.charts[0].note == (
        f"mean absolute error {error:.3f}; {covered} of {len(known)} structures reach their lower bound"
    )


def test_limits_of_agreement_by_hand() -> None:
    bias, low, high = limits_of_agreement([-1.0, 0.0, 1.0])
    assert (bias, low, high) == pytest.approx((0.0, -1.96, 1.96))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7.9), (5, 5), (1e-4, 3e-4), (-1e6, 1e6), (1e40, 1e40)])
def test_ticks_span_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert len(ticks) <= 12
