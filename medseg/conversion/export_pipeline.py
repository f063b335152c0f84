"""A bundle's whole way from an image to a label map as one zip for runtimes without Python.

``prepare.onnx``, ``network.onnx`` and ``labels.onnx`` hold all arithmetic on voxels; ``plan.json`` says how they are
strung together: orientation, grid, where the windows lie, and what each rule means (:data:`MEANING`). A runner needs
ONNX Runtime, a reader of images and a hundred lines (``docs/run_pipeline.py``). What the format has no word for is
refused by its name; trust, discriminators and checks of the input stay in medseg.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.bundle import Bundle
from medseg.conversion.export import Exported, export, write_onnx
from medseg.errors import BundleError
from medseg.files import atomic_path, write_json

if TYPE_CHECKING:
    import torch

    from medseg.inference.config import InferenceConfig
    from medseg.labels.decoding import LabelDecoding

    Step = Callable[[torch.Tensor], torch.Tensor]

FORMAT = "medseg-pipeline-1"
MEANING = {
    "order": "read, orient, prepare.onnx, windows through network.onnx, labels.onnx, orient back",
    "orientation": "array axes are permuted and flipped so that they run towards these directions of the patient, as"
    " nibabel.orientations does; null: as they lie in the file. Channels come first.",
    "spacing_mm": "voxel size of the network's grid along these axes; null, and any within 0.001 mm of it: the image's"
    " own. The first voxels of both grids coincide. Of n voxels of size a, round((n - 1) * a / b) + 1 of size b are"
    " made, half to even; voxel i lies at i * b / a on the image's axis.",
    "prepare.onnx": "volume (C, H, W, D) float32, and for each axis the positions of the network's grid on the image's"
    " as float64, not below 0 nor above n - 1 -> (C, h, w, d) float32: linear interpolation, then intensities.",
    "windows": "size: of a window in voxels. The volume is padded to at least a window, floor(missing / 2) voxels in"
    " front. Windows begin every max(1, int(size * (1 - overlap))) voxels (every size voxels where the volume is one"
    " window long) until one reaches the end; that one is moved back to end with the volume. Scores are averaged with"
    " weights: constant, or gaussian: the product over axes of exp(-x^2 / (2 * (sigma_scale * size)^2)), x from the"
    " window's centre, but at least the larger of its smallest value and 0.001. Then the padding is cut off.",
    "network.onnx": "image (N, C, *size) float32 -> pred (N, K, *size) float32, scores",
    "labels.onnx": "scores (K, h, w, d) float32, and for each axis the positions of the image's voxels on the network's"
    " grid (i * a / b, within 1e-6 of a whole number that number, not below 0 nor above n - 1) as float64 -> labels"
    " (H, W, D) int32: activation, linear interpolation, the largest channel (the first of several) or the threshold.",
}
_EXAMPLE = (5, 6, 7)


def export_pipeline(bundle: str | Path | Bundle, output: str | Path, *, images: Sequence[str | Path] = ()) -> Exported:
    """Write a bundle's preprocessing, network, windows and decoding to one zip.

    The network is compared with the original as :func:`~medseg.conversion.export` does, with the same arguments. Raises
    ``BundleError`` if the bundle does something that the format has no word for, or as ``export``;
    ``MissingDependency`` if ``onnx`` or the runtime that must check the export is not installed.
    """
    from medseg.inference.config import read_inference_config

    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    config = read_inference_config(opened)
    steps = _Steps(opened, config)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = export(opened, "onnx", folder / "network.onnx", images=images)
        decoding = config.post.decoding
        before = [] if decoding.activation == "none" else [_activation(decoding)]
        names = ("volume", "prepared"), ("scores", "labels")
        _write_stage(folder / "prepare.onnx", [], steps.intensities, opened.input_channels, names[0])
        _write_stage(folder / "labels.onnx", before, [_decoding(decoding)], opened.output_channels, names[1])
        write_json(folder / "plan.json", {**_plan(opened, config, steps), "network_check": _check(made)})
        if (opened.path / "LICENSE").is_file():
            (folder / "LICENSE").write_bytes((opened.path / "LICENSE").read_bytes())
        with atomic_path(output) as partial_path, zipfile.ZipFile(partial_path, "w") as packed:
            for file in sorted(folder.iterdir()):
                packed.write(file, file.name)
    return replace(made, path=Path(output))


def _check(made: Exported) -> dict[str, Any]:
    names = ("max_difference", "label_agreement", "windows", "real_windows")
    return {name: getattr(made, name) for name in names}


def _plan(bundle: Bundle, config: InferenceConfig, steps: _Steps) -> dict[str, Any]:
    windows, decoding = config.windows, config.post.decoding
    return {
        "format": FORMAT,
        "bundle": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "input": {"channels": bundle.input_channels, "training_range": bundle.training_range},
        "orientation": steps.orientation,
        "spacing_mm": steps.spacing_mm,
        "intensities": steps.told,
        "windows": {
            "size": list(windows.roi_size),
            "overlap": list(windows.overlap),
            "weights": windows.mode,
            "sigma_scale": np.broadcast_to(np.asarray(windows.sigma_scale, dtype=float), 3).tolist(),
            "padding_mode": windows.padding_mode,
            "padding_value": windows.padding_value,
        },
        "decoding": {"activation": decoding.activation, "threshold": decoding.threshold, "table": list(decoding.table)},
        "labels": {str(value): name for value, name in bundle.labels.items()},
        "intended_use": bundle.metadata.get("intended_use"),
        "meaning": MEANING,
    }


class _Steps:
    """The preprocessing of a bundle in the words of the format."""

    def __init__(self, bundle: Bundle, config: InferenceConfig) -> None:
        self.orientation: str | None = None
        self.spacing_mm: list[float] | None = None
        self.intensities: list[Step] = []
        self.told: list[dict[str, Any]] = []
        self._name = bundle.name
        post = config.post
        if post.written is not None or post.back != "scores" or post.nearest:
            raise self._refused("its way from scores to labels on the image's grid")
        if post.clean_model or post.clean_source:
            raise self._refused("the cleaning of its label maps")
        if len(config.channels.keys) > 1:
            raise self._refused("channels on grids of their own")
        if min(config.windows.roi_size) < 1 or config.windows.padding_mode != "constant":
            raise self._refused("windows as large as the volume, or padded by other than one value")
        for step in config.preprocessing.flatten().transforms:
            self._add(step, type(step).__name__)

    def _refused(self, what: str) -> BundleError:
        return BundleError(f"{self._name} cannot be exported whole: {what} is not in the format; leave out --pipeline")

    def _add(self, step: Any, kind: str) -> None:
        if kind in ("EnsureTyped", "ToTensord", "CastToTyped"):
            return
        if kind == "Orientationd" and self.orientation is None and self.spacing_mm is None and not self.intensities:
            self.orientation = "".join(step.ornt_transform.axcodes or "")
            if len(self.orientation) != 3:
                raise self._refused(f"Orientationd to {self.orientation or 'nowhere'}")
        elif kind == "Spacingd" and self.spacing_mm is None and not self.intensities:
            self.spacing_mm = self._spacing(step)
        elif kind in _INTENSITIES:
            apply, told = _INTENSITIES[kind](step)
            if apply is None:
                raise self._refused(f"{kind} with these arguments")
            self.intensities.append(apply)
            self.told.append({"step": kind.removesuffix("d"), **told})
        else:
            raise self._refused(f"{kind} at this place")

    def _spacing(self, step: Any) -> list[float]:
        spacing = step.spacing_transform
        size = np.broadcast_to(np.asarray(spacing.pixdim, dtype=float), 3)
        bounds = np.concatenate([np.ravel(spacing.min_pixdim), np.ravel(spacing.max_pixdim)]).astype(float)
        usual = (
            [str(mode) for mode in (*step.mode, *step.padding_mode)] == ["bilinear", "border"]
            and not (spacing.diagonal or spacing.recompute_affine or spacing.scale_extent or any(step.align_corners))
            and bool(np.isnan(bounds).all() and (size > 0).all())
        )
        if not usual:
            raise self._refused("Spacingd with these arguments")
        return [float(value) for value in size]


def _normalise(step: Any) -> tuple[Step | None, dict[str, Any]]:
    """Mean 0 and standard deviation 1 of a volume or of each channel, or given numbers instead."""
    inner = step.normalizer
    fixed = (inner.subtrahend, inner.divisor)
    low, width = (None if value is None else [float(part) for part in np.ravel(value)] for value in fixed)
    if inner.nonzero or (low is None) != (width is None):
        return None, {}
    each = bool(inner.channel_wise)
    return partial(_normalised, low, width, each), {"subtract": low, "divide": width, "channel_wise": each}


def _normalised(
    subtract: list[float] | None, divide: list[float] | None, channel_wise: bool, volume: torch.Tensor
) -> torch.Tensor:
    import torch

    if subtract is not None and divide is not None:
        low, width = (torch.tensor(value).reshape(-1, 1, 1, 1) for value in (subtract, divide))
    else:
        axes = (1, 2, 3) if channel_wise else (0, 1, 2, 3)
        double = volume.double()
        low = double.mean(axes, keepdim=True)
        width = ((double - low) ** 2).mean(axes, keepdim=True).sqrt()
    width = torch.where(width == 0, torch.ones_like(width), width)
    return (volume - low.float()) / width.float()


def _range(step: Any) -> tuple[Step | None, dict[str, Any]]:
    """From one range of values to another; clipped to it if asked for."""
    inner = step.scaler
    told = {name: getattr(inner, name) for name in ("a_min", "a_max", "b_min", "b_max", "clip")}
    if None in told.values() or told["a_min"] == told["a_max"]:
        return None, {}

    def apply(volume: torch.Tensor) -> torch.Tensor:
        scaled = (volume - inner.a_min) / (inner.a_max - inner.a_min) * (inner.b_max - inner.b_min) + inner.b_min
        return scaled.clip(inner.b_min, inner.b_max) if inner.clip else scaled

    return apply, told


_INTENSITIES: Mapping[str, Callable[[Any], tuple[Step | None, dict[str, Any]]]] = {
    "NormalizeIntensityd": _normalise,
    "ScaleIntensityRanged": _range,
}


def _activation(decoding: LabelDecoding) -> Step:
    """From scores to probabilities, before they are interpolated."""

    def apply(scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(0) if decoding.activation == "softmax" else scores.sigmoid()

    return apply


def _decoding(decoding: LabelDecoding) -> Step:
    """From interpolated scores or probabilities to labels ``(H, W, D)`` int32."""
    import torch

    def apply(scores: torch.Tensor) -> torch.Tensor:
        if decoding.threshold is None:
            return scores.argmax(0).int()
        above = (scores >= decoding.threshold).long()
        if not decoding.table:
            return above[0].int()
        bits = 2 ** torch.arange(above.shape[0]).reshape(-1, 1, 1, 1)
        return torch.tensor(decoding.table)[(above * bits).sum(0)].int()

    return apply


def _write_stage(
    path: Path, before: Sequence[Step], after: Sequence[Step], channels: int, names: tuple[str, str]
) -> None:
    """A graph of steps, linear interpolation of a volume ``(C, H, W, D)`` at positions along each axis, more steps.

    ``names``: of what it takes, and of what it makes.
    """
    import torch

    class Stage(torch.nn.Module):
        def forward(self, volume: torch.Tensor, *positions: torch.Tensor) -> torch.Tensor:
            for step in before:
                volume = step(volume)
            for axis, position in enumerate(positions, start=1):
                last = torch._shape_as_tensor(volume)[axis] - 1
                lower = position.floor().long()
                weight = (position - lower).float().reshape([-1 if a == axis else 1 for a in range(4)])
                low, high = volume.index_select(axis, lower), volume.index_select(axis, (lower + 1).minimum(last))
                volume = low + weight * (high - low)
            for step in after:
                volume = step(volume)
            return volume

    ends = ("i", "j", "k")
    inputs = {names[0]: torch.rand(channels, *_EXAMPLE)}
    inputs |= {f"positions_{e}": torch.linspace(0, n - 1, n + 2).double() for e, n in zip(ends, _EXAMPLE, strict=True)}
    axes = {names[0]: dict(enumerate("HWD", start=1)), **{f"positions_{end}": {0: end} for end in ends}}
    axes[names[1]] = dict(enumerate(ends, start=0 if names[1] == "labels" else 1))
    write_onnx(Stage(), inputs, names[1], path, axes)
