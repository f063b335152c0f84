"""A bundle's post-processing, read from the transforms that MONAI makes of it.

Usual orders (activation, back to the source grid, labels; or labels first) are done chunk by chunk with MONAI's result.
Any other order is run as written, by MONAI's own transforms on the whole volume. Whether labels come out is tried on a
few random voxels before the first case, and which number each channel comes out with; so is whether every package is
there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CastToTyped,
    Compose,
    DeleteItemsd,
    EnsureTyped,
    FillHolesd,
    Invertd,
    KeepLargestConnectedComponentd,
    LabelFilterd,
    RemoveSmallObjectsd,
    SaveImaged,
    SelectItemsd,
    ToDeviced,
    ToTensord,
)

from medseg.bundle.config import missing_package
from medseg.errors import BundleError
from medseg.labels.decoding import Activation, LabelDecoding

_PRED, _IMAGE = "pred", "image"
_CLEANERS = (FillHolesd, KeepLargestConnectedComponentd, LabelFilterd, RemoveSmallObjectsd)
_CASTS = (EnsureTyped, CastToTyped, ToTensord)
_BY_CHUNKS = re.compile(r"(A?)(?:(I)D(C*)|D(C*)(I?)(C*))")
"""Activation, inversion, labels, cleaning: the orders that are done chunk by chunk."""

_PROBE = (6, 6, 6)
_SURE = 8.0
"""A score that leaves no doubt, before and after an activation."""


@dataclass(frozen=True)
class Postprocessing:
    """What becomes of the network's output.

    ``decoding`` is how scores become labels: the first activation, and argmax or a threshold. Scores or labels are
    taken ``back`` to the source grid, by the ``nearest`` voxel or linearly, and cleaned on the network's grid and on
    the source grid. If the order is none of the usual ones, the transforms are kept as ``written``, leave the labels
    under the key ``saved``, and the other fields only describe. ``names`` are those of the numbers that it gives, if
    they are others than those of the channels. ``notes`` say where medseg does something else than the config says, and
    why.
    """

    decoding: LabelDecoding = field(default_factory=LabelDecoding)
    back: Literal["scores", "labels"] = "labels"
    nearest: bool = True
    clean_model: tuple[Callable[..., Any], ...] = ()
    clean_source: tuple[Callable[..., Any], ...] = ()
    written: Compose | None = None
    saved: str = _PRED
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_postprocessing(
    transforms: Any,
    preprocessing: Any,
    channels: tuple[int, int],
    bundle: str,
    table: tuple[int, ...] = (),
    labels: Mapping[int, str] | None = None,
) -> Postprocessing:
    """Understand the post-processing of a bundle: what its config evaluates to.

    ``preprocessing`` is what ``Invertd`` refers to; ``channels`` are those of the image and of the network's output;
    the bundle's name is for messages. With a ``table`` the output's channels are regions, and become one label map.
    ``labels`` are the names of the channels, background left out.

    Raises ``BundleError`` if it does not end in a label map; ``MissingDependency`` if a package that one of the
    transforms needs is not installed.
    """
    steps, saved, notes = _until_saved(_listed(transforms), bundle)
    trial = _Trial(steps, saved, channels, bundle)
    trial.check_labels(channels[1] if table else 1)
    letters = [_letter(step, preprocessing, 1 if table else channels[1]) for step in steps]
    order = "".join(letter for letter in letters if letter != " ")
    if saved == _PRED and not _hides_image(steps) and _BY_CHUNKS.fullmatch(order):
        used = [step for step, letter in zip(steps, letters, strict=True) if letter != " "]
        found = _by_chunks(used, order, notes)
        return _with_regions(found, table, bundle) if table else found
    if table:
        raise BundleError(
            f"{bundle} has regions, and its postprocessing is none of the usual ones; expected a sigmoid"
            " (Activationsd), Invertd and a threshold (AsDiscreted)"
        )
    names = trial.names(labels or {})
    first = next((_activation(step) for step in steps if isinstance(step, Activationsd)), None)
    decoding = LabelDecoding(first or "none", _only_threshold(steps))
    if names:
        made = ", ".join(f"{value} {name}" for value, name in sorted(names.items()))
        notes.append(f"the postprocessing renumbers the channels; its label map holds {made}")
    return Postprocessing(decoding, written=Compose(steps), saved=saved, names=names, notes=tuple(notes))


def _with_regions(found: Postprocessing, table: tuple[int, ...], bundle: str) -> Postprocessing:
    """The same for regions, which MONAI saves as a channel each and medseg paints into one label map."""
    if found.decoding.threshold is None or found.clean_model or found.clean_source:
        what = "an argmax" if found.decoding.threshold is None else "a step that cleans labels"
        raise BundleError(
            f"{bundle} has regions, which may overlap, and its postprocessing {what}; expected a threshold"
            " (AsDiscreted) on a sigmoid of every channel, and no cleaning of labels"
        )
    note = "regions are painted in their order into one label map; MONAI saves a channel for each"
    return replace(found, decoding=replace(found.decoding, table=table), notes=(*found.notes, note))


def _by_chunks(steps: Sequence[Any], order: str, notes: list[str]) -> Postprocessing:
    label, invert = order.index("D"), order.find("I")
    nearest = bool(_for_pred(steps[invert], "nearest_interp")) if invert >= 0 else True
    if invert > label and not nearest:
        notes.append(
            "labels are taken back by the nearest voxel although nearest_interp is false: numbers between two labels"
            " would name other structures"
        )
    if invert < 0:
        notes.append("there is no Invertd: labels are taken back to the source grid by the nearest voxel")
    cleaners = {index: _cleaner(steps[index]) for index, letter in enumerate(order) if letter == "C"}
    on_source = invert if invert >= 0 else len(order)
    activation = _activation(steps[0]) if order[0] == "A" else "none"
    return Postprocessing(
        LabelDecoding(activation, _for_pred(steps[label], "threshold")),
        back="scores" if 0 <= invert < label else "labels",
        nearest=nearest,
        clean_model=tuple(clean for index, clean in cleaners.items() if index < on_source),
        clean_source=tuple(clean for index, clean in cleaners.items() if index > on_source),
        notes=tuple(notes),
    )


def _listed(transforms: Any) -> list[Any]:
    """All transforms in order, those of nested lists too."""
    if type(transforms) is Compose:
        transforms = transforms.transforms
    if isinstance(transforms, list | tuple):
        return [step for inner in transforms for step in _listed(inner)]
    return [] if transforms is None else [transforms]


def _until_saved(steps: Sequence[Any], bundle: str) -> tuple[list[Any], str, list[str]]:
    """The transforms before the labels are saved, under which key that is, and notes."""
    saves = [index for index, step in enumerate(steps) if isinstance(step, SaveImaged)]
    last = next((index for index in reversed(saves) if _PRED in steps[index].keys), saves[-1] if saves else len(steps))
    notes: list[str] = []
    key = _PRED
    if saves and _PRED not in steps[last].keys:
        key, *others = (str(name) for name in steps[last].keys)
        if others:
            saved = ", ".join([key, *others])
            raise BundleError(f"SaveImaged of {bundle} saves {saved}; expected the one key of the label map")
    if saves and getattr(steps[last].saver, "scale", None) is not None:
        notes.append("SaveImaged would scale the labels; medseg writes them as they are")
    # where a transform runs is for medseg to say
    return [step for step in steps[:last] if not isinstance(step, SaveImaged | ToDeviced)], key, notes


def _letter(step: Any, preprocessing: Any, classes: int) -> str:
    """A for an activation, I for the inversion of the preprocessing, D for labels, C for cleaning labels, a blank for
    nothing, ? for anything else."""
    keys = tuple(getattr(step, "keys", ()))
    if isinstance(step, SelectItemsd | DeleteItemsd) or (keys and _PRED not in keys and _harmless_beside(step)):
        return " "
    if keys != (_PRED,):
        return "?"
    if isinstance(step, Activationsd):
        return _activation_letter(step)
    if isinstance(step, AsDiscreted):
        return _discrete_letter(step, classes)
    if isinstance(step, Invertd):
        plain = step.orig_keys == (_IMAGE,) and step.transform is preprocessing and step.post_func == (None,)
        return "I" if plain else "?"
    return _cast_or_cleaner_letter(step)


def _cast_or_cleaner_letter(step: Any) -> str:
    if isinstance(step, _CASTS):
        return " " if _cast_of(step) in (None, torch.float32, torch.float64, float) else "?"
    return "C" if isinstance(step, _CLEANERS) else "?"


def _harmless_beside(step: Any) -> bool:
    """Whether a transform of other keys cannot change what becomes of the prediction."""
    return isinstance(step, Activationsd | AsDiscreted | EnsureTyped | CastToTyped | ToTensord | SaveImaged)


def _activation_letter(step: Activationsd) -> str:
    if _for_pred(step, "other") is not None or step.converter.kwargs:
        return "?"
    chosen = int(bool(_for_pred(step, "softmax"))) + int(bool(_for_pred(step, "sigmoid")))
    return " A?"[chosen]


def _activation(step: Activationsd) -> Activation:
    if _for_pred(step, "softmax"):
        return "softmax"
    return "sigmoid" if _for_pred(step, "sigmoid") else "none"


def _discrete_letter(step: AsDiscreted, classes: int) -> str:
    argmax, threshold = bool(_for_pred(step, "argmax")), _for_pred(step, "threshold")
    if _for_pred(step, "to_onehot") is not None or _for_pred(step, "rounding") is not None or step.converter.kwargs:
        return "?"
    if argmax:
        return "D" if threshold is None else "?"
    return "D" if threshold is not None and classes == 1 else "?"


def _only_threshold(steps: Sequence[Any]) -> float | None:
    """The threshold of a post-processing that has no argmax."""
    discrete = [step for step in steps if isinstance(step, AsDiscreted)]
    if any(_for_pred(step, "argmax") for step in discrete):
        return None
    return next((_for_pred(step, "threshold") for step in discrete), None)


def _cast_of(step: Any) -> Any:
    dtype = getattr(step, "dtype", None)
    if dtype is None:
        dtype = getattr(getattr(step, "converter", None), "dtype", None)
    return dtype[0] if isinstance(dtype, tuple) else dtype


def _for_pred(step: Any, name: str) -> Any:
    """An argument of a dict transform, for the key of the prediction."""
    values = getattr(step, name)
    keys = tuple(step.keys)
    index = keys.index(_PRED) if _PRED in keys else 0
    return values[index] if isinstance(values, tuple | list) else values


def _hides_image(steps: Sequence[Any]) -> bool:
    """Whether the image is taken away before an inversion, which then does nothing."""
    inverts = [index for index, step in enumerate(steps) if isinstance(step, Invertd)]
    for step in steps[: inverts[-1]] if inverts else ():
        if isinstance(step, DeleteItemsd) and _IMAGE in step.keys:
            return True
        if isinstance(step, SelectItemsd) and _IMAGE not in step.keys:
            return True
    return False


def _cleaner(step: Any) -> Callable[..., Any]:
    """The array transform behind a dict transform such as ``KeepLargestConnectedComponentd``."""
    own = [getattr(step, name, None) for name in ("converter", "filter", "label_filter")]
    return next((transform for transform in own if callable(transform)), lambda array: step({_PRED: array})[_PRED])


@dataclass(frozen=True)
class _Trial:
    """The transforms before the labels are saved, tried on a few voxels, which stay where they are when taken back."""

    steps: Sequence[Any]
    saved: str
    channels: tuple[int, int]
    bundle: str

    def check_labels(self, expected: int = 1) -> None:
        """Refuse what makes no label map of random scores, or no mask for each of several ``expected`` regions."""
        generator = torch.Generator().manual_seed(0)
        found = self._run(torch.randn(self.channels[1], *_PROBE, generator=generator) * 4)
        if not torch.equal(found.float(), found.float().round()):
            raise BundleError(f"postprocessing of {self.bundle} lacks AsDiscreted with argmax or a threshold")
        if found.ndim != 4 or found.shape[0] not in (1, expected):
            raise BundleError(
                f"postprocessing of {self.bundle} gives {found.shape[0]} channels; AsDiscreted must use argmax, or a"
                " threshold on one channel: a label map holds one label a voxel. Regions that overlap need `labels` and"
                " `regions_class_order` in the output's metadata"
            )

    def names(self, labels: Mapping[int, str]) -> dict[int, str]:
        """What the numbers that come out mean, by the channels that are there alone; empty if they are the channels'.

        Where a channel gives way to another that is there too, as parts of overlapping regions do, the name says so.
        Refuses background that comes out as something, and what changes with other channels in any other way.
        """
        alone = {channel: self._number(channel) for channel in range(max(self.channels[1], 2))}
        if all(found in (0, channel) for channel, found in alone.items()):
            return {}
        if any(found and channel not in labels for channel, found in alone.items()):
            raise BundleError(
                f"postprocessing of {self.bundle} makes {sorted(set(alone.values()))} of the labels {sorted(alone)},"
                " and channel_def does not name these channels: name every one in configs/metadata.json, or leave the"
                " labels as they are numbered"
            )
        named: dict[int, str] = {}
        for channel, number in alone.items():
            if number:
                less = [name for other, name in labels.items() if self._gives_way(alone, channel, other)]
                name = labels[channel] + (f" without {', '.join(less)}" if less else "")
                named[number] = f"{named[number]} or {name}" if number in named else name
        return named

    def _gives_way(self, alone: Mapping[int, int], channel: int, other: int) -> bool:
        """Whether a channel's number is replaced by that of another channel where both are."""
        mine, its = alone[channel], alone[other]
        if mine == its or not its or _only_threshold(self.steps) is None:
            return False
        both = self._number(channel, other)
        if both not in (mine, its):
            raise BundleError(
                f"postprocessing of {self.bundle} makes {both} where two channels are, which alone give {mine} and"
                f" {its}; nothing names that number: declare `labels` and `regions_class_order` in the metadata instead"
            )
        return both == its

    def _number(self, *channels: int) -> int:
        """The label of voxels where these channels are there; of an only channel, 1 is there and 0 is not."""
        classes = self.channels[1]
        scores = torch.full((classes, *_PROBE), -_SURE)
        for channel in channels:
            if classes > 1 or channel:
                scores[channel if classes > 1 else 0] = _SURE
        found = set(self._run(scores).flatten().tolist()) - {0.0}
        if len(found) > 1 or any(value != int(value) or value < 0 for value in found):
            raise BundleError(
                f"postprocessing of {self.bundle} makes {sorted(found)} of one label, expected one number"
            )
        return int(found.pop()) if found else 0

    def _run(self, scores: torch.Tensor) -> torch.Tensor:
        """What the transforms make of some scores."""
        image = MetaTensor(torch.zeros(self.channels[0], *_PROBE))
        data: Mapping[Any, Any] = {_IMAGE: image, _PRED: MetaTensor(scores)}
        for step in self.steps:
            where = f"{type(step).__name__} in the postprocessing of {self.bundle}"
            try:
                data = _not_moved(step, data) if isinstance(step, Invertd) else step(data)
            except Exception as error:
                missing = missing_package(error, where)
                if missing is not None:
                    raise missing from error
                what = f"{type(error).__name__}: {error}".splitlines()[0]
                raise BundleError(f"{where} fails on scores or labels: {what}") from error
        if self.saved not in data:
            raise BundleError(f"the postprocessing of {self.bundle} leaves nothing under the key {self.saved!r}")
        return torch.as_tensor(data[self.saved])


def _not_moved(step: Invertd, data: Mapping[Any, Any]) -> dict[Any, Any]:
    """An inversion without the way back: only what it does to the values afterwards."""
    after = dict(zip(step.keys, step.post_func, strict=True))
    return {key: after[key](value) if callable(after.get(key)) else value for key, value in data.items()}
