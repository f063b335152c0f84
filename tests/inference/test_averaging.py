"""Averaging of mirrored looks and of several networks: what a hand computes, and nothing where nothing is averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.inference import Options, Predictor, run_batch
from medseg.inference.ensemble import Ensemble, TTAView, check_mirror, mirrored_axes, views
from tests.inference.bundles import ORIENTED, UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, meta_tensor, save


def _ramp(batch: torch.Tensor) -> torch.Tensor:
    """A network that knows where in the window it is: two scores that grow along all three axes."""
    i, j, k = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in batch.shape[2:]), indexing="ij")
    where = (i + 2 * j + 3 * k) / 10
    return torch.stack([batch[:, 0], batch[:, 0] * where], dim=1)


def test_every_network_sees_every_combination_and_plain_comes_first() -> None:
    looks = views(2, (0, 2))
    assert looks[0] == TTAView(0)
    assert {look.flips for look in looks if look.member == 1} == {(), (0,), (2,), (0, 2)}
    assert len(set(looks)) == 8


@settings(max_examples=15, deadline=None)
@given(st.sets(st.sampled_from((0, 1, 2)), max_size=3), st.integers(0, 1000))
def test_the_mean_is_that_of_probabilities(axes: set[int], seed: int) -> None:
    window = torch.randn(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    looks = views(1, sorted(axes))
    expected = torch.zeros(1, 2, 3, 4, 5)
    for look in looks:
        dims = [axis + 2 for axis in look.flips]
        expected += torch.softmax(_ramp(window.flip(dims)), dim=1).flip(dims) / len(looks)
    found = torch.softmax(Ensemble([_ramp], looks, "softmax")(window), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_mean_of_two_networks_is_between_them() -> None:
    first, second = torch.tensor([0.0, 2.0]), torch.tensor([1.0, -3.0])
    engines = [lambda _: first.reshape(1, 2, 1, 1, 1), lambda _: second.reshape(1, 2, 1, 1, 1)]
    window = torch.zeros(1, 1, 1, 1, 1)
    expected = (torch.softmax(first, 0) + torch.softmax(second, 0)) / 2
    found = torch.softmax(Ensemble(engines, views(2, ()), "softmax")(window), dim=1)
    torch.testing.assert_close(found.flatten(), expected)
    expected = (torch.sigmoid(first) + torch.sigmoid(second)) / 2
    found = torch.sigmoid(Ensemble(engines, views(2, ()), "sigmoid")(window))
    torch.testing.assert_close(found.flatten(), expected)
    found = Ensemble(engines, views(2, ()), "none")(window)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(first, torch.tensor([0.0, 2.0]))  # what the networks gave is left alone


def test_certainty_does_not_overflow() -> None:
    sure = torch.tensor([400.0, -400.0]).reshape(1, 2, 1, 1, 1)
    for activation in ("softmax", "sigmoid"):
        found = Ensemble([lambda _: sure, lambda _: sure], views(2, ()), activation)(torch.zeros(1, 1, 1, 1, 1))
        assert torch.isfinite(found).all()
        assert found[0, 0] > found[0, 1]


def test_one_look_passes_the_scores_on_as_they_are() -> None:
    window = torch.randn(1, 1, 3, 4, 5)
    assert torch.equal(Ensemble([_ramp], views(1, ()), "softmax")(window), _ramp(window))


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
    plain = predictor.predict(image, keep_scores=True).scores
    flipped = meta_tensor(np.ascontiguousarray(blobs((16, 16, 16))[:, ::-1]), grid("plain"))
    other = predictor.predict(flipped, keep_scores=True).scores
    assert plain is not None
    assert other is not None
    expected = (torch.softmax(plain, 0) + torch.softmax(other, 0).flip(2)) / 2
    found = Predictor(bundle, mirror=("ap",)).predict(image, keep_scores=True)
    assert found.scores is not None
    torch.testing.assert_close(torch.softmax(found.scores, 0), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, torch.softmax(plain, 0), atol=1e-3)  # this network does mind mirrors
    looks = dict(predictor.predict_each(image, mirror=("ap",)))
    np.testing.assert_array_equal(looks[TTAView(0)], plain.max(dim=0)[1].numpy())
    np.testing.assert_array_equal(looks[TTAView(0, (1,))], other.flip(2).max(dim=0)[1].numpy())


def test_left_and_right_are_not_mixed_up(tmp_path: Path, thresholds: Path) -> None:
    check_mirror(("lr", "ap"), Bundle.open(thresholds))
    sided = Bundle.open(write_bundle(tmp_path / "sided"))
    outputs = sided.metadata["network_data_format"]["outputs"]["pred"]
    outputs["channel_def"] = {"0": "background", "1": "Kidney_L", "2": "vertebra_L1"}
    check_mirror(("ap", "is"), sided)
    with pytest.raises(UsageError, match="left and right of Kidney_L of"):
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
