"""Packages that a bundle needs beside MONAI's own: known before anything is built, none of them imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from medseg.bundle.config import reached, target_of
from medseg.errors import MissingDependency

_NETWORKS_WITH_EINOPS = frozenset(
    {"SwinUNETR", "SwinTransformer", "UNETR", "ViT", "ViTAutoEnc", "MaskedAutoEncoderViT", "NaViT", "Restormer"}
)
"""Classes of MONAI's that come to need it in their first window, if not while they are built."""
_STEPS_WITH_SCIKIT_IMAGE = frozenset({"KeepLargestConnectedComponent", "RemoveSmallObjects"})
_PARTS = ("network_def", "network", "preprocessing", "postprocessing", "inferer", "evaluator")
_STATED = ("required_packages_version", "optional_packages_version")


def missing_packages(config: Mapping[str, Any], places: Iterable[str] = _PARTS) -> Iterator[tuple[str, str, str]]:
    """Packages that are not installed, of the components that the ids ``places`` of a laid-out config come to.

    Gives package, id and class of each that needs one.
    """
    seen = set[str]()
    for start in places:
        for place, component in reached(config, start):
            name = target_of(component)
            plain = name.removesuffix("Dict").rstrip("dD")
            needed = (
                ("einops", "einops", name in _NETWORKS_WITH_EINOPS),
                ("skimage", "scikit-image", plain in _STEPS_WITH_SCIKIT_IMAGE),
            )
            for module, package, needs in needed:
                if needs and place not in seen and find_spec(module) is None:
                    seen.add(place)
                    yield package, place, name


def check_packages(config: Mapping[str, Any], places: Iterable[str], where: str) -> None:
    """Raise ``MissingDependency`` if a part of a config needs a package that is not installed."""
    for package, place, name in missing_packages(config, places):
        raise MissingDependency(package, None, f"{name} at {place} in {where}")


def stated_packages(described: Mapping[str, Any]) -> dict[str, str]:
    """Packages with their versions that a bundle's metadata name, and which of them are not installed."""
    listed = [described.get(name) for name in _STATED]
    stated = {str(name): str(version) for part in listed if isinstance(part, Mapping) for name, version in part.items()}
    return {name: version if _installed(name) else f"{version} (not installed)" for name, version in stated.items()}


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except (metadata.PackageNotFoundError, ValueError):
        return False
