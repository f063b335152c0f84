"""Results of many qualities for the benchmark of trust: the same every time, and no run is changed by them."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.bench_trust import Bench, made_alike
from benchmarks.trust_cases import KINDS, Run, disturbed, worse
from benchmarks.trust_scores import started
from medseg.bundle import Bundle
from medseg.training.judge import JUDGE_NAME
from medseg.trust.error_net import ErrorNetShape, FineTuning
from tests.trust.conftest import ball


class Bright(nn.Module):
    """A network that takes what is bright for the structure."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sharpen = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.cat([-image, image], 1) + 0.1 * self.sharpen(image)
        return found


def bench(place: Path, steps: int) -> Bench:
    run = Run(place / "fold0", 0)
    run.weights.parent.mkdir(parents=True, exist_ok=True)
    run.weights.touch()
    return Bench(place, place, (run,), place / "cache", replace(FineTuning(), steps=steps), 3, False, 1)


def test_a_cache_that_was_made_in_another_way_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        made_alike(bench(tmp_path, 4))
    with pytest.raises(SystemExit, match=r"'steps': 4, .* asked is {'steps': 5"):
        made_alike(bench(tmp_path, 5))
    bench(tmp_path, 4).runs[0].weights.write_bytes(b"others")
    with pytest.raises(SystemExit, match="give another CACHE"):
        made_alike(bench(tmp_path, 4))


def test_an_error_net_that_begins_at_random_is_as_large_as_the_judge(
    fitted: tuple[Bundle, Any], tmp_path: Path
) -> None:
    bundle, run = fitted[0], Run(tmp_path, 0)
    shape = ErrorNetShape(bundle.output_channels, bundle.input_channels, 8, 3, 1)
    judge = shape.discriminator()
    run.weights.parent.mkdir()
    definition = {"channels": 8, "layers": 3, "products": True}
    kept = {"made_by": {"definition": definition}, "weights": judge.state_dict()}
    torch.save(kept, run.weights.with_name(JUDGE_NAME))
    known, random = started(bundle, run, "judge"), started(bundle, run, "random")
    assert known.shape == random.shape == shape
    name, weight = next(iter(judge.named_parameters()))
    assert torch.equal(dict(known.discriminator.named_parameters())[name], weight)
    assert not torch.equal(dict(random.discriminator.named_parameters())[name], weight)


@pytest.fixture
def case() -> dict[str, Any]:
    image, mask = ball(0)
    return {"image": image, "reference": mask, "patient": "p", "name": "ball"}


@pytest.mark.parametrize("kind", [*KINDS[1:], "motion+1"])
def test_a_case_is_made_worse_in_the_same_way_every_time(kind: str, case: dict[str, Any]) -> None:
    network = Bright()
    _, own, _ = worse("own", case, np.empty(0, np.float32), network)
    first, again = (worse(kind, case, own, network) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[1].shape == own.shape
    assert np.abs(first[1] - own).max() > 1e-3 or np.abs(first[0] - case["image"]).max() > 1e-3


def test_another_draw_is_another_one(case: dict[str, Any]) -> None:
    one, other = (worse(kind, case, np.empty(0, np.float32), Bright())[0] for kind in ("motion", "motion+1"))
    assert np.abs(one - other).max() > 0.1


def test_a_poor_network_leaves_the_good_one_as_it_was() -> None:
    network, seed = Bright(), zlib.crc32(b"ball weak")
    before = network.sharpen.weight.detach().clone()
    poor = disturbed(network, np.random.default_rng(seed))
    torch.testing.assert_close(network.sharpen.weight.detach(), before)
    ratio = (next(iter(poor.parameters())) / before).detach()
    assert ratio.mean() == pytest.approx(1.0, abs=0.25)
    assert 0.05 < float(ratio.std()) < 0.8
    torch.testing.assert_close(dict(poor.named_parameters())["sharpen.bias"], network.sharpen.bias)
