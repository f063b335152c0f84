"""Of the results that a threshold accepts, how many are good, and how many does it accept?

A result is good if every structure has at least the Dice that is asked for. The results of one patient are not
independent: each patient counts once, with its share of good ones. Intervals are those of Clopper and Pearson (1934)
for as many trials as there are patients: exact where each has one result; a share between 0 and 1 spreads less than a
yes or no of the same mean, so that they are rather too wide where some have several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.json_shape import Spec, number, whole

GOOD_DICE = 0.8
"""What counts as good if nothing else is asked for."""
ACCEPT_FROM = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Lower bounds from which results may be accepted: few, so that the choice among them hardly flatters the chosen."""
NEVER = -1.0
"""The lower bound of a result that is not accepted whatever the threshold is, such as one that is flagged."""

_SHARE: Spec = {
    "share": number(0.0, 1.0),
    "low!": number(0.0, 1.0),
    "high!": number(0.0, 1.0),
    "n_results!": whole(0),
    "n_patients!": whole(0),
}
_ROW: Spec = {"accept!": number(0.0, 1.0), "accepted!": _SHARE, "good!": _SHARE}
ACCEPT_TABLE: Spec = {"good_dice!": number(0.0, 1.0), "precision": number(0.0, 1.0), "own!": [_ROW], "worse!": [_ROW]}
"""The table as JSON."""


@dataclass(frozen=True)
class PatientShare:
    """A share of results, each patient counting once, with its 95 % interval; None without any result."""

    share: float | None
    low: float
    high: float
    n_results: int
    n_patients: int

    @classmethod
    def of(cls, hits: Sequence[bool] | NDArray[np.bool_], patients: Sequence[str] | NDArray[Any]) -> PatientShare:
        """Of results that are hits or not, and their patients.

        Examples
        --------
        >>> PatientShare.of([True] * 9 + [False], ["a", "b", "c", "d", "e", "f", "g", "h", "i", "i"])
        PatientShare(share=0.944444, low=0.577361, high=1.0, n_results=10, n_patients=9)
        """
        known, index = np.unique(np.asarray(patients), return_inverse=True)
        n = len(known)
        if n == 0:
            return cls(None, 0.0, 1.0, 0, 0)
        from scipy.stats import beta

        hit = float((np.bincount(index, np.asarray(hits, dtype=np.float64), n) / np.bincount(index, minlength=n)).sum())
        hit = round(hit, 9)  # sums of thirds
        low = float(beta.ppf(0.025, hit, n - hit + 1)) if hit > 0 else 0.0
        high = float(beta.ppf(0.975, hit + 1, n - hit)) if hit < n else 1.0
        return cls(round(hit / n, 6), round(low, 6), round(high, 6), len(index), n)

    def __str__(self) -> str:
        if self.share is None:
            return "none"
        return f"{self.share:.0%} ({self.low:.0%} to {self.high:.0%}, {self.n_patients} patients)"


@dataclass(frozen=True)
class AcceptRow:
    """What one threshold accepts, and how good that is."""

    accept: float  # lower bound that every structure must reach
    accepted: PatientShare  # of all results
    good: PatientShare  # of the accepted ones

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> AcceptRow:
        """From what :func:`dataclasses.asdict` made of it."""
        shares = (
            PatientShare(one.get("share"), one["low"], one["high"], one["n_results"], one["n_patients"])
            for one in (content["accepted"], content["good"])
        )
        return cls(content["accept"], *shares)


@dataclass(frozen=True)
class AcceptTable:
    """What thresholds accept of the network's own results, and of those with faults put in on purpose."""

    good_dice: float  # Dice that every structure of a good result has
    precision: float | None  # share of good results that the threshold was chosen for; None: it was given
    own: tuple[AcceptRow, ...] = ()
    worse: tuple[AcceptRow, ...] = ()  # own and worse: by threshold; empty without such results

    @classmethod
    def of(
        cls,
        bound: NDArray[np.float64],
        good: NDArray[np.bool_],
        own: NDArray[np.bool_],
        patients: Sequence[str],
        good_dice: float = GOOD_DICE,
        precision: float | None = None,
        thresholds: Sequence[float] = ACCEPT_FROM,
    ) -> AcceptTable:
        """Of results that were kept back.

        Parameters
        ----------
        bound
            The lowest bound of the structures of each result; :data:`NEVER` for one that cannot be accepted.
        good, own, patients
            Whether each result is good, whether it is the network's own, and whose it is.
        good_dice, precision
            What is asked for.
        thresholds
            Bounds from which results are accepted.
        """
        whose, groups = np.asarray(patients), []
        for group in (own, ~own):
            rows = [
                AcceptRow(at, PatientShare.of(bound[group] >= at, whose[group]), PatientShare.of(good[yes], whose[yes]))
                for at in thresholds
                for yes in [group & (bound >= at)]
            ]
            groups.append(tuple(rows) if group.any() else ())
        return cls(good_dice, precision, *groups)

    def at(self, accept: float | None) -> AcceptTable:
        """Of one threshold alone; of none if nothing is accepted."""
        own, worse = (
            tuple(row for row in rows if accept is not None and abs(row.accept - accept) < 1e-9)
            for rows in (self.own, self.worse)
        )
        return AcceptTable(self.good_dice, self.precision, own, worse)

    def choose(self, precision: float, lowest: float = 0.0) -> float | None:
        """The smallest threshold of which the interval shows that this share of what it accepts is good.

        The interval is that of the network's own results. Of those with faults so few are accepted that theirs would
        show nothing: their share must reach it. ``None`` if no threshold does.
        """
        shown = {row.accept for row in (self.own or self.worse) if row.good.low >= precision and row.accept >= lowest}
        poor = {row.accept for row in self.worse if row.good.share is not None and row.good.share < precision}
        return min(shown - poor, default=None)

    def describe(self, accept: float | None) -> str:
        """What an accepted result is worth, for people."""
        asked = f"{self.precision or 0:.0%} of what it accepts are good"
        good = f"good: every Dice at least {self.good_dice:.2f}"
        if accept is None:
            return f"nothing is accepted, since no threshold shows that {asked} ({good})"
        one = self.at(accept)
        told = [
            f"accepted are {row.accepted.share or 0.0:.0%} of {name}"
            + (f", and of these {row.good} are good" * (row.good.n_results > 0))
            for name, rows in (("the network's own results", one.own), ("results with faults", one.worse))
            for row in rows
        ]
        return "; ".join([*told, good + (f"; chosen so that at least {asked}" if self.precision else "")])

    def to_json(self) -> dict[str, Any]:
        """As in a file, :data:`ACCEPT_TABLE`."""
        return {**asdict(self), "own": [*map(asdict, self.own)], "worse": [*map(asdict, self.worse)]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> AcceptTable:
        """From what fits :data:`ACCEPT_TABLE`."""
        rows = (tuple(map(AcceptRow.from_json, content[name])) for name in ("own", "worse"))
        return cls(content["good_dice"], content.get("precision"), *rows)
