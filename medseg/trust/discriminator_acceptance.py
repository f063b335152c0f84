"""Whether a bundle's discriminator may judge: what it says of references, and of segmentations wrong on purpose.

A discriminator that prefers an eroded segmentation to the true one has learnt something else than to judge. It is tried
on held-out cases; what came of it stands in ``trust/discriminator_acceptance.json``, bound to its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from medseg.bundle import Bundle
from medseg.bundle.findings import Finding
from medseg.errors import BundleError
from medseg.files import sha256_file
from medseg.json_shape import FLAG, NUMBER, TEXT, Spec, number, whole
from medseg.results.verdict import REAL_SHARE
from medseg.trust.stored import StoredPart

DISCRIMINATOR_NAME = "trust/discriminator.safetensors"
ACCEPTANCE_NAME = "trust/discriminator_acceptance.json"
TRUE_ABOVE_WRONG = 0.95
"""Share of the cases, for each kind, in which the true segmentation must be judged more real than the wrong one."""
TRUE_IS_REAL = 0.8
"""Share of the cases in which the true segmentation must be judged real."""
_PROPORTION: Spec = {"count!": whole(0), "of!": whole(0), "low": number(0.0, 1.0), "high": number(0.0, 1.0)}
_LARGEST_PATCH = 512**3
"""Voxels of a window: each is filled up to it, and a few bytes must not ask for gigabytes."""
_SILENT = "no verdict comes from the discriminator"


@dataclass(frozen=True)
class Proportion:
    """``count`` of ``of`` cases, with the 95 % interval after Wilson (1927)."""

    count: int
    of: int
    low: float
    high: float

    @classmethod
    def counted(cls, count: int, of: int) -> Proportion:
        """With its interval; of no case at all it is 0 to 1."""
        from scipy.stats import binomtest

        if not of:
            return cls(0, 0, 0.0, 1.0)
        interval = binomtest(count, of).proportion_ci(method="wilson")
        return cls(count, of, round(float(interval.low), 4), round(float(interval.high), 4))

    @property
    def share(self) -> float:
        """As a fraction; 0 of no case."""
        return self.count / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.share:.0%} ({self.count} of {self.of}, {self.low:.0%}-{self.high:.0%})"


@dataclass(frozen=True)
class DiscriminatorAcceptance(StoredPart):
    """What a discriminator said of the true and the wrong segmentations of cases with a reference."""

    what = "discriminator's acceptance"
    file_format = "medseg-discriminator-acceptance-1"
    remedy = "train and publish again: medseg train --publish"
    form: ClassVar[Spec] = {
        "weights_sha256!": TEXT,
        "patch!": [whole(1)],
        "threshold!": NUMBER,
        "cases!": whole(0),
        "held_out!": FLAG,
        "real!": _PROPORTION,
        "above!": {"*": _PROPORTION},
        "left_out!": {"*": TEXT},
    }

    weights_sha256: str  # of the discriminator's weights
    patch: tuple[int, ...]  # side of the windows that it looks at, in voxels
    threshold: float  # logits above it mean "real"
    cases: int  # with at least one structure
    held_out: bool  # whether it was not trained on them
    real: Proportion  # cases whose true segmentation is judged real
    above: Mapping[str, Proportion]  # by kind of wrong segmentation: cases whose true one is judged more real than it
    left_out: Mapping[str, str]  # kinds that the bundle cannot have, and why

    def __post_init__(self) -> None:
        if len(self.patch) not in (2, 3) or math.prod(self.patch) > _LARGEST_PATCH:
            raise ValueError(f"the patch is {self.patch[:3]}, expected 2 or 3 sides, {_LARGEST_PATCH} voxels at most")

    @property
    def shortcomings(self) -> list[str]:
        """What keeps it from judging; nothing if it is accepted."""
        found = [] if self.held_out else ["it was not tried on held-out cases"]
        if not self.above:
            found.append("it was tried on no wrong segmentation")
        if self.real.share < TRUE_IS_REAL:
            found.append(f"the true segmentation is judged real in {self.real}, expected {TRUE_IS_REAL:.0%}")
        for kind, above in self.above.items():
            if above.share < TRUE_ABOVE_WRONG:
                what = "the true segmentation is judged more real than"
                found.append(f"{what} {_spoken(kind)} in {above}, expected {TRUE_ABOVE_WRONG:.0%}")
        return found

    @property
    def accepted(self) -> bool:
        """Whether its judgement may count."""
        return not self.shortcomings

    def describe(self) -> str:
        """One line for people."""
        kinds = ", ".join(f"{kind} {above.share:.0%}" for kind, above in self.above.items())
        verdict = "accepted" if self.accepted else "not accepted, it gives no verdict"
        return f"{verdict}; of {self.cases} cases true judged real {self.real.share:.0%}, above {kinds}"

    def to_json(self) -> dict[str, Any]:
        """As in the file, with what is required and whether it is met, for whoever reads it without medseg."""
        required = {"above": TRUE_ABOVE_WRONG, "real": TRUE_IS_REAL}
        return {**asdict(self), "patch": list(self.patch), "required": required, "accepted": self.accepted}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From what :meth:`to_json` made; the verdict is not read, it follows from the counts."""
        return cls(
            weights_sha256=str(content["weights_sha256"]),
            patch=tuple(int(n) for n in content["patch"]),
            threshold=float(content["threshold"]),
            cases=int(content["cases"]),
            held_out=bool(content["held_out"]),
            real=_proportion(content["real"]),
            above={str(kind): _proportion(one) for kind, one in content["above"].items()},
            left_out={str(kind): str(why) for kind, why in content["left_out"].items()},
        )


def _proportion(content: Mapping[str, Any]) -> Proportion:
    count, of = content["count"], content["of"]
    if not (isinstance(count, int) and isinstance(of, int) and 0 <= count <= of):
        raise ValueError(f"{count!r} of {of!r} is no proportion")
    return Proportion.counted(count, of)


def _spoken(kind: str) -> str:
    return "another case's" if kind == "another's" else f"the {kind} one"


@dataclass(frozen=True)
class DiscriminatorState:
    """Whether a bundle's discriminator may judge on its own.

    ``"accepted"``; ``"failed"``: it has not learnt to; ``"untested"``: nobody has tried it; ``"damaged"``: its record
    cannot be used; ``"none"``: there is no discriminator of segmentations; ``"off"``: not asked for.
    """

    state: Literal["accepted", "failed", "untested", "damaged", "none", "off"]
    message: str = ""
    acceptance: DiscriminatorAcceptance | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``run.json``: whether cases come with its judgement, why not, and what it means."""
        facts: dict[str, Any] = {}
        if self.state == "accepted" and self.acceptance is not None:
            rule = f"accept: every structure was found, and of each at least {REAL_SHARE:.0%} of the patches are real"
            facts = {
                "weights_sha256": self.acceptance.weights_sha256,
                "real_above": self.acceptance.threshold,
                "rule": rule,
            }
        return {"state": self.state, "message": self.message, **facts}


def discriminator_state(bundle: Bundle) -> DiscriminatorState:
    """Whether the discriminator of a bundle may judge; nothing of it is executed."""
    weights = bundle.path / DISCRIMINATOR_NAME
    if not weights.is_file() or not bundle.labels:
        return DiscriminatorState("none", "there is no discriminator of segmentations")
    if not (bundle.path / ACCEPTANCE_NAME).is_file():
        return DiscriminatorState("untested", f"{_SILENT}: it was not tried on held-out cases")
    try:
        acceptance = read_acceptance(bundle.path / ACCEPTANCE_NAME, weights)
    except BundleError as error:
        return DiscriminatorState("damaged", str(error))
    if not acceptance.accepted:
        return DiscriminatorState("failed", f"{_SILENT}: {'; '.join(acceptance.shortcomings)}", acceptance)
    if bundle.output_channels > 1 and not bundle.has_background:
        return DiscriminatorState(
            "none", "it judges regions that may overlap, of which no verdict is given", acceptance
        )
    return DiscriminatorState("accepted", acceptance.describe(), acceptance)


def read_acceptance(path: Path, weights: Path) -> DiscriminatorAcceptance:
    """The record; a ``BundleError`` if it cannot be read or belongs to another discriminator than ``weights``."""
    return DiscriminatorAcceptance.read(path, [sha256_file(weights)])


def discriminator_findings(bundle: Bundle) -> Iterator[Finding]:
    """For verification: a record that cannot be used blocks; a discriminator that cannot judge is named."""
    try:
        found = discriminator_state(bundle)
    except (BundleError, LookupError, TypeError, ValueError, AttributeError):
        return  # labels that cannot be read are a finding of their own
    why = "train and publish it again: medseg train --publish"
    if found.state == "damaged":
        yield Finding("block", ACCEPTANCE_NAME, "", f"it cannot be used: {found.message}", why)
    elif found.state in ("failed", "untested"):
        name = DISCRIMINATOR_NAME if found.state == "untested" else ACCEPTANCE_NAME
        yield Finding("warn", name, "", found.message, why)
