"""Predictions of many qualities with their ground truth, kept on disk: what the benchmark of trust works on.

For every run of training with a held-out fold there is one file per way of making predictions worse, its arrays in half
precision. What is there is not made again. Nothing but the weights of the last epoch is needed of a run: results of a
poor network are those of this one with its weights disturbed.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import nn

from medseg.bundle import Bundle
from medseg.devices import computes_bf16
from medseg.files import atomic_path
from medseg.inference.config import read_inference_config
from medseg.inference.sliding_window import WindowSettings
from medseg.training import fold_items
from medseg.trust.crop import Crop
from medseg.trust.fit_cases import TrustCase
from medseg.trust.synthetic_faults import IMAGE_FAULTS, MASK_FAULTS, displaced

WEAK = ("weak", "weak+1")
KINDS = ("own", *MASK_FAULTS, *WEAK, "crop", *IMAGE_FAULTS)
"""What figures speak of; behind the plus is the number of a further draw."""
DISTURBED = (0.3, 1.0)
"""Spread of the factors near one by which the weights of a poor network are multiplied, from the least to the most."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """One training run: its folder and the fold it has not seen."""

    folder: Path
    fold: int

    @property
    def weights(self) -> Path:
        """Weights of the moving average after the last epoch."""
        return self.folder / "checkpoints" / "final.pt"

    @property
    def discriminator(self) -> Path:
        """The discriminator of the same epoch."""
        return self.weights.with_name(self.weights.stem + "_discriminator.pt")

    def snapshot(self, iteration: int) -> Path:
        """A checkpoint of this iteration, if the run has kept it."""
        return self.folder / "weak" / f"checkpoint-{iteration:06d}.pt"


def load_network(bundle: Bundle, weights: Path) -> nn.Module:
    """The bundle's network with weights of a run; a checkpoint gives the generator as it was."""
    name = bundle.pipeline.network
    network: nn.Module = bundle.parsed(name).get(name)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict(state["generator"]["network"] if "generator" in state else state)
    return network.eval()


def disturbed(network: nn.Module, rng: np.random.Generator) -> nn.Module:
    """A poor network: this one, every weight of its convolutions multiplied by a factor near one."""
    poor = copy.deepcopy(network)
    spread = rng.uniform(*DISTURBED)
    for weight in (one for one in poor.parameters() if one.ndim == 5):
        weight.data *= torch.from_numpy(rng.normal(1.0, spread, tuple(weight.shape)).astype(np.float32))
    return poor


def probabilities_of(network: nn.Module, image: Floats, windows: WindowSettings | None = None) -> Floats:
    """Softmax of the network ``(K, H, W, D)``, in a bundle's windows, or at a sixth of the cost in one window.

    In one window, padded to a multiple of four, the answers differ a little, as those of another set of windows do.
    It is computed in bf16 where the processor does.
    """
    pads = [(0, 0) if windows else ((-n % 4) // 2, -n % 4 - (-n % 4) // 2) for n in image.shape]
    padded = torch.from_numpy(np.pad(image, pads))[None, None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16(torch.device("cpu"))):
        if windows is None:
            logits = network(padded)
        else:
            logits = sliding_window_inference(padded, windows.roi_size, 1, network, windows.overlap, windows.mode)
    found = logits[0].float().softmax(0).numpy()
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pads, image.shape, strict=True))
    return np.asarray(found[(slice(None), *inside)], dtype=np.float32)


def prepared(bundle: Bundle, data: Path, fold: int, part: str = "validation") -> list[dict[str, Any]]:
    """Images as the network sees them and references, ``(H, W, D)``, of the cases of a fold."""
    from monai.transforms import Compose, LoadImaged, Orientationd

    recipe = read_inference_config(bundle)
    load = Compose(
        [LoadImaged(["image", "label"], ensure_channel_first=True), Orientationd("label", "RAS", labels=None)]
    )
    patients = _patients(bundle)
    cases = []
    for item in fold_items(bundle.path / "configs" / "datalist.json", data, fold, part):  # type: ignore[arg-type]
        loaded = load({"image": item["image"], "label": item["label"]})
        image = recipe.preprocessing({"image": loaded["image"]})["image"].as_tensor()[0].numpy()
        reference = loaded["label"].as_tensor()[0].numpy().astype(np.uint8)
        name = Path(item["image"]).name
        cases.append(
            {"image": image.astype(np.float32), "reference": reference, "patient": patients[name], "name": name}
        )
    return cases


def _patients(bundle: Bundle) -> dict[str, str]:
    import json

    items = json.loads((bundle.path / "configs" / "datalist.json").read_text())["training"]
    return {Path(item["image"]).name: item["patient_id"] for item in items}


def worse(kind: str, case: dict[str, Any], own: Floats, network: nn.Module) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Image, probabilities and reference of a case made worse; ``own`` leaves it as it is, labelled in one window."""
    rng, name = np.random.default_rng(zlib.crc32(f"{case['name']} {kind}".encode())), kind.partition("+")[0]
    image, reference = case["image"], case["reference"]
    if name in MASK_FAULTS:
        return image, MASK_FAULTS[name](own, rng), reference
    if name == "crop":
        image, reference = displaced(image, reference, rng)
    elif name in IMAGE_FAULTS:
        image = IMAGE_FAULTS[name](image, rng)
    return image, probabilities_of(disturbed(network, rng) if name == "weak" else network, image), reference


def make(bundle: Bundle, data: Path, run: Run, cache: Path) -> None:
    """Make what is not there yet, one file per kind."""
    folder = cache / run.folder.name
    folder.mkdir(parents=True, exist_ok=True)
    missing = [kind for kind in KINDS if not (folder / f"{kind}.npz").is_file()]
    if not missing:
        return
    cases, windows = prepared(bundle, data, run.fold), read_inference_config(bundle).windows
    network = load_network(bundle, run.weights)
    own: list[Floats] = []
    for kind in missing:
        content: dict[str, Any] = {"patients": np.array([case["patient"] for case in cases])}
        if kind in MASK_FAULTS and not own:
            with np.load(folder / "own.npz") as kept:
                own = [read(kept, i, "own").crop.probabilities.numpy() for i in range(len(cases))]
        for i, case in enumerate(cases):
            if kind == "own":
                made = case["image"], probabilities_of(network, case["image"], windows), case["reference"]
            else:
                made = worse(kind, case, own[i] if own else np.empty(0, np.float32), network)
            content |= {f"i{i}": made[0].astype(np.float16), f"p{i}": made[1][1:].astype(np.float16)}
            content |= {f"r{i}": made[2]}
        with atomic_path(folder / f"{kind}.npz") as partial, partial.open("wb") as handle:
            np.savez(handle, **content)


def read(content: Mapping[str, Any], i: int, kind: str) -> TrustCase:
    """Case ``i`` of one open file."""
    rest = content[f"p{i}"].astype(np.float32)
    total = rest.sum(axis=0)
    rest /= np.maximum(total, 1.0)
    whole = np.concatenate([np.maximum(1.0 - total, 0.0)[None], rest])
    image = torch.from_numpy(content[f"i{i}"].astype(np.float32))[None]
    crop = Crop(image, torch.from_numpy(whole))
    return TrustCase(crop, content[f"r{i}"], str(content["patients"][i]), None if kind == "own" else kind)
