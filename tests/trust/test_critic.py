from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn.functional import one_hot

from medseg.errors import BundleError
from medseg.trust.error_net import ErrorNet, ErrorNetShape, FineTuning, fine_tune, local_errors
from tests.trust.conftest import result

SMALL = ErrorNetShape(2, 1, 4, 2)


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(9, 22)] * 3), st.integers(1, 2))
def test_patches_of_the_discriminator_and_of_the_errors_are_the_same(shape: tuple[int, int, int], layers: int) -> None:
    critic = ErrorNet(ErrorNetShape(3, 1, 2, layers))
    probabilities = torch.rand(1, 3, *shape).softmax(1)
    wanted = local_errors(probabilities.max(1)[1], probabilities, critic.shape.stride)
    assert critic(torch.randn(1, 1, *shape), probabilities).shape == wanted.shape


def test_errors_are_counted_where_they_are() -> None:
    labels, wanted = torch.zeros(1, 10, 8, 8, dtype=torch.long), torch.zeros(1, 10, 8, 8, dtype=torch.long)
    labels[0, 1, 1, 1] = 1  # invented in the first patch
    wanted[0, 9, 5, 5] = 2  # missed in the last
    errors = local_errors(labels, one_hot(wanted, 3).movedim(-1, 1), 4)
    assert errors.shape == (1, 4, 3, 2, 2)
    assert errors[0, 0, 0, 0, 0] == pytest.approx(1 / 64)
    assert errors[0, 3, 2, 1, 1] == pytest.approx(1 / 64)
    assert float(errors.sum()) == pytest.approx(2 / 64)


def test_an_untaught_critic_believes_the_softmax() -> None:
    case = result(0)
    errors = ErrorNet(SMALL).eval().judge(case.image, case.probabilities)
    p, mask = case.probabilities[1], case.probabilities[1] > 0.5
    expected = 2 * float(p[mask].sum()) / float(p[mask].sum() + mask.sum() + p[~mask].sum() - (1 - p[mask]).sum() * 0)
    assert float(errors.dice[0]) == pytest.approx(expected, abs=0.06)
    assert float(errors.invented[0]) == pytest.approx(float((1 - p[mask]).sum()), rel=0.15)


def test_finishing_teaches_what_the_softmax_does_not_know() -> None:
    torch.manual_seed(0)
    cases = [result(seed, kind) for seed in range(12) for kind in ("own", "shift", "cut")]
    fresh = [result(seed, kind) for seed in range(50, 56) for kind in ("own", "shift", "cut")]
    critic = ErrorNet(ErrorNetShape(2, 1, 8, 2))

    def error() -> float:
        critic.eval()
        gaps = []
        for case in fresh:
            mask, truth = case.probabilities.numpy().argmax(0) == 1, case.reference == 1
            dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
            gaps.append(abs(float(critic.judge(case.image, case.probabilities).dice[0]) - dice))
        return float(np.mean(gaps))

    before = error()
    fine_tune(critic, cases, FineTuning(steps=100, batch=2))
    assert error() < 0.75 * before


def test_nothing_and_everything_give_finite_answers() -> None:
    image = torch.zeros(1, 12, 12, 12)
    for sure in (0, 1):
        probabilities = torch.zeros(2, 12, 12, 12)
        probabilities[sure] = 1.0
        errors = ErrorNet(SMALL).eval().judge(image, probabilities)
        assert all(bool(value.isfinite().all()) for value in (errors.dice, errors.doubt, errors.missed))


def test_it_comes_back_the_same(tmp_path: Path) -> None:
    critic, case = ErrorNet(SMALL).eval(), result(1)
    torch.nn.init.normal_(critic.trust)
    critic.write(tmp_path / "critic.safetensors", "ab" * 32)
    again, sha256 = ErrorNet.read(tmp_path / "critic.safetensors")
    assert sha256 == "ab" * 32
    assert torch.equal(
        again.judge(case.image, case.probabilities).doubt, critic.judge(case.image, case.probabilities).doubt
    )


@pytest.mark.parametrize(
    "facts", [{}, {"format": "medseg-critic-1", "weights_sha256": "", "shape": '{"channels": 9999}'}]
)
def test_what_is_no_critic_is_refused(facts: dict[str, str], tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "critic.safetensors", facts)
    with pytest.raises(BundleError, match="not a critic"):
        ErrorNet.read(tmp_path / "critic.safetensors")
