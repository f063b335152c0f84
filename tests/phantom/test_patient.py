from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import UsageError
from medseg.phantom import Phantom, make_patient

_SMALL = (32, 32, 20)


def test_the_same_seed_gives_the_same_patient_and_another_seed_another() -> None:
    one, again, other = (make_patient(seed, shape=_SMALL) for seed in (1, 1, 2))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.label, again.label)
    assert not np.array_equal(one.label, other.label)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_ct_numbers_are_what_a_radiologist_expects(seed: int) -> None:
    patient = make_patient(seed, "ct", noise=0.0)
    means = {
        name: patient.image[patient.label == value].mean()
        for value, name in patient.labels.items()
        if (patient.label == value).any()
    }
    assert 60 < means["liver"] < 160
    assert 85 < means["spleen"] < 185
    assert 140 < means["right_kidney"] < 250
    assert patient.image[0, 0].mean() < -900, "outside the body is air"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["ct", "mr"]))
def test_organs_lie_on_their_own_side(seed: int, kind: str) -> None:
    patient = make_patient(seed, kind)  # type: ignore[arg-type]
    centres = {}
    for value, name in patient.labels.items():
        if name != "lesion":
            index = np.argwhere(patient.label == value).mean(axis=0)
            centres[name] = patient.affine[:3, :3] @ index + patient.affine[:3, 3]
    assert centres["liver"][0] > 0 > centres["spleen"][0], "x grows towards the patient's right → negative is left"
    assert centres["right_kidney"][0] > centres["left_kidney"][0]


def test_one_seed_is_one_anatomy_on_any_grid() -> None:
    coarse = make_patient(5, shape=(32, 32, 20), spacing_mm=(10, 10, 10))
    fine = make_patient(5, shape=(64, 64, 40), spacing_mm=(5, 5, 5))
    for value in (1, 2):
        volumes = [(p.label == value).sum() * p.geometry.voxel_volume_mm3 for p in (coarse, fine)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.1)


def test_some_patients_have_a_lesion_and_it_can_be_asked_for() -> None:
    found = [make_patient(seed, shape=_SMALL).has_lesion for seed in range(30)]
    assert 8 < sum(found) < 27
    assert make_patient(3, shape=_SMALL, lesion=True).has_lesion
    assert not make_patient(3, shape=_SMALL, lesion=False).has_lesion


def test_fourteen_structures_are_all_there() -> None:
    patient = make_patient(1, structures=14, lesion=True, shape=(96, 96, 80), spacing_mm=(3.5, 3.5, 4.5))
    assert set(np.unique(patient.label)) == set(range(15))
    assert len(patient.labels) == 14


def test_mr_is_oblique_and_ct_is_straight() -> None:
    straight = make_patient(4, "ct", shape=_SMALL).geometry.directions
    oblique = make_patient(4, "mr", shape=_SMALL).geometry.directions
    assert np.isclose(np.abs(straight).max(axis=0), 1).all()
    assert (np.abs(oblique).max(axis=0) < 0.9999).all()


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"kind": "us"}, {"shape": (0, 4, 4)}, {"structures": 15}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_patient(**{"seed": 1, "shape": _SMALL, **wrong})  # type: ignore[arg-type]


def _inner_liver(patient: Phantom) -> NDArray[np.float64]:
    inside = ndimage.binary_erosion(patient.label == 1, iterations=2)
    return np.asarray(patient.image[inside], dtype=np.float64)


def test_noise_has_the_stated_size() -> None:
    noisy, clean = _inner_liver(make_patient(2, "ct")), _inner_liver(make_patient(2, "ct", noise=0.0))
    assert (noisy - clean).std() == pytest.approx(16.0, rel=0.1)
    assert abs((noisy - clean).mean()) < 1.5


def test_mr_has_a_bias_field_and_ct_has_none() -> None:
    mr, ct = _inner_liver(make_patient(2, "mr", noise=0.0)), _inner_liver(make_patient(2, "ct", noise=0.0))
    assert mr.std() / mr.mean() > 0.02
    assert ct.std() < 2.0


def test_another_grid_keeps_the_patient_in_place() -> None:
    patient = make_patient(7, "mr", lesion=True, structures=14)
    moved = patient.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ [4, 3, 2]
    shifted = patient.on_grid((56, 56, 36), moved)
    assert (shifted.label != patient.label[4:60, 3:59, 2:38]).mean() < 1e-3
    assert shifted.labels == patient.labels


def test_slabs_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (96, 96, 96)
    whole = make_patient(3, shape=shape)
    monkeypatch.setattr("medseg.phantom.patient._SLAB_VOXELS", 96 * 96 * 4)
    tracemalloc.start()
    slabs = make_patient(3, shape=shape)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (whole.image != slabs.image).mean() < 1e-3, "float32 rounding at a surface, nothing more"
    assert (whole.label != slabs.label).mean() < 1e-4
    assert peak_bytes < 3 * 96**3 + 4_000_000, "the result is three bytes a voxel"
