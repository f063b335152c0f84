"""Parts of a network that learn slower, or not at all."""

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from medseg.networks import parameter_groups


def network() -> BasicUNet:
    return BasicUNet(2, 1, 2, (2, 2, 4, 4, 4, 2), norm="batch")


def test_every_parameter_is_in_one_group_with_its_rate() -> None:
    unet = network()
    groups = parameter_groups(unet, 0.01, {"conv_0": 0.1, "down_1": 0.1, "down_1.convs.conv_0": 0.5})
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.005, 0.001])
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(unet.parameters()))
    for name, parameter in unet.named_parameters():
        wanted = 0.005 if name.startswith("down_1.convs.conv_0.") else 0.01
        wanted = 0.001 if name.startswith(("conv_0.", "down_1.convs.conv_1.")) else wanted
        assert rates[id(parameter)] == pytest.approx(wanted), name


def test_what_is_frozen_stays_as_it_is_to_the_bit() -> None:
    unet = network()
    optimizer = torch.optim.AdamW(parameter_groups(unet, 0.01, {"conv_0": 0.0, "down_1": 0.0}), weight_decay=0.1)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    unet.train()
    for _ in range(3):
        optimizer.zero_grad()
        unet(torch.randn(2, 1, 32, 32) * 3.0 + 1.0).square().mean().backward()
        optimizer.step()
    for name, value in unet.state_dict().items():
        if not value.is_floating_point():
            continue
        frozen = name.startswith(("conv_0.", "down_1."))
        assert torch.equal(value, before[name]) == frozen or "conv.bias" in name, name


def test_a_name_is_matched_by_its_parts() -> None:
    unet = nn.ModuleDict({"conv": nn.Linear(2, 2), "conv_2": nn.Linear(2, 2)})
    (group,) = parameter_groups(unet, 1.0, {"conv": 0.0})
    assert [id(p) for p in group["params"]] == [id(p) for p in unet["conv_2"].parameters()]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"encoder": 0.1}, "no parameter's name begins"),
        ({"conv_0": -1.0}, "expected 0"),
        ({"": 0.0}, "nothing to train"),
    ],
)
def test_mistakes_are_refused(factors: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(network(), 0.01, factors)
