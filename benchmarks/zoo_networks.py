"""Seeded weights for a bundle whose weights are not here: ``python -m benchmarks.zoo_networks BUNDLE CONFIG ITEM``.

Runs in a process of its own, as it evaluates the bundle's config (and with it the bundle's code, if it has any). The
network is the one that ``CONFIG`` builds from ``network_def``; the statistics of its normalisation layers are those of
``ITEM`` (JSON: what the bundle's data set would hold for one case), and its last layer is shifted and scaled so that
every output channel has mean 0 and deviation 1 there: label maps hold every label. Written where the bundle loads it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.networks.nets import TopologySearch

SEED = 20
_LARGEST = 96
_DEPTHS, _BLOCKS = 4, 12


def write_architecture(file: Path) -> None:
    """An architecture as DiNTS's search leaves it: numpy arrays in a pickle."""
    torch.manual_seed(SEED)
    space = TopologySearch(channel_mul=0.2, num_blocks=_BLOCKS, num_depths=_DEPTHS, device="cpu")
    node_a, code_a, code_c, code_a_max = space.decode()
    code_c[:] = code_c.clip(1)  # no skips alone
    found = {"node_a": node_a, "arch_code_a": code_a, "arch_code_a_max": code_a_max, "arch_code_c": code_c}
    file.parent.mkdir(exist_ok=True)
    torch.save({**found, "iter_num": 1, "epochs": 1, "best_dsc": 0.0}, file)


def write_weights(bundle: Path, config: list[Path], item: dict[str, Any]) -> None:
    """Build the bundle's network, calibrate it on one case, and save it as the file that the bundle loads."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in config])
    parser["bundle_root"] = str(bundle)
    text = config[0].read_text()
    if found := re.search(r"/models/(search\w+\.pt)", text):
        write_architecture(bundle / "models" / found[1])
    torch.manual_seed(SEED)
    network = parser.get_parsed_content("network_def").eval()
    window = _sample(parser.get_parsed_content("preprocessing")(item), parser)
    try:
        with torch.inference_mode():
            _settle(network, window)
    except (TypeError, AttributeError, StopIteration) as error:  # one that is asked by class
        print(f"the weights stay as they were drawn: {type(error).__name__}: {error}")
    (bundle / "models").mkdir(exist_ok=True)
    for place in _weights(parser, text):
        torch.save(network.state_dict(), bundle / "models" / place)


def _weights(parser: ConfigParser, text: str) -> list[str]:
    named = set(re.findall(r"/models/['\" +]*(\w+\.pt)\b", text)) - set(re.findall(r"search\w+\.pt", text))
    if "@modelname" in text:
        named = {str(parser.get_parsed_content("modelname"))}
    return sorted(named or {"model.pt"})


def _sample(prepared: Any, parser: ConfigParser) -> torch.Tensor:
    """One window from the middle of the preprocessed case, as the network is shown it."""
    image = (prepared[0] if isinstance(prepared, list) else prepared)["image"].as_tensor().float()
    inferer = parser.get("inferer", {})
    sizes = parser.get_parsed_content("inferer::roi_size") if "roi_size" in inferer else image.shape[1:]
    if len(sizes) == 2:
        image = image[..., image.shape[-1] // 2]
    wanted = [
        min(n, have, _LARGEST) if "roi_size" in inferer else have
        for n, have in zip(sizes, image.shape[1:], strict=True)
    ]
    pads = [max(_LARGEST - n, 0) if "roi_size" in inferer else 0 for n in wanted]
    starts = [(have - n) // 2 for n, have in zip(wanted, image.shape[1:], strict=True)]
    for axis, (start, n) in enumerate(zip(starts, wanted, strict=True), 1):
        image = image.narrow(axis, start, n)
    around = [part for pad in reversed(pads) for part in (pad // 2, pad - pad // 2)]
    return torch.nn.functional.pad(image[None], around)


def _settle(network: torch.nn.Module, window: torch.Tensor) -> None:
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.train()
            layer.momentum = None
    network(window)
    network.eval()
    scores = network(window)
    scores = scores[0] if isinstance(scores, list | tuple) else scores
    last = _last_layer(network, window, scores.shape[1])
    mean, deviation = (moment(scores.transpose(0, 1).flatten(1), dim=1) for moment in (torch.mean, torch.std))
    last.bias -= mean
    last.bias /= deviation
    last.weight /= deviation.reshape(-1, *[1] * (last.weight.ndim - 1)) if _is_plain(last) else deviation.mean()


def _is_plain(layer: torch.nn.Module) -> bool:
    return not isinstance(layer, torch.nn.ConvTranspose1d | torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d)


def _last_layer(network: torch.nn.Module, window: torch.Tensor, channels: int) -> Any:
    """The last convolution that runs and has a bias for every output channel."""
    seen: list[torch.nn.Module] = []
    hooks = [layer.register_forward_hook(lambda module, *_: seen.append(module)) for layer in _convolutions(network)]
    network(window)
    for hook in hooks:
        hook.remove()
    biases = ((layer, layer.bias) for layer in reversed(seen))
    return next(layer for layer, bias in biases if isinstance(bias, torch.Tensor) and len(bias) == channels)


def _convolutions(network: torch.nn.Module) -> Iterator[Any]:
    return (layer for layer in network.modules() if isinstance(layer, torch.nn.modules.conv._ConvNd))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.path.append(str(folder))
    write_weights(folder, [Path(part) for part in sys.argv[2].split(",")], json.loads(sys.argv[3]))
