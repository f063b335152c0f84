"""Take the architecture and the weights from a stranger's bundle, and nothing else.

Many bundles ship Python code, yet their network is a class of MONAI. Parts of ``inference.json`` are judged alone, with
what they refer to; scripts, imports and other configs are neither read nor run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle.configs import judge_config, parse_json, read_imports
from medseg.bundle.expressions import is_import, judge_import
from medseg.bundle.findings import Finding, blocks
from medseg.bundle.references import SEPARATOR, absolute_text, referred, strings_in
from medseg.bundle.weights import judge_safetensors, judge_torch_archive
from medseg.errors import BundleError, UntrustedBundle

if TYPE_CHECKING:
    import torch

__all__ = ["load_network_only", "sections_only"]

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


def sections_only(path: str | Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Named parts of a bundle's ``inference.json`` and what they refer to, once the audit of these alone is clean.

    Raises
    ------
    UntrustedBundle
        If one of the parts needs an import, a class or an expression that is not allowed.
    BundleError
        If one of them is missing, or the file cannot be read.
    """
    folder = Path(path)
    file = folder / "configs" / "inference.json"
    try:
        config = parse_json(file.read_bytes())
        wanted = {name: config[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} states no {' and '.join(names)} that can be read: {error}") from error
    reduced = {"imports": _harmless_imports(config), **_with_references(config, wanted)}
    _refuse(folder, judge_config("configs/inference.json", reduced, read_imports(reduced)))
    return reduced


def _harmless_imports(config: dict[str, Any]) -> list[str]:
    """Those of the config's import statements that the audit allows."""
    texts = [text for _, text in strings_in(config.get("imports", [])) if text.startswith("$")]
    return [text for text in texts if is_import(text[1:]) and not judge_import(text[1:])]


def _with_references(config: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The wanted items and, in turn, every item that they name."""
    found: dict[str, Any] = {}
    waiting = dict(wanted)
    while waiting:
        found.update(waiting)
        named = {
            name.split(SEPARATOR)[0]
            for key, value in waiting.items()
            for place, text in strings_in(value, (key,))
            for name in referred(absolute_text(text, place))
        }
        waiting = {name: config[name] for name in named - {"imports"} if name in config and name not in found}
    return found


def _definition(folder: Path) -> dict[str, Any]:
    definition = {"network_def": sections_only(folder, ("network_def",))["network_def"]}
    for _, text in strings_in(definition):
        if text[:1] in {"$", "@", "%"}:
            raise UntrustedBundle(f"network_def of {folder.name} holds {text!r}; only literals can be taken over alone")
    return definition


def _refuse(folder: Path, findings: list[Finding]) -> None:
    found = blocks(findings)
    if found:
        raise UntrustedBundle(f"this part of {folder.name} cannot be taken over alone: {found[0]}")


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
