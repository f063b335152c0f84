"""What a command that runs a bundle does outside its output folder: nothing by itself, nothing against the wall."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medseg.bundle import Bundle
from medseg.confinement import landlock_version
from medseg.inference.run.batch import run_batch
from tests.conversion.nnunet_model import Fake, write_model
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, save

BUNDLES = Path(__file__).parents[2] / "bundles"
LABELLING = ("hippocampus_mri_segmentation", "phantom_ct_segmentation", "sarcoma_mrpet_segmentation")

needs_landlock = pytest.mark.skipif(landlock_version() < 3, reason="needs Landlock 3 (Linux 6.2)")


def _case(bundle: str, folder: Path) -> Path:
    """A datalist of one case with the channels, and in the middle of the range, that a bundle takes."""
    metadata = json.loads((BUNDLES / bundle / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    ends = metadata["training_range"]
    spacing, fov = (np.mean([ends[name]["low"], ends[name]["high"]], 0) for name in ("spacing_mm", "fov_mm"))
    i, j, k = (fov / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    names = [save(blobs((i, j, k), n), affine, folder / f"c{n}.nii.gz").name for n in range(channels)]
    datalist = {"name": "one", "training": [{"image": names if channels > 1 else names[0]}]}
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder / "datalist.json"


def _environment(folder: Path) -> dict[str, str]:
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    # Python's own compiled files are no work of the command
    own = {"MEDSEG_UNCONFINED": "1", "MEDSEG_PSEUDONYM_KEY": "key", "PYTHONDONTWRITEBYTECODE": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    return {**inherited, **own, "TMPDIR": str(temporary)}  # torch notes there where its compiler caches


def _infer(bundle: str | Path, case: Path, output: Path) -> list[str]:
    return ["infer", str(bundle), str(case), "-o", str(output), "--precision", "fp32", "--quiet"]


@pytest.mark.parametrize(
    "bundle", [LABELLING[0], *(pytest.param(name, marks=pytest.mark.slow) for name in LABELLING[1:])]
)
def test_labelling_touches_its_output_alone_by_itself(bundle: str, tmp_path: Path) -> None:
    case, log, output = _case(bundle, tmp_path), tmp_path / "log", tmp_path / "out"
    command = [sys.executable, "-m", "tests.watched", str(log), *_infer(BUNDLES / bundle, case, output)]
    done = subprocess.run(command, env=_environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(name == "write" and place.startswith(str(output)) for name, place, *_ in events)
    mine = (str(output), str(tmp_path / "temporary"), os.devnull)
    left = [event for event in events if not event[1].startswith(mine)]
    assert [event for event in left if not _harmless(event)] == []


@pytest.mark.slow
@pytest.mark.parametrize("walled", [pytest.param(True, marks=needs_landlock), False])
def test_an_import_touches_its_output_alone(walled: bool, tmp_path: Path) -> None:
    model, log, output = write_model(tmp_path, Fake()), tmp_path / "log", tmp_path / "out"
    words = ["bundle", "import", str(model), "-o", str(output), "--orientation", "RAS", "--quiet"]
    environment = _environment(tmp_path)
    if walled:
        del environment["MEDSEG_UNCONFINED"]
    python = ["-m", "medseg"] if walled else ["-m", "tests.watched", str(log)]
    done = subprocess.run(
        [sys.executable, *python, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in output.iterdir()] == ["dataset007_fake_3d_fullres"]
    if not walled:
        mine = (str(output), str(tmp_path / "temporary"), os.devnull)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert [event for event in events if not event[1].startswith(mine) and not _harmless(event)] == []


def _harmless(event: list[str]) -> bool:
    """urllib3 asks at its import whether IPv6 is there, Python for the processor; a nameless database is private."""
    return event in (["socket.bind", "('::1', 0)"], ["sqlite3.connect", ""]) or event[1:2] == ["uname"]


_CALLS = "openat,open,creat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,rmdir,link,linkat,symlink,symlinkat"
_TRACED = f"{_CALLS},truncate,chmod,fchmodat,connect,sendto,sendmsg,bind"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("bundle", LABELLING)
def test_the_kernel_sees_no_more(bundle: str, tmp_path: Path) -> None:
    case, log, output = _case(bundle, tmp_path), tmp_path / "log", tmp_path / "out"
    medseg = [sys.executable, "-m", "medseg", *_infer(BUNDLES / bundle, case, output)]
    command = ["strace", "-f", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={_TRACED}", *medseg]
    done = subprocess.run(command, env=_environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    mine = (str(output), str(tmp_path / "temporary"), os.devnull, "/dev/shm")
    lines = log.read_text().splitlines()
    assert any(_changes(line, ()) for line in lines)
    assert [line for line in lines if _changes(line, mine)] == []


def _changes(line: str, mine: tuple[str, ...]) -> bool:
    """Whether a call reached the network, or changed a file elsewhere."""
    call = re.match(r"\d+ +(\w+)\((.*)", line)
    if call is None:  # the end of a call that another thread had interrupted
        return False
    name, said = call.groups()
    if name in {"connect", "sendto", "sendmsg", "bind"}:
        local = "AF_UNIX" in said or "nscd" in said or ('"::1"' in said and name == "bind")
        return not local
    if name in {"open", "openat"} and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", said):
        return False
    places = re.findall(r'"([^"]*)"', said)
    return not all(place.startswith(mine) for place in places)


@needs_landlock
@pytest.mark.slow
def test_the_wall_changes_no_result(tmp_path: Path) -> None:
    case = _case(LABELLING[0], tmp_path)
    found = {}
    for name in ("behind", "free"):
        output = tmp_path / name
        environment = _environment(tmp_path)
        if name == "behind":
            del environment["MEDSEG_UNCONFINED"]
        command = [
            sys.executable,
            "-m",
            "medseg",
            *_infer(BUNDLES / LABELLING[0], case, output),
            "--write",
            "nifti,doubt",
        ]
        subprocess.run(command, env=environment, check=True)
        labels = sorted(output.glob("*.nii.gz"))
        found[name] = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in labels]
    assert len(found["free"]) == 2
    assert found["behind"] == found["free"]
    assert not list((tmp_path / "temporary").iterdir())


@needs_landlock
@pytest.mark.slow
def test_the_wall_holds_where_the_audit_does_not(tmp_path: Path) -> None:
    """A bundle that writes elsewhere with MONAI's own writer, run although the audit says what it would do."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    saver = {"_target_": "SaveImaged", "keys": "image", "output_dir": str(elsewhere), "separate_folder": False}
    bundle = write_bundle(tmp_path / "writer", Design(transforms=(*ORIENTED, saver)))
    save(blobs((12, 14, 10)), grid("oblique"), tmp_path / "a.nii.gz")
    command = [
        sys.executable,
        "-m",
        "medseg",
        *_infer(bundle, tmp_path / "a.nii.gz", tmp_path / "out"),
        "--trust-bundle",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert list(elsewhere.iterdir()) == []
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert case["status"] == "failed"
    run_batch(Bundle.open(bundle, "everything"), [tmp_path / "a.nii.gz"], tmp_path / "unwalled")
    assert list(elsewhere.iterdir()), "the bundle does not write elsewhere: this test shows nothing"
