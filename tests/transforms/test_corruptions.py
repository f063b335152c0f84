"""Grain, missing slices and latents: what they change, what they leave, and that draws can be replayed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Compose
from torch import Tensor

from medseg.transforms import GrainDraw, RandGraind, RandLatentd, RandMissingSlicesd


def ramp(shape: tuple[int, ...] = (1, 12, 10, 8)) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape) / 100.0 - 3.0


def test_grain_grows_with_the_signal() -> None:
    volume = torch.cat([torch.zeros(1, 20, 20, 10), torch.ones(1, 20, 20, 10), 4.0 * torch.ones(1, 20, 20, 10)], dim=3)
    transform = RandGraind("image", prob=1.0, strength=(0.2, 0.2), size=(1.0, 1.0)).set_random_state(seed=1)
    change = transform({"image": volume})["image"] - volume
    assert float(change[..., :10].abs().max()) == 0.0  # nothing where there is no signal
    assert float(change[..., 10:20].std()) == pytest.approx(0.2, rel=0.1)
    assert float(change[..., 20:].std()) == pytest.approx(0.8, rel=0.1)


def test_grain_does_not_depend_on_where_zero_is() -> None:
    transform = RandGraind("image", prob=1.0)
    drawn = transform.set_random_state(seed=2).draw((12, 10, 8))
    assert torch.allclose(transform.apply(ramp() - 50.0, drawn) + 50.0, transform.apply(ramp(), drawn), atol=1e-4)


def test_coarse_grain_keeps_its_strength_and_is_smooth() -> None:
    volume = torch.cat([torch.zeros(1, 1, 40, 40), torch.ones(1, 39, 40, 40)], dim=1)
    transform = RandGraind("image", prob=1.0, strength=(0.3, 0.3), size=(4.0, 4.0)).set_random_state(seed=0)
    change = (transform({"image": volume})["image"] - volume)[0, 1:]
    assert float(change.std()) == pytest.approx(0.3, rel=0.1)
    neighbours = torch.corrcoef(torch.stack([change[:, :, 1:].flatten(), change[:, :, :-1].flatten()]))[0, 1]
    assert float(neighbours) > 0.7


def test_grain_is_multiplied_as_stated() -> None:
    field = torch.tensor([[[1.0, -1.0], [0.0, 2.0]]])
    changed = RandGraind("image").apply(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), GrainDraw(0.5, field))
    assert torch.equal(changed, torch.tensor([[[1.0, 1.5], [3.0, 7.0]]]))


def test_specks_smaller_than_a_voxel_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.5 voxels"):
        RandGraind("image", size=(0.5, 2.0))


@given(seed=st.integers(0, 2**31), longest=st.integers(1, 5), high=st.floats(0.0, 1.0))
def test_missing_slices_are_whole_slices_and_no_others(seed: int, longest: int, high: float) -> None:
    transform = RandMissingSlicesd("image", prob=1.0, fraction=(0.0, high), longest=longest, fill=-9.0)
    transform.set_random_state(seed=seed)
    volume = ramp()
    drawn = transform.draw(volume.shape[1:])
    changed = transform.apply(volume, drawn)
    count = volume.shape[drawn.axis + 1]
    missing = [bool((changed.select(drawn.axis + 1, place) == -9.0).all()) for place in range(count)]
    assert [place for place, gone in enumerate(missing) if gone] == list(drawn.places)
    assert 1 <= len(drawn.places) <= max(1, min(count - 1, round(high * count)))
    for place in set(range(count)) - set(drawn.places):
        assert torch.equal(changed.select(drawn.axis + 1, place), volume.select(drawn.axis + 1, place))


def test_slices_can_be_missing_as_in_a_file_that_was_never_filled_there() -> None:
    transform = RandMissingSlicesd("image", prob=1.0, fill=None).set_random_state(seed=1)
    volume = ramp() - 5.0
    drawn = transform.draw(volume.shape[1:])
    found = transform.apply(volume, drawn).index_select(drawn.axis + 1, torch.tensor(drawn.places))
    assert bool((found == volume.min()).all())


def test_only_the_given_axes_lose_slices() -> None:
    transform = RandMissingSlicesd("image", prob=1.0, axes=[2]).set_random_state(seed=3)
    assert {transform.draw((8, 8, 8)).axis for _ in range(30)} == {2}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1 and 0 to 1"):
        RandMissingSlicesd("image", fraction=(0.1, 1.5))
    with pytest.raises(ValueError, match="runs of 0"):
        RandMissingSlicesd("image", longest=0)


@pytest.mark.parametrize("transform", [RandGraind, RandMissingSlicesd])
def test_the_input_is_left_alone_and_probability_is_kept(transform: type) -> None:
    """Cached volumes are handed out without a copy, so a transform must not write into them."""
    volume = ramp()
    before = volume.clone()
    chain = Compose([transform("image", prob=0.5)]).set_random_state(seed=4)
    results = [chain({"image": volume, "label": volume}) for _ in range(40)]
    assert torch.equal(volume, before)
    assert all(result["label"] is volume for result in results)
    changed = sum(not torch.equal(result["image"], volume) for result in results)
    assert 10 <= changed <= 30


@pytest.mark.parametrize("transform", [RandGraind, RandMissingSlicesd])
def test_the_same_seed_gives_the_same_corruption(transform: type) -> None:
    one, other = (transform("image", prob=1.0).set_random_state(seed=7)({"image": ramp()})["image"] for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, transform("image", prob=1.0).set_random_state(seed=8)({"image": ramp()})["image"])


def test_latents_are_standard_normal_and_follow_the_seed() -> None:
    transform = RandLatentd("image", (4096, 1, 1, 1)).set_random_state(seed=5)
    item = transform({"image": ramp(), "label": ramp()})
    assert item["image"].shape == (4096, 1, 1, 1)
    assert float(item["image"].mean()) == pytest.approx(0.0, abs=0.06)
    assert float(item["image"].std()) == pytest.approx(1.0, abs=0.06)
    assert torch.equal(item["label"], ramp())
    again = transform.set_random_state(seed=5)({"image": ramp()})
    assert torch.equal(again["image"], item["image"])
    assert not torch.equal(transform({"image": ramp()})["image"], item["image"])
