"""Cross-validation of a bundle: every case is scored by a network that has not seen it.

Each fold has its own copy of the bundle, trained on the other folds; the weights are those of the last epoch, which the
held-out cases had no say in. What is finished is kept, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle import Bundle
from medseg.bundle.training_run import CROSS_VALIDATION, TrainingRun
from medseg.errors import UsageError
from medseg.files import sha256_file, write_json, write_text
from medseg.json_shape import read_json
from medseg.manifests import Manifest

if TYPE_CHECKING:
    from medseg.evaluation import EvaluationResult
    from medseg.manifests.items import Item
    from medseg.training.run import Watcher

_LEFT_OUT = ("models", "trust", "runs", "eval", "training_run.json")
_SHOWN = {"dice": "Dice", "hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm", "nsd": "NSD"}


@dataclass(frozen=True)
class CrossValidation:
    """What :func:`cross_validate` found."""

    output: Path  # folder with ``fold0/``, ``fold1/`` … and ``scores/``
    folds: tuple[int, ...]  # the folds that were held out in turn
    # all held-out cases, each by the network of its fold; a case that inference refused is unpaired in it
    evaluation: EvaluationResult


def cross_validate(  # noqa: PLR0913  the options of one command, all but the first with a default
    bundle: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    folds: Sequence[int] | None = None,
    datalist: str | PathLike[str] | None = None,
    dataset_dir: str | PathLike[str] | None = None,
    device: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    watchers: Callable[[], Sequence[Watcher]] = tuple,
    say: Callable[[str], None] = lambda _: None,
) -> CrossValidation:
    """Train every fold, label its held-out cases, score them all together, and write the table into the bundle.

    Parameters
    ----------
    bundle
        Its folder or name. It gets ``docs/cross_validation.json`` and ``.md``, and the figures in its metadata; its
        own weights stay as they are.
    output
        Where the folds go; by default ``runs/crossval`` in the bundle.
    folds
        Which folds are held out; all by default. The bundle's table is written only for all of them.
    datalist, dataset_dir
        Instead of the bundle's own.
    device, overrides
        As for :func:`~medseg.training.train_bundle`.
    watchers
        Makes the watchers of one training, such as a progress bar.
    say
        Called with one line at the beginning of each step.

    Raises
    ------
    UsageError
        If the datalist has no such fold, or the output folder belongs to another configuration of the bundle.
    """
    opened = Bundle.open(Path(bundle))
    place = opened.path / "runs" / "crossval" if output is None else Path(output)
    manifest = _manifest(opened, datalist, dataset_dir)
    known = sorted({item["fold"] for item in manifest.training if isinstance(item.get("fold"), int)})
    if len(known) < 2:
        why = f"the datalist has {len(known) or 'no'} fold(s), expected at least two"
        raise UsageError(f"{why}; make them: medseg manifest split")
    chosen = tuple(known if folds is None else folds)
    if unknown := [fold for fold in chosen if fold not in known]:
        raise UsageError(f"found the folds {known} in the datalist, not {unknown}; choose among them")
    # nothing in the table is the judge's, which would learn for minutes in every fold
    no_judge = {"judge_steps": 0} if "judge_steps" in opened.config("train") else {}
    used = {**no_judge, **(overrides or {})}
    options = {"dataset_dir": manifest.dataset_dir, "datalist": datalist, "device": device, "overrides": used}
    settings = json.loads(json.dumps({"datalist": manifest.content, "overrides": dict(overrides or {})}, default=str))
    stated = place / "asked.json"  # folds of other data or settings are not taken for those that are asked for
    if stated.is_file() and read_json(stated, {}, f"choose another --output, or remove {place}") != settings:
        raise UsageError(f"{place} holds folds of another datalist or other --set values; choose another --output")
    write_json(stated, settings)
    predicted: list[Item] = []
    for number, fold in enumerate(chosen, 1):
        say(f"fold {fold} ({number} of {len(chosen)}): training")
        copy = _trained(opened, place / f"fold{fold}", fold, options, watchers())
        say(f"fold {fold} ({number} of {len(chosen)}): labelling the cases it has not seen")
        predicted += _labelled(copy, manifest, place / f"fold{fold}", fold, device)
    say("measuring")
    result = CrossValidation(place, chosen, _evaluated(opened, manifest, place, chosen, predicted))
    if set(chosen) == set(known):
        _record(opened, result)
    return result


def _manifest(
    bundle: Bundle, datalist: str | PathLike[str] | None, dataset_dir: str | PathLike[str] | None
) -> Manifest:
    """The datalist that training reads, with absolute places."""
    if datalist is None:
        datalist = bundle.path / "configs" / "datalist.json"
        dataset_dir = bundle.config("train").get("dataset_dir") if dataset_dir is None else dataset_dir
    read = Manifest.read(datalist, dataset_dir=dataset_dir)
    return Manifest(read.content, read.dataset_dir.absolute())


def _trained(bundle: Bundle, place: Path, fold: int, options: Mapping[str, Any], watchers: Sequence[Watcher]) -> Bundle:
    """The fold's own copy of the bundle, with weights."""
    from medseg.training import train_bundle

    copy = place / bundle.name
    if not copy.exists():
        fresh = place / f".{bundle.name}"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(bundle.path, fresh, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        fresh.rename(copy)
    for name in ("train", "inference"):
        if bundle.config(name) != Bundle.open(copy).config(name):
            why = f"{copy} was trained with another configs/{name}.json"
            raise UsageError(f"{why}; choose another --output, or remove {place}")
    if TrainingRun.read(Bundle.open(copy)) is None:
        train_bundle(
            copy, fold=fold, output=place / "training", resume=True, publish="final", watchers=watchers, **options
        )
    return Bundle.open(copy)


def _labelled(bundle: Bundle, manifest: Manifest, place: Path, fold: int, device: str | None) -> list[Item]:
    """Items of a datalist of predictions for the held-out cases."""
    from medseg.inference import Options, run_batch

    held_out = manifest.with_content(training=manifest.fold(fold)[1], test=[], testing=[], validation=[])
    held_out.write(place / "held_out.json")
    options = Options(device=device or "auto", trust=False)  # references tell, and better than a judge
    report = run_batch(bundle, [place / "held_out.json"], place / "results", options)
    results = (place / "results").absolute()
    return [
        {"image": str(case.source), "case_id": case.case_id, "pred": str(results / output), "fold": fold}
        for case in report.cases
        for output in case.outputs
        if output.endswith("_seg.nii.gz")
    ]


def _evaluated(
    bundle: Bundle, manifest: Manifest, place: Path, folds: Iterable[int], predicted: Sequence[Item]
) -> EvaluationResult:
    from medseg.evaluation import Options, evaluate_folders

    references = [item for item in manifest.training if item.get("fold") in set(folds)]
    manifest.with_content(training=references, test=[], testing=[], validation=[]).write(place / "references.json")
    if not predicted:
        raise UsageError(f"no held-out case could be labelled; {place}/fold*/results/run.json says why of each")
    write_json(place / "predictions.json", {"test": list(predicted)})
    options = Options(group_by="fold")
    return evaluate_folders(
        place / "predictions.json", place / "references.json", place / "scores", labels=bundle.scheme, options=options
    )


def _record(bundle: Bundle, result: CrossValidation) -> None:
    """The table into the bundle: JSON for programs, Markdown for people, means into the metadata."""
    summary = result.evaluation.summary
    kept = {key: summary[key] for key in ("medseg", "n_cases", "n_unpaired", "n_refused", "structures", "subgroups")}
    config = sha256_file(bundle.config_file("train"))
    write_json(bundle.path / CROSS_VALIDATION, {"train_config_sha256": config, "folds": list(result.folds), **kept})
    write_text((bundle.path / CROSS_VALIDATION).with_suffix(".md"), _table(result))
    means = {
        f"{name.replace(' ', '_')}_{metric}": round(entry["metrics"][metric]["mean"], 4)
        for name, entry in summary["structures"].items()
        for metric in ("dice", "hd95_mm")
        if entry["metrics"].get(metric, {}).get("mean") is not None
    }
    cases = f"{summary['n_cases']} cases in {len(result.folds)} folds, each by a network that has not seen it"
    figures = {"cases": f"{cases}; not by the weights that ship", **means}
    bundle.metadata["eval_metrics"] = {**(bundle.metadata.get("eval_metrics") or {}), "cross_validation": figures}
    write_json(bundle.path / "configs" / "metadata.json", bundle.metadata)


def _table(result: CrossValidation) -> str:
    summary = result.evaluation.summary
    rows = [
        ["structure", "cases", "missed", *_SHOWN.values()],
        ["---"] * (3 + len(_SHOWN)),
        *(
            [name, entry["n"], entry["n_missed"], *(_cell(entry["metrics"].get(metric)) for metric in _SHOWN)]
            for name, entry in summary["structures"].items()
        ),
    ]
    return (
        f"# Cross-validation\n\n{summary['n_cases']} cases in {len(result.folds)} folds. Each was scored by a network"
        " that had not seen it, with the weights of the last epoch; the weights that ship are others. Mean ± standard"
        " deviation, with the 95 % interval of the mean over patients."
        f" {summary['n_unpaired'] + summary['n_refused']} cases could not be scored.\n\n"
        + "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
    )


def _cell(metric: Mapping[str, Any] | None) -> str:
    if not metric or metric["mean"] is None:
        return "–"
    low, high = metric["ci95"] or (None, None)
    spread = "" if metric["std"] is None else f" ± {metric['std']:.3f}"
    return f"{metric['mean']:.3f}{spread}" + ("" if low is None else f" ({low:.3f}–{high:.3f})")
