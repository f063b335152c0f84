"""2D kernels become 3D ones that answer alike."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d, conv3d

from medseg.networks import inflate
from medseg.networks.encoders import fit


@given(how=st.sampled_from(["mean", "centre"]), depth=st.sampled_from([1, 3, 5]), axis=st.sampled_from([-1, 2, 3]))
def test_a_volume_of_equal_slices_gets_the_answer_of_its_slice(how: str, depth: int, axis: int) -> None:
    kernel = torch.randn(4, 2, 3, 3)
    picture = torch.randn(1, 2, 7, 6)
    volume = torch.stack([picture] * 9, dim=axis % 5)
    answer = conv3d(volume, inflate(kernel, depth, how, axis))  # type: ignore[arg-type]
    wanted = conv2d(picture, kernel)
    for place in range(answer.shape[axis]):
        assert torch.allclose(answer.select(axis, place), wanted, atol=1e-5)


def test_mean_spreads_and_centre_does_not() -> None:
    kernel = torch.ones(1, 1, 1, 1)
    assert inflate(kernel, 3, "mean").flatten().tolist() == pytest.approx([1 / 3] * 3)
    assert inflate(kernel, 3, "centre").flatten().tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="median"):
        inflate(kernel, 3, "median")  # type: ignore[arg-type]


def test_colours_become_grey() -> None:
    """One channel gets the answer that the grey picture in three colours got."""
    kernel = torch.randn(4, 3, 3, 3)
    grey = torch.randn(1, 1, 8, 8)
    wanted = conv2d(grey.expand(-1, 3, -1, -1), kernel)
    for channels in (1, 2, 4):
        adapted = fit(kernel, (4, channels, 3, 3))
        assert adapted is not None
        assert torch.allclose(conv2d(grey.expand(-1, channels, -1, -1), adapted), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [((4, 2, 3, 3), (4, 1, 3, 3)), ((4, 3, 5, 5), (4, 3, 3, 3)), ((8,), (4,)), ((4, 3, 3, 3), (8, 3, 3, 3, 3))],
)
def test_what_has_no_meaning_is_left(found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    assert fit(torch.zeros(found), wanted) is None
