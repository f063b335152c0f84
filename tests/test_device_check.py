"""The check for unknown accelerators, run on the processor: it finds what is broken on purpose, and goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import device_check
from benchmarks.device_check import Report, Row, run_all, run_task, tasks_of
from benchmarks.device_checks import SMALL, LabelMaps, Outcome, Setting, Task, Windows, compared
from benchmarks.device_trainings import Steps, Trainings, compare_losses, distance

TINY = replace(SMALL, patch=16, iterations=2, features=(4, 4, 8, 8, 8, 4), judge=4, volume=(32, 32, 24), repeats=1)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The processor, with bf16 also where it is only emulated."""
    monkeypatch.setattr(Setting, "bf16", True)
    monkeypatch.setattr(Trainings, "_reduced", lambda _: ("bf16",))
    return Setting("cpu", TINY, tmp_path)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that are wrong in bf16: a channel that should be there is not."""
    sound = nn.Conv3d._conv_forward

    def wrong(layer: nn.Conv3d, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = sound(layer, value, weight, bias)
        if result.dtype != torch.bfloat16 or result.shape[1] < 2:
            return result
        return torch.cat([result[:, :1] * 0, result[:, 1:]], dim=1)

    monkeypatch.setattr(nn.Conv3d, "_conv_forward", wrong)


def rows(setting: Setting, checks: Any, *names: str) -> dict[str, Row]:
    """The rows of some checks of a group, by name."""
    tasks = [task for task in checks(setting).tasks() if task.name in names]
    assert {task.name for task in tasks} == set(names)
    return {task.name: run_task(task) for task in tasks}


@pytest.mark.parametrize("volume", [TINY.volume, pytest.param((40, 40, 32), marks=pytest.mark.slow)])
def test_sound_kernels_give_the_labels_of_the_cpu(setting: Setting, volume: tuple[int, int, int]) -> None:
    found = rows(replace(setting, size=replace(TINY, volume=volume)), LabelMaps, "BasicUNet fp32", "BasicUNet bf16")
    assert [row.outcome.holds for row in found.values()] == [True, True]
    exact, reduced = (row.outcome.facts for row in found.values())
    assert exact["differing"] == 0
    assert set(exact["dice"]) == {1, 2, 3, 4}
    assert 0 < reduced["differing"] < 0.01 * reduced["voxels"]


@pytest.mark.usefixtures("broken")
def test_a_broken_kernel_fails_the_label_maps_that_it_makes(setting: Setting) -> None:
    assert rows(setting, LabelMaps, "BasicUNet bf16")["BasicUNet bf16"].outcome.holds is False


@pytest.mark.slow
@pytest.mark.usefixtures("broken")
def test_a_kernel_that_is_broken_in_bf16_alone_fails_bf16_alone(setting: Setting) -> None:
    larger = replace(setting, size=replace(TINY, volume=(40, 40, 32)))
    found = rows(larger, LabelMaps, "BasicUNet fp32", "BasicUNet bf16")
    assert {name: row.outcome.holds for name, row in found.items()} == {"BasicUNet fp32": True, "BasicUNet bf16": False}


@pytest.mark.slow
def test_trainings_agree_and_a_resumed_one_ends_with_the_same_bits(setting: Setting) -> None:
    trainings = Trainings(setting)
    wanted = ("BasicUNet fp32", "BasicUNet bf16"), ("BasicUNet fp32",)
    names = {*((trainings.losses, name) for name in wanted[0]), *((trainings.resumed, name) for name in wanted[1])}
    found = [task for task in trainings.tasks() if (task.group, task.name) in names]
    tasks = {(task.group, task.name): run_task(task).outcome for task in found}
    exact, reduced = (tasks[trainings.losses, f"BasicUNet {name}"] for name in ("fp32", "bf16"))
    assert (exact.holds, exact.facts["worst"]) == (True, 0.0)
    assert reduced.holds
    assert reduced.facts["worst"] > 0.0
    assert len(reduced.facts["found"]) == 4
    assert f"{exact.facts['found'][0]['discriminator']:.4f}" in exact.details[2]
    resumed = tasks[trainings.resumed, "BasicUNet fp32"]
    assert (resumed.holds, resumed.facts["resumed"]) == (True, 0.0)
    assert len(resumed.facts["resumed_losses"]) == 1


@pytest.mark.usefixtures("broken")
def test_the_self_check_names_layers_that_are_wrong(setting: Setting) -> None:
    outcome = rows(setting, Trainings, "  self-check")["  self-check"].outcome
    assert len(outcome.facts["kept_in_fp32"]) > 5
    assert outcome.holds is None
    assert any(line.startswith("fp32: generator.") for line in outcome.details)
    assert outcome.details[-1].startswith("and ")


def test_a_run_that_forgets_its_optimiser_does_not_resume(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda *_: None)
    tasks = [task for task in Trainings(setting).tasks() if task.group == Trainings.resumed]
    outcome = run_task(tasks[0]).outcome
    assert outcome.holds is False
    assert outcome.facts["resumed"] > 0.0
    assert outcome.facts["repeated"] == 0.0


def test_times_are_told_beside_those_of_monai(setting: Setting) -> None:
    for checks, name in ((Windows, "fp32"), (Steps, "auto, adversarial")):
        outcome = rows(setting, checks, name)[name].outcome
        assert outcome.holds
        assert outcome.facts["ratio"] > 0.0
        assert min(outcome.facts["medians_s"].values()) > 0.0


def test_what_raises_or_is_not_reached_fails_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises() -> Outcome:
        raise RuntimeError("no kernel image is available for execution on the device " * 5)

    good = Task("Group", "good", lambda: Outcome(True, "fine", {"nan": float("nan")}))
    report = Report(device_check.machine_of("cpu"), tmp_path / "found.json")
    report.head()
    run_all([good, Task("Group", "bad", raises), good], report, 60.0)
    run_all([good], report, 0.0)
    report.end()
    assert [row.outcome.holds for row in report.rows] == [True, False, True, False]
    assert not report.holds
    printed = capsys.readouterr().out
    assert "RuntimeError: no kernel image" in printed
    assert "not reached in time" in printed
    assert max(map(len, printed.splitlines())) <= 80
    kept = json.loads((tmp_path / "found.json").read_text())
    assert "raise RuntimeError" in kept["rows"][1]["outcome"]["facts"]["traceback"]
    assert kept["rows"][0]["outcome"]["facts"]["nan"] is None
    assert kept["machine"]["MONAI"]


def test_the_command_writes_its_findings_and_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_check, "SMALL", TINY)
    file = tmp_path / "found.json"
    monkeypatch.setattr(Windows, "_compare", lambda *_: Outcome(True, "fast"))
    monkeypatch.setattr(Steps, "_compare", lambda *_, **__: Outcome(True, "fast"))
    arguments = ["--device", "cpu", "--only", "times", "--minutes", "9", "--out", str(file)]
    assert device_check.main(arguments) == 0
    assert json.loads(file.read_text())["holds"] is True
    monkeypatch.setattr(Steps, "_compare", lambda *_, **__: Outcome(False, "slow"))
    assert device_check.main(arguments) == 1
    assert "FAIL Time of a training step" in capsys.readouterr().out


def test_every_part_has_checks_on_every_kind_of_device(tmp_path: Path) -> None:
    for device in ("cpu", "cuda", "mps"):
        for part in device_check.PARTS:
            tasks = tasks_of(Setting(device, TINY, tmp_path), [part])
            assert len(tasks) > len(device_check.DOORS) + 1
            assert max(len(task.name) for task in tasks) < 24  # the column of names


def test_losses_and_labels_are_compared_as_they_should_be() -> None:
    right = [{"generator": 2.0, "discriminator": 1.0}] * 2
    assert compare_losses(right, right, exact=True).holds
    late = [right[0], {"generator": 2.0, "discriminator": 1.03}]
    assert compare_losses(late, right, exact=True).holds is False
    assert compare_losses(late, right, exact=False).holds
    assert (
        compare_losses([right[0], {"generator": float("nan"), "discriminator": 1.0}], right, exact=False).holds is False
    )
    assert compare_losses(right[:1], right, exact=True).holds is False
    assert distance({"a": torch.tensor([float("nan")])}, {"a": torch.ones(1)}) == float("inf")
    assert distance({"a": torch.tensor([1.5])}, {"a": torch.ones(1)}) == 0.5
    facts = compared(torch.tensor([0, 1, 1, 2]).numpy(), torch.tensor([0, 1, 2, 2]).numpy())
    assert (facts["differing"], facts["dice"]) == (1, {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)})
