from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.metrics import DiceMetric

from medseg.errors import Refusal, UsageError
from medseg.evaluation.definitions import Definitions
from medseg.evaluation.handlers import StructureMetric, StructureMetricHandler


def masks(*labels: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    reference = np.zeros((12, 12, 12), np.int64)
    for label in labels:
        reference[3 * label : 3 * label + 3, 3:8, 3:8] = label
    return np.roll(reference, 1, axis=0), reference


def one_hot(label_map: Any, spacing_mm: tuple[float, float, float] | None = None, n_classes: int = 3) -> torch.Tensor:
    channels = torch.from_numpy(np.eye(n_classes, dtype=np.float32)[label_map]).permute(3, 0, 1, 2)
    return channels if spacing_mm is None else MetaTensor(channels, affine=np.diag([*spacing_mm, 1.0]))


@pytest.mark.parametrize("batched", [False, True])
def test_distances_are_in_mm_of_the_image(batched: bool) -> None:
    prediction, reference = masks(1, 2)
    metric = StructureMetric("hd_mm")
    p, r = one_hot(prediction, (4.0, 1.0, 1.0)), one_hot(reference, (4.0, 1.0, 1.0))
    metric(p[None] if batched else [p], r[None] if batched else [r])
    assert metric.aggregate().tolist() == [4.0, 4.0]


def test_dice_is_monais() -> None:
    prediction, reference = masks(1, 2)
    metric, peer = (
        StructureMetric("dice", spacing_mm=(1, 1, 1)),
        DiceMetric(include_background=False, reduction="mean_batch"),
    )
    for measure in (metric, peer):
        measure([one_hot(prediction)], [one_hot(reference)])
    torch.testing.assert_close(metric.aggregate().float(), peer.aggregate())


def test_a_missed_structure_stays_in_the_average_and_is_counted() -> None:
    _, reference = masks(1, 2)
    metric = StructureMetric("dice", spacing_mm=(1, 1, 1))
    metric([one_hot(reference)], [one_hot(reference)])
    metric([one_hot(np.where(reference == 2, 0, reference))], [one_hot(reference)])
    assert metric.aggregate().tolist() == [1.0, 0.5]
    assert {name: counts.tolist() for name, counts in metric.counts().items()} == {
        "n": [2, 2],
        "n_missed": [0, 1],
        "n_invented": [0, 0],
    }
    metric.reset()
    with pytest.raises(UsageError, match="no image"):
        metric.aggregate()


def test_label_values_in_one_channel_are_taken_with_the_number_of_classes() -> None:
    prediction, reference = masks(1, 2)
    metric = StructureMetric("hd_mm", spacing_mm=(2, 1, 1), n_classes=3)
    metric([torch.from_numpy(prediction)[None]], [torch.from_numpy(reference)[None]])
    assert metric.aggregate().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda t: t * torch.nan, Refusal),
        (lambda t: t * 0.4, UsageError),
        (lambda t: torch.ones_like(t), UsageError),
        (lambda t: t[:1], UsageError),
    ],
)
def test_what_is_not_one_hot_is_an_error(spoil: Any, error: type[Exception]) -> None:
    _, reference = masks(1, 2)
    good = one_hot(reference)
    with pytest.raises(error):
        StructureMetric(spacing_mm=(1, 1, 1))([spoil(good)], [spoil(good)])


def test_a_plain_tensor_needs_a_spacing() -> None:
    _, reference = masks(1)
    with pytest.raises(UsageError, match="spacing_mm"):
        StructureMetric()([one_hot(reference)], [one_hot(reference)])


def test_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(UsageError, match="dice"):
        StructureMetric("dise")


def test_the_handler_reports_beside_the_mean_what_was_missed() -> None:
    prediction, reference = masks(1, 2)
    empty = np.zeros_like(reference)
    batches = [(one_hot(prediction), one_hot(reference)), (one_hot(empty), one_hot(reference))]
    engine = Engine(lambda _, batch: ([batch[0]], [batch[1]]))
    handler = StructureMetricHandler("hd_mm", spacing_mm=(3.0, 1.0, 1.0))
    handler.attach(engine, "hd_mm")
    engine.run(batches)
    assert engine.state.metrics == {"hd_mm": 3.0, "hd_mm_missed": 2, "hd_mm_invented": 0}
    assert engine.state.metric_details["hd_mm"].shape[:2] == (2, 2)
    engine.run(batches[:1])
    assert engine.state.metrics["hd_mm_missed"] == 0


def test_where_everything_is_missed_there_is_no_distance_and_a_dice_of_0() -> None:
    _, reference = masks(1, 2)
    batches = [(one_hot(np.zeros_like(reference)), one_hot(reference))]
    engine = Engine(lambda _, batch: ([batch[0]], [batch[1]]))
    for metric in ("dice", "hd95_mm"):
        StructureMetricHandler(metric, spacing_mm=(1.0, 1.0, 1.0)).attach(engine, metric)
    engine.run(batches)
    assert engine.state.metrics["dice"] == 0.0
    assert np.isnan(engine.state.metrics["hd95_mm"])
    assert (engine.state.metrics["dice_missed"], engine.state.metrics["hd95_mm_missed"]) == (2, 2)


@pytest.mark.parametrize("metric", ["ece", "ace", "cldice"])
def test_a_metric_that_would_never_have_a_value_is_refused(metric: str) -> None:
    """As a key metric it would be NaN in every epoch, and no model the best one."""
    with pytest.raises(UsageError, match=f"{metric} would have no value"):
        StructureMetric(metric)
    assert StructureMetric("cldice", definitions=Definitions(centreline=True)).metric == "cldice"
