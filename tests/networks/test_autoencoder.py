"""The autoencoder shares its encoder with MONAI's ``BasicUNet``, key by key."""

import pytest
import torch
from monai.networks.nets import BasicUNet

from medseg.networks import Autoencoder, encoder_state

FEATURES = (4, 4, 8, 8, 16, 4)


def test_pretraining_is_a_copy_of_the_encoder() -> None:
    autoencoder = Autoencoder(features=FEATURES)
    unet = BasicUNet(3, 1, 3, FEATURES)
    pretrained = encoder_state(autoencoder.state_dict())
    wanted = encoder_state(unet.state_dict())
    assert {name: value.shape for name, value in pretrained.items()} == {n: v.shape for n, v in wanted.items()}
    unet.load_state_dict(pretrained, strict=False)
    volume = torch.randn(1, 1, 32, 16, 16)
    code = unet.down_4(unet.down_3(unet.down_2(unet.down_1(unet.conv_0(volume)))))
    assert torch.equal(code, autoencoder.encode(volume))


def test_everything_passes_through_the_bottleneck() -> None:
    autoencoder = Autoencoder(features=FEATURES).eval()
    with torch.no_grad():
        for parameter in autoencoder.down_4.parameters():
            parameter.zero_()
        one = autoencoder(torch.randn(1, 1, 32, 16, 16))
        other = autoencoder(torch.randn(1, 1, 32, 16, 16))
    assert one.shape == (1, 1, 32, 16, 16)
    assert torch.equal(one, other)  # no skip connection carries the image past it


@pytest.mark.parametrize("dims", [2, 3])
def test_the_shape_is_kept(dims: int) -> None:
    volume = torch.randn(1, 2, *[32] * dims)
    assert Autoencoder(dims, 2, 1, FEATURES)(volume).shape == (1, 1, *[32] * dims)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        Autoencoder(features=FEATURES)(torch.randn(1, 1, 20, 16, 16))
    with pytest.raises(ValueError, match="2 to 5 levels"):
        Autoencoder(features=(4, 4))


def test_fewer_levels_share_what_they_have_with_the_whole_encoder() -> None:
    shallow, unet = Autoencoder(features=(4, 4, 8, 4)), BasicUNet(3, 1, 3, FEATURES)
    pretrained = encoder_state(shallow.state_dict())
    wanted = encoder_state(unet.state_dict())
    assert {name.split(".")[0] for name in pretrained} == {"conv_0", "down_1", "down_2"}
    assert all(value.shape == wanted[name].shape for name, value in pretrained.items())
    volume = torch.randn(1, 1, 12, 8, 4)  # multiples of 4 are enough
    assert shallow.encode(volume).shape == (1, 8, 3, 2, 1)
    assert shallow(volume).shape == volume.shape


def test_it_learns_to_restore() -> None:
    torch.manual_seed(0)
    network = Autoencoder(features=FEATURES)
    clean = torch.zeros(1, 1, 32, 16, 16)
    clean[:, :, 8:24, 4:12, 4:12] = 1.0
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        loss = (network(clean + 0.3 * torch.randn_like(clean)) - clean).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("features", [FEATURES, (4, 4, 8, 4)])
def test_it_scripts(features: tuple[int, ...]) -> None:
    autoencoder = Autoencoder(features=features).eval()
    volume = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(autoencoder)(volume), autoencoder(volume), atol=1e-6)
