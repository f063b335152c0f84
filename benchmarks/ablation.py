"""What is the discriminator worth? Arms of the hippocampus recipe with 10, 50 and all labels.

    python -m benchmarks.ablation DATA OUTPUT --results benchmarks/results --budget-minutes 60

Every run but the one that says otherwise sees as many labelled patches, and arms with the same labels and draw see the
same ones; the weights of its last iteration (moving average) are measured on one held-out fold. Unlabelled images are
those of the other folds. Self-training sees beside every labelled image one that a finished network of the same draw
has labelled, long self-training three.

Runs come in a fixed order, the most telling first. The same command goes on where it was stopped: a run in OUTPUT from
its last checkpoint; what stands in the results is not done again, also without OUTPUT. Started twice, two processes
share the runs. The results are read by ``benchmarks.ablation_table``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ablation_data import FOLD, restoring, write_datalist, write_pretraining_datalist, write_taught_datalist
from benchmarks.ablation_table import ARMS, DESIGN, Key, Results, RunFacts, markdown, measure_case
from medseg.errors import Interrupted, MedsegError, OutputLocked, UsageError
from medseg.files import locked_folder, write_json
from medseg.signals import signals_interrupt

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
LENGTH = 50
"""Iterations per epoch, and between checkpoints."""
WINDOW = {"inferer#roi_size": [44, 60, 44], "inferer#overlap": 0.25}
"""Nearly every crop in one window: a third of the cost of the bundle's windows, for the same Dice."""


@dataclass(frozen=True)
class Variant:
    """What is added to plain supervised training."""

    share: float = 0.0  # of the supervised gradient that the discriminator's has
    unlabelled: bool = False  # the discriminator judges predictions on images without labels, too
    pretrained: bool = False  # the network has learnt to restore volumes before
    taught: str = ""  # the variant whose finished network has labelled the images without labels
    steps: int = 1  # optimiser steps for each one of plain training; a taught variant sees as many labels in them


VARIANTS = {
    "plain": Variant(),
    "D 10 %": Variant(0.1),
    "D 30 %": Variant(0.3),
    "D on unlabelled images": Variant(0.1, unlabelled=True),
    "restoring U-Net + D": Variant(0.1, pretrained=True),
    "restoring U-Net": Variant(pretrained=True),
    "self-training": Variant(taught="plain"),
    "long self-training": Variant(taught="plain", steps=4),
    "full recipe": Variant(0.1, pretrained=True, taught="restoring U-Net", steps=4),
    "plain, four times as long": Variant(steps=4),
}


@dataclass(frozen=True)
class Run:
    """One training run; ``labels`` 0 means all."""

    variant: str
    labels: int
    draw: int

    @property
    def folder(self) -> str:
        name = "".join(c if c.isalnum() else "-" for c in self.variant)
        return f"{self.labels or 'all'}-labels/draw{self.draw}/{name}"

    @property
    def key(self) -> Key:
        return self.variant, self.labels, self.draw


@dataclass(frozen=True)
class Plan:
    """Where data and results are, and the budget that all runs share."""

    data: Path
    output: Path  # with a copy of the bundle, so that a table is finished with the recipe that it was begun with
    iterations: int = 600
    batch_size: int = 2
    pretraining_iterations: int = 1000

    @property
    def bundle(self) -> Path:
        return self.output / "bundle"

    @property
    def restored(self) -> Path:
        """Where the network that restores volumes is trained."""
        return self.output / "restoring"

    def overrides(self, run: Run) -> dict[str, Any]:
        """Ids of a run: the discriminator learns after an eighth of it, and counts in full in its second half."""
        variant = VARIANTS[run.variant]
        total = self.iterations * variant.steps
        return {
            **length(total),
            # in the same number of steps: beside every labelled image one that a teacher has labelled
            "batch_size": self.batch_size * (2 if variant.taught and variant.steps == 1 else 1),
            "seed": 20 + run.draw,
            "adversarial_share": variant.share,
            "warm_up": total // 8,
            "adversary#schedule#settle": total // 4,
            "ramp": total // 8,
            "consistency_weight": 0.0,
        }


def length(iterations: int) -> dict[str, Any]:
    """Ids of a run of so many iterations, which is validated by nobody on its way, and judged by its opponent alone."""
    epochs = iterations // LENGTH
    # without a judge: what is asked is how the opponent judges, and what restores volumes has no labels to judge
    unwatched = {"val_interval": epochs + 1, "num_workers": 0, "judge_steps": 0}
    return {"epochs": epochs, "iterations": LENGTH, **unwatched}


def train(plan: Plan, run: Run) -> Path:
    """Train a run, or go on, with what it needs before; returns the folder with the finished network."""
    from medseg.training import train_bundle

    folder, variant = plan.output / run.folder, VARIANTS[run.variant]
    folder.mkdir(parents=True, exist_ok=True)
    datalist = folder / "datalist.json"
    if variant.taught:
        teacher = train(plan, replace(run, variant=variant.taught))
        taught_for_each = max(1, variant.steps - 1)

        def label(items: list[dict[str, Any]], to: Path) -> None:
            segment(plan, teacher, items, to)

        write_taught_datalist(plan.bundle, datalist, teacher, plan.data, taught_for_each, label)
    else:
        write_datalist(plan.bundle, datalist, run.labels, run.draw, unlabelled=variant.unlabelled)
    start: dict[str, Any] = {"init": pretrain(plan), "rescale": True} if variant.pretrained else {}
    options: dict[str, Any] = {"dataset_dir": plan.data, "fold": FOLD, "output": folder, "resume": True}
    train_bundle(plan.bundle, datalist=datalist, overrides=plan.overrides(run), **options, **start)
    return folder


def pretrain(plan: Plan) -> Path:
    """Train a network that restores volumes on all images of the training folds, or go on; returns its weights."""
    from medseg.training import train_bundle

    folder, datalist = plan.restored, plan.restored / "datalist.json"
    weights = folder / "checkpoints" / "final.pt"
    if weights.exists():
        return weights
    folder.mkdir(parents=True, exist_ok=True)
    write_pretraining_datalist(plan.bundle, datalist)
    overrides = length(plan.pretraining_iterations) | restoring(_config(plan.bundle))
    options: dict[str, Any] = {"dataset_dir": plan.data, "fold": FOLD, "output": folder, "resume": True}
    train_bundle(plan.bundle, datalist=datalist, overrides=overrides, **options)
    return weights


def _config(bundle: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((bundle / "configs" / "train.json").read_text())
    return config


def segment(plan: Plan, trained: Path, items: list[dict[str, Any]], folder: Path) -> None:
    """Segment cases with the last weights of a run."""
    from benchmarks.train_flagship import predict
    from medseg.bundle import Bundle

    predict(Bundle.open(plan.bundle), trained / "checkpoints" / "final.pt", items, folder, **WINDOW)


def carry_out(plan: Plan, run: Run) -> Results:
    """Train (or go on), segment the held-out fold, measure; the result is also kept in the folder of the run."""
    import torch

    from medseg.bundle import Bundle
    from medseg.training import fold_items

    kept = plan.output / run.folder / "result.json"
    if kept.exists():  # by another process, in the meantime
        return Results.from_json(json.loads(kept.read_text()))
    torch.set_num_threads(1)
    folder = train(plan, run)
    items = fold_items(folder / "datalist.json", plan.data, FOLD, "validation")
    segment(plan, folder, items, folder / "predictions")
    labels = Bundle.open(plan.bundle).labels
    rows = [row for item in items for row in measure_case(run.key, item, folder / "predictions", labels)]
    result = Results([_facts(plan, run, folder)], rows)
    write_json(kept, asdict(result))
    return result


def _facts(plan: Plan, run: Run, folder: Path) -> RunFacts:
    """What a run has cost, and what its discriminator has learnt, from the files that the training left."""
    import numpy as np

    from medseg.tables import read_table

    spent = [float(row["cpu_seconds"]) for row in read_table(folder / "metrics.csv").rows]
    late = np.diff([0.0, *spent])[-max(1, len(spent) // 2) :]  # all parts take part
    accepted = json.loads((folder / "run.json").read_text())["result"]["discriminator"] or {}
    return RunFacts(
        *run.key,
        iterations=plan.iterations,
        batch_size=plan.batch_size,
        cpu_seconds=round(spent[-1], 1),
        step_seconds=round(float(np.median(late)) / LENGTH, 4),
        true_is_real=_share(accepted["real"]) if accepted else None,
        true_above_wrong=min(map(_share, accepted["above"].values())) if accepted else None,
    )


def _share(proportion: dict[str, float]) -> float:
    return round(proportion["count"] / proportion["of"], 4)


def planned_runs(variants: list[str], design: dict[int, int]) -> list[Run]:
    """All runs, in the order in which they are carried out.

    First what learns from labels and fresh weights, draw by draw, so that what is finished can be compared; then what a
    pretrained network begins; then students. Of all labels there is none left for a teacher to give.
    """
    runs = [
        Run(variant, labels, draw)
        for labels, draws in design.items()
        for stage in range(3)
        for draw in range(draws)
        for variant in variants
        if stage_of(variant) == stage
    ]
    return [run for run in runs if run.labels or not VARIANTS[run.variant].taught]


def stage_of(variant: str) -> int:
    """0 for what begins with fresh weights, 1 for what a restoring network begins, 2 for students."""
    found = VARIANTS[variant]
    return 2 if found.taught else int(found.pretrained)


def gather(plan: Plan, folder: Path) -> Results:
    """The results with those of all runs in ``plan.output`` that are not in them; written when there are such.

    Runs of another length are a ``UsageError``: they cannot be compared.
    """
    results = Results.read(folder)
    fresh = [Results.from_json(json.loads(path.read_text())) for path in plan.output.glob("*/*/*/result.json")]
    fresh = [one for one in fresh if one.runs[0].key not in results.finished]
    for one in sorted(fresh, key=lambda one: one.runs[0].key):
        results = results.joined(one)
    wanted = plan.iterations, plan.batch_size
    if others := {(run.iterations, run.batch_size) for run in results.runs} - {wanted}:
        raise UsageError(
            f"{folder} or {plan.output} has runs of {sorted(others)} iterations and batch size, expected {wanted}; "
            "give --iterations and --batch-size as they were, or new folders"
        )
    if fresh:
        results.write(folder)
    return results


def work(plan: Plan, runs: list[Run], folder: Path) -> int:
    """Carry out what is missing and nobody else is at, one run after another; how many failed."""
    failed: set[Run] = set()
    while True:
        finished = gather(plan, folder).finished
        for run in (run for run in runs if run.key not in finished and run not in failed):
            begun = time.process_time()
            try:
                with locked_folder(plan.output / "at-work" / run.folder, "another process is at it"):
                    result = carry_out(plan, run)
            except OutputLocked:
                continue  # this run, or the network that it begins with, is another process's
            except Interrupted:
                raise
            except MedsegError as error:
                failed.add(run)
                print(f"{run.folder}: {type(error).__name__}: {error}", flush=True)
                continue
            dice = sum(row.dice for row in result.rows) / len(result.rows)
            print(f"{run.folder}: Dice {dice:.4f}, {(time.process_time() - begun) / 60:.1f} core-minutes", flush=True)
            break
        else:
            return len(failed)


@contextmanager
def budget(minutes: float | None) -> Iterator[None]:
    """Ask this process to stop in order when so much time is over."""
    timer = threading.Timer(60.0 * (minutes or 0.0), lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    if minutes is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MSD Task04_Hippocampus")
    parser.add_argument("output", type=Path, help="checkpoints, predictions; may be lost once its runs are finished")
    parser.add_argument("--results", type=Path, help="where the tables of finished runs are; OUTPUT if not given")
    parser.add_argument("--budget-minutes", type=float, help="stop after this time, in order, in the midst of a run")
    parser.add_argument("--variants", nargs="+", default=list(ARMS), choices=list(VARIANTS))
    parser.add_argument("--labels", nargs="+", type=int, default=list(DESIGN), help="labelled cases; 0 means all")
    parser.add_argument("--draws", nargs="+", type=int, default=list(DESIGN.values()), help="one for each of --labels")
    parser.add_argument("--iterations", type=int, default=Plan.iterations)
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size)
    parser.add_argument("--pretraining-iterations", type=int, default=Plan.pretraining_iterations)
    options = parser.parse_args()
    iterations = options.iterations, options.pretraining_iterations
    if len(options.draws) != len(options.labels) or any(count % LENGTH for count in iterations):
        parser.error(f"--draws needs one number for each of --labels, and iterations are multiples of {LENGTH}")
    return options


def main() -> None:
    """Carry out what is missing, print the table."""
    options = parse()
    plan = Plan(options.data, options.output, options.iterations, options.batch_size, options.pretraining_iterations)
    runs = planned_runs(options.variants, dict(zip(options.labels, options.draws, strict=True)))
    results, code = options.results or options.output, 0
    try:
        with locked_folder(plan.output, "another process begins in this folder; start again in a moment"):
            if not plan.bundle.exists():
                shutil.copytree(BUNDLE, plan.bundle, ignore=shutil.ignore_patterns("models", "trust", "runs"))
        with signals_interrupt(), budget(options.budget_minutes):
            code = min(1, work(plan, runs, results))
        print(markdown(gather(plan, results)))
    except MedsegError as error:
        print(error, file=sys.stderr)
        code = int(error.exit_code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
