from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import MedsegError
from medseg.evaluation.tables import measured_dice
from medseg.json_shape import misfit
from medseg.report import write_report
from medseg.results import RunReport, write_worklist
from medseg.results.run_report import RUN
from tests.report.report_folders import EVALUATION, make_folders, read_nifti

ODD: list[Any] = [None, 3, -1.5, "x", "", [], [1], {}, {"a": 1}, True, float("nan"), 10**400, [None], "é\0"]


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ({"cases": []}, ""),
        ({"cases": [{"case_id": "a", "trust": None, "trained_on": False}]}, ""),
        ({}, "it has no cases"),
        ({"cases": [{"case_id": 3}]}, "cases[0].case_id is a int, expected a file's name without a folder"),
        ({"cases": [{"case_id": "a", "seconds": True}]}, "cases[0].seconds is a bool, expected a number"),
        ({"cases": [], "trust": {"thresholds": {"accept": 1}}}, "trust.thresholds has no reject"),
        (
            {"cases": [{"case_id": "a", "trust": {"verdict": "perhaps"}}]},
            "cases[0].trust.verdict is a str, expected one of not calibrated, accept, review, reject",
        ),
        ({"cases": [{"case_id": "a", "outputs": "b"}]}, "cases[0].outputs is a str, expected a list"),
    ],
)
def test_what_does_not_fit_is_named(run: dict[str, Any], told: str) -> None:
    assert misfit(run, RUN) == told


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def mutated(value: Any, rng: random.Random) -> Any:
    value = copy.deepcopy(value)
    *way, last = rng.choice(list(places(value)))
    target = value
    for key in way:
        target = target[key]
    target[last] = rng.choice(ODD)
    return value


def test_what_fits_is_read_and_written_again_as_it_was(tmp_path: Path) -> None:
    results = make_folders(tmp_path / "study", ("a", "b"), refused=1).results
    report = RunReport.read(results)
    assert RunReport.from_json(results, report.to_json()) == report
    rng = random.Random(1)
    content = report.to_json()
    for _ in range(300):  # whatever fits can be read
        odd = mutated(content, rng)
        if not misfit(odd, RUN):
            json.dumps(RunReport.from_json(results, odd).to_json())


def test_a_damaged_run_or_evaluation_is_an_error_and_no_crash(tmp_path: Path) -> None:
    results = make_folders(tmp_path / "study", ("a", "b"), refused=1).results
    run = json.loads((results / "run.json").read_text())
    rng = random.Random(0)
    for number in range(120):
        odd = number % 2 == 0
        (tmp_path / "run.json").write_text(json.dumps(mutated(run, rng) if odd else run))
        (tmp_path / "metrics.json").write_text(json.dumps(EVALUATION if odd else mutated(EVALUATION, rng)))
        for read in (
            lambda: write_report(tmp_path, viewer="never", reader=read_nifti),
            lambda: write_worklist(RunReport.read(tmp_path), tmp_path / "worklist.csv", measured_dice(tmp_path)),
        ):
            try:
                read()
            except MedsegError as error:
                assert ".json" in str(error) or "verdict" in str(error)  # noqa: PT017
