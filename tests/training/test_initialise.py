"""Starting weights: what is rescaled computes the same, with weights of a fresh network's size."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import BasicUNet
from torch import nn

from medseg.errors import UsageError
from medseg.training.initialise import rescale


def _network(norm: str, *, bias: bool) -> nn.Module:
    torch.manual_seed(0)
    return BasicUNet(spatial_dims=3, out_channels=3, features=(4, 4, 8, 8, 8, 4), norm=norm, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_it_computes_the_same_with_weights_of_a_fresh_size(norm: str, bias: bool) -> None:
    network, images = _network(norm, bias=bias), torch.randn(2, 1, 32, 32, 32)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    network(images)  # running means that are not those of the start
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".conv.weight"):
                parameter.mul_(3.0)
    rescaled = copy.deepcopy(network)
    assert rescale(rescaled, start) == 18
    torch.testing.assert_close(rescaled.eval()(images), network.eval()(images), rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(rescaled.train()(images), network.train()(images), rtol=1e-2, atol=5e-3)
    sizes = {name: value.norm() for name, value in rescaled.state_dict().items() if name.endswith(".conv.weight")}
    assert all(torch.isclose(size, start[name].norm()) for name, size in sizes.items())


@pytest.mark.parametrize("norm", [None, "localresponse"])
def test_without_a_normalisation_it_is_refused(norm: str | None) -> None:
    network = nn.Sequential(Convolution(3, 1, 4, norm=(norm, {"size": 2}) if norm else None))
    with pytest.raises(UsageError, match=r"Sequential has no convolution .* leave --rescale out"):
        rescale(network, network.state_dict())


def test_what_is_not_normalised_stays() -> None:
    network = BasicUNet(spatial_dims=3, features=(4, 4, 8, 8, 8, 4))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        network.final_conv.weight.mul_(2.0)
    rescale(network, start)
    torch.testing.assert_close(network.final_conv.weight, 2.0 * start["final_conv.weight"])
