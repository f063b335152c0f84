"""How far trust can be trusted: predicted against measured Dice on the hippocampus bundle, cross-fitted by fold.

    python -m benchmarks.bench_trust DATA RUNS CACHE            # figures
    python -m benchmarks.bench_trust DATA RUNS CACHE --fit      # write trust/ for the weights in the bundle

DATA is the folder of MSD Task04_Hippocampus; RUNS holds one folder per fold, ``fold0`` to ``fold4``, as
``benchmarks.train_flagship`` leaves them; CACHE keeps what is done: it goes on where it was stopped. With fewer folds
it uses those that are finished. ``--strangers FOLDER`` also shows images of other things, see
``benchmarks.trust_strangers``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import trust_figures as figures
from benchmarks import trust_volumes
from benchmarks.trust_baselines import compared, with_baselines
from benchmarks.trust_cases import KINDS, Run, make, prepared
from benchmarks.trust_faults import fitted as fitted_head
from benchmarks.trust_scores import (
    Row,
    Stored,
    adversary_of,
    critics,
    crossed,
    read_rows,
    reference_of,
    rows_of,
    write_rows,
)
from benchmarks.trust_strangers import flagged_share, meet
from medseg.bundle import Bundle
from medseg.files import sha256_file, write_json
from medseg.trust.calibration import fit_calibration
from medseg.trust.error_net import ErrorNet, FineTuning, fine_tune
from medseg.trust.fit import FALSE_FLAGS, fold_of, start_error_net, write_trust
from medseg.trust.fit_cases import TrainingCase
from medseg.trust.out_of_distribution import fit_training_statistics, limits_of

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
CROPS_EACH = 6
FEWEST_FOLDS = 5


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    bundle: Bundle
    data: Path
    runs: tuple[Run, ...]
    cache: Path
    finishing: FineTuning
    parts: int

    def stored(self) -> Stored:
        """All cases of all runs."""
        return Stored([self.cache / run.folder.name for run in self.runs])


def scored(bench: Bench) -> list[Row]:
    """Rows of all cases, with the part of each for cross-fitting."""
    name = "-".join(str(run.fold) for run in bench.runs)
    path = bench.cache / f"rows-{name}.json"
    if path.is_file():
        return read_rows(path)
    for run in bench.runs:
        make(bench.bundle, bench.data, run, bench.cache)
    cases = bench.stored()
    part = crossed(bench.runs, cases, bench.parts)
    critic = critics(bench.bundle, bench.runs, cases, part, (bench.finishing, bench.cache))
    rows: list[Row] = []
    for run in bench.runs:
        network, reference = reference_of(bench.bundle, bench.data, run, bench.cache)
        mine = [i for i, where in enumerate(cases.where) if where[0].name == run.folder.name]
        judges: dict[str, Any] = {
            "network": network,
            "reference": reference,
            "adversary": adversary_of(bench.bundle, run),
        }
        for number in np.unique(part[mine]):
            which = [i for i in mine if part[i] == number]
            found = rows_of(cases, which, {**judges, "critic": critic[int(number)]}, list(bench.bundle.labels))
            rows += [{**row, "fold": run.fold, "part": int(number)} for row in found]
    if len(bench.runs) < FEWEST_FOLDS:  # too few to fit a calibration on the others: parts of the patients instead
        rows = [
            {**row, "part": int(number)}
            for row, number in zip(rows, fold_of([row["patient"] for row in rows], FEWEST_FOLDS), strict=True)
        ]
    write_rows(path, rows)
    return rows


def flags(rows: Sequence[Row]) -> dict[str, Any]:
    """Share flagged, own and worsened, by limits from the other parts."""
    names = ("encoder", "image", "shape")
    own: list[bool] = []
    harmed: list[bool] = []
    harmless: list[bool] = []
    for number in sorted({row["part"] for row in rows}):
        fit = [row["scores"] for row in rows if row["part"] != number and row["kind"] == "own"]
        limits = limits_of({name: [row[f"{name}-distance"] for row in fit] for name in names}, FALSE_FLAGS)
        for row in (row for row in rows if row["part"] == number):
            over = any(row["scores"][f"{name}-distance"] > limits[name] for name in names)
            dice = np.mean([value for value in row["dice"].values() if value is not None])
            (own if row["kind"] == "own" else harmed if dice < 0.75 else harmless).append(over)
    return {"own": np.mean(own), "n_own": len(own), "worse, Dice < 0.75": np.mean(harmed), "n": len(harmed)} | {
        "worse, other": np.mean(harmless),
    }


def summary(bench: Bench, rows: Sequence[Row]) -> dict[str, Any]:
    """All figures."""
    labels = [str(label) for label in bench.bundle.labels]
    found = figures.bounded(rows, figures.is_shipped, bench.bundle.labels)
    stacked = {name: [] for name in ("dice", "score", "bound", "own", "patient", "kind")}  # type: ignore[var-annotated]
    for label in labels:
        dice, own, patients, _ = figures.table(rows, label)
        known = np.isfinite(dice)
        values = (dice, *found[label], own, np.array(patients), np.array([row["kind"] for row in rows]))
        for name, value in zip(stacked, values, strict=True):
            stacked[name].append(value[known])
    whole = {name: np.concatenate(parts) for name, parts in stacked.items()}
    result: dict[str, Any] = {"folds": [run.fold for run in bench.runs], "results": len(rows), "flagged": flags(rows)}
    for name, chosen in (("own", whole["own"]), ("worse", ~whole["own"])):
        d, s = whole["dice"][chosen], whole["score"][chosen]
        result[name] = figures.quality(d, s) | {
            "guess": float(np.abs(d - np.median(whole["dice"][whole["own"]])).mean())
        }
        result[name]["coverage"] = figures.coverage(d, whole["bound"][chosen], whole["patient"][chosen].tolist())
    result["by kind"] = {
        kind: figures.quality(whole["dice"][w := whole["kind"] == kind], whole["score"][w])
        | {"dice": float(whole["dice"][w].mean()), "covered": float((whole["dice"][w] >= whole["bound"][w]).mean())}
        for kind in KINDS
    }
    result["volumes"] = trust_volumes.summary(rows, bench.bundle.labels)
    return result


def strangers(bench: Bench, rows: Sequence[Row], shared: Path) -> dict[str, Any]:
    """Images of other things before the judge of the first fold, with limits from the other folds' own results."""
    path = bench.cache / "strangers.json"
    judge = reference_of(bench.bundle, bench.data, bench.runs[0], bench.cache)
    if not path.is_file():
        write_json(path, meet(bench.bundle, judge, shared, CROPS_EACH))
    own = [row["scores"] for row in rows if row["kind"] == "own" and row["fold"] != bench.runs[0].fold]
    limits = limits_of({name: [row[f"{name}-distance"] for row in own] for name in judge[1].detectors}, FALSE_FLAGS)
    return flagged_share(json.loads(path.read_text()), limits)


def publish(bench: Bench, rows: Sequence[Row], held_out: int) -> None:
    """Write the bundle's ``trust/``: what the folds' held-out results teach, for the weights that are in the bundle.

    Scores and limits come from the folds, each by its own critic and encoder; the critic that ships is finished in the
    same way on the held-out results of all folds, and the reference is what the bundle's network sees in its own
    training cases (all folds but ``held_out``; all if it is negative).
    """
    bundle, names = bench.bundle, [name for name in rows[0]["scores"] if figures.is_shipped(name)]
    weights = bundle.path / "models" / "model.pt"
    path = bench.cache / f"critic-{'-'.join(str(run.fold) for run in bench.runs)}-all.safetensors"
    if not path.is_file():
        fine_tune(start_error_net(bundle), bench.stored(), bench.finishing).write(path, "all folds")
    folds = [fold for fold in range(5) if fold != held_out]
    cases = [case for fold in folds for case in prepared(bundle, bench.data, fold)]
    training = [TrainingCase(torch.from_numpy(case["image"])[None], case["reference"]) for case in cases]
    reference = fit_training_statistics(bundle.load_network(), training, bundle.output_channels, sha256_file(weights))
    own = [row["scores"] for row in rows if row["kind"] == "own"]
    limits = limits_of({name: [row[f"{name}-distance"] for row in own] for name in reference.detectors}, FALSE_FLAGS)
    calibration = fit_calibration(
        {name: [row["scores"][name] for row in rows] for name in names},
        {label: [row["dice"][str(label)] for row in rows] for label in bundle.labels},
        bundle.labels,
        [row["patient"] for row in rows],
        sha256_file(weights),
        weights=figures.importance(rows),
    )
    told = (
        f"held-out results of folds {', '.join(str(run.fold) for run in bench.runs)}, each by the network of its fold"
    )
    head = fitted_head((bundle.load_network(), reference), cases)
    critic, reference = ErrorNet.read(path), replace(reference, limits=limits)
    volumes = trust_volumes.fitted(rows, bundle.labels, sha256_file(weights))
    write_trust(bundle, critic, reference, replace(calibration, provenance=told), head, volumes)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MSD Task04_Hippocampus")
    parser.add_argument("runs", type=Path, help="folder of fold0 to fold4")
    parser.add_argument("cache", type=Path)
    parser.add_argument("--folds", type=int, nargs="*", help="only these")
    parser.add_argument("--steps", type=int, default=FineTuning().steps, help="updates that finish a discriminator")
    parser.add_argument("--parts", type=int, default=3, help="parts of the patients, if there is one fold alone")
    parser.add_argument("--fit", action="store_true", help="write the bundle's trust/")
    parser.add_argument(
        "--held-out", type=int, default=0, help="fold that the bundle's weights have not seen; -1: none"
    )
    parser.add_argument("--strangers", type=Path, help="folder with brain_mr_dicom and ibsi_sts")
    parser.add_argument("--baselines", type=int, metavar="N", help="simple ways to judge, on every N-th result")
    parser.add_argument("--ablation", action="store_true", help="what each part adds")
    return parser.parse_args()


def main() -> None:
    """Make, score, measure, print."""
    options = read_arguments()
    torch.set_num_threads(1)
    runs = [Run(path, int(path.name.removeprefix("fold"))) for path in sorted(options.runs.glob("fold[0-9]"))]
    done = [run for run in runs if (run.folder / "checkpoints" / "final.pt").is_file()]
    chosen = tuple(run for run in done if options.folds is None or run.fold in options.folds)
    finishing = replace(FineTuning(), steps=options.steps)
    bench = Bench(Bundle.open(BUNDLE), options.data, chosen, options.cache, finishing, options.parts)
    rows = scored(bench)
    if options.fit:
        publish(bench, rows, options.held_out)
        return
    result = summary(bench, rows)
    if options.ablation:
        result["ablation"] = figures.ablation(rows, [str(label) for label in bench.bundle.labels])
    if options.baselines:
        some = with_baselines(bench.bundle, bench.runs, bench.cache, rows, options.baselines)
        result["baselines"] = compared(some, [str(label) for label in bench.bundle.labels])
    if options.strangers:
        result["strangers"] = strangers(bench, rows, options.strangers)
    write_json(options.cache / "trust.json", result)
    print(json.dumps(result, indent=1, default=float))


if __name__ == "__main__":
    main()
