"""Runs a batch in forked processes and kills them with SIGKILL at random moments until one finishes.

Called as a program: BUNDLE IMAGES OUTPUT KILLS SEED. Prints one JSON object. Forking keeps the imports, so that the
kills fall into the work and not into start-up.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import nibabel as nib
import torch

from medseg.inference import Options, run_batch


def _child(bundle: str, images: str, output: str) -> None:
    try:
        report = run_batch(bundle, [images], output, Options(precision="fp32"))
        (Path(output).parent / "computed.json").write_text(json.dumps(report.content["summary"]["computed"]))
    except BaseException as error:  # noqa: BLE001  a forked child must not run the parent's code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(3)
    os._exit(0)


def _broken(output: Path) -> list[str]:
    """Final names that do not hold a whole file."""
    bad = []
    for path in output.glob("[!.]*_seg.nii.gz"):  # a killed writer may leave a half file, but under a hidden name
        try:
            nib.load(path).get_fdata()
        except Exception:  # noqa: BLE001  whatever is wrong with it, it is not whole
            bad.append(path.name)
    return bad


def main(bundle: str, images: str, output: str, kills: int, seed: int) -> dict[str, object]:
    torch.set_num_threads(1)
    dice = random.Random(seed)
    killed, broken = 0, []
    while True:
        child = os.fork()
        if child == 0:
            _child(bundle, images, output)
        if killed < kills:
            time.sleep(dice.uniform(0.02, 0.6))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        broken += _broken(Path(output)) if Path(output).exists() else []
        if os.WIFSIGNALED(status):
            killed += 1
            continue
        return {"killed": killed, "broken": broken, "exit": os.WEXITSTATUS(status)}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    result = main(arguments[0], arguments[1], arguments[2], int(arguments[3]), int(arguments[4]))
    sys.stdout.write(json.dumps(result) + "\n")
