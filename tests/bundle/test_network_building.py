"""A network takes no memory for weights that its bundle does not hold, and computes as one that was built at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import BasicUNet, SwinUNETR

from medseg.bundle import Bundle
from medseg.bundle.network_building import NetworkTooLarge, frugal, lacks_memory, take_memory
from medseg.errors import BundleError
from tests.bundle.sample import read_config, write_config

_SMALL: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": (4,) * 6}


def _swin() -> torch.nn.Module:
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))


@pytest.mark.parametrize("build", [lambda: BasicUNet(**_SMALL), _swin], ids=["BasicUNet", "SwinUNETR"])
def test_a_frugal_network_computes_the_same(build: Any) -> None:
    usual = build().eval()
    state = usual.state_dict()
    with frugal(sum(weight.numel() for weight in state.values()), "it", without_memory=True):
        network = build()
    assert lacks_memory(network)
    assert take_memory(network, [state])
    assert not lacks_memory(network)
    network.load_state_dict(state)
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(found[name].dtype == weight.dtype and torch.equal(found[name], weight) for name, weight in state.items())
    assert [module.__class__ for module in network.modules()] == [module.__class__ for module in usual.modules()]
    others = [dict(built.named_buffers()) for built in (network, usual)]
    assert all(torch.equal(others[0][name], buffer) for name, buffer in others[1].items())


def test_weights_that_no_file_fills_get_no_memory() -> None:
    with frugal(10**6, "it", without_memory=True):
        network = BasicUNet(**_SMALL)
    state = network.state_dict()
    state.popitem()
    assert not take_memory(network, [state])
    assert lacks_memory(network)


def test_more_weights_than_the_files_hold_are_refused() -> None:
    expected = r"asks for \d+ weights and more, its files of weights hold 1000 bytes"
    with pytest.raises(NetworkTooLarge, match=expected), frugal(1000, "it", without_memory=True):
        BasicUNet(**_SMALL)


def test_an_array_larger_than_the_files_is_refused() -> None:
    with frugal(1000, "it", without_memory=True):
        axis = torch.arange(10**7)
        with pytest.raises(NetworkTooLarge, match="an array of 100000000000000 elements"):
            axis[:, None] - axis[None]


def test_a_layer_that_stands_twice_gets_memory_and_a_shared_weight_is_built_with_it() -> None:
    with frugal(1000, "it", without_memory=True):
        layer, tied = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        twice = torch.nn.Sequential(layer, layer)
        shared = torch.nn.Sequential(torch.nn.Linear(2, 2), tied)
        tied.weight = next(shared.parameters())
    assert take_memory(twice, [twice.state_dict()])
    assert not lacks_memory(twice)
    assert not take_memory(shared, [shared.state_dict()])


def test_a_network_that_looks_at_its_weights_is_built_with_memory(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Bundle.open(bundle).load_network().state_dict()
    usual = BasicUNet.__init__

    def look(self: BasicUNet, **arguments: Any) -> None:
        usual(self, **arguments)
        assert [float(weight.sum()) for weight in self.parameters()]

    monkeypatch.setattr(BasicUNet, "__init__", look)
    found = Bundle.open(bundle).load_network().state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_many_layers_are_refused() -> None:
    with pytest.raises(NetworkTooLarge, match="more than 50000 layers"), frugal(1000, "it", without_memory=True):
        torch.nn.Sequential(*[torch.nn.Identity()] * 60_000)


def test_other_threads_are_not_counted() -> None:
    built: list[torch.nn.Module] = []
    with frugal(10, "it", without_memory=True):
        thread = threading.Thread(target=lambda: built.append(torch.nn.Linear(100, 100)))
        thread.start()
        thread.join()
    assert not lacks_memory(built[0])


def test_a_bundle_whose_network_is_wide_is_refused(bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config["network_def"]["features"] = [4000] * 6
    write_config(bundle, "inference", config)
    with pytest.raises(BundleError, match=f"^the weights of {bundle.name} do not fit its network_def: it asks for"):
        Bundle.open(bundle).load_network()


_LOAD = """
import resource, sys
from medseg.bundle import Bundle
from medseg.errors import BundleError
import torch, monai.bundle, monai.networks.nets
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Bundle.open(sys.argv[1]).load_network()
except BundleError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_refusal_takes_no_memory(bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config["network_def"]["features"] = [9000] * 6
    write_config(bundle, "inference", config)
    code = [sys.executable, "-W", "ignore", "-c", _LOAD, str(bundle)]
    limit = 16 << 30  # without it, torch would ask for 8 GiB for the first layer alone
    done = subprocess.run(
        code,
        check=True,
        capture_output=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert int(json.loads(done.stdout)) < 100 * 1024
