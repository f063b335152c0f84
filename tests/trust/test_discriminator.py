"""A discriminator is believed only if it tells the true segmentation from wrong ones, and only with these weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.errors import BundleError
from medseg.files import sha256_file
from medseg.networks import ConditionalPatchDiscriminator
from medseg.networks.discriminator import Judgement
from medseg.results.verdict import DiscriminatorVerdict, RealShare
from medseg.sharing.verify import verify
from medseg.trust.crop import Crop
from medseg.trust.discriminator import (
    DiscriminatorJudge,
    Judging,
    accept_discriminator,
    box_round,
    mean_logit,
    pair_logits,
    read_discriminator,
    real_shares,
)
from medseg.trust.discriminator_acceptance import (
    ACCEPTANCE_NAME,
    DISCRIMINATOR_NAME,
    DiscriminatorAcceptance,
    Proportion,
    discriminator_state,
)
from medseg.trust.error_net import ErrorNet
from medseg.trust.fit import start_error_net
from tests.training.bundles import FLAGSHIP

JUDGING = Judging((8, 8, 8), classes=3)
FAILED = {"sarcoma_mrpet_segmentation"}
"""Bundles whose judge did not learn to judge; they give no verdict from it."""


class Judge(nn.Module):
    """Says how far the segmentation is from the image, which is the label map: a perfect judge; or another function."""

    def __init__(self, better: bool = True, bias: float = 0.05) -> None:
        super().__init__()
        self.sign, self.bias = nn.Parameter(torch.tensor(1.0 if better else -1.0)), bias

    def forward(self, image: Tensor, segmentation: Tensor) -> Judgement:
        labels = segmentation.argmax(1, keepdim=True)
        wrong = (labels != image.round()).float().mean()
        return Judgement([(self.bias - self.sign * wrong).reshape(1, 1, 1, 1, 1)], [])


def _cases(count: int = 4, size: int = 20) -> list[dict[str, Tensor]]:
    cases = []
    for number in range(count):
        label = torch.zeros(1, size, size, size)
        label[0, 4 : 9 + number % 2, 5:12, 5:12], label[0, 9 + number % 2 : 14, 5:12, 5:12] = 1, 2
        cases.append({"image": label.clone(), "label": label})
    return cases


def test_a_judge_that_knows_is_accepted_and_one_that_prefers_the_wrong_is_not() -> None:
    good = accept_discriminator(Judge(), _cases(), JUDGING, held_out=True)
    assert good.accepted, good.shortcomings
    assert set(good.above) == {"shifted", "eroded", "dilated", "swapped", "warped", "another's"}
    assert all((one.count, one.of) == (4, 4) for one in good.above.values())
    assert good.left_out == {}
    bad = accept_discriminator(Judge(better=False), _cases(), JUDGING, held_out=True)
    assert not bad.accepted
    assert any("more real than the eroded one in 0% (0 of 4" in text for text in bad.shortcomings)
    shy = accept_discriminator(Judge(bias=-0.1), _cases(), JUDGING, held_out=True)
    assert shy.shortcomings == ["the true segmentation is judged real in 0% (0 of 4, 0%-49%), expected 80%"]
    squares = replace(JUDGING, threshold=0.5)
    assert not accept_discriminator(Judge(bias=0.3), _cases(), squares, held_out=True).accepted
    seen = accept_discriminator(Judge(), _cases(), JUDGING, held_out=False)
    assert seen.shortcomings == ["it was not tried on held-out cases"]
    assert accept_discriminator(Judge(), _cases(), JUDGING, held_out=True) == good, "the same wrong segmentations again"


def test_what_a_bundle_cannot_have_is_left_out_and_named() -> None:
    one = [{"image": (case["label"] > 0).float(), "label": (case["label"] > 0).float()} for case in _cases(1)]
    found = accept_discriminator(Judge(), one, replace(JUDGING, classes=2), held_out=True)
    assert found.accepted
    assert found.left_out == {"swapped": "there is one structure", "another's": "there is no other segmentation"}
    nothing = [*_cases(3), {"image": torch.zeros(1, 20, 20, 20), "label": torch.zeros(1, 20, 20, 20)}]
    assert accept_discriminator(Judge(), nothing, JUDGING, held_out=True).cases == 3
    empty = accept_discriminator(Judge(), nothing[3:], JUDGING, held_out=True)
    assert not empty.accepted, "no case, no judge"


def test_regions_are_judged_too() -> None:
    class Overlap(Judge):
        def forward(self, image: Tensor, segmentation: Tensor) -> Judgement:
            wrong = (segmentation != image).float().mean()
            return Judgement([(0.01 - wrong).reshape(1, 1, 1, 1, 1)], [])

    nested = torch.zeros(2, 20, 20, 20)
    nested[0, 4:15, 4:15, 4:15], nested[1, 7:11, 7:11, 7:11] = 1, 1
    cases = [{"image": nested, "label": nested}] * 2
    found = accept_discriminator(Overlap(), cases, Judging((8, 8, 8), 2, regions=True), held_out=True)
    assert found.accepted, found.shortcomings
    assert found.left_out == {"another's": "there is no other segmentation"}, "both are the same"


def test_windows_are_as_large_as_the_patches_and_cover_the_box() -> None:
    seen: list[tuple[int, ...]] = []

    class Shape(Judge):
        def forward(self, image: Tensor, segmentation: Tensor) -> Judgement:
            seen.append(tuple(image.shape[2:]))
            assert torch.equal(segmentation.sum(1), torch.ones_like(segmentation[:, 0])), "padding is background"
            return Judgement([segmentation[:, 1:2], segmentation[:, 1:2, ::2] + 1.0], [])

    image, label = torch.rand(1, 12, 6, 8), torch.zeros(1, 12, 6, 8)
    label[0, 0] = 1
    scales = pair_logits(Shape(), image, JUDGING.segmentation(label), JUDGING)
    assert seen == [(8, 8, 8)] * 2
    assert [len(scale) for scale in scales] == [2 * 512, 2 * 256]
    assert mean_logit(Shape(), image, torch.zeros(3, 12, 6, 8), JUDGING) == pytest.approx(0.5)
    mask = torch.zeros(30, 30, 5)
    mask[2, 20:25, 3] = 1
    assert box_round(mask, (16, 8, 8)) == (slice(0, 16), slice(16, 29), slice(0, 5))


class Patches(nn.Module):
    """Judges cubes of four voxels: real where the image is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, segmentation: Tensor) -> Judgement:
        return Judgement([nn.functional.avg_pool3d(image * self.scale, 4)], [])


def test_a_structures_share_is_that_of_the_patches_that_it_meets() -> None:
    image, label = -torch.ones(1, 16, 8, 8), torch.zeros(1, 16, 8, 8)
    image[0, 4:12] = 1.0  # the second and third of four slabs of patches, in two windows
    label[0, 0:8, 0:4, 0:4], label[0, 9:10, 0:8, 0:8] = 1, 2
    assert real_shares(Patches(), image, JUDGING.segmentation(label), JUDGING) == [(0.5, 2), (1.0, 4)]
    strict = replace(JUDGING, threshold=1.0)
    assert real_shares(Patches(), image, JUDGING.segmentation(label), strict) == [(0.0, 2), (0.0, 4)]
    assert real_shares(Patches(), image, JUDGING.segmentation(label * (label > 1)), JUDGING)[0] == (None, 0)


def test_a_judge_looks_round_the_structures_of_the_whole_image() -> None:
    """The crop alone may be smaller than a window."""
    image, box = -torch.ones(1, 40, 40, 40), torch.zeros(3, 6, 6, 6)
    image[0, 20:] = 1.0
    box[0] = 1.0
    box[0, 2:4, 2:4, 2:4], box[1, 2:4, 2:4, 2:4] = 0.0, 1.0
    judge = DiscriminatorJudge(Patches(), JUDGING, {1: "front", 2: "back"})

    def shares(start: int) -> list[float | None]:
        found = judge.judge(image, Crop(image[:, :6, :6, :6], box, (start, 4, 4)))
        assert [one.name for one in found.structures] == ["front", "back"]
        assert found.structures[1] == RealShare(2, "back", None, 0)
        return [found.structures[0].share]

    assert (shares(2), shares(30)) == ([0.0], [1.0])
    empty = judge.judge(image, Crop(image[:, :6, :6, :6], torch.eye(3)[0].view(3, 1, 1, 1).expand(3, 6, 6, 6)))
    assert (empty.decision, empty.structures[0].share) == ("reject", None)


def test_the_decision_follows_from_the_worst_structure() -> None:
    def decided(*shares: float | None) -> str:
        return DiscriminatorVerdict(tuple(RealShare(n, str(n), share, 4) for n, share in enumerate(shares))).decision

    assert [decided(0.5, 1.0), decided(0.9, None), decided(0.9, 0.49), decided(None), decided()] == [
        "accept",
        "reject",
        "reject",
        "reject",
        "reject",
    ]
    verdict = DiscriminatorVerdict((RealShare(1, "a", 0.75, 4), RealShare(2, "b", None, 0)))
    content = json.loads(json.dumps({**verdict.to_json(), "verdict": "reject"}))
    assert DiscriminatorVerdict.from_json(content) == verdict, "whatever it says of itself"


def test_only_an_accepted_discriminator_is_opened_as_a_judge(bundle: Bundle) -> None:
    judge = DiscriminatorJudge.open(bundle)
    assert judge is not None
    assert (judge.judging, judge.names) == (JUDGING, bundle.labels)
    _record(bundle, Judge(better=False))
    assert DiscriminatorJudge.open(bundle) is None
    assert discriminator_state(bundle).as_json().keys() == {"state", "message"}


def test_proportions_have_wilsons_interval() -> None:
    found = Proportion.counted(50, 52)
    assert (found.low, found.high) == (0.8702, 0.9894)
    assert str(found) == "96% (50 of 52, 87%-99%)"
    assert Proportion.counted(0, 0).share == 0.0


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The flagship with a discriminator and a record of it."""
    folder = tmp_path / FLAGSHIP.name
    shutil.copytree(FLAGSHIP, folder, ignore=shutil.ignore_patterns("runs", "discriminator*"))
    bundle, network = Bundle.open(folder), ConditionalPatchDiscriminator(3, channels=4)
    save_file(network.state_dict(), folder / DISCRIMINATOR_NAME)
    definition = {"_target_": "medseg.networks.ConditionalPatchDiscriminator", "label_channels": 3, "channels": 4}
    (folder / "trust" / "discriminator.json").write_text(json.dumps(definition))
    _record(bundle, Judge())
    return bundle


def _record(bundle: Bundle, judge: nn.Module) -> DiscriminatorAcceptance:
    sha256 = sha256_file(bundle.path / DISCRIMINATOR_NAME)
    found = accept_discriminator(judge, _cases(30), JUDGING, held_out=True, weights_sha256=sha256)
    found.write(bundle.path / ACCEPTANCE_NAME)
    return found


def _found(bundle: Bundle) -> list[tuple[str, str]]:
    return [(one.severity, one.what) for one in verify(bundle.path) if "discriminator" in one.file]


def test_the_record_comes_back_and_its_verdict_follows_from_its_counts(bundle: Bundle) -> None:
    path = bundle.path / ACCEPTANCE_NAME
    state = discriminator_state(bundle)
    assert (state.state, state.acceptance) == ("accepted", _record(bundle, Judge()))
    assert "above shifted 100%, eroded 100%" in state.message
    assert _found(bundle) == []
    content = json.loads(path.read_text())
    assert content["accepted"] is True
    assert content["required"] == {"above": 0.95, "real": 0.8}
    content["above"]["eroded"]["count"] = 0
    path.write_text(json.dumps(content))
    assert discriminator_state(bundle).state == "failed", "whatever it says of itself"
    path.write_text(json.dumps({**content, "above": {}}))
    assert "it was tried on no wrong segmentation" in discriminator_state(bundle).message


def test_a_discriminator_that_cannot_judge_says_so(bundle: Bundle) -> None:
    _record(bundle, Judge(better=False))
    state = discriminator_state(bundle)
    assert state.state == "failed"
    assert "no verdict comes from the discriminator: the true segmentation" in state.message
    [(severity, what)] = _found(bundle)
    assert (severity, what) == ("warn", state.message)
    (bundle.path / ACCEPTANCE_NAME).unlink()
    assert discriminator_state(bundle).state == "untested"
    assert _found(bundle) == [("warn", "no verdict comes from the discriminator: it was not tried on held-out cases")]
    (bundle.path / DISCRIMINATOR_NAME).unlink()
    assert discriminator_state(bundle).state == "none"
    assert _found(bundle) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "0" * 64}, "belongs to weights 000000000000"),
        ({"format": "something-else"}, "is not a discriminator's acceptance"),
        ({"patch": [8]}, "the patch is (8,), expected 2 or 3 sides"),
        ({"patch": [4096, 4096, 4096]}, "the patch is (4096, 4096, 4096), expected 2 or 3 sides"),
        ({"real": {"count": 5, "of": 4}}, "5 of 4 is no proportion"),
        ({"above": {"eroded": {"count": "all", "of": 4}}}, "above.eroded.count is a str, expected a whole number"),
    ],
)
def test_a_record_that_cannot_be_used_blocks(bundle: Bundle, change: dict[str, Any], message: str) -> None:
    path = bundle.path / ACCEPTANCE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    state = discriminator_state(bundle)
    assert state.state == "damaged"
    assert message in state.message
    assert "medseg train --publish" in state.message
    [(severity, what)] = _found(bundle)
    assert severity == "block"
    assert message in what


def test_the_discriminator_of_a_bundle_is_read_as_data(bundle: Bundle) -> None:
    judge = read_discriminator(bundle)
    assert not judge.training
    path = bundle.path / "trust" / "discriminator.json"
    named = {"_target_": "x.ConditionalPatchDiscriminator", "label_channels": 3}
    sized = {"label_channels": 9}, {"channels": 1 << 40}, {"scales": 1 << 40}, {"label_channels": 1 << 35}
    for content in ({"_target_": "os.system"}, [], *({**named, **one} for one in sized)):
        path.write_text(json.dumps(content))
        with pytest.raises(BundleError, match="no discriminator of segmentations that can be read"):
            read_discriminator(bundle)


def test_an_error_net_begins_as_the_discriminator_with_all_that_it_sees(bundle: Bundle) -> None:
    network = ConditionalPatchDiscriminator(3, channels=4, products=True)
    save_file(network.state_dict(), bundle.path / DISCRIMINATOR_NAME)
    stated = {"_target_": "x.ConditionalPatchDiscriminator", "label_channels": 3, "channels": 4, "products": True}
    (bundle.path / "trust" / "discriminator.json").write_text(json.dumps(stated))
    begun = start_error_net(bundle)
    torch.testing.assert_close(begun.discriminator.state_dict(), network.state_dict())
    begun.write(bundle.path / "trust" / "critic.safetensors", "0" * 64)
    assert ErrorNet.read(bundle.path / "trust" / "critic.safetensors").shape == begun.shape


@pytest.mark.parametrize("name", sorted(path.name for path in FLAGSHIP.parent.iterdir()))
def test_every_shipped_discriminator_was_tried_and_one_that_failed_is_silent(name: str) -> None:
    bundle = Bundle.open(FLAGSHIP.parent / name)
    state = discriminator_state(bundle)
    has = (bundle.path / DISCRIMINATOR_NAME).is_file() and bool(bundle.labels)
    assert state.state == ("none" if not has else "failed" if name in FAILED else "accepted"), state.message
    assert (DiscriminatorJudge.open(bundle) is not None) == (state.state == "accepted")
