"""Imported nnU-Net v2 models against nnU-Net's own predictor: labels, time and memory, side by side.

``python -m benchmarks.nnunet_import MODELS OUT --nnunet PYTHON [--only NAME ...] [--no-times]``

``MODELS`` holds a folder per model: somewhere in it the trained folder (``plans.json``, ``fold_*``), ``cases/`` as
nnU-Net names them, ``predicted/`` and ``predicted_mirrored/`` (its label maps with mirroring off and on; if not there,
those of the timed run are taken), and ``model.json`` with the ``orientation`` of the images. Each is imported, its
cases are labelled, and the label maps are compared voxel by voxel. Times: processor seconds of both programs as
commands, on the same cases, one thread each; their own start is in them. Without times ours runs in this process.
Written: ``nnunet_import.md``, ``nnunet_import.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.cli.main import app, load_commands
from medseg.files import write_json, write_text
from medseg.workflows.import_check import Agreement, agreement

_NNUNET = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
torch.set_num_threads(1)
model, cases, out, mirror = sys.argv[1:]
predictor = nnUNetPredictor(use_mirroring=mirror == "1", device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, None, "checkpoint_final.pth")
predictor.predict_from_files_sequential(cases, out)
"""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}


@dataclass
class Row:
    """One model, with or without mirroring; memory in GiB, the largest of the process."""

    model: str
    mirrored: bool
    network: str = ""
    refused: str = ""
    cases: list[Mapping[str, float | int | str]] = field(default_factory=list)
    seconds: float | None = None
    nnunet_seconds: float | None = None
    memory: float | None = None
    nnunet_memory: float | None = None

    @property
    def total(self) -> tuple[int, int]:
        """Voxels, and those that differ."""
        return sum(int(case["voxels"]) for case in self.cases), sum(int(case["different"]) for case in self.cases)

    @property
    def lowest_dice(self) -> float:
        """Of any structure of any case."""
        return min((float(case["dice"]) for case in self.cases), default=float("nan"))


def main(models: Path, out: Path, nnunet: str | None, only: Sequence[str], *, times: bool) -> int:
    """Make the table; 1 if a model that was imported labels otherwise."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for about in sorted(models.glob("*/model.json")):
        if only and about.parent.name not in only:
            continue
        rows += _judge(about, out / about.parent.name, nnunet if times else None)
        write_json(out / "nnunet_import.json", [asdict(row) for row in rows])
        write_text(out / "nnunet_import.md", _table(rows))
        print(_line(rows[-2]), _line(rows[-1]), sep="\n", flush=True)
    bad = [row for row in rows if not row.refused and row.total[1] > 1e-4 * row.total[0]]
    return int(bool(bad))


def _judge(about: Path, out: Path, nnunet: str | None) -> list[Row]:
    stated = json.loads(about.read_text())
    home = about.parent
    source = next(path.parent for path in home.rglob("plans.json") if "predicted" not in str(path))
    rows = [Row(home.name, mirrored) for mirrored in (False, True)]
    bundle = out / f"nnunet_{home.name}"
    words = ["bundle", "import", source, "-o", out, "--orientation", stated["orientation"], "--name", bundle.name]
    medseg = _command if nnunet else _in_process
    if not bundle.exists():
        done = medseg(words)
        if done.code:
            for row in rows:
                row.refused = done.text.strip().splitlines()[-1][:300]
            return rows
    opened = Bundle.open(bundle)
    datalist = _datalist(home / "cases", opened, out / "cases.json")
    axes = ",".join((opened.metadata.get("imported") or {}).get("mirror") or ())
    for row in rows:
        row.network = str(opened.inference.get("network_def", {}).get("_target_", "")).rpartition(".")[2]
        theirs = home / ("predicted_mirrored" if row.mirrored else "predicted")
        asked = ["--mirror", axes] if row.mirrored and axes else []
        result = out / theirs.name
        words = ["infer", bundle, datalist, "-o", result, "--fresh", "--no-trust", "--precision", "fp32", *asked]
        ours = medseg(words)
        if ours.code:
            row.refused = ours.text.strip().splitlines()[-1][:300]
            continue
        row.seconds, row.memory = ours.seconds, ours.memory
        if nnunet:
            again = out / f"nnunet_{theirs.name}"
            again.mkdir(exist_ok=True)
            peer = _run([nnunet, "-c", _NNUNET, source, home / "cases", again, str(int(row.mirrored))])
            row.nnunet_seconds, row.nnunet_memory = peer.seconds, peer.memory
            theirs = theirs if theirs.exists() else again
        row.cases = [_compared(file, result) for file in sorted(theirs.glob("*.nii.gz"))]
        if not row.cases:
            row.refused = f"no label maps of nnU-Net in {theirs}"
    return rows


def _datalist(cases: Path, bundle: Bundle, file: Path) -> Path:
    names = sorted({path.name.rpartition("_")[0] for path in cases.glob("*.nii.gz")})
    items = [
        {"case_id": name, "image": [str(path) for path in sorted(cases.glob(f"{name}_[0-9]*.nii.gz"))]}
        for name in names
    ]
    write_json(file, {"name": bundle.name, "training": items})
    return file


def _compared(theirs: Path, ours: Path) -> Mapping[str, float | int | str]:
    name = theirs.name.removesuffix(".nii.gz")
    maps = [np.asarray(nib.load(file).dataobj) for file in (next(ours.glob(f"{name}*seg.nii.gz")), theirs)]
    found: Agreement = agreement(*(labels.astype(np.int64) for labels in maps))
    dice = min(found.dice.values(), default=1.0)
    return {"case": name, "voxels": found.voxels, "different": found.different, "dice": round(dice, 6)}


@dataclass(frozen=True)
class _Done:
    code: int
    text: str
    seconds: float | None = None
    memory: float | None = None


def _in_process(words: Iterable[object]) -> _Done:
    load_commands("bundle", "infer")
    done = CliRunner().invoke(app, [str(word) for word in words])
    return _Done(done.exit_code, f"{done.output}\n{done.exception or ''}")


def _command(words: Iterable[object]) -> _Done:
    return _run([sys.executable, "-m", "medseg", *words])


def _run(words: Iterable[object]) -> _Done:
    with subprocess.Popen(
        [str(word) for word in words],
        env={**os.environ, **_ONE_THREAD},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdout is not None
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return _Done(child.returncode, text, round(usage.ru_utime + usage.ru_stime, 1), round(usage.ru_maxrss / 2**20, 2))


def _line(row: Row) -> str:
    how = "on" if row.mirrored else "off"
    if row.refused:
        return f"| {row.model} | {row.network} | {how} | refused: {row.refused} | | | | | |"
    voxels, different = row.total
    figures = [f"{1 - different / voxels:.5%}", different, f"{row.lowest_dice:.5f}"]
    pairs = [(row.seconds, row.nnunet_seconds), (row.memory, row.nnunet_memory)]
    beside = [" / ".join("–" if value is None else f"{value:g}" for value in pair) for pair in pairs]
    return f"| {' | '.join(map(str, [row.model, row.network, how, *figures, *beside]))} |"


_HEAD = (
    "model", "network", "mirroring", "equal voxels", "different", "lowest Dice", "CPU s: ours / nnU-Net",
    "GiB: ours / nnU-Net",
)  # fmt: skip


def _table(rows: Sequence[Row]) -> str:
    head = [f"| {' | '.join(_HEAD)} |", "|" + " --- |" * len(_HEAD)]
    return "\n".join([f"Python {platform.python_version()}, one thread", "", *head, *map(_line, rows), ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--nnunet", help="A Python with nnunetv2.")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--no-times", action="store_true", help="Do not run nnU-Net again.")
    given = parser.parse_args()
    sys.exit(main(given.models, given.out, given.nnunet, given.only, times=not given.no_times))
