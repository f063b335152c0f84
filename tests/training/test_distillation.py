"""Distillation: one network learns what several have learnt, and the teachers stay as they are."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.training import Distillation, distillation, train_bundle, train_with_teachers
from medseg.training.precision import NumberFormat
from tests.training.bundles import SMALL, copy_bundle, write_data

SHAPE = (2, 3, 2, 2, 2)


class _Says(nn.Module):
    """A teacher that always has the same opinion."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.view(1, -1, 1, 1, 1).expand(len(image), -1, *image.shape[2:])


def _log(*probabilities: float) -> _Says:
    return _Says(*(math.log(p) for p in probabilities))


def test_the_target_is_the_mean_of_the_teachers_probabilities() -> None:
    teachers = Distillation([_log(0.5, 0.25, 0.25), _log(0.1, 0.8, 0.1)], ["a", "b"])
    target = teachers.target(torch.zeros(2, 1, 2, 2, 2))
    torch.testing.assert_close(target, torch.tensor([0.3, 0.525, 0.175]).view(1, 3, 1, 1, 1).expand(SHAPE))
    regions = Distillation([_Says(0.0, 0.0)], ["a"], sigmoid=True)
    assert float(regions.target(torch.zeros(1, 1, 2, 2, 2)).unique()) == 0.5


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_agreement_costs_the_doubt_of_the_target_and_no_more(weight: float) -> None:
    probabilities = (0.5, 0.25, 0.25)
    target = torch.tensor(probabilities).view(1, 3, 1, 1, 1).expand(SHAPE)
    doubt = -sum(p * math.log(p) for p in probabilities)
    loss = Distillation([_Says(0.0)], ["a"], weight).loss(torch.tensor(7.0), target.log(), target)
    assert float(loss) == pytest.approx((1.0 - weight) * 7.0 + weight * doubt)
    other = Distillation([_Says(0.0)], ["a"], weight).loss(torch.tensor(7.0), target.log().flip(1), target)
    assert float(other) > float(loss)


def test_regions_may_overlap() -> None:
    target = torch.full((1, 2, 2, 2, 2), 0.9)
    judge = Distillation([_Says(0.0)], ["a"], 1.0, sigmoid=True)
    agreed = judge.loss(torch.tensor(0.0), torch.logit(target), target)
    assert float(agreed) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-5)
    assert float(judge.loss(torch.tensor(0.0), torch.zeros_like(target), target)) > float(agreed)


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Distillation([_Says(0.0)], ["a"], weight)


def test_layers_that_are_wrong_in_a_format_compute_in_fp32_in_the_teachers_too() -> None:
    network, teacher = (nn.Sequential(nn.Conv3d(1, 2, 1)) for _ in range(2))
    chosen = NumberFormat(torch.device("cpu"), "bf16", {"generator": network}, {"generator": [teacher]})
    chosen.keep({"generator.0": 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher(torch.ones(1, 1, 2, 2, 2)).dtype == torch.float32


def _network(**changed: Any) -> BasicUNet:
    features = SMALL["network_def#features"]
    return BasicUNet(3, 1, 3, features, norm="batch", bias=False, **changed)  # the act has no weights


def test_without_teachers_there_is_nothing() -> None:
    assert distillation(_network(), None) is None
    assert distillation(_network(), []) is None


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Conv3d(1, 1, 1).state_dict(), tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("other.pt", "text.pt", "missing.pt"):
        with pytest.raises(UsageError, match=rf"{name} is no teacher of this network .*; give a \.pt file"):
            distillation(_network(), [tmp_path / name])
    with pytest.raises(UsageError, match="expected a list"):
        distillation(_network(), "teacher.pt")


def _train(bundle: Path, folder: Path, data: Path, **options: Any) -> dict[str, Tensor]:
    resume = options.pop("resume", False)
    train_bundle(bundle, datalist=data, output=folder, resume=resume, overrides={**SMALL, "judge_steps": 0, **options})
    state: dict[str, Tensor] = torch.load(folder / "checkpoints" / "final.pt", weights_only=True)
    return state


def test_a_run_learns_from_its_teachers_and_goes_on_with_the_same_alone(tmp_path: Path) -> None:
    bundle, data, teacher = copy_bundle(tmp_path), write_data(tmp_path), tmp_path / "teacher.pt"
    torch.manual_seed(5)
    torch.save(_network().state_dict(), teacher)
    before = teacher.read_bytes()
    plain = _train(bundle, tmp_path / "plain", data)
    taught = _train(bundle, tmp_path / "taught", data, teachers=[str(teacher)])
    assert any(not torch.equal(plain[name], value) for name, value in taught.items())
    assert set(plain) == set(taught)  # what ships is the plain network
    assert teacher.read_bytes() == before
    again = _train(bundle, tmp_path / "again", data, teachers=[str(teacher)], epochs=1)
    assert any(not torch.equal(again[name], value) for name, value in taught.items())
    with pytest.raises(UsageError, match=r"teachers: \['/.* → \[\]"):
        _train(bundle, tmp_path / "again", data, resume=True)
    torch.manual_seed(6)
    torch.save(_network().state_dict(), teacher)
    with pytest.raises(UsageError, match="learnt from teachers with the SHA-256"):
        _train(bundle, tmp_path / "again", data, teachers=[str(teacher)], resume=True)
    teacher.write_bytes(before)
    _train(bundle, tmp_path / "again", data, teachers=[str(teacher)], resume=True)


def test_teachers_differ_by_their_seed_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    bundle, data, told = copy_bundle(tmp_path), write_data(tmp_path), list[str]()
    short = {**SMALL, "epochs": 1, "judge_steps": 0}
    options: dict[str, Any] = {"datalist": data, "output": tmp_path / "run", "tell": told.append}
    result = train_with_teachers(bundle, 2, overrides=short, **options)
    assert told == ["teacher 1 of 2", "teacher 2 of 2", "the network that learns from 2"]
    folders = [tmp_path / "run" / "teachers" / name for name in ("0", "1")]
    weights = [torch.load(folder / "checkpoints" / "final.pt", weights_only=True) for folder in folders]
    assert any(not torch.equal(weights[1][name], value) for name, value in weights[0].items())
    used = [json.loads((folder / "run.json").read_text())["configuration"] for folder in (*folders, result.output)]
    assert [one["seed"] for one in used] == [20, 21, 22]
    assert [one["epochs"] for one in used] == [4, 4, 1]
    assert used[2]["init"] == used[2]["teachers"][0]
    assert used[2]["learning_rate"] == pytest.approx(0.4 * used[0]["learning_rate"])
    assert used[2]["teachers"] == [str(folder.resolve() / "checkpoints" / "final.pt") for folder in folders]
    again = train_with_teachers(bundle, 2, overrides=short, resume=True, **options)
    assert again.best_metric == result.best_metric
    told.clear()
    shutil.rmtree(tmp_path / "run" / "teachers" / "0")
    with pytest.raises(UsageError, match="holds"):  # before a teacher is trained
        train_with_teachers(bundle, 2, overrides=short, **options)
    for given, why in (
        ({"teachers": []}, "give one of them"),
        ({"seed": "abc"}, "expected a number"),
        ({"epochs": "$@fold"}, "--set epochs="),
    ):
        with pytest.raises(UsageError, match=why):
            train_with_teachers(bundle, 2, overrides=given, **options)
    assert told == []


def test_a_longer_run_learns_from_the_teachers_that_it_has_wherever_they_are(tmp_path: Path) -> None:
    bundle, data = copy_bundle(tmp_path), write_data(tmp_path)
    short = {**SMALL, "epochs": 1, "judge_steps": 0}
    train_with_teachers(bundle, 1, datalist=data, output=tmp_path / "run", overrides=short)
    (tmp_path / "run").rename(tmp_path / "moved")
    weights = tmp_path / "moved" / "teachers" / "0" / "checkpoints" / "final.pt"
    before, longer, told = weights.read_bytes(), {**short, "epochs": 2}, list[str]()
    moved: dict[str, Any] = {"datalist": data, "output": tmp_path / "moved", "resume": True, "tell": told.append}
    result = train_with_teachers(bundle, 1, overrides=longer, **moved)
    assert result.epochs == 2
    assert told == ["the network that learns from 1"]
    assert weights.read_bytes() == before


@pytest.mark.parametrize("weight", [0, 5, "0.5", True])
def test_a_weight_is_refused_before_a_teacher_is_trained(weight: Any) -> None:
    with pytest.raises(UsageError, match=r"teacher_weight is .* expected a share"):
        distillation(_network(), [], weight)


def test_a_run_from_before_there_were_teachers_goes_on_and_takes_none_later(tmp_path: Path) -> None:
    bundle, data = copy_bundle(tmp_path), write_data(tmp_path)
    path = bundle / "configs" / "train.json"
    now = path.read_text()
    config = json.loads(now)
    del config["teachers"], config["teacher_weight"], config["distillation"], config["train"]["trainer"]["distillation"]
    path.write_text(json.dumps(config))
    _train(bundle, tmp_path / "run", data, epochs=1)
    path.write_text(now)
    torch.save(_network().state_dict(), tmp_path / "teacher.pt")
    with pytest.raises(UsageError, match=r"teachers: \(absent\) → \['/"):
        _train(bundle, tmp_path / "run", data, resume=True, teachers=[str(tmp_path / "teacher.pt")])
    _train(bundle, tmp_path / "run", data, resume=True)


def test_a_bundle_without_the_id_is_refused(tmp_path: Path) -> None:
    bundle = copy_bundle(tmp_path)
    path = bundle / "configs" / "train.json"
    config = json.loads(path.read_text())
    del config["teachers"], config["distillation"]["teachers"]
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="has not all of the ids teachers, seed"):
        train_with_teachers(bundle, 2, output=tmp_path / "run")
