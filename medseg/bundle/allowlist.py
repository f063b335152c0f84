"""What a bundle may name: targets, functions, values, attributes, imports. Everything else is refused.

Nothing here is a block-list. A name that is missing is refused and can be added after it has been read: a class
must not import by name, unpickle, compile, download or run a program with the arguments that a config gives it.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
_STORED: dict[str, Any] = json.loads((_PACKAGE / "data" / "allowed_names.json").read_text())
_MEDSEG_ROOMS = ("training", "networks", "transforms")
_MEDSEG_MODULES = ("evaluation.handlers",)  # the rest of that room writes files

_MODULE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NOT_FOR_CONFIGS = frozenset({"train_bundle", "save_weights"})  # runs another bundle; writes where it is told

ROOTS: dict[str, str] = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}
"""Names that MONAI's config parser defines before any import, and the modules they stand for."""

IMPORTS: dict[str, frozenset[str]] = {
    **{module: frozenset(names) for module, names in _STORED["imports"].items()},
    "medseg": frozenset({"medseg"}),
    **{f"medseg.{room}": frozenset[str]() for room in _MEDSEG_ROOMS},
}
"""Modules that may be imported, each with the names it may be bound to (never one that hides another name)."""

BUILTINS: frozenset[str] = frozenset(_STORED["builtins"])
"""Built-in functions that compute on what they are given and reach nothing else."""

ATTRIBUTES: frozenset[str] = frozenset(_STORED["attributes"])
"""Attributes and methods of values (tensors, engines, lists, strings) that only compute or drive the engine."""

READERS_AND_WRITERS = frozenset(
    {"ITKReader", "NibabelReader", "NrrdReader", "PILReader", "PydicomReader", "NibabelWriter", "ITKWriter"}
    | {"itkreader", "nibabelreader", "nrrdreader", "pilreader", "pydicomreader", "AvgMerger"}
)
"""Names that ``reader``, ``writer`` and ``merger_cls`` may take: MONAI imports whatever string stands there."""

_SINGLE_TARGETS = frozenset(
    {"torch.device", "torch.nn.parallel.DistributedDataParallel", "torch.utils.tensorboard.SummaryWriter"}
)
_LOADERS = frozenset({"LoadImage", "SaveImage", "PatchInferer", "PersistentDataset", "CacheNTransDataset", "HoVerNet"})

_FUNCTIONS = frozenset(f"{module}.{name}" for module, names in _STORED["functions"].items() for name in names)
_VALUES = frozenset(f"{module}.{name}" for module, names in _STORED["values"].items() for name in names)

_VALUE_PATTERNS = (
    re.compile(r"monai\.utils\.(enums\.)?[A-Z][A-Za-z]+\.[A-Z][A-Z0-9_]*"),
    re.compile(r"monai\.engines\.(utils\.)?[A-Z][A-Za-z]+Events\.[A-Z][A-Z_]*"),
    re.compile(r"ignite\.engine\.(events\.)?Events\.[A-Z][A-Z_]*"),
    re.compile(r"medseg\.training\.[A-Z][A-Za-z]+\.[A-Z][A-Z_]*"),
    re.compile(r"monai\.networks\.layers\.(factories\.)?(Act|Norm|Conv|Pool|Dropout|Pad)\.[A-Z0-9_]+"),
)


@cache
def _known_targets() -> tuple[dict[str, frozenset[str]], frozenset[str]]:
    """Names by package, and the packages' submodules, as frozen in ``data/known_targets.json``."""
    stored = json.loads((_PACKAGE / "data" / "known_targets.json").read_text())
    return {name: frozenset(names) for name, names in stored["packages"].items()}, frozenset(stored["modules"])


@cache
def _bare_names() -> frozenset[str]:
    """Names that MONAI's component locator finds without a module path."""
    packages, _ = _known_targets()
    return frozenset().union(*(names for package, names in packages.items() if package.startswith("monai.")))


@cache
def _medseg_names(module: str) -> frozenset[str]:
    """Public names of one of medseg's own modules, read from its ``__all__`` without importing it."""
    parts = module.split(".")
    if not (parts[0] in _MEDSEG_ROOMS or module in _MEDSEG_MODULES) or not all(
        _MODULE_NAME.fullmatch(part) for part in parts
    ):
        return frozenset()
    place = _PACKAGE.parent.joinpath(*parts)
    source = next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)
    names: set[str] = set()
    for node in ast.parse(source.read_text()).body if source else ():
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                names.update(str(c.value) for c in ast.walk(node.value) if isinstance(c, ast.Constant))
    return frozenset(names - _NOT_FOR_CONFIGS)


def is_target(name: str) -> bool:
    """Whether ``name`` may stand in ``_target_``, or be called or passed on in an expression, as a class.

    >>> is_target("UNet"), is_target("torch.optim.AdamW"), is_target("os.system"), is_target("builtins.eval")
    (True, True, False, False)
    """
    if "." not in name:
        return name in _bare_names()
    module, _, last = name.rpartition(".")
    if module.startswith("medseg."):
        return last in _medseg_names(module.removeprefix("medseg."))
    packages, submodules = _known_targets()
    if module in packages:
        return last in packages[module]
    if module not in submodules:
        return name in _SINGLE_TARGETS
    return any(module.startswith(f"{package}.") and last in names for package, names in packages.items())


def is_function(name: str) -> bool:
    """Whether the dotted ``name`` is a function that only computes (or reads a folder's listing)."""
    return name in _FUNCTIONS or ("." in name and is_target(name))


SHIPPED = "code that comes with the bundle"
"""How findings call what :func:`is_shipped` knows."""


def is_shipped(name: str) -> bool:
    """Whether a dotted name is that of code in the bundle: the model zoo's bundles keep theirs in ``scripts``.

    >>> is_shipped("scripts.networks.Evil"), is_shipped("monai.bundle.scripts")
    (True, False)
    """
    return name.partition(".")[0] == "scripts"


def is_loader(name: str) -> bool:
    """Whether an allowed class imports, unpickles or fetches what one of its positional arguments names.

    Such a class may be instantiated with literal keyword arguments, but not be handed on or called by position.
    """
    short = name.rpartition(".")[2]
    return short in _LOADERS or short.removesuffix("Dict").rstrip("dD") in _LOADERS


def is_value(name: str) -> bool:
    """Whether the dotted ``name`` is a constant such as a data type or an event."""
    return name in _VALUES or any(pattern.fullmatch(name) for pattern in _VALUE_PATTERNS)
