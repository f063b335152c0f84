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
    error_net = ErrorNet(ErrorNetShape(3, 1, 2, layers))
    probabilities = torch.rand(1, 3, *shape).softmax(1)
    truth = local_errors(probabilities.max(1)[1], probabilities, error_net.shape.stride)
    assert error_net(torch.randn(1, 1, *shape), probabilities).shape == truth.shape


def test_errors_are_counted_where_they_are() -> None:
    labels, truth = torch.zeros(1, 10, 8, 8, dtype=torch.long), torch.zeros(1, 10, 8, 8, dtype=torch.long)
    labels[0, 1, 1, 1] = 1  # false in the first patch
    truth[0, 9, 5, 5] = 2  # missed in the last
    errors = local_errors(labels, one_hot(truth, 3).movedim(-1, 1), 4)
    assert errors.shape == (1, 4, 3, 2, 2)
    assert errors[0, 0, 0, 0, 0] == pytest.approx(1 / 64)
    assert errors[0, 3, 2, 1, 1] == pytest.approx(1 / 64)
    assert float(errors.sum()) == pytest.approx(2 / 64)


def test_a_new_error_net_believes_the_softmax() -> None:
    case = result(0)
    errors = ErrorNet(SMALL).eval().estimate(case.crop.image, case.crop.probabilities)
    p, mask = case.crop.probabilities[1], case.crop.probabilities[1] > 0.5
    expected = 2 * float(p[mask].sum()) / float(p[mask].sum() + mask.sum() + p[~mask].sum() - (1 - p[mask]).sum() * 0)
    assert float(errors.dice[0]) == pytest.approx(expected, abs=0.06)
    assert float(errors.false_positives[0]) == pytest.approx(float((1 - p[mask]).sum()), rel=0.15)


def test_fine_tuning_teaches_what_the_softmax_does_not_know() -> None:
    torch.manual_seed(0)
    cases = [result(seed, fault) for seed in range(12) for fault in (None, "shift", "cut")]
    fresh = [result(seed, fault) for seed in range(50, 56) for fault in (None, "shift", "cut")]
    error_net = ErrorNet(ErrorNetShape(2, 1, 8, 2))

    def error() -> float:
        error_net.eval()
        gaps = []
        for case in fresh:
            mask, truth = case.crop.probabilities.numpy().argmax(0) == 1, case.reference == 1
            dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
            gaps.append(abs(float(error_net.estimate(case.crop.image, case.crop.probabilities).dice[0]) - dice))
        return float(np.mean(gaps))

    before = error()
    fine_tune(error_net, cases, FineTuning(steps=100, batch=2))
    assert error() < 0.75 * before


def test_nothing_and_everything_give_finite_answers() -> None:
    image = torch.zeros(1, 12, 12, 12)
    for sure in (0, 1):
        probabilities = torch.zeros(2, 12, 12, 12)
        probabilities[sure] = 1.0
        errors = ErrorNet(SMALL).eval().estimate(image, probabilities)
        assert all(bool(value.isfinite().all()) for value in (errors.dice, errors.error_map, errors.false_negatives))


def test_it_comes_back_the_same(tmp_path: Path) -> None:
    error_net, case = ErrorNet(SMALL).eval(), result(1)
    torch.nn.init.normal_(error_net.trust)
    error_net.write(tmp_path / "critic.safetensors", "ab" * 32)
    again = ErrorNet.read(tmp_path / "critic.safetensors", ["ab" * 32])
    maps = [net.estimate(case.crop.image, case.crop.probabilities).error_map for net in (error_net, again)]
    assert torch.equal(*maps)


@pytest.mark.parametrize(
    "shape", [None, '{"channels": 9999}', '{"label_channels": 2, "channels": 4, "image_cjannels": 2}', "[]", "{"]
)
def test_what_is_no_error_net_is_refused(shape: str | None, tmp_path: Path) -> None:
    facts = {} if shape is None else {"format": "medseg-critic-1", "weights_sha256": "", "shape": shape}
    save_file({"a": torch.zeros(1)}, tmp_path / "critic.safetensors", facts)
    with pytest.raises(BundleError, match="not an error net"):
        ErrorNet.read(tmp_path / "critic.safetensors")
