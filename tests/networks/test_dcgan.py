"""The generator from noise and its discriminator."""

import pytest
import torch
from torch import nn

from medseg.networks import DCGANDiscriminator, DCGANGenerator


@pytest.mark.parametrize(("latent", "size"), [(8, (32, 32, 32)), (6, (16, 24, 8)), (10, (48, 32))])
def test_noise_becomes_an_image_of_the_size_and_one_logit(latent: int, size: tuple[int, ...]) -> None:
    generator = DCGANGenerator(latent, 1, (8, 4, 4), size)
    discriminator = DCGANDiscriminator(1, (4, 4, 8), size)
    noise = torch.randn(3, latent, *[1] * len(size))
    image = generator(noise)
    assert image.shape == (3, 1, *size)
    assert float(image.detach().abs().max()) <= 1.0
    judged = discriminator(None, image)
    assert [tuple(scale.shape) for scale in judged.logits] == [(3, 1, *[1] * len(size))]
    assert [maps.shape[1] for maps in judged.features[0]] == [4, 4, 8]


def test_each_noise_gives_its_own_image_and_learning_reaches_the_noise() -> None:
    generator = DCGANGenerator(8, 1, (8, 4), (16, 16, 16)).eval()
    noise = torch.randn(2, 8, 1, 1, 1, requires_grad=True)
    first, second = generator(noise)
    assert not torch.allclose(first, second)
    first.sum().backward()
    assert noise.grad is not None
    assert float(noise.grad[0].abs().sum()) > 0.0
    assert float(noise.grad[1].abs().sum()) == 0.0


def test_every_voxel_gets_the_same_number_of_contributions() -> None:
    """Kernels of 4 with stride 2 cover the grid evenly, so that there is no checkerboard."""
    layer = next(
        m for m in reversed(list(DCGANGenerator(4, 1, (4, 4), (16, 16)).modules())) if isinstance(m, nn.ConvTranspose2d)
    )
    with torch.no_grad():
        layer.weight.fill_(1.0)
        assert layer.bias is not None
        layer.bias.zero_()
        inside = layer(torch.ones(1, 4, 8, 8))[..., 2:-2, 2:-2]
    assert float(inside.max()) == float(inside.min())


def test_it_starts_as_the_paper_says() -> None:
    generator = DCGANGenerator(64, 1, (128, 64, 32))
    kernels = torch.cat([m.weight.detach().flatten() for m in generator.modules() if isinstance(m, nn.ConvTranspose3d)])
    assert float(kernels.std()) == pytest.approx(0.02, rel=0.02)


def test_spectral_norm_and_no_norm_are_options() -> None:
    network = DCGANDiscriminator(1, (4, 4, 8), (16, 16, 16), None, spectral=True)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    assert any("parametrizations" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("size", [(20, 32, 32), (32,), (4, 4, 4)])
def test_sizes_that_cannot_be_halved_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        DCGANGenerator(4, 1, (4, 4, 4), size)
    with pytest.raises(ValueError, match="multiples of 8"):
        DCGANDiscriminator(1, (4, 4, 4), size)


def test_the_classic_layout_starts_on_seven_by_seven() -> None:
    generator = DCGANGenerator(100, 1, (256, 128, 64), (28, 28), halvings=2)
    discriminator = DCGANDiscriminator(1, (64, 128, 256), (28, 28), halvings=2)
    image = generator(torch.randn(2, 100, 1, 1))
    assert image.shape == (2, 1, 28, 28)
    judged = discriminator(None, image)
    assert [tuple(maps.shape[1:]) for maps in judged.features[0]] == [(64, 14, 14), (128, 7, 7), (256, 7, 7)]
    assert judged.logits[0].shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="1 to 3"):
        DCGANGenerator(4, 1, (4, 4, 4), (32, 32), halvings=4)
    with pytest.raises(ValueError, match="deconv or resize"):
        DCGANGenerator(4, 1, (4, 4, 4), (32, 32), upsample="bicubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(32, 16), (16, 32, 16)])
def test_resizing_leaves_no_grain_where_transposed_convolutions_do(size: tuple[int, ...]) -> None:
    """From a constant grid every interior voxel of the last block is the same, whatever the weights are."""
    torch.manual_seed(0)
    spread = {}
    for upsample in ("deconv", "resize"):
        generator = DCGANGenerator(4, 1, (4, 4), size, upsample=upsample)
        last = generator.layers[-2:-1] if upsample == "deconv" else generator.layers[-3:-1]
        image = last(torch.ones(1, 4, *(side // 2 for side in size)))
        inside = image[(slice(None), slice(None), *[slice(4, -4)] * len(size))]
        spread[upsample] = float(inside.detach().std())
        assert generator(torch.randn(2, 4, *[1] * len(size))).shape == (2, 1, *size)
    assert spread["resize"] < 1e-6
    assert spread["deconv"] > 1e-3
