"""The command starts without what it does not need, and nothing else in Python notices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from medseg.cli._lean import import_monai_quickly
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, save

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
    code = "from medseg.cli._lean import import_monai_quickly as quick; import sys; sys.exit(quick())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert import_monai_quickly() is False
