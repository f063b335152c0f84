"""A bundle's weights: which files its own ``CheckpointLoader``s name, read as data, and put into its network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle.audit_weights import check_header
from medseg.bundle.config import SEPARATOR, Parsed, config_file, follow, item_at, visited
from medseg.bundle.large_files import missing_files
from medseg.bundle.network_building import NetworkTooLarge, elements_in, frugal, lacks_memory, take_memory
from medseg.bundle.pipeline import Pipeline
from medseg.bundle.text_limits import read_text_file
from medseg.errors import BundleError

if TYPE_CHECKING:
    import torch

    _Load = tuple[Mapping[str, torch.Tensor], bool]
    """A state dict that was loaded, and whether it had to fit exactly."""

WEIGHT_FILES = ("models/model.safetensors", "models/model.pt")
"""Where weights lie if the config names none."""

_SUFFIXES = (".safetensors", ".pt")
_WITHOUT_WEIGHTS = 1 << 28
"""Elements of a network that is built to say that its weights are missing."""
_USUAL_KEYS = ("model", "state_dict", "network", "net")


def weight_files(folder: Path) -> list[str]:
    """Weights of a bundle that its ``inference.json`` may load: the usual two, and others that its text names.

    Told by the text alone, so that the audit and the bundle's digest know them, too.
    """
    config = config_file(folder, "inference")
    try:
        text = "" if config is None else read_text_file(config)
    except ValueError as error:
        raise BundleError(f"{config} is no config: {error}") from error
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


def filled_network(
    build: Callable[[], torch.nn.Module], folder: Path, config: Mapping[str, Any], pipeline: Pipeline, parsed: Parsed
) -> torch.nn.Module:
    """A bundle's network with the weights that its configuration names, loaded one loader after the other.

    ``build`` makes the network that its definition describes, afresh each time; ``config`` is the laid-out text,
    ``parsed`` those parts of it that may be evaluated; paths start in ``folder``. No memory is taken for weights that
    the files do not hold. Raises ``BundleError`` if weights are missing, do not fit, are not finite, or two files of
    weights contradict each other.
    """
    name, sizes = folder.resolve().name, elements_in([folder / file for file in weight_files(folder)])
    network: torch.nn.Module | None = None
    try:
        with frugal(sizes or _WITHOUT_WEIGHTS, name, without_memory=True):
            network = build()
    except NetworkTooLarge:
        raise
    except BundleError:  # one that looks at its weights while it is built
        network = None
    if network is not None:
        loads = _loads(network, folder, config, pipeline, parsed)
        if not lacks_memory(network):
            return network
        if take_memory(network, [state for state, _ in loads]):
            return _load_all(network, loads)
    with frugal(sizes or _WITHOUT_WEIGHTS, name, without_memory=False):
        network = build()
    _loads(network, folder, config, pipeline, parsed)
    return network


def _load_all(network: torch.nn.Module, loads: list[_Load]) -> torch.nn.Module:
    for state, strict in loads:
        network.load_state_dict(dict(state), strict=strict)
    return network


def _loads(
    network: torch.nn.Module, folder: Path, config: Mapping[str, Any], pipeline: Pipeline, parsed: Parsed
) -> list[_Load]:
    """Load what the configuration names; what was loaded, each with whether it must fit exactly."""
    keys = {place: _key_of(config, place, pipeline) for place in pipeline.loaders if parsed.enabled(place)}
    loaders = {place: key for place, key in keys.items() if key is not None}
    if not loaders:
        return [_fill(network, state_in(_default(folder), None), folder, strict=True)]
    left = set(network.state_dict())
    loads: list[_Load] = []
    for place, key in loaders.items():
        file = _named(folder, parsed.get(f"{place}{SEPARATOR}load_path"), place)
        strict, same_shape = (
            bool(parsed.get(f"{place}{SEPARATOR}{name}", default=True)) for name in ("strict", "strict_shape")
        )
        usual = file.relative_to(folder).as_posix() in WEIGHT_FILES
        state = state_in(_default(folder) if usual else (file, read_data(file)), key)
        loads.append(_fill(network, state, folder, strict=strict and same_shape, same_shape=same_shape))
        left -= set(loads[-1][0])
    random = sorted(key for key in left if not key.endswith("num_batches_tracked"))
    if random:
        raise BundleError(
            f"the weights of {folder.resolve().name} do not fit its network_def: no file that the config loads holds"
            f" {random[0]} ({len(random)} such), which would stay at chance"
        )
    return loads


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
    return state_in((path, read_data(path)), None)


def read_data(path: Path) -> Any:
    """What a file of weights holds, as data only; a ``BundleError`` if it cannot be read, or would run code."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            check_header(path)
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(loaded, dict):
        return loaded
    return {key: plain(part) if isinstance(part, dict) else part for key, part in plain(loaded).items()}


def plain(value: object) -> dict[Any, Any]:
    """A table without what a pickle may have put in the place of its methods; anything else is an empty one."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _is_state(value: Any) -> bool:
    import torch

    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _default(folder: Path) -> tuple[Path, Any]:
    """What ``models/model.*`` holds; the two files must agree."""
    found = [(folder / name, read_data(folder / name)) for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        missing, _ = missing_files(folder)
        remedy = f"{missing[0].instruction}, or: medseg bundle import --fetch" if missing else "train it first"
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
) -> _Load:
    """Load a state dict, as far as the network has memory; what was loaded, and how."""
    own, name = network.state_dict(), folder.resolve().name
    if not strict:
        state = {key: value for key, value in state.items() if key in own}
    if not same_shape:
        state = {key: value for key, value in state.items() if value.shape == own[key].shape}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is copied yet into weights without memory
            network.load_state_dict(dict(state), strict=strict)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BundleError(f"the weights of {name} do not fit its network_def: {error}") from error
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise BundleError(f"the weights of {name} are not finite in {bad[0]}; train it again")
    return state, strict


def _same_state(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    import torch

    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
