"""Draws depend on the seed and the counter alone."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Compose, RandGaussianNoised

from medseg.training import DrawSampler, TrainingDataset, training_loader
from tests.training.conftest import balls


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
def test_starting_later_gives_the_rest_of_the_same_stream(cases: int, start: int, seed: int) -> None:
    whole = list(islice(DrawSampler(cases, 100, seed, group=2), 120))
    late = DrawSampler(cases, 100, seed, group=2)
    late.go_to(start)
    assert list(islice(late, 20)) == whole[2 * start : 2 * start + 20]


def test_every_pass_shows_every_case_in_another_order() -> None:
    draws = [draw.case for draw in islice(DrawSampler(20, 40), 40)]
    assert sorted(draws[:20]) == sorted(draws[20:]) == list(range(20))
    assert draws[:20] != draws[20:]


def test_processes_share_the_batches_of_one() -> None:
    one = list(islice(DrawSampler(7, 100, group=4), 24))
    parts = [list(islice(DrawSampler(7, 100, group=2, rank=rank, processes=2), 12)) for rank in (0, 1)]
    together = [draw for batch in range(6) for part in parts for draw in part[2 * batch : 2 * batch + 2]]
    assert together == one


def test_no_case_is_refused() -> None:
    with pytest.raises(ValueError, match="datalist"):
        DrawSampler(0, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_does_not_depend_on_workers_or_on_what_came_before(workers: int) -> None:
    def batches(start: int, count: int) -> list[torch.Tensor]:
        dataset = TrainingDataset(balls(3), Compose([RandGaussianNoised("image", prob=1.0)]), seed=3)
        loader = training_loader(dataset, 2, 4, num_workers=workers)
        loader.sampler.go_to(start)
        return [torch.as_tensor(batch["image"]) for batch in islice(loader, count)]

    whole, late = batches(0, 4), batches(2, 2)
    assert torch.equal(whole[2], late[0])
    assert torch.equal(whole[3], late[1])
    assert not torch.equal(whole[0], whole[1])


def test_the_cache_is_not_changed_by_augmentation() -> None:
    items = balls(2)
    before = [item["image"].clone() for item in items]
    dataset = TrainingDataset(items, Compose([RandGaussianNoised("image", prob=1.0)]))
    list(islice(training_loader(dataset, 1, 4), 4))
    assert all(torch.equal(item["image"], image) for item, image in zip(items, before, strict=True))
