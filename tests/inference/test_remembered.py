"""What was measured on this machine is used again, and never believed if it is damaged or belongs elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.bundle import Bundle
from medseg.inference import Options, Predictor, run_batch, tuning
from medseg.inference.choice import Choice
from medseg.inference.remembered import CACHE_VARIABLE, Measured, Subject, recall, remember
from tests.inference.volumes import blobs, grid, save

FAST = "torch-fp32-channels-last"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def _measured(thorough: bool = True) -> Measured:
    return Measured(Choice(FAST, "bundle", 0.9999, "secret-name", 1.5), 2.0, thorough)


def test_it_comes_back_without_the_name_of_a_case(thresholds: Path, cache: Path) -> None:
    subject = Subject(Bundle.open(thresholds))
    assert recall(subject) is None
    remember(subject, _measured())
    found = recall(subject)
    assert found is not None
    assert (found.choice.engine, found.choice.speedup, found.reference_s) == (FAST, 1.5, 2.0)
    assert "secret-name" not in next(cache.iterdir()).read_text()
    assert recall(Subject(Bundle.open(thresholds), mirror=("ap",))) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "[]",
        lambda _: "\x00",
        lambda text: text.replace(FAST, "warp-drive"),
        lambda text: text.replace("0.9999", "0.99"),
        lambda text: text.replace("0.9999", "null"),
        lambda text: text.replace('"bundle"', '"huge"'),
        lambda text: text.replace('"bundle"', '"large"'),  # measured on nobody knows what size
        lambda text: text.replace('"engine"', '"motor"'),
    ],
)
def test_a_damaged_memory_counts_as_none(thresholds: Path, cache: Path, damage: object) -> None:
    subject = Subject(Bundle.open(thresholds))
    remember(subject, _measured())
    file = next(cache.iterdir())
    assert callable(damage)
    file.write_text(damage(file.read_text()))
    assert recall(subject) is None
    remember(subject, _measured())
    assert recall(subject) is not None


def test_a_cache_that_cannot_be_written_stops_nothing(thresholds: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    subject = Subject(Bundle.open(thresholds))
    remember(subject, _measured())
    assert recall(subject) is None


def test_a_hasty_measurement_serves_short_runs_only(thresholds: Path) -> None:
    predictor = Predictor(thresholds)
    remember(predictor.subject, _measured(thorough=False))
    assert predictor.recall(waiting=10_000) is None
    assert predictor.choice == Choice()
    assert predictor.recall(waiting=1) is not None
    assert predictor.choice.engine == FAST


def test_the_second_run_does_not_measure_again(
    tmp_path: Path, thresholds: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    for number in range(8):
        save(blobs((12, 12, 12), number), grid("plain"), tmp_path / "images" / f"case{number}.nii.gz")
    monkeypatch.setattr(tuning, "_WORTH_TUNING_S", 0.0)
    first = run_batch(thresholds, [tmp_path / "images"], tmp_path / "first")
    assert first.content["engine"]["measured_on"] == "case0"
    kept = json.loads(next(cache.iterdir()).read_text())
    assert kept["choice"]["engine"] == first.content["engine"]["engine"]
    monkeypatch.setattr(Predictor, "tune", None)  # calling it would fail the case
    second = run_batch(thresholds, [tmp_path / "images" / "case0.nii.gz"], tmp_path / "second")
    assert second.complete
    expected = {**first.content["engine"], "measured_on": "an earlier run on this machine"}
    assert {**second.content["engine"], "memory_bytes": expected["memory_bytes"]} == expected
    third = run_batch(thresholds, [tmp_path / "images"], tmp_path / "third", Options(precision="fp32"))
    assert third.content["engine"]["measured_on"] is None
