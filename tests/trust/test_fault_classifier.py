from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medseg.errors import BundleError
from medseg.results.verdict import USUAL
from medseg.trust.fault_classifier import FaultClassifier, fit_fault_classifier

SHA = "ab" * 32
CENTRES = {USUAL: (4, 0, 0, 0, 0, 0), "motion": (0, 4, 0, 0, 0, 0), "noise": (0, 0, 4, 0, 0, 0)}


def cases(n: int = 20, names: tuple[str, ...] = (USUAL, "motion", "noise")) -> tuple[Any, list[str], list[str]]:
    """Twenty patients with a case of each class, in six features."""
    rng = np.random.default_rng(0)
    classes = [name for name in names for _ in range(n)]
    features = rng.standard_normal((len(classes), 6)) + np.array([CENTRES[name] for name in classes])
    return features, classes, [f"p{i}" for _ in names for i in range(n)]


def fitted(*names: str) -> FaultClassifier:
    found = fit_fault_classifier(*cases(names=names or tuple(CENTRES)), SHA)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("names", [(USUAL, "motion"), tuple(CENTRES)])
def test_it_recognises_what_can_be_told_apart(names: tuple[str, ...]) -> None:
    classifier = fitted(*names)
    for name in names:
        found = classifier.probabilities(np.array(CENTRES[name]))
        assert classifier.most_probable(np.array(CENTRES[name])) == (name, found[name])
        assert sum(found.values()) == pytest.approx(1.0)
        assert classifier.recall[name] > 0.85


@pytest.mark.parametrize("names", [(USUAL, "motion"), tuple(CENTRES)])
def test_the_probabilities_are_those_of_scikit_learn(names: tuple[str, ...]) -> None:
    features, classes, _ = cases(names=names)
    scaler = StandardScaler().fit(features)
    peer = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000).fit(scaler.transform(features), classes)
    classifier = fitted(*names)
    for row in features[::7]:
        expected = peer.predict_proba(scaler.transform(row[None]))[0]
        assert list(classifier.probabilities(row)) == peer.classes_.tolist()
        np.testing.assert_allclose(list(classifier.probabilities(row).values()), expected, atol=1e-3)


def test_classes_that_cannot_be_told_apart_are_recognised_no_better_than_by_chance() -> None:
    features, classes, patients = cases()
    found = fit_fault_classifier(np.random.default_rng(1).standard_normal(features.shape), classes, patients, SHA)
    assert found is not None
    assert np.mean(list(found[0].recall.values())) < 0.55


def test_what_a_calibration_learns_from_was_told_by_one_that_had_not_seen_the_patient() -> None:
    _, classes, patients = cases()
    noise = np.random.default_rng(1).standard_normal((len(classes), 300))  # enough to know every case by heart
    found = fit_fault_classifier(noise, classes, patients, SHA)
    assert found is not None
    classifier, told = found
    by_heart = [classifier.probabilities(row)[name] for row, name in zip(noise, classes, strict=True)]
    honest = [row[f"kind-{name}"] for row, name in zip(told, classes, strict=True)]
    assert np.mean(by_heart) > 0.6
    assert np.mean(honest) == pytest.approx(1 / 3, abs=0.1)


def test_cases_without_a_class_are_told_of_and_not_learnt_from() -> None:
    features, classes, patients = cases()
    shifted = np.concatenate([features, features[:20] + 1.0])
    found = fit_fault_classifier(shifted, [*classes, *[None] * 20], [*patients, *patients[:20]], SHA)
    assert found is not None
    assert found[0] == fitted()
    assert all(set(row) == found[0].feature_names and sum(row.values()) == pytest.approx(1) for row in found[1])
    assert len(found[1]) == 80


def test_classes_of_few_patients_are_left_out() -> None:
    features, classes, patients = cases()
    few = [i for i, name in enumerate(classes) if name != "noise" or i % 20 < 4]
    found = fit_fault_classifier(features[few], [classes[i] for i in few], [patients[i] for i in few], SHA)
    assert found is not None
    assert set(found[0].classes) == {USUAL, "motion"}
    assert fit_fault_classifier(features[:20], classes[:20], patients[:20], SHA) is None


def test_a_class_whose_patients_are_all_in_one_part_cannot_be_told_by_others() -> None:
    patients = [*"abcd" * 20, "e", *"vwxyz"]  # the four with many results fill four parts, the others are in the fifth
    classes = [USUAL] * 81 + ["noise"] * 5
    features = np.random.default_rng(0).standard_normal((len(classes), 6))
    assert fit_fault_classifier(features, classes, patients, SHA) is None
    spread = [*patients[:-5], *"abcde"]
    assert fit_fault_classifier(features, classes, spread, SHA) is not None


def test_a_feature_that_is_not_finite_tells_nothing() -> None:
    found = fitted().probabilities(np.array([np.nan, 0, 0, 0, 0, 0]))
    assert set(found.values()) == {1 / 3}


def test_it_comes_back_from_json_the_same_and_belongs_to_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "case_class.json"
    classifier = fitted()
    classifier.write(path)
    assert FaultClassifier.read(path, [SHA]) == classifier
    with pytest.raises(BundleError, match="belongs to weights"):
        FaultClassifier.read(path, ["cd" * 32])


@pytest.mark.parametrize(
    "change", [{"format": "other"}, {"classes": ["a"]}, {"mean": []}, {"weight": [[1.0]]}, {"scale": [0.0] * 6}]
)
def test_what_is_no_fault_classifier_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "case_class.json"
    fitted().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match="not a fault classifier"):
        FaultClassifier.read(path, [SHA])
