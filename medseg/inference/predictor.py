"""One volume through a bundle: prepare, run windows, label on the source grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from medseg.bundle import Bundle
from medseg.devices import resolve_device
from medseg.errors import CaseFailed
from medseg.inference.choice import EngineChoice, engine_of
from medseg.inference.config import joined, read_inference_config
from medseg.inference.ensemble import Networks, TTAView, check_mirror, load_models, member_digest, mirrored_axes, views
from medseg.inference.invert import LabelMap, labels_on_source
from medseg.inference.preprocess import geometry_of, prepare
from medseg.inference.quantised import place_of
from medseg.inference.sliding_window import Chunk, sliding_window


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
        The image as the network saw it, ``(C, H, W, D)``; None unless it or the network's output was asked for.
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
        Torch device; ``"auto"``: CUDA, else Apple's MPS, else the CPU.
    precision, engine
        As for :func:`medseg.inference.choice.engine_of`; int8 learns from the first volume.
    windows
        ``"bundle"`` for the bundle's own, ``"large"`` for as few as memory allows.
    mirror
        Axes of the patient (``"lr"``, ``"ap"``, ``"is"``) along which every window is also seen mirrored; the
        probabilities of all combinations are averaged.
    ensemble
        Bundles or weights files whose networks are averaged with the bundle's own, see
        :func:`medseg.inference.ensemble.load_models`.
    folder
        Keeps a quantised network, so that others compute with the same one; None keeps it in memory.

    Examples
    --------
    >>> predictor = Predictor("bundles/hippocampus_mri_segmentation")  # doctest: +SKIP
    >>> predictor.predict(image).label_map.shape == image.shape[1:]  # doctest: +SKIP
    True
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        device: str = "cpu",
        precision: str = "auto",
        windows: str = "bundle",
        *,
        engine: str = "auto",
        mirror: Sequence[str] = (),
        ensemble: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        device = resolve_device(device)
        self.device, self.mirror, self.ensemble = device, tuple(mirror), tuple(ensemble)
        choice = EngineChoice(engine_of(device, precision, engine), windows)
        check_mirror(self.mirror, self.bundle)
        self.recipe = read_inference_config(self.bundle)
        network = self.bundle.load_network(device)
        members = [network, *load_models(self.bundle, network, self.ensemble, device)]
        self.networks = Networks(members, self.recipe, device, _places(folder, self.bundle, self.ensemble))
        self.use(choice)

    def use(self, choice: EngineChoice) -> None:
        """Run the network in the given way from now on."""
        self.networks.use(choice)

    @property
    def choice(self) -> EngineChoice:
        """How the network is run."""
        return self.networks.choice

    @property
    def network(self) -> torch.nn.Module:
        """The bundle's network in float32, however windows are run."""
        return self.networks.members[0]

    def predict(
        self,
        image: MetaTensor | Mapping[str, Any],
        modality: str | None = None,
        *,
        keep_scores: bool = False,
        watch: Callable[[Chunk], None] | None = None,
    ) -> Prediction:
        """Label one volume.

        Parameters
        ----------
        image
            Channel-first image ``(C, H, W, D)`` on its own grid with its affine (RAS, mm), or a case with the
            key ``image`` and, for a bundle that takes channels on different grids, the keys of the others.
        modality
            DICOM modality code, if known; compared with what the bundle was trained on.
        keep_scores
            Whether to hand back the prepared image and the network's output, which need not fit into memory.
        watch
            Called with every slab of the network's output before it is labelled; the prepared image is handed back.

        Raises
        ------
        Refusal
            ``channel-mismatch``, ``non-finite``, ``outside-training-range``, ``wrong-modality`` or
            ``singular-affine``.
        CaseFailed
            If the network returns values that are not finite.
        """
        source = joined(image) if isinstance(image, Mapping) else image
        begin = time.perf_counter()
        prepared = self.prepare(source, modality)
        middle = time.perf_counter()
        timed = _Timed(self.networks.averaged(self._views(prepared, self.mirror)))
        kept: list[torch.Tensor] | None = [] if keep_scores else None
        labels = self._label(source, prepared, timed, kept, watch)
        rest = time.perf_counter() - middle - timed.seconds
        seconds = {"prepare": middle - begin, "network": timed.seconds, "restore": rest}
        if kept is None:
            return Prediction(labels, seconds, prepared if watch else None)
        return Prediction(labels, seconds, prepared, torch.cat(kept, dim=1))

    def predict_each(
        self, image: MetaTensor, modality: str | None = None, *, mirror: Sequence[str] | None = None
    ) -> Iterator[tuple[TTAView, LabelMap]]:
        """Label one volume once per view (network and mirroring), without averaging: their agreement tells of doubt.

        Parameters
        ----------
        image, modality
            As for :meth:`predict`.
        mirror
            Axes to mirror; None takes the predictor's own.

        Yields
        ------
        View, LabelMap
            The plain look of the first network comes first.

        Raises
        ------
        UsageError
            If ``mirror`` makes no sense for this bundle.
        Refusal, CaseFailed
            As for :meth:`predict`.
        """
        wanted = self.mirror if mirror is None else tuple(mirror)
        check_mirror(wanted, self.bundle)
        prepared = self.prepare(image, modality)
        for view in self._views(prepared, wanted):
            yield view, self._label(image, prepared, self.networks.averaged([view]))

    def prepare(self, source: MetaTensor, modality: str | None = None) -> MetaTensor:
        """The image as the network sees it, see :func:`medseg.inference.preprocess.prepare`."""
        return prepare(source, self.bundle, self.recipe, modality)

    def _views(self, prepared: MetaTensor, mirror: Sequence[str]) -> tuple[TTAView, ...]:
        return views(len(self.networks.members), mirrored_axes(mirror, geometry_of(prepared)))

    def _label(
        self,
        source: MetaTensor,
        prepared: MetaTensor,
        scores_of: Callable[[torch.Tensor], torch.Tensor],
        kept: list[torch.Tensor] | None = None,
        watch: Callable[[Chunk], None] | None = None,
    ) -> LabelMap:
        """Labels on the source grid from the windows of a prepared volume."""
        volume = prepared.as_tensor().float()
        self.networks.learn(volume)
        slabs: Iterable[Chunk] = sliding_window(volume, self.networks.windows(volume), scores_of, kept)
        labels = labels_on_source(_watched(slabs, watch) if watch else slabs, self.recipe, source, prepared)
        if labels.shape != tuple(source.shape[1:]):
            raise CaseFailed(f"the label map has shape {labels.shape}, the source image {tuple(source.shape[1:])}")
        return labels


def _places(folder: Path | None, bundle: Bundle, ensemble: Sequence[str]) -> list[Path]:
    """Where the networks are kept in integers."""
    if folder is None:
        return []
    return [place_of(folder, digest) for digest in (bundle.sha256, *map(member_digest, ensemble))]


def _watched(slabs: Iterable[Chunk], watch: Callable[[Chunk], None]) -> Iterator[Chunk]:
    for slab in slabs:
        watch(slab)
        yield slab


class _Timed:
    """Adds up the time that an engine takes."""

    def __init__(self, engine: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._engine = engine
        self.seconds = 0.0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        begin = time.perf_counter()
        scores = self._engine(batch)
        self.seconds += time.perf_counter() - begin
        return scores
