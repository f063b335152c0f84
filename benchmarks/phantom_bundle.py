"""A bundle for benchmarks: a small U-Net for up to 14 structures of synthetic CT patients.

It is the shipped phantom bundle's network with a last layer fitted to one patient in seconds: good enough that label
maps look like label maps (which is what their cost depends on), and no better.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import BasicUNet

from medseg.files import write_json
from medseg.phantom import make_patient
from medseg.phantom.anatomy import label_names

SPACING_MM = 3.0
"""Grid of the network, as that of the fast variant of TotalSegmentator."""

STRUCTURES = 14
_SHIPPED = Path(__file__).parents[1] / "bundles" / "phantom_ct_segmentation"
_NETWORK = {
    "spatial_dims": 3,
    "in_channels": 1,
    "features": [8, 16, 32, 64, 64, 8],
    "act": ["LeakyReLU", {"negative_slope": 0.1, "inplace": True}],
    "norm": "batch",
    "bias": False,
}


def fitted_state(file: Path) -> dict[str, torch.Tensor]:
    """Weights for all structures; made once and kept in ``file``."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_fit(), file)
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return state


def _fit() -> dict[str, torch.Tensor]:
    """The shipped network's features, and a last layer fitted to them by multinomial regression."""
    torch.manual_seed(0)
    network = BasicUNet(out_channels=STRUCTURES + 1, **_NETWORK).eval()
    shipped = torch.load(_SHIPPED / "models" / "model.pt", weights_only=True)
    network.load_state_dict({k: v for k, v in shipped.items() if not k.startswith("final_conv")}, strict=False)
    last, network.final_conv = network.final_conv, torch.nn.Identity()
    image, label = _patient()
    with torch.inference_mode():
        features = network(image[None, None])[0].flatten(1)
    chosen = torch.randint(0, label.numel(), (200_000,))
    inputs, targets = features[:, chosen].T.clone()[..., None, None, None], label.flatten()[chosen].long()
    optimiser = torch.optim.Adam(last.parameters(), lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(last(inputs).flatten(1), targets)
        loss.backward()
        optimiser.step()
    print(f"fitted the last layer, cross-entropy {loss.item():.3f}", flush=True)
    network.final_conv = last
    return network.state_dict()


def _patient() -> tuple[torch.Tensor, torch.Tensor]:
    """Image scaled to −1 to 1 and labels, in RAS."""
    phantom = make_patient(
        1000, shape=(112, 112, 72), spacing_mm=(SPACING_MM,) * 3, structures=STRUCTURES, lesion=False
    )
    image = np.clip((phantom.image.astype(np.float32) + 150) / 200 - 1, -1, 1)[::-1, ::-1]
    return torch.from_numpy(image.copy()), torch.from_numpy(phantom.label[::-1, ::-1].copy())


def write_bundle(folder: Path, structures: int, state: dict[str, torch.Tensor]) -> Path:
    """Write a bundle for the first ``structures`` structures, from the shipped one for phantoms."""
    config = json.loads((_SHIPPED / "configs" / "inference.json").read_text())
    config["spacing_mm"] = [SPACING_MM] * 3
    config["network_def"] |= _NETWORK | {"out_channels": structures + 1}
    config["inferer"] |= {"roi_size": [96, 96, 96], "overlap": 0.25}
    metadata = json.loads((_SHIPPED / "configs" / "metadata.json").read_text())
    del metadata["training_range"]
    prediction = metadata["network_data_format"]["outputs"]["pred"]
    prediction["num_channels"] = structures + 1
    prediction["channel_def"] = {str(n): name for n, name in {0: "background", **label_names(structures)}.items()}
    del prediction["segment_codes"]
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "configs").mkdir(exist_ok=True)
    write_json(folder / "configs" / "inference.json", config)
    write_json(folder / "configs" / "metadata.json", metadata)
    torch.save(_first_structures(state, structures), folder / "models" / "model.pt")
    return folder


def _first_structures(state: dict[str, torch.Tensor], structures: int) -> dict[str, torch.Tensor]:
    last = {key: value[: structures + 1] for key, value in state.items() if key.startswith("final_conv")}
    return {**state, **last}
