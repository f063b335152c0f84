"""From scores on the network's grid to labels on the source image's own grid, in slabs.

Three ways, chosen by how the bundle's transforms moved the volume, all with the result of MONAI's ``Invertd``:

* **aligned**: axes permuted, flipped and rescaled (orientation and spacing of an ordinary volume). Linear
  interpolation separates into three one-dimensional ones, done slab by slab while scores arrive;
* **affine**: a sheared grid. Scores are kept on the network's grid and sampled slab by slab;
* **traced**: anything else (crops, pads, zooms). MONAI inverts its own trace, a few classes at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from medseg.inference.sliding_window import Chunk

LabelMap = NDArray[np.unsignedinteger[Any]]
"""Labels as uint8 or uint16."""

_ALIGNED_TOLERANCE = 1e-6
_SLAB_VOXELS = 4_000_000
_CHUNK_CLASSES = 2
_TRACED_VOXELS = 4_000_000
_LABEL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GridMap:
    """How a voxel of the source grid is found on the network's grid.

    Parameters
    ----------
    source_shape, model_shape
        Sizes of both grids.
    matrix
        4×4, index on the source grid → index on the network's grid.
    """

    source_shape: tuple[int, ...]
    model_shape: tuple[int, ...]
    matrix: NDArray[np.float64]

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

    def coordinates(self, model_axis: int, source_axis: int) -> NDArray[np.float64]:
        """Position on ``model_axis`` of every source plane, clamped to the grid as border padding does."""
        steps = np.arange(self.source_shape[source_axis])
        position = self.matrix[model_axis, source_axis] * steps + self.matrix[model_axis, 3]
        rounded = np.round(position)
        exact = np.where(np.abs(position - rounded) < _ALIGNED_TOLERANCE, rounded, position)
        return np.asarray(np.clip(exact, 0, self.model_shape[model_axis] - 1), dtype=np.float64)


def affine_map(source: MetaTensor, prepared: MetaTensor) -> GridMap | None:
    """The map between both grids if only orientation and linear resampling lie between them, else None."""
    for operation in prepared.applied_operations:
        if not _is_affine(operation):
            return None
    matrix = np.asarray(np.linalg.solve(_affine(prepared), _affine(source)), dtype=np.float64)
    return GridMap(tuple(source.shape[1:]), tuple(prepared.shape[1:]), matrix)


def _grid(recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor) -> GridMap | None:
    return affine_map(source, prepared) if recipe.exact_affine else None


def _is_affine(operation: Mapping[str, Any]) -> bool:
    name = str(operation.get("class", ""))
    if name in {"Orientation", "Flip"}:
        return True
    extra = operation.get("extra_info", {})
    linear = str(extra.get("mode")) == "bilinear" and str(extra.get("padding_mode")) == "border"
    return name == "SpatialResample" and linear


def _affine(image: MetaTensor) -> NDArray[np.float64]:
    return np.asarray(image.affine, dtype=np.float64)


def label_dtype(classes: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned type that holds every label."""
    return np.uint8 if classes <= 256 else np.uint16


def labels_on_source(
    slabs: Iterable[Chunk], recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor
) -> LabelMap:
    """Consume the slabs of one volume and return its label map on the source grid.

    Parameters
    ----------
    slabs
        Stitched network output, from :func:`medseg.inference.sliding_window.sliding_window`.
    recipe
        What the bundle's post-processing asks for.
    source, prepared
        The image before and after the bundle's preprocessing, ``(C, H, W, D)``.
    """
    if recipe.post.written is not None:
        return _as_written(slabs, recipe, source, prepared)
    grid = _grid(recipe, source, prepared)
    ready = (_activated(slab, recipe) for slab in slabs)
    if recipe.back == "scores" and not recipe.nearest:
        labels = _from_scores(ready, recipe, source, prepared, grid)
    else:
        labels = _from_labels(ready, recipe, source, prepared, grid)
    for clean in recipe.clean_source:
        labels = _clean(labels, clean)
    return labels


def field_on_source(
    field: torch.Tensor, recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor
) -> NDArray[np.float32]:
    """Take one field ``(H, W, D)`` from the network's grid to the source grid, by linear interpolation."""
    grid = _grid(recipe, source, prepared)
    if grid is None or grid.axes is None:
        moved = _invert(field[None], recipe.preprocessing, prepared, nearest=False)[0]
        return np.asarray(moved.numpy(), dtype=np.float32)
    fine = field[None]
    for model_axis, source_axis in enumerate(grid.axes):
        along = Lerp(grid.coordinates(model_axis, source_axis), grid.model_shape[model_axis])
        fine = along(fine, model_axis + 1)
    return np.ascontiguousarray(fine[0].numpy().transpose(np.argsort(grid.axes)))


def _activated(slab: Chunk, recipe: InferenceConfig) -> Chunk:
    if recipe.activation == "softmax":
        return Chunk(slab.start, torch.softmax(slab.scores, dim=0))
    if recipe.activation == "sigmoid":
        return Chunk(slab.start, torch.sigmoid(slab.scores))
    return slab


def _discrete(scores: torch.Tensor, threshold: float | None) -> LabelMap:
    """Labels of ``(C, ...)`` scores; ``max`` gives the same index as ``argmax`` and is several times faster."""
    if threshold is not None:
        return (scores[0] >= threshold).numpy().astype(np.uint8)
    return scores.max(dim=0)[1].numpy().astype(label_dtype(scores.shape[0]))


# --- labels are decided on the network's grid, then moved -----------------------------------------------------------


def _from_labels(
    slabs: Iterable[Chunk], recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor, grid: GridMap | None
) -> LabelMap:
    labels = None
    for slab in slabs:
        part = _discrete(slab.scores, recipe.threshold)
        if labels is None:
            labels = np.zeros(prepared.shape[1:], dtype=part.dtype)
        labels[slab.start : slab.start + part.shape[0]] = part
    assert labels is not None
    for clean in recipe.clean_model:
        labels = _clean(labels, clean)
    return _moved(labels, recipe, source, prepared, grid)


def _moved(
    labels: LabelMap, recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor, grid: GridMap | None
) -> LabelMap:
    """Labels on the network's grid, taken to the source grid by the nearest voxel."""
    # A position halfway between two voxels is rounded by noise in MONAI: only MONAI itself rounds the same way.
    small = prepared.numel() <= _TRACED_VOXELS and source.numel() <= _TRACED_VOXELS
    if grid is None or (small and _has_ties(grid)):
        moved = _invert(torch.from_numpy(labels)[None].float(), recipe.preprocessing, prepared, nearest=True)
        return moved[0].round().numpy().astype(labels.dtype)
    if grid.axes is None:
        return _nearest_affine(labels, grid)
    return _nearest_aligned(labels, grid, grid.axes)


def _has_ties(grid: GridMap) -> bool:
    """Whether resampling is more than a permutation, so that a position may lie halfway between two voxels."""
    whole = np.round(grid.matrix)
    return not np.allclose(grid.matrix, whole, atol=_ALIGNED_TOLERANCE)


def _nearest_aligned(labels: LabelMap, grid: GridMap, axes: tuple[int, ...]) -> LabelMap:
    for model_axis, source_axis in enumerate(axes):
        index = np.rint(grid.coordinates(model_axis, source_axis)).astype(np.int64)
        labels = np.take(labels, index, axis=model_axis)
    return np.ascontiguousarray(labels.transpose(np.argsort(axes)))


def _nearest_affine(labels: LabelMap, grid: GridMap) -> LabelMap:
    result = np.empty(grid.source_shape, dtype=labels.dtype)
    for begin, end in _source_slabs(grid.source_shape):
        index = np.rint(_positions(grid, begin, end)).astype(np.int64)
        index = np.clip(index, 0, np.asarray(grid.model_shape)[:, None, None, None] - 1)
        result[begin:end] = labels[index[0], index[1], index[2]]
    return result


def _clean(labels: LabelMap, transform: Any) -> LabelMap:
    cleaned = transform(torch.from_numpy(labels.astype(np.int64))[None])
    return np.asarray(cleaned)[0].astype(labels.dtype)


# --- scores are moved, then labels decided on the source grid -------------------------------------------------------


def _from_scores(
    slabs: Iterable[Chunk], recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor, grid: GridMap | None
) -> LabelMap:
    if grid is not None and grid.axes is not None:
        return _linear_aligned(slabs, recipe, grid, grid.axes)
    scores = _stitched(slabs, prepared)
    if grid is not None:
        return _linear_affine(scores, recipe.threshold, grid)
    return _linear_traced(scores, recipe, source, prepared)


def _stitched(slabs: Iterable[Chunk], prepared: MetaTensor) -> torch.Tensor:
    """The scores of the whole volume."""
    scores = None
    for slab in slabs:
        if scores is None:
            scores = torch.empty(slab.scores.shape[0], *prepared.shape[1:])
        scores[:, slab.start : slab.start + slab.scores.shape[1]] = slab.scores
    assert scores is not None
    return scores


# --- any other order: as written, by MONAI --------------------------------------------------------------------------


def _as_written(slabs: Iterable[Chunk], recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor) -> LabelMap:
    """What the bundle's own post-processing gives, with the trace of the preprocessing on image and scores."""
    written = recipe.post.written
    assert written is not None
    scores = MetaTensor(
        _stitched(slabs, prepared),
        meta=deepcopy(prepared.meta),
        applied_operations=deepcopy(prepared.applied_operations),
    )
    try:
        item = _quietly(written, {"image": prepared, "pred": scores})
    except (ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "alloc" in first_cause(error):
            raise
        raise CaseFailed(f"the bundle's postprocessing, run as written, fails: {first_cause(error)}") from error
    values = torch.as_tensor(item[recipe.post.saved]).detach().cpu()
    whole = values.float().round()
    if values.ndim != 4 or values.shape[0] != 1 or bool(((values.float() - whole).abs() > _LABEL_TOLERANCE).any()):
        raise CaseFailed(
            f"the bundle's postprocessing gives values of shape {tuple(values.shape)} that are no labels, expected one"
            " channel of whole numbers; let AsDiscreted be its last step"
        )
    labels = whole[0].numpy().astype(label_dtype(int(whole.max()) + 1))
    if any(isinstance(step, Invertd) for step in written.transforms) and _lies_on(values, source):
        return labels
    if not _lies_on(values, prepared):
        raise CaseFailed(
            f"the bundle's postprocessing gives labels of shape {labels.shape} on neither the image's grid"
            f" {tuple(source.shape[1:])} nor the network's {tuple(prepared.shape[1:])}; correct its Invertd"
        )
    return _moved(labels, recipe, source, prepared, _grid(recipe, source, prepared))


def _lies_on(values: torch.Tensor, image: MetaTensor) -> bool:
    """Whether values lie on the grid of an image, as far as they tell."""
    if values.shape[1:] != image.shape[1:]:
        return False
    return not isinstance(values, MetaTensor) or bool(np.allclose(_affine(values), _affine(image), atol=1e-3))


# --- scores, interpolated -------------------------------------------------------------------------------------------


def _linear_aligned(slabs: Iterable[Chunk], recipe: InferenceConfig, grid: GridMap, axes: tuple[int, ...]) -> LabelMap:
    """Interpolate along one axis after the other, following the slabs; one plane is carried from slab to slab."""
    position = grid.coordinates(0, axes[0])
    lower = np.minimum(np.floor(position).astype(np.int64), max(grid.model_shape[0] - 2, 0))
    rows, columns = (grid.coordinates(m, axes[m]) for m in (1, 2))
    labels_of = _labels_across(rows, columns, grid, recipe)
    pending = np.argsort(lower, kind="stable")
    result: LabelMap | None = None
    carried: torch.Tensor | None = None
    first = 0
    for slab in slabs:
        scores = slab.scores if carried is None else torch.cat([carried, slab.scores], dim=1)
        if result is None:
            result = np.empty([grid.source_shape[a] for a in axes], dtype=label_dtype(scores.shape[0]))
        last = first + scores.shape[1] - 1
        final = last == grid.model_shape[0] - 1
        ready = [int(i) for i in pending if final or lower[i] < last]
        pending = pending[len(ready) :]
        for planes in _batches(ready, scores[:, 0].numel() + result[0].size):
            along = Lerp(position[planes] - first, scores.shape[1])
            result[planes] = labels_of(along(scores, 1))
        carried, first = scores[:, -1:].clone(), last
    assert result is not None
    return np.ascontiguousarray(result.transpose(np.argsort(axes)))


def _labels_across(
    rows: NDArray[np.float64], columns: NDArray[np.float64], grid: GridMap, recipe: InferenceConfig
) -> Callable[[torch.Tensor], NDArray[Any]]:
    """What gives the labels of planes ``(K, P, W, D)`` once their last two axes are interpolated."""
    _, width, depth = grid.model_shape
    if recipe.threshold is None:
        return TiledLabels(rows, columns, (width, depth), normalised=recipe.activation == "softmax")
    along_rows, along_columns = Lerp(rows, width), Lerp(columns, depth)
    return lambda scores: _discrete(along_columns(along_rows(scores, 2), 3), recipe.threshold)


def _batches(planes: Sequence[int], voxels_per_plane: int) -> Iterable[list[int]]:
    count = max(1, _SLAB_VOXELS * 4 // max(voxels_per_plane, 1))
    for begin in range(0, len(planes), count):
        yield list(planes[begin : begin + count])


def _linear_affine(scores: torch.Tensor, threshold: float | None, grid: GridMap) -> LabelMap:
    result = np.empty(grid.source_shape, dtype=label_dtype(scores.shape[0]))
    size = np.asarray(grid.model_shape, dtype=np.float64)[:, None, None, None]
    for begin, end in _source_slabs(grid.source_shape, scores.shape[0]):
        # grid_sample's convention without align_corners: −1 and 1 are the outer faces of the volume
        normalised = (2.0 * _positions(grid, begin, end) + 1.0) / size - 1.0
        where = torch.from_numpy(normalised[::-1].transpose(1, 2, 3, 0).astype(np.float32).copy())
        sampled = functional.grid_sample(scores[None], where[None], padding_mode="border", align_corners=False)[0]
        result[begin:end] = _discrete(sampled, threshold)
    return result


def _positions(grid: GridMap, begin: int, end: int) -> NDArray[np.float64]:
    """Positions on the network's grid ``(3, planes, W, D)`` of the source planes ``begin`` to ``end``."""
    i, j, k = np.ogrid[begin:end, : grid.source_shape[1], : grid.source_shape[2]]
    m = grid.matrix
    return np.stack([m[r, 0] * i + m[r, 1] * j + m[r, 2] * k + m[r, 3] for r in range(3)])


def _source_slabs(shape: Sequence[int], classes: int = 1) -> Iterable[tuple[int, int]]:
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2] * max(1, classes // 3)))
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def _linear_traced(scores: torch.Tensor, recipe: InferenceConfig, source: MetaTensor, prepared: MetaTensor) -> LabelMap:
    if recipe.threshold is not None:
        return _discrete(_invert(scores, recipe.preprocessing, prepared, nearest=False), recipe.threshold)
    best = torch.full(tuple(source.shape[1:]), -torch.inf)
    label = torch.zeros(best.shape, dtype=torch.int32)
    for begin in range(0, scores.shape[0], _CHUNK_CLASSES):
        part = _invert(scores[begin : begin + _CHUNK_CLASSES], recipe.preprocessing, prepared, nearest=False)
        value, index = part.max(dim=0)
        wins = value > best
        label[wins] = (index[wins] + begin).to(torch.int32)
        torch.maximum(best, value, out=best)
    return label.numpy().astype(label_dtype(scores.shape[0]))


def _invert(values: torch.Tensor, transform: Compose, prepared: MetaTensor, *, nearest: bool) -> torch.Tensor:
    """MONAI's own inversion of what it recorded on the prepared image."""
    invert = Invertd(keys="pred", transform=transform, orig_keys="image", nearest_interp=nearest, to_tensor=True)
    data = _quietly(invert, {"pred": MetaTensor(values.clone()), "image": _without_data(prepared)})
    inverted: torch.Tensor = data["pred"].as_tensor()
    return inverted


def _quietly(transform: Callable[[Mapping[Any, Any]], Any], data: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Apply transforms whose warnings, about the way back of lazy ones for instance, are for the bundle's author."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Mapping[Any, Any] = transform(data)
    return result


def _without_data(image: MetaTensor) -> MetaTensor:
    """A stand-in that carries an image's trace but not its voxels."""
    empty = MetaTensor(torch.zeros(1, 1, 1, 1), meta=deepcopy(image.meta))
    empty.applied_operations = deepcopy(image.applied_operations)
    return empty
