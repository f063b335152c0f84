"""Importing, with a stand-in for a conversion: its network tells the axes of the images apart, and their ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from typer.testing import CliRunner, Result

from medseg.bundle import Bundle
from medseg.cli import bundle as bundle_command
from medseg.cli.main import app
from medseg.conversion.imported import Imported, ImportOptions
from medseg.errors import BundleError, MedsegError, UsageError
from medseg.inference.predictor import Predictor
from medseg.inference.run.batch import run_batch
from medseg.workflows import importing
from medseg.workflows.import_check import FLOOR_VOXELS, agreement
from medseg.workflows.importing import import_bundle
from tests.inference.bundles import CONVOLUTION, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, meta_tensor, save

assert bundle_command

SHAPE = (20, 18, 14)


def _edges(channels: int) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Scores that grow with the slope along the first axis, and with that along the second and a bit of the third."""

    def weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kernel = torch.zeros(3, channels, 3, 3, 3)
        kernel[1, :, 2, 1, 1], kernel[1, :, 0, 1, 1] = 1.0, -1.0
        kernel[2, 0, 1, 2, 1], kernel[2, 0, 1, 0, 1] = 1.3, -1.3
        kernel[2, -1, 1, 1, 2], kernel[2, -1, 1, 1, 0] = 0.7, -0.7
        bias, weight = sorted(state, key=len)
        return {weight: kernel, bias: torch.tensor([0.0, -2.0, -2.0])}

    return weights


def _write(folder: Path, orientation: str, channels: int = 1) -> Path:
    """A network that takes the axes backwards, as nnU-Net's do."""
    turned = ({"_target_": "Orientationd", "keys": "image", "axcodes": orientation[::-1], "labels": None},)
    network = {**CONVOLUTION, "kernel_size": 3, "in_channels": channels}
    return write_bundle(folder, Design(network, turned, input_channels=channels), _edges(channels))


def _convert(source: Path, output: Path, options: ImportOptions) -> Imported:
    stated = json.loads((source / "stand_in.json").read_text())
    orientation = options.orientation or "RAS"
    folder = _write(output / (options.name or "stand_in"), orientation, stated.get("channels", 1))
    if "broken" in stated:
        raise BundleError("it is broken; mend it")
    file = folder / "configs" / "metadata.json"
    facts = {"orientation": orientation, **stated.get("imported", {})}
    file.write_text(json.dumps({**json.loads(file.read_text()), "imported": facts}))
    return Imported(folder, "a stand-in", ("its note",))


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "medseg.conversion.stand_in"
    module: Any = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.is_stand_in = lambda source: (source / "stand_in.json").is_file()
    module.import_stand_in = _convert
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importing, "KINDS", {"zoo": "bundles", "stand_in": "a stand-in"})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "stand_in.json").write_text("{}")
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Images in odd orientations, and what the network gives of them whose training images lay as LAS."""
    return _origin(tmp_path, "LAS", ())


def _origin(folder: Path, orientation: str, mirror: tuple[str, ...], channels: int = 1) -> tuple[Path, Path]:
    predictor = Predictor(_write(folder / "origin", orientation, channels), "cpu", "fp32", mirror=mirror)
    for number, kind in enumerate(("permuted", "oblique")):
        volumes = [blobs(SHAPE, 10 * number + channel) for channel in range(channels)]
        for channel, volume in enumerate(volumes):
            save(volume, grid(kind), folder / "images" / f"case{number}_{channel:04d}.nii.gz")
        image = meta_tensor(volumes[0], grid(kind))
        if channels > 1:
            image = MetaTensor(np.stack(volumes), affine=grid(kind))
        labels = predictor.predict(image).label_map
        assert len(np.unique(labels)) == 3
        save(labels.astype(np.float32), grid(kind), folder / "labels" / f"case{number}.nii.gz")
    return folder / "images", folder / "labels"


def _left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_import_is_whole_and_says_that_nobody_has_checked_it(source: Path, tmp_path: Path) -> None:
    made = import_bundle(source, tmp_path / "out", ImportOptions(name="mine"))
    assert made.path == tmp_path / "out" / "mine"
    assert _left_behind(tmp_path / "out") == ["mine"]
    state = Bundle.open(made.path).import_state
    assert made.notes == ("its note", state)
    assert state.startswith("imported (a stand-in), not checked")
    save(blobs(SHAPE), grid("plain"), tmp_path / "image.nii.gz")
    assert run_batch(made.path, [tmp_path / "image.nii.gz"], tmp_path / "run").notes[0] == state


@pytest.mark.parametrize("name", ["mine", None])
def test_what_is_there_is_not_touched(source: Path, tmp_path: Path, name: str | None) -> None:
    (there := tmp_path / "out" / (name or "stand_in")).mkdir(parents=True)
    with pytest.raises(UsageError, match="exists already"):
        import_bundle(source, tmp_path / "out", ImportOptions(name))
    assert _left_behind(tmp_path / "out") == [there.name]
    assert _left_behind(there) == []


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "..", "a/b", "n" * 300])
def test_a_name_is_no_path(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a folder below --output"):
        import_bundle(source, tmp_path / "out", ImportOptions(name=name))
    assert not (tmp_path / "elsewhere").exists()


def test_what_the_source_says_of_a_check_is_not_believed(source: Path, tmp_path: Path) -> None:
    forged = {"cases": 100, "voxels": 10**9, "different_voxels": 0}
    (source / "stand_in.json").write_text(json.dumps({"imported": {"checked": forged}}))
    made = import_bundle(source, tmp_path / "out")
    assert made.checked is None
    assert "not checked" in Bundle.open(made.path).import_state


def test_a_failed_import_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (source / "stand_in.json").write_text('{"broken": 1}')
    with pytest.raises(BundleError, match="broken"):
        import_bundle(source, tmp_path / "out")
    assert _left_behind(tmp_path / "out") == []


def test_what_nobody_knows_is_refused_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model that medseg can read; expected bundles; a stand-in"):
        import_bundle(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="cannot find"):
        import_bundle(tmp_path / "nowhere", tmp_path / "out")


def test_equal_label_maps_are_recorded(source: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    made = import_bundle(source, tmp_path / "out", ImportOptions(orientation="LAS"), check=pair)
    assert made.checked is not None
    assert made.checked == Bundle.open(made.path).metadata["imported"]["checked"]
    assert (made.checked["cases"], made.checked["different_voxels"]) == (2, 0)
    assert made.checked["lowest_dice"] == {"1": 1.0, "2": 1.0}
    assert "equal those of its origin in all but 0 of 10080 voxels" in Bundle.open(made.path).import_state


def test_a_few_voxels_may_differ(source: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    _flip(pair[1] / "case1.nii.gz", FLOOR_VOXELS)
    made = import_bundle(source, tmp_path / "out", ImportOptions(orientation="LAS"), check=pair)
    assert made.checked is not None
    assert made.checked["different_voxels"] == FLOOR_VOXELS
    _flip(pair[1] / "case1.nii.gz", 40)
    with pytest.raises(BundleError, match=r"of case1 is not the origin's: 4. of 5040 voxels differ.*without --check"):
        import_bundle(source, tmp_path / "more", ImportOptions(orientation="LAS"), check=pair)
    assert _left_behind(tmp_path / "more") == []


def _flip(file: Path, count: int) -> None:
    labels, affine = load(file)
    rows = np.random.default_rng(0).permutation(labels.size)[:count]
    labels.flat[rows] = (labels.flat[rows] + 1) % 3
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), file)


@pytest.mark.parametrize("given", ["RAS", "LPI", "SAL"])
def test_a_wrong_orientation_is_named(source: Path, pair: tuple[Path, Path], tmp_path: Path, given: str) -> None:
    with pytest.raises(BundleError, match=r"taken as LAS only 0 differ: import with --orientation LAS"):
        import_bundle(source, tmp_path / "out", ImportOptions(orientation=given), check=pair)
    assert _left_behind(tmp_path / "out") == []


def test_the_origins_mirroring_is_tried(source: Path, tmp_path: Path) -> None:
    pair = _origin(tmp_path, "RAS", ("lr", "ap"))
    with pytest.raises(BundleError, match="not the origin's"):
        import_bundle(source, tmp_path / "out", check=pair)
    (source / "stand_in.json").write_text(
        json.dumps({"imported": {"origin": "something better known", "mirror": ["lr", "ap"]}})
    )
    made = import_bundle(source, tmp_path / "out", check=pair)
    assert made.checked is not None
    assert made.checked["mirror"] == ["lr", "ap"]
    assert "(a stand-in)" in made.notes[-1]  # a source does not say what it is
    assert "with --mirror lr,ap" in made.notes[-1]


def test_channels_are_put_together_by_their_numbers(source: Path, tmp_path: Path) -> None:
    (source / "stand_in.json").write_text('{"channels": 2}')
    images, labels = _origin(tmp_path, "RAS", (), channels=2)
    made = import_bundle(source, tmp_path / "out", check=(images, labels))
    assert made.checked is not None
    assert made.checked["different_voxels"] == 0
    (images / "case1_0001.nii.gz").unlink()
    with pytest.raises(UsageError, match="case1 has 1 channels, the model takes 2"):
        import_bundle(source, tmp_path / "more", check=(images, labels))


def test_pairs_that_are_none_are_refused(source: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = pair
    for file in labels.iterdir():
        file.rename(labels / f"other_{file.name}")
    with pytest.raises(UsageError, match="called like an image"):
        import_bundle(source, tmp_path / "out", check=(images, labels))
    save(np.zeros((4, 4, 4), np.float32), np.eye(4), labels / "case1.nii.gz")
    with pytest.raises(MedsegError, match=r"label map case1.nii.gz has 4×4×4"):
        import_bundle(source, tmp_path / "out", check=(images, labels))


def test_agreement_counts_by_structure() -> None:
    ours = np.zeros((50, 50, 50), np.uint8)
    ours[:20, :20, :20], ours[40, 40, 40:43] = 1, 2
    theirs = ours.copy()
    theirs[40, 40, 40:43] = 0
    lost = agreement(ours, theirs)
    assert (lost.different, lost.dice) == (3, {1: 1.0, 2: 0.0})
    assert lost.holds
    theirs[0, 0, :10] = 0
    assert agreement(ours, theirs).holds is False
    assert "13 of 125000 voxels differ (0.0104%)" in agreement(ours, theirs).describe()


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bundle", *map(str, arguments)])


def test_the_command(source: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    check = ("--check", pair[0], "--predicted", pair[1])
    wrong = _run("import", source, "-o", tmp_path / "out", "--orientation", "RAS", *check, "--json")
    assert wrong.exit_code == 2
    assert "--orientation LAS" in json.loads(wrong.stdout)["message"]
    made = _run("import", source, "-o", tmp_path / "out", "--orientation", "LAS", *check, "--json")
    result = json.loads(made.stdout)
    assert (result["kind"], result["checked"]["cases"]) == ("a stand-in", 2)
    assert "case0: 0 of 5040 voxels differ" in made.stderr
    told = _run("info", result["bundle"])
    assert "imported  imported (a stand-in), checked" in told.stdout
    assert _run("import", source, "-o", tmp_path / "out", "--check", pair[0]).exit_code == 2
