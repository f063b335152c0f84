"""Splits: by patient, balanced, reproducible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import UsageError
from medseg.manifests import Manifest, patient_of
from medseg.manifests.split import assign_folds, stratify


def listed(patients: list[int]) -> Manifest:
    items = [{"image": f"{index}.nii", "patient_id": f"p{patient}"} for index, patient in enumerate(patients)]
    return Manifest({"training": items}, Path())


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.integers(0, 30), min_size=12, max_size=60).filter(lambda found: len(set(found)) >= 7),
    folds=st.integers(2, 5),
    seed=st.integers(0, 2**32),
    test=st.sampled_from([0.0, 0.2]),
)
def test_no_patient_is_on_two_sides_and_no_case_is_lost(
    patients: list[int], folds: int, seed: int, test: float
) -> None:
    made = listed(patients).split(folds, seed, test, stratify=False)
    parts: dict[str, set[object]] = {}
    for section, _, item in made.items():
        parts.setdefault(patient_of(item), set()).add(item.get("fold", section))
    assert all(len(part) == 1 for part in parts.values())
    assert sorted(item["image"] for _, _, item in made.items()) == sorted(f"{i}.nii" for i in range(len(patients)))
    assert {item["fold"] for item in made.training} <= set(range(folds))
    assert bool(made.test) == (test > 0)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_split_depends_on_seed_and_items_alone(seed: int) -> None:
    manifest = listed(list(range(20)))
    turned = manifest.with_content(training=manifest.training[::-1])
    first = {item["image"]: item["fold"] for item in manifest.split(4, seed, stratify=False).training}
    second = {item["image"]: item["fold"] for item in turned.split(4, seed, stratify=False).training}
    assert first == second
    assert Counter(first.values()) == {0: 5, 1: 5, 2: 5, 3: 5}


def test_another_seed_gives_another_split() -> None:
    manifest = listed(list(range(20)))
    folds = {tuple(item["fold"] for item in manifest.split(4, seed, stratify=False).training) for seed in range(5)}
    assert len(folds) == 5


def test_rare_labels_are_shared_out_evenly() -> None:
    """Ten of 50 cases have a lesion: each of five folds must get two of them, and every volume its share."""
    volumes_ml = [{1: float(case)} | ({2: 1.0 + case} if case % 5 == 0 else {}) for case in range(50)]
    folds = assign_folds([{"image": f"{case:02d}"} for case in range(50)], 5, seed=3, volumes_ml=volumes_ml)
    assert Counter(folds[::5]) == dict.fromkeys(range(5), 2)
    assert set(Counter(folds).values()) == {10}
    features = stratify(volumes_ml)
    for third in range(3):
        cases = [folds[case] for case in range(50) if features[case][1 + third]]
        assert max(Counter(cases).values()) - min(Counter(cases).values()) <= 1


def test_thirds_by_hand() -> None:
    table = stratify([{1: 1.0}, {1: 2.0}, {1: 3.0, 4: 9.0}, {}])
    np.testing.assert_array_equal(table[:, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(table[:, 1:4], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(table[:, 4:].sum(axis=1), [0, 0, 1, 0])


def test_labels_on_disk_decide(manifest: Manifest) -> None:
    made = manifest.split(2, seed=1)
    with_dot = Counter(item["fold"] for item in made.training if int(item["image"][-10:-8]) % 2)
    assert with_dot == {0: 3, 1: 3}
    assert made.content["split"]["by"] == "patient_id"


def test_the_test_set_is_held_out_and_can_be_drawn_again(manifest: Manifest) -> None:
    made = manifest.split(3, seed=1, test_fraction=0.25)
    assert (len(made.training), len(made.test)) == (9, 3)
    assert all("fold" not in item for item in made.test)
    again = made.split(3, seed=2, test_fraction=0.25)
    assert (len(again.training), len(again.test)) == (9, 3)
    kept = made.split(3, seed=2)
    assert kept.test == made.test


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(UsageError, match="2 patients for 3 folds"):
        listed([1, 1, 2, 2]).split(3, 0, stratify=False)
    with pytest.raises(UsageError, match="share in"):
        listed([1, 2]).split(2, 0, 1.0, stratify=False)


def test_a_missing_label_is_named(manifest: Manifest) -> None:
    manifest.files(manifest.training[0], "label")[0].unlink()
    with pytest.raises(UsageError, match="cannot find the label"):
        manifest.split(3, seed=0)
