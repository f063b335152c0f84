"""What a bundle's ``inference.json`` asks for, read as data: channels, preprocessing, windows, and the way back.

Channels that lie on different grids: which bundles take them, whether they belong together, and how they travel.

A bundle takes them if its own preprocessing loads each channel under a key of its own, resamples the others onto the
first (``ResampleToMatchd`` onto ``image``) and concatenates all (``ConcatItemsd`` into ``image``). The first channel's
grid is the one results are made on.

What a bundle's ``inference.json`` asks for, read as data: preprocessing, windows, and the way back to labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from monai.data import MetaTensor
from monai.transforms import Compose, Spacing

from medseg.bundle import Bundle
from medseg.bundle.config import steps, target_of
from medseg.errors import BundleError, Refusal
from medseg.geometry import SMALLEST_COVERAGE, Geometry
from medseg.inference.postprocessing import Activation, Postprocessing, read_postprocessing
from medseg.inference.sliding_window import WindowSettings
from medseg.ingest import SeriesRecord

_OTHERS = "other_channels"


@dataclass(frozen=True)
class Channels:
    """How a bundle takes its channels.

    Parameters
    ----------
    keys
        Names in its transforms: ``image`` for all channels at once, else one name each, the first ``image``.
    resampled
        Whether it resamples the others onto the grid of the first.
    """

    keys: tuple[str, ...] = ("image",)
    resampled: bool = False


def channels_of(bundle: Bundle) -> Channels:
    """Read from ``inference.json``, as data, how a bundle takes its channels."""
    listed = steps(bundle.inference, bundle.pipeline.preprocessing)
    concat = next((step for step in listed if target_of(step) == "ConcatItemsd" and step.get("name") == "image"), None)
    keys = () if concat is None else _names(concat.get("keys"))
    if len(keys) < 2 or keys[0] != "image":
        return Channels()
    matching = [step for step in listed if target_of(step) == "ResampleToMatchd" and step.get("key_dst") == "image"]
    matched = {key for step in matching for key in _names(step.get("keys"))}
    return Channels(keys, matched.issuperset(keys[1:]))


def check_together(
    records: Sequence[SeriesRecord], grids: Sequence[Geometry], facts: Sequence[Mapping[str, Any]]
) -> str:
    """Refuse channels that cannot be laid over the first one; gives what is worth noting of the others.

    Raises
    ------
    Refusal
        ``mixed-patients``, or ``geometry-mismatch`` if frames of reference differ or a channel covers too little.
    """
    notes = []
    for number, (record, grid, found) in enumerate(zip(records, grids, facts, strict=True)):
        if number == 0:
            continue
        if record.patient_hash and records[0].patient_hash and record.patient_hash != records[0].patient_hash:
            raise Refusal("mixed-patients", f"{record.source} is of another patient than the first channel; pair anew")
        notes.append(_covered(number + 1, record, grids[0].covered_by(grid)) + _frame(record, facts[0], found))
    return "; ".join(notes)


def _covered(number: int, record: SeriesRecord, share: float) -> str:
    if share < SMALLEST_COVERAGE:
        raise Refusal(
            "geometry-mismatch",
            f"{record.source} covers {share:.0%} of the first channel's field of view, expected"
            f" {SMALLEST_COVERAGE:.0%} at least; are both of one examination and registered?",
        )
    return f"channel {number} covers {share:.0%} of the first"


def _frame(record: SeriesRecord, first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    known = [str(facts.get("frame_of_reference_hash") or "") for facts in (first, other)]
    if all(known) and known[0] != known[1]:
        raise Refusal(
            "geometry-mismatch",
            f"{record.source} has another frame of reference than the first channel, so that equal positions are not"
            " the same place; register it to the first channel",
        )
    return "" if all(known) or not any(known) else ", and only one of them states its frame of reference"


def joined(case: Mapping[str, Any]) -> MetaTensor:
    """The first channel of a case ``{"image": …, other keys: …}``, carrying the others along."""
    image: MetaTensor = case["image"]
    others = {key: value for key, value in case.items() if key != "image" and isinstance(value, MetaTensor)}
    return with_others(image, others) if others else image


def with_others(image: MetaTensor, others: Mapping[str, MetaTensor]) -> MetaTensor:
    """``image`` on its grid, carrying channels that lie on other grids by their keys."""
    carrying = MetaTensor(image.as_tensor(), affine=image.affine)
    carrying.meta[_OTHERS] = dict(others)
    return carrying


def others_of(image: MetaTensor) -> dict[str, MetaTensor]:
    """The channels that an image carries along, by key; empty if all are in the image itself."""
    return dict(image.meta.get(_OTHERS, {}))


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value or ())


_LOADERS = ("LoadImage", "EnsureChannelFirst", "LoadVolume")


@dataclass(frozen=True)
class InferenceConfig:
    """The parts of ``inference.json`` that a prediction needs.

    Parameters
    ----------
    preprocessing
        The bundle's dict transforms without loading; they act on the key ``image``, and first on the other ``keys``.
    windows
        The bundle's own sliding window; None if its inferer takes the whole volume at once.
    post
        What becomes of the network's output.
    keys
        Under which the preprocessing takes channels, see :class:`medseg.inference.config.Channels`.
    notes
        Where medseg does something else than the config says, and why.
    exact_affine
        Whether the affine of the prepared image says where its voxels were sampled.
    """

    preprocessing: Compose
    windows: WindowSettings | None
    post: Postprocessing
    keys: tuple[str, ...] = ("image",)
    notes: tuple[str, ...] = ()
    exact_affine: bool = True

    @property
    def activation(self) -> Activation:
        """What makes probabilities of the network's output."""
        return self.post.activation

    @property
    def back(self) -> Literal["scores", "labels"]:
        """Whether scores or labels are taken back to the source grid."""
        return self.post.back

    @property
    def nearest(self) -> bool:
        """Whether nearest-neighbour interpolation is used on the way back."""
        return self.post.nearest

    @property
    def threshold(self) -> float | None:
        """Labels are ``score >= threshold`` of the only channel; None if the largest channel wins."""
        return self.post.threshold

    @property
    def clean_model(self) -> tuple[Callable[..., Any], ...]:
        """Label transforms applied on the network's grid."""
        return self.post.clean_model

    @property
    def clean_source(self) -> tuple[Callable[..., Any], ...]:
        """Label transforms applied on the source grid."""
        return self.post.clean_source


def read_inference_config(bundle: Bundle) -> InferenceConfig:
    """Read ``inference.json`` of a bundle: what its evaluator would be given, evaluated by MONAI's own parser.

    Raises
    ------
    UntrustedBundle
        If the audit finds anything outside its allow-list.
    BundleError
        If a part is missing, or asks for something that this predictor would do differently.
    MissingDependency
        If a package that one of the parts needs is not installed.
    """
    if bundle.dimensions != 3:
        raise BundleError(f"{bundle.name} takes images of {bundle.dimensions} dimensions; medseg labels volumes")
    pipeline = bundle.pipeline
    places = (pipeline.preprocessing, pipeline.inferer, pipeline.postprocessing)
    parsed = bundle.parsed(*(place for place in places if place is not None))
    whole = parsed.get(pipeline.preprocessing)
    if whole is None:
        raise BundleError(f"inference.json of {bundle.name} has no preprocessing that is not disabled")
    transforms = parsed.get(pipeline.postprocessing) if pipeline.postprocessing else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transforms warn about values: the bundle's author's concern
        post = read_postprocessing(transforms, whole, (bundle.input_channels, bundle.output_channels), bundle.name)
    preprocessing = _without_loading(whole)
    return InferenceConfig(
        preprocessing=preprocessing,
        windows=_windows(parsed.get(pipeline.inferer) if pipeline.inferer else None, bundle),
        post=post,
        keys=channels_of(bundle).keys,
        notes=(*pipeline.notes, *post.notes),
        exact_affine=not any(_recomputes_affine(step) for step in preprocessing.flatten().transforms),
    )


def _without_loading(transform: Any) -> Compose:
    """The same transforms, composed in the same way, without those that read files."""
    if isinstance(transform, list | tuple):
        transform = Compose(list(transform))
    if type(transform) is not Compose:
        return Compose([] if type(transform).__name__.startswith(_LOADERS) else [transform])
    kept = [
        _without_loading(step) if type(step) is Compose else step
        for step in transform.transforms
        if not type(step).__name__.startswith(_LOADERS)
    ]
    return Compose(
        kept,
        map_items=transform.map_items,
        unpack_items=transform.unpack_items,
        lazy=transform.lazy,
        overrides=transform.overrides,
    )


def _recomputes_affine(step: Any) -> bool:
    """Whether a resampling writes another voxel size into the affine than the one it sampled with."""
    spacing = getattr(step, "spacing_transform", None)
    return isinstance(spacing, Spacing) and bool(spacing.recompute_affine)


def _windows(inferer: Any, bundle: Bundle) -> WindowSettings | None:
    name = type(inferer).__name__
    if inferer is None or name == "SimpleInferer":
        return None
    if name not in {"SlidingWindowInferer", "SlidingWindowInfererAdapt"}:
        raise BundleError(f"inferer of {bundle.name} is {name}, expected SlidingWindowInferer or SimpleInferer")
    if inferer.with_coord:
        raise BundleError(f"inferer of {bundle.name} tells the network where a window lies (with_coord); not supported")
    overlap = tuple(float(o) for o in _three(inferer.overlap, "overlap", bundle))
    if not all(0 <= o < 1 for o in overlap):
        raise BundleError(f"inferer of {bundle.name} has an overlap of {inferer.overlap}, expected 0 to less than 1")
    return WindowSettings(
        roi_size=tuple(int(n or 0) for n in _three(inferer.roi_size, "roi_size", bundle)),
        overlap=overlap,
        mode=str(getattr(inferer.mode, "value", inferer.mode)),
        sigma_scale=inferer.sigma_scale,
        batch_size=int(inferer.sw_batch_size),
        padding_mode=str(getattr(inferer.padding_mode, "value", inferer.padding_mode)),
        padding_value=float(inferer.cval),
    )


def _three(value: Any, what: str, bundle: Bundle) -> Sequence[Any]:
    """One value per axis."""
    values = list(value) if isinstance(value, Sequence) else [value] * 3
    if len(values) != 3:
        raise BundleError(f"{what} in the inferer of {bundle.name} has {len(values)} values, expected 3 (volumes)")
    return values
