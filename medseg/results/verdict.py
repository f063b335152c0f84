"""What is said of one result without its ground truth, and the rule that makes accept, review or reject of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

Decision = Literal["not calibrated", "accept", "review", "reject"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
NOT_CALIBRATED: Final = "not calibrated"
"""Verdict where nothing is known of the Dice of such results, and flag of what is to be reviewed all the same."""

UNLIKE_TRAINING = "unlike-training"
"""Flag: predicted Dice means nothing for an image so far from those of the training."""
IMPLAUSIBLE_SHAPE = "implausible-shape"
"""Flag: the mask is unlike those of the training."""
STRUCTURE_MISSING = "structure-missing"
"""Flag: the result lacks a structure which every training case has."""
TOO_LARGE = "too-large"
"""Flag: the structures are too large to be assessed in the memory allowed."""
NOT_JUDGED = "not-judged"
"""Flag: the trust model failed on the case."""
NOTHING_FOUND = "nothing-found"
"""Flag without a calibration: no structure was found at all."""
SCATTERED = "scattered"
"""Flag without a calibration: most of the structures lies in pieces."""
CUT_OFF = "cut-off"
"""Flag without a calibration: the image ends where the structures do not."""
UNSURE = "unsure"
"""Flag without a calibration: the network itself expects a poor result."""
SECOND_LOOK_DIFFERS = "second-look-differs"
"""Flag without a calibration: the network says something else when it looks at the place once more."""

USUAL = "usual"
"""The fault kind of an image without a fault."""


class Interval(NamedTuple):
    """Where something lies as often as the coverage says: the volume of a reference in ml, or over what was found."""

    low: float
    high: float
    coverage: float


@dataclass(frozen=True)
class StructureQuality:
    """How good one structure is expected to be: its Dice, and a bound that it exceeds as often as stated."""

    label: int
    name: str
    predicted_dice: float
    lower_bound: float
    volume_factors: Interval | None = None
    """Volume of a reference over what was found; not in ``run.json``, which has the intervals of the volumes."""

    def to_json(self) -> dict[str, Any]:
        """As in ``run.json``, to six places."""
        return {
            "label": self.label,
            "name": self.name,
            "predicted_dice": round(self.predicted_dice, 6),
            "lower_bound": round(self.lower_bound, 6),
        }


class FaultKind(NamedTuple):
    """The most probable kind of fault in the image (``"usual"``, ``"noise"``, ``"motion"`` …), and how probable."""

    name: str
    probability: float


@dataclass(frozen=True)
class Thresholds:
    """When a result is accepted or rejected; everything between is to be reviewed."""

    accept: float | None = None  # accepted if the lower bound of every structure reaches this; None: nothing is
    reject: float = 0.5  # rejected if the predicted Dice of any structure is below this

    def __post_init__(self) -> None:
        stated = {"reject": self.reject} if self.accept is None else {"accept": self.accept, "reject": self.reject}
        for name, value in stated.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"the threshold {name} is {value!r}, expected a Dice from 0 to 1")
        if self.accept is not None and self.accept < self.reject:
            raise ValueError(f"accept from {self.accept} lies below reject below {self.reject}, expected it above")

    def decide(self, structures: Sequence[StructureQuality]) -> Decision:
        """Accept, review or reject, by the structures alone; without any ``"review"``."""
        if any(structure.predicted_dice < self.reject for structure in structures):
            return "reject"
        if structures and self.accept is not None and self.accept <= min(one.lower_bound for one in structures):
            return "accept"
        return "review"


@dataclass(frozen=True)
class Verdict:
    """What is said of one result without its ground truth; what is flagged is never accepted.

    Without a calibration that is ``"not calibrated"``, or with a flag ``"review"``, beside which the flag
    :data:`NOT_CALIBRATED` stands.
    """

    decision: Decision
    """``"accept"``, ``"review"``, ``"reject"`` or ``"not calibrated"``; the first and last of them become ``"review"``
    where there is a flag."""
    structures: tuple[StructureQuality, ...] = ()  # by label; none if the result could not be assessed
    flags: tuple[str, ...] = ()  # why the estimates may not hold
    look_at_mm: tuple[float, float, float] | None = None
    """Point (RAS, mm) at which the three planes with most expected errors meet; None if no error is expected."""
    fault: FaultKind | None = None  # what the image may suffer from; None if the bundle does not tell

    def __post_init__(self) -> None:
        if self.flags and self.decision == NOT_CALIBRATED:
            object.__setattr__(self, "flags", tuple(dict.fromkeys((*self.flags, NOT_CALIBRATED))))
        if self.flags and self.decision in {"accept", NOT_CALIBRATED}:
            object.__setattr__(self, "decision", "review")

    @classmethod
    def not_assessed(cls, flag: str) -> Verdict:
        """Of a result that nothing could be said of: it is to be reviewed."""
        return cls("review", flags=(flag,))

    @classmethod
    def worst(cls, verdicts: Sequence[Verdict], flags: Sequence[str] = ()) -> Verdict:
        """Of several parts of one result: the worst decision, the lowest estimates of each structure, every flag.

        Where to look, and what the image may suffer from, is what the worst part says; ``flags`` are of the whole.
        """
        worst = max(
            verdicts, key=lambda one: (DECISIONS.index(one.decision), bool(one.flags), -(one.lower_bound or 0.0))
        )
        lowest: dict[int, StructureQuality] = {}
        for new in (structure for one in verdicts for structure in one.structures):
            old = lowest.get(new.label, new)
            least = min(old.predicted_dice, new.predicted_dice), min(old.lower_bound, new.lower_bound)
            factors = new.volume_factors if old is new else None  # of a sum of several parts nothing is known
            lowest[new.label] = StructureQuality(new.label, new.name, *least, factors)
        every = dict.fromkeys([*(flag for one in verdicts for flag in one.flags), *flags])
        structures = tuple(lowest[label] for label in sorted(lowest))
        return cls(worst.decision, structures, tuple(every), worst.look_at_mm, worst.fault)

    def volume_interval(self, label: int, volume_ml: float) -> Interval | None:
        """Where the volume of a reference lies, in ml.

        None if nothing is known, if the result is flagged (intervals speak of results that are not), or lacks the
        structure.
        """
        own = next((one.volume_factors for one in self.structures if one.label == label), None)
        if own is None or self.flags or not volume_ml > 0.0:
            return None
        return Interval(own.low * volume_ml, own.high * volume_ml, own.coverage)

    @property
    def calibrated(self) -> bool:
        """Whether it rests on a calibration."""
        return NOT_CALIBRATED not in (self.decision, *self.flags)

    @property
    def predicted_dice(self) -> float | None:
        """Mean over the structures; None without any."""
        predicted = [round(structure.predicted_dice, 6) for structure in self.structures]
        return round(sum(predicted) / len(predicted), 6) if predicted else None

    @property
    def lower_bound(self) -> float | None:
        """That of the worst structure; None without any."""
        return min((round(structure.lower_bound, 6) for structure in self.structures), default=None)

    def to_json(self) -> dict[str, Any]:
        """As under ``trust`` of a case in ``run.json``."""
        fault = self.fault and {"name": self.fault.name, "probability": round(self.fault.probability, 4)}
        return {
            "predicted_dice": self.predicted_dice,
            "lower_bound": self.lower_bound,
            "verdict": self.decision,
            "structures": [structure.to_json() for structure in self.structures],
            "flags": list(self.flags),
            "look_at_mm": None if self.look_at_mm is None else list(self.look_at_mm),
            "case_class": fault,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Verdict:
        """From what :meth:`to_json` made; older runs left out what they did not know.

        Raises ``ValueError``, ``LookupError``, ``TypeError`` if the content is something else.
        """
        decision = content["verdict"]
        if decision not in DECISIONS:
            raise ValueError(f"the verdict {decision!r} is none of {', '.join(DECISIONS)}")
        structures = [
            StructureQuality(int(s["label"]), str(s["name"]), float(s["predicted_dice"]), float(s["lower_bound"]))
            for s in content.get("structures") or ()
        ]
        fault, point = content.get("case_class"), content.get("look_at_mm")
        x, y, z = (float(value) for value in point or (0, 0, 0))
        return cls(
            decision,
            tuple(structures),
            tuple(map(str, content.get("flags") or ())),
            (x, y, z) if point else None,
            FaultKind(str(fault["name"]), float(fault["probability"])) if fault else None,
        )


def counted(verdicts: Iterable[str]) -> dict[str, int]:
    """How many results have each verdict; those without a calibration are named where there are any."""
    counts = Counter(verdicts)
    return {name: counts[name] for name in DECISIONS if name != NOT_CALIBRATED or counts[name]}


REAL_SHARE = 0.5
"""The discriminator accepts a result of which at least this share of every structure's patches is judged real."""


@dataclass(frozen=True)
class RealShare:
    """How much of one structure the discriminator takes for real."""

    label: int
    name: str
    """``label``, ``name``: the structure."""
    share: float | None  # of its patches, those judged real: 0 to 1; None if it was not found
    patches: int  # their number

    def to_json(self) -> dict[str, Any]:
        """As in ``run.json``, to four places."""
        return {**asdict(self), "share": None if self.share is None else round(self.share, 4)}


@dataclass(frozen=True)
class DiscriminatorVerdict:
    """What the discriminator takes one result for: the test phase of adversarial training, without calibration."""

    structures: tuple[RealShare, ...]  # by label, those that were not found, too

    @property
    def decision(self) -> Literal["accept", "reject"]:
        """Accept if every structure was found, and of each at least :data:`REAL_SHARE` of the patches is judged real.

        What was not found has nothing that could be taken for real, so nothing vouches for it.
        """
        shares = [one.share or 0.0 for one in self.structures]
        return "accept" if shares and min(shares) >= REAL_SHARE else "reject"

    def to_json(self) -> dict[str, Any]:
        """As under ``discriminator`` of a case in ``run.json``."""
        return {"verdict": self.decision, "structures": [one.to_json() for one in self.structures]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DiscriminatorVerdict:
        """From what :meth:`to_json` made; the decision is not read, it follows from the shares."""
        return cls(
            tuple(
                RealShare(int(s["label"]), str(s["name"]), s.get("share"), int(s["patches"]))
                for s in content["structures"]
            )
        )


class Judged:
    """A case that may have a verdict, and what it says in short."""

    trust: Verdict | None
    discriminator: DiscriminatorVerdict | None

    @property
    def verdict(self) -> str:
        """The decision; empty if nothing has judged the case."""
        return self.trust.decision if self.trust else ""

    @property
    def flags(self) -> tuple[str, ...]:
        """What trust has found that no estimate says."""
        return self.trust.flags if self.trust else ()

    @property
    def estimates(self) -> tuple[float | None, float | None]:
        """Predicted Dice (mean of the structures) and its lower bound (the lowest), where there are any."""
        return (self.trust.predicted_dice, self.trust.lower_bound) if self.trust else (None, None)

    @property
    def assessed(self) -> tuple[StructureQuality, ...]:
        """What is expected of each structure."""
        return self.trust.structures if self.trust else ()

    @property
    def look_at_mm(self) -> tuple[float, float, float] | None:
        """Where the planes of most expected errors meet (RAS, mm), if that is known."""
        return self.trust.look_at_mm if self.trust else None
