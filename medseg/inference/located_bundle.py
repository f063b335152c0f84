"""What is located first, with which bundle, and what the structures of both sides are called then.

Reads metadata only: wrong names are told before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medseg.bundle import Bundle
from medseg.bundle.find import find_bundle, is_bundle
from medseg.errors import BundleError, UsageError
from medseg.labels.codes import sided_code, sided_names
from medseg.labels.scheme import LabelScheme

Side = Literal["left", "right"]

AUTO = "auto"
"""What ``--locate`` says for the recipe in the bundle's metadata."""
_MARGIN_MM = 5.0
_SIDE_WORD = re.compile(r"(?<![a-z0-9])(left|right|l|r)(?![a-z0-9])")


@dataclass(frozen=True)
class Locating:
    """How a structure is located: the bundle's folder, which structure, and how it is cropped.

    With ``sides`` it is one on the left and one on the right; ``trained_side`` is the one that the second network has
    learnt, so that crops of the other are mirrored.
    """

    place: str
    structure: str
    margin_mm: float
    sides: bool
    trained_side: Side | None

    @classmethod
    def read(cls, bundle: Bundle, asked: str, margin_mm: float | None = None, *, sides: bool = True) -> Locating:
        """What ``--locate``, ``--locate-margin`` and ``--locate-sides`` ask for.

        What they leave open is in the bundle's metadata under ``locate``.

        Raises ``UsageError`` if there is no recipe, or no such bundle.
        """
        recipe = bundle.metadata.get("locate") or {}
        name, colon, structure = ("", "", "") if asked == AUTO else _parted(asked)
        place, wanted = name or recipe.get("bundle"), structure or recipe.get("structure")
        if not place or not wanted:
            raise UsageError(
                f"--locate {asked}: the metadata of {bundle.name} do not say {'what is' if place else 'how it is'}"
                " located; give --locate BUNDLE:STRUCTURE"
            )
        folder = find_bundle(place)
        if not is_bundle(folder) and not colon:
            raise UsageError(
                f"--locate {asked}: there is no bundle {place} here, with which {bundle.name} finds {wanted}; get it"
                " (docs/inference.md says how), or name another one: --locate BUNDLE:STRUCTURE"
            )
        margin = recipe.get("margin_mm", _MARGIN_MM) if margin_mm is None else margin_mm
        sides = sides and recipe.get("sides", True) and not sided_names(bundle)
        return cls(str(folder), wanted, float(margin), sides, recipe.get("trained_side") if sides else None)

    @property
    def spelled_out(self) -> str:
        """The same for ``--locate`` in any working directory."""
        return f"{Path(self.place).absolute()}:{self.structure}"


def _parted(asked: str) -> tuple[str, str, str]:
    """Bundle, colon and structure; what is a folder as a whole is a bundle."""
    name, colon, structure = asked.rpartition(":")
    return (name, colon, structure) if colon and not Path(asked).is_dir() else (asked, "", "")


class LocatedBundle(Bundle):
    """A bundle that labels crops round a structure which another one has located.

    It is the bundle ``plain`` in all but the hash, which tells how it is located, and the structures: with sides those
    of the left keep their label, those of the right have the largest label added.
    """

    def __init__(self, plain: Bundle, locating: Locating) -> None:
        super().__init__(plain.path, plain.metadata, plain.permission, plain.presets)
        self.plain, self.locating = plain, locating
        self.locator = Bundle.open(locating.place, plain.permission)
        _structures(self.locator, locating.structure)
        if plain.scheme.regions and locating.sides:
            raise UsageError(f"--locate: regions of {plain.name} overlap and have no sides; add --no-locate-sides")
        if not (plain.has_background and plain.labels):
            what = "a background to lie round its crops, and names of its structures"
            raise BundleError(f"{plain.name} lacks {what}, one or both; --locate cannot be used with it")
        self.seen = _channels_seen(self.locator, plain)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of both bundles and of how the structure is located."""
        return hashlib.sha256(json.dumps([self.plain.sha256, self.as_asked]).encode()).hexdigest()

    @property
    def as_asked(self) -> dict[str, Any]:
        """How it is located, as ``run.json`` says under ``options``."""
        how = self.locating
        return {
            "bundle": self.locator.name,
            "version": self.locator.version,
            "sha256": self.locator.sha256,
            "structure": how.structure,
            "margin_mm": how.margin_mm,
            "sides": how.sides,
            "trained_side": how.trained_side,
        }

    @property
    def wanted(self) -> tuple[tuple[tuple[int, ...], Side | None], ...]:
        """Values in the locator's label maps that stand for the structure, and the side that their name tells.

        Once the locator is opened they are what its post-processing makes of the channels.
        """
        return _structures(self.locator, self.locating.structure)

    def name_values(self, names: Mapping[int, str]) -> None:
        """Take other names of structures in a crop, see :meth:`medseg.bundle.Bundle.name_values`."""
        self.plain.name_values(names)

    @property
    def stated_labels(self) -> dict[int, str]:
        """Names of the structures in a crop by the metadata alone."""
        return self.plain.stated_labels

    @property
    def offset(self) -> int:
        """What is added to the labels of the right side: at least all that a network could say, named or not."""
        return max(*self.plain.labels, self.plain.output_channels - 1) if self.locating.sides else 0

    def names_of(self, side: Side | None) -> dict[int, tuple[int, str]]:
        """Label and name on a side, by the label in the crop."""
        labels = self.plain.labels
        if side is None:
            return {label: (label, name) for label, name in labels.items()}
        shift = self.offset if side == "right" else 0
        return {label: (label + shift, f"{side.capitalize()} {name}") for label, name in labels.items()}

    @property
    def labels(self) -> dict[int, str]:
        """Names of the structures of both sides by label value."""
        sides: tuple[Side | None, ...] = ("left", "right") if self.locating.sides else (None,)
        return dict(sorted(named for side in sides for named in self.names_of(side).values()))

    @property
    def scheme(self) -> LabelScheme:
        """What the values of its label maps mean."""
        return LabelScheme(self.labels) if self.locating.sides else self.plain.scheme

    @property
    def label_codes(self) -> dict[int, Any]:
        """Coded terms with their laterality."""
        codes = self.plain.label_codes
        if not self.locating.sides:
            return codes
        both: tuple[Side, Side] = ("left", "right")
        named = {side: self.names_of(side) for side in both}
        return {
            named[side][label][0]: sided_code(code, side) if isinstance(code, Mapping) else code
            for side in both
            for label, code in codes.items()
            if label in named[side]
        }


def _structures(locator: Bundle, name: str) -> tuple[tuple[tuple[int, ...], Side | None], ...]:
    """Values in the locator's label maps that stand for a structure, and the side that their name tells.

    A name without a side stands for the structures of both sides, if there is none of this very name.
    """
    members, known = locator.scheme.members, locator.scheme.structures
    wanted = _plain(name)
    exact = {label: found for label, found in known.items() if _plain(found) == wanted}
    chosen = exact or {label: found for label, found in known.items() if _sideless(found) == wanted}
    if not chosen:
        raise UsageError(f"--locate: {locator.name} labels {', '.join(known.values())}, found no {name!r}; name one")
    return tuple((members[label], _side_word(found)) for label, found in chosen.items())


def _plain(name: str) -> str:
    return " ".join(re.split(r"[^a-z0-9]+", name.lower())).strip()


def _sideless(name: str) -> str:
    return _plain(_SIDE_WORD.sub(" ", _plain(name)))


def _side_word(name: str) -> Side | None:
    found = {word[0] for word in _SIDE_WORD.findall(_plain(name))}
    return None if len(found) != 1 else "left" if found == {"l"} else "right"


def _channels_seen(locator: Bundle, plain: Bundle) -> list[int]:
    """Which channels of a case the locator is shown: those of the names that its metadata say."""
    own, given = locator.input_names, plain.input_names
    if locator.input_channels == plain.input_channels and (not own or sorted(own) != sorted(given)):
        return list(range(plain.input_channels))  # as many, without names or with others
    if not own or len({*given}) < len(given) or not {*own} <= {*given}:
        raise UsageError(
            f"--locate: which of the {plain.input_channels} channels ({', '.join(given) or 'without names'}) of"
            f" {plain.name} are the {locator.input_channels} ({', '.join(own) or 'without names'}) of {locator.name} is"
            " not known; give them the same names in channel_def of both bundles' inputs"
        )
    return [given.index(name) for name in own]
