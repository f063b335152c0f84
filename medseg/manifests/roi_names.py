"""Which structure a name of a ROI, a segment or a mask file means: proposals, for a person to accept.

Nothing here decides. A proposal says why, and what it touches; sides are never crossed, and names that stand beside
one another in one case are never taken for one structure.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medseg.labels.rules import plain_name as plain
from medseg.labels.scheme import listed

_CLOSE = 0.88
_FAR = "no structure is near: left out unless one is filled in"
_TYPING_ERROR = "a letter or two away from"
_SHORTEST_GUESS = 4
_SIDE_WORDS = {
    "left": "left l lt li links linke linker gauche sinistra izquierda sx izq esquerdo",
    "right": "right r rt re rechts rechte rechter droite destra derecha dx dext dcha direito",
}
_SIDES = {word: side for side, words in _SIDE_WORDS.items() for word in words.split()}
_ADDITIONS = frozenset(
    ("final", "new", "edited", "edit", "corrected", "corr", "copy", "auto", "manual", "contour", "roi", "mask", "seg")
)
"""Words that say how a contour was made, not what it shows."""

_NO_INITIALS = frozenset(
    word
    for words in (
        "prv ptv ctv gtv itv btv exp opt ln",
        "rll rml rul lll lul ext int ant sup inf med lat upp low",
        "cm mm in out",
    )
    for word in words.split()
)
"""Two or three capitals behind a structure's name that say margins, targets, lobes or parts: another structure."""

_SYNONYMS = {
    "aorta": "aorte",
    "bladder": "harnblase blase vessie vescica vejiga blaas urinarybladder",
    "brain": "gehirn hirn cerveau encephale cervello cerebro hersenen encephalon",
    "brainstem": "hirnstamm tronccerebral",
    "colon": "dickdarm",
    "esophagus": "oesophagus oesophag speiserohre speiseroehre esofago oesofago slokdarm",
    "gallbladder": "gallenblase vesiculebiliaire cistifellea colecisti galblaas",
    "heart": "herz coeur cuore corazon hart",
    "kidney": "niere rein rene rinon nier",
    "liver": "leber foie fegato higado figado lever",
    "lung": "lunge lungen poumon polmone pulmon pulmao",
    "mandible": "unterkiefer mandibule mandibola mandibula",
    "pancreas": "pankreas bauchspeicheldruse bauchspeicheldruese alvleesklier",
    "parotid": "parotis parotide parotidgland ohrspeicheldruse",
    "prostate": "prostata",
    "rectum": "rektum enddarm retto recto",
    "spinal_cord": "ruckenmark rueckenmark myelon moelle moelleepiniere midollo midollospinale medulaespinal",
    "spleen": "milz milza bazo milt",
    "stomach": "magen estomac stomaco estomago maag",
    "trachea": "luftrohre luftroehre trachee",
    "tumour": "tumor tumeur tumore",
}
_MEANING = {word: name for name, words in _SYNONYMS.items() for word in (name.replace("_", ""), *words.split())}


@dataclass
class FoundName:
    """A name as it was found: the cases that have it, and its volume in all of them together, where measured."""

    name: str
    cases: set[str] = field(default_factory=set)
    volume_ml: float | None = None


@dataclass(frozen=True)
class Proposal:
    """A line of the table: what a name is proposed to mean (empty: it is left out), and why."""

    name: str
    cases: int
    volume_ml: float | None
    structure: str
    why: str
    is_far: bool = False  # from every structure that is wanted


@dataclass(frozen=True)
class _Spelling:
    """A name taken apart: its words without side and additions, joined; its side; what was taken off."""

    core: str
    side: str
    added: tuple[str, ...]
    exact: str
    is_acronym: bool

    @classmethod
    def of(cls, name: str) -> _Spelling:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        words = re.findall(r"[A-Za-z]\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", plain)
        lower = [word.lower() for word in words]
        sides = [_SIDES[word] for word in lower if word in _SIDES]
        rest = [(word, low) for word, low in zip(words, lower, strict=True) if low not in _SIDES]
        spoken = any(word.islower() or word.istitle() for word, _ in rest[:1])
        added = [
            word
            for place, (word, low) in enumerate(rest)
            if place and (low in _ADDITIONS or re.fullmatch(r"v\d+", low) or (spoken and _initials(word)))
        ]
        core = "".join(low for word, low in rest if word not in added)
        side = sides[0] if len(set(sides)) == 1 else "both" if sides else ""
        acronym = any(word.isupper() and len(word) > 1 for word, _ in rest if word not in added)
        return cls(_MEANING.get(core, core), side, tuple(added), "".join(lower), acronym)

    @property
    def key(self) -> tuple[str, str]:
        return self.core, self.side


def _initials(word: str) -> bool:
    """Two or three capitals, as who drew a contour signs."""
    return word.isalpha() and word.isupper() and 2 <= len(word) <= 3 and word.lower() not in _NO_INITIALS


def propose(found: Sequence[FoundName], declared: Sequence[str]) -> list[Proposal]:
    """A structure for each name, or none, with the reason.

    ``found``: the names, and in which cases each stands. ``declared``: names of the structures that are wanted; empty
    to make them out of what is found.
    """
    wanted = {name: _Spelling.of(name) for name in declared or _structures_of(found)}
    if len(found) == len(declared) == 1 and plain(found[0].name) != plain(declared[0]):
        one = found[0]
        return [Proposal(one.name, len(one.cases), one.volume_ml, declared[0], "the only name, for the only structure")]
    taken: dict[str, set[str]] = {name: set() for name in wanted}
    proposals: dict[str, Proposal] = {}
    spelt = {one.name: _Spelling.of(one.name) for one in found}
    exactness = {one.name: _rank(one.name, spelt[one.name], wanted) for one in found}
    for one in sorted(found, key=lambda one: (exactness[one.name], -len(one.cases), one.name)):
        structure, why = _meaning(one.name, spelt[one.name], wanted)
        beside = sorted(taken.get(structure, set()) & one.cases)
        if beside and why.startswith(_TYPING_ERROR):  # who has both in one case means two things
            structure, why = "", _FAR
        elif beside:
            why = (
                f"means {structure} by its name, but stands beside another {structure} in {len(beside)} cases, such "
                f"as {beside[0]}: fill in {structure} if both belong to it"
            )
            structure = ""
        elif structure:
            taken[structure] |= one.cases
        proposals[one.name] = Proposal(one.name, len(one.cases), one.volume_ml, structure, why, why == _FAR)
    return [proposals[one.name] for one in found]


def _rank(name: str, spelling: _Spelling, wanted: Mapping[str, _Spelling]) -> int:
    """How near a name is to a structure's own, so that of two in one case the nearer keeps it."""
    if any(plain(name) == plain(other) for other in wanted):
        return 0
    return 1 if any(spelling.exact == other.exact for other in wanted.values()) else 2


def _meaning(name: str, spelling: _Spelling, wanted: Mapping[str, _Spelling]) -> tuple[str, str]:
    if own := [one for one in wanted if plain(one) == plain(name)]:
        return own[0], "its own name"
    # a name may have more additions than a structure's own, not fewer: `liver` is not the structure `liver_MD`
    same = [one for one, w in wanted.items() if w.key == spelling.key and set(w.added) <= set(spelling.added)]
    if len(same) == 1:
        return same[0], _why_same(spelling, wanted[same[0]], same[0])
    if len(same) > 1:
        return "", f"could be {listed(same)}: fill in which"
    sides = [one for one, other in wanted.items() if other.core == spelling.core and not (spelling.side and other.side)]
    if sides:
        side = f"says {spelling.side}" if spelling.side else "names no side"
        return "", f"{side}, and could be {_or(sides)}: fill in which, if one of them"
    return _by_distance(spelling, wanted)


def _why_same(spelling: _Spelling, other: _Spelling, name: str) -> str:
    if spelling.exact == other.exact:
        return "the same name in another spelling"
    if spelling.added and not other.added:
        return f"{name} with {' '.join(spelling.added)} added, which seems to say who or how"
    return f"the same word as {name} in another language or spelling"


def _by_distance(spelling: _Spelling, wanted: Mapping[str, _Spelling]) -> tuple[str, str]:
    names = [one for one, other in wanted.items() if _is_near(spelling, other)]
    if len(names) == 1:
        return names[0], f"{_TYPING_ERROR} {names[0]}"
    if names:
        return "", f"near to {_or(names)}: fill in which, if one of them"
    return "", _FAR


def _is_near(one: _Spelling, other: _Spelling) -> bool:
    """Whether a typing error may lie between two names; short ones, capitals and other numbers are other things."""
    if one.is_acronym or other.is_acronym:
        return False
    same = one.side == other.side and re.findall(r"\d+", one.core) == re.findall(r"\d+", other.core)
    long = min(len(one.core), len(other.core)) >= _SHORTEST_GUESS
    return same and long and difflib.SequenceMatcher(None, one.core, other.core).ratio() >= _CLOSE


def _or(names: Sequence[str]) -> str:
    return " or ".join(names[:4]) + (f" or {len(names) - 4} more" if len(names) > 4 else "")


def _structures_of(found: Sequence[FoundName]) -> list[str]:
    """Structures where none are declared: one for each meaning, under its plainest and most frequent name.

    A meaning that may be another's, since it names no side or lies a letter away, is none of its own: its names are
    left for a person to fill in.
    """
    groups: dict[tuple[str, str], list[FoundName]] = {}
    for one in found:
        groups.setdefault(_Spelling.of(one.name).key, []).append(one)
    names: dict[str, _Spelling] = {}
    cases: dict[str, set[str]] = {}
    for (core, side), members in sorted(groups.items(), key=lambda group: -sum(len(one.cases) for one in group[1])):
        best = min(members, key=lambda one: (len(_Spelling.of(one.name).added), -len(one.cases), one.name))
        spelling, there = _Spelling.of(best.name), set[str]().union(*(one.cases for one in members))
        sided = not side and any(other == core and one for other, one in groups)
        if sided or any(_is_near(spelling, other) and not cases[name] & there for name, other in names.items()):
            continue
        known = core in _SYNONYMS and len(members) > 1
        name = (f"{core}_{side}" if side else core) if known else best.name
        names[name], cases[name] = spelling, there
    return sorted(names)
