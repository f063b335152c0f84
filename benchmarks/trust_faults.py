"""Does the head on the encoder tell what is wrong with an image? Fitted on training patients, tried on held-out ones.

    python -m benchmarks.trust_faults DATA RUNS CACHE

DATA, RUNS and CACHE as in ``benchmarks.bench_trust``, which has made the held-out results and fitted the heads.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.trust_cases import Run, worse
from benchmarks.trust_scores import Stored, reference_of
from medseg.bundle import Bundle
from medseg.files import write_json
from medseg.results.verdict import USUAL
from medseg.trust.crop import Crop
from medseg.trust.fault_classifier import FaultClassifier, fit_fault_classifier
from medseg.trust.features import case_features
from medseg.trust.out_of_distribution import TrainingStatistics
from medseg.trust.synthetic_faults import IMAGE_FAULTS

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
FAULTS = ("crop", *IMAGE_FAULTS)
FAULTS_EACH = 3

Judge = tuple[nn.Module, TrainingStatistics]


def fitted(judge: Judge, cases: Sequence[Mapping[str, Any]]) -> FaultClassifier:
    """The head for one network, from its training cases: each as it is, and with some faults."""
    network, reference = judge
    features: list[NDArray[np.float64]] = []
    classes, patients = [], []
    for case in cases:
        rng = np.random.default_rng(zlib.crc32(case["name"].encode()))
        for kind in ("own", *map(str, rng.choice(FAULTS, FAULTS_EACH, replace=False))):
            image, probabilities, _ = worse(kind, dict(case), np.empty(0, np.float32), network)
            known = case_features(Crop(torch.from_numpy(image)[None], torch.from_numpy(probabilities)), None)
            features.append(reference.reinfer(network, known).embedding)
            classes.append(USUAL if kind == "own" else kind)
            patients.append(case["patient"])
    found = fit_fault_classifier(np.array(features), classes, patients, reference.weights_sha256)
    assert found is not None, "every class has many patients"
    return found[0]


def tried(head: FaultClassifier, judge: Judge, cases: Stored) -> list[tuple[str, str]]:
    """True and most probable class of every held-out case."""
    network, reference = judge
    found = []
    for i in range(len(cases)):
        case = cases[i]
        embedding = reference.reinfer(network, case_features(case.crop, None)).embedding
        found.append((case.fault or USUAL, head.most_probable(embedding).name))
    return found


def figures(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Recall by class, its mean, and what each class is mostly taken for otherwise."""
    names = sorted({true for true, _ in pairs})
    told = {name: Counter(found for true, found in pairs if true == name) for name in names}
    recall = {name: told[name][name] / told[name].total() for name in names}
    taken = {name: [pair for pair in told[name].most_common(3) if pair[0] != name][:1] for name in names}
    return {"cases": len(pairs), "mean recall": np.mean(list(recall.values())), "chance": 1 / len(names)} | {
        "recall": recall,
        "taken for": taken,
    }


def main() -> None:
    """Fit, try, print; what is done for a fold is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "runs", "cache"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--folds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.open(BUNDLE)
    pairs: list[tuple[str, str]] = []
    for run in (Run(options.runs / f"fold{fold}", fold) for fold in options.folds):
        path = options.cache / f"faults-{run.fold}.json"
        if not path.is_file():
            judge = reference_of(bundle, options.data, run, options.cache)
            head = FaultClassifier.read(options.cache / run.folder.name / "case_class.json")
            cases = Stored([options.cache / run.folder.name], ("own", *FAULTS))
            write_json(path, tried(head, judge, cases))
        pairs += [(str(true), str(found)) for true, found in json.loads(path.read_text())]
    print(json.dumps(figures(pairs), indent=1))


if __name__ == "__main__":
    main()
