"""``kill -9`` at any moment: the run that is started again ends with the same bits."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.bundles import SMALL, copy_bundle, write_data

_SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from medseg.training import train_bundle
bundle, data, output, overrides = sys.argv[1:]
train_bundle(bundle, datalist=data + "/datalist.json", dataset_dir=data, output=output, resume=True,
             overrides=json.loads(overrides))
"""
_EVERYTHING: dict[str, Any] = {
    "alternate": "epoch",
    "adversarial_share": 0.3,
    "warm_up": 2,
    "ramp": 4,
    "wrong_pairs": 0.5,
    "consistency_start": 2,
    "consistency_ramp": 4,
    "adversary#balance": {"_target_": "medseg.training.GradientShare", "every": 2},
    "adversary#penalty": 0.1,
    "adversary#feature_weight": 0.1,
    "discriminator_def#spectral": True,
    "unlabelled#batch_size": 2,
    "precision": "auto",  # bf16 where the processor computes in it
}
"""Whatever keeps a state between two steps."""


@dataclass(frozen=True)
class Runs:
    """How runs of one configuration are started: the same call, whether there is something to go on with or not."""

    bundle: Path
    data: Path
    overrides: dict[str, Any]

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        given = json.dumps({**SMALL, **self.overrides})
        command = [sys.executable, "-c", _SCRIPT, str(self.bundle), str(self.data), str(output), given]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start_and_kill(self, output: Path, chance: random.Random) -> None:
        """Kill a run at a random moment after its next checkpoint, which may be while it writes another one."""
        before = _newest(output)
        process = self.start(output)
        while process.poll() is None and _newest(output) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.5))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()


def _newest(output: Path) -> int:
    found = sorted(output.glob("checkpoints/checkpoint-*.pt"))
    return int(found[-1].stem.split("-")[1]) if found else 0


def _tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor in a checkpoint, by its path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {path: tensor for key, item in items for path, tensor in _tensors(item, f"{name}/{key}").items()}


def _outcome(output: Path) -> dict[str, torch.Tensor]:
    """What training goes on with: networks, averages, optimisers, random numbers."""
    names = ("final.pt", "final_discriminator.pt", f"checkpoint-{_newest(output):06d}.pt")
    return _tensors({name: torch.load(output / "checkpoints" / name, weights_only=True) for name in names})


def _rows(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open() as handle:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(handle)]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "kills"), [({}, 5), (_EVERYTHING, 20)], ids=["as shipped", "everything"])
def test_killed_runs_go_on_to_the_same_bits(tmp_path: Path, overrides: dict[str, Any], kills: int) -> None:
    """Killed again and again at random moments, among them during a checkpoint; ``MEDSEG_KILLS`` sets how often."""
    assert SMALL["val_interval"] == 1
    kills = int(os.environ.get("MEDSEG_KILLS", kills))
    data = tmp_path / "data"
    data.mkdir()
    write_data(data, unlabelled=2 if overrides else 0)
    length = {"epochs": 3 * kills + 3, "iterations": 3}  # more than the kills use up
    runs = Runs(copy_bundle(tmp_path), data, {**overrides, **length})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert runs.start(whole).wait() == 0
    chance = random.Random(4)
    for _ in range(kills):
        runs.start_and_kill(parts, chance)
    assert runs.start(parts).wait() == 0
    expected, found = _outcome(whole), _outcome(parts)
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    assert _rows(whole) == _rows(parts)
    if overrides:
        assert {"adversarial_weight", "consistency_loss", "discriminator_loss"} <= _rows(whole)[-1].keys()
