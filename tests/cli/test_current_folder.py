"""The folder that a command is started in holds data: no file of it is run, whatever it is called."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from medseg.errors import ExitCode
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, save
from tests.report.report_folders import make_folders

MEDSEG = Path(sysconfig.get_path("scripts"), "medseg")
SCANS = 2100
"""So many that the index starts workers."""

FILES = 5000
HEAD = bytes(128) + b"DICM"


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that any of the stranger's modules would write."""
    return tmp_path_factory.mktemp("canary") / "run"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, canary: Path) -> Path:
    """A stranger's folder with a module of every name that Python or a dependency of ours could look for."""
    folder = tmp_path_factory.mktemp("study")
    installed = (module.name for module in pkgutil.iter_modules())
    names = {*sys.stdlib_module_names, *installed, "sitecustomize", "usercustomize"}
    trap = f"open({str(canary)!r}, 'a').write(__name__ + chr(10))\n"
    for name in names:
        (folder / f"{name}.py").write_text(trap)
    (folder / "matplotlibrc").write_text("backend: module://struct\n")
    (folder / "x.dist-info").mkdir()
    (folder / "x.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1\n")
    plugins = ("torch.backends", "pylibjpeg.pixel_data_decoders", "distributed.preloads")
    entries = "".join(f"[{group}]\nx = struct:x\n" for group in plugins)
    (folder / "x.dist-info" / "entry_points.txt").write_text(entries)
    for number in range(SCANS):
        (folder / f"{number}.dcm").write_bytes(HEAD)
    for number in range(FILES - SCANS - len(names)):
        (folder / f"scan_{number}.py").write_text(trap)
    return folder


def _run(command: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=variables | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_indexing_with_workers_runs_nothing(study: Path, canary: Path) -> None:
    done = _run([MEDSEG, "index", ".", "--json"], study)
    assert not canary.exists(), canary.read_text()
    assert done.returncode in (ExitCode.DONE, ExitCode.INCOMPLETE), done.stderr


@pytest.mark.parametrize("command", [[MEDSEG, "--help"], [sys.executable, "-P", "-m", "medseg", "--version"]])
def test_starting_runs_nothing(command: list[str | Path], study: Path, canary: Path) -> None:
    done = _run(command, study)
    assert done.returncode == 0, done.stderr
    assert not canary.exists(), canary.read_text()


def test_a_module_under_the_name_of_a_dependency_is_not_run(canary: Path, tmp_path: Path) -> None:
    """``python -m`` searches here until our first line is run; from there on it does not."""
    for name in ("typer", "click", "numpy", "sqlite3"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'a').write(__name__ + chr(10))\n")
    done = _run([sys.executable, "-m", "medseg", "bundle", "list"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not canary.exists(), canary.read_text()


def test_an_audit_of_a_datalist_runs_nothing(study: Path, canary: Path, tmp_path: Path) -> None:
    made = make_folders(tmp_path, ["a", "b"])
    items = [{"image": str(made.images / f"{name}.nii.gz"), "patient_id": name} for name in "ab"]
    (tmp_path / "datalist.json").write_text(json.dumps({"name": "x", "training": items}))
    done = _run([MEDSEG, "manifest", "audit", tmp_path / "datalist.json"], study)
    assert done.returncode in (ExitCode.DONE, ExitCode.INCOMPLETE), done.stderr
    assert not canary.exists(), canary.read_text()


_LIBRARY = """
from medseg.resources import bounded_map
if __name__ == "__main__":
    assert list(bounded_map(abs, [-1, 2, -3], 2)) == [1, 2, 3]
"""


def test_workers_of_the_library_run_nothing(study: Path, canary: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_LIBRARY)
    done = _run([sys.executable, tmp_path / "script.py"], study)
    assert not canary.exists(), canary.read_text()
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--cluster", "local:2"]])
def test_labelling_runs_nothing(options: list[str], study: Path, canary: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "thresholds", Design(transforms=ORIENTED))
    for name in "ab":
        save(blobs((12, 14, 10)), grid("oblique"), tmp_path / f"{name}.nii.gz")
    images = [tmp_path / f"{name}.nii.gz" for name in "ab"]
    done = _run([MEDSEG, "infer", bundle, *images, "-o", tmp_path / "out", "--precision", "fp32", *options], study)
    assert not canary.exists(), canary.read_text()
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["summary"]["done"] == 2


_PATHS = """
import json, subprocess, sys
from medseg._safe_path import forget_current_folder
forget_current_folder()
child = "import json, os, sys; print(json.dumps([sys.path, dict(os.environ)]))"
subprocess.run([sys.executable, "-c", child], check=True)
"""


def test_relative_paths_of_the_environment_are_forgotten(tmp_path: Path) -> None:
    path = os.pathsep.join(["", "programs", os.environ["PATH"]])
    given = {"PYTHONPATH": os.pathsep.join(["/nowhere", "", "modules"]), "PATH": path, "LD_LIBRARY_PATH": ":"}
    done = _run([sys.executable, "-c", _PATHS], tmp_path, **given)
    assert done.returncode == 0, done.stderr
    searched, variables = json.loads(done.stdout)
    assert not {"", str(tmp_path), str(tmp_path / "modules")} & set(searched)
    assert searched[0] == variables["PYTHONPATH"] == "/nowhere"
    assert variables["PATH"] == os.environ["PATH"]
    assert "LD_LIBRARY_PATH" not in variables
