"""How far trust can be trusted: predicted against measured Dice on the hippocampus bundle, cross-fitted by fold.

    python -m benchmarks.bench_trust DATA RUNS CACHE --jobs 2          # figures
    python -m benchmarks.bench_trust DATA RUNS CACHE --jobs 2 --fit    # write trust/ for the weights in the bundle

DATA is the folder of MSD Task04_Hippocampus; RUNS holds one folder per fold, ``fold0`` to ``fold4``, as
``benchmarks.train_flagship`` leaves them: of each ``checkpoints/final.pt`` is read, and ``judge.pt``,
``final_discriminator.pt`` beside it if they are there. CACHE keeps what is done: it goes on where it was stopped. With
fewer folds it uses those that are finished. ``--control`` also tries error nets that begin at random. ``--strangers
FOLDER`` also shows images of other things, see ``benchmarks.trust_strangers``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
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
    crossed,
    read_rows,
    reference_of,
    rows_of,
    started,
    write_rows,
)
from benchmarks.trust_strangers import flagged_share, meet
from medseg.bundle import Bundle
from medseg.files import sha256_file, write_json
from medseg.trust.calibration import fit_calibration
from medseg.trust.error_net import ErrorNet, FineTuning, fine_tune
from medseg.trust.fault_classifier import FaultClassifier
from medseg.trust.fit import FALSE_FLAGS, start_error_net, write_trust
from medseg.trust.fit_cases import Subset, TrainingCase
from medseg.trust.out_of_distribution import fit_training_statistics, limits_of
from medseg.trust.regression import fold_of

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
CROPS_EACH = 6
FEWEST_FOLDS = 5


@dataclass(frozen=True)
class Bench:
    """Where everything is, and how it is done."""

    place: Path
    data: Path
    runs: tuple[Run, ...]
    cache: Path
    finishing: FineTuning
    parts: int
    control: bool
    jobs: int

    @cached_property
    def bundle(self) -> Bundle:
        """Whose network the runs have trained."""
        return Bundle.open(self.place)

    @property
    def name(self) -> str:
        """Of the folds, for files."""
        return "-".join(str(run.fold) for run in self.runs)

    def stored(self, run: Run | None = None) -> Stored:
        """All cases of all runs, or of one."""
        return Stored([self.cache / one.folder.name for one in ([run] if run else self.runs)])

    def critic(self, number: int | str, start: str) -> Path:
        """The error net for one part, finished on the others; for ``all``, the one that ships."""
        return self.cache / f"critic-{start}-{self.name}-{number}.safetensors"

    def each(self, step: Callable[[Bench, Any], None], tasks: Sequence[Any]) -> None:
        """Do a step for every task, several at a time on request, and say what it took."""
        alone = replace(self)  # without what was opened, which does not travel
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            for task, seconds in zip(tasks, pool.map(partial(_timed, alone, step), tasks), strict=True):
                print(f"{step.__name__} {task}: {seconds / 60:.1f} core-minutes", file=sys.stderr, flush=True)


def _timed(bench: Bench, step: Callable[[Bench, Any], None], task: Any) -> float:
    torch.set_num_threads(1)
    begin = time.process_time()
    step(bench, task)
    return time.process_time() - begin


def results(bench: Bench, number: int) -> None:
    """Make the results of one run, what its training cases look like, and the head that knows faults by them."""
    run, bundle = bench.runs[number], bench.bundle
    make(bundle, bench.data, run, bench.cache)
    judge, path = reference_of(bundle, bench.data, run, bench.cache), _head(bench, run)
    if not path.is_file():
        fitted_head(judge, prepared(bundle, bench.data, run.fold, "training")).write(path)


def _head(bench: Bench, run: Run) -> Path:
    return bench.cache / run.folder.name / "case_class.json"


def critic(bench: Bench, task: tuple[int, str]) -> None:
    """Finish one error net on the cases of the other parts, from what the part's own run has left, or at random."""
    (number, start), path = task, bench.critic(*task)
    if path.is_file():
        return
    cases = bench.stored()
    run = bench.runs[number] if len(bench.runs) > 1 else bench.runs[0]
    others = np.flatnonzero(crossed(bench.runs, cases, bench.parts) != number)
    fine_tune(started(bench.bundle, run, start), Subset(cases, others), bench.finishing).write(path, "cross-fitted")


def scores(bench: Bench, number: int) -> None:
    """Score the results of one run by judges that have not seen their patients."""
    run, path = bench.runs[number], _rows(bench, number)
    if path.is_file():
        return
    cases, bundle = bench.stored(run), bench.bundle
    network, reference = reference_of(bundle, bench.data, run, bench.cache)
    head = FaultClassifier.read(_head(bench, run), [reference.weights_sha256])
    judges = {"network": network, "reference": reference, "head": head, "adversary": adversary_of(bundle, run)}
    part = crossed(bench.runs, cases, bench.parts) if len(bench.runs) == 1 else np.full(len(cases), number)
    rows: list[Row] = []
    for one in map(int, np.unique(part)):
        judges["critic"] = ErrorNet.read(bench.critic(one, "judge"))
        judges["control"] = ErrorNet.read(bench.critic(one, "random")) if bench.control else None
        found = rows_of(cases, np.flatnonzero(part == one).tolist(), judges, list(bundle.labels))
        rows += [{**row, "fold": run.fold, "part": one} for row in found]
    write_rows(path, rows)


def _rows(bench: Bench, number: int) -> Path:
    return bench.cache / f"rows-{bench.name}-{bench.runs[number].fold}{'-control' if bench.control else ''}.json"


def made_alike(bench: Bench) -> None:
    """Refuse a cache with results of other weights, or error nets that were finished in another way."""
    path, parts = bench.cache / f"made-{bench.name}.json", bench.parts if len(bench.runs) == 1 else None
    weights = {str(run.fold): sha256_file(run.weights) for run in bench.runs}
    made = {"steps": bench.finishing.steps, "parts": parts, "weights": weights}
    if path.is_file() and (was := json.loads(path.read_text())) != made:
        raise SystemExit(f"{path} says {was}, asked is {made}; give another CACHE, or what it was made with")
    bench.cache.mkdir(parents=True, exist_ok=True)
    write_json(path, made)


def scored(bench: Bench) -> list[Row]:
    """Rows of all cases, with the part of each for cross-fitting."""
    numbers = range(len(bench.runs))
    bench.each(results, numbers)
    parts = numbers if len(numbers) > 1 else range(bench.parts)
    starts = ("judge", "random") if bench.control else ("judge",)
    bench.each(critic, [(number, start) for number in parts for start in starts])
    bench.each(scores, numbers)
    rows = [row for number in numbers for row in read_rows(_rows(bench, number))]
    if len(bench.runs) < FEWEST_FOLDS:  # too few to fit a calibration on the others: parts of the patients instead
        part = fold_of([row["patient"] for row in rows], FEWEST_FOLDS)
        rows = [{**row, "part": int(number)} for row, number in zip(rows, part, strict=True)]
    return rows


def flags(rows: Sequence[Row]) -> dict[str, Any]:
    """Share flagged, own and worsened, by limits from the other parts."""
    own: list[bool] = []
    harmed: list[bool] = []
    harmless: list[bool] = []
    for row, over in zip(rows, figures.flagged(rows).tolist(), strict=True):
        dice = np.mean([value for value in row["dice"].values() if value is not None])
        (own if row["kind"] == "own" else harmed if dice < 0.75 else harmless).append(over)
    return {"own": np.mean(own), "n_own": len(own), "worse, Dice < 0.75": np.mean(harmed), "n": len(harmed)} | {
        "worse, other": np.mean(harmless),
    }


def summary(bench: Bench, rows: Sequence[Row]) -> dict[str, Any]:
    """All figures."""
    labels = [str(label) for label in bench.bundle.labels]
    found, accepted = figures.bounded(rows, figures.is_shipped, bench.bundle.labels)
    stacked = {name: [] for name in ("dice", "score", "bound", "own", "patient", "kind", "told")}  # type: ignore[var-annotated]
    told = np.array(figures.kinds_of(rows), dtype=object)
    for label in labels:
        dice, own, patients, _ = figures.table(rows, label)
        known = np.isfinite(dice)
        values = (dice, *found[label], own, np.array(patients), np.array([row["kind"] for row in rows]), told)
        for name, value in zip(stacked, values, strict=True):
            stacked[name].append(value[known])
    whole = {name: np.concatenate(parts) for name, parts in stacked.items()}
    result: dict[str, Any] = {"folds": [run.fold for run in bench.runs], "results": len(rows), "flagged": flags(rows)}
    for name, chosen in (("own", whole["own"]), ("worse", ~whole["own"])):
        d, s = whole["dice"][chosen], whole["score"][chosen]
        guess = float(np.median(whole["dice"][whole["own"]]))
        result[name] = figures.quality(d, s) | {"guess": float(np.abs(d - guess).mean())}
        result[name]["better than the guess"] = figures.paired(d, s, guess, whole["patient"][chosen])
        result[name]["coverage"] = figures.coverage(d, whole["bound"][chosen], whole["patient"][chosen].tolist())
    result["by kind"] = {
        kind: figures.quality(whole["dice"][w := whole["kind"] == kind], whole["score"][w])
        | {"dice": float(whole["dice"][w].mean())}
        for kind in KINDS
    }
    for name, groups in (("kind", whole["kind"]), ("predicted kind", whole["told"])):
        result[f"coverage by {name}"] = figures.covered(whole["dice"], whole["bound"], whole["patient"], groups)
    result["accepted"] = figures.accept_tables(rows, [found[label][1] for label in labels], accepted)
    result["volumes"] = trust_volumes.summary(rows, bench.bundle.labels)
    return result


def is_control(name: str) -> bool:
    """What ships, with the scores of an error net that began at random instead."""
    return name.startswith("control-") or (figures.is_shipped(name) and not figures.is_critic(name))


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
    path = bench.critic("all", "judge")
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
        about=figures.about(rows),
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
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, one thread each")
    parser.add_argument("--control", action="store_true", help="also error nets that begin at random")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="bundle that the runs have trained")
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
    chosen = tuple(run for run in runs if run.weights.is_file() and run.fold in (options.folds or range(10)))
    if not chosen:
        raise SystemExit(f"{options.runs} has no fold0 to fold9 with checkpoints/final.pt")
    finishing = replace(FineTuning(), steps=options.steps)
    how = finishing, options.parts, options.control, options.jobs
    bench = Bench(options.bundle, options.data, chosen, options.cache, *how)
    made_alike(bench)
    rows = scored(bench)
    if options.fit:
        publish(bench, rows, options.held_out)
        return
    result, labels = summary(bench, rows), [str(label) for label in bench.bundle.labels]
    if options.ablation:
        parts = [name for name, chosen in figures.PARTS.items() if any(map(chosen, rows[0]["scores"]))]
        result["ablation"] = figures.ablation(rows, labels, parts)
    if options.control:
        result["critic from random weights"] = figures.part_quality(rows, labels, is_control)
    if options.baselines:
        some = with_baselines(bench.bundle, bench.runs, bench.cache, rows, options.baselines)
        result["baselines"] = compared(some, labels)
    if options.strangers:
        result["strangers"] = strangers(bench, rows, options.strangers)
    write_json(options.cache / "trust.json", result)
    print(json.dumps(result, indent=1, default=float))


if __name__ == "__main__":
    main()
