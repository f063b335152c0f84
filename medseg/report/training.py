"""The report of a training: its curves, what it has shown of its samples, and what was run."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.json_shape import LARGEST_BYTES, NUMBER, TEXT, Spec, misfit, parse_json, read_bounded
from medseg.report.charts import Chart, Section, curves
from medseg.report.page import Page
from medseg.report.tables import Cell, Column, Tile, table
from medseg.tables import read_table

_RUN: Spec = {
    "status": TEXT,
    "reason": TEXT,
    "bundle": {"name": TEXT, "version": TEXT},
    "device": TEXT,
    "precision": {"used": TEXT},
    "seed": NUMBER,
    "result": {"best_metric": NUMBER, "best_epoch": NUMBER, "seconds": NUMBER},
}
_CHARTS = {
    "Losses": r"(?!val_).*loss",
    "Discriminator accuracy": r"(real|fake|discriminator)_accuracy",
    "Validation, scores": r"val_(?!.*(_mm|_missed|_invented)$).*",
    "Validation, distances [mm]": r"val_.*_mm",
    "Validation, structures missed and invented": r"val_.*_(missed|invented)",
    "Learning rate": r"learning_rate",
}
_MOST_SAMPLES = 6
_LARGEST = 1e30
"""Larger figures have no place on an axis."""
_ABOUT = (
    ("Losses, accuracies", "means over the iterations of an epoch"),
    ("Validation", "means over the cases that the fold holds out; it chooses the best epoch, so it is no test"),
    ("Pictures", "patient's right on your left, in sagittal slices anterior"),
)


@dataclass(frozen=True)
class Training:
    """What ``medseg train`` left: ``run.json``, the figures of every epoch, pictures by epoch."""

    run: Mapping[str, Any]
    epochs: Sequence[Mapping[str, float]]
    pictures: Sequence[Path]

    def page(self, title: str | None) -> Page:
        """The page about it."""
        bundle = self.run.get("bundle") or {}
        facts = {
            "model": " ".join(filter(None, (bundle.get("name"), bundle.get("version")))),
            "device": self.run.get("device"),
            "precision": (self.run.get("precision") or {}).get("used"),
            "seed": self.run.get("seed"),
        }
        status, reason = self.run.get("status"), self.run.get("reason")
        ended = f"The training has not reached its last iteration: {status}{f' ({reason})' if reason else ''}."
        if not status:  # MONAI ran the bundle by itself
            ended = "No run.json says how the training ended: whether it has reached its last iteration is not known."
        columns: list[Column[str]] = [
            Column("Figure", Cell, numeric=False),
            *(Column(f"Epoch {epoch['epoch']:g}", partial(_value, epoch)) for epoch in self._shown),
        ]
        charts = self._charts()
        return Page(
            title or (bundle.get("name") or "Training").replace("_", " ").capitalize(),
            kind="Training",
            facts=[(name, str(value)) for name, value in facts.items() if value not in (None, "")],
            cautions=[ended] if status != "done" else [],
            tiles=self._tiles(),
            table_title="Figures",
            structures=table(columns, [name for name in self._names if name != "epoch"]),
            charts=[Section("curves", "Curves", "Every dot or corner is an epoch.", "wide", charts)] if charts else [],
            samples=[(path.stem.replace("-", " "), _data_uri(path)) for path in self.pictures],
            about=_ABOUT,
        )

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for epoch in self.epochs for name in epoch))

    @property
    def _shown(self) -> list[Mapping[str, float]]:
        """The first, the best and the last epoch."""
        best = (self.run.get("result") or {}).get("best_epoch")
        numbers = {0, len(self.epochs) - 1, *(i for i, epoch in enumerate(self.epochs) if epoch["epoch"] == best)}
        return [self.epochs[i] for i in sorted(numbers) if self.epochs]

    def _tiles(self) -> list[Tile]:
        result = self.run.get("result") or {}
        tiles = [Tile(f"{self.epochs[-1]['epoch']:g}" if self.epochs else "0", "epochs")]
        if result.get("best_metric") is not None:
            tiles.append(Tile(f"{result['best_metric']:.3f}", "best validation", f"epoch {result.get('best_epoch')}"))
        spent = result.get("seconds") or (self.epochs[-1].get("seconds") if self.epochs else None)
        return [*tiles, Tile(f"{spent / 60:.3g} min", "spent")] if spent else tiles

    def _charts(self) -> tuple[Chart, ...]:
        charts = []
        for title, pattern in _CHARTS.items():
            names = [name for name in self._names if re.fullmatch(pattern, name)]
            series = {n: [(epoch["epoch"], epoch[n]) for epoch in self.epochs if n in epoch] for n in names}
            charts += [curves(title, series)] if series else []
        return tuple(charts)


def read_training(folder: Path) -> Training | None:
    """The training that filled a folder; None if it is another kind of folder.

    Raises ``UsageError`` if a file of it is damaged.
    """
    run = _run(folder / "run.json")
    path = folder / "metrics.csv"
    found = read_table(path) if path.is_file() and run is not None else None
    if run is None or (found is not None and "epoch" not in found.columns) or (found is None and "parts" not in run):
        return None
    rows = found.rows if found else ()
    try:
        epochs = [_figures(row) for row in rows]
    except ValueError as error:
        raise UsageError(f"metrics.csv: {error}; expected numbers as `medseg train` writes them") from error
    if any("epoch" not in epoch for epoch in epochs):
        raise UsageError("metrics.csv has a row without an epoch; give the folder that `medseg train` wrote")
    pictures = sorted((folder / "samples").glob("epoch-*.png"), reverse=True)
    step = max(1, -(-len(pictures) // _MOST_SAMPLES))
    return Training(run, epochs, pictures[::step])


def _figures(row: Mapping[str, str]) -> dict[str, float]:
    """The figures of an epoch; one that is no number any more (a training that diverged) is left out."""
    figures = {name: float(text) for name, text in row.items() if text}
    return {name: value for name, value in figures.items() if abs(value) < _LARGEST}


def _run(path: Path) -> dict[str, Any] | None:
    """The object in a training's ``run.json``, empty without one; None if it is damaged or of a run over cases."""
    try:
        run = parse_json(read_bounded(path, LARGEST_BYTES)) if path.is_file() else {}
    except (OSError, ValueError):
        return None  # which is refused by whoever reads a run over cases
    if not isinstance(run, dict) or "cases" in run:
        return None
    if wrong := misfit(run, _RUN):
        raise UsageError(f"run.json is not as `medseg train` writes it: {wrong}; run it again")
    return run


def _value(epoch: Mapping[str, float], name: str) -> Cell:
    return Cell(f"{epoch[name]:.4g}" if name in epoch else "–")


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
