"""One network's update, on networks of a single weight."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from medseg.errors import TrainingDiverged
from medseg.training.step import NetworkStep


def _step(**options: float) -> tuple[NetworkStep, torch.Tensor]:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    return NetworkStep("judge", network, optimizer, scheduler=scheduler, **options), network.weight  # type: ignore[arg-type]


def test_an_update_descends_and_advances_the_learning_rate() -> None:
    step, weight = _step()
    assert step.backward(3.0 * weight.sum())
    assert step.update()
    assert weight.item() == pytest.approx(1.0 - 0.1 * 3.0)
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert weight.grad is None


def test_gradients_are_clipped_over_all_parameters_of_the_optimizer() -> None:
    step, weight = _step(max_norm=1.0)
    head = nn.Parameter(torch.ones(1))  # not in the network, as a head of deep supervision
    step.optimizer.add_param_group({"params": [head]})
    step.scheduler = None
    step.backward(3.0 * weight.sum() + 4.0 * head.sum())
    step.update()
    assert weight.item() == pytest.approx(1.0 - 0.1 * 3.0 / 5.0)
    assert head.item() == pytest.approx(1.0 - 0.1 * 4.0 / 5.0)


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    step, weight = _step()
    weight.register_hook(lambda gradient: gradient * torch.inf)
    assert step.backward(weight.sum())  # the loss itself is a number
    assert not step.update()
    assert weight.item() == 1.0
    assert (step.skipped, step.skipped_in_a_row) == (1, 1)
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_too_many_in_a_row_stop_the_run_and_name_the_network() -> None:
    step, weight = _step()
    for _ in range(9):
        assert not step.backward(weight.sum() * torch.nan)
    with pytest.raises(TrainingDiverged, match="judge's loss was not finite in 10 batches"):
        step.backward(weight.sum() * torch.nan)


def test_a_good_batch_between_bad_ones_resets_the_count() -> None:
    step, weight = _step()
    for _ in range(10):
        step.backward(weight.sum() * torch.nan)
        step.backward(weight.sum())
        step.update()
    assert (step.skipped, step.skipped_in_a_row) == (10, 0)
