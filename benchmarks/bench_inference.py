"""Sliding-window inference against MONAI's, on one volume with one network.

``python -m benchmarks.bench_inference [--shape 300 300 200] [--window 96] [--repeats 3] [--only PART ...]
[--json FILE]``

The network is MONAI's UNet 16..256 with batch norms, trained here for a minute to find blobs in noise, so that its
labels mean something. Stock is MONAI's ``SlidingWindowInferer`` (overlap 0.5, gaussian) and ``argmax``. Every variant
runs in this process, on the same number of threads, in turn; the table shows medians of CPU seconds, without those that
OpenVINO takes to compile for a size of window.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from scipy.ndimage import gaussian_filter

from benchmarks.agreement import agreement
from medseg.files import write_json
from medseg.inference.engines import build_engine, candidates
from medseg.inference.sliding_window import WindowSettings, sliding_window

Labels = np.ndarray


def blobs(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with smooth bright blobs ``(1, H, W, D)``, and their mask."""
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=shape).astype(np.float32), 6.0)
    mask = smooth > np.quantile(smooth, 0.85)
    image = mask + random.normal(scale=0.7, size=shape)
    return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(mask)[None]


def trained(steps: int, depth: int = 5) -> torch.nn.Module:
    """The network after a short training; with fewer levels it sees less far."""
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (16, 32, 64, 128, 256)[:depth], (2,) * (depth - 1), num_res_units=2, norm="batch")
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    for step in range(steps):
        pairs = [blobs((48, 48, 48), 10 * step + index) for index in range(2)]
        images, masks = (torch.stack(part) for part in zip(*pairs, strict=True))
        optimiser.zero_grad()
        loss = loss_of(network(images), masks.float())
        loss.backward()
        optimiser.step()
    print(f"trained {steps} steps, last loss {loss.item():.3f}")
    return network.eval()


def stock(network: torch.nn.Module, volume: torch.Tensor, roi: int) -> Labels:
    inferer = SlidingWindowInferer((roi,) * 3, sw_batch_size=4, overlap=0.5, mode="gaussian")
    with torch.no_grad():
        return inferer(volume[None], network)[0].argmax(dim=0).numpy()


def ours(engine: Callable[[torch.Tensor], torch.Tensor], volume: torch.Tensor, settings: WindowSettings) -> Labels:
    labels = np.empty(volume.shape[1:], dtype=np.uint8)
    for chunk in sliding_window(volume, settings, engine):
        part = chunk.scores.max(dim=0)[1].numpy()
        labels[chunk.start : chunk.start + part.shape[0]] = part
    return labels


def variants(network: torch.nn.Module, volume: torch.Tensor, roi: int) -> dict[str, Callable[[], Labels]]:
    own = WindowSettings((roi,) * 3, (0.5,) * 3, "gaussian", batch_size=4)
    runs: dict[str, Callable[[], Labels]] = {"MONAI stock": lambda: stock(network, volume, roi)}
    for name in candidates():
        engine = build_engine(name, network)
        runs[f"{name}, bundle's windows"] = partial(ours, engine, volume, own)
        runs[f"{name}, overlap 0.25"] = partial(ours, engine, volume, replace(own, overlap=(0.25,) * 3))
    return runs


def measure(runs: dict[str, Callable[[], Labels]], repeats: int, truth: Labels) -> list[dict[str, object]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    labels: dict[str, Labels] = {}
    for name, run in runs.items():
        if name.startswith("openvino"):
            run()  # compiles for this size of window
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.process_time()
            labels[name] = run()
            seconds[name].append(time.process_time() - begin)
            print(f"  {name}: {seconds[name][-1]:.2f} s", flush=True)
    base = next(iter(runs))
    return [
        {
            "variant": name,
            "cpu_seconds": statistics.median(seconds[name]),
            "ratio": statistics.median(seconds[base]) / statistics.median(seconds[name]),
            "dice_with_stock": agreement(labels[name].astype(int), labels[base].astype(int)),
            "dice_with_truth": agreement(labels[name].astype(int), truth.astype(int)),
        }
        for name in runs
    ]


def print_table(rows: list[dict[str, object]]) -> None:
    print(f"{'variant':<45}{'CPU s':>9}{'ratio':>8}{'Dice stock':>12}{'Dice truth':>12}")
    for row in rows:
        print(
            f"{row['variant']:<45}{row['cpu_seconds']:>9.2f}{row['ratio']:>8.2f}"
            f"{row['dice_with_stock']:>12.5f}{row['dice_with_truth']:>12.5f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 300, 200))
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--depth", type=int, default=5, help="levels of the network, 5 for 16..256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names of the variants to run beside stock")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = trained(options.steps, options.depth)
    volume, truth = blobs(tuple(options.shape), 99)
    runs = variants(network, volume, options.window)
    chosen = {name: run for name, run in runs.items() if "stock" in name or any(part in name for part in options.only)}
    rows = measure(chosen, options.repeats, truth[0].numpy())
    print_table(rows)
    if options.json:
        facts = {key: getattr(options, key) for key in ("shape", "window", "threads", "steps", "depth")}
        write_json(options.json, json.loads(json.dumps({**facts, "torch": torch.__version__, "rows": rows})))


if __name__ == "__main__":
    main()
