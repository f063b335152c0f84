"""What a data set is like: grids, intensities, structures. The plan of a new bundle rests on this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.geometry import SMALLEST_COVERAGE, Geometry, ras_axes
from medseg.ingest import read_volume
from medseg.labels import ANNOTATED_KEY, LabelMap, LabelScheme, ReadingRules, read_label
from medseg.labels.raters import one_map, raters_of
from medseg.labels.scheme import renumbering_advice
from medseg.manifests import Item, Manifest
from medseg.planning.partings import Parting, partings_of, usual_partings

_SAMPLES = 20_000  # voxels per case and channel; percentiles are stable long before
_CASES = 60


@dataclass(frozen=True)
class Intensity:
    """Intensities inside the structures, over all cases read: percentiles 0.5 and 99.5, mean, standard deviation."""

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers. Axes are left-right, posterior-anterior, inferior-superior."""

    cases: int  # cases and cases_read: number of training cases, and how many of them were read
    cases_read: int
    # channels and modality: image channels and the modality of each (``"unknown"`` if the datalist does not tell)
    channels: int
    modality: tuple[str, ...]
    labels: dict[int, str]  # structures by label value (of a region: the value it paints), without the background
    spacing_mm: NDArray[np.float64]  # spacing_mm and shape: voxel spacing and size of each case read, ``(case, axis)``
    shape: NDArray[np.float64]
    intensity: tuple[Intensity, ...]  # one per channel
    # median fraction of voxels that are exactly 0 (a mask or a padded border), one per channel
    zero_fraction: tuple[float, ...]
    # structure_ml and structure_fraction: median volume of each structure where it occurs, and the median fraction of
    # all voxels that belong to any
    structure_ml: dict[int, float]
    structure_fraction: float
    one_grid: bool = True  # whether the channels of every case lie on one grid
    coverage: float = 1.0  # smallest share of a first channel's grid that another channel covers
    scheme: LabelScheme = field(default_factory=LabelScheme)  # regions and the ignore value
    partly_annotated: int = 0  # cases that were looked through for some structures only
    partings: tuple[Parting, ...] = ()  # structures that readers part by a slice

    @property
    def outputs(self) -> int:
        """Channels of a network: a class each and the background, or a region each."""
        return len(self.labels) + (not self.scheme.regions)

    @property
    def fully_known(self) -> bool:
        """Whether every voxel of every case has one class that is known."""
        return not self.scheme.regions and self.scheme.ignore is None and not self.partly_annotated

    @property
    def extent_mm(self) -> NDArray[np.float64]:
        """Field of view of each case, ``(case, axis)``."""
        return self.spacing_mm * self.shape


@dataclass(frozen=True)
class _Case:
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    channels: list[_Channel]
    millilitres: dict[int, float]
    fraction: float
    partings: set[Parting]


@dataclass(frozen=True)
class _Channel:
    samples: NDArray[np.float64]
    zero_fraction: float
    on_grid: bool
    coverage: float


def fingerprint_of_data(manifest: Manifest) -> Fingerprint:
    """Read up to 60 training cases, evenly spread over the datalist, and describe them.

    Raises ``UsageError`` if there is no training case with a label, a label does not lie on the grid of its case's
    first channel, another channel lies elsewhere, numbers of channels differ, or the labels are no classes for a
    network; ``Refusal`` if a volume cannot be used, or a label map holds values that are not whole or not declared.
    """
    items = [item for item in manifest.training if item.get("label")]
    if not items:
        raise UsageError("the datalist has no training item with a label; a bundle is planned from labelled cases")
    step = max(1, len(items) // _CASES)
    scheme = manifest.scheme
    cases = [_read(manifest, item, scheme) for item in items[::step][:_CASES]]
    channels = len(cases[0].channels)
    if any(len(case.channels) != channels for case in cases):
        raise UsageError("the cases have different numbers of channels; give every item the same ones, in one order")
    volumes: dict[int, list[float]] = {}
    for case in cases:
        for value, millilitres in case.millilitres.items():
            volumes.setdefault(value, []).append(millilitres)
    return Fingerprint(
        cases=len(items),
        cases_read=len(cases),
        channels=channels,
        modality=_modality(manifest, channels),
        labels=_labels(scheme, cases),
        spacing_mm=np.array([case.spacing_mm for case in cases]),
        shape=np.array([case.shape for case in cases], dtype=float),
        intensity=tuple(_intensity([case.channels[number].samples for case in cases]) for number in range(channels)),
        zero_fraction=tuple(
            float(np.median([case.channels[number].zero_fraction for case in cases])) for number in range(channels)
        ),
        structure_ml={value: float(np.median(found)) for value, found in sorted(volumes.items())},
        structure_fraction=float(np.median([case.fraction for case in cases])),
        one_grid=all(channel.on_grid for case in cases for channel in case.channels),
        coverage=min(channel.coverage for case in cases for channel in case.channels),
        scheme=scheme,
        partly_annotated=sum(bool(scheme.unknown_of(item.get(ANNOTATED_KEY))) for item in items),
        partings=usual_partings((case.partings, case.millilitres) for case in cases),
    )


def _read(manifest: Manifest, item: Item, scheme: LabelScheme) -> _Case:
    images = manifest.files(item, "image")
    found = _label(manifest, item, scheme, images[0])
    grid = found.geometry
    label = found.array if scheme.ignore is None else np.where(found.array == scheme.ignore, 0, found.array)
    volumes = [(image, *read_volume(image)[:2]) for image in images]
    _check_reference([(image, geometry) for image, _, geometry in volumes], grid)
    order = ras_axes(grid)
    return _Case(
        tuple(float(grid.spacing_mm[axis]) for axis in order),
        tuple(int(grid.shape[axis]) for axis in order),
        [_channel(values, geometry, label, grid) for _, values, geometry in volumes],
        _structure_ml(found.volumes_ml, scheme),
        float(np.mean(label > 0)),
        partings_of(label, order),
    )


def _label(manifest: Manifest, item: Item, scheme: LabelScheme, image: Path) -> LabelMap:
    """The label of a case, whatever its form; of several raters what most of them say."""
    entry, rules = manifest.label_entry(item), ReadingRules.of(manifest.content)
    entries = raters_of(entry) or {"": entry}
    maps = {rater: read_label(one, scheme=scheme, rules=rules, image=image) for rater, one in entries.items()}
    return one_map(maps, "majority", ignore=scheme.ignore) if len(maps) > 1 else next(iter(maps.values()))


def _structure_ml(volumes_ml: Mapping[int, float], scheme: LabelScheme) -> dict[int, float]:
    """Volume of each structure that occurs; all values if none is declared."""
    if not scheme.names:
        return dict(volumes_ml)
    members = {label: [volumes_ml[v] for v in values if v in volumes_ml] for label, values in scheme.members.items()}
    return {label: sum(parts) for label, parts in members.items() if parts}


def _check_reference(channels: Sequence[tuple[Path, Geometry]], grid: Geometry) -> None:
    """Results come on the grid of the first channel, so labels must lie there."""
    image, geometry = channels[0]
    if geometry.matches(grid):
        return
    other = next((number for number, (_, found) in enumerate(channels, start=1) if found.matches(grid)), None)
    remedy = (
        f"results are made on the grid of the first channel, so list channel {other} first"
        if other
        else "resample the label onto the grid of the first channel"
    )
    raise UsageError(
        f"{image.name} lies on the grid {geometry.describe()}, its label on another ({grid.describe()}); {remedy}"
    )


def _channel(values: NDArray[Any], geometry: Geometry, label: NDArray[Any], grid: Geometry) -> _Channel:
    coverage = grid.covered_by(geometry)
    if coverage < SMALLEST_COVERAGE:
        raise UsageError(
            f"a channel with the grid {geometry.describe()} covers {coverage:.0%} of the first channel's "
            f"({grid.describe()}), expected {SMALLEST_COVERAGE:.0%} at least; are both of one patient and registered?"
        )
    # some intensities at the voxels nearest to the labelled ones (of all if there are none), always the same ones
    inside = np.argwhere(label > 0)
    samples = values.ravel()[:: max(1, values.size // _SAMPLES)]
    if len(inside):
        inside = inside[:: max(1, len(inside) // _SAMPLES)]
        to_other = np.linalg.solve(geometry.affine, grid.affine)
        index = np.rint(inside @ to_other[:3, :3].T + to_other[:3, 3]).astype(int)
        samples = values[tuple(index[((index >= 0) & (index < values.shape)).all(axis=1)].T)]
    zeros = float(np.mean(values == 0))
    return _Channel(np.array(samples, dtype=np.float64), zeros, geometry.matches(grid), coverage)


def _intensity(samples: Sequence[NDArray[np.float64]]) -> Intensity:
    values = np.concatenate(samples)
    low, high = np.percentile(values, [0.5, 99.5])
    return Intensity(float(low), float(high), float(values.mean()), float(values.std()))


def _modality(manifest: Manifest, channels: int) -> tuple[str, ...]:
    """Modality of each channel as the datalist declares it (the Decathlon's ``modality``, nnU-Net's channel names)."""
    declared = manifest.content.get("modality") or manifest.content.get("channel_names") or {}
    declared = [declared] if isinstance(declared, str) else declared
    declared = {str(channel): name for channel, name in enumerate(declared)} if isinstance(declared, list) else declared
    if not isinstance(declared, Mapping):
        raise UsageError(f'the datalist\'s modality is {declared!r}, expected an object such as {{"0": "CT"}}')
    names = [str(declared.get(str(channel), "unknown")).upper() for channel in range(channels)]
    return tuple({"MRI": "MR", "PET": "PT"}.get(name, name) if name != "UNKNOWN" else "unknown" for name in names)


def _labels(scheme: LabelScheme, cases: Sequence[_Case]) -> dict[int, str]:
    """The structures to plan for: as declared, else those that occur."""
    found = sorted({value for case in cases for value in case.millilitres})
    if not found:
        raise UsageError(f"the {len(cases)} label maps read hold nothing but background; check the label folder")
    names = scheme.structures or {value: f"structure {value}" for value in found}
    if not scheme.names and all(case.fraction == 1.0 for case in cases):
        shifts = ",".join(f"{value}={value - 1}" for value in found)
        raise UsageError(
            "no voxel of any label map read is 0, so the background never occurs, and nothing is declared; if the "
            f"values are shifted, map them (medseg manifest create --images DATALIST --map {shifts} -o DATALIST), else "
            "declare what they mean (--label VALUE=NAME)"
        )
    gaps = None if scheme.regions else renumbering_advice(names)
    if gaps:
        raise UsageError(gaps)
    return names
