"""Mirrored views and several networks, averaged: what can be computed by hand, and only what belongs together."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from medseg.bundle import Bundle
from medseg.errors import BundleError, UsageError
from medseg.geometry import Geometry
from medseg.inference import Options, Predictor, run_batch
from medseg.inference.engines import Engine
from medseg.inference.ensemble import check_mirror, ensemble_of, member_digest, mirrored_axes
from tests.inference.bundles import ORIENTED, RESAMPLED, UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, meta_tensor, save


def scores_of(predictor: Predictor, image: MetaTensor) -> torch.Tensor:
    """The network's stitched output for an image, ``(K, H, W, D)``."""
    chunks: list[torch.Tensor] = []
    predictor.predict(image, watch=lambda chunk: chunks.append(chunk.scores.clone()))
    return torch.cat(chunks, dim=1)


def _ramp(batch: torch.Tensor) -> torch.Tensor:
    """A network that knows where in the window it is: two scores that grow along all three axes."""
    i, j, k = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in batch.shape[2:]), indexing="ij")
    where = (i + 2 * j + 3 * k) / 10
    return torch.stack([batch[:, 0], batch[:, 0] * where], dim=1)


@settings(max_examples=15, deadline=None)
@given(st.sets(st.sampled_from((0, 1, 2)), max_size=3), st.integers(0, 1000))
def test_the_mean_is_that_of_probabilities(axes: set[int], seed: int) -> None:
    window = torch.randn(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    combinations = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    expected = torch.zeros(1, 2, 3, 4, 5)
    for flips in combinations:
        dims = [axis + 2 for axis in flips]
        expected += torch.softmax(_ramp(window.flip(dims)), dim=1).flip(dims) / 2 ** len(axes)
    found = torch.softmax(ensemble_of([_ramp], sorted(axes), "softmax")(window), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_mean_of_two_networks_is_between_them() -> None:
    first, second = torch.tensor([0.0, 2.0]), torch.tensor([1.0, -3.0])
    engines = [lambda _: first.reshape(1, 2, 1, 1, 1), lambda _: second.reshape(1, 2, 1, 1, 1)]
    window = torch.zeros(1, 1, 1, 1, 1)
    expected = (torch.softmax(first, 0) + torch.softmax(second, 0)) / 2
    found = torch.softmax(ensemble_of(engines, (), "softmax")(window), dim=1)
    torch.testing.assert_close(found.flatten(), expected)
    expected = (torch.sigmoid(first) + torch.sigmoid(second)) / 2
    found = torch.sigmoid(ensemble_of(engines, (), "sigmoid")(window))
    torch.testing.assert_close(found.flatten(), expected)
    found = ensemble_of(engines, (), "none")(window)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(first, torch.tensor([0.0, 2.0]))  # what the networks gave is left alone


def test_certainty_does_not_overflow() -> None:
    sure = torch.tensor([400.0, -400.0]).reshape(1, 2, 1, 1, 1)
    for activation in ("softmax", "sigmoid"):
        found = ensemble_of([lambda _: sure, lambda _: sure], (), activation)(torch.zeros(1, 1, 1, 1, 1))
        assert torch.isfinite(found).all()
        assert found[0, 0] > found[0, 1]


def test_the_plain_network_alone_is_itself() -> None:
    assert ensemble_of([_ramp], (), "softmax") is _ramp


def test_every_network_sees_every_combination_and_plain_comes_first() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def network(number: int) -> Engine:
        def look(batch: torch.Tensor) -> torch.Tensor:
            where = tuple(torch.argmax(batch.amax(dim=tuple({0, 1, 2, 3, 4} - {axis}))).item() for axis in (2, 3, 4))
            seen.append((number, tuple(int(place) for place in where)))
            return batch

        return look

    corner = torch.zeros(1, 1, 2, 2, 2)
    corner[0, 0, 0, 0, 0] = 1.0
    ensemble_of([network(0), network(1)], (0, 2), "none")(corner)
    assert seen[0] == (0, (0, 0, 0))
    assert [number for number, _ in seen] == [0] * 4 + [1] * 4
    assert {where for number, where in seen if number == 1} == {(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)}


@pytest.mark.parametrize(
    ("kind", "axes"), [("plain", {"lr": 0, "ap": 1, "is": 2}), ("permuted", {"lr": 1, "ap": 2, "is": 0})]
)
def test_the_patients_axes_are_found_in_the_grid(kind: str, axes: dict[str, int]) -> None:
    geometry = Geometry((9, 8, 7), grid(kind))
    for name, axis in axes.items():
        assert mirrored_axes((name,), geometry) == (axis,)
    assert mirrored_axes(("lr", "ap", "is"), geometry) == (0, 1, 2)


def test_a_network_that_looks_at_one_voxel_does_not_mind_mirrors(thresholds: Path) -> None:
    image = meta_tensor(blobs((20, 33, 17)), grid("permuted"))
    plain = Predictor(thresholds).predict(image).label_map
    assert len(np.unique(plain)) == 3
    mirrored = Predictor(thresholds, mirror=("ap", "is", "lr")).predict(image).label_map
    np.testing.assert_array_equal(mirrored, plain)


def test_mirroring_equals_averaging_by_hand(tmp_path: Path) -> None:
    # one window over the whole volume, so that mirroring the window is mirroring the patient
    bundle = write_bundle(tmp_path / "unet", Design(network=UNET, transforms=ORIENTED, roi_size=(16, 16, 16)))
    image = meta_tensor(blobs((16, 16, 16)), grid("plain"))
    predictor = Predictor(bundle)
    plain = scores_of(predictor, image)
    flipped = meta_tensor(np.ascontiguousarray(blobs((16, 16, 16))[:, ::-1]), grid("plain"))
    other = scores_of(predictor, flipped)
    expected = (torch.softmax(plain, 0) + torch.softmax(other, 0).flip(2)) / 2
    found = scores_of(Predictor(bundle, mirror=("ap",)), image)
    torch.testing.assert_close(torch.softmax(found, 0), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, torch.softmax(plain, 0), atol=1e-3)  # this network does mind mirrors


def test_left_and_right_are_not_mixed_up(tmp_path: Path, thresholds: Path) -> None:
    check_mirror(("lr", "ap"), Bundle.open(thresholds))
    sided = Bundle.open(write_bundle(tmp_path / "sided"))
    outputs = sided.metadata["network_data_format"]["outputs"]["pred"]
    outputs["channel_def"] = {"0": "background", "1": "Kidney_L", "2": "vertebra_L1"}
    check_mirror(("ap", "is"), sided)
    with pytest.raises(UsageError, match="left and right of Kidney_L of"):
        check_mirror(("lr",), sided)
    outputs["channel_def"] = {"0": "background", "1": "bright spot", "2": "cleft_palate", "3": "Upright"}
    check_mirror(("lr",), sided)
    outputs["channel_def"] = {"0": "background", "1": "brightKidneyRight"}
    with pytest.raises(UsageError, match="of brightKidneyRight of"):
        check_mirror(("lr",), sided)
    outputs["channel_def"] = {"0": "background", "1": "organ"}
    outputs["segment_codes"] = {"1": {"laterality": ["7771000", "SCT", "Left"]}}
    with pytest.raises(UsageError, match="of organ of"):
        check_mirror(("lr",), sided)
    with pytest.raises(UsageError, match="expected some of lr, ap, is"):
        check_mirror(("x",), sided)


def test_a_run_says_how_it_looked_and_computes_anew_when_that_changes(tmp_path: Path, thresholds: Path) -> None:
    save(blobs((12, 12, 12)), grid("plain"), tmp_path / "a.nii.gz")
    for mirror, computed in (((), 1), (("ap",), 1), (("ap",), 0)):
        report = run_batch(thresholds, [tmp_path / "a.nii.gz"], tmp_path / "out", Options(mirror=mirror))
        assert report.content["options"]["mirror"] == list(mirror)
        assert report.content["summary"]["computed"] == computed
    assert report.content["trust"]["state"] == "off"
    with pytest.raises(UsageError, match="lr, ap, is"):
        run_batch(thresholds, [tmp_path / "a.nii.gz"], tmp_path / "out", Options(mirror=("up",)))
    with pytest.raises(UsageError, match="plain network"):
        Options(write=("doubt",), mirror=("ap",))


DESIGN = Design(network=UNET, transforms=ORIENTED, roi_size=(16, 16, 16))


def _shuffled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.flip(0) for key, value in state.items()}


def _probabilities(predictor: Predictor) -> torch.Tensor:
    return torch.softmax(scores_of(predictor, meta_tensor(blobs((16, 16, 16)), grid("plain"))), dim=0)


def test_two_are_their_mean_and_one_twice_is_that_one(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "first", DESIGN)
    second = write_bundle(tmp_path / "second", DESIGN, _shuffled)
    alone, other = _probabilities(Predictor(first)), _probabilities(Predictor(second))
    assert not torch.allclose(alone, other, atol=0.01)
    for member in (str(second), str(second / "models" / "model.pt")):
        both = _probabilities(Predictor(first, ensemble=(member,)))
        torch.testing.assert_close(both, (alone + other) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(_probabilities(Predictor(first, ensemble=(str(first),))), alone, rtol=1e-4, atol=1e-5)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", DESIGN)
    elsewhere = write_bundle(tmp_path / "elsewhere", Design(network=UNET, transforms=RESAMPLED, roi_size=(16, 16, 16)))
    with pytest.raises(UsageError, match=r"preprocessing in inference\.json of elsewhere and bundle differ"):
        Predictor(bundle, ensemble=(str(elsewhere),))
    windows = write_bundle(tmp_path / "windows", Design(network=UNET, transforms=ORIENTED, roi_size=(32, 16, 16)))
    with pytest.raises(UsageError, match="inferer"):
        Predictor(bundle, ensemble=(str(windows),))
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] = "something else"
    other = write_bundle(tmp_path / "other", DESIGN)
    (other / "configs" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UsageError, match="something else"):
        Predictor(bundle, ensemble=(str(other),))
    with pytest.raises(UsageError, match="no such bundle or weights file"):
        member_digest(str(tmp_path / "nothing"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(BundleError, match="do not fit"):
        Predictor(bundle, ensemble=(str(tmp_path / "weights.pt"),))


def test_the_same_preprocessing_may_be_written_with_references(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Design(network=UNET, transforms=RESAMPLED, roi_size=(16, 16, 16)))
    other = write_bundle(tmp_path / "other", Design(network=UNET, transforms=RESAMPLED, roi_size=(16, 16, 16)))
    path = other / "configs" / "inference.json"
    config = json.loads(path.read_text())
    spacing = next(step for step in config["preprocessing"]["transforms"] if step["_target_"] == "Spacingd")
    config["spacing_mm"], spacing["pixdim"] = spacing["pixdim"], "@spacing_mm"
    path.write_text(json.dumps(config))
    Predictor(bundle, ensemble=(str(other),))


def test_other_weights_under_the_same_name_compute_anew(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", DESIGN)
    weights = tmp_path / "fold1.pt"
    save(blobs((12, 12, 12)), grid("plain"), tmp_path / "a.nii.gz")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    for factor in (1.0, 2.0):
        torch.save({key: value * factor for key, value in state.items()}, weights)
        options = Options(ensemble=(str(weights),))
        report = run_batch(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options)
        assert report.content["summary"]["computed"] == 1
        said = report.content["options"]["ensemble"]
        assert said == [{"name": "fold1.pt", "sha256": member_digest(str(weights))}]
    assert str(tmp_path) not in json.dumps(report.content["options"])
