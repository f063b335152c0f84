"""How often `medseg trust watch` cries wolf, and how many results it takes to tell a change: simulated streams.

    python -m benchmarks.trust_watch BUNDLE WEIGHTS DATA CACHE

WEIGHTS are of a network of BUNDLE that has not seen a fold, DATA the folder of the Decathlon task. The cases of that
fold, as they are and with noise, motion and blur, are judged by trust that was fitted on the other half of their
patients (without an error net) and kept in CACHE. Streams are drawn from them with replacement, patients alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trust_cases import load_network, prepared, probabilities_of, worse
from medseg.bundle import Bundle
from medseg.files import write_json
from medseg.results.case_result import CaseResult
from medseg.results.verdict import Verdict
from medseg.trust.change import watch_changes
from medseg.trust.crop import Crop
from medseg.trust.fit import TrustOptions, fit_trust
from medseg.trust.fit_cases import CaseCache, Subset, TrainingCase, TrustCase
from medseg.trust.regression import fold_of
from medseg.trust.trust_files import TrustFiles
from medseg.trust.trust_model import TrustModel
from medseg.workflows.trust_watch import DICE, values_of, weights_of

FAULTS = ("noise", "motion", "blur")
TRAINING_CASES = 30
REFERENCE = 100
Values = Mapping[str, float]


def judge(options: Any) -> list[dict[str, Any]]:
    """Every result of the fold that was held out, judged by what was fitted on the other half of the patients."""
    folder = options.cache / "bundle"
    shutil.copytree(options.bundle, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "trust", ignore_errors=True)
    (folder / "models").mkdir(exist_ok=True)
    shutil.copy(options.weights, folder / "models" / "model.pt")
    bundle = Bundle.open(folder)
    network = load_network(bundle, options.weights)
    training = [
        TrainingCase(torch.from_numpy(case["image"])[None], case["reference"])
        for case in prepared(bundle, options.data, options.fold, "training")[:TRAINING_CASES]
    ]
    judged = []
    with CaseCache() as cases:
        for case in prepared(bundle, options.data, options.fold):
            own = probabilities_of(network, case["image"])
            cases.append(_case(case["image"], own, case["reference"], case["patient"], None))
            for kind in FAULTS:
                cases.append(_case(*worse(kind, case, own, network), case["patient"], kind))
        print(f"{len(cases)} results made", flush=True)
        half = fold_of([case.patient for case in cases], 2)
        for part in range(2):
            fit_trust(
                bundle, network, Subset(cases, np.flatnonzero(half != part)), training, TrustOptions(fine_tuning=None)
            )
            model = TrustModel.open(TrustFiles(bundle), network)
            assert model is not None
            for result in Subset(cases, np.flatnonzero(half == part)):
                verdict = model.assess(result.crop).verdict.to_json()
                judged.append({"patient": result.patient, "fault": result.fault, "trust": verdict})
    return judged


def _case(image: Any, probabilities: Any, reference: Any, patient: str, fault: str | None) -> TrustCase:
    crop = Crop(torch.from_numpy(image)[None], torch.from_numpy(np.asarray(probabilities, dtype=np.float32)))
    return TrustCase(crop, reference, patient, fault)


@dataclass(frozen=True)
class Drawer:
    """Draws results: a patient, then one of its results with a fault, or of those as they came."""

    results: Mapping[str | None, Mapping[str, Sequence[Values]]]  # by fault and patient

    @classmethod
    def of(cls, judged: Sequence[Mapping[str, Any]]) -> Drawer:
        """From what :func:`judge` gave."""
        results: dict[str | None, dict[str, list[Values]]] = {}
        for one in judged:
            values = values_of(CaseResult("case", trust=Verdict.from_json(one["trust"])))
            results.setdefault(one["fault"], {}).setdefault(one["patient"], []).append(values)
        return cls(results)

    def draw(self, rng: np.random.Generator, fault: str | None = None) -> Values:
        """One result."""
        by_patient = self.results[fault]
        of_patient = by_patient[sorted(by_patient)[int(rng.integers(len(by_patient)))]]
        return of_patient[int(rng.integers(len(of_patient)))]


def alarms(studies: Sequence[Values], rng: np.random.Generator, rate: float = 1 / 1000) -> list[tuple[int, str]]:
    """Number of the study and what it names, of every alarm in a stream, the first one first."""
    structures = sorted({name.removeprefix(f"{DICE} of ") for one in studies for name in one if " of " in name})
    weights = weights_of(structures)
    series = {name: [one.get(name) for one in studies] for name in weights}
    worse = {n: [-v if v and n.startswith(DICE) else v for v in column] for n, column in series.items()}
    lots = {name: rng.random(len(studies)).tolist() for name in weights}
    found = watch_changes(worse, lots, weights, REFERENCE, rate)
    return sorted((one.told, name) for name, one in found.items() if one.told is not None)


def changes(drawer: Drawer) -> dict[str, Callable[[np.random.Generator], Values]]:
    """What results may become, by name."""

    def faulty(kind: str, share: float) -> Callable[[np.random.Generator], Values]:
        return lambda rng: drawer.draw(rng, kind if rng.random() < share else None)

    def lower(by: float) -> Callable[[np.random.Generator], Values]:
        return lambda rng: {
            name: value - by if name.startswith(DICE) else value for name, value in drawer.draw(rng).items()
        }

    found = {f"{share:.0%} {kind}": faulty(kind, share) for kind in ("motion", "noise") for share in (0.1, 0.3)}
    return {**found, **{f"predicted Dice lower by {by}": lower(by) for by in (0.02, 0.05)}}


def main() -> None:
    """Judge what is not judged yet; print alarms in usual streams, and delays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bundle", "weights", "data", "cache"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--usual", type=int, default=300, help="streams of 1000 results without a change")
    parser.add_argument("--streams", type=int, default=40, help="streams with each change")
    parser.add_argument("--longest", type=int, default=400, help="results after the change")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    path = options.cache / "judged.json"
    if not path.is_file():
        write_json(path, judge(options))
    drawer = Drawer.of(json.loads(path.read_text()))
    rng = np.random.default_rng(0)
    own = [values[DICE] for of_patient in drawer.results[None].values() for values in of_patient]
    print(f"{len(own)} own results, predicted Dice {np.mean(own):.3f} ± {np.std(own):.3f}", flush=True)
    found = [alarms([drawer.draw(rng) for _ in range(REFERENCE + 1000)], rng) for _ in range(options.usual)]
    count, any_ = sum(map(len, found)), sum(map(bool, found))
    print(f"usual: {count} alarms in {options.usual} streams of 1000 results, in {any_} of them", flush=True)
    for name, changed in changes(drawer).items():
        for usual in (200, 500):
            print(name, f"after {usual}:", _delays(drawer, changed, usual, rng, options), flush=True)


def _delays(
    drawer: Drawer, changed: Callable[[np.random.Generator], Values], usual: int, rng: np.random.Generator, options: Any
) -> str:
    """Median delay with quartiles, the share that is never told, and what is named."""
    delays, named, early = [], Counter[str](), 0
    for _ in range(options.streams):
        studies = [drawer.draw(rng) for _ in range(usual)] + [changed(rng) for _ in range(options.longest)]
        told = alarms(studies, rng)
        if told and told[0][0] < usual:
            early += 1
            continue
        delays.append(told[0][0] - usual + 1 if told else np.inf)
        named.update(name for _, name in told)
    low, middle, high = np.quantile(delays, [0.25, 0.5, 0.75], method="lower")
    missed = sum(not np.isfinite(delay) for delay in delays)
    first = ", ".join(f"{name} {count}" for name, count in named.most_common(5))
    return f"{middle:g} results ({low:g}–{high:g}), {missed} of {len(delays)} not told, {early} early; named: {first}"


if __name__ == "__main__":
    main()
