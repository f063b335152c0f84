"""The folds of the hippocampus bundle together: every case once, measured by the network that has not seen it.

    python -m benchmarks.flagship_table OUTPUT [--peer CASES.csv]

reads ``OUTPUT/fold*/cases.csv`` and ``metrics.csv`` of ``benchmarks.train_flagship`` and prints the table in Markdown.
A peer's Dice of the same cases (``case_id``, ``foreground_mean_dice``) is compared case by case: Wilcoxon's signed
ranks over patients, whose crops are averaged, and the mean difference with a bootstrapped 95 % interval. Patients with
one and with two crops are told apart, too: a peer whose folds were drawn by case has learnt from the other crop.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.train_flagship import BUNDLE

METRICS = {"dice": "Dice", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm", "nsd": "NSD at 1 mm"}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


def cell(rows: list[dict[str, str]], metric: str) -> str:
    """Mean ± standard deviation over cases; a missing distance is left out and counted."""
    values = np.array([float(row[metric]) for row in rows if row[metric] not in ("", "None")])
    missing = len(rows) - len(values)
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" + (f" ({missing} without)" if missing else "")


def against_peer(rows: Sequence[Mapping[str, str]], peer: Mapping[str, float], patients: Mapping[str, str]) -> str:
    """Our mean Dice over the structures of a case minus the peer's, by patient."""
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case_id"], []).append(float(row["dice"]))
    ours = {case: float(np.mean(values)) for case, values in dice.items()}
    if unknown := sorted(ours.keys() - peer.keys()):
        raise SystemExit(f"the peer has no Dice of {len(unknown)} cases, the first is {unknown[0]}; give all of them")
    gains: dict[str, list[float]] = {}
    for case, value in ours.items():
        gains.setdefault(patients[case], []).append(value - peer[case])
    paired = np.array([np.mean(values) for values in gains.values()])
    draws = np.random.default_rng(0).choice(paired, (10_000, len(paired))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    theirs = np.array([peer[case] for case in ours])
    return (
        f"ours {np.mean(list(ours.values())):.4f} (worst {min(ours.values()):.3f}), peer {theirs.mean():.4f} (worst "
        f"{theirs.min():.3f}); {len(paired)} patients: {100 * paired.mean():+.2f} points ({100 * low:+.2f} to "
        f"{100 * high:+.2f}), better in {int((paired > 0).sum())}, Wilcoxon p = {stats.wilcoxon(paired).pvalue:.2g}"
    )


def core_minutes(folder: Path) -> float:
    """Of a fold: its own run and its teachers'."""
    runs = [folder, *sorted(folder.glob("teachers/*"))]
    return sum(float(read(run / "metrics.csv")[-1]["cpu_seconds"]) / 60 for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--peer", type=Path)
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.output.glob("fold*/cases.csv"))
    folds = {folder.name: read(folder / "cases.csv") for folder in folders}
    everything = [row for rows in folds.values() for row in rows]
    cases = [row["case_id"] for row in everything]
    structures = list(dict.fromkeys(row["structure"] for row in everything))
    assert len(set(cases)) * len(structures) == len(cases), "a case was measured in two folds"
    print(f"{len(folds)} folds, {len(set(cases))} cases\n\n| structure | {' | '.join(METRICS.values())} |")
    print(f"| --- |{' --- |' * len(METRICS)}")
    for name in structures:
        rows = [row for row in everything if row["structure"] == name]
        print(f"| {name} | {' | '.join(cell(rows, metric) for metric in METRICS)} |")
    print(f"\n| fold | {' | '.join(f'Dice {name}' for name in structures)} | core-minutes |\n| --- | --- | --- | --- |")
    for folder, rows in zip(folders, folds.values(), strict=True):
        means = [np.mean([float(row["dice"]) for row in rows if row["structure"] == name]) for name in structures]
        print(f"| {folder.name} | {' | '.join(f'{mean:.4f}' for mean in means)} | {core_minutes(folder):.1f} |")
    if options.peer is not None:
        items = json.loads((BUNDLE / "configs" / "datalist.json").read_text())["training"]
        patients = {Path(item["image"]).name.removesuffix(".nii.gz"): item["patient_id"] for item in items}
        peer = {row["case_id"]: float(row["foreground_mean_dice"]) for row in read(options.peer)}
        print(f"\n{against_peer(everything, peer, patients)}")
        crops = Counter(patients.values())
        for count in sorted({*crops.values()}):
            some = [row for row in everything if crops[patients[row["case_id"]]] == count]
            print(f"patients with {count} of these cases: {against_peer(some, peer, patients)}")


if __name__ == "__main__":
    main()
