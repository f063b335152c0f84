"""The command starts without what it does not need, and nothing else in Python notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medseg.cli._startup import import_monai_quickly
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, save
from tests.report.report_folders import make_folders

_RUN = """
import runpy, sys
sys.argv = ["medseg", *sys.argv[1:]]
try:
    runpy.run_module("medseg", run_name="__main__", alter_sys=True)
finally:
    heavy = [name for name in ("ignite", "sklearn", "torch.distributed.tensor") if name in sys.modules]
    print("HEAVY", heavy)
    import sklearn, ignite.engine
"""


def test_infer_starts_without_optional_parts_and_labels_the_same(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "thresholds", Design(transforms=ORIENTED))
    image = blobs((12, 14, 10))
    save(image, grid("oblique"), tmp_path / "a.nii.gz")
    arguments = ["infer", str(bundle), str(tmp_path / "a.nii.gz"), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "HEAVY []" in done.stdout
    found, _ = load(tmp_path / "out" / "a_seg.nii.gz")
    np.testing.assert_array_equal(found, (image > 10).astype(int) + (image > 30))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["summary"]["done"] == 1


def test_a_library_user_keeps_the_whole_of_monai() -> None:
    code = "from medseg.cli._startup import import_monai_quickly as quick; import sys; sys.exit(quick())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert import_monai_quickly() is False


FLAGSHIP = str(Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation")
_INFER = f"infer {FLAGSHIP} scans -o out"

LEAN = {
    "--help": 0,
    "--version": 0,
    "infer --help": 0,
    "train --help": 0,
    "index scans --database index.sqlite": 0,
    "manifest create --images scans --labels masks -o datalist.json": 0,
    "manifest audit datalist.json": 0,
    "manifest split datalist.json --folds 2 --seed 0 -o folds.json": 0,
    "report results": 0,
    "concord results results -o concord": 0,
    "trust worklist results": 0,
    "trust watch results": 0,
    "bundle list": 0,
    f"bundle audit {FLAGSHIP}": 0,
    f"bundle info {FLAGSHIP}": 0,
    # wrong options
    "index": 2,
    f"{_INFER} --nonsense": 2,
    f"{_INFER} --write nonsense": 2,
    f"{_INFER} --precision nonsense": 2,
    f"{_INFER} --engine nonsense": 2,
    f"{_INFER} --device nonsense": 2,
    f"{_INFER} --roi nonsense": 2,
    # wrong paths
    f"infer {FLAGSHIP} nowhere -o out": 2,
    "infer nowhere scans -o out": 2,
    "train nowhere -o run": 2,
    "crossval nowhere -o run": 2,
    "evaluate nowhere nowhere -o out": 2,
    "concord nowhere results -o out": 2,
    "report nowhere": 2,
    "trust worklist nowhere": 2,
    "trust watch nowhere": 2,
    "bundle info nowhere": 2,
}
"""Commands that must answer without torch and MONAI, and their exit codes; those above prepare the ones below."""

HEAVY_YET = {
    f"bundle info {FLAGSHIP}": "the state of trust is read by the judge's room",
}
"""Those that do not yet; the list only shrinks."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int | str]:
    """What came of every command of LEAN: its exit code, or what heavy it imports and where."""
    folder = tmp_path_factory.mktemp("lean")
    made = make_folders(folder / "study", ["a", "b", "c", "d"])
    for name, source in {"scans": made.images, "masks": made.references, "results": made.results}.items():
        (folder / name).symlink_to(source)
    lines = json.dumps([line.split() for line in LEAN])
    command = [sys.executable, str(Path(__file__).with_name("lean_runs.py")), str(folder / "answer.json")]
    done = subprocess.run(command, cwd=folder, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(LEAN, json.loads((folder / "answer.json").read_text()), strict=True))


@pytest.mark.parametrize("line", [pytest.param(line, id=line.replace(FLAGSHIP, "BUNDLE")) for line in LEAN])
def test_what_needs_no_network_imports_neither_torch_nor_monai(line: str, outcomes: dict[str, int | str]) -> None:
    if line in HEAVY_YET:
        assert "imported by" in str(outcomes[line]), "it is lean now: strike it from HEAVY_YET"
    else:
        assert outcomes[line] == LEAN[line]


def test_the_barrier_stands_before_what_is_imported_late(tmp_path: Path) -> None:
    code = (
        "import lean_runs, pathlib, sys; sys.meta_path.insert(0, lean_runs.Barrier(pathlib.Path('answer'))); import {}"
    )
    for name in ("torch.nn", "monai.transforms", "json"):
        path = {"PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", code.format(name)]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, **path}, check=True)
        said = (tmp_path / "answer").read_text() if (tmp_path / "answer").exists() else ""
        assert ("imported by" in said) == (name != "json")
        (tmp_path / "answer").unlink(missing_ok=True)
