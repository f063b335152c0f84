"""The same metrics inside MONAI's workflows: a cumulative metric, and the ignite handler that bundles name.

Unlike MONAI's own Hausdorff handler these take the spacing from the image, so that distances are in mm, and a
structure that the network missed stays in the average of the overlap scores and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from numpy.typing import NDArray

from medseg.errors import Refusal, UsageError
from medseg.evaluation.case import StructureResult, evaluate_case
from medseg.evaluation.definitions import METRICS, Definitions

__all__ = ["StructureMetric", "StructureMetricHandler"]

_NAMES = tuple(metric.name for metric in METRICS)


class StructureMetric(CumulativeIterationMetric):
    """Metrics per structure, in mm, collected over batches.

    ``metric``: which one :meth:`aggregate` averages; any name of ``medseg.evaluation.METRICS``. ``tolerance_mm``: of
    the normalised surface distance. ``spacing_mm``: distance between voxels along the spatial axes, for plain tensors;
    a ``MetaTensor`` knows its own. ``definitions``: choices among definitions that differ in the field. ``n_classes``:
    number of classes, background included, of labels in one channel. ``overlapping``: the channels are regions, without
    a background.

    Takes what MONAI's metrics take: one-hot tensors ``(B, C, H, W, D)`` or lists of ``(C, H, W, D)``, channel 0 the
    background, or one channel that holds label values together with ``n_classes``, or regions. What the reference does
    not know (:mod:`medseg.transforms.known_labels`; one channel or regions) is not scored: neither the voxels nor a
    structure that was not looked for. The buffer holds, per image and structure, every metric (NaN where there is
    none), then missed and invented.
    """

    def __init__(
        self,
        metric: str = "dice",
        tolerance_mm: float = 1.0,
        spacing_mm: Sequence[float] | None = None,
        definitions: Definitions | None = None,
        n_classes: int | None = None,
        *,
        overlapping: bool = False,
    ) -> None:
        super().__init__()
        if metric not in _NAMES:
            raise UsageError(f"no metric is called {metric!r}; give one of {', '.join(_NAMES)}")
        self.metric, self.tolerance_mm, self.n_classes = metric, tolerance_mm, n_classes
        self.overlapping = overlapping
        self.spacing_mm = None if spacing_mm is None else tuple(spacing_mm)
        self.definitions = definitions or Definitions()
        if metric in ("ece", "ace") or (metric == "cldice" and not self.definitions.centreline):
            remedy = "give Definitions(centreline=True)" if metric == "cldice" else "it needs probabilities, not labels"
            raise UsageError(f"{metric} would have no value for any image: {remedy}, or choose another metric")

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        """Rows of one batch: (B, structures, metrics + 2)."""
        if y is None:
            raise UsageError("the metric was called without a reference; give y_pred and y")
        return torch.stack([self._rows(y_pred[i], y[i], self._axes_mm(y, i)) for i in range(len(y_pred))])

    def _rows(self, prediction: torch.Tensor, reference: torch.Tensor, axes_mm: NDArray[np.float64]) -> torch.Tensor:
        if self.overlapping:
            if prediction.shape != reference.shape:
                found = f"{tuple(prediction.shape)} and {tuple(reference.shape)}"
                raise UsageError(f"prediction and reference have the shapes {found}; give one channel for each region")
            known = reference >= 0
            pairs = [(p * k, r * k) for p, r, k in zip(prediction, reference, known, strict=True)]
            rows = [self._scored(p[None], r[None], [1], axes_mm)[0] for p, r in pairs]
            unknown = [number for number, channel in enumerate(known) if not channel.any()]
        else:
            n_classes = self.n_classes or max(prediction.shape[0], reference.shape[0])
            if n_classes < 2:
                raise UsageError("found one channel; give one-hot channels with the background first, or n_classes")
            unknown = []
            if len(reference) == 1:
                unknown, judged = _unknown(reference, n_classes)
                prediction, reference = prediction * judged, (reference * judged).clamp_min(0)
            rows = self._scored(prediction, reference, range(1, n_classes), axes_mm)
        table = torch.tensor([_row(result) for result in rows], dtype=torch.float64)
        table[unknown, : len(_NAMES)], table[unknown, len(_NAMES) :] = torch.nan, 0.0
        return table

    def _scored(
        self, prediction: torch.Tensor, reference: torch.Tensor, labels: Sequence[int], axes_mm: NDArray[np.float64]
    ) -> list[StructureResult]:
        return evaluate_case(
            _label_map(prediction),
            _label_map(reference),
            np.linalg.norm(axes_mm, axis=0).tolist(),
            labels,
            self.tolerance_mm,
            definitions=self.definitions,
            axes_mm=axes_mm,
        )

    def _axes_mm(self, y: torch.Tensor, index: int) -> NDArray[np.float64]:
        if isinstance(y, MetaTensor):
            affine = np.asarray(y.affine, dtype=np.float64)
            return np.asarray(affine[index, :3, :3] if affine.ndim == 3 else affine[:3, :3])
        if self.spacing_mm is None:
            raise UsageError("the reference is a plain tensor, which has no spacing; give spacing_mm or a MetaTensor")
        return np.diag(np.asarray(self.spacing_mm, dtype=np.float64))

    def aggregate(self) -> torch.Tensor:
        """Mean of the metric per structure; NaN only where no image has a value.

        See :meth:`counts` for how many images stand behind it and how many structures were missed.
        """
        return torch.nanmean(self.details(), dim=0)

    def counts(self) -> dict[str, torch.Tensor]:
        """Per structure: ``n`` images with a value, ``n_missed`` and ``n_invented``."""
        return {
            "n": torch.isfinite(self.details()).sum(dim=0),
            "n_missed": self._column(len(_NAMES)).sum(dim=0).to(torch.int64),
            "n_invented": self._column(len(_NAMES) + 1).sum(dim=0).to(torch.int64),
        }

    def details(self) -> torch.Tensor:
        """The metric of every image and structure, NaN where there is none."""
        return self._column(_NAMES.index(self.metric))

    def _column(self, index: int) -> torch.Tensor:
        buffer = self.get_buffer()
        if not isinstance(buffer, torch.Tensor):
            raise UsageError("the metric has seen no image yet; call it on a batch before aggregate")
        return buffer[..., index]


def _unknown(reference: torch.Tensor, classes: int) -> tuple[list[int], torch.Tensor]:
    """Rows of structures that were not looked for in ``(1, H, W, D)`` labels, and the voxels that were judged."""
    codes = reference.round().long()
    sets = [-int(value) for value in torch.unique(codes[codes < -1])]
    return [label - 1 for label in range(1, classes) if any(bits >> label & 1 for bits in sets)], codes != -1


def _row(result: StructureResult) -> list[float]:
    values = [result.values[name] for name in _NAMES]
    return [*(np.nan if value is None else value for value in values), float(result.missed), float(result.invented)]


def _label_map(channels: torch.Tensor) -> NDArray[Any]:
    """(C, H, W, D) one-hot or (1, H, W, D) label values → label map; NaN stays NaN, to be refused."""
    array = channels.detach().cpu().numpy()
    if len(array) == 1:
        return np.asarray(array[0])
    if not np.isfinite(array).all():
        raise Refusal("non-finite", "a tensor holds NaN or infinite values; look for the layer that produces them")
    if not np.isin(array, (0, 1)).all() or (array.sum(axis=0) > 1).any():
        raise UsageError("the channels are not one-hot; apply AsDiscrete(argmax=True, to_onehot=C) before the metric")
    return np.asarray(array[1:].argmax(axis=0) + 1) * array[1:].any(axis=0)


class StructureMetricHandler(IgniteMetricHandler):
    """Ignite handler around :class:`StructureMetric`, for ``key_metric`` and ``additional_metrics`` of a workflow.

    The engine's metric is the mean over structures and images; the number that a missed structure adds to it is its
    score for an empty mask (0), or for distances nothing: watch ``NAME_missed`` in ``engine.state.metrics``, which
    stands beside it.

    ``metric``, ``tolerance_mm``, ``spacing_mm``, ``definitions``, ``n_classes``, ``overlapping``: as for
    :class:`StructureMetric`. ``output_transform``: extracts ``(y_pred, y)`` from the engine's output, such as
    ``monai.handlers.from_engine(["pred", "label"])``. ``save_details``: keep the metric of every image and structure in
    ``engine.state.metric_details``, as MONAI's handlers do.
    """

    def __init__(
        self,
        metric: str = "dice",
        tolerance_mm: float = 1.0,
        spacing_mm: Sequence[float] | None = None,
        definitions: Definitions | None = None,
        n_classes: int | None = None,
        output_transform: Callable[[Any], Any] = lambda output: output,
        save_details: bool = True,
        *,
        overlapping: bool = False,
    ) -> None:
        self.structures = StructureMetric(
            metric, tolerance_mm, spacing_mm, definitions, n_classes, overlapping=overlapping
        )
        super().__init__(metric_fn=self.structures, output_transform=output_transform, save_details=save_details)

    def compute(self) -> float:
        """Mean over the structures that have a value; NaN if none has one."""
        per_structure = super().compute()
        if self.save_details and self._engine is not None:
            self._engine.state.metric_details[self._name] = self.structures.details()
        return float(torch.nanmean(torch.as_tensor(per_structure)))

    def completed(self, engine: Any, name: str) -> None:
        """Put the metric into the engine's state, and how many structures were missed or invented beside it."""
        super().completed(engine, name)
        counts = self.structures.counts()
        engine.state.metrics[f"{name}_missed"] = int(counts["n_missed"].sum())
        engine.state.metrics[f"{name}_invented"] = int(counts["n_invented"].sum())
