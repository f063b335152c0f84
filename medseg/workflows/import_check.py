"""An imported model against its origin: the label maps that its owner predicted there, and those that we make."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from medseg.errors import BundleError, Refusal, UsageError
from medseg.geometry import Geometry

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from medseg.bundle import Bundle
    from medseg.inference.cases import InputCase, LoadedCase
    from medseg.inference.predictor import Predictor

MOST_DIFFERENT = 1e-4
LEAST_DICE = 0.999
FLOOR_VOXELS = 5
"""Structures whose sides differ in no more voxels agree, however small they are."""

_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class Agreement:
    """Two label maps of one case: how many voxels there are, and how many differ, in all and by value."""

    voxels: int
    different: int
    sizes: Mapping[int, tuple[int, int]]  # value → voxels in both maps together, voxels in one of them alone

    @property
    def dice(self) -> dict[int, float]:
        """Dice by value."""
        return {value: 1 - alone / both for value, (both, alone) in self.sizes.items()}

    @property
    def share(self) -> float:
        """Of the voxels that differ."""
        return self.different / self.voxels

    @property
    def holds(self) -> bool:
        """Whether the two may be called equal."""
        structures = (alone <= max(FLOOR_VOXELS, (1 - LEAST_DICE) * both) for both, alone in self.sizes.values())
        return self.different <= max(FLOOR_VOXELS, MOST_DIFFERENT * self.voxels) and all(structures)

    def describe(self) -> str:
        """For people."""
        worst = f", Dice of the worst structure {min(self.dice.values()):.5f}" if self.sizes else ""
        return f"{self.different} of {self.voxels} voxels differ ({self.share:.4%}){worst}"


def agreement(ours: NDArray[Any], theirs: NDArray[Any]) -> Agreement:
    """Compare two label maps of one shape."""
    differs = ours != theirs
    most = int(max(ours.max(), theirs.max())) + 1
    ours_all, theirs_all, ours_alone, theirs_alone = (
        np.bincount(part.ravel(), minlength=most) for part in (ours, theirs, ours[differs], theirs[differs])
    )
    sizes = {
        value: (int(ours_all[value] + theirs_all[value]), int(ours_alone[value] + theirs_alone[value]))
        for value in range(1, most)
        if ours_all[value] + theirs_all[value]
    }
    return Agreement(ours.size, int(np.count_nonzero(differs)), sizes)


def check_import(bundle: Path, images: Path, predicted: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Label images with a bundle and compare with what its origin gave of them; the result is for its metadata.

    Tried without mirrored windows first, then with those that the metadata name as the origin's.

    ``images``: files, DICOM folders or a datalist; several channels of a case in a folder end in ``_0000``, ``_0001`` …
    ``predicted``: label maps, called like the cases. Raises ``UsageError`` if nothing belongs together; ``BundleError``
    if the two differ, see :attr:`Agreement.holds`.
    """
    from medseg.bundle import Bundle
    from medseg.inference.predictor import Predictor

    opened = Bundle.open(bundle)
    pairs = _pairs(opened, images, predicted)
    mirrors = [(), tuple((opened.metadata.get("imported") or {}).get("mirror") or ())]
    failed: list[tuple[Predictor, str, Agreement]] = []
    for mirror in dict.fromkeys(mirrors):
        predictor = Predictor(opened, precision="fp32", mirror=mirror, trust=False)
        found: dict[str, Agreement] = {}
        for name, (case, file) in pairs.items():
            found[name] = _compare(predictor, case, file)
            how = f", mirrored along {','.join(mirror)}" if mirror else ""
            say(f"{name}{how}: {found[name].describe()}")
            if not found[name].holds:
                failed.append((predictor, name, found[name]))
                break
        else:
            return _recorded(list(found.values()), mirror)
    predictor, name, best = min(failed, key=lambda one: one[2].share)
    raise BundleError(f"the label map of {name} is not the origin's: {_why(predictor, *pairs[name], best)}")


def _recorded(agreements: list[Agreement], mirror: tuple[str, ...]) -> dict[str, Any]:
    lowest: dict[int, float] = {}
    for value, dice in (pair for one in agreements for pair in one.dice.items()):
        lowest[value] = min(dice, lowest.get(value, 1.0))
    return {
        "cases": len(agreements),
        "voxels": sum(one.voxels for one in agreements),
        "different_voxels": sum(one.different for one in agreements),
        "lowest_dice": {str(value): round(dice, 6) for value, dice in sorted(lowest.items())},
        "mirror": list(mirror),
    }


def _why(predictor: Predictor, case: InputCase, file: Path, found: Agreement) -> str:
    limits = f"at most {MOST_DIFFERENT:.2%} of the voxels, and a Dice of at least {LEAST_DICE} per structure"
    fits, left = _fitting_orientation(predictor, case, file, found)
    if fits:
        own = _axcodes(predictor)  # the axes of what was given, maybe in another order
        given = (predictor.bundle.metadata.get("imported") or {}).get("orientation") or own
        fits = "".join(fits[own.index(letter)] for letter in given)
        remedy = f"of the image taken as {fits} only {left} differ: import with --orientation {fits}"
    else:
        remedy = (
            "compare with label maps that the model gave of these very files in float32, with the same folds, or import"
            " without --check, which the bundle will state"
        )
    return f"{found.describe()}; expected {limits}; {remedy}"


def _pairs(bundle: Bundle, images: Path, predicted: Path) -> dict[str, tuple[InputCase, Path]]:
    """By name a case and the origin's label map, the smallest file first."""
    from medseg.evaluation.pairing import collect, match_key
    from medseg.inference import cases as reading
    from medseg.inference.config import channels_of

    if images.suffix == ".json":
        found = reading.collect([images], bundle.input_channels)
    else:
        grouped: dict[str, list[InputCase]] = defaultdict(list)
        for case in sorted(reading.collect([images]), key=lambda case: case.case_id):
            grouped[_CHANNEL.sub("", case.case_id)].append(case)
        found = [
            replace(parts[0], case_id=name, channels=tuple(part.channels[0] for part in parts))
            for name, parts in grouped.items()
        ]
    by_name = {match_key(case.case_id): replace(case, taken=channels_of(bundle)) for case in found}
    maps = collect(predicted, "predictions").files
    smallest_first = sorted(maps.items(), key=lambda one: one[1].path.stat().st_size)
    pairs = {name: (by_name[match_key(name)], file.path) for name, file in smallest_first if match_key(name) in by_name}
    if not pairs:
        names = ", ".join(sorted(maps)[:3]), ", ".join(sorted(by_name)[:3])
        raise UsageError(f"no label map of {predicted} ({names[0]}) is called like an image of {images} ({names[1]})")
    wrong = next((case for case, _ in pairs.values() if len(case.channels) != bundle.input_channels), None)
    if wrong is not None:
        what = f"{wrong.case_id} has {len(wrong.channels)} channels, the model takes {bundle.input_channels}"
        raise UsageError(f"{what}; call them {wrong.case_id}_0000, _0001 …, or give a datalist")
    return pairs


def _compare(predictor: Predictor, case: InputCase, file: Path) -> Agreement:
    from medseg.inference.cases import load

    loaded = load(case)
    return agreement(predictor.predict(loaded.images).label_map, _theirs(file, loaded.geometry))


def _theirs(file: Path, grid: Geometry) -> NDArray[Any]:
    from medseg.labels.read import read_label

    labels = read_label(file)
    if not labels.geometry.matches(grid):
        raise Refusal("geometry-mismatch", f"the label map {file.name} {labels.geometry.mismatch(grid)}")
    return labels.array


# --- another orientation ---------------------------------------------------------------------------------------------
# Whoever gives the wrong one gets a network that sees mirrored patients. To try another is to arrange an image as that
# one says and to state the bundle's own: then its preprocessing leaves the arrays as they are.


def _fitting_orientation(predictor: Predictor, case: InputCase, file: Path, found: Agreement) -> tuple[str, int]:
    """The orientation under which far fewer voxels differ than were ``found``, and how many; empty if there is none."""
    from medseg.inference.cases import load

    own = _axcodes(predictor)
    loaded = load(case)
    theirs = _theirs(file, loaded.geometry)
    fits, least = "", found.different // 4
    for codes in _orientations(own) if own else ():
        different = agreement(_labels_as(predictor, loaded, codes, own), theirs).different
        if different < least:
            fits, least = codes, different
        if different <= MOST_DIFFERENT * theirs.size:
            break
    return fits, least


def _axcodes(predictor: Predictor) -> str:
    """Into which orientation the bundle turns its images; empty if it does not."""
    from monai.transforms import Orientation

    steps = (getattr(step, "ornt_transform", step) for step in predictor.config.preprocessing.flatten().transforms)
    return next((str(step.axcodes) for step in steps if isinstance(step, Orientation) and step.axcodes), "")


def _orientations(own: str) -> Iterator[str]:
    """The 47 others, those first whose axes come in the same order."""
    pairs = [next(pair for pair in ("LR", "PA", "IS") if letter in pair) for letter in own]
    every = ("".join(letters) for order in itertools.permutations(pairs) for letters in itertools.product(*order))
    return (codes for codes in every if codes != own)


def _labels_as(predictor: Predictor, loaded: LoadedCase, codes: str, own: str) -> NDArray[Any]:
    """The label map, on its own grid, of a case whose arrays the network sees as those of ``codes`` lie."""
    images = {key: _arranged(image, codes, own) for key, image in loaded.images.items()}
    labels = predictor.predict(images).label_map
    lies, lay = orientations.axcodes2ornt(tuple(codes)), orientations.io_orientation(loaded.geometry.affine)
    return np.asarray(orientations.apply_orientation(labels, orientations.ornt_transform(lies, lay)))


def _arranged(image: MetaTensor, codes: str, own: str) -> MetaTensor:
    """An image turned to ``codes``, whose affine states ``own``."""
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    turned = Orientation(codes, labels=None)(image)
    affine = np.eye(4)
    for axis, (row, sign) in enumerate(orientations.axcodes2ornt(tuple(own))):
        affine[:3, axis] = 0
        affine[int(row), axis] = sign * float(turned.pixdim[axis])
    return MetaTensor(turned.as_tensor(), affine=affine)
