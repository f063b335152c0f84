"""One volume through a bundle: prepare, run windows, label on the source grid."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medseg.bundle import Bundle
from medseg.errors import BundleError, CaseFailed, Refusal
from medseg.geometry import Geometry
from medseg.inference import choice as choosing
from medseg.inference.choice import Choice
from medseg.inference.engines import REFERENCE, Engine, build_engine, fixed_engine
from medseg.inference.recipe import read_recipe
from medseg.inference.restore import LabelMap, labels_on_source
from medseg.inference.windows import WindowSettings, middle_window, plan_windows, sweep

__all__ = ["Prediction", "Predictor"]

_log = logging.getLogger(__name__)
_WHOLE = WindowSettings((0, 0, 0))
_MEMORY_FRACTION = 0.5
_WORTH_TUNING_S = 60.0
_WORTH_COMPILING_S = 900.0


@dataclass(frozen=True)
class Prediction:
    """What one volume gave.

    Parameters
    ----------
    label_map
        uint8 or uint16, on the source image's grid, axes ``(i, j, k)`` as there.
    seconds
        Wall time per stage: ``prepare``, ``network``, ``restore`` (stitching, labels, back to the source grid).
    prepared
        The image as the network saw it, ``(C, H, W, D)``; None unless asked for.
    scores
        The network's stitched output on that grid, ``(K, H, W, D)`` float32; None unless asked for.
    """

    label_map: LabelMap
    seconds: Mapping[str, float] = field(default_factory=dict)
    prepared: MetaTensor | None = None
    scores: torch.Tensor | None = None


class Predictor:
    """A bundle, opened once, that labels any number of volumes.

    Parameters
    ----------
    bundle
        The bundle, or its folder.
    device
        Torch device.
    precision
        ``"auto"`` and ``"fp32"`` begin with the bundle's network in float32 on the bundle's own windows; under
        ``"auto"`` :meth:`tune` may find a faster way with the same labels. ``"bf16"`` is used as asked.
    windows
        ``"bundle"`` for the bundle's own, ``"large"`` for windows as large as memory allows.

    Examples
    --------
    >>> predictor = Predictor("bundles/hippocampus_mri_segmentation")  # doctest: +SKIP
    >>> predictor.predict(image).label_map.shape == image.shape[1:]  # doctest: +SKIP
    True
    """

    def __init__(
        self, bundle: Bundle | str | Path, device: str = "cpu", precision: str = "auto", windows: str = "bundle"
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.device = device
        self.recipe = read_recipe(self.bundle)
        self._network = self.bundle.load_network(device)
        self._large: tuple[str, float] | None = None
        self.use(Choice(fixed_engine(precision) or REFERENCE, windows))

    def use(self, choice: Choice) -> None:
        """Run the network in the given way from now on."""
        self.choice = choice
        self._engine = build_engine(choice.engine, self._copy(), self.device)

    def predict(
        self, image: MetaTensor | Mapping[str, Any], modality: str | None = None, *, keep_scores: bool = False
    ) -> Prediction:
        """Label one volume.

        Parameters
        ----------
        image
            Channel-first image ``(C, H, W, D)`` on its own grid with its affine (RAS, mm), or a case with the
            key ``image``.
        modality
            DICOM modality code, if known; compared with what the bundle was trained on.
        keep_scores
            Whether to hand back the prepared image and the network's output, which need not fit into memory.

        Raises
        ------
        Refusal
            ``channel-mismatch``, ``non-finite``, ``outside-training-range``, ``wrong-modality`` or
            ``singular-affine``.
        CaseFailed
            If the network returns values that are not finite.
        """
        source = image["image"] if isinstance(image, Mapping) else image
        self._check(source, modality)
        begin = time.perf_counter()
        prepared = self._prepare(source)
        middle = time.perf_counter()
        timed = _Timed(self._engine)
        volume = prepared.as_tensor().float()
        kept: list[torch.Tensor] | None = [] if keep_scores else None
        slabs = sweep(volume, self._settings(volume), timed, kept)
        labels = labels_on_source(slabs, self.recipe, source, prepared)
        if labels.shape != tuple(source.shape[1:]):
            raise CaseFailed(f"the label map has shape {labels.shape}, the source image {tuple(source.shape[1:])}")
        rest = time.perf_counter() - middle - timed.seconds
        seconds = {"prepare": middle - begin, "network": timed.seconds, "restore": rest}
        if kept is None:
            return Prediction(labels, seconds)
        return Prediction(labels, seconds, prepared, torch.cat(kept, dim=1))

    def tune(
        self, image: MetaTensor, modality: str | None = None, case_id: str = "", waiting: float = math.inf
    ) -> Choice:
        """Find the fastest way that labels ``image`` as the bundle's own does, use it and return it.

        Parameters
        ----------
        image, modality
            As for :meth:`predict`.
        case_id
            Name of the case, for the record.
        waiting
            Number of cases to come. Nothing is measured, and no engine that is slow to start is tried, where these
            cases take less time than that.

        Raises
        ------
        Refusal, CaseFailed
            As :meth:`predict`; then nothing was chosen.
        """
        self.use(Choice())
        begin = time.perf_counter()
        expected = self.predict(image, modality).label_map
        reference_s = time.perf_counter() - begin
        if reference_s * waiting < _WORTH_TUNING_S:
            return self.choice
        patient = reference_s * waiting > _WORTH_COMPILING_S
        window = middle_window(self._prepare(image).as_tensor().float(), self.recipe.windows or _WHOLE)
        engine, _ = choosing.fastest_engine(window, self._copy, self.device, compiled=patient)
        best = Choice(measured_on=case_id)
        for windows in ("bundle", "large"):
            if (engine.name, windows) == (REFERENCE, "bundle") or (windows == "large" and self.recipe.windows is None):
                continue
            self.use(Choice(engine.name, windows))
            begin = time.perf_counter()
            try:
                found = self.predict(image, modality).label_map
            except (CaseFailed, MemoryError, RuntimeError) as error:
                _log.info("%s with %s windows cannot be used: %s", engine.name, windows, type(error).__name__)
                continue
            speedup = reference_s / (time.perf_counter() - begin)
            same = choosing.agreement(found, expected)
            if same is not None and same >= choosing.SMALLEST_AGREEMENT and speedup > (best.speedup or 1.0):
                best = Choice(engine.name, windows, same, case_id, round(speedup, 2))
        self.use(best)
        return best

    def _copy(self) -> torch.nn.Module:
        return copy.deepcopy(self._network)

    def _settings(self, volume: torch.Tensor) -> WindowSettings:
        own = self.recipe.windows or _WHOLE
        if self.choice.windows != "large" or self.recipe.windows is None:
            return own
        if self._large is None or self._large[0] != self.choice.engine:
            reference: Engine = build_engine(REFERENCE, self._copy(), self.device)
            window = torch.zeros(1, volume.shape[0], *plan_windows(volume.shape[1:], own).roi_size)
            self._large = (self.choice.engine, choosing.bytes_per_voxel(reference, window))
        budget = choosing.available_bytes(self.device) * _MEMORY_FRACTION
        return choosing.large_window(volume.shape[1:], own, self._large[1], budget)

    def _check(self, source: MetaTensor, modality: str | None) -> None:
        if source.ndim != 4 or source.shape[0] != self.bundle.input_channels:
            raise Refusal(
                "channel-mismatch",
                f"found an image of shape {tuple(source.shape)}, {self.bundle.name} expects"
                f" ({self.bundle.input_channels}, H, W, D); give one file or series per channel",
            )
        _, height, width, depth = source.shape
        geometry = Geometry((height, width, depth), np.asarray(source.affine, dtype=np.float64))
        self.bundle.check_range(geometry, modality)
        if not math.isfinite(source.sum(dtype=torch.float64).item()):
            raise Refusal("non-finite", "the image holds NaN or infinite values; repair or replace the file")

    def _prepare(self, source: MetaTensor) -> MetaTensor:
        # a fresh tensor: transforms append to the trace of what they are given
        image = MetaTensor(source.as_tensor().float(), affine=source.affine)
        prepared = self.recipe.preprocessing({"image": image})
        result = prepared.get("image") if isinstance(prepared, Mapping) else None
        if not isinstance(result, MetaTensor):
            raise BundleError(f"preprocessing of {self.bundle.name} does not give a MetaTensor under the key 'image'")
        if not math.isfinite(result.sum(dtype=torch.float64).item()):
            raise CaseFailed("preprocessing gave values that are not finite (a constant image?)")
        return result


class _Timed:
    """Adds up the time that an engine takes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds = 0.0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        begin = time.perf_counter()
        scores = self._engine(batch)
        self.seconds += time.perf_counter() - begin
        return scores
