"""``--resume`` with something changed, through the front door: it counts from there on, or is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events

from medseg.errors import TrainingFailed, UsageError
from medseg.training import OneCycle, TrainingResult, train_bundle
from medseg.training.trainer import AdversarialSegmentationTrainer
from tests.training.bundles import SMALL, copy_bundle, write_data

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged

RATE = 0.0025


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    return copy_bundle(tmp_path)


def _train(bundle: Path, output: Path, data: Path | None = None, **options: Any) -> TrainingResult:
    folder = data or bundle.parent / "data"
    given = {"datalist": folder / "datalist.json", "dataset_dir": folder, "fold": 0, **options}
    settings = {**SMALL, "epochs": 1, "val_interval": 8, **given.pop("overrides", {})}
    return train_bundle(bundle, output=output, device="cpu", overrides=settings, **given)


def _rates(output: Path) -> list[float]:
    with (output / "metrics.csv").open() as handle:
        return [float(row["learning_rate"]) for row in csv.DictReader(handle)]


def _record(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "run.json").read_text())
    return record


def _final(output: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(output / "checkpoints" / "final.pt", weights_only=True)
    return weights


class _Watch:
    """Keeps the trainer, and stops it in order after an iteration."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        self.trainer = engine
        if self.stop_after is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.stop_after), engine.terminate)


def test_more_epochs_are_planned_anew_over_the_whole_length(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _train(bundle, out)
    assert _rates(out)[-1] == pytest.approx(RATE * OneCycle(2)(2))
    result = _train(bundle, out, resume=True, overrides={"epochs": 5})
    assert (result.epochs, result.iterations) == (5, 10)
    cycle = OneCycle(10)
    assert _rates(out)[1:] == pytest.approx([RATE * cycle(step) for step in (4, 6, 8, 10)])
    first, second = _record(out)["parts"]
    assert first == {"from_iteration": 1, "to_iteration": 2, "changed": []}
    assert second["from_iteration"], second["to_iteration"] == (3, 10)
    assert {"id": "epochs", "old": 1, "new": 5} in second["changed"]


def test_a_run_that_was_changed_resumes_to_the_bit(bundle: Path, tmp_path: Path) -> None:
    """With who learns when changed, too: the plan of the rates remembers how many updates had been made."""
    changed = {"epochs": 4, "alternate": "epoch", "warm_up": 0, "learning_rate": 0.01}
    _train(bundle, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    _train(bundle, tmp_path / "whole", resume=True, overrides=changed)
    with pytest.raises(
        TrainingFailed
    ):  # after its sixth iteration, an epoch's end; that of the first part was the second
        _train(bundle, tmp_path / "parts", resume=True, overrides=changed, watchers=[_Watch(stop_after=6)])
    shutil.rmtree(tmp_path / "parts" / "tensorboard")
    _train(bundle, tmp_path / "parts", resume=True, overrides=changed)
    assert len(_record(tmp_path / "parts")["parts"]) == 2
    assert _rates(tmp_path / "parts") == _rates(tmp_path / "whole")
    assert _rates(tmp_path / "whole")[-1] == pytest.approx(0.01 * 0.001)  # the floor, at the last update of 2 + 4
    one, other = _final(tmp_path / "whole"), _final(tmp_path / "parts")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_rates_decays_and_weights_of_losses_count(bundle: Path, tmp_path: Path) -> None:
    _train(bundle, tmp_path / "out")
    given = {
        "epochs": 2,
        "learning_rate": 1e-7,
        "weight_decay": 0.5,
        "discriminator_learning_rate": 1e-6,
        "discriminator_weight_decay": 0.25,
        "adversarial_share": 0.5,
        "adversary#max_norm": 3.0,
        "train#trainer#max_norm": 2.0,
        "ema_decay": 0.5,
        "val_interval": 1,
    }
    watch = _Watch()
    result = _train(bundle, tmp_path / "out", resume=True, overrides=given, watchers=[watch])
    trainer = watch.trainer
    (group,) = trainer.optimizer.param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (1e-7, 0.5)
    assert group["lr"] == pytest.approx(1e-7 * OneCycle(4)(4))
    assert max(_rates(tmp_path / "out")[1:]) <= 1e-7
    adversary = trainer.adversary
    assert adversary is not None
    (opponent,) = adversary.step.optimizer.param_groups
    assert (opponent["lr"], opponent["weight_decay"]) == (1e-6, 0.25)
    assert adversary.schedule.share == 0.5
    assert (adversary.step.max_norm, trainer.generator_step.max_norm) == (3.0, 2.0)
    assert result.best_epoch == 2
    changed = {
        change["id"]: (change["old"], change["new"]) for change in _record(tmp_path / "out")["parts"][-1]["changed"]
    }
    assert set(changed) == set(given)
    assert changed["learning_rate"] == (RATE, 1e-7)
    assert _record(tmp_path / "out")["configuration"]["learning_rate"] == 1e-7


def _other_label(data: Path) -> None:
    image = nib.load(data / "label1.nii.gz")
    nib.save(nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 1, axis=0), image.affine), data / "label1.nii.gz")


def _other_fold(data: Path) -> None:
    content = json.loads((data / "datalist.json").read_text())
    content["training"][1]["fold"] = 0
    (data / "datalist.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"fold": 1}, None, r"fold: 0 → 1.*2 of the cases to validate on have been trained on"),
        ({}, _other_label, r"cases for training: 2 → 2, 1 left out, 1 that were not there"),
        ({}, _other_fold, r"cases for training: 2 → 1.*cases for validation: 2 → 3"),
        ({"overrides": {"training_cases": 1}}, None, r"training_cases: None → 1.*cases for training: 2 → 1"),
        ({"overrides": {"iterations": 3, "batch_size": 1}}, None, r"iterations: 2 → 3; batch_size: 2 → 1"),
        (
            {"overrides": {"seed": 3, "patch_size": [16, 16, 8]}},
            None,
            r"seed: 20 → 3; patch_size: \[16, 16, 16\] → \[16, 16, 8\]",
        ),
        ({"overrides": {"network_def#act": "relu"}}, None, r"network_def#act: .*LeakyReLU.* → relu"),
        ({"overrides": {"spacing_mm": [1.0, 1.0, 2.0]}}, None, r"spacing_mm: \[1.0, 1.0, 1.0\] → \[1.0, 1.0, 2.0\]"),
    ],
)
def test_what_would_make_another_run_is_refused(
    bundle: Path, tmp_path: Path, options: dict[str, Any], change: Any, message: str
) -> None:
    _train(bundle, tmp_path / "out")
    record, table = ((tmp_path / "out" / name).read_bytes() for name in ("run.json", "metrics.csv"))
    if change is not None:
        change(tmp_path / "data")
    settings = {"epochs": 2, **options.pop("overrides", {})}
    with pytest.raises(UsageError, match=message):
        _train(bundle, tmp_path / "out", resume=True, overrides=settings, **options)
    assert (tmp_path / "out" / "run.json").read_bytes() == record
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == table


def test_an_edit_of_the_bundle_is_a_change_too(bundle: Path, tmp_path: Path) -> None:
    _train(bundle, tmp_path / "out")
    path = bundle / "configs" / "train.json"
    path.write_text(
        path.read_text().replace('"NormalizeIntensityd", "keys"', '"NormalizeIntensityd", "nonzero": true, "keys"')
    )
    with pytest.raises(UsageError, match=r"train#preprocessing_transforms#\d#nonzero: \(absent\) → True"):
        _train(bundle, tmp_path / "out", resume=True)


def test_data_may_move_but_a_run_cannot_end_before_it_is_done(bundle: Path, tmp_path: Path) -> None:
    _train(bundle, tmp_path / "out", overrides={"epochs": 2})
    (tmp_path / "data").rename(tmp_path / "moved")
    again = _train(bundle, tmp_path / "out", tmp_path / "moved", resume=True, overrides={"epochs": 2})
    assert again.epochs == 2
    with pytest.raises(UsageError, match=r"has done 2 epochs .* now after 1; give at least"):
        _train(bundle, tmp_path / "out", tmp_path / "moved", resume=True)


def test_checkpoints_without_their_conditions_are_refused(bundle: Path, tmp_path: Path) -> None:
    _train(bundle, tmp_path / "out")
    (path,) = (tmp_path / "out" / "checkpoints").glob("checkpoint-*.pt")
    state = torch.load(path, weights_only=True)
    del state["conditions"]
    torch.save(state, path)
    with pytest.raises(UsageError, match="does not say which cases"):
        _train(bundle, tmp_path / "out", resume=True)


@pytest.mark.parametrize("schedule", ["cosine", "none"])
def test_other_schedules(schedule: str, make_trainer: Any, tmp_path: Path) -> None:
    """One that steps from rate to rate goes on as it was or is refused; without one, the new rate counts."""

    def make(rate: float, length: int) -> AdversarialSegmentationTrainer:
        trainer: AdversarialSegmentationTrainer = make_trainer(tmp_path, epochs=2)
        optimizer = torch.optim.AdamW(trainer.network.parameters(), lr=rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length) if schedule == "cosine" else None
        step = trainer.generator_step
        trainer.stateful["generator"] = trainer.generator_step = type(step)(
            "generator", step.network, optimizer, scheduler=scheduler
        )
        return trainer

    first = make(0.01, 9)
    first.generator_step.optimizer.step()
    if first.generator_step.scheduler is not None:
        first.generator_step.scheduler.step()
    state = first.generator_step.state_dict()
    same = make(0.01, 9)
    same.generator_step.load_state_dict(state)
    assert same.generator_step.optimizer.param_groups[0]["lr"] == first.generator_step.optimizer.param_groups[0]["lr"]
    if schedule == "none":
        other = make(0.002, 9)
        other.generator_step.load_state_dict(state)
        assert other.generator_step.optimizer.param_groups[0]["lr"] == 0.002
        return
    for rate, length in ((0.002, 9), (0.01, 18)):
        with pytest.raises(UsageError, match="CosineAnnealingLR cannot be planned anew"):
            make(rate, length).generator_step.load_state_dict(state)
