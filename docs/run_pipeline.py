"""Label a NIfTI image with what ``medseg bundle export --format onnx --pipeline`` wrote, without torch and MONAI.

    python run_pipeline.py pipeline.zip image.nii.gz labels.nii.gz

An example for other languages: it does what ``plan.json`` says under "meaning", with numpy, ONNX Runtime and nibabel.
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime


class Pipeline:
    """A pipeline, opened once."""

    def __init__(self, path: str | Path) -> None:
        with zipfile.ZipFile(path) as packed:
            self.plan = json.loads(packed.read("plan.json"))
            assert self.plan["format"] == "medseg-pipeline-1", "this runner knows another format"
            providers = ["CPUExecutionProvider"]
            self.prepare, self.network, self.labels = (
                onnxruntime.InferenceSession(packed.read(f"{name}.onnx"), providers=providers)
                for name in ("prepare", "network", "labels")
            )

    def __call__(self, image: nib.Nifti1Image) -> np.ndarray:
        """Label map of an image, on its own grid."""
        cosines = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
        assert np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-3), "a sheared grid; medseg infer can label it"
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        volume = np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[None]
        spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
        turn = np.array([[0, 1], [1, 1], [2, 1]])
        if self.plan["orientation"]:
            wanted = nib.orientations.axcodes2ornt(self.plan["orientation"])
            turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), wanted)
            spacing = spacing[np.argsort(turn[:, 0])]
        volume = np.stack([nib.orientations.apply_orientation(channel, turn) for channel in volume])
        shape = np.array(volume.shape[1:])
        target = np.array(self.plan["spacing_mm"] or spacing)
        target = np.where(np.abs(target - spacing) <= 1e-3, spacing, target)
        ratio = target / spacing
        model_shape = np.round((shape - 1) / ratio + 1).astype(int)
        forth = [np.clip(np.arange(m) * r, 0, n - 1) for m, r, n in zip(model_shape, ratio, shape, strict=True)]
        prepared = _run(self.prepare, np.ascontiguousarray(volume), forth)
        scores = self._scores(prepared)
        back = [_snapped(np.arange(n) / r, m) for n, r, m in zip(shape, ratio, model_shape, strict=True)]
        labels = self._labels(scores, back)
        away = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), turn)
        return nib.orientations.apply_orientation(labels, away).astype(np.uint8 if labels.max() < 256 else np.uint16)

    def _scores(self, volume: np.ndarray) -> np.ndarray:
        """Averaged scores of all windows, ``(K, h, w, d)``."""
        plan, shape = self.plan["windows"], volume.shape[1:]
        size = plan["size"]
        padded = [max(s, n) for s, n in zip(size, shape, strict=True)]
        before = [(p - n) // 2 for p, n in zip(padded, shape, strict=True)]
        margins = [(b, p - n - b) for b, p, n in zip(before, padded, shape, strict=True)]
        volume = np.pad(volume, [(0, 0), *margins], constant_values=plan["padding_value"])
        weights, sums, total = _weights(plan), None, np.zeros(padded, np.float32)
        for start in product(*map(_starts, padded, size, plan["overlap"])):
            window = tuple(slice(first, first + s) for first, s in zip(start, size, strict=True))
            (scores,) = self.network.run(None, {"image": volume[(None, slice(None), *window)]})
            sums = np.zeros((scores.shape[1], *padded), np.float32) if sums is None else sums
            sums[(slice(None), *window)] += scores[0] * weights
            total[window] += weights
        inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
        return (sums / total)[(slice(None), *inner)]

    def _labels(self, scores: np.ndarray, positions: list[np.ndarray], planes: int = 32) -> np.ndarray:
        """Some planes of the image at a time: the scores of a large image and many structures are not held at once."""
        parts = []
        for begin in range(0, len(positions[0]), planes):
            some = positions[0][begin : begin + planes]
            first, last = int(some[0]), min(int(some[-1]) + 2, scores.shape[1])
            parts.append(_run(self.labels, scores[:, first:last], [some - first, *positions[1:]]))
        return np.concatenate(parts)


def _run(stage: onnxruntime.InferenceSession, volume: np.ndarray, positions: list[np.ndarray]) -> np.ndarray:
    names = [entry.name for entry in stage.get_inputs()]
    return stage.run(None, dict(zip(names, [volume, *positions], strict=True)))[0]


def _snapped(positions: np.ndarray, size: int) -> np.ndarray:
    whole = np.round(positions)
    return np.clip(np.where(np.abs(positions - whole) < 1e-6, whole, positions), 0, size - 1)


def _starts(length: int, size: int, overlap: float) -> list[int]:
    step = size if size == length else max(int(size * (1 - overlap)), 1)
    return [min(first * step, length - size) for first in range(math.ceil((length - size) / step) + 1)]


def _weights(plan: dict) -> np.ndarray:
    if plan["weights"] == "constant":
        return np.ones(plan["size"], np.float32)
    weights = np.ones((), np.float32)
    for size, scale in zip(plan["size"], plan["sigma_scale"], strict=True):
        x = np.arange(size, dtype=np.float32) - (size - 1) / 2
        weights = weights[..., None] * np.exp(-(x**2) / (2 * (scale * size) ** 2)).astype(np.float32)
    return np.maximum(weights, max(float(weights.min()), 1e-3)).astype(np.float32)


if __name__ == "__main__":
    pipeline, source, target = sys.argv[1:]
    image = nib.load(source)
    nib.save(nib.Nifti1Image(Pipeline(pipeline)(image), image.affine), target)
