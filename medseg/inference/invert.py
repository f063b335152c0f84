"""From scores on the network's grid to labels on the source image's own grid, chunk by chunk.

Three ways, chosen by how the bundle's transforms moved the volume, all with the result of MONAI's ``Invertd``:

* **aligned**: axes permuted, flipped and rescaled (orientation and spacing of an ordinary volume). Linear
  interpolation separates into three one-dimensional ones, done while scores arrive;
* **affine**: a sheared grid. Scores are kept on the network's grid and sampled some planes at a time;
* **traced**: anything else (crops, pads, zooms). MONAI inverts its own trace, a few classes at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from numpy.typing import NDArray
from torch.nn import functional

from medseg.bundle.config import first_cause
from medseg.errors import CaseFailed
from medseg.inference.config import InferenceConfig
from medseg.inference.interpolation import Lerp, TiledLabels
from medseg.inference.sliding_window import EVEN, Chunk
from medseg.labels.decoding import Activation, LabelDecoding

LabelMap = NDArray[np.unsignedinteger[Any]]
"""Labels as uint8 or uint16."""

_ALIGNED_TOLERANCE = 1e-6
_CHUNK_VOXELS = 4_000_000
_CHUNK_CLASSES = 2
_TRACED_VOXELS = 4_000_000
_LABEL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GridMap:
    """How a voxel of the source grid is found on the network's: ``matrix``, 4×4, takes index to index."""

    source_shape: tuple[int, ...]
    model_shape: tuple[int, ...]
    matrix: NDArray[np.float64]

    @classmethod
    def between(cls, source: MetaTensor, prepared: MetaTensor) -> GridMap | None:
        """The map between both grids if only orientation and linear resampling lie between them, else None."""
        if not all(map(_is_affine, prepared.applied_operations)):
            return None
        matrix = np.asarray(np.linalg.solve(_affine(prepared), _affine(source)), dtype=np.float64)
        return cls(tuple(source.shape[1:]), tuple(prepared.shape[1:]), matrix)

    @property
    def axes(self) -> tuple[int, ...] | None:
        """Source axis that runs along each axis of the network's grid; None if the grids are not aligned."""
        linear = self.matrix[:3, :3]
        order = tuple(int(axis) for axis in np.abs(linear).argmax(axis=1))
        rest = linear.copy()
        rest[np.arange(3), order] = 0.0
        reach = np.abs(rest) @ np.asarray(self.source_shape, dtype=np.float64)
        aligned = sorted(order) == [0, 1, 2] and reach.max() < _ALIGNED_TOLERANCE * max(self.model_shape)
        return order if aligned else None

    @property
    def has_ties(self) -> bool:
        """Whether resampling is more than a permutation, so that a position may lie halfway between two voxels."""
        return not np.allclose(self.matrix, np.round(self.matrix), atol=_ALIGNED_TOLERANCE)

    def coordinates(self, model_axis: int, source_axis: int) -> NDArray[np.float64]:
        """Position on ``model_axis`` of every source plane, clamped to the grid as border padding does."""
        steps = np.arange(self.source_shape[source_axis])
        position = self.matrix[model_axis, source_axis] * steps + self.matrix[model_axis, 3]
        rounded = np.round(position)
        exact = np.where(np.abs(position - rounded) < _ALIGNED_TOLERANCE, rounded, position)
        return np.asarray(np.clip(exact, 0, self.model_shape[model_axis] - 1), dtype=np.float64)

    def positions(self, classes: int = 1) -> Iterable[tuple[slice, NDArray[np.float64]]]:
        """Some source planes at a time, and where their voxels lie on the network's grid ``(3, planes, W, D)``."""
        _, width, depth = self.source_shape
        step = max(1, _CHUNK_VOXELS // (width * depth * max(1, classes // 3)))
        m = self.matrix
        for begin in range(0, self.source_shape[0], step):
            planes = slice(begin, min(begin + step, self.source_shape[0]))
            i, j, k = np.ogrid[planes, :width, :depth]
            yield planes, np.stack([m[r, 0] * i + m[r, 1] * j + m[r, 2] * k + m[r, 3] for r in range(3)])


class Inverter:
    """Takes what lies on the network's grid back to the source grid of one image.

    ``source`` and ``prepared`` are the image before and after the bundle's preprocessing, ``(C, H, W, D)``.
    """

    def __init__(self, config: InferenceConfig, source: MetaTensor, prepared: MetaTensor) -> None:
        self._preprocessing, self._post, self._decoding = config.preprocessing, config.post, config.post.decoding
        self._source, self._prepared, self._first = source, prepared, config.channels.first
        self._grid = GridMap.between(source, prepared) if config.exact_affine else None
        # scores that were summed in half precision are kept in it, where they are kept
        self._precision = torch.half if self._grid is None and config.windows.mode == EVEN else torch.float

    def labels(self, chunks: Iterable[Chunk]) -> LabelMap:
        """The label map ``(H, W, D)`` on the source grid, of the network's stitched output.

        A post-processing that is run as written, and fails or gives no labels, is ``CaseFailed``.
        """
        if self._post.written is not None:
            return self._as_written(_stitched(chunks, self._prepared), self._post.written)
        probabilities = map(self.activated, chunks)
        if self._post.back == "scores" and not self._post.nearest:
            labels = self._from_scores(probabilities)
        else:
            labels = self._from_labels(probabilities)
        for clean in self._post.clean_source:
            labels = _clean(labels, clean, self._source)
        return labels

    def activated(self, chunk: Chunk) -> Chunk:
        """Probabilities of the network's scores, by the bundle's activation."""
        return _ACTIVATIONS[self._decoding.activation](chunk)

    def field(self, values: torch.Tensor) -> NDArray[np.float32]:
        """A field ``(H, W, D)`` on the network's grid, on the source grid by linear interpolation."""
        if self._grid is None or self._grid.axes is None:
            return np.asarray(self._traced(values[None], nearest=False)[0].numpy(), dtype=np.float32)
        fine = values[None]
        for model_axis, source_axis in enumerate(self._grid.axes):
            along = Lerp(self._grid.coordinates(model_axis, source_axis), self._grid.model_shape[model_axis])
            fine = along(fine, model_axis + 1)
        return np.ascontiguousarray(fine[0].numpy().transpose(np.argsort(self._grid.axes)))

    def _from_labels(self, chunks: Iterable[Chunk]) -> LabelMap:
        """Labels are decided on the network's grid, then moved."""
        labels: LabelMap = np.concatenate([_discrete(chunk.scores, self._decoding) for chunk in chunks])
        for clean in self._post.clean_model:
            labels = _clean(labels, clean, self._prepared)
        return self._moved(labels)

    def _moved(self, labels: LabelMap) -> LabelMap:
        """Labels on the network's grid, taken to the source grid by the nearest voxel."""
        grid = self._grid
        # A position halfway between two voxels is rounded by noise in MONAI: only MONAI itself rounds the same way.
        small = self._prepared.numel() <= _TRACED_VOXELS and self._source.numel() <= _TRACED_VOXELS
        if grid is None or (small and grid.has_ties):
            moved = self._traced(torch.from_numpy(labels)[None].float(), nearest=True)
            return moved[0].round().numpy().astype(labels.dtype)
        if grid.axes is None:
            result = np.empty(grid.source_shape, dtype=labels.dtype)
            last = np.asarray(grid.model_shape)[:, None, None, None] - 1
            for planes, positions in grid.positions():
                i, j, k = np.clip(np.rint(positions).astype(np.int64), 0, last)
                result[planes] = labels[i, j, k]
            return result
        for model_axis, source_axis in enumerate(grid.axes):
            index = np.rint(grid.coordinates(model_axis, source_axis)).astype(np.int64)
            labels = np.take(labels, index, axis=model_axis)
        return np.ascontiguousarray(labels.transpose(np.argsort(grid.axes)))

    def _from_scores(self, chunks: Iterable[Chunk]) -> LabelMap:
        """Scores are moved, then labels decided on the source grid."""
        if self._grid is not None and self._grid.axes is not None:
            return _linear_aligned(chunks, self._decoding, self._grid, self._grid.axes)
        scores = _stitched(chunks, self._prepared, self._precision)
        if self._grid is not None:
            return _linear_affine(scores, self._decoding, self._grid)
        if self._decoding.table:  # a region at a time: MONAI's inversion holds what it is given several times
            each = (self._traced(scores[n : n + 1], nearest=False)[0] for n in range(scores.shape[0]))
            return _painted(each, self._decoding)
        if self._decoding.threshold is not None:
            return _discrete(self._traced(scores, nearest=False), self._decoding)
        best = torch.full(tuple(self._source.shape[1:]), -torch.inf)
        label = torch.zeros(best.shape, dtype=torch.int32)
        for begin in range(0, scores.shape[0], _CHUNK_CLASSES):
            value, index = self._traced(scores[begin : begin + _CHUNK_CLASSES], nearest=False).max(dim=0)
            wins = value > best
            label[wins] = (index[wins] + begin).to(torch.int32)
            torch.maximum(best, value, out=best)
        return label.numpy().astype(_label_dtype(scores.shape[0]))

    def _traced(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """MONAI's own inversion of what it recorded on the prepared image."""
        invert = Invertd("pred", self._preprocessing, self._first, nearest_interp=nearest, to_tensor=True)
        trace = self._with_trace(torch.zeros(1, 1, 1, 1))
        inverted: torch.Tensor = _quietly(invert, {"pred": MetaTensor(values.clone()), self._first: trace})[
            "pred"
        ].as_tensor()
        return inverted

    def _with_trace(self, values: torch.Tensor) -> MetaTensor:
        meta, operations = deepcopy(self._prepared.meta), deepcopy(self._prepared.applied_operations)
        return MetaTensor(values, meta=meta, applied_operations=operations)

    def _as_written(self, scores: torch.Tensor, written: Compose) -> LabelMap:
        """What the bundle's own post-processing gives, with the trace of the preprocessing on image and scores."""
        prepared = self._prepared
        try:
            case = {"image": prepared, self._first: prepared, "pred": self._with_trace(scores)}
            item = _quietly(written, case)
        except (ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "alloc" in first_cause(error):
                raise
            raise CaseFailed(f"the bundle's postprocessing, run as written, fails: {first_cause(error)}") from error
        values = torch.as_tensor(item[self._post.saved]).detach().cpu()
        whole = values.float().round()
        if values.ndim != 4 or values.shape[0] != 1 or bool(((values.float() - whole).abs() > _LABEL_TOLERANCE).any()):
            raise CaseFailed(
                f"the bundle's postprocessing gives values of shape {tuple(values.shape)} that are no labels, expected"
                " one channel of whole numbers; let AsDiscreted be its last step"
            )
        labels = whole[0].numpy().astype(_label_dtype(int(whole.max()) + 1))
        if any(isinstance(step, Invertd) for step in written.transforms) and _lies_on(values, self._source):
            return labels
        if not _lies_on(values, prepared):
            raise CaseFailed(
                f"the bundle's postprocessing gives labels of shape {labels.shape} on neither the image's grid"
                f" {tuple(self._source.shape[1:])} nor the network's {tuple(prepared.shape[1:])}; correct its Invertd"
            )
        return self._moved(labels)


def _is_affine(operation: Mapping[str, Any]) -> bool:
    """Whether a transform that MONAI recorded is a change of orientation or a linear resampling with border padding."""
    name, extra = str(operation.get("class", "")), operation.get("extra_info", {})
    linear = str(extra.get("mode")) == "bilinear" and str(extra.get("padding_mode")) == "border"
    return name in {"Orientation", "Flip"} or (name == "SpatialResample" and linear)


def _affine(image: MetaTensor) -> NDArray[np.float64]:
    return np.asarray(image.affine, dtype=np.float64)


def _lies_on(values: torch.Tensor, image: MetaTensor) -> bool:
    """Whether values lie on the grid of an image, as far as they tell."""
    if values.shape[1:] != image.shape[1:]:
        return False
    return not isinstance(values, MetaTensor) or bool(np.allclose(_affine(values), _affine(image), atol=1e-3))


def _label_dtype(classes: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds every label."""
    return np.uint8 if classes <= 256 else np.uint16


_ACTIVATIONS: dict[Activation, Callable[[Chunk], Chunk]] = {
    "none": lambda chunk: chunk,
    "softmax": lambda chunk: Chunk(chunk.start, torch.softmax(chunk.scores, dim=0)),
    "sigmoid": lambda chunk: Chunk(chunk.start, torch.sigmoid(chunk.scores)),
}


def _discrete(scores: torch.Tensor, decoding: LabelDecoding) -> LabelMap:
    """Labels of ``(C, ...)`` scores; ``max`` gives the same index as ``argmax`` and is several times faster."""
    if decoding.table:
        return _painted(scores, decoding)
    if decoding.threshold is not None:
        return (scores[0] >= decoding.threshold).numpy().astype(np.uint8)
    return scores.max(dim=0)[1].numpy().astype(_label_dtype(scores.shape[0]))


def _painted(scores: Iterable[torch.Tensor], decoding: LabelDecoding) -> LabelMap:
    """One label map of the scores ``(...)`` of regions, which come one after the other."""
    assert decoding.threshold is not None, "regions are read with a threshold"
    combination = torch.zeros((), dtype=torch.int16)
    for number, region in enumerate(scores):
        combination = combination | ((region >= decoding.threshold).to(torch.int16) << number)
    return np.asarray(decoding.table, dtype=_label_dtype(decoding.labels_of(1)))[combination.numpy()]


def _clean(labels: LabelMap, transform: Callable[..., Any], grid: MetaTensor) -> LabelMap:
    """Labels on the grid of an image, cleaned; a volume in mm³ is measured by its voxels."""
    cleaned = transform(MetaTensor(torch.from_numpy(labels.astype(np.int32))[None], affine=grid.affine))
    return np.asarray(cleaned)[0].astype(labels.dtype)


def _stitched(chunks: Iterable[Chunk], prepared: MetaTensor, precision: torch.dtype = torch.float) -> torch.Tensor:
    """The scores of the whole volume."""
    scores = torch.empty(0)
    for chunk in chunks:
        if not len(scores):
            scores = torch.empty(chunk.scores.shape[0], *prepared.shape[1:], dtype=precision)
        scores[:, chunk.start : chunk.start + chunk.scores.shape[1]] = chunk.scores
    return scores


def _quietly(transform: Callable[[Mapping[Any, Any]], Any], data: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Apply transforms whose warnings, about the way back of lazy ones for instance, are for the bundle's author."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Mapping[Any, Any] = transform(data)
    return result


def _linear_aligned(chunks: Iterable[Chunk], decoding: LabelDecoding, grid: GridMap, axes: tuple[int, ...]) -> LabelMap:
    """Interpolate along one axis after the other, following the chunks; one plane is carried from chunk to chunk."""
    position = grid.coordinates(0, axes[0])
    lower = np.minimum(np.floor(position).astype(np.int64), max(grid.model_shape[0] - 2, 0))
    labels_of = _labels_across(grid, axes, decoding)
    pending = np.argsort(lower, kind="stable")
    result: LabelMap = np.empty(0, dtype=np.uint8)
    carried: torch.Tensor | None = None
    first = 0
    for chunk in chunks:
        scores = chunk.scores if carried is None else torch.cat([carried, chunk.scores], dim=1)
        if carried is None:
            result = np.empty(
                [grid.source_shape[a] for a in axes], dtype=_label_dtype(decoding.labels_of(scores.shape[0]))
            )
        last = first + scores.shape[1] - 1
        final = last == grid.model_shape[0] - 1
        ready = [int(i) for i in pending if final or lower[i] < last]
        pending = pending[len(ready) :]
        batch = max(1, _CHUNK_VOXELS * 4 // max(scores[:, 0].numel() + result[0].size, 1))
        for planes in (ready[begin : begin + batch] for begin in range(0, len(ready), batch)):
            along = Lerp(position[planes] - first, scores.shape[1])
            result[planes] = labels_of(along(scores, 1))
        carried, first = scores[:, -1:].clone(), last
    return np.ascontiguousarray(result.transpose(np.argsort(axes)))


def _labels_across(
    grid: GridMap, axes: tuple[int, ...], decoding: LabelDecoding
) -> Callable[[torch.Tensor], NDArray[Any]]:
    """What gives the labels of planes ``(K, P, W, D)`` once their last two axes are interpolated."""
    rows, columns = (grid.coordinates(axis, axes[axis]) for axis in (1, 2))
    _, width, depth = grid.model_shape
    if decoding.threshold is None:
        return TiledLabels(rows, columns, (width, depth), normalised=decoding.activation == "softmax")
    along_rows, along_columns = Lerp(rows, width), Lerp(columns, depth)
    return lambda scores: _discrete(along_columns(along_rows(scores, 2), 3), decoding)


def _linear_affine(scores: torch.Tensor, decoding: LabelDecoding, grid: GridMap) -> LabelMap:
    result = np.empty(grid.source_shape, dtype=_label_dtype(decoding.labels_of(scores.shape[0])))
    size = np.asarray(grid.model_shape, dtype=np.float64)[:, None, None, None]
    for planes, positions in grid.positions(scores.shape[0]):
        # grid_sample's convention without align_corners: −1 and 1 are the outer faces of the volume
        normalised = (2.0 * positions + 1.0) / size - 1.0
        where = torch.from_numpy(normalised[::-1].transpose(1, 2, 3, 0).astype(np.float32).copy())
        sampled = functional.grid_sample(scores[None], where[None], padding_mode="border", align_corners=False)[0]
        result[planes] = _discrete(sampled, decoding)
    return result
