from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from medseg.trust.gradient_boosting import BoostedTrees, Tree, fit_boosted_trees


def cases(n: int = 200) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    inputs = generator.random((n, 3))
    return inputs, np.where(inputs[:, 0] > 0.5, 0.9, 0.3) + 0.1 * inputs[:, 1]


def test_the_plain_trees_answer_the_mean_of_what_scikit_learn_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.trust.gradient_boosting._SEEDS", 3)
    inputs, target = cases()
    how = {"loss": "huber", "n_estimators": 200, "max_depth": 4, "learning_rate": 0.08, "subsample": 0.5}
    how |= {"max_features": 0.3, "min_samples_leaf": 5}
    peers = [GradientBoostingRegressor(**how, random_state=seed).fit(inputs, target) for seed in range(3)]
    fresh = np.random.default_rng(1).random((100, 3))
    mean = np.mean([peer.predict(fresh) for peer in peers], axis=0)
    fitted = fit_boosted_trees(inputs, target)
    np.testing.assert_allclose(fitted.predict(fresh), mean, atol=1e-5)
    assert fitted == fit_boosted_trees(inputs, target)


def test_trees_learn_what_depends_on_the_inputs() -> None:
    inputs, target = cases()
    fresh, expected = cases(50)
    assert np.abs(fit_boosted_trees(inputs, target).predict(fresh) - expected).mean() < 0.02


def test_json_keeps_every_digit() -> None:
    inputs, target = cases(60)
    trees = fit_boosted_trees(inputs, target)
    again = BoostedTrees.from_json(json.loads(json.dumps(asdict(trees))))
    assert again == trees
    assert np.array_equal(again.predict(inputs), trees.predict(inputs))


@pytest.mark.parametrize(
    "parts",
    [
        ((0,), (0.5,), (0,), (0,), (1.0,)),  # its own child: would walk for ever
        ((0, -1), (0.5, 0.0), (1, 0), (2, 0), (0.0, 1.0)),  # a child that does not exist
        ((), (), (), (), ()),
        ((-1,), (0.0,), (-1,), (-1,), (1.0, 2.0)),
    ],
)
def test_trees_that_are_none_are_refused(parts: Any) -> None:
    with pytest.raises(ValueError, match="tree"):
        Tree(*parts)
