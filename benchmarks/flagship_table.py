"""The folds of the hippocampus bundle together: every case once, measured by the network that has not seen it.

    python -m benchmarks.flagship_table OUTPUT

reads ``OUTPUT/fold*/cases.csv`` and ``curve.csv`` of ``benchmarks.train_flagship`` and prints the table in Markdown.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

METRICS = {"dice": "Dice", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm", "nsd": "NSD at 1 mm"}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


def cell(rows: list[dict[str, str]], metric: str) -> str:
    """Mean ± standard deviation over cases; a missing distance is left out and counted."""
    values = np.array([float(row[metric]) for row in rows if row[metric] not in ("", "None")])
    missing = len(rows) - len(values)
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" + (f" ({missing} without)" if missing else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    folders = sorted(path.parent for path in parser.parse_args().output.glob("fold*/cases.csv"))
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
        minutes = read(folder / "curve.csv")[-1]["core_minutes"]
        print(f"| {folder.name} | {' | '.join(f'{mean:.4f}' for mean in means)} | {minutes} |")


if __name__ == "__main__":
    main()
