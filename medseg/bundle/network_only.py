"""Take the architecture and the weights from a stranger's bundle, and nothing else.

Many bundles ship Python code for transforms, yet their network is a class of MONAI. Its ``network_def`` is judged
alone; scripts, other configs and expressions are neither read nor run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle.configs import judge_config, parse_json
from medseg.bundle.findings import Finding, blocks
from medseg.bundle.weights import judge_safetensors, judge_torch_archive
from medseg.errors import BundleError, UntrustedBundle

if TYPE_CHECKING:
    import torch

__all__ = ["load_network_only"]

_WEIGHTS = ("models/model.safetensors", "models/model.pt")


def load_network_only(path: str | Path) -> torch.nn.Module:
    """Network of a bundle in evaluation mode, from its ``network_def`` and its weights alone.

    Raises
    ------
    UntrustedBundle
        If ``network_def`` is not made of allowed classes and literals, or the weights could run code.
    BundleError
        If one of the two is missing, or they do not fit.
    """
    folder = Path(path)
    definition = _definition(folder)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise BundleError(f"{folder.name} has no weights; expected {' or '.join(_WEIGHTS)}")
    judge = judge_safetensors if weights.suffix == ".safetensors" else judge_torch_archive
    _refuse(folder, judge(weights, f"models/{weights.name}"))
    return _build(folder, definition, weights)


def _definition(folder: Path) -> dict[str, Any]:
    file = folder / "configs" / "inference.json"
    try:
        definition = parse_json(file.read_bytes())["network_def"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} states no network_def that can be read: {error}") from error
    _refuse(folder, judge_config("configs/inference.json", {"network_def": definition}, {}))
    for text in _texts(definition):
        if text[:1] in {"$", "@", "%"}:
            raise UntrustedBundle(f"network_def of {folder.name} holds {text!r}; only literals can be taken over alone")
    return {"network_def": definition}


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _refuse(folder: Path, findings: list[Finding]) -> None:
    found = blocks(findings)
    if found:
        raise UntrustedBundle(f"the network of {folder.name} cannot be taken over: {found[0]}")


def _build(folder: Path, definition: dict[str, Any], weights: Path) -> torch.nn.Module:
    import torch
    from monai.bundle import ConfigParser
    from safetensors.torch import load_file

    network: torch.nn.Module = ConfigParser(definition).get_parsed_content("network_def")
    if weights.suffix == ".safetensors":
        state: Any = load_file(weights)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and set(state) == {"model"}:
        state = state["model"]  # some bundles save the dictionary of MONAI's CheckpointSaver
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BundleError(f"the weights of {folder.name} do not fit its network_def: {error}") from error
    return network.eval()
