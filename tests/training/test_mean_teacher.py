"""Unlabelled cases: which batch comes when, that the generator learns from them, and that a resume is exact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.transforms import Compose, RandGaussianNoised
from torch import Tensor, nn

from medseg.training import (
    AdversarialSchedule,
    AdversarialSegmentationTrainer,
    Adversary,
    Checkpoints,
    MeanTeacher,
    StepPlan,
    fold_items,
    unlabelled_cases,
)
from tests.training.conftest import balls

Make = Callable[..., AdversarialSegmentationTrainer]


def _cases(**options: Any) -> MeanTeacher:
    images = [{"image": item["image"], "strong": item["image"] + 0.1} for item in balls(3, seed=4)]
    noise = Compose([RandGaussianNoised("strong", prob=1.0, std=0.3)])
    found = unlabelled_cases(images, noise, batch_size=2, iterations=3, seed=1, **options)
    assert found is not None
    return found


def _teacher(image: Tensor) -> Tensor:
    return torch.zeros(len(image), 1, *image.shape[2:])


def _weak(cases: MeanTeacher, iteration: int) -> Tensor:
    batch = cases.batch(iteration, StepPlan(1, 1, 0.0, consistency=1.0), lambda tensor: tensor, _teacher)
    assert batch is not None
    return batch.strong


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_which_batch_comes_depends_on_the_iteration_alone() -> None:
    straight = [_weak(cases, iteration) for cases in [_cases()] for iteration in (1, 2, 3, 4)]
    jumping = _cases()
    for iteration in (3, 4, 2, 1):
        assert torch.equal(_weak(jumping, iteration), straight[iteration - 1])
    assert not torch.equal(straight[0], straight[1])


def test_the_teacher_counts_after_the_start_and_over_the_ramp() -> None:
    cases = _cases(consistency=0.8, start=10, ramp=4)
    assert [cases.weight_at(i) for i in (10, 11, 12, 14, 99)] == pytest.approx([0.0, 0.2, 0.4, 0.8, 0.8])
    assert (
        cases.batch(10, StepPlan(1, 1, 0.0), lambda tensor: tensor, _teacher) is None
    )  # nothing to learn, nothing to load
    judged = cases.batch(10, StepPlan(1, 1, 0.3), lambda tensor: tensor, _teacher)
    assert judged is not None
    assert judged.target is None


def test_without_cases_or_weights_there_is_nothing() -> None:
    assert unlabelled_cases([], Compose([]), batch_size=1, iterations=1) is None
    assert unlabelled_cases(balls(1), Compose([]), batch_size=1, iterations=1, consistency=0, adversarial=False) is None
    with pytest.raises(ValueError, match="negative"):
        _cases(consistency=-1.0)


def test_a_teacher_needs_the_moving_average() -> None:
    with pytest.raises(ValueError, match="averaged"):
        AdversarialSegmentationTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=[0],
            network=nn.Conv3d(1, 2, 1),
            optimizer=None,
            loss_function=nn.Identity(),
            unlabelled=_cases(consistency=1.0),
        )


@pytest.mark.parametrize("way", ["teacher", "discriminator"])
def test_the_generator_learns_from_them(make_trainer: Make, way: str, tmp_path: Path) -> None:
    """Two unlabelled sets that differ in one image give two generators: by either way alone."""
    options: dict[str, Any] = {"consistency": 1.0} if way == "teacher" else {"consistency": 0.0}
    schedule = AdversarialSchedule(share=0.0 if way == "teacher" else 1.0)
    found = []
    for shift in (0.0, 0.5):
        cases = _cases(**options)
        cases.loader.dataset.data[0]["strong"] += shift
        trainer = make_trainer(tmp_path / str(shift), schedule=schedule, unlabelled=cases, epochs=1)
        trainer.run()
        found.append(_weights(trainer.network))
        assert ("consistency_loss" in trainer.state.output[0]) == (way == "teacher")
    assert not _same(*found)


def test_labelled_figures_are_those_of_the_labelled_part(make_trainer: Make) -> None:
    trainer = make_trainer(schedule=AdversarialSchedule(share=0.1), unlabelled=_cases(), epochs=1)
    trainer.run()
    first = trainer.state.output[0]
    assert first["pred"].shape[1:] == first["label"].shape[1:]
    assert len(trainer.state.output) == 2  # the batch of labelled cases


def test_the_discriminator_learns_from_labelled_cases_alone(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    trainer = make_trainer(schedule=AdversarialSchedule(share=0.1), unlabelled=_cases(), epochs=1)
    assert isinstance(trainer.adversary, Adversary)
    honest = trainer.adversary.learn

    def learn(image: Tensor, *rest: Any) -> dict[str, float]:
        seen.append(len(image))
        return honest(image, *rest)

    monkeypatch.setattr(trainer.adversary, "learn", learn)
    trainer.run()
    assert seen == [2, 2, 2]


def test_resume_is_exact_with_unlabelled_cases(make_trainer: Make, tmp_path: Path) -> None:
    def make(folder: str) -> AdversarialSegmentationTrainer:
        schedule = AdversarialSchedule(share=0.1, warm_up=2)
        cases = _cases(start=3, ramp=2)
        return make_trainer(tmp_path / folder, epochs=2, iterations=4, schedule=schedule, unlabelled=cases)

    whole = make("whole")
    whole.run()
    first = make("parts")
    first.add_event_handler(Events.ITERATION_COMPLETED(once=5), first.terminate)
    first.run()
    Checkpoints(tmp_path / "parts" / "checkpoints").save(first)
    second = make("parts")
    assert Checkpoints(tmp_path / "parts" / "checkpoints").resume(second) == 5
    second.run()
    assert _same(_weights(whole.network), _weights(second.network))


def test_unlabelled_items_of_a_datalist(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.nii.gz").touch()
    image = {name: str(tmp_path / f"{name}.nii.gz") for name in "abcdef"}
    content: dict[str, list[Any]] = {
        "training": [
            {"image": "a.nii.gz", "label": "a.nii.gz", "fold": 0},
            {"image": "b.nii.gz", "label": "b.nii.gz", "fold": 1},
            {"image": "c.nii.gz", "fold": 1},
            {"image": "d.nii.gz", "fold": 0},
        ],
        "unlabelled": ["e.nii.gz", {"image": ["f.nii.gz", "a.nii.gz"], "fold": 1}],
    }
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    assert [item["image"] for item in fold_items(path, tmp_path, 0, "training")] == [image["b"]]
    assert [item["image"] for item in fold_items(path, tmp_path, 0, "validation")] == [image["a"]]
    extra = [item["image"] for item in fold_items(path, tmp_path, 0, "unlabelled")]
    assert extra == [image["c"], image["e"], [image["f"], image["a"]]]  # d belongs to the held-out fold
    del content["unlabelled"], content["training"][2:]
    path.write_text(json.dumps(content))
    assert fold_items(path, tmp_path, 0, "unlabelled") == []
