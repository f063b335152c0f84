"""A run that was stopped and started again ends with the same bits as one that was not."""

import csv
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events

from medseg.errors import UsageError
from medseg.training import (
    AdversarialSchedule,
    AdversarialSegmentationTrainer,
    Checkpoints,
    FrozenFirst,
    higher_is_better,
)
from medseg.training.checkpoints import save_weights
from medseg.training.data import random_state, set_random_state

Make = Callable[..., AdversarialSegmentationTrainer]
SCHEDULE = AdversarialSchedule(share=0.1, warm_up=2, ramp=3)
LENGTH = 4


def _weights(trainer: AdversarialSegmentationTrainer) -> dict[str, torch.Tensor]:
    assert trainer.adversary is not None
    assert trainer.averaged is not None
    networks = {"g": trainer.network, "d": trainer.adversary.discriminator, "average": trainer.averaged}
    return {f"{key}.{name}": v.clone() for key, net in networks.items() for name, v in net.state_dict().items()}


def _checkpoints(trainer: AdversarialSegmentationTrainer, folder: Path) -> Checkpoints:
    journal: Any = trainer.stateful["journal"]
    return Checkpoints(folder / "checkpoints", journal.evaluator)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def _make(make_trainer: Make, folder: Path, **options: Any) -> AdversarialSegmentationTrainer:
    return make_trainer(folder, epochs=3, iterations=LENGTH, schedule=SCHEDULE, **options)


@pytest.fixture(params=["fp32", "bf16"])
def make_trainer(make_trainer: Make, request: pytest.FixtureRequest) -> Make:
    return partial(make_trainer, precision=request.param)


@pytest.fixture
def uninterrupted(make_trainer: Make, tmp_path: Path) -> dict[str, torch.Tensor]:
    trainer = _make(make_trainer, tmp_path / "whole")
    trainer.run()
    return _weights(trainer)


@pytest.mark.parametrize(("stop_at", "saves"), [(1, True), (LENGTH + 3, True), (LENGTH + 2, False)])
def test_resume_is_exact_to_the_bit(
    make_trainer: Make, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], stop_at: int, saves: bool
) -> None:
    """Stopped in the middle of an epoch and saved there, or killed there and gone back to the end of the last."""
    folder = tmp_path / "parts"
    first = _make(make_trainer, folder)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), first.terminate)
    first.run()
    assert first.state.iteration == stop_at
    if saves:
        _checkpoints(first, folder).save(first)
    random.random()
    np.random.rand()
    torch.rand(3)
    second = _make(make_trainer, folder)
    assert _checkpoints(second, folder).resume(second) == (stop_at if saves else LENGTH)
    second.run()
    resumed = _weights(second)
    assert all(torch.equal(value, resumed[name]) for name, value in uninterrupted.items())
    assert _rows(folder) == _rows(tmp_path / "whole")


@pytest.mark.parametrize(("stop_at", "saves"), [(LENGTH - 1, True), (LENGTH + 2, False), (LENGTH + 1, True)])
def test_resume_is_exact_over_the_thaw(make_trainer: Make, tmp_path: Path, stop_at: int, saves: bool) -> None:
    """Stopped while the encoder rests, killed just after it thaws (and gone back to the thaw), stopped after it."""

    def make(folder: Path) -> AdversarialSegmentationTrainer:
        trainer = _make(make_trainer, folder, norm="batch")
        FrozenFirst(trainer.network, "model.0", 1).attach(trainer)
        return trainer

    whole = make(tmp_path / "whole")
    start = {name: value.clone() for name, value in whole.network.get_submodule("model.0").state_dict().items()}
    rested: list[bool] = []

    def look() -> None:
        now = whole.network.get_submodule("model.0").state_dict()
        rested.append(all(torch.equal(v, now[name]) for name, v in start.items() if "num_batches" not in name))

    whole.add_event_handler(Events.EPOCH_COMPLETED, look)
    whole.run()
    assert rested == [True, False, False]
    folder = tmp_path / "parts"
    first = make(folder)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), first.terminate)
    first.run()
    if saves:
        _checkpoints(first, folder).save(first)
    second = make(folder)
    assert _checkpoints(second, folder).resume(second) == (stop_at if saves else LENGTH)
    second.run()
    resumed = _weights(second)
    assert all(torch.equal(value, resumed[name]) for name, value in _weights(whole).items())
    assert _rows(folder) == _rows(tmp_path / "whole")


def test_the_best_validation_survives_a_resume(make_trainer: Make, tmp_path: Path) -> None:
    first = _make(make_trainer, tmp_path)
    first.run()
    second = _make(make_trainer, tmp_path)
    checkpoints = _checkpoints(second, tmp_path)
    assert checkpoints.resume(second) == 3 * LENGTH
    saved = _checkpoints(first, tmp_path).evaluator
    assert saved is not None
    assert checkpoints.evaluator is not None
    assert checkpoints.evaluator.state.best_metric == saved.state.best_metric > 0.0
    assert checkpoints.evaluator.state.best_metric_epoch == saved.state.best_metric_epoch


def test_every_checkpoint_is_data_and_only_the_last_two_are_kept(make_trainer: Make, tmp_path: Path) -> None:
    _make(make_trainer, tmp_path).run()
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    weights = ["best.pt", "best_discriminator.pt", "final.pt", "final_discriminator.pt"]
    assert files == sorted([*weights, "checkpoint-000008.pt", "checkpoint-000012.pt"])
    for path in (tmp_path / "checkpoints").iterdir():
        torch.load(path, weights_only=True)


def test_the_best_weights_are_those_of_the_average(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.run()
    assert trainer.averaged is not None
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    average = trainer.averaged.module.state_dict()
    assert best.keys() == average.keys()
    assert all(torch.equal(value, average[name]) for name, value in best.items())


def test_half_written_files_of_a_killed_run_are_cleared(make_trainer: Make, tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / ".medseg-partial-1234-checkpoint-000004.pt"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    make_trainer(tmp_path, epochs=1).run()
    assert not leftover.exists()


def test_a_damaged_checkpoint_is_named(make_trainer: Make, tmp_path: Path) -> None:
    trainer = _make(make_trainer, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-000004.pt").write_bytes(b"PK damaged")
    with pytest.raises(UsageError, match="checkpoint-000004"):
        _checkpoints(trainer, tmp_path).resume(trainer)


def test_another_configuration_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    _make(make_trainer, tmp_path).run()
    other = make_trainer(tmp_path / "other", epochs=3, iterations=LENGTH + 1, schedule=SCHEDULE)
    with pytest.raises(UsageError, match="iterations per epoch"):
        _checkpoints(other, tmp_path).resume(other)


def test_randomness_comes_back() -> None:
    state = random_state()
    first = (torch.rand(2), np.random.rand(2), random.random())
    set_random_state(state)
    again = (torch.rand(2), np.random.rand(2), random.random())
    assert torch.equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[2] == again[2]


def test_weights_are_written_in_the_standard_layout(tmp_path: Path) -> None:
    network = torch.nn.Conv3d(2, 3, 3)
    network.weight.data = network.weight.data.contiguous(memory_format=torch.channels_last_3d)
    save_weights(network, tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(tensor.is_contiguous() for tensor in saved.values())
    assert torch.equal(saved["weight"], network.weight)


@pytest.mark.parametrize(
    ("current", "best", "expected"),
    [(0.5, 0.4, True), (0.4, 0.5, False), (float("nan"), 0.1, False), (0.1, float("nan"), True)],
)
def test_nan_is_never_the_best(current: float, best: float, expected: bool) -> None:
    assert higher_is_better(current, best) is expected
