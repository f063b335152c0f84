"""Take the architecture and the weights from a stranger's bundle, and nothing else.

Many bundles ship Python code, yet their network is a class of MONAI. Parts of ``inference.json`` are judged alone, with
what they refer to; scripts, imports and other configs are neither read nor run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle.audit_configs import judge_config, parse_json, read_imports
from medseg.bundle.audit_expressions import is_import, judge_import
from medseg.bundle.audit_files import judge_safetensors, judge_torch_archive
from medseg.bundle.checkpoints import weight_files
from medseg.bundle.config import ABSENT, SEPARATOR, absolute_text, item_at, referred, strings_in
from medseg.bundle.findings import Finding, blocks
from medseg.errors import BundleError, UntrustedBundle

if TYPE_CHECKING:
    import torch

_FILE = "configs/inference.json"


def load_network_only(path: str | Path) -> torch.nn.Module:
    """Network of a bundle in evaluation mode, from its definition and its weights alone.

    Raises
    ------
    UntrustedBundle
        If the definition is not made of allowed classes, references to such and literals, or the weights could run
        code.
    BundleError
        If one of the two is missing, or they do not fit.
    """
    from medseg.bundle.bundle import Bundle

    return Bundle(Path(path), {}, "network-only").load_network()


def parts_only(folder: Path, config: Mapping[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """Named parts of a bundle's ``inference.json`` and what they refer to, once the audit of these alone is clean.

    Parameters
    ----------
    folder
        The bundle's folder, whose weights are judged, too.
    config
        ``inference.json``, laid out.
    places
        Ids of the parts; those that the config lacks are left out.

    Raises
    ------
    UntrustedBundle
        If one of the parts needs an import, a class or an expression that is not allowed.
    BundleError
        If none of them is there, or the file cannot be read.
    """
    try:
        parse_json((folder / _FILE).read_bytes())  # stricter than the reader: no doubled keys
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / _FILE} cannot be read: {error}") from error
    reduced = _branches(config, places)
    if not reduced:
        raise BundleError(f"{folder / _FILE} states no {' and '.join(places)}; it cannot be used for this")
    reduced = {"imports": _harmless_imports(config), **reduced}
    _refuse(folder, judge_config(_FILE, reduced, read_imports(reduced)))
    for name in weight_files(folder):
        judge = judge_safetensors if name.endswith(".safetensors") else judge_torch_archive
        _refuse(folder, judge(folder / name, name))
    return reduced


def _harmless_imports(config: Mapping[str, Any]) -> list[str]:
    """Those of the config's import statements that the audit allows."""
    texts = [text for _, text in strings_in(config.get("imports", [])) if text.startswith("$")]
    return [text for text in texts if is_import(text[1:]) and not judge_import(text[1:])]


def _branches(config: Mapping[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """What stands at the wanted ids and, in turn, at every id that it names; nothing beside these."""
    reduced: dict[str, Any] = {}
    waiting, done = list(places), set[str]()
    while waiting:
        place = waiting.pop()
        value = item_at(config, place)
        if place in done or value is ABSENT:
            continue
        done.add(place)
        _graft(reduced, config, place.split(SEPARATOR))
        for where, text in strings_in(value, tuple(place.split(SEPARATOR))):
            named = referred(absolute_text(text, where))
            waiting += [name for name in named if name.partition(SEPARATOR)[0] != "imports"]
    return reduced


def _graft(reduced: Any, config: Any, parts: Sequence[str]) -> None:
    """Copy one branch; other items of a list on its way become None."""
    key: Any = int(parts[0]) if isinstance(config, list) else parts[0]
    if isinstance(reduced, list):
        reduced.extend([None] * (len(config) - len(reduced)))
    if len(parts) == 1:
        reduced[key] = copy.deepcopy(config[key])
        return
    if (reduced[key] if isinstance(reduced, list) else reduced.get(key)) is None:
        reduced[key] = [] if isinstance(config[key], list) else {}
    _graft(reduced[key], config[key], parts[1:])


def _refuse(folder: Path, findings: list[Finding]) -> None:
    found = blocks(findings)
    if found:
        raise UntrustedBundle(f"this part of {folder.name} cannot be taken over alone: {found[0]}")
