"""`medseg trust watch` on the folders of weeks: what changed, since when, and what does not count."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from medseg.cli import trust as trust_command
from medseg.cli.main import app
from medseg.errors import ExitCode, UsageError
from medseg.trust.synthetic_faults import IMAGE_FAULTS
from medseg.workflows.trust_watch import KINDS, Maker, Watched, watch, weights_of

assert trust_command

Cases = Sequence[dict[str, Any]]
BUNDLE = {"name": "liver", "version": "1.0", "sha256": "aa" * 32}
WEEK = 25


def _case(name: str, dice: float, *, flags: Sequence[str] = (), kind: str = "usual", **more: Any) -> dict[str, Any]:
    parts = {"left": dice, "right": dice + 0.02}
    structures = [
        {"label": label, "name": part, "predicted_dice": value, "lower_bound": value - 0.1}
        for label, (part, value) in enumerate(parts.items(), start=1)
    ]
    verdict = {"predicted_dice": dice + 0.01, "lower_bound": dice - 0.1, "verdict": "review" if flags else "accept"}
    trust: dict[str, Any] = {**verdict, "structures": structures, "flags": list(flags)}
    trust["case_class"] = {"name": kind, "probability": 0.9}
    volumes = [{"label": 1, "name": "left", "volume_ml": dice}]
    return {"case_id": name, "source": f"in/{name}", "status": "done", "structures": volumes, "trust": trust, **more}


def _failed(name: str) -> dict[str, Any]:
    return {"case_id": name, "source": f"in/{name}", "status": "failed", "reason": "unreadable"}


def _write(folder: Path, week: int, cases: Cases, **head: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    started = f"2026-{1 + week // 4:02d}-{1 + 7 * (week % 4):02d}T08:00:00+00:00"
    engine = {"engine": "torch-fp32"}
    run = {"bundle": BUNDLE, "engine": engine, "started": started, "finished": started, "cases": list(cases)}
    (folder / "run.json").write_text(json.dumps({**run, **head}))
    return folder


def _week(week: int, dice: float = 0.88, change: Callable[[int], dict[str, Any]] = lambda _: {}) -> Cases:
    rng = np.random.default_rng(week)
    return [_case(f"w{week}-{n}", dice + 0.02 * rng.standard_normal(), **change(n)) for n in range(WEEK)]


def _weeks(root: Path, count: int, first: int = 0, **how: Any) -> list[Path]:
    return [_write(root / f"week{week:02d}", week, _week(week, **how)) for week in range(first, first + count)]


def _changes(found: Watched) -> dict[str, tuple[float | None, float | None]]:
    return {one.name: (one.before, one.since) for stream in found.streams for one in stream.changes}


def _medseg(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_what_is_watched_is_fixed_and_shares_the_rate() -> None:
    assert set(KINDS) == {"crop", *IMAGE_FAULTS}
    assert sum(weights_of(["left", "right"]).values()) == pytest.approx(1.0)
    assert min(weights_of(["left"]).values()) > 0.01


def test_usual_weeks_are_told_to_be_usual(tmp_path: Path) -> None:
    _weeks(tmp_path, 8)
    shown = _medseg("trust", "watch", tmp_path)
    assert shown.exit_code == ExitCode.DONE, shown.output
    assert "200 results, 2026-01-01 to 2026-02-22" in shown.stdout
    assert "no change; nearest to one:" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    early = _medseg("trust", "watch", tmp_path / "week00", tmp_path / "week01")
    assert early.exit_code == ExitCode.DONE
    assert "not tested yet: the first 100 results show what is usual" in early.stdout


def test_a_fall_of_dice_is_named_with_its_week(tmp_path: Path) -> None:
    _weeks(tmp_path, 8)
    _weeks(tmp_path, 3, first=8, dice=0.85)
    shown = _medseg("trust", "watch", tmp_path)
    assert shown.exit_code == ExitCode.INCOMPLETE
    assert "CHANGED  predicted Dice of left: 0.880 → 0.85" in shown.stdout
    assert "since about result" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    told = json.loads(_medseg("trust", "watch", tmp_path, "--json").stdout)
    assert told["changed"]
    left = next(one for one in told["streams"][0]["quantities"] if one["name"] == "predicted Dice of left")
    assert 188 <= left["began"]["result"] <= 207
    assert Path(left["began"]["folder"]).name in {"week07", "week08"}
    assert left["began"]["result"] < left["told"]["result"] < 230


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"kind": "motion"}, {"looks like motion", "not a usual image"}),
        ({"kind": "a new kind"}, {"looks like something else", "not a usual image"}),
        ({"flags": ["unlike-training"]}, {"flagged", "flagged unlike-training", "not accepted"}),
    ],
)
def test_kinds_and_flags_are_named(change: dict[str, Any], names: set[str], tmp_path: Path) -> None:
    _weeks(tmp_path, 8)
    _weeks(tmp_path, 4, first=8, change=lambda n: change if n % 3 == 0 else {})
    found = _changes(watch([tmp_path]))
    assert set(found) == names
    for before, since in found.values():
        assert before is not None
        assert since is not None
        assert before < 0.02
        assert since > 0.25


def test_failures_are_counted_and_their_rise_is_a_change(tmp_path: Path) -> None:
    for week in range(12):
        cases = [*_week(week), *(_failed(f"f{week}-{n}") for n in range(1 if week < 8 else 12))]
        _write(tmp_path / f"week{week:02d}", week, cases)
    found = watch([tmp_path])
    assert set(_changes(found)) == {"failed"}
    assert found.streams[0].as_json()["statuses"] == {"done": 300, "failed": 56}


def test_the_order_is_that_of_time_and_not_of_the_arguments(tmp_path: Path) -> None:
    weeks = [*_weeks(tmp_path / "b", 6), *_weeks(tmp_path / "a", 3, first=6, dice=0.84)]
    forward = watch(weeks).as_json()
    assert watch(weeks[::-1]).as_json() == watch([weeks[4], tmp_path, *weeks]).as_json() == forward
    assert forward["changed"]
    assert not watch(weeks[6:], reference=weeks[6:8]).changed  # as it has become is usual now


def test_a_result_counts_once_and_cases_learnt_from_do_not(tmp_path: Path) -> None:
    stamps = {"c_seg.nii.gz": {"bytes": 1, "sha256": "0" * 64}}
    kept = _case("c", 0.9, outputs=["c_seg.nii.gz"], checksums=stamps)
    other = {**kept, "checksums": {"c_seg.nii.gz": {"bytes": 1, "sha256": "1" * 64}}}
    _write(tmp_path / "a", 0, [kept, _case("learnt", 0.99, trained_on=True), _failed("x")])
    _write(tmp_path / "b", 1, [{**kept, "seconds": 3.0}, other, _failed("x"), *_week(1)])
    (stream,) = watch([tmp_path]).streams
    assert stream.left_out == {"trained on": 1, "repeated": 2}
    assert len(stream.studies) == WEEK + 3


def test_empty_label_maps_of_other_images_are_no_repeats(tmp_path: Path) -> None:
    stamps = {"scan_seg.nii.gz": {"bytes": 1, "sha256": "0" * 64}}
    for hospital in ("a", "b", "c"):
        empty = {
            **_case("scan", 0.5, outputs=["scan_seg.nii.gz"], checksums=stamps),
            "source": f"{hospital}/scan.nii.gz",
        }
        empty["structures"] = [{"label": 1, "name": "left", "volume_ml": 0.0}]
        _write(tmp_path / hospital, 0, [empty, *([empty | {"seconds": 2.0}] if hospital == "c" else [])])
    (stream,) = watch([tmp_path]).streams
    assert [study.case.source for study in stream.studies] == [f"{name}/scan.nii.gz" for name in "abc"]
    assert stream.left_out == {"repeated": 1}


def test_what_is_not_calibrated_is_no_verdict_and_only_flags_are_watched(tmp_path: Path) -> None:
    for week in range(12):
        implausible = [n % 3 == 0 and week > 7 for n in range(WEEK)]
        flags = [{"verdict": "review", "flags": ["scattered", "not calibrated"]} if bad else {} for bad in implausible]
        trust = [{"verdict": "not calibrated", "structures": [], "flags": [], **more} for more in flags]
        cases = [{**_case(f"w{week}-{n}", 0.9), "trust": one} for n, one in enumerate(trust)]
        _write(tmp_path / f"week{week:02d}", week, cases)
    found = watch([tmp_path])
    assert set(_changes(found)) == {"flagged"}
    assert "not accepted" not in {one.name for one in found.streams[0].findings}


def test_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    weeks = _weeks(tmp_path / "archive", 3)
    (tmp_path / "results").mkdir()
    for week in weeks:
        (tmp_path / "results" / week.name).symlink_to(week)
    (tmp_path / "results" / "again").symlink_to(tmp_path)  # a loop
    assert watch([tmp_path / "results"]).n_runs == 3
    nothing = _write(tmp_path / "nothing", 0, [])
    with pytest.raises(UsageError, match="nothing to watch"):
        watch([nothing])


def test_another_bundle_is_another_stream(tmp_path: Path) -> None:
    _weeks(tmp_path, 8)
    for week in range(8, 14):
        newer = {"bundle": {**BUNDLE, "version": "1.1", "sha256": "bb" * 32}}
        _write(tmp_path / f"week{week:02d}", week, _week(week, dice=0.84), **newer)
    found = watch([tmp_path])
    assert [stream.maker.version for stream in found.streams] == ["1.0", "1.1"]
    assert not found.changed
    shown = _medseg("trust", "watch", tmp_path)
    assert shown.exit_code == ExitCode.DONE
    assert "since it is another: version 1.0 → 1.1, files aaaaaaaa → bbbbbbbb" in shown.stdout
    _write(tmp_path / "week14", 14, _week(14), engine={"engine": "openvino"})
    assert [stream.maker.engine for stream in watch([tmp_path]).streams] == ["torch-fp32", "torch-fp32", "openvino"]


def test_makers_that_differ_in_the_end_of_a_name_are_told_apart() -> None:
    before = Maker("sample", "2.0.0-rc.1", "aa" * 32, "torch-fp32", "")
    after = replace(before, version="2.0.0-rc.2", engine="torch-fp32-channels-last", options='{"mirror": ["ap"]}')
    assert after.told(before) == (
        "version 2.0.0-rc.1 → 2.0.0-rc.2, engine torch-fp32 → torch-fp32-channels-last,"
        ' options none → {"mirror": ["ap"]}'
    )
    assert replace(before, files="ab" * 32).told(before) == "files aaaaaaaa → abababab"


@pytest.mark.parametrize("damage", ["{", '{"cases": [{"case_id": 4}]}', '{"cases": []}'])
def test_a_damaged_run_is_named_and_the_rest_is_watched(damage: str, tmp_path: Path) -> None:
    _weeks(tmp_path, 8)
    (tmp_path / "week05" / "run.json").write_text(damage)
    shown = _medseg("trust", "watch", tmp_path)
    assert shown.exit_code == ExitCode.INCOMPLETE
    assert "left out:" in shown.stdout
    assert "week05" in shown.stdout
    assert "175 results" in shown.stdout
    alone = _medseg("trust", "watch", tmp_path / "week05")
    assert alone.exit_code == ExitCode.USAGE
    assert "week05" in alone.stderr


def test_other_commands_folders_below_are_passed_over(tmp_path: Path) -> None:
    _weeks(tmp_path, 6)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.json").write_text('{"epochs": 3}')
    assert not watch([tmp_path]).unread
    assert "holds no run" in next(iter(watch([tmp_path, tmp_path / "training"]).unread.values()))


def test_what_cannot_be_promised_is_refused(tmp_path: Path) -> None:
    weeks = _weeks(tmp_path, 3)
    other = _write(tmp_path / "other", 0, _week(0), bundle={**BUNDLE, "name": "kidney"})
    few = _write(tmp_path / "few", 0, _week(9)[:5])
    learnt = _write(tmp_path / "learnt", 0, [_case("a", 0.9, trained_on=True)])
    asked: list[tuple[list[Path], dict[str, Any], str]] = [
        (weeks, {"baseline": 5}, "give 20 or more"),
        (weeks, {"per_1000": 0}, "false alarms"),
        (weeks, {"reference": [other]}, "by the same one"),
        (weeks, {"reference": [few]}, "the reference has 5 results"),
        (weeks, {"reference": [tmp_path / "nowhere"]}, "nowhere"),
        ([learnt], {}, "learnt from"),
    ]
    for places, how, why in asked:
        with pytest.raises(UsageError, match=why):
            watch(places, **how)
