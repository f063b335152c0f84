"""A bundle's weights: which files its own ``CheckpointLoader``s name, read as data, and put into its network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle.config import SEPARATOR, Parsed, config_file, follow, item_at, visited
from medseg.bundle.pipeline import Pipeline
from medseg.errors import BundleError

if TYPE_CHECKING:
    import torch

WEIGHT_FILES = ("models/model.safetensors", "models/model.pt")
"""Where weights lie if the config names none."""

_SUFFIXES = (".safetensors", ".pt")
_USUAL_KEYS = ("model", "state_dict", "network", "net")


def weight_files(folder: Path) -> list[str]:
    """Weights of a bundle that its ``inference.json`` may load: the usual two, and others that its text names.

    Told by the text alone, so that the audit and the bundle's digest know them, too.
    """
    config = config_file(folder, "inference")
    text = "" if config is None else config.read_text(encoding="utf-8", errors="replace")
    found = {
        path.relative_to(folder).as_posix()
        for suffix in _SUFFIXES
        for path in folder.rglob(f"*{suffix}")
        if path.name in text or path.stem in text
    }
    usual = {name for name in WEIGHT_FILES if (folder / name).is_file()}
    return sorted(name for name in found | usual if not name.startswith(("runs/", "trust/")))


def loaded_files(folder: Path, config: Mapping[str, Any], pipeline: Pipeline) -> list[str]:
    """Which of its weights a bundle's loaders spell out, told by the text alone; the usual ones if none are."""
    known = weight_files(folder)
    starts = [f"{place}{SEPARATOR}load_path" for place in pipeline.loaders]
    texts = " ".join(text for start in starts for _, text in visited(config, start) if isinstance(text, str))
    named = [name for name in known if re.search(rf"(?<![\w.-]){re.escape(Path(name).name)}(?![\w.-])", texts)]
    return [name for name in known if name in WEIGHT_FILES] if not named or set(named) & set(WEIGHT_FILES) else named


def weight_places(pipeline: Pipeline) -> list[str]:
    """Ids of what has to be evaluated to know which weights a bundle loads."""
    parts = ("load_path", "strict", "strict_shape", "_disabled_")
    return [f"{place}{SEPARATOR}{part}" for place in pipeline.loaders for part in parts]


def fill_network(
    network: torch.nn.Module, folder: Path, config: Mapping[str, Any], pipeline: Pipeline, parsed: Parsed
) -> torch.nn.Module:
    """Load the weights that a bundle's configuration names, one loader after the other, into its network.

    ``config`` is its laid-out text, ``parsed`` those parts of it that may be evaluated; paths start in ``folder``.
    Raises ``BundleError`` if weights are missing, do not fit, are not finite, or two files of weights contradict each
    other.
    """
    keys = {place: _key_of(config, place, pipeline) for place in pipeline.loaders if parsed.enabled(place)}
    loaders = {place: key for place, key in keys.items() if key is not None}
    if not loaders:
        _fill(network, state_in(_default(folder), None), folder, strict=True)
        return network
    left = set(network.state_dict())
    for place, key in loaders.items():
        file = _named(folder, parsed.get(f"{place}{SEPARATOR}load_path"), place)
        strict, same_shape = (
            bool(parsed.get(f"{place}{SEPARATOR}{name}", default=True)) for name in ("strict", "strict_shape")
        )
        usual = file.relative_to(folder).as_posix() in WEIGHT_FILES
        state = state_in(_default(folder) if usual else (file, _read(file)), key)
        left -= _fill(network, state, folder, strict=strict and same_shape, same_shape=same_shape)
    random = sorted(key for key in left if not key.endswith("num_batches_tracked"))
    if random:
        raise BundleError(
            f"the weights of {folder.resolve().name} do not fit its network_def: no file that the config loads holds"
            f" {random[0]} ({len(random)} such), which would stay at chance"
        )
    return network


def state_in(read: tuple[Path, Any], key: str | None) -> dict[str, torch.Tensor]:
    """The state dict in what a file of weights holds: bare, or under the key that a loader names, or the only one.

    Raises ``BundleError`` if there is none, or more than one and none is named.
    """
    file, found = read
    if not isinstance(found, Mapping):
        raise BundleError(f"{file} holds a {type(found).__name__}, expected a state dict (names to tensors)")
    if key is not None and _is_state(found.get(key)):
        return dict(found[key])
    if _is_state(found):
        return dict(found)
    states = [name for name, value in found.items() if _is_state(value)]
    usual = [name for name in _USUAL_KEYS if name in states]
    if len(states) == 1 or (len(usual) == 1 and key is None):
        return dict(found[usual[0] if usual else states[0]])
    wanted = f"{key!r}, as load_dict names it" if key is not None else "one state dict"
    raise BundleError(
        f"{file} is not a bare state dict (names to tensors): it holds {', '.join(map(repr, sorted(map(str, found))))},"
        f" expected {wanted}; save the network's state_dict()"
    )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict of one weights file (``.safetensors``, or ``.pt`` without code), as data only; checkpoints of a
    training that hold one state dict are read, too.

    Raises ``BundleError`` if it cannot be read, or holds no state dict.
    """
    return state_in((path, _read(path)), None)


def _read(path: Path) -> Any:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path} cannot be read as weights: {error}") from error


def _is_state(value: Any) -> bool:
    import torch

    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _default(folder: Path) -> tuple[Path, Any]:
    """What ``models/model.*`` holds; the two files must agree."""
    found = [(folder / name, _read(folder / name)) for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        fetch = f"python -m monai.bundle download_large_files --bundle_path {folder}"
        remedy = fetch if (folder / "large_files.yml").is_file() else "train it first"
        expected = " or ".join(WEIGHT_FILES)
        raise BundleError(f"bundle {folder.resolve().name} has no weights: expected {expected}; {remedy}")
    if len(found) == 2 and not _same_state(*(state_in(read, None) for read in found)):
        both = " and ".join(file.name for file, _ in found)
        raise BundleError(f"{both} of {folder.resolve().name} hold different weights; delete the one out of date")
    return found[-1]


def _named(folder: Path, path: Any, place: str) -> Path:
    """The file that a loader names, which must be one of the bundle's own."""
    where = f"{place}::load_path in the config for inference of {folder.resolve().name}"
    if not isinstance(path, str | Path):
        raise BundleError(f"{where} is {path!r}, expected the path of a file of weights")
    root = folder.resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        raise BundleError(f"{where} names {path}, which is not in the bundle; put the weights into models/")
    name = file.relative_to(root).as_posix()
    if name in WEIGHT_FILES:
        return folder / name
    if not file.is_file() or file.suffix not in _SUFFIXES:
        raise BundleError(f"{where} names {name}, expected a file that exists, {' or '.join(_SUFFIXES)}")
    if name not in weight_files(folder):
        raise BundleError(f"{where} comes to {name}, a name that the config does not spell out; write it in full")
    return folder / name


def _key_of(config: Mapping[str, Any], place: str, pipeline: Pipeline) -> str | None:
    """Under which key a loader looks for the network's state; None if it loads other things."""
    load_dict = f"{place}{SEPARATOR}load_dict"
    given = item_at(config, follow(config, load_dict))
    for key in given if isinstance(given, Mapping) else ():
        value = f"{follow(config, load_dict)}{SEPARATOR}{key}"
        if pipeline.network in {follow(config, value), *(where for where, _ in visited(config, value))}:
            return str(key)
    return None


def _fill(
    network: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: Path, *, strict: bool, same_shape: bool = True
) -> set[str]:
    """Load a state dict; which of the network's own keys it held."""
    own, name = network.state_dict(), folder.resolve().name
    if not strict:
        state = {key: value for key, value in state.items() if key in own}
    if not same_shape:
        state = {key: value for key, value in state.items() if value.shape == own[key].shape}
    try:
        network.load_state_dict(dict(state), strict=strict)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BundleError(f"the weights of {name} do not fit its network_def: {error}") from error
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise BundleError(f"the weights of {name} are not finite in {bad[0]}; train it again")
    return set(state)


def _same_state(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    import torch

    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
