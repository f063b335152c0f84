"""Published whole-head networks, imported and run, against a direct computation from their raw files.

``python -m benchmarks.published MODELS IMAGE OUTPUT``: MODELS holds folders of TensorFlow.js layers models
(``model.json``, ``*.bin``, ``colormap.json``), IMAGE is a conformed T1 head (256³, 1 mm, stored left, inferior,
anterior). Each model is imported, ``medseg infer`` labels the head in a process of its own (seconds, peak memory), and
the raw weights are applied with nothing but ``conv3d``: to the whole head, and to the box that brainchop crops to.
Written to OUTPUT/MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medseg.conversion.imported import ImportOptions
from medseg.conversion.published import import_published
from medseg.files import write_json

Labels = NDArray[np.uint8]
_BRIGHT = 0.2
"""What the browser tool crops to: voxels above a fifth of the largest."""
_PLANES = 8
_WINDOW = 96


def raw_layers(folder: Path) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor, str]]:
    """Each convolution of the files: its config, kernel ``(out, in, D, H, W)``, bias, and the activation after it."""
    model = json.loads((folder / "model.json").read_text())
    layers = model["modelTopology"]["model_config"]["config"]["layers"]
    group = model["weightsManifest"][0]
    raw = np.concatenate([np.fromfile(folder / name, "<f4") for name in group["paths"]])
    held, start = {}, 0
    for entry in group["weights"]:
        count = int(np.prod(entry["shape"]))
        held[entry["name"]] = torch.from_numpy(raw[start : start + count].reshape(entry["shape"]))
        start += count
    for number, layer in enumerate(layers):
        if layer["class_name"] == "Conv3D":
            after = layers[number + 1]["config"]["activation"] if number + 1 < len(layers) else "linear"
            kernel = held[f"{layer['config']['name']}/kernel"].permute(4, 3, 0, 1, 2)
            yield layer["config"], kernel, held[f"{layer['config']['name']}/bias"], after


@torch.inference_mode()
def direct(folder: Path, volume: NDArray[np.float32], *, scores: bool = False) -> NDArray[Any]:
    """Labels, or scores ``(classes, H, W, D)``, of a normalised volume, one whole layer after the other."""
    values = torch.from_numpy(volume)[None, None]
    *body, (_, last, bias, _) = list(raw_layers(folder))
    for config, kernel, shift, activation in body:
        rate = config["dilation_rate"]
        values = functional.conv3d(values, kernel, shift, padding=rate, dilation=rate)
        values = functional.elu_(values) if activation == "elu" else functional.relu_(values)
    if scores:
        return functional.conv3d(values, last, bias)[0].numpy()
    parts = [functional.conv3d(part, last, bias)[0].argmax(0) for part in values.split(_PLANES, dim=2)]
    return torch.cat(parts).numpy().astype(np.uint8)


def normalised(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image as the tool gives it to the network."""
    low, high = float(image.min()), float(image.max())
    if "quantile" in json.loads((folder / "model.json").read_text()).get("_comment", ""):
        flat = np.sort(image, axis=None)
        low, high = float(flat[int(flat.size * 0.05)]), float(flat[int(np.ceil(flat.size * 0.95)) - 1])
    return ((image - low) / (high - low)).astype(np.float32)


def as_browser(folder: Path, volume: NDArray[np.float32]) -> Labels:
    """Labels of the box round what is bright, as the tool crops to save memory."""
    bright = np.argwhere(volume > _BRIGHT * volume.max())
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(bright.min(0), bright.max(0), strict=True))
    labels = np.zeros(volume.shape, np.uint8)
    labels[box] = direct(folder, np.ascontiguousarray(volume[box]))
    return labels


def infer(bundle: Path, image: Path, output: Path, *options: str) -> tuple[Labels, dict[str, float]]:
    """Labels, wall seconds and peak memory of the command (of the largest process so far)."""
    shutil.rmtree(output, ignore_errors=True)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "medseg", "infer", str(bundle), str(image), "-o", str(output), *options]
    subprocess.run(command, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    labels = np.asarray(nib.load(next(output.glob("*_seg.nii.gz"))).dataobj).astype(np.uint8)
    return labels, {
        "seconds": round(time.perf_counter() - begin, 1),
        "core_seconds_so_far": round(used.ru_utime + used.ru_stime, 1),
        "largest_peak_gib_so_far": round(used.ru_maxrss / (1 << 20), 2),
    }


def differing(labels: Labels, others: Labels) -> dict[str, float]:
    """Voxels that differ, and the mean and least Dice of the structures."""
    dice = [
        2 * int(((labels == n) & (others == n)).sum()) / max(int((labels == n).sum() + (others == n).sum()), 1)
        for n in np.union1d(np.unique(labels), np.unique(others))
        if n
    ]
    return {
        "voxels": int((labels != others).sum()),
        "mean_dice": round(float(np.mean(dice)), 4),
        "min_dice": round(float(np.min(dice)), 4),
    }


def sides_ml(labels: Labels, value: int) -> list[float]:
    """Volumes right and left of the brain's middle; the first axis runs to the left, voxels are of 1 mm³."""
    brain = np.argwhere(labels > 0)[:, 0]
    middle = round(float(brain.min() + brain.max()) / 2)
    found = labels == value
    return [round(float(found[:middle].sum()) / 1000, 2), round(float(found[middle:].sum()) / 1000, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--precision", nargs="*", default=[], help="also with these, compared with fp32")
    given = parser.parse_args()
    image = np.asarray(nib.load(given.image).dataobj).astype(np.float32)
    given.output.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path.parent for path in given.models.glob("*/model.json")):
        if given.only and folder.name not in given.only:
            continue
        bundle = given.output / "bundles" / f"{folder.name}_segmentation"
        shutil.rmtree(bundle, ignore_errors=True)
        import_published(folder, bundle.parent, ImportOptions(bundle.name))
        report: dict[str, Any] = {}
        labels, report["infer"] = infer(bundle, given.image, given.output / folder.name)
        volume = normalised(folder, image)
        report["scores"] = _scores(folder, bundle, volume)
        report["direct"] = differing(labels, direct(folder, volume))
        browser = as_browser(folder, volume)
        report["browser"] = differing(labels, browser)
        names = json.loads((folder / "colormap.json").read_text())["labels"]
        for value in (n for n, name in enumerate(names) if name == "Hippocampus"):
            report["hippocampus_right_left_ml"] = sides_ml(labels, value)
            report["browser_hippocampus_ml"] = sides_ml(browser, value)
        for precision in given.precision:
            others, figures = infer(
                bundle, given.image, given.output / f"{folder.name}_{precision}", "--precision", precision
            )
            report[precision] = {**figures, **differing(labels, others)}
        print(folder.name, json.dumps(report, indent=1), flush=True)
        write_json(given.output / f"{folder.name}.json", report)


@torch.inference_mode()
def _scores(folder: Path, bundle: Path, volume: NDArray[np.float32]) -> dict[str, float]:
    """The largest difference of the bundle's scores from the direct ones, in the middle of the head."""
    from medseg.bundle import Bundle

    middle = tuple(slice((n - _WINDOW) // 2, (n + _WINDOW) // 2) for n in volume.shape)
    window = np.ascontiguousarray(volume[middle])
    expected = direct(folder, window, scores=True)
    found = Bundle.open(bundle).load_network()(torch.from_numpy(window)[None, None])[0].numpy()
    return {
        "largest": round(float(np.abs(expected).max()), 2),
        "largest_difference": float(np.abs(found - expected).max()),
    }


if __name__ == "__main__":
    main()
