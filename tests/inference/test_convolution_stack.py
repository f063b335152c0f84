"""A stack of convolutions, slab by slab, gives what it gives at once."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import Convolution

from medseg.inference import convolution_stack
from medseg.inference.convolution_stack import split_stack
from medseg.inference.sliding_window import Chunk

_ACT = ("ELU", {"inplace": True})


def _stack(norm: str | None = None, order: str = "A", dilations: tuple[int, ...] = (1, 4, 2)) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers, channels = [], 2
    for dilation in dilations:
        layers.append(
            Convolution(3, channels, 5, kernel_size=3, dilation=dilation, adn_ordering=order, act=_ACT, norm=norm)
        )
        channels = 5
    network = torch.nn.Sequential(*layers, Convolution(3, 5, 7, kernel_size=1, conv_only=True)).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d) and layer.running_mean is not None:
            layer.running_mean.normal_()
    return network


@pytest.mark.parametrize("elements", [1, 5 * 8 * 7 * 3, 1 << 26], ids=["one plane", "some planes", "all"])
@pytest.mark.parametrize(("norm", "order"), [(None, "A"), ("BATCH", "NA"), ("BATCH", "AN")])
def test_slabs_give_what_the_whole_gives(
    monkeypatch: pytest.MonkeyPatch, norm: str | None, order: str, elements: int
) -> None:
    monkeypatch.setattr(convolution_stack, "_SLAB_ELEMENTS", elements)
    network, volume = _stack(norm, order), torch.randn(1, 2, 17, 8, 7)
    split = split_stack(network)
    assert split is not None
    body, head = split
    given = volume.clone()
    with torch.inference_mode():
        chunks = list(head([Chunk(3, body(volume)[0])]))
        expected = network(volume)[0]
    assert torch.equal(given, volume)
    assert chunks[0].start == 3
    found = torch.cat([chunk.scores for chunk in chunks], dim=1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [
        _stack()[:-1],
        _stack("INSTANCE", "NA"),
        torch.nn.Sequential(torch.nn.Conv3d(1, 1, 3), torch.nn.Conv3d(1, 1, 1)),
        torch.nn.Sequential(torch.nn.Conv3d(1, 1, 3, padding=1, stride=2), torch.nn.Conv3d(1, 1, 1)),
        torch.nn.Sequential(torch.nn.ReLU(), *_stack()),
        torch.nn.Conv3d(1, 1, 1),
    ],
    ids=["wide end", "norm over the volume", "smaller", "strides", "starts otherwise", "one layer"],
)
def test_what_is_no_such_stack_is_run_as_it_is(network: torch.nn.Module) -> None:
    assert split_stack(network) is None
