"""``kill -9`` at any moment: the run that is started again ends with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.bundles import SMALL, copy_bundle, write_data

_SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from medseg.training import train_bundle
from tests.training.bundles import SMALL
bundle, data, output, epochs = sys.argv[1:]
train_bundle(bundle, datalist=data + "/datalist.json", dataset_dir=data, output=output, resume=True,
             overrides={**SMALL, "epochs": int(epochs), "iterations": 3})
"""


_KILLS = int(os.environ.get("MEDSEG_KILLS", "5"))


def _start(bundle: Path, data: Path, output: Path) -> subprocess.Popen[bytes]:
    epochs = 3 * _KILLS + 3  # more than the kills use up
    command = [sys.executable, "-c", _SCRIPT, str(bundle), str(data), str(output), str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _newest(output: Path) -> int:
    found = sorted(output.glob("checkpoints/checkpoint-*.pt"))
    return int(found[-1].stem.split("-")[1]) if found else 0


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_weights(tmp_path: Path) -> None:
    """Killed again and again at random moments, among them during a checkpoint; ``MEDSEG_KILLS`` sets how often."""
    assert SMALL["val_interval"] == 1
    bundle = copy_bundle(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    assert _start(bundle, data, tmp_path / "whole").wait() == 0
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "final.pt", weights_only=True)
    chance = random.Random(4)
    kills = 0
    parts = tmp_path / "parts"
    while kills < _KILLS:
        before = _newest(parts)
        process = _start(bundle, data, parts)
        while process.poll() is None and _newest(parts) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.5))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert _start(bundle, data, parts).wait() == 0
    resumed = torch.load(parts / "checkpoints" / "final.pt", weights_only=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
