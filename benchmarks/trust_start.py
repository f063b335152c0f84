"""Does it matter that the error net begins as the discriminator? The same fit from random weights, paired by result.

    python -m benchmarks.trust_start BUNDLE PREDICTIONS REFERENCES --images IMAGES OUTPUT

PREDICTIONS is what ``medseg infer`` left for cases that the network of BUNDLE has not learnt from, REFERENCES their
masks, such as ``corrected`` and ``fold1/datalist.json`` of :mod:`benchmarks.three_judges`. Error nets are fine-tuned
on the results as they came and with faults, as in ``medseg trust fit``, and say the Dice of those of the other patients
(cross-fitting). Both starts share the order of the cases, and a seed for what is random in them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from medseg.bundle import Bundle
from medseg.files import write_json
from medseg.inference.predictor import Predictor
from medseg.trust.discriminator_acceptance import DISCRIMINATOR_NAME
from medseg.trust.error_net import ErrorNet, FineTuning, fine_tune
from medseg.trust.fit import start_error_net
from medseg.trust.fit_cases import Subset, TrustCase
from medseg.trust.regression import fold_of
from medseg.workflows.corrected_cases import CorrectedCases

STARTS = ("discriminator", "random")
RESAMPLES = 5000
Floats = NDArray[np.float64]


def started(bundle: Bundle, start: str, seed: int) -> ErrorNet:
    """An error net that begins as the bundle's discriminator, or with nothing."""
    torch.manual_seed(seed)
    return start_error_net(bundle, bundle.path / (DISCRIMINATOR_NAME if start == "discriminator" else "none"))


def estimated(net: ErrorNet, case: TrustCase) -> tuple[list[float], list[float]]:
    """Dice that the net expects, and the true one, of the structures that are in the mask or the reference."""
    found = net.estimate(case.crop.image, case.crop.probabilities).dice.tolist()
    pairs = [(said, case.dice(label)) for label, said in enumerate(found, start=1)]
    known = [(said, true) for said, true in pairs if true is not None]
    return [said for said, _ in known], [float(true) for _, true in known]


def answered(bundle: Bundle, cases: Sequence[TrustCase], seen: NDArray[np.bool_], start: str, how: Any) -> list[Any]:
    """What an error net that has learnt from some cases says of each other one, and what is true."""
    net = fine_tune(started(bundle, start, how.seed), Subset(cases, np.flatnonzero(seen)), FineTuning(steps=how.steps))
    return [estimated(net, cases[int(i)]) for i in np.flatnonzero(~seen)]


def interval(difference: Floats, patients: Sequence[str]) -> list[float]:
    """Mean with its 95 % interval, by resampling patients."""
    known, index = np.unique(np.asarray(patients), return_inverse=True)
    total = np.bincount(index, difference, len(known))
    count = np.bincount(index, minlength=len(known)).astype(float)
    drawn = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    return [float(difference.mean()), *map(float, np.quantile(means, [0.025, 0.975]))]


def figures(said: dict[str, list[Any]], faults: Sequence[str | None], patients: Sequence[str]) -> dict[str, Any]:
    """Error of the Dice by start, on results as they came and on those with faults, and the paired difference."""
    errors = {
        start: np.array([np.mean(np.abs(np.subtract(*one))) if one[0] else np.nan for one in answers])
        for start, answers in said.items()
    }
    own = np.array([fault is None for fault in faults])
    result: dict[str, Any] = {}
    for name, which in (("own", own), ("with faults", ~own)):
        which = which & np.isfinite(errors["random"])
        difference = (errors["random"] - errors["discriminator"])[which]
        result[name] = {
            "results": int(which.sum()),
            "error": {start: float(one[which].mean()) for start, one in errors.items()},
            "random - discriminator": interval(difference, [patients[i] for i in np.flatnonzero(which).tolist()]),
            "spearman": {start: _rank(answers, which) for start, answers in said.items()},
        }
    return result


def _rank(answers: Sequence[Any], which: NDArray[np.bool_]) -> float:
    """Rank correlation of what is said and what is true, over structures."""
    pairs = [pair for one, taken in zip(answers, which, strict=True) if taken for pair in zip(*one, strict=True)]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def main() -> None:
    """Collect the cases, fit from both starts, print after each part; what is there is not done again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bundle", "predictions", "references", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--images", type=Path, nargs="+", default=[])
    parser.add_argument("--steps", type=int, default=FineTuning().steps)
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.open(options.bundle)
    predictor = Predictor(bundle, "cpu", "fp32", trust=False)
    cases = list(CorrectedCases(predictor, options.predictions, options.references, tuple(options.images)))
    patients, faults = [case.patient for case in cases], [case.fault for case in cases]
    part = fold_of(patients, options.parts)
    said: dict[str, list[Any]] = {start: [] for start in STARTS}
    tried: list[int] = []
    for number in range(options.parts):
        for start in STARTS:
            path = options.output / f"{start}-{options.steps}-{options.seed}-{number}.json"
            if not path.is_file():
                write_json(path, answered(bundle, cases, part != number, start, options))
            said[start] += json.loads(path.read_text())
        tried += map(int, np.flatnonzero(part == number))
        found = figures(said, [faults[i] for i in tried], [patients[i] for i in tried])
        print(json.dumps({"parts": f"{number + 1} of {options.parts}", **found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
