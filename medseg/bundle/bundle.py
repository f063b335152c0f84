"""A bundle as data: open it, read what it says of itself, load its weights without executing anything of it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.bundle.shipped import find_bundle, list_bundles
from medseg.errors import BundleError, MissingDependency, Refusal, UsageError
from medseg.files import sha256_file
from medseg.geometry import Geometry

if TYPE_CHECKING:
    import torch

__all__ = ["Bundle", "Permission", "read_weights"]

Permission = Literal["audited", "network-only", "everything"]

_INFERENCE_FILES = ("configs/metadata.json", "configs/inference.json")
_WEIGHT_FILES = ("models/model.safetensors", "models/model.pt")


class Bundle:
    """A MONAI bundle on disk.

    Opening reads JSON only; nothing of the bundle is executed. Weights are read by :meth:`load_network`, and
    only after the audit has found nothing outside its allow-list.

    Parameters
    ----------
    path
        The bundle's folder.
    metadata
        The parsed ``configs/metadata.json``.
    permission
        What may be evaluated: ``"audited"`` a bundle whose audit blocks nothing; ``"network-only"`` the network and
        those parts of ``inference.json`` that are clean on their own, whatever else lies beside them;
        ``"everything"`` runs the bundle's own code, too.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], permission: Permission = "audited") -> None:
        self.path = path
        self.metadata = dict(metadata)
        self.permission = permission

    @classmethod
    def open(cls, path: str | Path, permission: Permission = "audited") -> Bundle:
        """Open the bundle in the folder ``path``, or of that name (:func:`~medseg.bundle.shipped.find_bundle`).

        Raises
        ------
        UsageError
            If there is no such folder, or it holds no ``configs/metadata.json``.
        BundleError
            If the metadata cannot be parsed.
        """
        folder = find_bundle(path)
        if not (folder / "configs" / "metadata.json").is_file():
            raise UsageError(_no_bundle(folder))
        return cls(folder, _read_json(folder / "configs" / "metadata.json"), permission)

    def __repr__(self) -> str:
        return f"Bundle({self.name} {self.version})"

    @property
    def name(self) -> str:
        """The bundle's folder name, which is its name in the model zoo's convention."""
        return self.path.resolve().name

    @property
    def version(self) -> str:
        """The version that the metadata states."""
        return str(self.metadata.get("version", "unknown"))

    def config(self, name: str) -> dict[str, Any]:
        """Read ``configs/NAME.json`` as plain data, unparsed: expressions stay strings."""
        path = self.path / "configs" / f"{name}.json"
        if not path.is_file():
            raise BundleError(f"bundle {self.name} has no configs/{name}.json; it cannot be used for this")
        return _read_json(path)

    def runnable_config(self, *sections: str) -> dict[str, Any]:
        """``inference.json`` as far as it may be evaluated: all of it, or the named parts if only they are trusted.

        Raises
        ------
        UntrustedBundle
            If the audit finds anything outside its allow-list.
        """
        from medseg.bundle.audit import require_trusted
        from medseg.bundle.network_only import sections_only

        if self.permission == "network-only":
            return sections_only(self.path, sections)
        if self.permission == "audited":
            require_trusted(self.path)
        elif str(self.path.resolve()) not in sys.path:
            sys.path.append(str(self.path.resolve()))  # where its scripts are found, after everything else
        return self.config("inference")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of everything that a prediction depends on: metadata, inference config, weights and trust."""
        trust = sorted((self.path / "trust").glob("*")) if (self.path / "trust").is_dir() else []
        names = [*_INFERENCE_FILES, *_WEIGHT_FILES, *(f"trust/{file.name}" for file in trust if file.is_file())]
        digest = hashlib.sha256()
        for name in names:
            if (self.path / name).is_file():
                digest.update(f"{sha256_file(self.path / name)}  {name}\n".encode())
        return digest.hexdigest()

    @property
    def input_channels(self) -> int:
        """Number of channels of the network's image input."""
        return int(self._tensor("inputs", "image").get("num_channels", 1))

    @property
    def output_channels(self) -> int:
        """Number of channels of the network's output, background included."""
        return int(self._tensor("outputs", "pred")["num_channels"])

    @property
    def labels(self) -> dict[int, str]:
        """Names of the structures by label value, without the background (label 0)."""
        definition = self._tensor("outputs", "pred").get("channel_def", {})
        return {int(value): str(name) for value, name in sorted(definition.items(), key=_by_value) if int(value) > 0}

    @property
    def label_codes(self) -> dict[int, Any]:
        """Coded terms of the structures (for DICOM objects) by label value; empty if the bundle states none."""
        codes = self._tensor("outputs", "pred").get("segment_codes", self.metadata.get("segment_codes", {}))
        return {int(value): code for value, code in codes.items()}

    @property
    def training_range(self) -> dict[str, Any] | None:
        """Spacing and field of view seen in training (RAS axis order, in mm) and the modalities, if stated."""
        value = self.metadata.get("training_range")
        return dict(value) if isinstance(value, Mapping) else None

    def check_range(self, geometry: Geometry, modality: str | None = None) -> None:
        """Refuse a volume whose grid is far from what the bundle was trained on.

        Spacing and extent are compared along the array axes, each assigned to the closest patient axis, so that an
        oblique acquisition is judged by its own size.

        Parameters
        ----------
        geometry
            The grid of the volume (after a crop, if one was asked for).
        modality
            DICOM modality code such as ``"MR"``, if known.

        Raises
        ------
        Refusal
            ``outside-training-range`` or ``wrong-modality``.
        """
        limits = self.training_range
        if limits is None:
            return
        allowed = limits.get("modality") or []
        if modality and allowed and modality not in allowed:
            raise Refusal(
                "wrong-modality",
                f"found {modality}, {self.name} was trained on {', '.join(allowed)}; choose such a series",
            )
        for key, found in (("spacing_mm", _ras_spacing(geometry)), ("fov_mm", _ras_extent(geometry))):
            if key in limits:
                self._check_axes(key, found, limits[key])

    def _check_axes(self, key: str, found: tuple[float, ...], limits: Mapping[str, Any]) -> None:
        low, high = limits["low"], limits["high"]
        if all(a <= value <= b for a, value, b in zip(low, found, high, strict=True)):
            return
        what = {"spacing_mm": "voxel spacing", "fov_mm": "field of view"}[key]
        remedy = "crop to the region the bundle expects with --roi" if key == "fov_mm" else "choose another series"
        raise Refusal(
            "outside-training-range",
            f"found a {what} of {_millimetres(found)}, {self.name} was trained on {_millimetres(low)} to"
            f" {_millimetres(high)} (left-right, posterior-anterior, inferior-superior); {remedy}",
        )

    def load_network(self, device: str | torch.device = "cpu") -> torch.nn.Module:
        """Build the network that ``network_def`` names and load the weights, strictly, in evaluation mode.

        Raises
        ------
        UntrustedBundle
            If the audit finds anything outside its allow-list.
        BundleError
            If weights are missing, do not fit, are not finite, or the two weight files contradict each other.
        """
        from monai.bundle import ConfigParser

        if self.permission == "network-only":
            from medseg.bundle.network_only import load_network_only

            return load_network_only(self.path).to(device)
        parser = ConfigParser(self.runnable_config())
        network: torch.nn.Module = parser.get_parsed_content("network_def")
        state = self._load_weights()
        try:
            network.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise BundleError(f"the weights of {self.name} do not fit its network_def: {error}") from error
        return network.eval().to(device)

    def _load_weights(self) -> dict[str, torch.Tensor]:
        found = {name: read_weights(self.path / name) for name in _WEIGHT_FILES if (self.path / name).is_file()}
        if not found:
            raise BundleError(
                f"bundle {self.name} has no weights: expected {' or '.join(_WEIGHT_FILES)}; train it first"
            )
        states = list(found.values())
        if len(states) == 2 and not _same_state(*states):
            raise BundleError(
                f"{' and '.join(found)} of {self.name} hold different weights; delete the one that is out of date"
            )
        bad = [key for key, value in states[0].items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise BundleError(f"the weights of {self.name} are not finite in {bad[0]}; train it again")
        return states[0]

    def _tensor(self, side: str, name: str) -> dict[str, Any]:
        """Description of one input or output; the first one if none has the usual name."""
        described = self.metadata.get("network_data_format", {}).get(side, {})
        if not described:
            raise BundleError(f"configs/metadata.json of {self.name} lacks network_data_format.{side}")
        return dict(described.get(name) or next(iter(described.values())))


def _no_bundle(folder: Path) -> str:
    if folder.is_file():
        return (
            f"{folder} is a file, not a bundle's folder; open an archive with: medseg bundle unpack {folder} -o bundles"
        )
    what = "configs/metadata.json is missing" if folder.exists() else "there is no such folder"
    names = ", ".join(path.name for path in list_bundles())
    return f"{folder} is not a bundle: {what}; give a bundle's folder, or a name that is known here: {names or 'none'}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict of one weights file (``.safetensors``, or ``.pt`` without code), as data only."""
    import pickle

    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise MissingDependency("safetensors", "dev", "reading safe weights") from error
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise BundleError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BundleError(f"{path} is not a bare state dict (names to tensors); save the network's state_dict()")
    return state


def _same_state(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    import torch

    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _by_value(item: tuple[Any, Any]) -> int:
    return int(item[0])


def _ras_order(geometry: Geometry) -> list[int]:
    """Array axis that lies closest to each of the patient's x, y and z axes."""
    letters = ["LR", "PA", "IS"]
    return [next(i for i, letter in enumerate(geometry.orientation) if letter in pair) for pair in letters]


def _ras_spacing(geometry: Geometry) -> tuple[float, ...]:
    return tuple(geometry.spacing_mm[axis] for axis in _ras_order(geometry))


def _ras_extent(geometry: Geometry) -> tuple[float, ...]:
    return tuple(geometry.spacing_mm[axis] * geometry.shape[axis] for axis in _ras_order(geometry))


def _millimetres(values: Any) -> str:
    return "×".join(f"{float(value):.2f}" for value in values) + " mm"
