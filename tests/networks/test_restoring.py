"""The U-Net that restores: it begins with what it is given, and MONAI's ``BasicUNet`` begins with its weights."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets import BasicUNet

from medseg.networks import RestoringUNet
from medseg.training.initialise import initialise_from

FEATURES = (2, 2, 4, 4, 8, 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_fresh_one_gives_back_its_input(dims: int) -> None:
    volume = torch.randn(2, 2, *[32] * dims)
    assert torch.equal(RestoringUNet(dims, 2, 2, features=FEATURES)(volume), volume)


def test_what_it_computes_is_added() -> None:
    torch.manual_seed(0)
    plain = BasicUNet(3, 1, 1, FEATURES, norm="batch").eval()
    restoring = RestoringUNet(features=FEATURES, norm="batch").eval()
    restoring.load_state_dict(plain.state_dict())
    volume = torch.randn(1, 1, 32, 16, 16)
    assert torch.equal(restoring(volume), volume + plain(volume))
    assert torch.equal(torch.jit.script(restoring)(volume), restoring(volume))


def test_other_channels_than_come_in_are_refused() -> None:
    with pytest.raises(ValueError, match="1 channels in and 3 out"):
        RestoringUNet(3, 1, 3)


def test_it_learns_from_the_first_step() -> None:
    """The last convolution is zero at first, and still nothing is dead."""
    torch.manual_seed(0)
    network = RestoringUNet(2, features=(4, 4, 8, 8, 16, 4), norm="batch")
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    wanted = torch.randn(4, 1, 16, 16).cumsum(-1)
    noisy = wanted + torch.randn_like(wanted)
    losses = []
    for _ in range(30):
        loss = (network(noisy) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_encoder_and_decoder_start_a_segmentation_network(tmp_path: Path) -> None:
    restoring, segmenting = RestoringUNet(features=FEATURES), BasicUNet(3, 1, 3, FEATURES)
    torch.save(restoring.state_dict(), tmp_path / "restoring.pt")
    transfer = initialise_from(segmenting, tmp_path / "restoring.pt")
    assert transfer.kept == ("final_conv.weight", "final_conv.bias")
    assert transfer.unused == ("final_conv.weight", "final_conv.bias")
