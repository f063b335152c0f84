"""The conditional patch discriminator."""

import pytest
import torch

from medseg.networks import ConditionalPatchDiscriminator


def test_logits_are_one_channel_per_patch_and_unbounded() -> None:
    network = ConditionalPatchDiscriminator(label_channels=3, channels=4)
    judged = network(torch.randn(2, 1, 16, 24, 16), torch.rand(2, 3, 16, 24, 16))
    assert len(judged.logits) == 1
    assert judged.logits[0].shape[:2] == (2, 1)
    assert min(judged.logits[0].shape[2:]) > 1  # patches, not one number per volume
    with torch.no_grad():
        network.get_parameter("scales.0.final_conv.conv.bias").fill_(50.0)
        judged = network(torch.randn(2, 1, 16, 24, 16), torch.rand(2, 3, 16, 24, 16))
    assert float(judged.logits[0].max()) > 1.0


def test_the_image_is_a_condition() -> None:
    network = ConditionalPatchDiscriminator(label_channels=2, channels=4)
    label = torch.rand(1, 2, 16, 16, 16)
    one = network(torch.zeros(1, 1, 16, 16, 16), label).logits[0]
    other = network(torch.randn(1, 1, 16, 16, 16), label).logits[0]
    assert not torch.allclose(one, other)


def test_products_show_the_image_inside_of_each_label() -> None:
    network = ConditionalPatchDiscriminator(label_channels=2, image_channels=2, channels=4, scales=2, products=True)
    seen: list[torch.Tensor] = []
    network.scales[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image, label = torch.randn(1, 2, 32, 32, 32), torch.rand(1, 2, 32, 32, 32)
    assert len(network(image, label).logits) == 2
    expected = [image, label, image[:, :1] * label, image[:, 1:] * label]
    torch.testing.assert_close(seen[0], torch.cat(expected, dim=1))


def test_each_scale_judges_a_coarser_grid() -> None:
    network = ConditionalPatchDiscriminator(label_channels=2, channels=4, scales=2)
    judged = network(torch.randn(1, 1, 32, 32, 32), torch.rand(1, 2, 32, 32, 32))
    fine, coarse = judged.logits
    assert coarse.shape[2] < fine.shape[2]
    assert [len(maps) for maps in judged.features] == [3, 3]


def test_unconditional_and_two_dimensional() -> None:
    network = ConditionalPatchDiscriminator(label_channels=1, image_channels=0, channels=4, spatial_dims=2)
    assert network(None, torch.rand(1, 1, 32, 32)).logits[0].ndim == 4


@pytest.mark.parametrize("image", [None, torch.zeros(1, 2, 16, 16, 16)])
def test_a_wrong_condition_is_refused(image: torch.Tensor | None) -> None:
    network = ConditionalPatchDiscriminator(label_channels=2, channels=4)
    with pytest.raises(ValueError, match="image_channels"):
        network(image, torch.rand(1, 2, 16, 16, 16))


def test_spectral_norm_bounds_every_convolution() -> None:
    network = ConditionalPatchDiscriminator(label_channels=2, channels=4, spectral=True)
    for _ in range(50):
        network(torch.randn(1, 1, 16, 16, 16), torch.rand(1, 2, 16, 16, 16))
    convolution = network.get_submodule("scales.0.final_conv.conv")
    weight = torch.as_tensor(convolution.weight).detach().flatten(1)
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1.0, abs=0.05)
