"""Opening a bundle: what it says of itself, its weights as data, and the grids it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseg.bundle import Bundle
from medseg.errors import BundleError, Refusal, UntrustedBundle, UsageError
from medseg.geometry import Geometry
from tests.bundle.sample import read_config, write_config
from tests.inference.bundles import Design, write_bundle

RANGE: dict[str, Any] = {
    "spacing_mm": {"low": [0.9, 0.9, 2.0], "high": [1.1, 1.1, 4.0]},
    "fov_mm": {"low": [30, 40, 50], "high": [60, 80, 100]},
    "modality": ["MR"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "small", Design(training_range=RANGE))


def test_tells_what_the_metadata_says(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert (bundle.name, bundle.version) == ("small", "0.0.1")
    assert bundle.labels == {1: "small", 2: "large"}
    assert (bundle.input_channels, bundle.output_channels) == (1, 3)
    assert bundle.training_range == RANGE
    assert bundle.label_codes == {}
    assert bundle.config("inference")["inferer"]["_target_"] == "SlidingWindowInferer"


def test_the_network_has_the_weights_and_evaluates(folder: Path) -> None:
    network = Bundle.open(folder).load_network()
    assert not network.training
    scores = network(torch.full((1, 1, 2, 2, 2), 20.0))
    torch.testing.assert_close(scores[0, :, 0, 0, 0], torch.tensor([0.0, 10.0, 0.0]))


def test_the_hash_changes_with_what_a_prediction_depends_on(folder: Path) -> None:
    before = Bundle.open(folder).sha256
    (folder / "README.md").write_text("words")
    assert Bundle.open(folder).sha256 == before
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, folder / "models" / "model.pt")
    assert Bundle.open(folder).sha256 != before


def test_two_weight_files_must_agree(folder: Path) -> None:
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    save_file(state, folder / "models" / "model.safetensors")
    assert Bundle.open(folder).load_network() is not None
    save_file({key: value + 1 for key, value in state.items()}, folder / "models" / "model.safetensors")
    with pytest.raises(BundleError, match="different weights"):
        Bundle.open(folder).load_network()


@pytest.mark.parametrize("damage", ["missing", "names", "nan", "nested"])
def test_weights_that_cannot_be_right_are_refused(folder: Path, damage: str) -> None:
    path = folder / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    path.unlink()
    if damage == "names":
        torch.save({f"x.{key}": value for key, value in state.items()}, path)
    elif damage == "nan":
        torch.save({key: value * torch.nan for key, value in state.items()}, path)
    elif damage == "nested":
        torch.save({"first": state, "second": state}, path)
    with pytest.raises(BundleError):
        Bundle.open(folder).load_network()


def test_nothing_runs_that_the_audit_does_not_allow(folder: Path, tmp_path: Path) -> None:
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'canary'}"}
    path.write_text(json.dumps(config))
    with pytest.raises(UntrustedBundle):
        Bundle.open(folder).load_network()
    assert not (tmp_path / "canary").exists()


def test_what_is_not_a_bundle_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="not a bundle"):
        Bundle.open(tmp_path)
    (folder / "configs" / "metadata.json").write_text("[1]")
    with pytest.raises(BundleError, match="expected an object"):
        Bundle.open(folder)


def _geometry(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Geometry:
    return Geometry(shape, np.diag([*spacing, 1.0]))


def test_the_training_range_is_in_patient_axes(folder: Path) -> None:
    bundle = Bundle.open(folder)
    bundle.check_range(_geometry((40, 60, 20), (1.0, 1.0, 3.0)), "MR")
    # the same volume with its axes in another order: slices first
    affine = np.array([[0, 1.0, 0, 0], [0, 0, -1.0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    bundle.check_range(Geometry((20, 40, 60), affine))


@pytest.mark.parametrize(
    ("geometry", "modality", "code"),
    [
        (_geometry((40, 60, 20), (0.5, 1.0, 3.0)), "MR", "outside-training-range"),
        (_geometry((200, 60, 20), (1.0, 1.0, 3.0)), "MR", "outside-training-range"),
        (_geometry((40, 60, 10), (1.0, 1.0, 3.0)), "MR", "outside-training-range"),
        (_geometry((40, 60, 20), (1.0, 1.0, 3.0)), "CT", "wrong-modality"),
    ],
)
def test_grids_far_from_training_are_refused(folder: Path, geometry: Geometry, modality: str, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        Bundle.open(folder).check_range(geometry, modality)
    assert refusal.value.code == code


@pytest.mark.parametrize(("side", "name"), [("inputs", "image"), ("outputs", "pred")])
@pytest.mark.parametrize("stated", [0, -1, 10**9, "0", "99999", "0100099", "two", 1.5])
def test_a_number_of_channels_that_no_image_has_is_refused(bundle: Path, side: str, name: str, stated: object) -> None:
    metadata = read_config(bundle, "metadata")
    metadata["network_data_format"][side][name]["num_channels"] = stated
    write_config(bundle, "metadata", metadata)
    with pytest.raises(BundleError, match=rf"{side}.{name}.num_channels is .*expected a whole number from 1 to 4096"):
        Bundle.open(bundle)


def test_an_output_without_a_number_of_channels_is_refused(bundle: Path) -> None:
    metadata = read_config(bundle, "metadata")
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = None
    write_config(bundle, "metadata", metadata)
    with pytest.raises(BundleError, match="does not say num_channels of its output"):
        _ = Bundle.open(bundle).output_channels
