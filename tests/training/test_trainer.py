"""The adversarial trainer: the discriminator matters, MONAI's events and handlers work, divergence stops the run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import MeanDice, StatsHandler, from_engine
from monai.transforms import AsDiscreted, Compose
from torch import nn

from medseg.errors import TrainingDiverged
from medseg.training import AdversarialLoss, AdversarialSchedule, AdversarialSegmentationTrainer, Adversary, OneCycle
from tests.training.conftest import balls, small_generator

Make = Callable[..., AdversarialSegmentationTrainer]


@pytest.fixture(params=["fp32", "bf16"])
def make_trainer(make_trainer: Make, request: pytest.FixtureRequest) -> Make:
    """Every test of this file in both formats, whatever ``auto`` takes on this machine."""
    return partial(make_trainer, precision=request.param)


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _changed(network: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_gradient_reaches_the_generator_through_the_discriminator(make_trainer: Make) -> None:
    adversary = make_trainer(schedule=AdversarialSchedule(share=1.0)).adversary
    assert adversary is not None
    generator, case = small_generator(), balls(1)[0]
    logits = generator(case["image"][None])
    adversary.teach(case["image"][None], case["label"][None], logits, None).backward()
    gradients = [p.grad for p in generator.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0.0
    assert all(p.grad is None for p in adversary.discriminator.parameters())


def test_the_weight_changes_what_the_generator_becomes(make_trainer: Make, tmp_path: Path) -> None:
    runs = {
        weight: make_trainer(tmp_path / str(weight), schedule=AdversarialSchedule(share=weight))
        for weight in (0.0, 1.0)
    }
    before = {weight: _copy(run.adversary.discriminator) for weight, run in runs.items() if run.adversary}
    for run in runs.values():
        run.run()
    assert not _changed(runs[0.0].adversary.discriminator, before[0.0])  # type: ignore[union-attr]
    assert _changed(runs[1.0].adversary.discriminator, before[1.0])  # type: ignore[union-attr]
    assert _changed(runs[0.0].network, _copy(runs[1.0].network))


def test_a_null_weight_trains_as_without_a_discriminator(make_trainer: Make, tmp_path: Path) -> None:
    alone, silent = make_trainer(), make_trainer(tmp_path / "silent", schedule=AdversarialSchedule(share=0.0))
    for trainer in (alone, silent):
        torch.manual_seed(3)  # of the dropout
        trainer.run()
    assert not _changed(alone.network, _copy(silent.network))


def test_the_discriminator_tells_references_from_early_fakes(make_trainer: Make) -> None:
    run = make_trainer(
        epochs=1, iterations=25, schedule=AdversarialSchedule(share=1e-6), adversary={"noise": 0.0, "wrong_pairs": 0.0}
    )
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0  # an untrained generator
    run.generator_step.scheduler = None
    run.run()
    assert run.state.output[0]["real_accuracy"] > 0.9
    assert run.state.output[0]["fake_accuracy"] > 0.9


def test_events_handlers_and_metrics_of_monai_work(make_trainer: Make) -> None:
    seen: set[IterationEvents] = set()
    wanted = {
        IterationEvents.FORWARD_COMPLETED,
        IterationEvents.LOSS_COMPLETED,
        IterationEvents.BACKWARD_COMPLETED,
        IterationEvents.MODEL_COMPLETED,
    }
    dice = MeanDice(output_transform=from_engine(["pred", "label"]), include_background=False)
    trainer = make_trainer(
        epochs=1,
        schedule=AdversarialSchedule(share=0.1),
        postprocessing=Compose([AsDiscreted("pred", argmax=True, to_onehot=2), AsDiscreted("label", to_onehot=2)]),
        key_train_metric={"train_dice": dice},
    )
    StatsHandler(output_transform=from_engine(["loss"], first=True)).attach(trainer)
    for event in wanted:
        trainer.add_event_handler(event, lambda _, fired: seen.add(fired), event)
    trainer.run()
    assert isinstance(trainer, SupervisedTrainer)
    assert seen == wanted
    assert 0.0 < trainer.state.metrics["train_dice"] <= 1.0
    assert {"loss", "adversarial_loss", "discriminator_loss"} <= set(trainer.state.output[0])


def test_alternation_by_epoch_moves_one_network_at_a_time(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=2, schedule=AdversarialSchedule(share=0.1, alternate="epoch"))
    moved: list[tuple[bool, bool]] = []
    state: dict[str, Any] = {}

    def remember() -> None:
        assert trainer.adversary is not None
        state.update(g=_copy(trainer.network), d=_copy(trainer.adversary.discriminator))

    def compare() -> None:
        assert trainer.adversary is not None
        moved.append((_changed(trainer.network, state["g"]), _changed(trainer.adversary.discriminator, state["d"])))

    trainer.add_event_handler(Events.EPOCH_STARTED, remember)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, compare)
    trainer.run()
    assert moved == [(False, True), (True, False)]


@pytest.mark.parametrize(
    "schedule",
    [
        AdversarialSchedule(share=0.1, alternate="epoch", warm_up=2),
        AdversarialSchedule(share=0.1, generator_steps=2),
        AdversarialSchedule(share=0.1, discriminator_steps=2),
    ],
)
def test_the_learning_rate_anneals_over_the_steps_of_the_generator(
    make_trainer: Make, schedule: AdversarialSchedule
) -> None:
    trainer = make_trainer(epochs=4, schedule=schedule)
    rates: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run()
    assert max(rates) == pytest.approx(0.01, rel=0.05)  # the peak is reached
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * OneCycle(1).end)  # and the floor, at the end
    assert rates[-1] > 0.01 * OneCycle(1).end  # not before it


def test_running_statistics_of_the_generator_rest_in_the_epochs_of_the_discriminator(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=1, schedule=AdversarialSchedule(share=0.1, alternate="epoch"), norm="batch")
    before = _copy(trainer.network)
    trainer.run()
    assert not _changed(trainer.network, before)
    assert trainer.averaged is not None
    assert not _changed(trainer.averaged.module, before)


def test_running_statistics_of_the_discriminator_rest_in_the_turn_of_the_generator(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=2, schedule=AdversarialSchedule(share=0.1, alternate="epoch"))
    assert trainer.adversary is not None
    discriminator = trainer.adversary.discriminator
    discriminator.register_buffer("count", torch.zeros(1))  # moved by every pass, as those of batch and spectral norm
    discriminator.register_forward_pre_hook(lambda network, _: setattr(network, "count", network.count + 1))
    seen: list[float] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(float(discriminator.get_buffer("count"))))
    trainer.run()
    assert seen[0] == seen[1] > 0.0


def test_the_rate_of_the_discriminator_anneals_over_its_own_steps(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=3, schedule=AdversarialSchedule(share=0.1, alternate="epoch"), annealed=True)
    assert trainer.adversary is not None
    step = trainer.adversary.step
    rates: list[float] = []
    step.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run()
    assert len(rates) == 6  # two of three epochs
    assert max(rates) == pytest.approx(0.002, rel=0.1)
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0.002 * OneCycle(1).end)


def test_a_batch_that_is_skipped_leaves_no_trace_in_running_statistics(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=1, iterations=2, norm="batch")
    before = _copy(trainer.network)
    honest = trainer.inferer
    trainer.inferer = lambda image, network: honest(image * torch.nan, network)
    trainer.run()
    assert trainer.generator_step.skipped == 2
    assert not _changed(trainer.network, before)


def test_accumulation_equals_the_larger_batch(make_trainer: Make) -> None:
    updates: list[int] = []
    trainer = make_trainer(epochs=1, iterations=5, accumulation_steps=2)
    trainer.optimizer.register_step_post_hook(lambda *_: updates.append(trainer.state.iteration))
    trainer.run()
    assert updates == [2, 4, 5]  # the last one takes what is left of the epoch


def test_losses_that_stay_non_finite_stop_the_run(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=20)
    trainer.loss_function = lambda prediction, label: prediction.sum() * torch.nan
    before = _copy(trainer.network)
    with pytest.raises(TrainingDiverged, match="generator's loss was not finite in 10 batches"):
        trainer.run()
    assert not _changed(trainer.network, before)  # nothing was destroyed


def test_one_bad_batch_is_skipped_and_counted(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=1, iterations=4)
    honest = trainer.loss_function
    trainer.loss_function = lambda prediction, label: (
        honest(prediction, label) * (torch.inf if trainer.state.iteration == 2 else 1.0)
    )
    trainer.run()
    assert trainer.generator_step.skipped == 1
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())


def test_a_discriminator_that_always_wins_rests(make_trainer: Make) -> None:
    trainer = make_trainer(schedule=AdversarialSchedule(share=0.1), adversary={"too_good": 0.0})
    assert isinstance(trainer.adversary, Adversary)
    before = _copy(trainer.adversary.discriminator)
    trainer.run()
    assert not _changed(trainer.adversary.discriminator, before)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": AdversarialLoss("hinge"), "penalty": 1.0},
        {"loss": AdversarialLoss("least-squares"), "feature_weight": 1.0},
    ],
)
def test_other_losses_train_too(make_trainer: Make, options: dict[str, Any]) -> None:
    trainer = make_trainer(epochs=1, schedule=AdversarialSchedule(share=0.1), adversary=options)
    before = _copy(trainer.network)
    trainer.run()
    assert _changed(trainer.network, before)
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())


def test_weights_stay_in_fp32(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=1, schedule=AdversarialSchedule(share=0.1))
    trainer.run()
    assert trainer.dtype in (torch.float32, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())


@pytest.mark.slow
def test_it_learns_the_balls(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=8, iterations=10, schedule=AdversarialSchedule(share=0.02, warm_up=20, ramp=20))
    trainer.run()
    journal: Any = trainer.stateful["journal"]
    dice = [row["val_dice"] for row in journal.rows]
    assert dice[-1] > max(0.8, dice[0])
