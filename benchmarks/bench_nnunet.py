"""A network of nnU-Net's class under medseg's engines against nnU-Net's own predictor: same weights, no mirroring.

``python -m benchmarks.bench_nnunet [--shape 96 96 144] [--window 96] [--repeats 2] [--json FILE]``

Needs ``nnunetv2`` (which is no dependency of medseg), for instance in a folder on ``PYTHONPATH``; without it the script
says so and ends. The network is nnU-Net's PlainConvUNet 32..320 with random features and a last layer fitted to find
smooth blobs in noise, so that labels mean something. Both tile alike: overlap 0.5, gaussian weights. Variants run in
turn in this process; the table shows medians of CPU seconds, and Dice with nnU-Net's labels and with the truth.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.bench_inference import Labels, blobs, measure, ours, print_table
from medseg.files import write_json
from medseg.inference.engines import build_engine, candidates
from medseg.inference.sliding_window import WindowSettings

FEATURES = (32, 64, 128, 256, 320, 320)


def network() -> torch.nn.Module:
    """nnU-Net's plain network for one channel and two classes, with a fitted last layer."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He

    torch.manual_seed(0)
    stages = len(FEATURES)
    net = PlainConvUNet(
        1, stages, FEATURES, torch.nn.Conv3d, 3, (1, *(2,) * (stages - 1)), 2, 2, 2, conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    ).eval()  # fmt: skip
    net.apply(InitWeights_He(1e-2))
    _fit(net, net.decoder.seg_layers[-1])
    return net


def _fit(net: torch.nn.Module, last: torch.nn.Module) -> None:
    """Fit the last layer to the features that the others give, by logistic regression."""
    seen: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image, mask = blobs((64, 64, 64), 1)
    with torch.no_grad():
        net(image[None])
    hook.remove()
    features = seen[0][0].flatten(1).T[..., None, None, None]
    targets = mask.flatten().long()
    optimiser = torch.optim.Adam(last.parameters(), lr=0.05)
    for _ in range(60):
        chosen = torch.randint(0, len(targets), (20_000,))
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(last(features[chosen]).flatten(1), targets[chosen])
        loss.backward()
        optimiser.step()
    print(f"fitted the last layer, cross-entropy {loss.item():.3f}")


def peer(net: torch.nn.Module, volume: torch.Tensor, roi: int) -> Labels:
    """nnU-Net's own sliding window."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network = net
    predictor.configuration_manager = SimpleNamespace(patch_size=(roi,) * 3)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)
    return np.asarray(predictor.predict_sliding_window_return_logits(volume).float().max(dim=0)[1].numpy())


def variants(net: torch.nn.Module, volume: torch.Tensor, roi: int) -> dict[str, Callable[[], Labels]]:
    own = WindowSettings((roi,) * 3, (0.5,) * 3, "gaussian")
    runs: dict[str, Callable[[], Labels]] = {"nnU-Net's predictor": lambda: peer(net, volume, roi)}
    for name in candidates():
        engine = build_engine(name, net)
        engine(torch.zeros(1, 1, roi, roi, roi))  # compiled outside the measurement
        runs[name] = partial(ours, engine, volume, own)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 96, 144))
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if importlib.util.find_spec("nnunetv2") is None:
        sys.exit("nnunetv2 is not installed, nothing is compared; install it into a folder and name that in PYTHONPATH")
    torch.set_num_threads(options.threads)
    volume, truth = blobs(tuple(options.shape), 99)
    rows = measure(variants(network(), volume, options.window), options.repeats, truth[0].numpy())
    print_table(rows)
    if options.json:
        facts = {"shape": list(options.shape), "window": options.window, "threads": options.threads}
        write_json(options.json, {**facts, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
